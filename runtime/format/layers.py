"""Layers with synapses or neurons, and every rule that they obey.

An object that exists is valid (see network.py). Values are uint8 where spikes or small integers
travel, float32 where analog values do; a layer's inputs come from layers before it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from soul_deploy.base import Array, brief
from soul_deploy.base.errors import require
from soul_deploy.runtime.equations import Equation, FixedEquation
from soul_deploy.runtime.format import bounds, validate
from soul_deploy.runtime.format.layer import Alternative as Alternative
from soul_deploy.runtime.format.layer import Layer as Layer
from soul_deploy.runtime.format.layer import MapLayer as MapLayer
from soul_deploy.runtime.format.layer import OneSource as OneSource
from soul_deploy.runtime.format.layer import live_count
from soul_deploy.runtime.format.synapses import Synapses
from soul_deploy.runtime.format.validate import Edge, EdgeKind, Shape


class Firing(Layer):
    """The base class of layers with neurons; SpikingLayer describes the fields."""

    stateful: ClassVar[bool] = True
    neuron: Equation
    live: Array | None

    if TYPE_CHECKING:

        @property
        def current_shape(self) -> Shape:
            """Shape of the current: the output without constant-pattern channels."""

    def _check_neurons(self) -> None:
        validate.require_neuron(self.neuron, self.name)
        validate.require_numbers(self.neuron, self.name, self.current_shape)
        if self.pattern is not None:
            shape = self.pattern.shape
            require(
                len(shape) == 2 and self.pattern.size > 0,
                f"{self.name}: pattern {shape} is not (T, constant-pattern channels)",
            )
            require(self.sends == ("spike", 1), f"{self.name}: a pattern of what is not spikes")
            validate.require_array(f"{self.name}: pattern", self.pattern, np.uint8, shape)
            require(self.pattern.max() <= 1, f"{self.name}: the pattern holds values above 1")
            validate.require_shape(f"{self.name}: output shape", self.out_shape)
        size = math.prod(self.out_shape)
        validate.require_array(f"{self.name}: live", self.live, np.bool_, (size,))

    @property
    def sends(self) -> Edge:
        """What the neurons send."""
        return validate.edge_between(self.neuron.low, self.neuron.high)

    def check_steps(self, time_steps: int, *, fixed: bool) -> None:
        """A pattern has T steps, as numbers of each step do, and nothing is known beyond them."""
        patterns = None if self.pattern is None else len(self.pattern)
        for what, steps in (("a pattern", patterns), ("a neuron with numbers", self.neuron.steps)):
            require(
                steps is None or (steps == time_steps and fixed),
                f"{self.name}: {what} of {steps} steps needs a network that is valid for "
                f"T = {steps} only",
            )

    @property
    def live_neurons(self) -> Array | None:
        return self.live

    @property
    def announced(self) -> dict[str, int | None]:
        return {**live_count(self.live), "generators": self.generated or None}

    @property
    def generated(self) -> int:
        """Number of constant-pattern channels, G."""
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


class Synaptic(OneSource):
    """What layers with synapses have in common; their fields are described at SpikingLayer.

    operation  what files put before the kind of the synapses
    """

    what: ClassVar[str] = "a projection"
    edge: EdgeKind
    bound: int | None
    synapses: Synapses
    grid: int | None
    live: Array | None
    alternatives: tuple[Alternative, ...]
    accumulator: bounds.Accumulator | None

    if TYPE_CHECKING:

        @property
        def projection(self) -> str:
            """The projection's name in the graph."""

    @property
    def announced(self) -> dict[str, int | None]:
        return live_count(self.live)

    @property
    def out_shape(self) -> Shape:
        return self.synapses.out_shape

    @property
    def updated(self) -> Array | None:
        """The live mask of the current's targets, bool, channel-last; None: all."""
        return self.live

    @property
    def neurons(self) -> int:
        """How many targets an event's dense row is added to: without neurons behind, all."""
        return math.prod(self.out_shape)

    def _check_synapses(self) -> None:
        """Raise FileFormatError for an edge or a grid that cannot be."""
        validate.require_edge(self.name, self.edge, self.bound)
        grid = self.grid  # one that float32 has
        require(grid is None or 0 <= grid <= 60, f"{self.name}: grid {grid} not in 0..60")
        fixed = self.synapses.fixed
        require(
            self.edge != "analog" or (self.bound is not None) == fixed,
            f"{self.name}: {'integer' if fixed else 'float32'} weights on an analog edge with "
            f"bound {self.bound}",
        )
        wanted = None if self.current_bound is None else bounds.accumulator_for(self.current_bound)
        require(
            self.accumulator == wanted,
            f"{self.name}: sums in {self.accumulator}, where the weights ask for {wanted}",
        )

    @cached_property
    def current_bound(self) -> int | None:
        """The largest magnitude that integer weights give a current; None: of float32. Raises
        LimitError beyond MOST_CURRENT.
        """
        if not self.synapses.fixed:
            return None
        return bounds.current_bound(self.synapses, self.bound or 1)

    def _check_targets(self) -> None:
        """Raise FileFormatError if an explicit row leads to a target that is not live."""
        rows = self.synapses.explicit_rows
        if self.updated is not None and rows is not None:
            require(
                self.updated[rows.targets].all(),
                f"{self.name}: a synapse leads to a neuron that is not live",
            )

    def check_source(self, source: Layer) -> None:
        """Rows of dead presynaptic neurons are left out when rows are packed: they are empty."""
        rows, live = self.synapses.explicit_rows, source.live_neurons
        if rows is not None and live is not None:
            require(
                not rows.lengths[~live].any(),
                f"{self.name}: a synapse comes from a neuron of {source.name} that is not live",
            )

    def edge_of(self, arriving: Sequence[Edge]) -> Edge:
        (kind, bound), *_ = arriving
        require(
            (self.edge, self.bound) == (kind, bound),
            f"{self.name}: a {self.edge} edge from {self.source} with bound {self.bound}; "
            f"what leaves there is {kind} with bound {bound}",
        )
        return self.leaving

    @property
    def leaving(self) -> Edge:
        """The edge that leaves, whatever arrives."""
        return "analog", None

    @property
    def in_shape(self) -> Shape:
        return self.synapses.in_shape

    @property
    def current_shape(self) -> Shape:
        """Shape of the currents."""
        return self.synapses.out_shape


