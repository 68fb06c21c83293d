"""model.h: what a program that uses the network sees; the notice at the head of every file."""

from dataclasses import dataclass, replace

import numpy as np

from soul_deploy import ir
from soul_deploy.export.c.program import Program, membrane_type, shared
from soul_deploy.export.c.source import BYTES, FLOAT, Lines, literal

FORMAT = "soul-deploy/c/1"


@dataclass(frozen=True)
class Member:
    """An array of the state, or a number (length 1). reset: it is `start` before every sample."""

    type: str
    name: str
    length: int
    reset: bool
    told: str = ""
    start: str = "0"


def members(program: Program) -> list[Member]:
    """The state but for the count of steps: of RAM, all there is."""
    given, classes = program.values[program.input.name], program.graph.readout.classes
    score = FLOAT if program.floats else "int32_t"
    scores = "class scores" if program.floats else "class scores, integers"
    found = [Member(score, "scores", classes, True, scores)]
    if program.keeps_step_scores:
        summed = program.graph.readout.over_time in ("mean", "sum")
        told = "sums of all steps, unscaled" if summed else "of the last step"
        found.append(Member(score, "step_scores", classes, True, told))
    for node in program.graph.populations:
        equation = program.equation(node)
        kind, start = membrane_type(equation), literal(np.float32(equation.start[0]))
        length, name = program.values[node.inputs[0]].length, program.ident(node.name)
        member = Member(kind, f"u_{name}", length, True, "membranes")
        found.append(replace(member, start=start) if kind == FLOAT else member)
    found.append(Member(given.type, "input", given.length, False))
    for value in program.values.values():
        if value.form == "events":
            found.append(Member("uint32_t", f"count_{value.ident}", 1, False))
    lengths = program.memory.lengths
    for kind in sorted(lengths, key=lambda kind: (BYTES[kind], kind == FLOAT)):
        found.append(Member(kind, shared(kind), lengths[kind], False))
    return found


def plain(text: object) -> str:
    """Text that cannot leave a comment."""
    return "".join(
        c if (c.isalnum() and c.isascii()) or c in " ._-+=:;,()" else "_" for c in str(text)
    )


FIXED = """\
 * Written by `soul-deploy export c` from a fixed-point network; do not edit.
 * docs/fixed-point.md of soul-deploy defines every number in it.
"""
FLOATS = """\
 * Written by `soul-deploy export c --float` from a network of float32 numbers; do not edit. It is
 * for comparison: the same network in fixed point is smaller, and the same on every machine.
 * A sum starts at the bias, then adds inputs in ascending order, position by position, the channels
 * of a position side by side; nothing is fused (docs/microcontroller.md of soul-deploy).
"""


def notice(program: Program) -> str:
    """Where the file is from and whose it is."""
    told = FIXED
    if program.floats:
        told = FLOATS
    return (
        f"/* {FORMAT} layout={program.layout} prefix={program.prefix} "
        f"T={program.graph.time_steps}{' float32' if program.floats else ''}\n"
        " *\n"
        f"{told}"
        " * The program text is under soul-deploy's license, Apache-2.0, and may be used in\n"
        " * programs of any license; the weights are those of the network's owner.\n"
        " */\n"
    )


def described(program: Program, node: ir.Node) -> str:
    """A node in one line: name, shapes, operation, how its weights are stored."""
    sources = [program.graph.shapes[name] for name in program.sources(node)]
    shapes = f"{_shape(sources[0])} to {_shape(program.graph.shapes[node.name])}"
    text = f"{plain(node.name)}: {node.op.replace('_', ' ')}, {shapes}"
    rows = program.rows.get(node.name)
    if rows is not None:
        form = f"compressed rows, {rows.stored} weights" if rows.compressed else "dense rows"
        text += f", {form}"
    if node.name in program.values and program.values[node.name].form == "current":
        kind = program.values[node.name].type
        text += ", float sums" if kind == FLOAT else f", {BYTES[kind] * 8}-bit sums"
    return text


def _shape(shape: ir.Shape) -> str:
    return "x".join(map(str, shape))


def model_h(program: Program, flash: int) -> str:
    """The header. flash: bytes of the constant tables."""
    c = Lines()
    name = program.prefix.upper()
    c.add(notice(program), f"#ifndef {name}_MODEL_H", f"#define {name}_MODEL_H", "")
    c.add("#include <stdint.h>", "")
    _about(program, c, flash)
    _constants(program, c)
    _hooks(program, c)
    _state(program, c)
    _functions(program, c)
    c.add("", "#endif")
    return c.text()


def _about(program: Program, c: Lines, flash: int) -> None:
    c.add(
        f"/* Flash: {flash} bytes of constant tables, and the loops. RAM: {program.ram} bytes, the",
        f" * {program.prefix}_state; a few words of stack. No heap, "
        f"{'' if program.floats else 'no float, '}no standard library.",
        " *",
        " * Layers:",
        *(f" *   {described(program, node)}" for node in program.nodes),
        " */",
    )


