"""NIR files that rockpool writes, and its own spikes: python record_rockpool.py FOLDER"""

import sys
from pathlib import Path
from typing import Any

import torch
from recording import keep
from rockpool.nn.combinators import Sequential
from rockpool.nn.modules import LIFNeuronTorch, LIFTorch, LinearTorch
from rockpool.nn.modules.torch.nir import to_nir

T, DT = 20, 1e-3


def record(folder: Path, neuron: str, network: Any, gain: float, **said: Any) -> None:
    torch.manual_seed(1)
    x = (torch.rand(T, 4, 20) < 0.4).float() * gain
    graph = to_nir(network)
    network.reset_state()
    with torch.no_grad():
        out, _, told = network(x.transpose(0, 1), record=True)
    spiking = {n: k["spikes"] for n, k in told.items() if isinstance(k, dict) and "spikes" in k}
    sent = {name: values.detach().transpose(0, 1) for name, values in spiking.items()}
    keep(
        folder,
        graph,
        x,
        sent,
        out.transpose(0, 1).mean(0),
        network="fully connected, to_nir",
        neuron=neuron,
        time_steps=T,
        dt=DT,
        fire="ge",
        reset="subtract_at_once",
        **said,
    )


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    for kind in (LIFTorch, LIFNeuronTorch):
        network = Sequential(
            *(LinearTorch((20, 30)), kind(30, dt=DT), LinearTorch((30, 10)), kind(10, dt=DT))
        )
        record(folder, kind.__name__, network, 1.0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
