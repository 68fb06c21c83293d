"""A program around the generated one that shows everything it computes, and its compiler.

It reads samples and writes, for each, the spikes of every step, membranes, scores and SynOps: in
binary, of the machine that it runs on. What is compiled is always text that was just generated.
"""

import os
import shutil
import struct
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from soul_deploy.base import Array, brief, errors
from soul_deploy.export.c.header import map_type
from soul_deploy.export.c.program import Program, membrane_type
from soul_deploy.export.c.source import BYTES, FLOAT
from soul_deploy.export.c.write import CProgram

STRICT = ("-std=c99", "-pedantic", "-Wall", "-Wextra", "-Werror", "-ffp-contract=off")
SANITIZED = ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
COMPILERS = ("cc", "gcc", "clang")
BUILD_SECONDS, RUN_SECONDS = 600, 3600


@brief
@dataclass(frozen=True)
class Shown:
    """What the C program gave: as `golden.Golden`, in the program's order of neurons."""

    spikes: Mapping[str, Array]
    membranes: Mapping[str, Array]
    scores: Array
    synops: int


def compiler() -> str | None:
    """The host's C compiler: $CC, or the first of COMPILERS that is there."""
    named = os.environ.get("CC")
    found = (shutil.which(name) for name in ((named,) if named else COMPILERS))
    return next((path for path in found if path), None)


def build(
    programs: Sequence[CProgram], folder: Path, cc: str, flags: Sequence[str] = SANITIZED
) -> Path:
    """Compile programs, of different prefixes, and what shows them into one executable.

    Raises VerificationError with the compiler's first lines.
    """
    for found in programs:
        place = folder / found.program.prefix
        place.mkdir(parents=True)
        for name, text in found.texts.items():
            (place / name).write_text(text)
        (place / "drive.c").write_text(drive_c(found.program))
    main = folder / "main.c"
    main.write_text(_main_c([found.program.prefix for found in programs]))
    target = folder / "shown"
    command = [cc, *STRICT, *flags, str(main), "-o", str(target)]
    made = _ended(command, BUILD_SECONDS)
    if made.returncode:
        said = _first_lines(made.stderr)
        raise errors.VerificationError(f"{cc} does not compile the C program: {said}")
    return target


def run(executable: Path, given: Sequence[tuple[Program, Array]]) -> list[Shown]:
    """Each program on its frames (N, frames, inputs), in the order in which they were built.

    Raises VerificationError where the program stops: a sanitizer's finding, or a return code.
    """
    sent = b"".join(_sent(program, frames) for program, frames in given)
    done = _ended([str(executable)], RUN_SECONDS, sent)
    if done.returncode:
        said = _first_lines(done.stderr)
        raise errors.VerificationError(f"the C program ended with {done.returncode}: {said}")
    shown, at = [], 0
    for program, frames in given:
        size = len(frames) * _record(program).itemsize
        record = np.frombuffer(done.stdout[at : at + size], _record(program))
        shown.append(_shown(program, record))
        at += size
    assert at == len(done.stdout), "the program wrote more than expected"
    return shown


def _ended(
    command: Sequence[str], seconds: int, sent: bytes = b""
) -> "subprocess.CompletedProcess[bytes]":
    """Raises VerificationError for a command that takes longer."""
    try:
        return subprocess.run(command, input=sent, capture_output=True, timeout=seconds)
    except subprocess.TimeoutExpired as error:
        raise errors.VerificationError(
            f"{Path(command[0]).name} has not ended after {seconds} s; verify fewer samples"
        ) from error


def _first_lines(said: bytes) -> str:
    return " / ".join(said.decode(errors="replace").strip().splitlines()[:5])[:800]


