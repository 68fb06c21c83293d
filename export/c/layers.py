"""The layer loops in C: one function of the program for each node.

Sums are unsigned, so that they may wrap around on their way (docs/fixed-point.md); nothing here is
left to the compiler: no right shift of a negative number, no conversion that does not fit.
"""

import math

import numpy as np

from soul_deploy import ir
from soul_deploy.base import dispatch, errors
from soul_deploy.export.c import program
from soul_deploy.export.c.program import POOL_MAP, Value
from soul_deploy.export.c.rows import channel_last
from soul_deploy.export.c.synapses import Counting, add_row, bias_of, write_synapses
from soul_deploy.export.c.writer import Writer
from soul_deploy.lowering import fan_out, linear_operators


@dispatch.operation_table(ir.Node)
def write_layer(node: ir.Node, c: Writer) -> None:
    """The body of a node's function."""
    raise ir.no_entry(node, "C export")


def _not_alone(node: ir.Node) -> errors.UnsupportedGraphError:
    return errors.UnsupportedGraphError(
        f"{node.name}: {node.op} has no loop of its own in C; a projection must follow it"
    )


write_layer.refuse(ir.Input, ir.AvgPool, ir.Flatten, error=_not_alone)
write_layer.refuse(
    *(ir.AdaptiveAvgPool, ir.Scale, ir.ChannelNorm),
    error=lambda node: errors.UnsupportedGraphError(
        f"{node.name}: {node.op} computes with real numbers, which C has none of"
    ),
)


@write_layer.on(ir.Projection)
def _projection(node: ir.Projection, c: Writer) -> None:
    """Each event adds its row of weights to the currents of its targets."""
    values, operator = c.program.values, c.program.operator(node)
    source, out = values[c.program.sources(node)[0]], values[node.name]
    assert isinstance(operator, linear_operators.Operator)
    c.open_value(source, "given")
    c.open_value(out, "current", constant=False)
    c.add("")
    bias = c.program.bias(node)
    number = "0" if bias is None else bias_of(c, bias, out)
    c.fill("current", out.length, number)
    live = fan_out.live_targets(c.program.graph, c.program.model.neuron_masks, node.name)
    counted = c.program.graph.edges[source.node].kind != "analog"
    write_synapses(operator, c, source, out, node.name, Counting(c, live) if counted else None)


@write_layer.on(ir.Population)
def _population(node: ir.Population, c: Writer) -> None:
    """Charge, fire, reset of every neuron; those that fire go into the list."""
    values, equation = c.program.values, c.program.equation(node)
    current, out = values[node.inputs[0]], values[node.name]
    c.open_value(current, "current")
    c.open_value(out, "out", constant=False)
    c.add("uint32_t count = 0;", "int32_t n = 0;", "")
    positions, channels = math.prod(current.shape[1:]), current.channels
    alive = _alive(node, c)
    with c.block(f"for (int32_t position = 0; position < {positions}; position++)"):
        with c.block(f"for (int32_t channel = 0; channel < {channels}; channel++, n++)"):
            _neuron(node, c, current, out, alive)
        if node.generated:
            _generated(node, c, out, alive)
    c.add(f"s->count_{out.ident} = count;")
    assert equation.start == (0,)


def _alive(node: ir.Population, c: Writer) -> str:
    """The table of unmasked neurons, a bit each; empty: all are."""
    mask = c.program.model.neuron_masks.get(node.name)
    if mask is None or mask.all():
        return ""
    flat = mask.reshape(-1)[channel_last(mask.shape)]
    return c.table("alive", np.packbits(flat, bitorder="little"), 8)


def _neuron(node: ir.Population, c: Writer, current: Value, out: Value, alive: str) -> None:
    equation, u = c.program.equation(node), f"s->u_{out.ident}[n]"
    bits = program.membrane_bits(equation)
    sign = ">" if equation.fire == "gt" else ">="
    threshold = c.constant("threshold", equation.threshold, "channel")
    subtract = c.constant("subtract", equation.subtract, "channel")
    c.add(f"const int32_t u = {u};")
    c.add(f"int32_t h = {_leaked(c, equation.multiplier, equation.shift)};")
    if equation.reset == "late":
        c.add("", f"if (u {sign} {threshold}) {{", f"    h -= {subtract};", "}")
    c.add(f"h += {c.read(current, 'current', 'n')};")
    c.add(f"h = {c.program.prefix}_clamp(h, {equation.lowest}, {equation.highest});")
    place = "n"
    if node.generated:
        place = f"position * {out.channels} + channel"
    with c.block(f"if (h {sign} {threshold})", "}"):
        _fire(node, c, out, alive, place)
        if equation.reset == "hard":
            c.add("h = 0;")
        elif equation.reset == "soft":
            c.add(f"h -= {subtract};")
    c.add(f"{u} = (int{bits}_t)h;")


