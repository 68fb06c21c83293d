"""Sum poolings of fixed-point networks, composed into the projection or readout behind them."""

from functools import partial

import numpy as np

from soul_deploy import ir
from soul_deploy.base import dispatch
from soul_deploy.lowering import pool_windows
from soul_deploy.lowering.linear_operators import (
    ConvOperator,
    MatrixOperator,
    Operator,
    compose_behind,
    convolution_behind_tiles,
    matrix_behind_pool,
)


@compose_behind.on(ir.SumPool)
def _sum_pool(
    node: ir.SumPool, operator: Operator, in_shape: ir.Shape, name: str, *_: object
) -> Operator:
    return _summed(operator, node, in_shape, name)


@dispatch.operation_table(Operator)
def _summed(operator: Operator, node: ir.SumPool, in_shape: ir.Shape, name: str) -> Operator:
    raise _summed.unknown(operator)


@_summed.on(ConvOperator)
def _summed_convolution(
    operator: ConvOperator, node: ir.SumPool, in_shape: ir.Shape, name: str
) -> Operator:
    weight = partial(pool_windows.repeat, operator.weight)
    return convolution_behind_tiles(operator, node.kernel, in_shape, name, weight)


@_summed.on(MatrixOperator)
def _summed_matrix(
    operator: MatrixOperator, node: ir.SumPool, in_shape: ir.Shape, name: str
) -> Operator:
    sides = zip(in_shape[1:], node.kernel, strict=True)
    rows = [pool_windows.window_rows(side, window, window, 0) > 0 for side, window in sides]
    return matrix_behind_pool(operator, np.kron(*rows).astype(np.float64), in_shape, name)
