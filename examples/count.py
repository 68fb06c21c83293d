"""Operations and energy per image, and which synapses are left."""

from soul_deploy import as_data, connectivity, count, load

dense, compact = load("dense.safetensors"), load("compact.safetensors")
print(count(compact, as_data("digits"), original=dense).text())
print(connectivity(compact, dense).text())
