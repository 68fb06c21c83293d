"""Rows of Soul, from golden files (tests/fixtures): its own spikes, recorded by running its code.

The recipe of the neurons' files is tests/fixtures/neurons/make_soul.py.
"""

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from golden import golden
from golden_specs import neuron_of
from places import FIXTURES
from row import Made, Own, Row
from safetensors.torch import load_file
from torch import Tensor, nn

from soul_deploy import import_zoo
from soul_deploy.frontend.from_torch import trace
from soul_deploy.ir import NeuronSpec
from soul_deploy.model.model import Model, ModelInfo, from_module
from soul_deploy.nn.graph_module import GraphModule
from soul_deploy.nn.layers import RateReadout
from soul_deploy.nn.neuron import SpikingNeuron

NEURONS = (
    *("lif", "plif", "clif", "glif", "ielif", "ilif", "intlif", "izhikevich", "ltmd", "psn"),
    *("rplif", "stbif", "tlif"),
)
CLASSES = 4


def of_neuron(name: str) -> Made:
    """The neuron behind a convolution of 1 by 1 that passes each channel's recorded current on."""
    case = golden("soul", name)
    shape, steps = tuple(case.input.shape[2:]), len(case.input)
    torch.manual_seed(2)
    neuron = _psn(case.parameters, steps, shape) if name == "psn" else neuron_of(case)
    convolution, head = nn.Conv2d(shape[0], shape[0], 1, bias=False), RateReadout(shape[0], CLASSES)
    with torch.no_grad():
        convolution.weight.copy_(torch.eye(shape[0])[:, :, None, None])
    network = nn.Sequential(convolution, neuron, head)

    def own() -> Own:
        with torch.no_grad():
            scores = case.output.mean((0, 3, 4)) @ head.weight.T + head.bias
        return Own({"1": case.output / neuron.spec.unit}, scores)

    def taken() -> Model:
        module = GraphModule(trace(network, shape, steps))
        module.load_state_dict(network.state_dict())
        return from_module(module, ModelInfo())

    return Made(case.input, own, taken, ("0", "1", "2"))


def of_network(neuron: str) -> Made:
    """Soul's spikingvgg5 with a small head: its weights under their names, its spikes."""
    tensors = load_file(FIXTURES / f"spikingvgg5_{neuron}.safetensors")
    below = {
        start: {k.removeprefix(f"{start}."): v for k, v in tensors.items() if k.startswith(start)}
        for start in ("weights", "spikes")
    }

    def taken() -> Model:
        with TemporaryDirectory() as folder:
            path = Path(folder) / f"best_spikingvgg5_{neuron}_cifar10_T4_2025.pt"
            torch.save(below["weights"], path)
            hidden = len(below["weights"]["pre_logits.fc1.0.weight"])
            return import_zoo(
                path, "spikingvgg5", input_shape=(3, 32, 32), classes=10, hidden=hidden
            )

    own = Own({name: spikes.float() for name, spikes in below["spikes"].items()}, tensors["logits"])
    return Made(tensors["input"], lambda: own, taken, tuple(below["spikes"]))


def _psn(parameters: Mapping[str, Tensor], steps: int, shape: tuple[int, ...]) -> SpikingNeuron:
    made = SpikingNeuron(NeuronSpec("psn"), steps, shape)
    made.load_state_dict(dict(parameters))
    return made


def rows() -> list[Row]:
    networks = [
        Row(
            network="spikingvgg5, small head",
            neuron=name.upper(),
            way="import zoo",
            make=lambda name=name: of_network(name),  # type: ignore[misc]
        )
        for name in ("lif", "plif")
    ]
    alone = [
        Row(
            network="one convolution, recorded currents",
            neuron=name.upper(),
            way="trace",
            make=lambda name=name: of_neuron(name),  # type: ignore[misc]
            light=name in ("intlif", "glif"),
        )
        for name in NEURONS
    ]
    return networks + alone
