"""NIR files that norse writes, and its own spikes: python record_norse.py FOLDER"""

import sys
from pathlib import Path
from typing import Any

import norse.torch as norse
import torch
from heard import heard
from norse.torch.utils.export_nir import to_nir
from recording import keep, settled
from torch import nn

T = 20
KINDS = (norse.LIFBoxCell, norse.LIFCell, norse.IAFCell, norse.LIBoxCell)
SMALL, IMAGE = (20,), (1, 12, 12)


def record(
    folder: Path, neuron: str, network: Any, shape: tuple[int, ...], strength: float, **said: Any
) -> None:
    """One step after another, states kept; the scores are the mean of what comes out."""
    settled(network, strength)
    x = torch.rand(T, 5, *shape)
    graph = to_nir(network, x[0])
    outs: list[Any] = []

    def run() -> None:
        state = None
        for frame in x:
            out, state = network(frame, state)
            outs.append(out)

    sent = heard(network, KINDS, run)
    name = "convolutional" if len(shape) == 3 else "fully connected"
    spiking = {k: v for k, v in sent.items() if not isinstance(network[int(k)], norse.LIBoxCell)}
    keep(
        folder,
        graph,
        x,
        spiking,
        torch.stack(outs).mean(0),
        network=f"{name}, to_nir",
        neuron=neuron,
        time_steps=T,
        **said,
    )


def boxed(**given: Any) -> Any:
    return norse.LIFBoxCell(p=norse.LIFBoxParameters(**given))


def subtracting() -> Any:
    from norse.torch.functional.reset import reset_subtract

    return boxed(reset_method=reset_subtract)


def fully(first: Any, last: Any) -> Any:
    return norse.SequentialState(nn.Linear(20, 30), first, nn.Linear(30, 10), last)


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    box = norse.LIFBoxCell
    record(folder, "LIFBoxCell", fully(box(), box()), SMALL, 12.0, dt=1e-6)
    network = fully(subtracting(), subtracting())
    how = {"dt": 1e-6, "reset": "subtract_at_once"}
    record(folder, "LIFBoxCell, reset_subtract", network, SMALL, 12.0, **how)
    record(folder, "IAFCell", fully(norse.IAFCell(), norse.IAFCell()), SMALL, 1.0, dt=1.0)
    record(folder, "LIFCell", fully(norse.LIFCell(), norse.LIFCell()), SMALL, 12.0, dt=1e-6)
    network = fully(box(), norse.LIBoxCell())
    record(folder, "LIFBoxCell, membrane of LIBoxCell", network, SMALL, 12.0, dt=1e-6)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
