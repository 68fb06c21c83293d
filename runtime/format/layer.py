"""What any layer of an event network says of itself; the family of the tables over layers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from soul_deploy.base import Array
from soul_deploy.base.errors import require
from soul_deploy.runtime.format.validate import Edge, Shape

if TYPE_CHECKING:
    from soul_deploy.runtime.format.layers import CurrentLayer


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

        @property
        def feedback(self) -> "CurrentLayer | None":
            """The synapses from its neurons to themselves; None: there are none."""

    else:
        pattern = feedback = None

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
