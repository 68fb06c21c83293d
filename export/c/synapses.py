"""Synapses in C: each event adds its row of weights to the sums of its targets."""

import numpy as np

from soul_deploy.base import Array, dispatch
from soul_deploy.export.c.program import Value
from soul_deploy.export.c.rows import Rows, channel_last
from soul_deploy.export.c.source import FLOAT
from soul_deploy.export.c.writer import Writer
from soul_deploy.lowering import linear_operators


def bias_of(c: Writer, bias: Array, out: Value) -> str:
    channel = "n" if len(out.shape) == 1 else f"n % {out.channels}"
    number = c.constant("bias", bias, channel)
    return number if out.type == FLOAT else f"({out.type}){number}"


class Counting:
    """How SynOps onto live targets are counted; live: bool of the output's shape, None: all."""

    def __init__(self, c: Writer, live: Array | None) -> None:
        self.c, self.table = c, ""
        if live is not None:
            flat = live.reshape(-1)[channel_last(live.shape)]
            packed = np.packbits(flat, bitorder="little")
            self.table = c.table("live_targets", packed, "uint8_t", counting=True)

    def add(self, target: str, x: str, weight: str | None) -> None:
        """Count an addition, if the weight (None: always) is not 0."""
        conditions = [] if weight is None else [f"{weight} != 0"]
        if self.table:
            conditions.append(f"({self.table}[({target}) >> 3] >> (({target}) & 7) & 1) != 0")
        amount = f"{' && '.join(conditions)} ? {x} : 0" if conditions else x
        self.c.add(f"{self.c.macro}_COUNT(s, {amount});")


@dispatch.operation_table(linear_operators.Operator)
def write_synapses(
    operator: linear_operators.Operator, c: Writer, source: Value, out: Value, name: str,
    counting: Counting | None,
) -> None:  # fmt: skip
    raise write_synapses.unknown(operator)


@write_synapses.on(linear_operators.ConvOperator)
def _convolution(
    op: linear_operators.ConvOperator, c: Writer, source: Value, out: Value, name: str,
    counting: Counting | None,
) -> None:  # fmt: skip
    (kh, kw), (height, width) = op.weight.shape[2:], op.out_shape[1:]
    rows = c.program.rows[name]
    with c.each_event(source, "given") as x:
        c.place(source)
        _refuse_beyond(op, c)
        if (op.stride[1], op.dilation[1], op.groups) == (1, 1, 1) and not rows.compressed:
            _runs(op, c, out, rows, x, counting)
            return
        with c.windows((kh, kw), op.stride, op.padding, op.dilation, (height, width)):
            c.add(f"const int32_t r = (channel * {kh} + ky) * {kw} + {kw - 1} - kx;")
            first = f"(y * {width} + z) * {out.channels}"
            if op.groups > 1:
                inner, share = op.weight.shape[1], out.channels // op.groups
                first += f" + channel / {inner} * {share}"
            c.add(f"const int32_t first = {first};")
            add_row(c, rows, out.type, "current", x, counting)


def _runs(
    op: linear_operators.ConvOperator, c: Writer, out: Value, rows: Rows, x: str,
    counting: Counting | None,
) -> None:  # fmt: skip
    """At stride 1 the targets in a line lie side by side, and so do their rows: one loop."""
    (kh, kw), (height, width) = op.weight.shape[2:], op.out_shape[1:]
    c.add(f"const int32_t last = column + {op.padding[1]}, start = last - {kw - 1};")
    c.add("const int32_t begin = start < 0 ? 0 : start;")
    c.add(f"const int32_t end = last < {width} ? last + 1 : {width};")
    c.add(f"const int32_t count = (end - begin) * {out.channels};")
    with c.lines_reached(kh, op.stride[0], op.padding[0], op.dilation[0], height):
        c.add(f"const int32_t r = (channel * {kh} + ky) * {kw} + begin - start;")
        c.add(f"const int32_t first = (y * {width} + begin) * {out.channels};")
        add_row(c, rows, out.type, "current", x, counting, "count")


def _refuse_beyond(op: linear_operators.ConvOperator, c: Writer) -> None:
    """An incomplete last window of a pooling in front is left out."""
    sides = zip(("row", "column"), op.reach, op.in_shape[1:], strict=True)
    beyond = [f"{name} >= {reach}" for name, reach, side in sides if reach < side]
    if beyond:
        with c.block(f"if ({' || '.join(beyond)})"):
            c.add("continue;")


@write_synapses.on(linear_operators.MatrixOperator)
def _matrix(
    op: linear_operators.MatrixOperator, c: Writer, source: Value, out: Value, name: str,
    counting: Counting | None,
) -> None:  # fmt: skip
    with c.each_event(source, "given") as x:
        c.add("const int32_t r = n, first = 0;")
        add_row(c, c.program.rows[name], out.type, "current", x, counting)


def add_row(
    c: Writer, rows: Rows, sums: str, array: str, x: str, counting: Counting | None, run: str = ""
) -> None:
    """Add row r, times x, to the targets from `first` on; sums: their type. run: how many weights,
    where it is more than this row.
    """
    tables = {part: c.table(part, n, kind) for part, (kind, n) in rows.tables.items()}
    weights, cast = tables["weights"], f"({sums})" if sums.startswith("u") else ""
    c.add(f"{sums} *const target = {array} + first;")

    def addition(target: str, weight: str) -> None:
        product = weight if x == "1" else f"({x} * {weight})"
        c.add(f"target[{target}] = {cast}(target[{target}] + {cast}{product});")

    if not rows.compressed:
        width = rows.weight.shape[1]
        c.add(f"const {rows.type} *const weight = {weights} + r * {width};")
        with c.block(f"for (int32_t o = 0; o < {run or width}; o++)"):
            addition("o", "weight[o]")
            if counting:
                counting.add("first + o", x, "weight[o]")
        return
    starts, places = tables["starts"], tables["places"]
    c.add(f"const uint32_t end = {starts}[r + 1];")
    with c.block(f"for (uint32_t w = {starts}[r]; w < end; w++)"):
        c.add(f"const int32_t o = {places}[w];")
        addition("o", f"{weights}[w]")
        if counting:
            counting.add("first + o", x, None)