def _sent(program: Program, frames: Array) -> bytes:
    head = struct.pack("=ii", len(frames), frames.shape[1])
    if _frame_type(program) == FLOAT:
        return head + np.ascontiguousarray(frames, np.float32).tobytes()
    zero = np.zeros(1, np.int16)
    if program.zero:
        channels = len(program.zero)
        zero = np.tile(np.array(program.zero, np.int16), frames.shape[2] // channels)
    return head + np.ascontiguousarray(frames + zero).astype(np.int16).tobytes()


def _frame_type(program: Program) -> str:
    return FLOAT if program.floats and program.takes_maps else "int16_t"


def _populations(program: Program) -> list[tuple[str, int, int]]:
    """Name, neurons, neurons with a current."""
    values = program.values
    return [
        (node.name, values[node.name].length, values[node.inputs[0]].length)
        for node in program.graph.populations
    ]


def _record(program: Program) -> np.dtype:
    populations = _populations(program)
    fired = sum(neurons for _, neurons, _ in populations)
    driven = sum(driven for _, _, driven in populations)
    number = np.float32 if program.floats else np.int32
    return np.dtype(
        [
            ("spikes", np.uint8, (program.graph.time_steps, fired)),
            ("membranes", number, (driven,)),
            ("scores", number, (program.graph.readout.classes,)),
            ("synops", np.uint32, (2,)),
        ]
    )


def _shown(program: Program, record: Array) -> Shown:
    spikes, membranes = {}, {}
    first, start = 0, 0
    for name, neurons, driven in _populations(program):
        fired = record["spikes"][:, :, first : first + neurons]
        spikes[name] = np.ascontiguousarray(fired.swapaxes(0, 1) != 0)
        membranes[name] = record["membranes"][:, start : start + driven]
        first, start = first + neurons, start + driven
    low, high = record["synops"].astype(np.int64).sum(axis=0) if len(record) else (0, 0)
    return Shown(spikes, membranes, record["scores"], int(low + (high << 32)))


def _main_c(prefixes: Sequence[str]) -> str:
    lines = ["#include <stdint.h>", "#include <stdio.h>", ""]
    for prefix in prefixes:
        name = prefix.upper()
        lines += [f"#define {name}_TRACE", f"#define {name}_COUNT_SYNOPS"]
        lines += [f'#include "{prefix}/{file}.c"' for file in ("model", "weights", "drive")]
    lines += ["", "int main(void)", "{"]
    lines += [f"    if ({p}_drive() != 0) {{\n        return 1;\n    }}" for p in prefixes]
    return "\n".join([*lines, "    return 0;", "}", ""])


def drive_c(program: Program) -> str:
    """Reads samples from stdin, shows each to the program, writes what it computed to stdout."""
    firsts, first = [], 0
    for _, neurons, _ in _populations(program):
        firsts.append(first)
        first += neurons
    copies = []
    for node in program.graph.populations:
        value = program.values[node.inputs[0]]
        kind = membrane_type(program.equation(node))
        member = f"{program.prefix}_driven.u_{program.ident(node.name)}"
        copies.append(
            f"        fwrite({member}, sizeof {member}, 1, stdout);"
            if kind == FLOAT
            else f"        {program.prefix}_write({member}, {value.length}, {BYTES[kind] * 8});"
        )
    show = DRIVE_PIXELS if program.takes_maps else DRIVE_EVENTS
    index = program.values[program.input.name].index_type
    p = {"p": program.prefix, "P": program.prefix.upper(), "index": index}
    p |= {"frame": _frame_type(program), "kind": map_type(program)}
    return DRIVE.format(
        **p,
        show=show.format(**p),
        write="" if program.floats else DRIVE_INTEGERS.format(**p),
        fired=first,
        firsts=", ".join(map(str, firsts)),
        copies="\n".join(copies),
        steps=program.graph.time_steps,
    )


DRIVE_PIXELS = """\
static {kind} {p}_pixels[{P}_INPUTS];

static int {p}_show_frame(const {frame} *frame, int whole)
{{
    for (long n = 0; n < {P}_INPUTS; n++) {{
        {p}_pixels[n] = ({kind})frame[n];
    }}
    return whole ? {p}_run(&{p}_driven, {p}_pixels) : {p}_step(&{p}_driven, {p}_pixels);
}}
"""
DRIVE_INTEGERS = """\
static void {p}_write(const void *membranes, long length, int bits)
{{
    for (long n = 0; n < length; n++) {{
        const int32_t u =
            bits == 16 ? ((const int16_t *)membranes)[n] : ((const int32_t *)membranes)[n];
        fwrite(&u, sizeof u, 1, stdout);
    }}
}}
"""
DRIVE_EVENTS = """\
static {index} {p}_index[2 * {P}_INPUTS];
static int16_t {p}_count[2 * {P}_INPUTS];

/* Counts above 1 as two events, the last input first: neither order nor doubles matter. */
static int {p}_show_frame(const int16_t *frame, int whole)
{{
    {p}_events events[{P}_TIME_STEPS];
    uint32_t made = 0;
    for (long n = {P}_INPUTS - 1; n >= 0; n--) {{
        int16_t left = frame[n];
        if (left > 1) {{
            {p}_index[made] = ({index})n;
            {p}_count[made++] = 1;
            left--;
        }}
        if (left != 0) {{
            {p}_index[made] = ({index})n;
            {p}_count[made++] = left;
        }}
    }}
    for (int t = 0; t < {P}_TIME_STEPS; t++) {{
        events[t].index = {p}_index;
        events[t].count = {p}_count;
        events[t].n = made;
    }}
    return whole ? {p}_run(&{p}_driven, events) : {p}_step(&{p}_driven, events);
}}
"""
DRIVE = """\
static {p}_state {p}_driven;
static uint8_t {p}_fired[{steps}L * {fired}];
static {frame} {p}_frame[{P}_INPUTS];

void {p}_spike(int population, int32_t neuron)
{{
    static const int32_t first[] = {{{firsts}}};
    {p}_fired[(long){p}_driven.steps * {fired} + first[population] + neuron] = 1;
}}

{write}
{show}
static int {p}_drive(void)
{{
    int32_t head[2];
    if (fread(head, sizeof head, 1, stdin) != 1) {{
        return 1;
    }}
    {p}_init(&{p}_driven);
    for (int32_t sample = 0; sample < head[0]; sample++) {{
        const uint64_t before = {p}_driven.synops;
        uint32_t synops[2];
        for (long n = 0; n < (long)sizeof {p}_fired; n++) {{
            {p}_fired[n] = 0;
        }}
        {p}_reset(&{p}_driven);
        for (int32_t t = 0; t < head[1]; t++) {{
            int code;
            if (fread({p}_frame, sizeof {p}_frame, 1, stdin) != 1) {{
                return 1;
            }}
            code = {p}_show_frame({p}_frame, head[1] == 1);
            if (code != {P}_OK) {{
                fprintf(stderr, "{p}: code %d\\n", code);
                return 1;
            }}
        }}
        fwrite({p}_fired, sizeof {p}_fired, 1, stdout);
{copies}
        fwrite({p}_driven.scores, sizeof {p}_driven.scores, 1, stdout);
        synops[0] = (uint32_t)({p}_driven.synops - before);
        synops[1] = (uint32_t)(({p}_driven.synops - before) >> 32);
        fwrite(synops, sizeof synops, 1, stdout);
    }}
    return 0;
}}
"""
