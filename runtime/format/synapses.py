"""Synapses as data: rows by presynaptic neuron or channel, and how they reach their targets.

An object that exists is valid (see network.py). Maps are channel-last: neuron (c, y, x) of a
(C, H, W) population has index (y·W + x)·C + c. Rows are presynaptic: one row holds the synapses
*from* one neuron, or from one channel at one kernel position, since an event is processed by adding
its rows to its targets.

`ConvSynapses` are the implicit form: all positions share the rows. `MatrixSynapses` of compressed
rows are the explicit form: one row per presynaptic neuron, only synapses between live neurons.
"""

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from soul_deploy.base import Array, brief, errors
from soul_deploy.runtime.format import validate
from soul_deploy.runtime.format.validate import Shape

Pair = tuple[int, int]


@dataclass(frozen=True)
class Rows:
    """Weights by presynaptic unit: what DenseRows and SparseRows have in common.

    kind   what files call the rows
    dense  whether weights of 0 are stored
    """

    kind: ClassVar[str]
    dense: ClassVar[bool]

    if TYPE_CHECKING:

        @property
        def weight(self) -> Array:
            """float32, or int8 of fixed-point networks: the weights, in the order of rows."""

    @property
    def synapses(self) -> int:
        """Nonzero weights stored."""
        return int(np.count_nonzero(self.weight))

    @property
    def fixed(self) -> bool:
        """Whether the weights are integers."""
        return self.weight.dtype == np.int8

    def magnitudes(self, blocks: int, width: int) -> Array:
        """int64 (width,): of each target, the sum of its weights' magnitudes. blocks: as of the
        synapses.
        """
        raise NotImplementedError

    @property
    def arrays(self) -> tuple[Array, ...]:
        """All arrays of the rows, as `fields` lists them."""
        return tuple(getattr(self, item.name) for item in fields(self))

    @property
    def lengths(self) -> Array:
        """int64 (rows,): nonzero weights of each row."""
        raise NotImplementedError

    def check(self, name: str, shape: Shape, count: int, width: int) -> None:
        """Raise FileFormatError unless the rows are `count` rows onto `width` targets, which
        stored densely have `shape`; LimitError for more rows than 32 bits count.
        """
        raise NotImplementedError


@brief
@dataclass(frozen=True)
class DenseRows(Rows):
    """One contiguous row of weights per presynaptic unit.

    weight  float32 or int8: (n_in, n_out), or for a convolution (C_in, kh, kw, C_out / groups)
    """

    kind: ClassVar[str] = "dense"
    dense: ClassVar[bool] = True
    weight: Array

    @property
    def lengths(self) -> Array:
        return np.asarray(np.count_nonzero(self.weight, axis=-1), np.int64).reshape(-1)

    def check(self, name: str, shape: Shape, count: int, width: int) -> None:
        validate.require_weights("weights", self.weight, shape)

    def magnitudes(self, blocks: int, width: int) -> Array:
        sizes = np.abs(self.weight.astype(np.int16))
        by_block = sizes.reshape(blocks, -1, self.weight.shape[-1])
        return np.asarray(by_block.sum(axis=1, dtype=np.int64).reshape(-1))


