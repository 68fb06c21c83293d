"""The scores in C: of a step, and what they become with those of the steps before."""

import numpy as np

from soul_deploy import ir
from soul_deploy.export.c.program import Value
from soul_deploy.export.c.source import FLOAT, literal
from soul_deploy.export.c.synapses import Counting, add_row
from soul_deploy.export.c.writer import Writer
from soul_deploy.lowering.linear_operators import ReadoutOperator


def write_readout(node: ir.Readout, c: Writer) -> None:
    """The body of the readout's function. Integers take their bias step by step, float32 at last,
    as every engine does (docs/architecture.md, Time).
    """
    operator = c.program.lowered.readout
    source = c.program.values[c.program.sources(node)[0]]
    kept = "s->step_scores" if c.program.keeps_step_scores else "s->scores"
    bias = None if c.program.floats else c.program.bias(node)
    added = "" if bias is None else c.constant("bias", bias, "k")
    c.open_value(source, "given")
    c.add("")
    sums = node.over_time in ("mean", "sum")
    if added or not sums:
        with c.block(f"for (int32_t k = 0; k < {node.classes}; k++)"):
            c.add(f"{kept}[k] {'+=' if sums else '='} {added or '0'};")
    only_last = node.over_time == "last" and operator.weight is not None
    if only_last:
        _counting_lines(c, *FORGET_HEAD)
    _weigh(node, operator, c, source, kept)
    if only_last:
        _counting_lines(c, "s->head_synops = s->synops - before;")
    if c.program.keeps_step_scores:
        _finish(node, operator, c)


def _weigh(node: ir.Readout, operator: ReadoutOperator, c: Writer, source: Value, to: str) -> None:
    with c.each_event(source, "given") as x:
        if operator.weight is None:
            place = (
                f"n % {source.channels} / {node.votes}" if operator.space else f"n / {node.votes}"
            )
            c.add(f"{to}[{place}] += {x};")
        else:
            r = f"n % {source.channels}" if operator.space else "n"
            c.add(f"const int32_t r = {r}, first = 0;")
            kind = FLOAT if c.program.floats else "int32_t"
            add_row(c, c.program.rows[node.name], kind, to, x, Counting(c, None))


def _finish(node: ir.Readout, operator: ReadoutOperator, c: Writer) -> None:
    """Scores of the step's, or of the sums' until now: scale, bias, maximum."""
    found = "s->step_scores[k]"
    with c.block(f"for (int32_t k = 0; k < {node.classes}; k++)"):
        if c.program.floats:
            bias = c.program.bias(node)
            times = "(float)(s->steps + 1) * " if node.over_time == "sum" else ""
            added = "" if bias is None else f" + {times}{c.constant('bias', bias, 'k')}"
            c.add(f"const float score = {found} * {literal(np.float32(operator.scale))}{added};")
            found = "score"
        if node.over_time == "max":
            with c.block(f"if (s->steps == 0 || {found} > s->scores[k])"):
                c.add(f"s->scores[k] = {found};")
        else:
            c.add(f"s->scores[k] = {found};")


FORGET_HEAD = (
    "/* Of the head, the last step's operations are counted: those of the step before go. */",
    "const uint64_t before = s->synops - (s->steps > 0 ? s->head_synops : 0);",
    "s->synops = before;",
)


def _counting_lines(c: Writer, *lines: str) -> None:
    c.lines.append(f"#ifdef {c.macro}_COUNT_SYNOPS")
    c.add(*lines)
    c.lines.append("#endif")
