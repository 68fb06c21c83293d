"""What a network takes: real numbers, or the integers of a fixed-point network."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from soul_deploy.base.errors import UnsupportedGraphError, UsageError
from soul_deploy.ir import neurons, node


@dataclass(frozen=True)
class Input(node.Node):
    """The network's input: a static image (B, C, H, W) or a sequence (T, B, C, H, W)."""

    op: ClassVar[str] = "input"
    arity: ClassVar[int | None] = 0
    gives: ClassVar[neurons.Edge | None] = neurons.ANALOG
    shape: node.Shape

    def output_shape(self, inputs: Sequence[node.Shape]) -> node.Shape:
        return self.shape


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


def require_one_dtype(nodes: Sequence[node.Node], *, integers: bool) -> None:
    """Raise UnsupportedGraphError for a node of real numbers in a fixed-point network, and the
    other way round."""
    for item in nodes[1:]:
        if item.integers is not None and item.integers != integers:
            own, others = ("real numbers", "integers")[:: -1 if item.integers else 1]
            raise UnsupportedGraphError(
                f"{item.name}: {item.op} with {own} in a network of {others}"
            )
