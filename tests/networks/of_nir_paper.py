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
    """Recurrent; no tool of these environments reads the paper's form of it."""
    graph: Any = import_module("nir").read(FOLDER / BRAILLE, type_check=False)
    taken = partial(_taken, BRAILLE, 8, {})
    return Made(torch.zeros(8, 1, 12), None, taken, tuple(graph.nodes))


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
