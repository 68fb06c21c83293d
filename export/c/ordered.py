"""What the float32 program computes, in numpy and in its order of sums, so that both are equal.

A sum starts at the bias and adds products one after the other: inputs in ascending order, position
by position, the channels of a position side by side. Every product and every sum is rounded to
float32 by itself. An input that is 0 adds nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from soul_deploy import ir
from soul_deploy.base import Array, brief, dispatch, errors
from soul_deploy.export.c.program import Program
from soul_deploy.export.c.rows import channel_last
from soul_deploy.lowering import linear_operators
from soul_deploy.nn import layers, operations


@brief
@dataclass(frozen=True)
class Run:
    """By node, values (T, N, ...), or (1, N, ...) where a still image alone decides; by population,
    membranes (N, ...) after the last step; scores float32 (N, classes).
    """

    values: Mapping[str, Array]
    membranes: Mapping[str, Array]
    scores: Array


def run(program: Program, given: Array, *, still: bool) -> Run:
    """given: (N, ...) shown at every step, or (T, N, ...)."""
    values = {program.input.name: (given[None] if still else given).astype(np.float32)}
    membranes: dict[str, Array] = {}
    for node in program.nodes[:-1]:
        inputs = [values[name] for name in program.sources(node)]
        if isinstance(node, ir.Population):
            values[node.name], membranes[node.name] = _fire(node, program, inputs[0])
        else:
            values[node.name] = value_of(node, program, inputs)
    (source,) = program.sources(program.graph.readout)
    return Run(values, membranes, _scores(program, values[source]))


@dispatch.operation_table(ir.Node)
def value_of(node: ir.Node, program: Program, inputs: list[Array]) -> Array:
    """(T or 1, N, ...) of inputs of that kind."""
    raise ir.no_entry(node, "C of float32")


value_of.refuse(
    *(ir.Input, ir.Population, ir.AvgPool, ir.AdaptiveAvgPool, ir.Flatten, ir.Readout),
    *(ir.Scale, ir.ChannelNorm),
    error=lambda node: errors.UnsupportedGraphError(
        f"{node.name}: {node.op} is no value of its own"
    ),
)


@value_of.on(ir.Projection)
def _projection(node: ir.Projection, program: Program, inputs: list[Array]) -> Array:
    operator = program.operator(node)
    assert isinstance(operator, linear_operators.Operator)
    (x,) = inputs
    sums = ordered_sums(operator, x.reshape(-1, *operator.in_shape))
    return sums.reshape(*x.shape[:2], *operator.out_shape)


@value_of.on(ir.MaxPool, ir.Scatter)
def _unweighed(node: ir.Node, program: Program, inputs: list[Array]) -> Array:
    (x,) = inputs
    found = operations.unweighed(node, torch.from_numpy(x.reshape(-1, *x.shape[2:]))).numpy()
    return found.reshape(*x.shape[:2], *found.shape[1:])


@value_of.on(ir.Merge)
def _merge(node: ir.Merge, program: Program, inputs: list[Array]) -> Array:
    return layers.merged(node.function, [torch.from_numpy(x) for x in inputs]).numpy()


def _fire(node: ir.Population, program: Program, current: Array) -> tuple[Array, Array]:
    """Spikes (T, N, ...), and membranes (N, ...) after the last step."""
    equation, steps = program.equation(node), program.graph.time_steps
    state = (np.full(current.shape[1:], equation.start[0], np.float32),)
    spikes = np.zeros((steps, current.shape[1], *program.graph.shapes[node.name]), np.float32)
    driven = current.shape[2]
    for t in range(steps):
        spike, state = equation.advance(state, current[t if len(current) > 1 else 0])
        spikes[t, :, :driven] = spike
    if node.generated:
        pattern = program.lowered.patterns[node.name]
        spikes[:, :, driven:] = pattern.reshape(steps, 1, -1, *[1] * (spikes.ndim - 3))
    mask = program.model.neuron_masks.get(node.name)
    return spikes if mask is None else spikes * mask, state[0]


@dispatch.operation_table(linear_operators.Operator)
def ordered_sums(operator: linear_operators.Operator, x: Array) -> Array:
    """float32 (F, ...) of inputs (F, ...)."""
    raise ordered_sums.unknown(operator)


@ordered_sums.on(linear_operators.ConvOperator)
def _convolution(op: linear_operators.ConvOperator, x: Array) -> Array:
    """A target's inputs in order: by the kernel's row, its column, then channels."""
    share, inner, kh, kw = len(op.weight) // op.groups, *op.weight.shape[1:]
    padded = _padded(op, x).reshape(
        len(x), op.groups, inner, -1, op.in_shape[2] + 2 * op.padding[1]
    )
    weight = op.weight.reshape(op.groups, share, inner, kh, kw, 1, 1)
    sums = _start(op.bias, (len(x), *op.out_shape))
    by_group = sums.reshape(len(x), op.groups, share, *op.out_shape[1:])
    for ky, kx, i in np.ndindex(kh, kw, inner):
        rows, columns = (
            slice(k * d, k * d + s * (side - 1) + 1, s)
            for k, d, s, side in zip(
                (ky, kx), op.dilation, op.stride, op.out_shape[1:], strict=True
            )
        )
        by_group += padded[:, :, i, None, rows, columns] * weight[:, :, i, ky, kx]
    return sums


def _padded(op: linear_operators.ConvOperator, x: Array) -> Array:
    """With zeros around, and where an incomplete last window of a pooling in front was left out."""
    seen = np.zeros_like(x)
    inside = (..., slice(op.reach[0]), slice(op.reach[1]))
    seen[inside] = x[inside]
    return np.pad(seen, ((0, 0), (0, 0), *((pad, pad) for pad in op.padding)))


@ordered_sums.on(linear_operators.MatrixOperator)
def _matrix(op: linear_operators.MatrixOperator, x: Array) -> Array:
    bias = op.bias
    if bias is not None:
        bias = np.repeat(bias, op.weight.shape[0] // len(bias))
    sums = _start(bias, (len(x), op.weight.shape[0]))
    _add_in_order(sums, x.reshape(len(x), -1), op.weight, channel_last(op.in_shape))
    return sums.reshape(len(x), *op.out_shape)


def _add_in_order(sums: Array, x: Array, weight: Array, order: Array) -> None:
    """Add to sums (F, targets) the products of inputs (F, n), one input after the other."""
    used: Array = np.any(x, axis=0)
    for n in order[used[order]]:
        sums += x[:, n, None] * weight[:, n]


def _start(bias: Array | None, shape: tuple[int, ...]) -> Array:
    sums = np.zeros(shape, np.float32)
    if bias is not None:
        sums += bias.reshape(-1, *[1] * (len(shape) - 2))
    return sums


def _scores(program: Program, values: Array) -> Array:
    """float32 (N, classes) of what the readout reads, (T, N, ...)."""
    op, over_time = program.lowered.readout, program.graph.readout.over_time
    shape = (values.shape[1], program.graph.readout.classes)
    sums, scores = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    for t, x in enumerate(values):
        if over_time in ("last", "max"):
            sums = np.zeros(shape, np.float32)
        _weigh(op, x, sums)
        found = sums * np.float32(op.scale)
        if op.bias is not None:
            times = np.float32(t + 1 if over_time == "sum" else 1)
            found = found + times * op.bias
        scores = np.maximum(scores, found) if over_time == "max" and t else found
    return scores


def _weigh(op: linear_operators.ReadoutOperator, x: Array, sums: Array) -> None:
    """Add one step's spikes (N, ...) to sums (N, classes)."""
    flat = x.reshape(len(x), -1)
    order = channel_last(op.in_shape)
    if op.weight is None:
        by_channel = x.reshape(len(x), x.shape[1], -1).sum(axis=2) if op.space else flat
        sums += by_channel.reshape(len(x), -1, op.votes).sum(axis=2)
    elif op.space:
        positions = flat.shape[1] // op.weight.shape[1]
        _add_in_order(sums, flat, np.repeat(op.weight, positions, axis=1), order)
    else:
        _add_in_order(sums, flat, op.weight, order)
