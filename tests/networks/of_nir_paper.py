"""Rows of the NIR paper's own files (tests/fixtures/nir_paper), against what tools made of them."""

from functools import partial
from importlib import import_module
from typing import Any

import numpy as np
import torch
from heard import heard
from places import FIXTURES
from row import Made, Own, Row
from torch import Tensor

from soul_deploy.export.nir.read import import_nir
from soul_deploy.model.model import Model

FOLDER = FIXTURES / "nir_paper"


def recorded(name: str, population: str, **said: Any) -> Made:
    """One neuron, and the paper's recording of its own tool: input, membrane, spikes."""
    table = np.loadtxt(FOLDER / f"{name}.csv", delimiter=",", dtype=np.float32)
    x, spikes = (torch.from_numpy(table[:, column]).reshape(-1, 1, 1) for column in (0, 2))
    own = Own({population: spikes.clamp(max=1)}, spikes.mean(0))
    taken = partial(_taken, f"{name}.nir", len(x), said)
    return Made(x, lambda: own, taken, ("0", population))


def convolutional() -> Made:
    """The paper's N-MNIST network, that sinabs wrote, as SpikingJelly reads it."""
    exchange: Any = import_module("spikingjelly.activation_based.nir_exchange")
    graph: Any = import_module("nir").read(FOLDER / "cnn_sinabs.nir", type_check=False)
    network = exchange.import_from_nir(graph, dt=1.0).eval()
    drawn = torch.Generator().manual_seed(3)
    x = (torch.rand(12, 3, 2, 34, 34, generator=drawn) < 0.3).float() * 2

    def own() -> Own:
        outs: list[Tensor] = []

        def run() -> None:
            state = None
            for frame in x:
                out, state = network(frame, state)
                outs.append(out)

        sent = heard(network, type(network.get_submodule("1")), run)
        return Own(sent, torch.stack(outs).mean(0))

    taken = partial(_taken, "cnn_sinabs.nir", len(x), {"dt": 1.0, "fire": "ge"})
    return Made(x, own, taken, tuple(graph.nodes))


def braille() -> Made:
    """Recurrent, reset to zero at once. snnTorch 1.0.0 cannot run its own RSynaptic so, but the
    neurons: its Synaptic, whose last spikes come back through the file's weights.
    """
    snn: Any = import_module("snntorch")
    graph: Any = import_module("nir").read(FOLDER / BRAILLE, type_check=False)
    drawn = torch.Generator().manual_seed(3)
    x = (torch.rand(24, 4, 12, generator=drawn) < 0.3).float()

    def neuron(key: str) -> Any:
        node, dt = graph.nodes[key], 1e-4
        alpha, beta = (round(float(1 - dt / tau[0]), 4) for tau in (node.tau_syn, node.tau_mem))
        return snn.Synaptic(alpha, beta, reset_mechanism="zero", reset_delay=False)

    def weigh(key: str, given: Tensor) -> Tensor:
        weight, bias = (torch.from_numpy(getattr(graph.nodes[key], n)) for n in ("weight", "bias"))
        return given @ weight.T + bias

    def own() -> Own:
        first, second = neuron("lif1.lif"), neuron("lif2")
        states = [first.reset_mem(), second.reset_mem()]
        sent, last = dict[str, list[Tensor]](lif1=[], lif2=[]), torch.zeros(4, 38)
        for frame in x:
            last, *states[0] = first(weigh("fc1", frame) + weigh("lif1.w_rec", last), *states[0])
            out, *states[1] = second(weigh("fc2", last), *states[1])
            sent["lif1"].append(last)
            sent["lif2"].append(out)
        spikes = {key: torch.stack(found).detach() for key, found in sent.items()}
        return Own({"lif1.lif": spikes["lif1"], "lif2": spikes["lif2"]}, spikes["lif2"].mean(0))

    taken = partial(_taken, BRAILLE, len(x), {"reset": "zero"})
    return Made(x, own, taken, tuple(graph.nodes))


BRAILLE = "braille_noDelay_bias_zero.nir"


def _taken(name: str, steps: int, said: dict[str, Any]) -> Model:
    return import_nir(FOLDER / name, time_steps=steps, **said)


def rows() -> list[Row]:
    step = {"dt": 1e-4}
    cases = (
        ("01_lif, by norse", "LIF", partial(recorded, "lif_norse", "1", **step)),
        (
            "01_lif, by rockpool",
            "LIFNeuronTorch",
            partial(recorded, "lif_rockpool", "1_LIFNeuronTorch", **step),
        ),
        ("02_cnn, by sinabs, as SpikingJelly reads it", "IF", convolutional),
        ("03_rnn, by snnTorch", "RSynaptic", braille),
    )
    return [
        Row(network=network, neuron=neuron, way="import nir", make=make)
        for network, neuron, make in cases
    ]
