"""Small residual networks by hand, their weights and masks: what the residual tests are made of."""

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from soul_deploy import ir
from soul_deploy.model.model import Model, arrays_of
from soul_deploy.nn.graph_module import GraphModule

LIF = ir.NeuronSpec()
Keep = npt.NDArray[np.bool_]


def conv(name: str, source: str, inputs: int, channels: int, **more: Any) -> ir.Convolution:
    """3×3, size kept, no bias, no batch norm unless `more` says so."""
    fields: dict[str, Any] = {"bias": False, "norm": None, "padding": (1, 1), **more}
    bias, norm = fields.pop("bias"), fields.pop("norm")
    return ir.Convolution(name, (source,), bias, norm, inputs, channels, (3, 3), **fields)


def spike_block(
    name: str,
    source: str,
    width: int,
    function: ir.MergeFunction = "add",
    neuron: ir.NeuronSpec = LIF,
) -> list[ir.Node]:
    """SEW basic block without projection: conv1 (5 channels), sn1, conv2, sn2, merge."""
    return [
        conv(f"{name}.conv1", source, width, 5, bias=True),
        ir.Population(f"{name}.sn1", (f"{name}.conv1",), neuron),
        conv(f"{name}.conv2", f"{name}.sn1", 5, width, bias=True),
        ir.Population(f"{name}.sn2", (f"{name}.conv2",), neuron),
        ir.Merge(name, (source, f"{name}.sn2"), function),
    ]


def sew(
    *functions: ir.MergeFunction,
    neuron: ir.NeuronSpec = LIF,
    time_steps: int = 4,
    shape: ir.Shape = (2, 4, 4),
    classes: int = 3,
) -> ir.SpikingGraph:
    """Input 2×4×4, stem to 4 channels, one block per function, head of 3 classes."""
    nodes: list[ir.Node] = [ir.Input("input", (), shape), conv("stem", "input", shape[0], 4)]
    nodes.append(ir.Population("s0", ("stem",), neuron))
    last = "s0"
    for i, function in enumerate(functions):
        nodes += spike_block(f"b{i}", last, 4, function, neuron)
        last = f"b{i}"
    return ir.SpikingGraph((*nodes, ir.Readout("head", (last,), classes)), time_steps)


def ms(*, shape: ir.Shape = (2, 4, 4), classes: int = 3) -> ir.SpikingGraph:
    """Currents meet: stem, two blocks, the last neuron and the head."""
    nodes: list[ir.Node] = [
        ir.Input("input", (), shape),
        conv("stem", "input", shape[0], 4, bias=True),
    ]
    last = "stem"
    for i in range(2):
        nodes += [
            ir.Population(f"b{i}.sn1", (last,), LIF),
            conv(f"b{i}.conv1", f"b{i}.sn1", 4, 5),
            ir.Population(f"b{i}.sn2", (f"b{i}.conv1",), LIF),
            conv(f"b{i}.conv2", f"b{i}.sn2", 5, 4, bias=True),
            ir.Merge(f"b{i}", (f"b{i}.conv2", last), "add"),
        ]
        last = f"b{i}"
    nodes += [ir.Population("sn", (last,), LIF), ir.Readout("head", ("sn",), classes)]
    return ir.SpikingGraph(tuple(nodes), 4)


def model_of(graph: ir.SpikingGraph, seed: int = 0, grid: float | None = None) -> Model:
    """Random weights that make neurons fire; on a grid of multiples, if one is given."""
    rng = np.random.default_rng(seed)
    state = arrays_of(GraphModule(graph).state_dict())
    for name, array in state.items():
        if name.endswith("running_var"):
            drawn = rng.uniform(0.5, 2, array.shape)
        elif array.dtype.kind == "f" and not name.endswith(".w"):
            fan_in = int(np.prod(array.shape[1:])) if array.ndim > 1 else 4
            drawn = rng.normal(0.15, 1.5, array.shape) / fan_in**0.5
        else:
            continue
        state[name] = (drawn if grid is None else np.round(drawn / grid) * grid).astype(np.float32)
    return Model(graph, state)


def kept(*channels: int, of: int = 4) -> Keep:
    keep = np.zeros(of, bool)
    keep[list(channels)] = True
    return keep


def masked(model: Model, **channels: Keep) -> Model:
    masks = {name.replace("__", "."): keep for name, keep in channels.items()}
    return replace(model, channel_masks=masks)


def with_weights(model: Model, **changed: Any) -> Model:
    state = {name: array.copy() for name, array in model.state.items()}
    for name, change in changed.items():
        change(state[name.replace("__", ".")])
    return replace(model, state=state)


def double(model: Model) -> GraphModule:
    module = model.module().double()
    for mask in module.channel_masks.values():
        mask.keep = mask.keep.double()
    return module
