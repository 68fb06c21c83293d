"""Partitions: equal shares of a layer's outputs, each computed by one thread.

Every sum of a partition has the order that it has when one thread computes the whole layer. So the
number of partitions changes no bit, and partitions need no locks.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Partition:
    """Share `index` of `count`."""

    index: int
    count: int

    def of(self, size: int) -> tuple[int, int]:
        """(first, last) of the share of `size` consecutive outputs, last excluded."""
        return size * self.index // self.count, size * (self.index + 1) // self.count


WHOLE = Partition(0, 1)


def partitions_of(count: int) -> tuple[Partition, ...]:
    """All shares."""
    return tuple(Partition(i, count) for i in range(count))


@dataclass(frozen=True)
class Call:
    """One kernel call."""

    kernel: Callable[..., Any]
    arguments: tuple[Any, ...]


Region = tuple[tuple[Call, ...], ...]
"""A region of kernel launches: for each partition its kernel calls, in order.

Threads run the partitions of one region at the same time and wait for each other at its end."""


def run_calls(calls: tuple[Call, ...]) -> None:
    """Execute in order."""
    for call in calls:
        call.kernel(*call.arguments)
