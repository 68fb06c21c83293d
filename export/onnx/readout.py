"""ONNX's spelling of the readout: class scores of the spikes of all steps."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from soul_deploy import ir
from soul_deploy.base import reduction

if TYPE_CHECKING:
    from soul_deploy.export.onnx.nodes import OnnxBuilder

Synapses = Callable[[], list[str]]


def append_readout(node: ir.Readout, b: "OnnxBuilder", synapses: Synapses, output: str) -> None:
    """Sum first, scale last; a maximum over time after that.

    synapses: puts the head's weight and bias into the graph, those that it has, and gives their
    names. output: (batch, classes).
    """
    largest = node.over_time == "max" and b.graph.time_steps > 1
    of_steps = f"{node.name}.of_steps" if largest else output
    counts = _by_step(b, node) if largest else _counts(b, node)
    if node.linear:
        _weigh(b, node, counts, synapses, of_steps)
    else:
        _vote(b, node, counts, (b.graph.time_steps, -1) if largest else (-1,), of_steps)
    if largest:
        _largest(b, of_steps, output)


def _by_step(b: "OnnxBuilder", node: ir.Readout) -> str:
    """Sums over space: (T·batch, C, H, W) to (T, batch, C)."""
    name, shape, source = node.name, b.graph.shapes[node.inputs[0]], b.source(node)
    if len(shape) == 3:
        source = _sum(b, source, f"{name}.space_sum", 2, 3)
    sides = (b.graph.time_steps, -1, shape[0])
    return b.reshape(source, f"{name}.steps_shape", f"{name}.steps", *sides)


def _counts(b: "OnnxBuilder", node: ir.Readout) -> str:
    """Sums over space and over time, or of the last step: (batch, C)."""
    steps, last = _by_step(b, node), b.graph.time_steps - 1
    if node.over_time == "last" and last:
        index = b.integers(f"{node.name}.last", last)
        steps = b.op("Gather", [steps, index], f"{node.name}.last_step", axis=0)
    return _sum(b, steps, f"{node.name}.counts", 0)


def _weigh(
    b: "OnnxBuilder", node: ir.Readout, counts: str, synapses: Synapses, output: str
) -> None:
    """The head's scores of counts (..., C). The scale has one entry per class: ONNX Runtime would
    fold a scalar into the matrix product (MatMulScaleFusion)."""
    name, factor = node.name, _factor(b, node, node.classes)
    weight, *bias = synapses()
    columns = b.op("Transpose", [weight], f"{name}.columns", perm=[1, 0])
    product = b.op("MatMul", [counts, columns], f"{name}.product")
    scaled = b.op("Mul", [product, factor], f"{name}.scores" if bias else output)
    times = reduction.biases(node.over_time, b.graph.time_steps)
    if bias and times > 1:
        repeated = b.constant(f"{name}.times", np.full(1, times, np.float32))
        bias = [b.op("Mul", [*bias, repeated], f"{name}.bias_of_steps")]
    if bias:
        b.op("Add", [scaled, *bias], output)


def _vote(
    b: "OnnxBuilder", node: ir.Readout, counts: str, lead: tuple[int, ...], output: str
) -> None:
    """The votes of counts (*lead, C). Behind a sum the scale is a scalar: OpenVINO 2026.4 scales
    sums by other classes' entries."""
    name = node.name
    factor = _factor(b, node, node.classes if b.functions else 1)
    sides = (f"{name}.votes_shape", f"{name}.grouped")
    votes = b.reshape(counts, *sides, *lead, node.classes, node.votes)
    b.op("Mul", [_sum(b, votes, f"{name}.votes", len(lead) + 1), factor], output)


def _factor(b: "OnnxBuilder", node: ir.Readout, entries: int) -> str:
    scale = 1.0 / node.divisor(b.graph.shapes[node.inputs[0]], b.graph.time_steps)
    return b.constant(f"{node.name}.scale", np.full(entries, scale, np.float32))


def _largest(b: "OnnxBuilder", source: str, output: str) -> None:
    """The maximum over the first axis. From opset 18 on the operator takes the axis as an input."""
    if b.opset >= 18:
        b.op("ReduceMax", [source, b.integers(f"{output}.axes", 0)], output, keepdims=0)
    else:
        b.op("ReduceMax", [source], output, keepdims=0, axes=[0])


def _sum(b: "OnnxBuilder", source: str, output: str, *axes: int) -> str:
    inputs = [source, b.integers(f"{output}.axes", *axes)]
    return b.op("ReduceSum", inputs, output, keepdims=0)