@brief
@dataclass(frozen=True)
class SpikingLayer(Firing, Synaptic):
    """A projection and the population behind it.

    name        the population's name in the graph; `projection` the projection's
    source      the layer (or the input) whose output arrives
    edge        what arrives: "spike" (0/1), "graded" (0..bound), "signed" (-bound..bound) or
                "analog"
    neuron      the neurons' equation
    grid        k: weights and biases are multiples of 2^-k, or None
    live        bool (n,), channel-last, over the whole output: neurons that exist. The others are
                neither updated nor do they spike, and no explicit row leads to them. None: all
    pattern     uint8 (T, G) of 0/1: the spikes, at live positions, of G constant-pattern channels.
                They stand behind those of the current, without synapses or state. None: G is 0
    alternatives  the representations weighed at export
    accumulator   the type in which integer weights are summed, as their bound says; None: float32
    """

    operation: ClassVar[str] = ""
    name: str
    projection: str
    source: str
    edge: EdgeKind
    bound: int | None
    synapses: Synapses
    neuron: Equation
    grid: int | None = None
    live: Array | None = None
    pattern: Array | None = None
    alternatives: tuple[Alternative, ...] = ()
    accumulator: bounds.Accumulator | None = None

    def __post_init__(self) -> None:
        self._check_synapses()
        self._check_neurons()
        require_kind(self, fixed=self.synapses.fixed)
        self._check_targets()

    @property
    def names(self) -> tuple[str, ...]:
        return self.name, self.projection

    @property
    def leaving(self) -> Edge:
        return self.sends


@brief
@dataclass(frozen=True)
class CurrentLayer(Synaptic):
    """A projection whose currents go elsewhere than to one population: analog values.

    live  bool (n,), channel-last: where the current reaches a live neuron; other currents are read
          by nothing, and no explicit row leads to them. None: everywhere
    The other fields are those of SpikingLayer.
    """

    operation: ClassVar[str] = "current_"
    name: str
    source: str
    edge: EdgeKind
    bound: int | None
    synapses: Synapses
    grid: int | None = None
    live: Array | None = None
    alternatives: tuple[Alternative, ...] = ()
    accumulator: bounds.Accumulator | None = None

    def __post_init__(self) -> None:
        self._check_synapses()
        size = math.prod(self.out_shape)
        validate.require_array(f"{self.name}: live", self.live, np.bool_, (size,))
        self._check_targets()

    @property
    def leaving(self) -> Edge:
        return "analog", self.current_bound

    @property
    def projection(self) -> str:
        """Its own name: no population is behind it."""
        return self.name


@brief
@dataclass(frozen=True)
class PopulationLayer(OneSource, Firing):
    """Neurons on the analog values of another layer, such as a sum of currents.

    The fields are those of SpikingLayer; in_shape is the current's shape.
    """

    operation: ClassVar[str] = "population"
    what: ClassVar[str] = "a population without a projection of its own"
    name: str
    source: str
    in_shape: Shape
    neuron: Equation
    live: Array | None = None
    pattern: Array | None = None

    def __post_init__(self) -> None:
        validate.require_shape(f"{self.name}: current", self.in_shape)
        self._check_neurons()

    @property
    def current_shape(self) -> Shape:
        return self.in_shape

    def edge_of(self, arriving: Sequence[Edge]) -> Edge:
        kind, bound = arriving[0]
        require(
            kind == "analog", f"{self.name}: neurons take a current, but {self.source} is {kind}"
        )
        require_kind(self, fixed=bound is not None)
        return self.sends


def require_kind(layer: Firing, *, fixed: bool) -> None:
    """Raise FileFormatError unless neurons of integers take integers, and others float32."""
    require(
        isinstance(layer.neuron, FixedEquation) == fixed,
        f"{layer.name}: {'integer' if fixed else 'float32'} currents to neurons of the other kind",
    )
