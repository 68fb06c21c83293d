"""Prune half of the channels by SCA, and remove them."""

from soul_deploy import ScaConfig, TrainConfig, load, prune_structured, save

dense = load("dense.safetensors")
result = prune_structured(dense, "digits", ScaConfig(), TrainConfig(epochs=2))
print(result)
print(result.to_dict()["layers"])
save(result.masked, "masked.safetensors")
if result.compact is not None:
    save(result.compact, "compact.safetensors")
