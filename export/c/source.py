"""Lines of C, with their indentation; constant tables."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from soul_deploy.base import Array, brief

INDENT = "    "
PER_LINE = 96


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
    """Constant numbers; bits: of each, negative where they have a sign. counting: they are only
    there where SynOps are counted.
    """

    name: str
    bits: int
    numbers: Array
    counting: bool = False

    @property
    def type(self) -> str:
        return c_type(self.bits)

    @property
    def bytes(self) -> int:
        return 0 if self.counting else len(self.numbers) * abs(self.bits) // 8

    @property
    def declared(self) -> str:
        return f"const {self.type} {self.name}[{max(len(self.numbers), 1)}]"

    def defined(self) -> str:
        return f"{self.declared} = {{\n{numbers_text(self.numbers.tolist() or [0])}\n}};\n"


def c_type(bits: int) -> str:
    return f"int{-bits}_t" if bits < 0 else f"uint{bits}_t"


def numbers_text(numbers: Sequence[int]) -> str:
    """Numbers in lines of at most PER_LINE characters. The least int32 has no literal in C."""
    lines, line = [], INDENT
    for number in numbers:
        text = "(-2147483647 - 1)" if number == -(1 << 31) else str(number)
        if len(line) + len(text) > PER_LINE:
            lines.append(line.rstrip())
            line = INDENT
        line += f"{text}, "
    return "\n".join([*lines, line.rstrip().rstrip(",")])
