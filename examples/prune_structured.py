"""Prune half of the channels by SCA, and remove them."""

from soul_deploy import (
    PruneSchedule,
    ScaConfig,
    TrainConfig,
    load,
    plan_structured,
    prune_structured,
    save,
)

dense = load("dense.safetensors")
half = ScaConfig(PruneSchedule(ratio=0.5, epochs=3, finetune_epochs=1))
print(plan_structured(dense, config=half))  # what would be pruned; nothing is trained
result = prune_structured(dense, "digits", half, TrainConfig(learning_rate=0.002))
print(result.text())
save(result.masked, "masked.safetensors")
if result.compact is not None:
    save(result.compact, "compact.safetensors")