@brief
@dataclass(frozen=True)
class SparseRows(Rows):
    """Compressed rows: row r holds synapses starts[r] .. starts[r + 1].

    starts   uint32 (rows + 1,)
    targets  uint32 (synapses,): target neuron, or for a convolution target channel
    weight   float32 or int8 (synapses,), no zeros
    """

    kind: ClassVar[str] = "sparse"
    dense: ClassVar[bool] = False
    starts: Array
    targets: Array
    weight: Array

    @property
    def synapses(self) -> int:
        return len(self.targets)

    @property
    def lengths(self) -> Array:
        return np.asarray(np.diff(self.starts.astype(np.int64)))

    def check(self, name: str, shape: Shape, count: int, width: int) -> None:
        """Canonical rows: starts that rise, targets below `width` and strictly rising in a row, no
        weight of 0.
        """
        if count >= validate.MAX_SYNAPSES:
            raise errors.LimitError(f"{count} rows; the limit is {validate.MAX_SYNAPSES}")
        starts, targets, weight = self.arrays
        validate.require_array(f"{name}: starts", starts, np.uint32, (count + 1,))
        validate.require_array(f"{name}: targets", targets, np.uint32, targets.shape[:1])
        validate.require_weights(f"{name}: weights", weight, targets.shape)
        errors.require(
            starts[0] == 0 and starts[-1] == len(targets) and (starts[1:] >= starts[:-1]).all(),
            f"{name}: row starts do not rise from 0 to the number of synapses, {len(targets)}",
        )
        if len(targets):
            errors.require(
                int(targets.max()) < width,
                f"{name}: a synapse targets {int(targets.max())}, but targets are 0..{width - 1}",
            )
            inside = np.ones(len(targets), np.bool_)
            inside[starts[:-1][starts[:-1] < len(targets)]] = False
            falls = np.flatnonzero(targets[1:] <= targets[:-1]) + 1
            errors.require(
                not inside[falls].any(), f"{name}: targets of a row are not strictly rising"
            )
            errors.require((weight != 0).all(), f"{name}: a stored synapse has weight 0")

    def magnitudes(self, blocks: int, width: int) -> Array:
        sizes = np.abs(self.weight.astype(np.int16))
        return np.bincount(self.targets, sizes, minlength=width).astype(np.int64)


ROWS: tuple[type[Rows], ...] = (DenseRows, SparseRows)


@brief
@dataclass(frozen=True)
class Synapses:
    """What ConvSynapses and MatrixSynapses have in common; the family of tables over synapses.

    kind    what files call the operation
    shared  whether all positions of a map share their rows
    """

    kind: ClassVar[str]
    shared: ClassVar[bool]
    in_shape: Shape
    out_shape: Shape
    rows: Rows
    bias: Array | None

    @property
    def fixed(self) -> bool:
        """Whether weights are int8 and biases int32, as in a fixed-point network."""
        return self.rows.fixed

    @property
    def row_targets(self) -> int:
        """Targets that rows lead to: neurons, or output channels of shared rows."""
        return self.out_shape[0] if self.shared else math.prod(self.out_shape)

    def _check_bias(self, shape: Shape) -> None:
        kind = np.int32 if self.fixed else np.float32
        validate.require_array("bias", self.bias, kind, shape)

    @property
    def explicit_rows(self) -> SparseRows | None:
        """The rows of the explicit form; None for rows that are dense or shared by positions."""
        return None

    @property
    def convolution(self) -> "ConvSynapses | None":
        """The synapses, if they are a convolution's shared rows."""
        return None

    @property
    def row_count(self) -> int:
        """Rows of synapses: one per input neuron, or per channel and kernel position."""
        return math.prod(self.in_shape)

    @property
    def blocks(self) -> int:
        """Equal shares of the rows, each of which leads to a share of the targets of its own."""
        return 1

    @property
    def most_targets(self) -> int:
        """Targets that one input has at most."""
        return math.prod(self.out_shape)