def _leaked(c: Writer, multiplier: int, shift: int) -> str:
    if (multiplier, shift) == (1, 0):
        return "u"
    product = "u" if multiplier == 1 else f"u * {multiplier}"
    return f"{c.program.prefix}_floor_shift({product}, {shift})"


def _fire(node: ir.Population, c: Writer, out: Value, alive: str, place: str) -> None:
    number = [n.name for n in c.program.graph.populations].index(node.name)

    def put() -> None:
        c.add(f"{c.macro}_SPIKE({number}, {place});")
        c.put_event(out, place, "1")

    if not alive:
        put()
        return
    c.add(f"const int32_t place = {place};") if place != "n" else None
    bit = "place" if place != "n" else "n"
    with c.block(f"if (({alive}[{bit} >> 3] >> ({bit} & 7) & 1) != 0)"):
        put()


def _generated(node: ir.Population, c: Writer, out: Value, alive: str) -> None:
    """Channels that fire a stored pattern whatever comes in."""
    pattern = c.program.lowered.patterns[node.name] != 0
    table = c.table("pattern", pattern.astype(np.uint8), 8)
    first = out.channels - node.generated
    with c.block(f"for (int32_t channel = 0; channel < {node.generated}; channel++)"):
        index = f"(int32_t)s->steps * {node.generated} + channel"
        with c.block(f"if ({table}[{index}] != 0)"):
            place = f"position * {out.channels} + {first} + channel"
            _fire(node, c, out, alive, place)


@write_layer.on(ir.MaxPool)
def _max_pool(node: ir.MaxPool, c: Writer) -> None:
    values = c.program.values
    source, out = values[node.inputs[0]], values[node.name]
    c.open_value(source, "given")
    if out.form == "current":
        _pool_currents(node, c, source, out)
        return
    _open_gathered(c, out)
    with c.each_event(source, "given") as x:
        c.place(source)
        sides = out.shape[1], out.shape[2]
        with c.windows(node.kernel, node.stride, node.padding, (1, 1), sides):
            c.add(f"const int32_t target = (y * {out.shape[2]} + z) * {out.channels} + channel;")
            if out.bits == 0:
                c.add("map[target] = 1;")
            else:
                with c.block(f"if (map[target] < (uint{out.bits}_t){x})"):
                    c.add(f"map[target] = (uint{out.bits}_t){x};")
    _list_map(c, out)


def _open_gathered(c: Writer, out: Value) -> None:
    """Declare the list and the map that it is made from, which starts at 0."""
    c.open_value(out, "out", constant=False)
    c.pointer("map", f"{out.ident}.{POOL_MAP}")
    c.add("uint32_t count = 0;", "")
    c.fill("map", out.length)


def _list_map(c: Writer, out: Value) -> None:
    with c.block(f"for (int32_t n = 0; n < {out.length}; n++)"), c.block("if (map[n] != 0)"):
        c.put_event(out, "n", "map[n]")
    c.add(f"s->count_{out.ident} = count;")


def _pool_currents(node: ir.MaxPool, c: Writer, source: Value, out: Value) -> None:
    """The largest of each window, of the places inside the map."""
    c.open_value(out, "current", constant=False)
    channels, rows, columns = out.shape
    c.add("int32_t n = 0;", "")
    lines = c.block(f"for (int32_t y = 0; y < {rows}; y++)")
    places = c.block(f"for (int32_t z = 0; z < {columns}; z++)")
    each = c.block(f"for (int32_t channel = 0; channel < {channels}; channel++, n++)")
    with lines, places, each:
        c.add("int32_t best = 0;", "int inside = 0;")
        _window_maximum(node, c, source)
        c.add(f"current[n] = (uint{out.bits}_t)best;")


