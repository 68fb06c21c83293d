"""Synapses as data: rows by presynaptic neuron or channel, and how they reach their targets.

An object that exists is valid (see network.py). Maps are channel-last: neuron (c, y, x) of a
(C, H, W) population has index (y·W + x)·C + c. Rows are presynaptic: one row holds the synapses
*from* one neuron, or from one channel at one kernel position, since an event is processed by adding
its rows to its targets.

A `Convolution` is the implicit form: its rows are shared by all positions. A `Matrix` of compressed
rows is the explicit form: one row per presynaptic neuron, only synapses between live neurons.
"""

import math
from dataclasses import dataclass

import numpy as np

from soul_deploy.base.brief import brief
from soul_deploy.base.errors import LimitError
from soul_deploy.base.files import Array
from soul_deploy.runtime.format.validate import (
    MAX_SYNAPSES,
    require,
    require_array,
    require_pair,
    require_shape,
    require_sparse_rows,
)

Shape = tuple[int, ...]
Pair = tuple[int, int]


@brief
@dataclass(frozen=True)
class DenseRows:
    """One contiguous row of weights per presynaptic unit.

    weight  float32: (n_in, n_out), or for a convolution (C_in, kh, kw, C_out / groups)
    """

    weight: Array

    @property
    def synapses(self) -> int:
        """Nonzero weights stored."""
        return int(np.count_nonzero(self.weight))


@brief
@dataclass(frozen=True)
class SparseRows:
    """Compressed rows: row r holds synapses starts[r] .. starts[r + 1].

    starts   uint32 (rows + 1,)
    targets  uint32 (synapses,): target neuron, or for a convolution target channel
    weight   float32 (synapses,), no zeros
    """

    starts: Array
    targets: Array
    weight: Array

    @property
    def synapses(self) -> int:
        """Nonzero weights stored."""
        return len(self.targets)

    @property
    def arrays(self) -> tuple[Array, Array, Array]:
        """(starts, targets, weight)."""
        return self.starts, self.targets, self.weight


Rows = DenseRows | SparseRows


@brief
@dataclass(frozen=True)
class Convolution:
    """Synapses of a 2-D convolution, zero padding.

    Row (c, i, j) holds the weights from input channel c at kernel position (kh-1-i, kw-1-j): the
    kernel is stored mirrored, so that an event's targets rise with i and j.

    rows      DenseRows (C_in, kh, kw, C_out / groups), or SparseRows of C_in·kh·kw rows
    bias      float32 (C_out,) or None
    reach     (H', W'): events at y >= H' or x >= W' have no targets (a pooling composed into the
              kernel leaves out the far border)
    """

    in_shape: Shape
    out_shape: Shape
    rows: Rows
    bias: Array | None
    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int
    reach: Pair

    def __post_init__(self) -> None:
        require_shape("input shape", self.in_shape)
        require_shape("output shape", self.out_shape)
        require(
            len(self.in_shape) == len(self.out_shape) == 3, "a convolution joins (C, H, W) maps"
        )
        for name, low in (("kernel", 1), ("stride", 1), ("padding", 0), ("dilation", 1)):
            require_pair(name, getattr(self, name), low)
        require(
            self.groups >= 1
            and self.in_shape[0] % self.groups == 0
            and self.out_shape[0] % self.groups == 0,
            f"{self.groups} groups do not divide the channels {self.in_shape[0]} and "
            f"{self.out_shape[0]}",
        )
        for axis in (0, 1):
            self._check_axis(axis)
        spread = self.out_shape[0] + sum((self.kernel[i] - 1) * self.pitches[i] for i in (0, 1))
        if spread > MAX_SYNAPSES:  # targets are counted from the first one in 32 bits
            raise LimitError(
                f"the kernel spans {spread} outputs (kernel {self.kernel}, dilation "
                f"{self.dilation}, output {self.out_shape}); the limit is {MAX_SYNAPSES}"
            )
        self._check_rows()
        if self.bias is not None:
            require_array("bias", self.bias, np.float32, self.out_shape[:1])

    @property
    def pitches(self) -> Pair:
        """Distances between the outputs of neighbouring kernel rows, and of kernel columns."""
        channels, _, columns = self.out_shape
        return self.dilation[0] * columns * channels, self.dilation[1] * channels

    def _check_axis(self, axis: int) -> None:
        size, out = self.in_shape[1 + axis], self.out_shape[1 + axis]
        reach = self.reach[axis]
        require(0 <= reach <= size, f"reach {self.reach} exceeds the input {self.in_shape}")
        span = self.dilation[axis] * (self.kernel[axis] - 1) + 1
        largest = (size + 2 * self.padding[axis] - span) // self.stride[axis] + 1
        require(
            out <= largest,
            f"output {self.out_shape} does not follow from input {self.in_shape}, kernel "
            f"{self.kernel}, stride {self.stride}, padding {self.padding}, dilation "
            f"{self.dilation}: at most {largest} positions along axis {axis}",
        )

    def _check_rows(self) -> None:
        channels = self.in_shape[0]
        if isinstance(self.rows, DenseRows):
            shape = (channels, *self.kernel, self.out_shape[0] // self.groups)
            require_array("weights", self.rows.weight, np.float32, shape)
            return
        count = channels * math.prod(self.kernel)
        if count >= MAX_SYNAPSES:
            raise LimitError(f"{count} rows; the limit is {MAX_SYNAPSES}")
        require_sparse_rows("convolution", self.rows.arrays, count, self.out_shape[0])


@brief
@dataclass(frozen=True)
class Matrix:
    """Synapses of a matrix: row j holds the weights from neuron j (channel-last index).

    rows    DenseRows (n_in, n_out) or SparseRows of n_in rows; targets are channel-last indices
    bias    float32 (n_out,), channel-last, or (C_out,), the same at every position, or None
    """

    in_shape: Shape
    out_shape: Shape
    rows: Rows
    bias: Array | None

    def __post_init__(self) -> None:
        require_shape("input shape", self.in_shape)
        require_shape("output shape", self.out_shape)
        size = math.prod(self.in_shape), math.prod(self.out_shape)
        if isinstance(self.rows, DenseRows):
            require_array("weights", self.rows.weight, np.float32, size)
        else:
            require_sparse_rows("matrix", self.rows.arrays, *size)
        if self.bias is not None:
            shared = self.bias.shape == self.out_shape[:1]
            require_array("bias", self.bias, np.float32, self.out_shape[:1] if shared else size[1:])


Synapses = Convolution | Matrix
