"""What any layer says of itself; layers with synapses or neurons, and every rule that they obey.

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
from soul_deploy.runtime.equations import Equation
from soul_deploy.runtime.format import validate
from soul_deploy.runtime.format.synapses import Synapses
from soul_deploy.runtime.format.validate import Edge, EdgeKind, Shape


@dataclass(frozen=True)
class Layer:
    """A layer of an event network; the family of the tables over layers.

    operation  what files call the layer
    what       the layer's kind, for messages
    stateful   whether the layer gives other values at each step of a constant input
    """

    operation: ClassVar[str]
    what: ClassVar[str]
    stateful: ClassVar[bool] = False
    name: str

    if TYPE_CHECKING:  # a field of one class is a property of another

        @property
        def sources(self) -> tuple[str, ...]:
            """The layers (or the input) whose outputs arrive."""

        @property
        def in_shape(self) -> Shape:
            """Shape of what arrives."""

        @property
        def out_shape(self) -> Shape:
            """Shape of what leaves."""

        @property
        def pattern(self) -> Array | None:
            """Spikes of generated channels, as at SpikingLayer; None: there are none."""

    else:
        pattern = None

    @property
    def names(self) -> tuple[str, ...]:
        """What the layer may be called by."""
        return (self.name,)

    @property
    def live_neurons(self) -> Array | None:
        """bool (n,), channel-last: which neurons exist; None: all, or there are none."""
        return None

    @property
    def announced(self) -> dict[str, int | None]:
        """Counts by which a file says how many neurons are live and channels generated."""
        return {}

    def edge_of(self, arriving: Sequence[Edge]) -> Edge:
        """What leaves, from what arrives, one edge for each source. Raises FileFormatError."""
        raise NotImplementedError

    def check_steps(self, time_steps: int, *, fixed: bool) -> None:
        """Raise FileFormatError unless the layer runs in a network of T = `time_steps`.

        fixed: whether the network is valid for this T only.
        """

    def check_source(self, source: "Layer") -> None:
        """Raise FileFormatError unless the layer's content fits its source's."""


class OneSource(Layer):
    """A layer that takes what `source` gives: the input or one layer."""

    source: str

    @property
    def sources(self) -> tuple[str, ...]:
        return (self.source,)


class MapLayer(Layer):
    """A layer without synapses and neurons: maps to a map, step by step."""


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
        require(
            self.kind in ("dense", "sparse", "explicit") and min(self.bytes, self.additions) >= 0,
            f"alternative {self.kind!r} of {self.bytes} bytes and {self.additions} additions",
        )


def live_count(live: Array | None) -> dict[str, int | None]:
    """What a file says of a live mask."""
    return {"live": None if live is None else int(live.sum())}


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

    def __post_init__(self) -> None:
        self._check_synapses()
        self._check_neurons()
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

    def __post_init__(self) -> None:
        self._check_synapses()
        size = math.prod(self.out_shape)
        validate.require_array(f"{self.name}: live", self.live, np.bool_, (size,))
        self._check_targets()

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
        kind, _ = arriving[0]
        require(
            kind == "analog", f"{self.name}: neurons take a current, but {self.source} is {kind}"
        )
        return self.sends
