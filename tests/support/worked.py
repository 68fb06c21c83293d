"""The worked example of docs/counting.md as a network: a convolution 2×4×4 to 2×4×4, T = 2.

The input is a spike, graded or pooled edge as asked; its five events are given, not simulated.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from soul_deploy import ir
from soul_deploy.analysis.other_tools import CompatCounts, compat_layer
from soul_deploy.analysis.synops import layer_steps
from soul_deploy.base import Array
from soul_deploy.lowering.deploy import lower
from soul_deploy.lowering.fan_out import CountedLayer
from soul_deploy.model.model import Model
from soul_deploy.nn.graph_module import Signal
from soul_deploy.runtime.ops.counters import LayerCounts

PATTERN = [
    [["x.x", ".x.", "x.x"], ["xxx", "xxx", "xxx"]],
    [["...", "xxx", "..."], ["...", "...", "..."]],
]
WEIGHT = np.array([[[[c == "x" for c in r] for r in k] for k in o] for o in PATTERN], np.float32)
EVENTS = [(0, 0, 0, 0), (0, 0, 1, 1), (0, 1, 0, 2), (1, 0, 3, 3), (1, 1, 2, 2)]
DEAD = [(0, 0, 0), (0, 2, 2), (1, 3, 3)]


def worked_model(
    between: Sequence[ir.Node] = (),
    *,
    weight: Array = WEIGHT,
    stride: int = 1,
    padding: int = 1,
    groups: int = 1,
    masked: bool = True,
    side: int = 4,
) -> Model:
    """Spikes "s", the nodes between, the convolution "p", the population "q" with its dead."""
    last = between[-1].name if between else "s"
    sides = ((3, 3), (stride, stride), (padding, padding), (1, 1), groups)
    nodes = (
        ir.Input("input", (), (2, side, side)),
        ir.Population("s", ("input",), ir.NeuronSpec("if")),
        *between,
        ir.Convolution("p", (last,), True, None, 2, 2, *sides),
        ir.Population("q", ("p",), ir.NeuronSpec("lif")),
        ir.Readout("head", ("q",), 2),
    )
    graph = ir.SpikingGraph(nodes, time_steps=2)
    state = {
        "p.weight": weight,
        "p.bias": np.ones(2, np.float32),
        "head.weight": np.ones((2, 2), np.float32),
        "head.bias": np.zeros(2, np.float32),
    }
    mask = np.ones(graph.shapes["q"], bool)
    for place in DEAD:
        if all(i < n for i, n in zip(place, mask.shape, strict=True)):
            mask[place] = False
    return Model(graph, state, neuron_masks={"q": mask} if masked else {})


def pooled() -> Model:
    """A 2×2 average pooling before the convolution."""
    return worked_model([ir.AvgPool("pool", ("s",), (2, 2), (2, 2))], side=8)


def added(masked: bool = True) -> Model:
    """A sum of two spike branches before the convolution."""
    return worked_model([ir.Merge("sum", ("s", "s"), "add")], masked=masked)


def events(values: Sequence[float] = (1, 1, 1, 1, 1)) -> Tensor:
    """(T, 1, 2, 4, 4) with the five events of these values."""
    x = torch.zeros(2, 1, 2, 4, 4)
    for (t, c, y, column), value in zip(EVENTS, values, strict=True):
        x[t, 0, c, y, column] = value
    return x


def before_pooling(counts: Sequence[int] = (1, 2, 3, 4, 1)) -> Tensor:
    """(T, 1, 2, 8, 8): spikes whose 2×2 means are a quarter of `counts` at the five places."""
    x = torch.zeros(2, 1, 2, 8, 8)
    for (t, c, y, column), count in zip(EVENTS, counts, strict=True):
        for k in range(count):
            x[t, 0, c, 2 * y + k // 2, 2 * column + k % 2] = 1
    return x


def layer_of(model: Model) -> CountedLayer:
    """The convolution as it is counted."""
    return lower(replace(model, channel_masks={})).layers[0]


def counts_of(model: Model, source: Tensor) -> LayerCounts:
    """Its counts for what its source held, three output spikes assumed."""
    out = torch.zeros(2, 1, *model.graph.shapes["q"])
    out.view(-1)[[0, 1, -1]] = 1
    return layer_steps(layer_of(model), source, out).total()


def compat_of(model: Model, source: Tensor) -> CompatCounts:
    """Its counts by other tools' rules."""
    return compat_layer(model, "p", Signal(source, False))


def without_bias(model: Model) -> Model:
    """The same network; the convolution has no bias."""
    node = model.graph["p"]
    assert isinstance(node, ir.Convolution)
    graph = model.graph.with_nodes({"p": replace(node, bias=False)})
    return replace(
        model, graph=graph, state={k: v for k, v in model.state.items() if k != "p.bias"}
    )