@brief
@dataclass(frozen=True)
class ConvSynapses(Synapses):
    """Synapses of a 2-D convolution, zero padding.

    Row (c, i, j) holds the weights from input channel c at kernel position (kh-1-i, kw-1-j): the
    kernel is stored mirrored, so that an event's targets rise with i and j.

    rows      DenseRows (C_in, kh, kw, C_out / groups), or SparseRows of C_in·kh·kw rows
    bias      float32 (C_out,), int32 of int8 weights, or None
    reach     (H', W'): events at y >= H' or x >= W' have no targets (a pooling composed into the
              kernel leaves out the far border)
    """

    kind: ClassVar[str] = "convolution"
    shared: ClassVar[bool] = True
    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int
    reach: Pair

    def __post_init__(self) -> None:
        validate.require_shape("input shape", self.in_shape)
        validate.require_shape("output shape", self.out_shape)
        errors.require(
            len(self.in_shape) == len(self.out_shape) == 3, "a convolution joins (C, H, W) maps"
        )
        for name, low in (("kernel", 1), ("stride", 1), ("padding", 0), ("dilation", 1)):
            validate.require_pair(name, getattr(self, name), low)
        errors.require(
            self.groups >= 1
            and self.in_shape[0] % self.groups == 0
            and self.out_shape[0] % self.groups == 0,
            f"{self.groups} groups do not divide the channels {self.in_shape[0]} and "
            f"{self.out_shape[0]}",
        )
        for axis in (0, 1):
            self._check_axis(axis)
        spread = self.out_shape[0] + sum((self.kernel[i] - 1) * self.pitches[i] for i in (0, 1))
        if spread > validate.MAX_SYNAPSES:  # targets are counted from the first one in 32 bits
            raise errors.LimitError(
                f"the kernel spans {spread} outputs (kernel {self.kernel}, dilation "
                f"{self.dilation}, output {self.out_shape}); the limit is {validate.MAX_SYNAPSES}"
            )
        shape = (self.in_shape[0], *self.kernel, self.out_shape[0] // self.groups)
        self.rows.check("convolution", shape, self.row_count, self.out_shape[0])
        self._check_bias(self.out_shape[:1])

    @property
    def convolution(self) -> "ConvSynapses":
        return self

    @property
    def row_count(self) -> int:
        return self.in_shape[0] * math.prod(self.kernel)

    @property
    def blocks(self) -> int:
        return self.groups

    @property
    def most_targets(self) -> int:
        return self.out_shape[0] // self.groups * math.prod(self.kernel)

    @property
    def pitches(self) -> Pair:
        """Distances between the outputs of neighbouring kernel rows, and of kernel columns."""
        channels, _, columns = self.out_shape
        return self.dilation[0] * columns * channels, self.dilation[1] * channels

    def _check_axis(self, axis: int) -> None:
        size, out = self.in_shape[1 + axis], self.out_shape[1 + axis]
        reach = self.reach[axis]
        errors.require(0 <= reach <= size, f"reach {self.reach} exceeds the input {self.in_shape}")
        span = self.dilation[axis] * (self.kernel[axis] - 1) + 1
        largest = (size + 2 * self.padding[axis] - span) // self.stride[axis] + 1
        errors.require(
            out <= largest,
            f"output {self.out_shape} does not follow from input {self.in_shape}, kernel "
            f"{self.kernel}, stride {self.stride}, padding {self.padding}, dilation "
            f"{self.dilation}: at most {largest} positions along axis {axis}",
        )


@brief
@dataclass(frozen=True)
class MatrixSynapses(Synapses):
    """Synapses of a matrix: row j holds the weights from neuron j (channel-last index).

    rows    DenseRows (n_in, n_out) or SparseRows of n_in rows; targets are channel-last indices
    bias    float32, int32 of int8 weights, (n_out,), channel-last, or (C_out,), the same at every
            position, or None
    """

    kind: ClassVar[str] = "matrix"
    shared: ClassVar[bool] = False

    def __post_init__(self) -> None:
        validate.require_shape("input shape", self.in_shape)
        validate.require_shape("output shape", self.out_shape)
        size = math.prod(self.in_shape), math.prod(self.out_shape)
        self.rows.check("matrix", size, *size)
        shared = self.bias is not None and self.bias.shape == self.out_shape[:1]
        shape = self.out_shape[:1] if shared else size[1:]
        self._check_bias(shape)

    @property
    def explicit_rows(self) -> SparseRows | None:
        return self.rows if isinstance(self.rows, SparseRows) else None
