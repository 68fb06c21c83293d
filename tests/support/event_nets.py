"""A small network of events, whose sums are exact in any order, and events for it."""

from typing import Any

import numpy as np

from soul_deploy import ir
from soul_deploy.base import Array
from soul_deploy.base.events import EVENT
from soul_deploy.ir.pools import MaxPool
from soul_deploy.model.model import Model, for_kind

SIDE, STEPS, CLASSES = 10, 4, 3
LIF = ir.NeuronSpec("lif", tau=2.0)


def event_model(
    kind: str = "counts", spec: ir.NeuronSpec = LIF, *, side: int = SIDE, density: float = 1.0
) -> Model:
    """2×side×side → 8 maps, pooled by 2 → 8 maps → 16 neurons → 3 classes; weights of 1/64."""
    random, half = np.random.default_rng(5), side // 2
    nodes = (
        ir.Input("input", (), (2, side, side)),
        ir.Convolution("conv1", ("input",), True, None, 2, 8, (3, 3), (1, 1), (1, 1)),
        ir.Population("sn1", ("conv1",), spec),
        MaxPool("pool", ("sn1",), (2, 2), (2, 2), (0, 0)),
        ir.Convolution("conv2", ("pool",), False, None, 8, 8, (3, 3), (1, 1), (1, 1)),
        ir.Population("sn2", ("conv2",), spec),
        ir.Flatten("flat", ("sn2",)),
        ir.Linear("fc", ("flat",), True, None, 8 * half * half, 16),
        ir.Population("sn3", ("fc",), spec),
        ir.Readout("head", ("sn3",), CLASSES),
    )

    def weights(*shape: int, gain: float = 1.0) -> Array:
        drawn = np.round(random.normal(size=shape) * gain / density * 64) / 64
        drawn[drawn == 0] = 1 / 64
        found: Array = np.where(random.random(shape) < density, drawn, 0).astype(np.float32)
        return found

    state = {
        "conv1.weight": weights(8, 2, 3, 3),
        "conv1.bias": weights(8, gain=0.25),
        "conv2.weight": weights(8, 8, 3, 3, gain=0.5),
        "fc.weight": weights(16, 8 * half * half, gain=0.25),
        "fc.bias": weights(16, gain=0.25),
        "head.weight": weights(CLASSES, 16),
        "head.bias": weights(CLASSES),
    }
    return for_kind(Model(ir.SpikingGraph(nodes, STEPS), state), kind)


def frames(kind: str = "counts", count: int = 3, *, steps: int = STEPS, side: int = SIDE) -> Array:
    """(T, N, 2, side, side) float32."""
    drawn = np.random.default_rng(6).poisson(0.2, (steps, count, 2, side, side))
    return (drawn if kind == "counts" else np.minimum(drawn, 1)).astype(np.float32)


def events_of(*rows: tuple[int, int, int, int]) -> Array:
    """Events (t, x, y, p)."""
    found: Any = np.array(list(rows), EVENT)
    return np.asarray(found)


def drawn_events(count: int, last: int, side: int = SIDE) -> Array:
    """`count` events in order of time, before `last` µs, anywhere on the sensor."""
    random = np.random.default_rng(7)
    events = np.zeros(count, EVENT)
    events["t"] = np.sort(random.integers(0, last, count))
    events["x"], events["y"] = random.integers(0, side, (2, count))
    events["p"] = random.integers(0, 2, count)
    return events
