"""Prune single weights and neurons until three tenths of the synapses is left."""

from soul_deploy import (
    FinetuneConfig,
    SearchConfig,
    Target,
    TrainConfig,
    load,
    plan_unstructured,
    prune_unstructured,
    save,
)

dense = load("dense.safetensors")
search = SearchConfig(
    target=Target("connectivity", 0.3),
    prune_lr=0.02,
    finetune=FinetuneConfig(epochs=2, learning_rate=2e-3),
)
print(plan_unstructured(dense, search).to_dict()["layers"])  # what would be masked
result = prune_unstructured(dense, "digits", search, TrainConfig(epochs=2))
print(result.text())
save(result.masked, "sparse.safetensors")
