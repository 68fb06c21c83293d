"""Times of a model's engines side by side; what is missing is exported."""

from soul_deploy import bench

print(bench(["dense.safetensors", "compact.safetensors"]).text())
