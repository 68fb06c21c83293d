"""The files of the program, as text: model.h, model.c, weights.h, weights.c, Makefile."""

from collections.abc import Mapping
from dataclasses import dataclass

from soul_deploy import ir
from soul_deploy.base import brief
from soul_deploy.export.c import header, layers
from soul_deploy.export.c.program import Program
from soul_deploy.export.c.source import Lines, Table
from soul_deploy.export.c.writer import Writer


@brief
@dataclass(frozen=True)
class Written:
    """The functions of all nodes, and the tables that they read."""

    functions: Mapping[str, str]
    tables: tuple[Table, ...]

    @property
    def flash(self) -> int:
        """Bytes of constant tables; the loops come to it."""
        return sum(table.bytes for table in self.tables)


def write_layers(program: Program) -> Written:
    """Raises UnsupportedGraphError for what has no loop in C."""
    functions: dict[str, str] = {}
    tables: list[Table] = []
    for node in program.nodes:
        writer = Writer(program=program, ident=program.ident(node.name))
        writer.add(f"/* {header.described(program, node)} */")
        head = f"static void {function_name(program, node)}({program.prefix}_state *s)"
        writer.add(head)
        writer.add("{")
        writer.depth += 1
        layers.write_layer(node, writer)
        writer.depth -= 1
        writer.add("}")
        functions[node.name] = writer.text()
        tables += writer.tables
    return Written(functions, tuple(tables))


def function_name(program: Program, node: ir.Node) -> str:
    return f"{program.prefix}_layer_{program.ident(node.name)}"


HELPERS = {
    "signed16": """\
/* The int16 of these 16 bits. */
static int32_t {p}_signed16(uint16_t sum)
{{
    return sum <= 0x7fffu ? (int32_t)sum : (int32_t)sum - 65535 - 1;
}}
""",
    "signed32": """\
/* The int32 of these 32 bits. */
static int32_t {p}_signed32(uint32_t sum)
{{
    return sum <= 0x7fffffffu ? (int32_t)sum : -(int32_t)(0xffffffffu - sum) - 1;
}}
""",
    "floor_shift": """\
/* The largest integer not above number / 2^shift. */
static int32_t {p}_floor_shift(int32_t number, int shift)
{{
    return number >= 0 ? number >> shift : -1 - ((-1 - number) >> shift);
}}
""",
    "clamp": """\
static int32_t {p}_clamp(int32_t number, int32_t low, int32_t high)
{{
    return number < low ? low : number > high ? high : number;
}}
""",
}


def model_c(program: Program, written: Written) -> str:
    p = program.prefix
    body = "\n".join(written.functions.values())
    helpers = [text.format(p=p) for name, text in HELPERS.items() if f"{p}_{name}(" in body]
    parts = [
        header.notice(program),
        '#include "model.h"\n#include "weights.h"\n\n#include <stddef.h>\n',
        *helpers,
        body,
        _network(program),
        _reset(program),
        _input(program),
        (PIXELS if program.takes_maps else EVENTS).format(
            p=p,
            P=p.upper(),
            high=program.range[1],
            kind=header.map_type(program),
            type=program.values[program.input.name].type,
        ),
    ]
    return "\n".join(parts)


def _network(program: Program) -> str:
    """The layers in order: those of a still image, and those of every step."""
    c = Lines()
    p = program.prefix
    static = [node for node in program.nodes if node.name in program.static]
    moving = [node for node in program.nodes if node.name not in program.static]
    if program.takes_maps:
        c.add("/* What an image alone decides: the same at every step. */")
        c.add(f"static void {p}_still({p}_state *s)", "{")
        c.lines += [f"    {function_name(program, node)}(s);" for node in static]
        c.lines += [] if static else ["    (void)s;"]
        c.add("}", "")
    c.add("/* One step of all layers. */", f"static void {p}_advance({p}_state *s)", "{")
    c.lines += [f"    {function_name(program, node)}(s);" for node in moving]
    c.add("    s->steps++;", "}")
    return c.text()


def _reset(program: Program) -> str:
    c, p = Lines(), program.prefix
    members = header.members(program)
    c.add("/* Membranes, scores and the count of steps to 0: before a new sample. */")
    c.add(f"void {p}_reset({p}_state *s)")
    with c.block(""):
        c.lines[-1] = "{"
        c.add("s->steps = 0;")
        for member in members:
            if member.reset:
                with c.block(f"for (int32_t n = 0; n < {member.length}; n++)"):
                    c.add(f"s->{member.name}[n] = {member.start};")
    c.add("", "/* Everything to 0: once, before anything else. */")
    c.add(f"void {p}_init({p}_state *s)")
    with c.block(""):
        c.lines[-1] = "{"
        for member in members:
            if not member.reset and member.length > 1:
                with c.block(f"for (int32_t n = 0; n < {member.length}; n++)"):
                    c.add(f"s->{member.name}[n] = 0;")
            elif not member.reset:
                c.add(f"s->{member.name} = 0;")
        c.lines += [
            f"#ifdef {p.upper()}_COUNT_SYNOPS",
            "    s->synops = s->head_synops = 0;",
            "#endif",
        ]
        c.add(f"{p}_reset(s);")
    return c.text()


