"""Small networks with feedbacks, on a binary grid, and a naive run of them."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from soul_deploy import ir
from soul_deploy.base import Array
from soul_deploy.model.model import Model, arrays_of
from soul_deploy.nn.graph_module import GraphModule

GRID = 2.0**-4
LIF = ir.NeuronSpec("lif", decay_input=False)
T = 6
KINDS = ("linear", "convolution", "one_to_one", "one_to_one_map")


def feedback_of(kind: str, name: str, shape: ir.Shape, *, bias: bool = True) -> ir.Node:
    if kind == "linear":
        return ir.Linear(f"{name}.back", (name,), bias, None, shape[0], shape[0])
    if kind == "convolution":
        sides: Any = ((3, 3), (1, 1), (1, 1))
        return ir.Convolution(f"{name}.back", (name,), bias, None, shape[0], shape[0], *sides)
    return ir.OneToOne(f"{name}.back", (name,), 0.5)


def network(kind: str, *, seed: int = 0, neuron: ir.NeuronSpec = LIF, bias: bool = True) -> Model:
    """Input, layer, population with a feedback of this kind, layer, population with each neuron's
    own spike taken off, readout.
    """
    maps = kind in ("convolution", "one_to_one_map")
    shape: ir.Shape = (4, 5, 5) if maps else (10,)
    start: tuple[ir.Node, ...] = (
        ir.Input("input", (), (7,)),
        ir.Linear("first", ("input",), True, None, 7, 10),
    )
    between: tuple[ir.Node, ...] = ()
    if maps:
        sides: Any = ((3, 3), (1, 1), (1, 1))
        start = (
            ir.Input("input", (), (2, 5, 5)),
            ir.Convolution("first", ("input",), True, None, 2, 4, *sides),
        )
        between = (ir.Flatten("flat", ("p",)),)
    nodes = (
        *start,
        ir.Population("p", ("first",), neuron, feedback=feedback_of(kind, "p", shape, bias=bias)),
        *between,
        ir.Linear("second", ("flat" if maps else "p",), True, None, 100 if maps else 10, 8),
        ir.Population("q", ("second",), neuron, feedback=ir.OneToOne("q.back", ("q",), -0.25)),
        ir.Readout("head", ("q",), 3),
    )
    torch.manual_seed(seed)
    module = GraphModule(ir.SpikingGraph(nodes, T))
    with torch.no_grad():
        for parameter in module.parameters():
            wide = 0.3 if parameter.shape[-1:] == (100,) else 0.5
            parameter.copy_(torch.round(torch.randn_like(parameter) * wide / GRID) * GRID)
    return Model(module.graph, arrays_of(module.state_dict()))


def masked(model: Model, seed: int = 0) -> Model:
    """With neurons of both populations masked."""
    random = np.random.default_rng(seed)
    shapes = {name: model.graph.shapes[name] for name in ("p", "q")}
    return replace(model, neuron_masks={n: random.random(s) > 0.3 for n, s in shapes.items()})


def images(model: Model, count: int = 4, *, steps: int | None = None, seed: int = 1) -> Array:
    """float32 on the grid: (count, ...), or (steps, count, ...)."""
    random = np.random.default_rng(seed)
    lead = (count,) if steps is None else (steps, count)
    values = random.normal(size=(*lead, *model.graph.input.shape))
    return (np.round(values / GRID) * GRID).astype(np.float32)


@dataclass
class NaiveRun:
    """Spikes (T, ...) of `p` and `q` for one sample, and what its feedback's synapses count."""

    spikes: dict[str, Array]
    synops: dict[str, int]


def naive(model: Model, frames: Array) -> NaiveRun:
    """One sample, frames (T, ...): every synapse by itself, in float64, LIF, reset to 0."""
    state = {name: np.asarray(a, np.float64) for name, a in model.state.items()}
    graph = model.graph
    shapes = {name: graph.shapes[name] for name in ("p", "q")}
    v = {name: np.zeros(shape) for name, shape in shapes.items()}
    last = {name: np.zeros(shape) for name, shape in shapes.items()}
    found = NaiveRun(
        {name: np.zeros((T, *shape)) for name, shape in shapes.items()}, {"p": 0, "q": 0}
    )
    for t in range(T):
        values = frames[t].astype(np.float64)
        for name, layer in (("p", "first"), ("q", "second")):
            x = _weighed(state, layer, values)
            back, reached = _fed_back(state, graph.feedbacks[name], last[name])
            found.synops[name] += _onto_live(reached, model.neuron_masks.get(name))
            v[name] = v[name] / 2 + (x + back)
            spikes = v[name] > 1
            v[name][spikes] = 0
            live = model.neuron_masks.get(name, np.ones(shapes[name], bool))
            last[name] = (spikes & live).astype(np.float64)
            found.spikes[name][t] = last[name]
            values = last[name].reshape(-1) if name == "p" else values
    return found


def _weighed(state: Mapping[str, Array], name: str, values: Array) -> Array:
    weight, bias = state[f"{name}.weight"], state.get(f"{name}.bias", np.zeros(1))
    if weight.ndim == 2:
        return (
            np.array([sum(w * x for w, x in zip(row, values, strict=True)) for row in weight])
            + bias
        )
    return _convolved(weight, values)[0] + bias.reshape(-1, 1, 1)


def _convolved(weight: Array, values: Array) -> tuple[Array, Array]:
    """3×3 with padding 1: sums, and how many nonzero synapses bring a nonzero value."""
    (_, height, width), out = values.shape, len(weight)
    sums, count = np.zeros((out, height, width)), np.zeros((out, height, width), int)
    for o, y, x in np.ndindex(out, height, width):
        for c, i, j in np.ndindex(*weight.shape[1:]):
            row, column = y + i - 1, x + j - 1
            if 0 <= row < height and 0 <= column < width:
                sums[o, y, x] += weight[o, c, i, j] * values[c, row, column]
                count[o, y, x] += bool(weight[o, c, i, j] and values[c, row, column])
    return sums, count


def _fed_back(state: Mapping[str, Array], back: ir.Node, last: Array) -> tuple[Array, Array]:
    """What is fed back, and how many synapses bring it to each neuron."""
    if isinstance(back, ir.OneToOne):
        return back.factor * last, last.astype(int)
    weight, sums = state[f"{back.name}.weight"], _weighed(state, back.name, last)
    if weight.ndim == 2:
        return sums, ((weight != 0) & (last != 0)).sum(axis=1)
    return sums, _convolved(weight, last)[1]


def _onto_live(reached: Array, mask: Array | None) -> int:
    return int(reached.sum() if mask is None else reached[mask].sum())
