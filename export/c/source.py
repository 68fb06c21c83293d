"""Lines of C, with their indentation; constant tables."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from soul_deploy.base import Array, brief

INDENT = "    "
PER_LINE = 96
FLOAT = "float"
BYTES = {
    "int8_t": 1, "int16_t": 2, "int32_t": 4, "uint8_t": 1, "uint16_t": 2, "uint32_t": 4, FLOAT: 4
}  # fmt: skip
"""Of the types that the program uses, by their names in C."""


@dataclass
class Lines:
    """C being written."""

    lines: list[str] = field(default_factory=list)
    depth: int = 0

    def add(self, *texts: str) -> None:
        self.lines += [f"{INDENT * self.depth}{text}" if text else "" for text in texts]

    @contextmanager
    def block(self, head: str, end: str = "}") -> Iterator[None]:
        self.add(f"{head} {{")
        self.depth += 1
        yield
        self.depth -= 1
        self.add(end)

    def text(self) -> str:
        return "\n".join(self.lines) + "\n"


@brief
@dataclass(frozen=True)
class Table:
    """Constant numbers of a type of C. counting: they are only there where SynOps are counted."""

    name: str
    type: str
    numbers: Array
    counting: bool = False

    @property
    def bytes(self) -> int:
        return 0 if self.counting else len(self.numbers) * BYTES[self.type]

    @property
    def declared(self) -> str:
        return f"const {self.type} {self.name}[{max(len(self.numbers), 1)}]"

    def defined(self) -> str:
        numbers = self.numbers if len(self.numbers) else [0]
        return f"{self.declared} = {{\n{numbers_text(numbers)}\n}};\n"


def unsigned_type(bound: int) -> str:
    """The smallest that holds 0 to `bound`."""
    return next(f"uint{b}_t" for b in (8, 16, 32) if bound < 1 << b)


def type_of(numbers: Array) -> str:
    """float, or the smallest signed type that holds all of them."""
    if numbers.dtype.kind == "f":
        return FLOAT
    low, high = int(numbers.min(initial=0)), int(numbers.max(initial=0))
    return next(f"int{b}_t" for b in (8, 16, 32) if -(1 << (b - 1)) <= low and high < 1 << (b - 1))


def literal(number: Any) -> str:
    """A number in C. float32: the shortest decimals that are read as the same bits."""
    if isinstance(number, np.floating):
        text = str(np.float32(number))
        return f"{text}f" if "." in text or "e" in text else f"{text}.0f"
    return "(-2147483647 - 1)" if number == -(1 << 31) else str(int(number))


def numbers_text(numbers: Iterable[Any]) -> str:
    """Numbers in lines of at most PER_LINE characters. The least int32 has no literal in C."""
    lines, line = [], INDENT
    for number in numbers:
        text = literal(number)
        if len(line) + len(text) > PER_LINE:
            lines.append(line.rstrip())
            line = INDENT
        line += f"{text}, "
    return "\n".join([*lines, line.rstrip().rstrip(",")])