def _input(program: Program) -> str:
    if not program.takes_maps:
        return ""
    p, value = program.prefix, program.values[program.input.name]
    c = Lines()
    if not program.floats:
        c.add("/* x = pixel - zero, channels side by side. */")
    c.add(f"static void {p}_take({p}_state *s, const {header.map_type(program)} *pixels)")
    with c.block(""):
        c.lines[-1] = "{"
        zeros = program.zero or (0,)
        zero = str(zeros[0])
        if len(set(zeros)) > 1:
            c.add(f"static const uint8_t zero[{len(zeros)}] = {{{', '.join(map(str, zeros))}}};")
            zero = f"zero[n % {len(zeros)}]"
        with c.block(f"for (int32_t n = 0; n < {value.length}; n++)"):
            pixel = f"({value.type})((int32_t)pixels[n] - {zero})"
            c.add(f"s->input[n] = {'pixels[n]' if program.floats else pixel};")
    return c.text()


PIXELS = """\
int {p}_step({p}_state *s, const {kind} *pixels)
{{
    if (s == NULL || pixels == NULL) {{
        return {P}_BAD_POINTER;
    }}
    if (s->steps >= {P}_MOST_STEPS) {{
        return {P}_BAD_STEPS;
    }}
    {p}_take(s, pixels);
    {p}_still(s);
    {p}_advance(s);
    return {P}_OK;
}}

int {p}_run({p}_state *s, const {kind} *pixels)
{{
    if (s == NULL || pixels == NULL) {{
        return {P}_BAD_POINTER;
    }}
    {p}_reset(s);
    {p}_take(s, pixels);
    {p}_still(s);
    for (int t = 0; t < {P}_TIME_STEPS; t++) {{
        {p}_advance(s);
    }}
    return {P}_OK;
}}
"""
EVENTS = """\
/* Take the first n events out of the input again. */
static void {p}_forget({p}_state *s, const {p}_events *events, uint32_t n)
{{
    for (uint32_t i = 0; i < n; i++) {{
        s->input[events->index[i]] = 0;
    }}
}}

/* Put events into the input, which is 0 everywhere; it stays so if one of them is wrong. */
static int {p}_take({p}_state *s, const {p}_events *events)
{{
    if (events == NULL || (events->n > 0 && events->index == NULL)) {{
        return {P}_BAD_POINTER;
    }}
    for (uint32_t i = 0; i < events->n; i++) {{
        const uint32_t index = events->index[i];
        const int32_t count = events->count == NULL ? 1 : events->count[i];
        int code = {P}_OK;
        if (index >= {P}_INPUTS) {{
            code = {P}_BAD_INDEX;
        }} else if (count < 0 || count > {high} - s->input[index]) {{
            code = {P}_BAD_COUNT;
        }}
        if (code != {P}_OK) {{
            {p}_forget(s, events, i);
            return code;
        }}
        s->input[index] = ({type})(s->input[index] + count);
    }}
    return {P}_OK;
}}

int {p}_step({p}_state *s, const {p}_events *events)
{{
    int code;
    if (s == NULL) {{
        return {P}_BAD_POINTER;
    }}
    if (s->steps >= {P}_MOST_STEPS) {{
        return {P}_BAD_STEPS;
    }}
    code = {p}_take(s, events);
    if (code != {P}_OK) {{
        return code;
    }}
    {p}_advance(s);
    {p}_forget(s, events, events->n);
    return {P}_OK;
}}

int {p}_run({p}_state *s, const {p}_events *events)
{{
    if (s == NULL || events == NULL) {{
        return {P}_BAD_POINTER;
    }}
    for (int t = 0; t < {P}_TIME_STEPS; t++) {{
        const int code = {p}_take(s, events + t);
        if (code != {P}_OK) {{
            return code;
        }}
        {p}_forget(s, events + t, events[t].n);
    }}
    {p}_reset(s);
    for (int t = 0; t < {P}_TIME_STEPS; t++) {{
        const int code = {p}_step(s, events + t);
        if (code != {P}_OK) {{
            return code;
        }}
    }}
    return {P}_OK;
}}
"""


def weights_h(program: Program, written: Written) -> str:
    guard = f"{program.prefix.upper()}_WEIGHTS_H"
    lines = [
        header.notice(program),
        f"#ifndef {guard}",
        f"#define {guard}",
        "",
        "#include <stdint.h>",
    ]
    lines += ["", *(_counted(program, t, f"extern {t.declared};\n") for t in written.tables)]
    return "\n".join(lines).rstrip("\n") + "\n\n#endif\n"


def weights_c(program: Program, written: Written) -> str:
    lines = [header.notice(program), '#include "weights.h"', ""]
    lines += [_counted(program, table, table.defined()) for table in written.tables]
    return "\n".join(lines)


def _counted(program: Program, table: Table, text: str) -> str:
    if not table.counting:
        return text.rstrip("\n") if text.startswith("extern") else text
    return f"#ifdef {program.prefix.upper()}_COUNT_SYNOPS\n{text}#endif"


def makefile(program: Program) -> str:
    name = program.prefix.upper()
    plain = " -ffp-contract=off" if program.floats else ""
    return MAKEFILE.format(P=name, plain=plain)


MAKEFILE = """\
# make test: build and run the self-test. CC, CFLAGS and LDFLAGS may be given.
CC ?= cc
CFLAGS ?= -O2
WARNINGS = -std=c99 -pedantic -Wall -Wextra -Werror{plain}
COUNTING = -D{P}_COUNT_SYNOPS -D{P}_TRACE

.PHONY: all test clean
all: model.o weights.o

model.o: model.c model.h weights.h
\t$(CC) $(CFLAGS) $(WARNINGS) -c model.c -o $@

weights.o: weights.c weights.h
\t$(CC) $(CFLAGS) $(WARNINGS) -c weights.c -o $@

test_model: test_model.c model.c weights.c model.h weights.h
\t$(CC) $(CFLAGS) $(WARNINGS) $(COUNTING) test_model.c model.c weights.c $(LDFLAGS) -o $@

test: test_model
\t./test_model

clean:
\trm -f model.o weights.o test_model
"""
