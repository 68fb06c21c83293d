"""The update of neurons in C: charge, fire, reset, by the one equation of each."""

import math

import numpy as np

from soul_deploy import ir
from soul_deploy.base import dispatch
from soul_deploy.export.c.program import Value, membrane_type
from soul_deploy.export.c.rows import channel_last
from soul_deploy.export.c.source import literal
from soul_deploy.export.c.writer import Writer
from soul_deploy.runtime.equations import ChargeForm, Equation, FixedEquation, NeuronEquation

CHARGE: dict[ChargeForm, str] = {
    "integrate": "v + {x}",
    "soul_lif_decay": "v + ({r} - v + {x}) / {a}",
    "soul_lif": "v + ({r} - v) / {a} + {x}",
    "decay_divide": "v + ({x} - (v - {r})) / {a}",
    "decay_multiply": "v + ({x} - (v - {r})) * {a}",
    "leak_multiply": "v * {a} + {x}",
    "leak_multiply_late": "v * {a} + {x} - (v > {threshold} ? {threshold} : 0.0f)",
    "leak_subtract_divide": "v - (v - {r}) / {a} + {x}",
    "leak_subtract_multiply": "v - (v - {r}) * {a} + {x}",
}
"""The forms of runtime/equations.py, operation by operation."""
SIGNS = {"gt": ">", "ge": ">="}


def write_population(node: ir.Population, c: Writer) -> None:
    """Every neuron is updated; those that fire go into the list."""
    values = c.program.values
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


def _alive(node: ir.Population, c: Writer) -> str:
    """The table of unmasked neurons, a bit each; empty: all are."""
    mask = c.program.model.neuron_masks.get(node.name)
    if mask is None or mask.all():
        return ""
    flat = mask.reshape(-1)[channel_last(mask.shape)]
    return c.table("alive", np.packbits(flat, bitorder="little"), "uint8_t")


def _neuron(node: ir.Population, c: Writer, current: Value, out: Value, alive: str) -> None:
    """h is the charged membrane; what a spike makes of it stands behind the spike."""
    equation, u = c.program.equation(node), f"s->u_{out.ident}[n]"
    condition, after = charge(equation, c, u, c.read(current, "current", "n"))
    place = f"position * {out.channels} + channel" if node.generated else "n"
    with c.block(f"if ({condition})"):
        _fire(node, c, out, alive, place)
        c.add(*after)
    kind = membrane_type(equation)
    c.add(f"{u} = {'h' if kind == 'float' else f'({kind})h'};")


@dispatch.operation_table(Equation)
def charge(equation: Equation, c: Writer, u: str, x: str) -> tuple[str, list[str]]:
    """Write h, of the membrane u and the current x; when it fires, and the lines of its reset."""
    raise charge.unknown(equation)


@charge.on(FixedEquation)
def _fixed(equation: FixedEquation, c: Writer, u: str, x: str) -> tuple[str, list[str]]:
    sign = SIGNS[equation.fire]
    threshold = c.constant("threshold", equation.threshold, "channel")
    subtract = c.constant("subtract", equation.subtract, "channel")
    c.add(f"const int32_t u = {u};")
    c.add(f"int32_t h = {_leaked(c, equation.multiplier, equation.shift)};")
    if equation.reset == "late":
        c.add("", f"if (u {sign} {threshold}) {{", f"    h -= {subtract};", "}")
    c.add(f"h += {x};")
    c.add(f"h = {c.program.prefix}_clamp(h, {equation.lowest}, {equation.highest});")
    after = {"hard": ["h = 0;"], "soft": [f"h -= {subtract};"]}
    return f"h {sign} {threshold}", after.get(equation.reset, [])


@charge.on(NeuronEquation)
def _float(equation: NeuronEquation, c: Writer, u: str, x: str) -> tuple[str, list[str]]:
    rest, threshold, target = (
        literal(np.float32(number))
        for number in (equation.rest, equation.v_threshold, equation.target)
    )
    numbers = {"x": x, "a": literal(np.float32(equation.constant)), "r": rest}
    c.add(f"const float v = {u};")
    c.add(f"float h = {CHARGE[equation.charge].format(**numbers, threshold=threshold)};")
    soft = [f"h -= {target};"] if equation.target else []
    after = soft if equation.v_reset is None else [f"h = {target};"]
    return f"h {SIGNS[equation.fire]} {threshold}", after


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
    table = c.table("pattern", pattern.astype(np.uint8), "uint8_t")
    first = out.channels - node.generated
    with c.block(f"for (int32_t channel = 0; channel < {node.generated}; channel++)"):
        index = f"(int32_t)s->steps * {node.generated} + channel"
        with c.block(f"if ({table}[{index}] != 0)"):
            place = f"position * {out.channels} + {first} + channel"
            _fire(node, c, out, alive, place)