def _window_maximum(node: ir.MaxPool, c: Writer, source: Value) -> None:
    channels, height, width = source.shape
    with c.block(f"for (int32_t ky = 0; ky < {node.kernel[0]}; ky++)"):
        c.add(f"const int32_t row = y * {node.stride[0]} + ky - {node.padding[0]};")
        with c.block(f"for (int32_t kx = 0; kx < {node.kernel[1]}; kx++)"):
            c.add(f"const int32_t column = z * {node.stride[1]} + kx - {node.padding[1]};")
            with c.block(f"if (row < 0 || row >= {height} || column < 0 || column >= {width})"):
                c.add("continue;")
            place = f"(row * {width} + column) * {channels} + channel"
            c.add(f"const int32_t value = {c.read(source, 'given', place)};")
            with c.block("if (!inside || value > best)"):
                c.add("best = value;")
            c.add("inside = 1;")


@write_layer.on(ir.Merge)
def _merge(node: ir.Merge, c: Writer) -> None:
    values = c.program.values
    given, out = [values[name] for name in node.inputs], values[node.name]
    for place, value in enumerate(given):
        c.open_value(value, f"given{place}")
    if out.form == "current":
        c.open_value(out, "current", constant=False)
        c.add("")
        c.fill("current", out.length)
        for place, value in enumerate(given):
            _add_branch(c, value, f"given{place}", f"(uint{out.bits}_t)", "current")
        return
    _open_gathered(c, out)
    if node.function == "iand":
        _add_branch(c, given[0], "given0", "(uint8_t)", "map")
        with c.each_event(given[1], "given1"):
            c.add("map[n] = 0;")
    else:
        for place, value in enumerate(given):
            _add_branch(c, value, f"given{place}", f"(uint{out.bits or 8}_t)", "map")
    if node.function == "and":
        with c.block(f"for (int32_t n = 0; n < {out.length}; n++)"):
            c.add(f"map[n] = map[n] == {len(given)};")
    _list_map(c, out)


def _add_branch(c: Writer, value: Value, name: str, cast: str, array: str) -> None:
    with c.each_event(value, name) as x:
        c.add(f"{array}[n] = {cast}({array}[n] + {cast}{x});")


@write_layer.on(ir.Scatter)
def _scatter(node: ir.Scatter, c: Writer) -> None:
    values = c.program.values
    source, out = values[node.inputs[0]], values[node.name]
    channels = c.table("channels", np.array(node.index), program.unsigned_bits(node.channels))
    c.open_value(source, "given")
    target = f"n / {source.channels} * {out.channels} + {channels}[n % {source.channels}]"
    if out.form == "current":
        c.open_value(out, "current", constant=False)
        c.add("")
        c.fill("current", out.length)
        with c.each_event(source, "given") as x:
            c.add(f"current[{target}] = (uint{out.bits}_t){x};")
        return
    c.open_value(out, "out", constant=False)
    c.add("uint32_t count = 0;", "")
    with c.each_event(source, "given") as x:
        c.put_event(out, target, x)
    c.add(f"s->count_{out.ident} = count;")


@write_layer.on(ir.Readout)
def _readout(node: ir.Readout, c: Writer) -> None:
    """The scores of this step, and what they become with those of the steps before."""
    operator = c.program.lowered.operator(node.name).operator.readout
    assert operator is not None
    source = c.program.values[c.program.sources(node)[0]]
    bias, kept = c.program.bias(node), "s->step_scores" if node.over_time == "max" else "s->scores"
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
    with c.each_event(source, "given") as x:
        if operator.weight is None:
            by = source.channels if operator.space else source.length
            place = f"n % {by} / {node.votes}" if operator.space else f"n / {node.votes}"
            c.add(f"{kept}[{place}] += {x};")
        else:
            r = f"n % {source.channels}" if operator.space else "n"
            c.add(f"const int32_t r = {r}, first = 0;")
            add_row(c, c.program.rows[node.name], "int32_t", kept, x, Counting(c, None))
    if only_last:
        _counting_lines(c, "s->head_synops = s->synops - before;")
    if node.over_time == "max":
        classes = c.block(f"for (int32_t k = 0; k < {node.classes}; k++)")
        with classes, c.block("if (s->steps == 0 || s->step_scores[k] > s->scores[k])"):
            c.add("s->scores[k] = s->step_scores[k];")


FORGET_HEAD = (
    "/* Of the head, the last step's operations are counted: those of the step before go. */",
    "const uint64_t before = s->synops - (s->steps > 0 ? s->head_synops : 0);",
    "s->synops = before;",
)


def _counting_lines(c: Writer, *lines: str) -> None:
    c.lines.append(f"#ifdef {c.macro}_COUNT_SYNOPS")
    c.add(*lines)
    c.lines.append("#endif")
