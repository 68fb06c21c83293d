"""Layers with synapses or neurons, and every rule that each of them obeys.

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
from soul_deploy.runtime.equations import NeuronEquation
from soul_deploy.runtime.format import layer, validate
from soul_deploy.runtime.format.synapses import Shape, Synapses


@dataclass(frozen=True)
class Alternative:
    """A representation that the export considered; informative, execution does not depend on it.

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
        validate.require(
            self.kind in ("dense", "sparse", "explicit") and min(self.bytes, self.additions) >= 0,
            f"alternative {self.kind!r} of {self.bytes} bytes and {self.additions} additions",
        )


def require_grid(name: str, grid: int | None) -> None:
    """Raise FileFormatError for a grid that float32 does not have."""
    validate.require(grid is None or 0 <= grid <= 60, f"{name}: grid {grid} not in 0..60")


class Firing(layer.Layer):
    """The base class of layers with neurons; SpikingLayer describes the fields."""

    stateful: ClassVar[bool] = True
    neuron: NeuronEquation
    live: Array | None

    @property
    def current_shape(self) -> Shape:
        """Shape of the current: the output without constant-pattern channels."""
        raise NotImplementedError

    def _check_neurons(self) -> None:
        validate.require_neuron(self.name, self.neuron)
        if self.pattern is not None:
            validate.require(
                self.pattern.ndim == 2 and self.pattern.size > 0,
                f"{self.name}: pattern {self.pattern.shape} is not (T, constant-pattern channels)",
            )
            validate.require_array(
                f"{self.name}: pattern", self.pattern, np.uint8, self.pattern.shape
            )
            validate.require(
                self.pattern.max() <= 1, f"{self.name}: the pattern holds values above 1"
            )
            validate.require_shape(f"{self.name}: output shape", self.out_shape)
        if self.live is not None:
            validate.require_array(
                f"{self.name}: live", self.live, np.bool_, (math.prod(self.out_shape),)
            )

    def check_steps(self, time_steps: int, *, fixed: bool) -> None:
        """A pattern has T steps, and nothing is known beyond them."""
        if self.pattern is not None:
            steps = len(self.pattern)
            validate.require(
                steps == time_steps and fixed,
                f"{self.name}: a pattern of {steps} steps needs a network that is valid for "
                f"T = {steps} only",
            )

    @property
    def live_neurons(self) -> Array | None:
        return self.live

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


class Synaptic(layer.Layer):
    """What layers with synapses have in common; their fields are described at SpikingLayer.

    operation  what files put before the kind of the synapses
    """

    what: ClassVar[str] = "a projection"
    source: str
    edge: validate.EdgeKind
    bound: int | None
    synapses: Synapses
    grid: int | None
    live: Array | None
    alternatives: tuple[Alternative, ...]

    if TYPE_CHECKING:

        @property
        def projection(self) -> str:
            """The projection's name in the graph."""
            raise NotImplementedError

        @property
        def updated(self) -> Array | None:
            """The live mask of the current's targets, bool, channel-last; None: all."""
            raise NotImplementedError

        @property
        def neurons(self) -> int:
            """How many targets an event's dense row is added to."""
            raise NotImplementedError

    def _check_synapses(self) -> None:
        """Raise FileFormatError for an edge or a grid that cannot be."""
        validate.require_edge(self.name, self.edge, self.bound)
        require_grid(self.name, self.grid)

    def _check_targets(self) -> None:
        """Raise FileFormatError if an explicit row leads to a target that is not live."""
        rows = self.synapses.explicit_rows
        if self.updated is not None and rows is not None:
            validate.require(
                self.updated[rows.targets].all(),
                f"{self.name}: a synapse leads to a neuron that is not live",
            )

    def check_source(self, source: layer.Layer) -> None:
        """Rows of dead presynaptic neurons are left out when rows are packed: they are empty."""
        rows, live = self.synapses.explicit_rows, source.live_neurons
        if rows is not None and live is not None:
            validate.require(
                not rows.lengths[~live].any(),
                f"{self.name}: a synapse comes from a neuron of {source.name} that is not live",
            )

    def _check_arriving(self, arriving: validate.Edge) -> None:
        validate.require(
            (self.edge, self.bound) == arriving,
            f"{self.name}: a {self.edge} edge from {self.source} with bound {self.bound}; "
            f"what leaves there is {arriving[0]} with bound {arriving[1]}",
        )

    @property
    def sources(self) -> tuple[str, ...]:
        return (self.source,)

    @property
    def in_shape(self) -> Shape:
        return self.synapses.in_shape

    @property
    def current_shape(self) -> Shape:
        """Shape of the currents."""
        return self.synapses.out_shape


