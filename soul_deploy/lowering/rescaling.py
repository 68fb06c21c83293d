"""Multiplications by constants, composed into the projection or readout behind them."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np

from soul_deploy import ir
from soul_deploy.base import Array, dispatch
from soul_deploy.lowering.fold_batch_norm import ChannelConstants, norm_constants
from soul_deploy.lowering.linear_operators import (
    ConvOperator,
    MatrixOperator,
    Operator,
    compose_behind,
)


@dataclass(frozen=True)
class ShiftedScale(ir.Scale):
    """A batch norm of its own whose bias no padding sees: composable, as a multiplication is.

    No operation of a file: composed forms have it in place of `ChannelNorm`.
    """


def channel_constants(
    graph: ir.SpikingGraph,
    state: Mapping[str, Array],
    channel_masks: Mapping[str, Array] = MappingProxyType({}),
) -> dict[str, ChannelConstants]:
    """The constants of every operation that rescales its channels, by node name.

    `channel_masks`: as `fold_batch_norm.fold` takes them; batch norm makes 0 of a masked channel.

    Those that `state` does not hold are 1: whoever counts synapses needs no numbers.
    """
    found = {}
    for node in graph.of_type(ir.Scale):
        channels = graph.shapes[node.name][0]
        scale: Array = np.full(channels, 1.0 if node.factor is None else node.factor)
        for name in node.row_tensors:
            scale = state[name].astype(np.float64) if name in state else scale
        found[node.name] = ChannelConstants(scale)
    for norm in graph.of_type(ir.ChannelNorm):
        ones: Array = np.ones(graph.shapes[norm.name][0])
        if f"{norm.name}.weight" in state:
            scale, mean, beta = norm_constants(norm.norm, state)
            found[norm.name] = ChannelConstants(scale, beta - mean * scale)
        else:
            found[norm.name] = ChannelConstants(ones, ones)
    keep = {graph.masked_projection(name): mask for name, mask in channel_masks.items()}
    for name, projection in graph.masked_norms.items():
        if projection in keep:
            constants, on = found[name], keep[projection]
            assert constants.shift is not None
            found[name] = ChannelConstants(constants.scale * on, constants.shift * on)
    return found


@compose_behind.on(ir.Scale)
def _scaled(
    node: ir.Scale, operator: Operator, in_shape: ir.Shape, name: str,
    constants: ChannelConstants | None = None,
) -> Operator:  # fmt: skip
    assert constants is not None, node.name
    if constants.shift is not None:
        operator = input_shifted(operator, constants.shift)
    return columns_scaled(operator, constants.scale)


@dispatch.operation_table(Operator)
def input_shifted(operator: Operator, shift: Array) -> Operator:
    """The operator with the bias that its input's constant `shift`, float64 (C,), becomes."""
    raise input_shifted.unknown(operator)


@input_shifted.on(ConvOperator)
def _convolution_shifted(operator: ConvOperator, shift: Array) -> Operator:
    """Without padding each position sees every tap."""
    assert operator.padding == (0, 0)
    taps = operator.weight.sum(axis=(2, 3), dtype=np.float64).reshape(
        operator.groups, -1, operator.weight.shape[1]
    )
    added = (taps @ shift.reshape(operator.groups, -1, 1)).reshape(-1)
    return _biased(operator, added)


@input_shifted.on(MatrixOperator)
def _matrix_shifted(operator: MatrixOperator, shift: Array) -> Operator:
    """Positions of a channel see the same sum of weights, but for rounding."""
    size = operator.weight.shape[1] // len(shift)
    added = operator.weight.astype(np.float64) @ np.repeat(shift, size)
    return _biased(operator, added.reshape(operator.out_shape[0], -1).mean(axis=1))


def _biased(operator: Operator, added: Array) -> Operator:
    before = 0.0 if operator.bias is None else operator.bias.astype(np.float64)
    bias = (before + added).astype(np.float32)
    return replace(operator, bias=bias)  # type: ignore[type-var]


@dispatch.operation_table(Operator)
def columns_scaled(operator: Operator, scale: Array) -> Operator:
    """The operator on an input whose channels are multiplied by `scale`, float64 (C,)."""
    raise columns_scaled.unknown(operator)


@columns_scaled.on(ConvOperator)
def _convolution_scaled(operator: ConvOperator, scale: Array) -> Operator:
    """A group's channel k is channel k of the weight; its rows belong to the same group."""
    out, inner, *_ = operator.weight.shape
    by_row = np.repeat(scale.reshape(operator.groups, inner), out // operator.groups, axis=0)
    weight = operator.weight * by_row[:, :, None, None]
    return replace(operator, weight=weight.astype(np.float32))


@columns_scaled.on(MatrixOperator)
def _matrix_scaled(operator: MatrixOperator, scale: Array) -> Operator:
    by_column = np.repeat(scale, operator.weight.shape[1] // len(scale))
    return replace(operator, weight=(operator.weight * by_column).astype(np.float32))
