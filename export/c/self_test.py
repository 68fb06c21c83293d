"""test_model.c: the program on stored samples, against what the model gives on them."""

import re

import numpy as np
import torch
from torch import Tensor

from soul_deploy.base import Array, errors
from soul_deploy.export.c import header
from soul_deploy.export.c.golden import frames_of, golden
from soul_deploy.export.c.program import Program
from soul_deploy.export.c.rows import channel_last
from soul_deploy.export.c.source import FLOAT, numbers_text

FNV_START, FNV_PRIME = 2166136261, 16777619
SAMPLE = re.compile(r"static const \w+ given\[\d+\] = \{\n([-+\d.ef, \n]*)\n\};")
COUNTS = re.compile(r"#define SAMPLES (\d{1,6})\n#define FRAMES (\d{1,6})\n")


def test_c(program: Program, images: Tensor) -> str:
    """The self-test on inputs (N, ...) or (T, N, ...), as `images_for` gives them."""
    found = golden(program, images)
    frames = frames_of(program, images)
    kind = header.map_type(program) if program.takes_maps else "int16_t"
    given = frames if kind == FLOAT else frames.astype(np.int64) + _zero(program)
    names = [node.name for node in program.graph.populations]
    spikes = [[int(found.spikes[name][:, n].sum()) for name in names] for n in range(len(frames))]
    hashes = [[spike_hash(found.spikes[name][:, n]) for name in names] for n in range(len(frames))]
    p, score = program.prefix, FLOAT if program.floats else "int32_t"
    told = ("%.9g", "double") if program.floats else ("%ld", "long")
    test = {"score": score, "form": told[0], "as": told[1], "prime": FNV_PRIME, "start": FNV_START}
    tables = [
        _table(kind, "given", given),
        _table("uint32_t", "spikes", np.array(spikes)),
        _table("uint32_t", "hashes", np.array(hashes)),
        _table(score, "scores", found.scores),
    ]
    show = SHOW_PIXELS if program.takes_maps else SHOW_EVENTS
    index = program.values[program.input.name].index_type
    shown = show.format(p=p, P=p.upper(), index=index, kind=kind)
    return "\n".join(
        [
            header.notice(program),
            '#include "model.h"\n\n#include <stdio.h>\n',
            f"#define SAMPLES {frames.shape[0]}\n#define FRAMES {frames.shape[1]}",
            f"#define SYNOPS {found.synops}u\n",
            *tables,
            TEST.format(p=p, P=p.upper(), show=shown, **test),
        ]
    )


def _zero(program: Program) -> Array:
    """What was taken off each input, in the program's order."""
    shape, zero = program.input.shape, program.zero
    by_channel = np.array(zero or (0,), np.int64).reshape(-1, *[1] * (len(shape) - 1))
    return np.broadcast_to(by_channel, shape).reshape(-1)[channel_last(shape)]


def _table(kind: str, name: str, numbers: Array) -> str:
    flat = numbers.reshape(-1)
    return f"static const {kind} {name}[{len(flat)}] = {{\n{numbers_text(flat)}\n}};\n"


def spike_hash(spikes: Array) -> int:
    """Of bool (T, neurons), in the order in which they fire."""
    found = FNV_START
    for neuron in np.nonzero(spikes)[1].tolist():
        found = ((found ^ neuron) * FNV_PRIME) & 0xFFFFFFFF
    return found


def samples_in(program: Program, text: str) -> Tensor:
    """The samples of a self-test as `images_for` gives them: numbers alone are read from it.

    Raises FileFormatError where it holds none that the network takes.
    """
    counts, given = COUNTS.search(text), SAMPLE.search(text)
    shape, none = program.input.shape, "test_model.c: holds no samples of this network"
    if counts is None or given is None:
        raise errors.FileFormatError(none)
    samples, frames = int(counts[1]), int(counts[2])
    errors.require(frames in (1, program.graph.time_steps) and samples > 0, none)
    try:
        numbers = _numbers(program, given[1]).reshape(samples, frames, -1)
    except (ValueError, OverflowError) as error:
        raise errors.FileFormatError(none) from error
    if numbers.dtype.kind == "i":
        numbers = numbers - _zero(program)
        low, high = program.range
        errors.require(bool(numbers.min() >= low and numbers.max() <= high), none)
    back = np.argsort(channel_last(shape))
    maps = numbers[..., back].reshape(samples, frames, *shape)
    maps = maps.astype(np.float32 if program.floats else np.int16)
    if frames == 1:
        return torch.from_numpy(np.ascontiguousarray(maps[:, 0]))
    return torch.from_numpy(np.ascontiguousarray(maps.swapaxes(0, 1)))


