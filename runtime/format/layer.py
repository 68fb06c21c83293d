"""What any layer of an event network says of itself; the classes stand in the modules beside."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from soul_deploy.base import Array
from soul_deploy.runtime.format.validate import Edge, Shape


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
            raise NotImplementedError

        @property
        def in_shape(self) -> Shape:
            """Shape of what arrives."""
            raise NotImplementedError

        @property
        def out_shape(self) -> Shape:
            """Shape of what leaves."""
            raise NotImplementedError

        @property
        def pattern(self) -> Array | None:
            """Spikes of generated channels, as at SpikingLayer; None: there are none."""
            raise NotImplementedError

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

    def edge_of(self, arriving: Sequence[Edge]) -> Edge:
        """What leaves, from what arrives, one edge for each source. Raises FileFormatError."""
        raise NotImplementedError

    def check_steps(self, time_steps: int, *, fixed: bool) -> None:
        """Raise FileFormatError unless the layer runs in a network of T = `time_steps`.

        fixed: whether the network is valid for this T only.
        """

    def check_source(self, source: "Layer") -> None:
        """Raise FileFormatError unless the layer's content fits its source's."""


class MapLayer(Layer):
    """A layer without synapses and neurons: maps to a map, step by step."""