@brief
@dataclass(frozen=True)
class SpikingLayer(Synaptic, Firing):
    """A projection and the population behind it.

    name        the population's name in the graph; `projection` the projection's
    source      the layer (or the input) whose output arrives
    edge        what arrives: "spike" (0/1), "graded" (0..bound) or "analog"
    neuron      the neurons' equation
    grid        k: weights and biases are multiples of 2^-k, or None
    live        bool (n,), channel-last, over the whole output: neurons that exist. The others are
                neither updated nor do they spike, and no explicit row leads to them. None: all
    pattern     uint8 (T, G) of 0/1: the spikes, at live positions, of G constant-pattern channels.
                They stand behind those of the current, without synapses or state. None: G is 0
    alternatives  the representations weighed at export
    """

    operation: ClassVar[str] = ""
    name: str
    projection: str
    source: str
    edge: validate.EdgeKind
    bound: int | None
    synapses: Synapses
    neuron: NeuronEquation
    grid: int | None = None
    live: Array | None = None
    pattern: Array | None = None
    alternatives: tuple[Alternative, ...] = ()

    def __post_init__(self) -> None:
        self._check_synapses()
        self._check_neurons()
        self._check_targets()

    @property
    def names(self) -> tuple[str, ...]:
        return self.name, self.projection

    def edge_of(self, arriving: Sequence[validate.Edge]) -> validate.Edge:
        self._check_arriving(arriving[0])
        return "spike", 1


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
    edge: validate.EdgeKind
    bound: int | None
    synapses: Synapses
    grid: int | None = None
    live: Array | None = None
    alternatives: tuple[Alternative, ...] = ()

    def __post_init__(self) -> None:
        self._check_synapses()
        if self.live is not None:
            validate.require_array(
                f"{self.name}: live", self.live, np.bool_, (math.prod(self.out_shape),)
            )
        self._check_targets()

    @property
    def projection(self) -> str:
        """Its own name: no population is behind it."""
        return self.name

    @property
    def out_shape(self) -> Shape:
        return self.synapses.out_shape

    @property
    def updated(self) -> Array | None:
        """Live targets, as `live`."""
        return self.live

    @property
    def neurons(self) -> int:
        """How many targets an event's dense row is added to: all."""
        return math.prod(self.out_shape)

    def edge_of(self, arriving: Sequence[validate.Edge]) -> validate.Edge:
        self._check_arriving(arriving[0])
        return "analog", None


@brief
@dataclass(frozen=True)
class PopulationLayer(Firing):
    """Neurons on the analog values of another layer, such as a sum of currents.

    The fields are those of SpikingLayer; in_shape is the current's shape.
    """

    operation: ClassVar[str] = "population"
    what: ClassVar[str] = "a population without a projection of its own"
    name: str
    source: str
    in_shape: Shape
    neuron: NeuronEquation
    live: Array | None = None
    pattern: Array | None = None

    def __post_init__(self) -> None:
        validate.require_shape(f"{self.name}: current", self.in_shape)
        self._check_neurons()

    @property
    def sources(self) -> tuple[str, ...]:
        return (self.source,)

    @property
    def current_shape(self) -> Shape:
        return self.in_shape

    def edge_of(self, arriving: Sequence[validate.Edge]) -> validate.Edge:
        kind, _ = arriving[0]
        validate.require(
            kind == "analog", f"{self.name}: neurons take a current, but {self.source} is {kind}"
        )
        return "spike", 1
