"""NIR files that sinabs writes, and its own spikes: python record_sinabs.py FOLDER"""

import math
import sys
from pathlib import Path
from typing import Any

import sinabs.layers as sl
import torch
from heard import heard
from recording import keep, settled
from sinabs.activation import SingleSpike
from sinabs.nir import to_nir
from torch import nn

T, BATCH = 20, 4
KINDS = (sl.IAF, sl.IAFSqueeze, sl.LIF, sl.LIFSqueeze)
ONCE = {"spike_fn": SingleSpike, "min_v_mem": None}


def record(
    folder: Path, neuron: str, network: Any, shape: tuple[int, ...], gain: float, **said: Any
) -> None:
    """sinabs takes (B·T, ...); the scores are the mean of what comes out."""
    settled(network, said.pop("strength", 1.5))
    x = (torch.rand(T, BATCH, *shape) < 0.4).float() * gain
    given = x.transpose(0, 1).flatten(0, 1)
    for module in network.modules():
        if hasattr(module, "reset_states"):
            module.reset_states()
    outs: list[Any] = []
    sent = heard(network, KINDS, lambda: outs.append(network(given)))
    graph = to_nir(network, given)
    if len(shape) == 3:
        graph.infer_types()  # it leaves the shapes of maps open, and a file can't

    def by_step(values: torch.Tensor) -> torch.Tensor:
        return values.reshape(BATCH, T, *values.shape[1:]).transpose(0, 1)

    sent = {n: by_step(v) for n, v in sent.items() if not isinstance(network[int(n)], sl.ExpLeak)}
    kind = "convolutional, SumPool2d" if len(shape) == 3 else "fully connected"
    keep(
        folder,
        graph,
        x,
        sent,
        by_step(outs[0]).mean(0),
        network=f"{kind}, to_nir",
        neuron=neuron,
        time_steps=T,
        fire="ge",
        **said,
    )


def main(folder: Path) -> None:
    torch.set_num_threads(1)

    def iaf(**more: Any) -> Any:
        return sl.IAFSqueeze(batch_size=BATCH, **{**ONCE, **more})

    def lif(**more: Any) -> Any:
        return sl.LIFSqueeze(tau_mem=10.0, batch_size=BATCH, **{**ONCE, **more})

    subtract = {"dt": 1.0, "reset": "subtract"}
    record(
        folder,
        "IAF, SingleSpike",
        nn.Sequential(
            *(nn.Conv2d(1, 4, 3), iaf(), sl.SumPool2d(2), nn.Flatten()), *(nn.Linear(100, 8), iaf())
        ),
        (1, 12, 12),
        0.5,
        **subtract,
    )
    network = nn.Sequential(nn.Linear(20, 30), iaf(), nn.Linear(30, 10), iaf())
    record(folder, "IAF, SingleSpike", network, (20,), 0.5, **subtract)
    network = nn.Sequential(
        nn.Linear(20, 30),
        iaf(spike_fn=sl.IAFSqueeze(batch_size=1).spike_fn),
        nn.Linear(30, 10),
        iaf(spike_fn=sl.IAFSqueeze(batch_size=1).spike_fn),
    )
    differs = "neurons send several spikes a step, of which the file says nothing"
    record(folder, "IAF, MultiSpike", network, (20,), 2.0, **subtract, differs=differs)
    dt = 10 * (1 - math.exp(-1 / 10))
    network = nn.Sequential(nn.Linear(20, 30), lif(), nn.Linear(30, 10), lif())
    how = {"dt": dt, "reset": "subtract_at_once", "strength": 6.0}
    record(folder, "LIF, SingleSpike", network, (20,), 1.0, **how)
    network = nn.Sequential(
        nn.Linear(20, 30),
        lif(),
        nn.Linear(30, 10),
        sl.ExpLeakSqueeze(tau_mem=10.0, norm_input=True, batch_size=BATCH),
    )
    record(folder, "LIF, membrane of ExpLeak", network, (20,), 1.0, **how)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
