"""NIR files that snnTorch writes, and its own spikes: python record_snntorch.py FOLDER"""

import sys
from pathlib import Path
from typing import Any

import snntorch as snn
import torch
from heard import heard
from recording import keep, settled
from snntorch import utils
from snntorch.export_nir import export_to_nir
from torch import nn

T = 8
KINDS = snn._neurons.neurons.SpikingNeuron


def record(folder: Path, neuron: str, network: nn.Sequential, *shape: int, **said: Any) -> None:
    """A network whose states are hidden; the scores are the mean of the last neuron's spikes."""
    settled(network, 1.5)
    x = torch.rand(6, *shape)
    graph = export_to_nir(network, x[:1], ignore_dims=[0])

    def run() -> None:
        utils.reset(network)
        for _ in range(T):
            network(x)

    sent = heard(network, KINDS, run)
    scores = list(sent.values())[-1].mean(0)
    name = "convolutional" if len(shape) == 3 else "fully connected"
    keep(
        folder,
        graph,
        x,
        sent,
        scores,
        network=f"{name}, export_to_nir",
        neuron=neuron,
        time_steps=T,
        **said,
    )


def neuron(kind: str, n: Any, last: bool = False, **given: Any) -> Any:
    """With numbers of the layer's shape: scalars are refused by the exporter's own type check."""
    shape = n if isinstance(n, tuple) else (n,)
    full = {k: torch.full(shape, v) for k, v in given.items() if k in ("alpha", "beta")}
    more = {"init_hidden": True, "output": last, "threshold": torch.ones(shape)}
    return getattr(snn, kind)(**{**given, **full, **more})


def fully(kind: str, **given: Any) -> nn.Sequential:
    more: list[dict[str, Any]] = [
        {"linear_features": n} if kind.startswith("R") else {} for n in (30, 10)
    ]
    return nn.Sequential(
        *(nn.Linear(20, 30), neuron(kind, 30, **given, **more[0])),
        *(nn.Linear(30, 10), neuron(kind, 10, last=True, **given, **more[1])),
    )


def convolutional() -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(1, 6, 5), neuron("Leaky", (6, 24, 24), beta=0.9), nn.AvgPool2d(2)),
        *(nn.Conv2d(6, 8, 5), neuron("Leaky", (8, 8, 8), beta=0.8), nn.Flatten()),
        *(nn.Linear(512, 10), neuron("Leaky", 10, last=True, beta=0.8)),
    )


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    for beta in (0.9, 0.3):
        network = fully("Leaky", beta=beta)
        record(folder, f"Leaky, beta {beta}", network, 20, reset="subtract")
    network = fully("Leaky", beta=0.9, reset_mechanism="zero")
    record(folder, "Leaky, reset to zero", network, 20, reset="zero")
    network = fully("Leaky", beta=0.9)
    network[1].beta = torch.linspace(0.5, 0.95, 30)
    record(folder, "Leaky, a beta for each neuron", network, 20, reset="subtract")
    record(folder, "Leaky", convolutional(), 1, 28, 28, reset="subtract")
    both: dict[str, Any] = {"alpha": 0.8, "beta": 0.9}
    record(folder, "Synaptic", fully("Synaptic", **both), 20, reset="subtract")
    record(folder, "RLeaky, all to all", fully("RLeaky", beta=0.9), 20, reset="subtract")
    record(folder, "RSynaptic, all to all", fully("RSynaptic", **both), 20, reset="subtract")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
