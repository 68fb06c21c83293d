"""Prune single weights and neurons until a fifth of the synapses is left."""

from soul_deploy import (
    FinetuneConfig,
    SearchConfig,
    TrainConfig,
    load,
    prune_unstructured,
    save,
)

dense = load("dense.safetensors")
search = SearchConfig(
    target_connectivity=0.2, prune_lr=0.02, finetune=FinetuneConfig(epochs=1, learning_rate=1e-3)
)
result = prune_unstructured(dense, "digits", search, TrainConfig(epochs=2))
print(result, result.connectivity)
save(result.masked, "sparse.safetensors")
