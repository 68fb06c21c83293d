"""What a network takes: real numbers, events, or the integers of a fixed-point network.

Inputs of the kinds counts and spikes are events (base/pixel_rule.py): whole numbers from 0 to a
bound, which travel on a graded or a spike edge. Model files of before have an `Input` of real
numbers for these kinds too, and keep it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from soul_deploy.base.errors import UnsupportedGraphError, UsageError
from soul_deploy.base.pixel_rule import EVENT_KINDS, MOST_COUNT, InputKind
from soul_deploy.ir import neurons, node


@dataclass(frozen=True)
class Input(node.Node):
    """The network's input: a static image (B, C, H, W) or a sequence (T, B, C, H, W)."""

    op: ClassVar[str] = "input"
    arity: ClassVar[int | None] = 0
    gives: ClassVar[neurons.Edge | None] = neurons.ANALOG
    shape: node.Shape

    @property
    def events(self) -> int | None:
        """The largest value of an event; None: what comes in is no events."""
        return None

    def output_shape(self, inputs: Sequence[node.Shape]) -> node.Shape:
        return self.shape


@dataclass(frozen=True)
class EventInput(Input):
    """Events: whole numbers from 0 to `bound`, most of them 0. 1: spikes, more: counts."""

    op: ClassVar[str] = "event_input"
    bound: int

    @property
    def events(self) -> int:
        return self.bound

    def output_shape(self, inputs: Sequence[node.Shape]) -> node.Shape:
        if not 1 <= self.bound <= MOST_COUNT:
            raise UsageError(f"{self.name}: events up to {self.bound}; valid: 1 to {MOST_COUNT}")
        return self.shape

    def output_edge(self, inputs: Sequence[neurons.Edge]) -> neurons.Edge:
        return event_edge(self.bound)

    def describe(self) -> str:
        return "spikes" if self.bound == 1 else f"counts, 0 to {self.bound}"


@dataclass(frozen=True)
class IntegerInput(Input):
    """The input of a fixed-point network (docs/fixed-point.md): whole numbers from low to high.

    zero  what is taken off the pixels of each channel; empty: nothing
    """

    op: ClassVar[str] = "integer_input"
    low: int
    high: int
    zero: tuple[int, ...] = ()

    def output_shape(self, inputs: Sequence[node.Shape]) -> node.Shape:
        if not -(1 << 15) <= self.low <= 0 < self.high < 1 << 15:
            raise UsageError(
                f"{self.name}: integers from {self.low} to {self.high}; int16, 0 in it"
            )
        if len(self.zero) not in (0, self.shape[0]) or any(not 0 <= z <= 255 for z in self.zero):
            raise UsageError(f"{self.name}: zeros {self.zero} for an input of {self.shape}")
        return self.shape

    def output_edge(self, inputs: Sequence[neurons.Edge]) -> neurons.Edge:
        return neurons.Edge("analog", self.high, self.low)

    def describe(self) -> str:
        return f"integers from {self.low} to {self.high}"


@dataclass(frozen=True)
class IntegerEventInput(IntegerInput):
    """The events of a fixed-point network: as of EventInput, whose bound is `high`."""

    op: ClassVar[str] = "integer_event_input"

    @property
    def events(self) -> int:
        return self.high

    def output_shape(self, inputs: Sequence[node.Shape]) -> node.Shape:
        if self.low or self.zero or not 1 <= self.high <= MOST_COUNT:
            raise UsageError(
                f"{self.name}: events from {self.low} to {self.high}, zeros {self.zero}; valid: "
                f"from 0 to at most {MOST_COUNT}, no zeros"
            )
        return super().output_shape(inputs)

    def output_edge(self, inputs: Sequence[neurons.Edge]) -> neurons.Edge:
        return event_edge(self.high)


def event_edge(bound: int) -> neurons.Edge:
    """What events from 0 to `bound` travel on."""
    return neurons.SPIKE if bound == 1 else neurons.Edge("graded", bound)


def of_kind(given: Input, kind: InputKind) -> Input:
    """The input of a network that takes `kind`: events where these are, and there it has none yet.
    Counts are bounded by MOST_COUNT.
    """
    if kind not in EVENT_KINDS or type(given) is not Input:
        return given
    return EventInput(given.name, (), given.shape, 1 if kind == "spikes" else MOST_COUNT)


def require_one_dtype(nodes: Sequence[node.Node], *, integers: bool) -> None:
    """Raise UnsupportedGraphError for a node of real numbers in a fixed-point network, and the
    other way round."""
    for item in nodes[1:]:
        if item.integers is not None and item.integers != integers:
            own, others = ("real numbers", "integers")[:: -1 if item.integers else 1]
            raise UnsupportedGraphError(
                f"{item.name}: {item.op} with {own} in a network of {others}"
            )
