"""Layers without synapses or neurons: pooling, merging, scattering maps, and the readout."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from soul_deploy.base import Array, brief, reduction
from soul_deploy.base.errors import require
from soul_deploy.runtime.equations import Equation, FixedEquation
from soul_deploy.runtime.format import bounds, layers, validate
from soul_deploy.runtime.format.synapses import Pair
from soul_deploy.runtime.format.validate import Edge, Shape

MergeFunction = Literal["add", "and", "iand"]


@dataclass(frozen=True)
class PoolLayer(layers.OneSource, layers.MapLayer):
    """Maximum over windows of a map; of spikes: OR. Padding never is the maximum."""

    operation: ClassVar[str] = "max_pool"
    what: ClassVar[str] = "a pooling"
    name: str
    source: str
    in_shape: Shape
    out_shape: Shape
    kernel: Pair
    stride: Pair
    padding: Pair

    def __post_init__(self) -> None:
        validate.require_shape("input shape", self.in_shape)
        validate.require_shape("output shape", self.out_shape)
        require(len(self.in_shape) == 3, f"{self.name}: pooling needs a (C, H, W) input")
        for name, low in (("kernel", 1), ("stride", 1), ("padding", 0)):
            validate.require_pair(f"{self.name}: {name}", getattr(self, name), low)
        sides = tuple(
            (self.in_shape[1 + i] + 2 * self.padding[i] - self.kernel[i]) // self.stride[i] + 1
            for i in (0, 1)
        )
        require(
            self.out_shape == (self.in_shape[0], *sides),
            f"{self.name}: output {self.out_shape} does not follow from input {self.in_shape}",
        )

    def edge_of(self, arriving: Sequence[Edge]) -> Edge:
        require(
            arriving[0][0] in ("spike", "graded")  # a window without values is 0
            or all(2 * self.padding[i] <= self.kernel[i] for i in (0, 1)),
            f"{self.name}: padding {self.padding} beyond half the kernel {self.kernel} "
            "leaves a window without values",
        )
        return arriving[0]


@dataclass(frozen=True)
class MergeLayer(layers.MapLayer):
    """Two or more maps of one shape, element by element, left to right.

    add   the sum: of spikes and graded values a graded edge, with an analog one analog
    and   spikes: 1 where all are 1
    iand  spikes: 1 where the first is 1 and the second is 0
    """

    operation: ClassVar[str] = "merge"
    what: ClassVar[str] = "a merge"
    name: str
    sources: tuple[str, ...]
    function: MergeFunction
    shape: Shape

    def __post_init__(self) -> None:
        validate.require_shape(f"{self.name}: shape", self.shape)
        require(
            self.function in ("add", "and", "iand"),
            f"{self.name}: function {self.function!r}; known: add, and, iand",
        )
        count = len(self.sources)
        require(
            count == 2 or (count > 2 and self.function != "iand"),
            f"{self.name}: {self.function} of {count} branches",
        )

    @property
    def in_shape(self) -> Shape:
        return self.shape

    @property
    def out_shape(self) -> Shape:
        return self.shape

    def edge_of(self, arriving: Sequence[Edge]) -> Edge:
        kinds = {kind for kind, _ in arriving}
        if self.function != "add":
            require(kinds == {"spike"}, f"{self.name}: {self.function} takes spikes only")
            return "spike", 1
        limits = [bound for _, bound in arriving if bound is not None]
        bound = sum(limits)
        if "analog" in kinds:
            return "analog", bounds.require_current(bound) if len(limits) == len(arriving) else None
        kind: validate.EdgeKind = "signed" if "signed" in kinds else "graded"
        validate.require_edge(self.name, kind, bound)
        return kind, bound


@brief
@dataclass(frozen=True)
class ScatterLayer(layers.OneSource, layers.MapLayer):
    """Channels of a narrow map put into a wide one, zeros elsewhere.

    index  uint32 (channels,): the place of each input channel, rising
    """

    operation: ClassVar[str] = "scatter"
    what: ClassVar[str] = "a scattering"
    name: str
    source: str
    in_shape: Shape
    out_shape: Shape
    index: Array

    def __post_init__(self) -> None:
        validate.require_shape("input shape", self.in_shape)
        validate.require_shape("output shape", self.out_shape)
        validate.require_array(f"{self.name}: index", self.index, np.uint32, self.in_shape[:1])
        require(
            self.in_shape[1:] == self.out_shape[1:]
            and (self.index[1:] > self.index[:-1]).all()
            and int(self.index[-1]) < self.out_shape[0],
            f"{self.name}: {self.in_shape[0]} channels do not go to rising places of "
            f"{self.out_shape}",
        )

    def edge_of(self, arriving: Sequence[Edge]) -> Edge:
        return arriving[0]


@brief
@dataclass(frozen=True)
class ReadoutLayer:
    """Class scores from spike sums: sum over time (and space), weigh or vote, scale, add the bias.

    space      the sums run over H and W too, so that there are C of them; otherwise one per neuron
    weight     float32 or int8 (classes, sums), neurons in channel-last order, or None: the sums of
               `votes` neighbours are added
    bias       float32 (classes,), int32 of int8 weights, or None
    divisor    scores are scaled by 1 / divisor, of a mean over time by 1 / (steps · divisor)
    over_time  what becomes of the steps: their "mean", "sum", "last" or "max"
               (soul_deploy/base/reduction.py)
    unit       what the integer 1 of int8 weights stands for; None: float32
    neuron     of a membrane read-out: the neurons, one a class, that the scores of each step charge
               and whose membrane is what becomes of the steps; None: there are none
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
    over_time: reduction.OverTime = "mean"
    unit: float | None = None
    neuron: Equation | None = None

    def __post_init__(self) -> None:
        validate.require_shape("readout input", self.in_shape)
        known = ", ".join(reduction.OVER_TIME)
        require(
            reduction.is_over_time(self.over_time),
            f"{self.name}: over_time {self.over_time!r}; known: {known}",
        )
        require(self.classes >= 1 and self.votes >= 1, f"{self.name}: no classes or no votes")
        require(
            1 <= self.divisor <= validate.MAX_NEURONS * validate.MAX_STEPS,
            f"{self.name}: divisor {self.divisor}",
        )
        require(
            len(self.in_shape) == 3 or not self.space,
            f"{self.name}: a sum over space of {self.in_shape}",
        )
        shape = (self.classes, self.sums)
        validate.require_weights(f"{self.name}: weights", self.weight, shape)
        require(
            (self.unit is not None) == self.fixed,
            f"{self.name}: unit {self.unit} with weights of "
            f"{None if self.weight is None else self.weight.dtype}",
        )
        unit = 1.0 if self.unit is None else self.unit
        with np.errstate(over="ignore", under="ignore"):
            small = np.float32(unit / (validate.MAX_NEURONS * validate.MAX_STEPS))
            usable = small > 0 and np.isfinite(np.float32(unit))
        require(usable, f"{self.name}: unit {self.unit} is no usable float32 above 0")
        if self.weight is not None:
            require(self.votes == 1, f"{self.name}: votes together with weights")
        else:
            require(
                self.space == (len(self.in_shape) == 3) and self.sums == self.classes * self.votes,
                f"{self.name}: {self.sums} sums for {self.classes} classes of {self.votes} votes",
            )
        kind = np.int32 if self.fixed else np.float32
        validate.require_array(f"{self.name}: bias", self.bias, kind, (self.classes,))
        self._check_neuron()

    def _check_neuron(self) -> None:
        if self.neuron is None:
            return
        require(self.weight is not None, f"{self.name}: votes that charge neurons")
        fixed = self.fixed or isinstance(self.neuron, FixedEquation)
        require(not fixed, f"{self.name}: fixed point has no neurons behind the head")
        validate.require_neuron(self.neuron, self.name)
        validate.require_numbers(self.neuron, self.name, (self.classes,))
        require(
            not self.neuron.whole and self.neuron.steps is None,
            f"{self.name}: the membrane of neurons that mix all steps or have numbers of each",
        )

    @property
    def sources(self) -> tuple[str, ...]:
        return (self.source,)

    @property
    def fixed(self) -> bool:
        """Whether the head is of integers."""
        return self.weight is not None and self.weight.dtype == np.int8

    def score_bound(self, most: int, steps: int) -> int:
        """The largest magnitude of a class's integer, before it is multiplied; most: of a value
        that arrives.
        """
        each = self.votes
        if self.weight is not None:
            each = int(np.abs(self.weight.astype(np.int64)).sum(axis=1).max(initial=0))
        positions = math.prod(self.in_shape) // self.sums
        bias = 0 if self.bias is None else int(np.abs(self.bias.astype(np.int64)).max(initial=0))
        return steps * (each * positions * most + bias)

    @property
    def sums(self) -> int:
        """How many integers the spikes are summed to."""
        return self.in_shape[0] if self.space else math.prod(self.in_shape)

    def scale(self, steps: int) -> float:
        """1 / divisor, of a mean of spikes over time 1 / (steps · divisor); unit instead of 1."""
        unit = 1.0 if self.unit is None else self.unit
        steps = reduction.together(self.weighing, steps)
        return unit / (reduction.divisor(self.over_time, steps) * self.divisor)

    def biases(self, steps: int) -> int:
        """How many times the bias is in what the head gives."""
        return reduction.biases(self.over_time, reduction.together(self.weighing, steps))

    @property
    def weighing(self) -> reduction.Weighing:
        """Which spikes the head weighs."""
        return reduction.weighing(self.over_time, charging=self.neuron is not None)

    def weighings(self, steps: int) -> tuple[slice, ...]:
        """As `reduction.weighings`."""
        return reduction.weighings(self.weighing, steps)
