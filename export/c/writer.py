"""The function of one node being written: how it reads values, loops over events, makes lists."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from soul_deploy import ir
from soul_deploy.base import Array
from soul_deploy.export.c.program import EVENTS, VALUES, Program, Value, shared
from soul_deploy.export.c.source import BYTES, FLOAT, Lines, Table, literal, type_of


@dataclass
class Writer(Lines):
    """The function of one node being written, and the tables that it reads."""

    program: Program = field(kw_only=True)
    ident: str = field(kw_only=True)
    tables: list[Table] = field(default_factory=list)

    @property
    def macro(self) -> str:
        return self.program.prefix.upper()

    def table(self, part: str, numbers: Array, kind: str = "", **how: bool) -> str:
        """A constant table of this node, of the type `kind`; its name in C."""
        name = f"{self.program.prefix}_{self.ident}_{part}"
        flat = np.asarray(numbers).reshape(-1)
        self.tables.append(Table(name, kind or type_of(flat), flat, **how))
        return name

    def constant(self, part: str, numbers: Array, channel: str) -> str:
        """A number that is one for all, or one for each channel, as an expression."""
        flat = np.asarray(numbers).reshape(-1)
        if (flat == flat[0]).all():
            return literal(flat[0])
        return f"{self.table(part, flat)}[{channel}]"

    def pointer(self, name: str, key: str, *, constant: bool = False) -> None:
        """Declare `name` for an array in the shared memory, where those in use do not overlap."""
        memory = self.program.memory
        kind = memory.types[key]
        const = "const " if constant else ""
        self.add(
            f"{const}{kind} *restrict const {name} = s->{shared(kind)} + {memory.offsets[key]};"
        )

    def open_value(self, value: Value, name: str, *, constant: bool = True) -> None:
        """Declare the arrays of a value, called after `name`."""
        if value.form == "current":
            self.pointer(name, value.ident, constant=constant)
        elif value.form == "events":
            self.pointer(f"{name}_list", f"{value.ident}.{EVENTS}", constant=constant)
            if value.type:
                self.pointer(f"{name}_values", f"{value.ident}.{VALUES}", constant=constant)

    def read(self, value: Value, name: str, n: str) -> str:
        """An element of the input or of a current, as int32 or float."""
        if value.form == "input":
            return f"s->input[{n}]"
        if value.type == FLOAT:
            return f"{name}[{n}]"
        return f"{self.program.prefix}_signed{BYTES[value.type] * 8}({name}[{n}])"

    @contextmanager
    def each_event(self, value: Value, name: str, number: int = 0) -> Iterator[str]:
        """A loop over what is not 0; n is its place, the text yielded its value."""
        if value.form == "events":
            with self.block(f"for (uint32_t e = 0; e < s->count_{value.ident}; e++)"):
                self.add(f"const int32_t n = (int32_t){name}_list[e];")
                if value.type:
                    self.add(f"const int32_t x = (int32_t){name}_values[e];")
                yield "x" if value.type else "1"
            return
        ones = value.form == "input" and not self.program.takes_maps
        ones = ones and self.program.range == (0, 1)
        with self.block(f"for (int32_t n = 0; n < {value.length}; n++)"):
            if not ones:
                self.add(f"const {value.number} x = {self.read(value, name, 'n')};")
            with self.block(f"if ({self.read(value, name, 'n') if ones else 'x'} == 0)"):
                self.add("continue;")
            yield "1" if ones else "x"

    def place(self, value: Value) -> None:
        """Declare channel, row and column of place n."""
        channels, _, width = value.shape
        self.add(
            f"const int32_t channel = n % {channels};",
            f"const int32_t row = n / {channels * width};",
            f"const int32_t column = n / {channels} % {width};",
        )

    @contextmanager
    def windows(
        self, kernel: ir.Pair, stride: ir.Pair, padding: ir.Pair, dilation: ir.Pair, out: ir.Pair
    ) -> Iterator[None]:
        """Loops over the outputs (y, x_out) whose windows hold (row, column), at ky, kx."""
        lines = self.lines_reached(kernel[0], stride[0], padding[0], dilation[0], out[0])
        with lines, self.block(f"for (int32_t kx = 0; kx < {kernel[1]}; kx++)"):
            self._seen("column", "z", "kx", (stride[1], padding[1], dilation[1], out[1]))
            yield

    @contextmanager
    def lines_reached(
        self, kernel: int, stride: int, padding: int, dilation: int, out: int
    ) -> Iterator[None]:
        """The loop over the output lines y whose windows hold the row, at ky."""
        with self.block(f"for (int32_t ky = 0; ky < {kernel}; ky++)"):
            self._seen("row", "y", "ky", (stride, padding, dilation, out))
            yield

    def _seen(self, given: str, found: str, k: str, along: tuple[int, int, int, int]) -> None:
        stride, padding, dilation, out = along
        shift = k if dilation == 1 else f"{k} * {dilation}"
        away = f"{given} + {padding} - {shift}" if padding else f"{given} - {shift}"
        if stride == 1:
            self.add(f"const int32_t {found} = {away};")
            condition = f"{found} < 0 || {found} >= {out}"
        else:
            self.add(f"const int32_t {found}_far = {away}, {found} = {found}_far / {stride};")
            condition = f"{found}_far < 0 || {found}_far % {stride} != 0 || {found} >= {out}"
        with self.block(f"if ({condition})"):
            self.add("continue;")

    def put_event(self, value: Value, n: str, x: str) -> None:
        """Append to the list `out`."""
        self.add(f"out_list[count] = ({value.index_type})({n});")
        if value.type:
            self.add(f"out_values[count] = ({value.type})({x});")
        self.add("count++;")

    def fill(self, array: str, length: int, number: str = "0") -> None:
        with self.block(f"for (int32_t n = 0; n < {length}; n++)"):
            self.add(f"{array}[n] = {number};")
