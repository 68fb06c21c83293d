"""Weights as the C program stores them: for each input a row of its targets, dense or compressed.

A convolution's row belongs to an input channel and a place in the kernel, whose columns are
mirrored, and holds the output channels of its group; all positions share it. A matrix's row
belongs to one input.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from soul_deploy import ir
from soul_deploy.base import Array, brief, dispatch
from soul_deploy.export.c.source import BYTES, FLOAT
from soul_deploy.lowering import linear_operators

Layout = Literal["size", "speed", "dense", "csr"]
LAYOUTS: tuple[Layout, ...] = get_args(Layout)
FASTER_BELOW = 0.7
"""Density below which a compressed row runs faster than a dense one: a compressed addition reads
its target's place besides the weight (docs/microcontroller.md has the instructions counted)."""


@brief
@dataclass(frozen=True)
class Rows:
    """Weights (rows, width), int8 or float32; `compressed` keeps those that are not 0, with their
    places.
    """

    weight: Array
    compressed: bool

    @property
    def type(self) -> str:
        return "int8_t" if self.weight.dtype == np.int8 else FLOAT

    @property
    def stored(self) -> int:
        """Weights that are not 0."""
        return int(np.count_nonzero(self.weight))

    @property
    def index_type(self) -> str:
        return "uint8_t" if self.weight.shape[1] <= 1 << 8 else "uint16_t"

    @property
    def start_type(self) -> str:
        return "uint16_t" if self.stored < 1 << 16 else "uint32_t"

    @property
    def bytes(self) -> int:
        """Of flash, everything included."""
        if not self.compressed:
            return self.weight.nbytes
        starts = (len(self.weight) + 1) * BYTES[self.start_type]
        return self.stored * (self.weight.itemsize + BYTES[self.index_type]) + starts

    @property
    def tables(self) -> Mapping[str, tuple[str, Array]]:
        """What the program reads: name -> (type, numbers)."""
        if not self.compressed:
            return {"weights": (self.type, self.weight.reshape(-1))}
        kept = self.weight != 0
        starts = np.concatenate([[0], np.cumsum(kept.sum(axis=1))])
        return {
            "weights": (self.type, self.weight[kept]),
            "places": (self.index_type, np.nonzero(kept)[1]),
            "starts": (self.start_type, starts),
        }


def rows_of(weight: Array, layout: Layout) -> Rows:
    """The rows of weights (rows, width) as `layout` asks for them."""
    dense, compressed = Rows(weight, False), Rows(weight, True)
    possible = weight.shape[1] <= 1 << 16
    density = compressed.stored / max(weight.size, 1)
    chosen = {
        "size": compressed.bytes < dense.bytes,
        "speed": density < FASTER_BELOW,
        "dense": False,
        "csr": True,
    }[layout]
    return compressed if chosen and possible else dense


def channel_last(shape: ir.Shape) -> Array:
    """Of each element in the order of the program, position by position, its place in (C, H, W)."""
    places = np.arange(math.prod(shape)).reshape(shape)
    return np.moveaxis(places, 0, -1).reshape(-1)


@dispatch.operation_table(linear_operators.LinearOperator)
def weight_rows(operator: linear_operators.LinearOperator) -> Array:
    """(rows, targets of a row), int8 or float32."""
    raise weight_rows.unknown(operator)


@weight_rows.on(linear_operators.ConvOperator)
def _convolution(operator: linear_operators.ConvOperator) -> Array:
    """Row (c · kh + ky) · kw + (kw - 1 - kx), of the output channels of c's group: as kx falls, the
    targets of an input move on.
    """
    out, inner, height, width = operator.weight.shape
    by_group = operator.weight[..., ::-1].reshape(operator.groups, out // operator.groups, -1)
    rows = by_group.transpose(0, 2, 1)
    return np.ascontiguousarray(rows.reshape(operator.groups * inner * height * width, -1))


@weight_rows.on(linear_operators.MatrixOperator)
def _matrix(operator: linear_operators.MatrixOperator) -> Array:
    targets, inputs = channel_last(operator.out_shape), channel_last(operator.in_shape)
    return np.ascontiguousarray(operator.weight[targets][:, inputs].T)


@weight_rows.on(linear_operators.ReadoutOperator)
def _readout(operator: linear_operators.ReadoutOperator) -> Array:
    weight = operator.weight
    assert weight is not None
    if not operator.space:
        weight = weight[:, channel_last(operator.in_shape)]
    return np.ascontiguousarray(weight.T)