def _constants(program: Program, c: Lines) -> None:
    name, graph, given = program.prefix.upper(), program.graph, program.values[program.input.name]
    c.add(
        "",
        f"#define {name}_INPUTS {given.length}",
        f"#define {name}_CLASSES {graph.readout.classes}",
        f"#define {name}_TIME_STEPS {graph.time_steps}",
        f"#define {name}_POPULATIONS {len(graph.populations)}",
        f"#define {name}_MOST_STEPS {program.most_steps}u /* between two resets */",
    )
    if len(given.shape) == 3:
        channels, height, width = given.shape
        c.add(
            f"/* The place of an input: {height} rows, {width} columns, {channels} channels. */",
            f"#define {name}_INPUT(channel, row, column) "
            f"(((row) * {width} + (column)) * {channels} + (channel))",
        )
    if not program.floats:
        shape = graph.shapes[graph.readout.inputs[0]]
        multiplier = graph.readout.multiplier(shape, graph.time_steps)
        c.add(
            f"/* A class score is its integer times {multiplier!r}. The largest wins without it. */"
        )
    c.add(
        "",
        "/* What the functions return. Unless it is 0, nothing was written. */",
        f"#define {name}_OK 0",
        f"#define {name}_BAD_POINTER 1 /* a pointer is NULL */",
        f"#define {name}_BAD_INDEX 2 /* an index of an event is {name}_INPUTS or more */",
        f"#define {name}_BAD_COUNT 3 /* the events of one input are below 0, or more than "
        f"{program.range[1]} */",
        f"#define {name}_BAD_STEPS 4 /* {name}_MOST_STEPS were made: reset first */",
        "",
    )


def _hooks(program: Program, c: Lines) -> None:
    name, p = program.prefix.upper(), program.prefix
    c.lines += [
        f"/* With {name}_TRACE defined, the program that uses it is told of every spike. Neurons",
        " * are numbered position by position, the channels of a position side by side. */",
        f"#ifdef {name}_TRACE",
        f"void {p}_spike(int population, int32_t neuron);",
        f"#define {name}_SPIKE(population, neuron) {p}_spike(population, neuron)",
        "#else",
        f"#define {name}_SPIKE(population, neuron) ((void)0)",
        "#endif",
        "",
        f"/* With {name}_COUNT_SYNOPS defined, the state counts synaptic operations. */",
        f"#ifdef {name}_COUNT_SYNOPS",
        f"#define {name}_COUNT(s, amount) ((s)->synops += (uint64_t)(amount))",
        "#else",
        f"#define {name}_COUNT(s, amount) ((void)0)",
        "#endif",
        "",
    ]


def _state(program: Program, c: Lines) -> None:
    p = program.prefix
    c.add("/* All memory of the network. */", "typedef struct {")
    c.add("    uint32_t steps; /* since the last reset */")
    for member in members(program):
        side = f"[{member.length}]" if member.length > 1 or member.reset else ""
        told = f" /* {member.told} */" if member.told else ""
        c.add(f"    {member.type} {member.name}{_side(member, side)};{told}")
    c.lines += [
        f"#ifdef {p.upper()}_COUNT_SYNOPS",
        "    uint64_t synops, head_synops; /* since init */",
        "#endif",
    ]
    c.add(f"}} {p}_state;", "")


def _side(member: Member, side: str) -> str:
    return side or ("" if member.name.startswith("count_") else f"[{member.length}]")


def _functions(program: Program, c: Lines) -> None:
    name, p = program.prefix.upper(), program.prefix
    given = f"const {map_type(program)} *pixels"
    if not program.takes_maps:
        c.add(
            "/* The inputs of one step that are not 0, in any order. count: of each, NULL: all 1;",
            " * what several events say of one input is added up. */",
            "typedef struct {",
            f"    const {program.values[program.input.name].index_type} *index;",
            "    const int16_t *count;",
            "    uint32_t n;",
            f"}} {p}_events;",
            "",
        )
        given = f"const {p}_events *events"
    c.add(
        "/* Everything to 0, once; then membranes, scores and steps to 0, before a sample. */",
        f"void {p}_init({p}_state *s);",
        f"void {p}_reset({p}_state *s);",
        "",
    )
    told = ["/* One step of a stream; the scores are those of all steps since the reset. */"]
    if program.takes_maps:
        what = "numbers as the model takes them" if program.floats else "bytes"
        told = [
            "/* One step of a stream; the scores are those of all steps since the reset.",
            f" * pixels: {name}_INPUTS {what}, row by row, "
            "the channels of a pixel side by side. */",
        ]
    c.add(*told, f"int {p}_step({p}_state *s, {given});", "")
    shown = "one image at every step" if program.takes_maps else f"{name}_TIME_STEPS lists"
    c.add(f"/* A whole sample: reset, then {name}_TIME_STEPS steps on {shown}. */")
    c.add(f"int {p}_run({p}_state *s, {given});")


def map_type(program: Program) -> str:
    """Of the inputs that a step is given."""
    return FLOAT if program.floats else "uint8_t"
