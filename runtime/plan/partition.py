"""Equal shares of a layer, each owned by one thread.

A part computes its own outputs and nothing else, with every sum in the same order as when the whole
layer is done at once. So the number of parts changes no bit, and parts need no locks.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Part:
    """Share `index` of `count`."""

    index: int
    count: int

    def of(self, size: int) -> tuple[int, int]:
        """(first, last) of the share of `size` things that stand in a row."""
        return size * self.index // self.count, size * (self.index + 1) // self.count


WHOLE = Part(0, 1)


def parts_of(count: int) -> tuple[Part, ...]:
    """All shares."""
    return tuple(Part(i, count) for i in range(count))


@dataclass(frozen=True)
class Call:
    """One kernel call."""

    kernel: Callable[..., Any]
    arguments: tuple[Any, ...]


Stage = tuple[tuple[Call, ...], ...]
"""What may run at the same time: calls by part, each part's in order."""


def run_calls(calls: tuple[Call, ...]) -> None:
    """Execute in order."""
    for call in calls:
        call.kernel(*call.arguments)
