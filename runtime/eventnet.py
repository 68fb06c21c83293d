"""An event network as data: what runs without PyTorch, layer by layer, and every rule it obeys.

An object that exists is valid: each class checks what the kernels rely on (shapes, dtypes, index
ranges, finite values) when it is made, and raises FileFormatError otherwise. Kernels index without
checks, so nothing reaches them another way.

Maps are channel-last: neuron (c, y, x) of a (C, H, W) population has index (y·W + x)·C + c. Rows
are presynaptic: one row holds the synapses *from* one neuron, or from one channel at one kernel
position, since an event is processed by adding its rows to its targets.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np

from soul_deploy.runtime.checks import (
    MAX_GRADED,
    MAX_NEURONS,
    MAX_STEPS,
    MAX_SYNAPSES,
    MAX_VALUES,
    require,
    require_array,
    require_neuron,
    require_pair,
    require_shape,
    require_sparse_rows,
)
from soul_deploy.runtime.equations import NeuronEquation
from soul_deploy.runtime.errors import LimitError
from soul_deploy.runtime.files import Array

Shape = tuple[int, ...]
Pair = tuple[int, int]
EdgeKind = Literal["spike", "graded", "analog"]


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
        self._check_rows()
        if self.bias is not None:
            require_array("bias", self.bias, np.float32, self.out_shape[:1])

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


@dataclass(frozen=True)
class Matrix:
    """Synapses of a matrix: row j holds the weights from neuron j (channel-last index).

    rows    DenseRows (n_in, n_out) or SparseRows of n_in rows; targets are channel-last indices
    bias    float32 (n_out,), channel-last, or None
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
            require_array("bias", self.bias, np.float32, size[1:])


Synapses = Convolution | Matrix


@dataclass(frozen=True)
class SpikingLayer:
    """A projection and the population behind it.

    name        the population's name in the graph; `projection` the projection's
    source      the layer (or the input) whose output arrives
    edge        what arrives: "spike" (0/1), "graded" (0..bound) or "analog"
    neuron      the neurons' equation
    grid        k: weights and biases are multiples of 2^-k, or None
    """

    name: str
    projection: str
    source: str
    edge: EdgeKind
    bound: int | None
    synapses: Synapses
    neuron: NeuronEquation
    grid: int | None = None

    def __post_init__(self) -> None:
        require(self.edge in ("spike", "graded", "analog"), f"{self.name}: edge {self.edge!r}")
        valid = {"spike": self.bound == 1, "analog": self.bound is None}.get(
            self.edge, self.bound is not None and self.bound >= 1
        )
        require(valid, f"{self.name}: a {self.edge} edge with bound {self.bound}")
        if self.bound is not None and self.bound > MAX_GRADED:
            raise LimitError(
                f"{self.name}: inputs up to {self.bound}; an event carries at most {MAX_GRADED}"
            )
        require(
            self.grid is None or 0 <= self.grid <= 60, f"{self.name}: grid {self.grid} not in 0..60"
        )
        require_neuron(self.name, self.neuron)

    @property
    def in_shape(self) -> Shape:
        return self.synapses.in_shape

    @property
    def out_shape(self) -> Shape:
        return self.synapses.out_shape


@dataclass(frozen=True)
class PoolLayer:
    """Maximum over windows of a map; of spikes: OR. Padding counts as no spike."""

    name: str
    source: str
    in_shape: Shape
    out_shape: Shape
    kernel: Pair
    stride: Pair
    padding: Pair

    def __post_init__(self) -> None:
        require_shape("input shape", self.in_shape)
        require_shape("output shape", self.out_shape)
        require(len(self.in_shape) == 3, f"{self.name}: pooling needs a (C, H, W) input")
        for name, low in (("kernel", 1), ("stride", 1), ("padding", 0)):
            require_pair(f"{self.name}: {name}", getattr(self, name), low)
        sides = tuple(
            (self.in_shape[1 + i] + 2 * self.padding[i] - self.kernel[i]) // self.stride[i] + 1
            for i in (0, 1)
        )
        require(
            self.out_shape == (self.in_shape[0], *sides),
            f"{self.name}: output {self.out_shape} does not follow from input {self.in_shape}",
        )


