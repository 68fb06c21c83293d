"""The layer loops in C: one function of the program for each node.

Sums of integers are unsigned, so that they may wrap around on their way (docs/fixed-point.md);
nothing here is left to the compiler: no right shift of a negative number, no conversion that does
not fit.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from soul_deploy import ir
from soul_deploy.base import dispatch, errors
from soul_deploy.export.c.neurons import write_population
from soul_deploy.export.c.program import POOL_MAP, Value
from soul_deploy.export.c.readout import write_readout
from soul_deploy.export.c.source import FLOAT, unsigned_type
from soul_deploy.export.c.synapses import Counting, bias_of, write_synapses
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
        f"{node.name}: {node.op} multiplies what no projection weighs, which C has no loop for"
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


write_layer.on(ir.Population)(write_population)


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
            if not out.type:
                c.add("map[target] = 1;")
            else:
                with c.block(f"if (map[target] < ({out.type}){x})"):
                    c.add(f"map[target] = ({out.type}){x};")
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
    """The largest of each window, of the places inside the map: place by place, all channels."""
    c.open_value(out, "current", constant=False)
    channels, rows, columns = out.shape
    c.add("")
    lines = c.block(f"for (int32_t y = 0; y < {rows}; y++)")
    places = c.block(f"for (int32_t z = 0; z < {columns}; z++)")
    with lines, places:
        c.add(f"{out.type} *const best = current + (y * {columns} + z) * {channels};")
        each = f"for (int32_t channel = 0; channel < {channels}; channel++)"
        with c.block(each):
            c.add(f"best[channel] = {LOWEST[out.type]};")
        with _window(node, c, source):
            place = f"given + (row * {source.shape[2]} + column) * {channels}"
            c.add(f"const {source.type} *const seen = {place};")
            with c.block(each):
                ours, theirs = (_ordered(out, f"{name}[channel]") for name in ("seen", "best"))
                c.add(f"best[channel] = {ours} > {theirs} ? seen[channel] : best[channel];")


LOWEST = {"uint16_t": "0x8000u", "uint32_t": "0x80000000u", FLOAT: "-3.4028235e+38f"}


def _ordered(current: Value, number: str) -> str:
    """Of sums, whose signed integers are stored unsigned: a number in the same order."""
    return number if current.type == FLOAT else f"({number} ^ {LOWEST[current.type]})"


@contextmanager
def _window(node: ir.MaxPool, c: Writer, source: Value) -> Iterator[None]:
    """Loops over the places (row, column) of the window at (y, z) that are inside the map."""
    with c.block(f"for (int32_t ky = 0; ky < {node.kernel[0]}; ky++)"):
        c.add(f"const int32_t row = y * {node.stride[0]} + ky - {node.padding[0]};")
        with c.block(f"for (int32_t kx = 0; kx < {node.kernel[1]}; kx++)"):
            c.add(f"const int32_t column = z * {node.stride[1]} + kx - {node.padding[1]};")
            if any(node.padding):
                height, width = source.shape[1:]
                outside = f"row < 0 || row >= {height} || column < 0 || column >= {width}"
                with c.block(f"if ({outside})"):
                    c.add("continue;")
            yield


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
            _add_branch(c, value, f"given{place}", _cast(out), "current")
        return
    _open_gathered(c, out)
    if node.function == "iand":
        _add_branch(c, given[0], "given0", "(uint8_t)", "map")
        with c.each_event(given[1], "given1"):
            c.add("map[n] = 0;")
    else:
        for place, value in enumerate(given):
            _add_branch(c, value, f"given{place}", f"({out.type or 'uint8_t'})", "map")
    if node.function == "and":
        with c.block(f"for (int32_t n = 0; n < {out.length}; n++)"):
            c.add(f"map[n] = map[n] == {len(given)};")
    _list_map(c, out)


def _cast(current: Value) -> str:
    return "" if current.type == FLOAT else f"({current.type})"


def _add_branch(c: Writer, value: Value, name: str, cast: str, array: str) -> None:
    with c.each_event(value, name) as x:
        c.add(f"{array}[n] = {cast}({array}[n] + {cast}{x});")


@write_layer.on(ir.Scatter)
def _scatter(node: ir.Scatter, c: Writer) -> None:
    values = c.program.values
    source, out = values[node.inputs[0]], values[node.name]
    channels = c.table("channels", np.array(node.index), unsigned_type(node.channels))
    c.open_value(source, "given")
    target = f"n / {source.channels} * {out.channels} + {channels}[n % {source.channels}]"
    if out.form == "current":
        c.open_value(out, "current", constant=False)
        c.add("")
        c.fill("current", out.length)
        with c.each_event(source, "given") as x:
            c.add(f"current[{target}] = {_cast(out)}{x};")
        return
    c.open_value(out, "out", constant=False)
    c.add("uint32_t count = 0;", "")
    with c.each_event(source, "given") as x:
        c.put_event(out, target, x)
    c.add(f"s->count_{out.ident} = count;")


write_layer.on(ir.Readout)(write_readout)