def _numbers(program: Program, text: str) -> Array:
    """float32 or int64. Raises ValueError, OverflowError."""
    parts = text.split(",")
    if not (program.floats and program.takes_maps):
        return np.array([int(number) for number in parts], np.int64)
    found = np.array([float(number.strip().removesuffix("f")) for number in parts], np.float32)
    if not np.isfinite(found).all():
        raise OverflowError
    return found


SHOW_PIXELS = """\
/* Show a sample: one image at every step, or a frame each. */
static int show(int sample)
{{
    const {kind} *pixels = given + (long)sample * FRAMES * {P}_INPUTS;
    if (FRAMES == 1) {{
        return {p}_run(&state, pixels);
    }}
    {p}_reset(&state);
    for (int t = 0; t < FRAMES; t++) {{
        const int code = {p}_step(&state, pixels + (long)t * {P}_INPUTS);
        if (code != {P}_OK) {{
            return code;
        }}
    }}
    return {P}_OK;
}}
"""
SHOW_EVENTS = """\
static {index} index[{P}_INPUTS];
static int16_t count[{P}_INPUTS];

/* Show a sample: a list of what is not 0 at every step. */
static int show(int sample)
{{
    {p}_reset(&state);
    for (int t = 0; t < {P}_TIME_STEPS; t++) {{
        const int frame = FRAMES == 1 ? 0 : t;
        const int16_t *inputs = given + ((long)sample * FRAMES + frame) * {P}_INPUTS;
        {p}_events events;
        int code;
        events.index = index;
        events.count = count;
        events.n = 0;
        for (int32_t n = 0; n < {P}_INPUTS; n++) {{
            if (inputs[n] != 0) {{
                index[events.n] = ({index})n;
                count[events.n] = inputs[n];
                events.n++;
            }}
        }}
        code = {p}_step(&state, &events);
        if (code != {P}_OK) {{
            return code;
        }}
    }}
    return {P}_OK;
}}
"""
TEST = """\
static {p}_state state;
static uint32_t fired[{P}_POPULATIONS], hash[{P}_POPULATIONS];

/* The model calls it where {P}_TRACE is defined; without, scores alone are compared. */
void {p}_spike(int population, int32_t neuron);
void {p}_spike(int population, int32_t neuron)
{{
    fired[population]++;
    hash[population] = (hash[population] ^ (uint32_t)neuron) * {prime}u;
}}

{show}
/* How many numbers of a sample differ. */
static int compare(int sample)
{{
    int wrong = 0;
#ifdef {P}_TRACE
    for (int i = 0; i < {P}_POPULATIONS; i++) {{
        const int at = sample * {P}_POPULATIONS + i;
        if (fired[i] != spikes[at] || hash[i] != hashes[at]) {{
            printf("sample %d, population %d: %lu spikes, %lu expected\\n", sample, i,
                   (unsigned long)fired[i], (unsigned long)spikes[at]);
            wrong++;
        }}
    }}
#else
    (void)spikes;
    (void)hashes;
#endif
    for (int k = 0; k < {P}_CLASSES; k++) {{
        const {score} expected = scores[sample * {P}_CLASSES + k];
        if (state.scores[k] != expected) {{
            printf("sample %d, class %d: {form}, {form} expected\\n", sample, k,
                   ({as})state.scores[k], ({as})expected);
            wrong++;
        }}
    }}
    return wrong;
}}

int main(void)
{{
    int wrong = 0;
    {p}_init(&state);
    for (int sample = 0; sample < SAMPLES; sample++) {{
        int code;
        for (int i = 0; i < {P}_POPULATIONS; i++) {{
            fired[i] = 0;
            hash[i] = {start}u;
        }}
        code = show(sample);
        if (code != {P}_OK) {{
            printf("sample %d: code %d\\n", sample, code);
            return 1;
        }}
        wrong += compare(sample);
    }}
#ifdef {P}_COUNT_SYNOPS
    printf("SynOps: %lu, %lu expected\\n", (unsigned long)state.synops, (unsigned long)SYNOPS);
    wrong += state.synops != SYNOPS;
#endif
    printf("%s: %d samples, %d differences\\n", wrong ? "FAILED" : "passed", SAMPLES, wrong);
    return wrong != 0;
}}
"""