@dataclass(frozen=True)
class ReadoutLayer:
    """Class scores from spike sums: sum over time (and space), weigh or vote, scale, add the bias.

    space    the sums run over H and W too, so that there are C of them; otherwise one per neuron
    weight   float32 (classes, sums), neurons in channel-last order, or None: the sums of `votes`
             neighbours are added
    bias     float32 (classes,) or None
    divisor  scores are scaled by 1 / (steps · divisor)
    """

    name: str
    source: str
    in_shape: Shape
    classes: int
    space: bool
    weight: Array | None
    bias: Array | None
    votes: int
    divisor: int

    def __post_init__(self) -> None:
        require_shape("readout input", self.in_shape)
        require(self.classes >= 1 and self.votes >= 1, f"{self.name}: no classes or no votes")
        require(
            1 <= self.divisor <= MAX_NEURONS * MAX_STEPS, f"{self.name}: divisor {self.divisor}"
        )
        require(
            len(self.in_shape) == 3 or not self.space,
            f"{self.name}: a sum over space of {self.in_shape}",
        )
        if self.weight is not None:
            shape = (self.classes, self.sums)
            require_array(f"{self.name}: weights", self.weight, np.float32, shape)
            require(self.votes == 1, f"{self.name}: votes together with weights")
        else:
            require(
                self.space == (len(self.in_shape) == 3) and self.sums == self.classes * self.votes,
                f"{self.name}: {self.sums} sums for {self.classes} classes of {self.votes} votes",
            )
        if self.bias is not None:
            require_array(f"{self.name}: bias", self.bias, np.float32, (self.classes,))

    @property
    def sums(self) -> int:
        """How many integers the spikes are summed to."""
        return self.in_shape[0] if self.space else math.prod(self.in_shape)

    def scale(self, steps: int) -> float:
        """1 / (steps · divisor)."""
        return 1.0 / (steps * self.divisor)


Layer = SpikingLayer | PoolLayer


@dataclass(frozen=True)
class Normalization:
    """Per-channel mean and standard deviation of pixels in [0, 1]; the caller applies them."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        values = np.array([*self.mean, *self.std], np.float64)
        require(
            len(self.mean) == len(self.std) and np.isfinite(values).all() and min(self.std) > 0,
            f"normalisation mean {self.mean}, std {self.std}: finite, as many, std above 0",
        )


@dataclass(frozen=True)
class EventNetwork:
    """Layers in execution order and what they are valid for.

    input_name, input_shape   the input: (C, H, W) or (N,), analog
    time_steps                T
    fixed_steps               valid for this T only (something was removed that is silent within T)
    reset_per_sample          valid only when every sample starts at rest
    classes                   class names, or ()
    source_sha256             sha256 of the model file it was made from, or None
    """

    input_name: str
    input_shape: Shape
    time_steps: int
    layers: tuple[Layer, ...]
    readout: ReadoutLayer
    fixed_steps: bool = False
    reset_per_sample: bool = False
    normalization: Normalization | None = None
    classes: tuple[str, ...] = ()
    source_sha256: str | None = None
    digest: str | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        require_shape("input shape", self.input_shape)
        require(self.time_steps >= 1, f"time_steps {self.time_steps} is not at least 1")
        if self.time_steps > MAX_STEPS:
            raise LimitError(f"T = {self.time_steps}; the limit is {MAX_STEPS} steps")
        require(
            len(self.classes) in (0, self.readout.classes),
            f"{len(self.classes)} class names for {self.readout.classes} classes",
        )
        shapes: dict[str, Shape] = {self.input_name: self.input_shape}
        for layer in (*self.layers, self.readout):
            self._check_place(layer, shapes)
            if not isinstance(layer, ReadoutLayer):
                shapes[layer.name] = layer.out_shape
        for name, shape in shapes.items():
            if self.time_steps * math.prod(shape) > MAX_VALUES:
                raise LimitError(
                    f"{name}: {self.time_steps} steps of {shape} given; the limit is {MAX_VALUES} "
                    "values"
                )

    def _check_place(self, layer: "Layer | ReadoutLayer", shapes: Mapping[str, Shape]) -> None:
        """What comes before must feed it, with the right shape and edge kind."""
        name, source = layer.name, layer.source
        require(name not in shapes, f"two layers are called {name!r}")
        require(source in shapes, f"{name}: its source {source!r} is not there")
        require(
            shapes[source] == layer.in_shape,
            f"{name}: takes {layer.in_shape}, but {source} is {shapes[source]}",
        )
        analog = source == self.input_name
        if isinstance(layer, SpikingLayer):
            require(
                (layer.edge == "analog") == analog, f"{name}: a {layer.edge} edge from {source}"
            )
        else:
            require(not analog, f"{name}: takes spikes, but {source} is the input")

    @cached_property
    def by_name(self) -> dict[str, Layer]:
        """Layers by name."""
        return {layer.name: layer for layer in self.layers}

    @property
    def spiking_layers(self) -> tuple[SpikingLayer, ...]:
        """Layers with neurons, in execution order."""
        return tuple(layer for layer in self.layers if isinstance(layer, SpikingLayer))
