"""A network of your own, with `layers` and `SpikingNeuron` or for SpikingJelly; to NIR and back."""

import torch
from torch import nn

from soul_deploy import (
    NeuronSpec,
    SpikingNeuron,
    export_nir,
    from_torch,
    import_nir,
    layers,
    save,
    verify,
)

T = 4
network = nn.Sequential(  # with its trained weights
    layers.Conv2d(1, 8, 3, padding=1),
    SpikingNeuron(NeuronSpec(), T),
    layers.AvgPool2d(2),
    layers.Flatten(),
    layers.RateReadout(128, 10),
)
example = 4 * torch.rand(16, 1, 8, 8)  # yours, scaled as in training
model = from_torch(network, (1, 8, 8), T, example=example)
print(model)
save(model, "mine.safetensors")
export_nir(model, "mine.nir")
print(verify(model, "mine.nir", example).text())
print(import_nir("mine.nir"))
