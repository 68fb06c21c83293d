"""Weights of a network known by name, Soul's or somebody's checkpoint, as a model."""

import torch

from soul_deploy import create, import_zoo, save

SHAPE = (2, 32, 32)  # of an event camera; any data set will do
trained = create("spikingvgg5", input_shape=SHAPE, classes=11, hidden=16)  # stands for yours
torch.save({"net": trained.module().state_dict(), "args": {"T": 6, "tau": 1.5}}, "best_lif.pt")

model = import_zoo(
    "best_lif.pt", "spikingvgg5", input_shape=SHAPE, classes=11, hidden=16, input_kind="counts"
)
print(model)
for sentence in model.info.provenance["assumptions"]:  # what was taken from the file, and assumed
    print(sentence)
save(model, "from_weights.safetensors")
