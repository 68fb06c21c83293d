"""Multiplications by constants, composed into the projection or readout behind them."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from soul_deploy import ir
from soul_deploy.base import Array, dispatch
from soul_deploy.lowering.fold_batch_norm import ChannelConstants
from soul_deploy.lowering.linear_operators import (
    ConvOperator,
    MatrixOperator,
    Operator,
    compose_behind,
)


def channel_constants(
    graph: ir.SpikingGraph, state: Mapping[str, Array]
) -> dict[str, ChannelConstants]:
    """The constants of every operation that rescales its channels, by node name.

    Those that `state` does not hold are 1: whoever counts synapses needs no numbers.
    """
    found = {}
    for node in graph.of_type(ir.Scale):
        channels = graph.shapes[node.name][0]
        scale: Array = np.full(channels, 1.0 if node.factor is None else node.factor)
        for name in node.row_tensors:
            scale = state[name].astype(np.float64) if name in state else scale
        found[node.name] = ChannelConstants(scale)
    return found


@compose_behind.on(ir.Scale)
def _scaled(
    node: ir.Scale, operator: Operator, in_shape: ir.Shape, name: str,
    constants: ChannelConstants | None = None,
) -> Operator:  # fmt: skip
    assert constants is not None, node.name
    return columns_scaled(operator, constants.scale)


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
