"""An event network as data: what runs without PyTorch, layer by layer, and every rule it obeys.

An object that exists is valid: each class checks what the kernels rely on (shapes, dtypes, index
ranges, finite values) when it is made, and raises FileFormatError otherwise. Kernels index without
checks, so nothing reaches them another way.

Maps are channel-last: neuron (c, y, x) of a (C, H, W) population has index (y·W + x)·C + c. The
rows of synapses stand in synapses.py.
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
    MAX_VALUES,
    require,
    require_array,
    require_neuron,
    require_pair,
    require_shape,
)
from soul_deploy.runtime.equations import NeuronEquation
from soul_deploy.runtime.errors import LimitError
from soul_deploy.runtime.files import Array
from soul_deploy.runtime.synapses import (
    Convolution,
    DenseRows,
    Matrix,
    Pair,
    Rows,
    Shape,
    SparseRows,
    Synapses,
)

__all__ = [
    "Alternative",
    "Convolution",
    "DenseRows",
    "EdgeKind",
    "EventNetwork",
    "Layer",
    "Matrix",
    "Normalization",
    "Pair",
    "PoolLayer",
    "ReadoutLayer",
    "Rows",
    "Shape",
    "SparseRows",
    "SpikingLayer",
    "Synapses",
]

EdgeKind = Literal["spike", "graded", "analog"]


@dataclass(frozen=True)
class Alternative:
    """A representation that was weighed at export; for people to read, nothing runs by it.

    kind       "dense", "sparse" or "explicit"
    bytes      size of its rows and bias
    additions  synaptic additions if every presynaptic neuron spikes once
    chosen     whether the layer has it
    """

    kind: str
    bytes: int
    additions: int
    chosen: bool

    def __post_init__(self) -> None:
        require(
            self.kind in ("dense", "sparse", "explicit") and min(self.bytes, self.additions) >= 0,
            f"alternative {self.kind!r} of {self.bytes} bytes and {self.additions} additions",
        )


@dataclass(frozen=True)
class SpikingLayer:
    """A projection and the population behind it.

    name        the population's name in the graph; `projection` the projection's
    source      the layer (or the input) whose output arrives
    edge        what arrives: "spike" (0/1), "graded" (0..bound) or "analog"
    neuron      the neurons' equation
    grid        k: weights and biases are multiples of 2^-k, or None
    live        bool (n,), channel-last, over the whole output: neurons that exist. The others are
                neither updated nor do they spike, and no explicit row leads to them. None: all
    pattern     uint8 (T, G) of 0/1: the spikes, at live positions, of G generated channels. These
                stand behind those of the current, without synapses or state. None: there are none
    alternatives  the representations weighed at export
    """

    name: str
    projection: str
    source: str
    edge: EdgeKind
    bound: int | None
    synapses: Synapses
    neuron: NeuronEquation
    grid: int | None = None
    live: Array | None = None
    pattern: Array | None = None
    alternatives: tuple[Alternative, ...] = ()

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
        self._check_pattern()
        self._check_live()

    def _check_pattern(self) -> None:
        if self.pattern is not None:
            require(
                self.pattern.ndim == 2 and self.pattern.size > 0,
                f"{self.name}: pattern {self.pattern.shape} is not (T, generated channels)",
            )
            require_array(f"{self.name}: pattern", self.pattern, np.uint8, self.pattern.shape)
            require(self.pattern.max() <= 1, f"{self.name}: the pattern holds values above 1")
            require_shape(f"{self.name}: output shape", self.out_shape)

    def _check_live(self) -> None:
        if self.live is None:
            return
        require_array(f"{self.name}: live", self.live, np.bool_, (math.prod(self.out_shape),))
        synapses, updated = self.synapses, self.updated
        if isinstance(synapses, Matrix) and isinstance(synapses.rows, SparseRows):
            assert updated is not None
            require(
                updated[synapses.rows.targets].all(),
                f"{self.name}: a synapse leads to a neuron that is not live",
            )

    @property
    def in_shape(self) -> Shape:
        return self.synapses.in_shape

    @property
    def current_shape(self) -> Shape:
        """Shape of the current: the output without generated channels."""
        return self.synapses.out_shape

    @property
    def generated(self) -> int:
        """Number of generated channels, G."""
        return 0 if self.pattern is None else self.pattern.shape[1]

    @property
    def out_shape(self) -> Shape:
        channels, *space = self.current_shape
        return (channels + self.generated, *space)

    @cached_property
    def updated(self) -> Array | None:
        """The live mask of the current's neurons, bool, channel-last; None: all."""
        if self.live is None:
            return None
        by_position = self.live.reshape(-1, self.out_shape[0])
        return by_position[:, : self.current_shape[0]].reshape(-1)

    @property
    def neurons(self) -> int:
        """How many neurons are updated at each step."""
        return math.prod(self.current_shape) if self.updated is None else int(self.updated.sum())


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
        if isinstance(layer, SpikingLayer):
            self._check_generated(layer)
            self._check_dead_rows(layer)
        analog = source == self.input_name
        if isinstance(layer, SpikingLayer):
            require(
                (layer.edge == "analog") == analog, f"{name}: a {layer.edge} edge from {source}"
            )
        else:
            require(not analog, f"{name}: takes spikes, but {source} is the input")

    def _check_generated(self, layer: SpikingLayer) -> None:
        """A pattern has T steps, and nothing is known beyond them."""
        if layer.pattern is not None:
            steps = len(layer.pattern)
            require(
                steps == self.time_steps and self.fixed_steps,
                f"{layer.name}: a pattern of {steps} steps needs a network that is valid for "
                f"T = {steps} only",
            )

    def _check_dead_rows(self, layer: SpikingLayer) -> None:
        """Rows of dead presynaptic neurons are left out when rows are packed: they are empty."""
        source, rows = self.by_name.get(layer.source), layer.synapses.rows
        explicit = isinstance(layer.synapses, Matrix) and isinstance(rows, SparseRows)
        if explicit and isinstance(source, SpikingLayer) and source.live is not None:
            assert isinstance(rows, SparseRows)
            filled = rows.starts[1:] > rows.starts[:-1]
            require(
                not filled[~source.live].any(),
                f"{layer.name}: a synapse comes from a neuron of {source.name} that is not live",
            )

    @cached_property
    def by_name(self) -> dict[str, Layer]:
        """Layers by name."""
        return {layer.name: layer for layer in self.layers}

    @property
    def spiking_layers(self) -> tuple[SpikingLayer, ...]:
        """Layers with neurons, in execution order."""
        return tuple(layer for layer in self.layers if isinstance(layer, SpikingLayer))
