"""Write an event network, images for it and PyTorch's scores into a folder (used by .ci/run)."""

import sys
from pathlib import Path

import numpy as np
import torch

from soul_deploy.export.event.build import export_event
from soul_deploy.ir import NeuronSpec
from soul_deploy.model.model import Model, arrays_of
from soul_deploy.zoo.registry import NetworkOptions, create

folder = Path(sys.argv[1])
torch.manual_seed(0)
network, graph = create("spikingvgg5", NetworkOptions((1, 12, 12), 10, NeuronSpec(), 4, hidden=16))
with torch.no_grad():
    for weight in network.parameters():
        weight.mul_(3.0)  # so that every layer spikes
model = Model(graph, arrays_of(network.state_dict()))
images = torch.rand(5, 1, 12, 12) * 3
export_event(model, folder / "net.event.safetensors")
np.save(folder / "images.npy", images.numpy())
with torch.no_grad():
    scores = model.module()(images).numpy()
assert (scores != 0).any(axis=1).all(), "a silent network would prove nothing"
np.save(folder / "expected.npy", scores)
