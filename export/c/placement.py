"""Working memory that values share: each is kept from the step that makes it to its last reader.

Arrays of one type lie in one C array, so that no byte is ever read as another type.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from soul_deploy.export.c.source import BYTES


@dataclass(frozen=True)
class Need:
    """An array of a type of C, in use from node `first` to node `last`."""

    key: str
    type: str
    length: int
    first: int
    last: int

    def meets(self, other: "Need") -> bool:
        """Whether both are in use at once."""
        return self.first <= other.last and other.first <= self.last


@dataclass(frozen=True)
class Memory:
    """Where each array starts in the shared one of its type; how long the shared ones are.

    offsets: by key. types: of each key's elements. lengths: by type, in elements.
    """

    offsets: Mapping[str, int]
    types: Mapping[str, str]
    lengths: Mapping[str, int]

    @property
    def bytes(self) -> int:
        return sum(length * BYTES[kind] for kind, length in self.lengths.items())


def place(needs: Iterable[Need]) -> Memory:
    """The largest arrays first, each at the lowest place that is free while it is in use."""
    offsets: dict[str, int] = {}
    lengths: dict[str, int] = {}
    placed: list[Need] = []
    ordered = sorted(needs, key=lambda need: (-need.length, need.first, need.key))
    for need in ordered:
        taken = sorted(
            (offsets[other.key], offsets[other.key] + other.length)
            for other in placed
            if other.type == need.type and other.meets(need)
        )
        start = 0
        for first, end in taken:
            if start + need.length <= first:
                break
            start = max(start, end)
        offsets[need.key] = start
        lengths[need.type] = max(lengths.get(need.type, 0), start + need.length)
        placed.append(need)
    return Memory(offsets, {need.key: need.type for need in placed}, lengths)
