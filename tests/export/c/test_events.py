"""Event lists from anywhere: wrong ones give a code, and nothing is written."""

import subprocess
from pathlib import Path

import pytest
from counting_nets import HIGH, INPUTS, counting_network, inputs

from soul_deploy.export.c import harness
from soul_deploy.export.c.write import build_c

CC = harness.compiler()
pytestmark = pytest.mark.skipif(CC is None, reason="no C compiler on this machine")
FUZZ = """\
#define TIMES 200000
#define {P}_TRACE
#include "{p}/model.c"
#include "{p}/weights.c"

#include <stdio.h>
#include <string.h>

static {p}_state state, before;
static uint32_t random = 2463534242u;

void {p}_spike(int population, int32_t neuron)
{{
    (void)population;
    (void)neuron;
}}

static uint32_t drawn(uint32_t below)
{{
    random ^= random << 13;
    random ^= random >> 17;
    random ^= random << 5;
    return random % below;
}}

/* What the documentation says of a list; not how the program finds it. */
static int expected(const uint16_t *index, const int16_t *count, uint32_t n)
{{
    int32_t sums[{P}_INPUTS] = {{0}};
    for (uint32_t i = 0; i < n; i++) {{
        if (index[i] >= {P}_INPUTS) {{
            return {P}_BAD_INDEX;
        }}
        if (count[i] < 0 || (sums[index[i]] += count[i]) > {high}) {{
            return {P}_BAD_COUNT;
        }}
    }}
    return {P}_OK;
}}

int main(void)
{{
    long codes[5] = {{0}};
    memset(&state, 0, sizeof state);
    {p}_init(&state);
    for (long i = 0; i < TIMES; i++) {{
        uint16_t index[8];
        int16_t count[8];
        {p}_events events;
        int code;
        events.n = drawn(9);
        for (uint32_t e = 0; e < events.n; e++) {{
            index[e] = (uint16_t)(drawn(20) ? drawn({P}_INPUTS) : drawn(65536));
            count[e] = (int16_t)(drawn(20) ? (int)drawn({high} + 1) : (int)drawn(65535) - 32767);
        }}
        events.index = index;
        events.count = count;
        memcpy(&before, &state, sizeof state);
        code = {p}_step(&state, &events);
        codes[code]++;
        if (code != expected(index, count, events.n)) {{
            printf("code %d at %ld\\n", code, i);
            return 1;
        }}
        if (code != {P}_OK && memcmp(&before, &state, sizeof state) != 0) {{
            printf("written to at %ld\\n", i);
            return 1;
        }}
    }}
    printf("%ld %ld %ld\\n", codes[0], codes[{P}_BAD_INDEX], codes[{P}_BAD_COUNT]);
    return {p}_step(&state, NULL) != {P}_BAD_POINTER || {p}_step(NULL, NULL) != {P}_BAD_POINTER;
}}
"""


def run_c(text: str, folder: Path, *flags: str) -> str:
    """Build a program around the generated one in `folder`, run it; what it prints."""
    (folder / "main.c").write_text(text)
    command = [str(CC), *harness.STRICT, *harness.SANITIZED, *flags, "main.c", "-o", "fuzz"]
    built = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    done = subprocess.run(["./fuzz"], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_wrong_lists_give_a_code_and_write_nothing(tmp_path: Path) -> None:
    found = build_c(counting_network(), inputs(), prefix="net")
    (tmp_path / "net").mkdir()
    for name, text in found.texts.items():
        (tmp_path / "net" / name).write_text(text)
    said = run_c(FUZZ.format(p="net", P="NET", high=HIGH), tmp_path)
    good, bad_index, bad_count = map(int, said.split())
    assert min(good, bad_index, bad_count) > 10_000


RUN = """\
#include "net/model.c"
#include "net/weights.c"

#include <stdio.h>
#include <string.h>

static net_state state, before;

int main(void)
{{
    static const uint16_t fine[1] = {{3}}, wrong[1] = {{{inputs}}};
    net_events events[NET_TIME_STEPS];
    for (int t = 0; t < NET_TIME_STEPS; t++) {{
        events[t].index = t == NET_TIME_STEPS - 1 ? wrong : fine;
        events[t].count = NULL;
        events[t].n = 1;
    }}
    net_init(&state);
    net_step(&state, events);
    memcpy(&before, &state, sizeof state);
    printf("%d %d ", net_run(&state, events), memcmp(&before, &state, sizeof state) != 0);
    for (uint32_t i = state.steps; i < NET_MOST_STEPS && i < 9; i++) {{
        net_step(&state, events);
    }}
    state.steps = NET_MOST_STEPS;
    printf("%d %lu\\n", net_step(&state, events), (unsigned long)state.steps);
    return 0;
}}
"""


def test_a_sample_with_one_wrong_list_is_not_begun(tmp_path: Path) -> None:
    found = build_c(counting_network(), inputs(), prefix="net")
    (tmp_path / "net").mkdir()
    for name, text in found.texts.items():
        (tmp_path / "net" / name).write_text(text)
    said = run_c(RUN.format(inputs=INPUTS), tmp_path).split()
    assert said[:3] == ["2", "0", "4"]
