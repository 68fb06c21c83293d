"""The C programs beside snnTorch, on a network of N-MNIST size: 12C5-MP2-32C5-MP2-10 on 2x34x34.

    python benchmarks/c_rival.py [--density 0.1] [--rate 0.05] [--steps 20] [--cc gcc]

One thread each, in one run: the network as snnTorch runs it (its tutorial's network, its own code,
PyTorch of one thread, a sample at a time and in batches), the float32 C and the int8 C of it, dense
and pruned by magnitude, rows dense in both. Inputs are spikes at random, most in the middle;
N-MNIST has about 4,000 events a sample. Each is timed in turn, over and over, in the processor's
time of the process; the least counts. How many times as fast: as snnTorch a sample at a time, at
the density where it is faster. Exits with 1 unless the int8 C is 10 times as fast dense and 21
times pruned.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import snntorch
import torch
from torch import nn

from soul_deploy import from_torch
from soul_deploy.base import Array
from soul_deploy.base.tables import Table
from soul_deploy.base.terminal import show
from soul_deploy.cli import output
from soul_deploy.export.c import harness
from soul_deploy.export.c.golden import golden
from soul_deploy.export.c.write import CProgram, build_c, write_files
from soul_deploy.quantization import network, units

SHAPE, CLASSES, BETA, SAMPLES, BATCH = (2, 34, 34), 10, 0.5, 8, 64
FLOORS = {"dense": 10, "pruned": 21}
FLAGS = ("-O3", "-march=native", "-ffp-contract=off")


class Rival(nn.Module):
    """snnTorch's network for N-MNIST (its tutorial 7), spikes of its last neurons summed."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(2, 12, 5), nn.Conv2d(12, 32, 5)
        self.pool1, self.pool2 = nn.MaxPool2d(2), nn.MaxPool2d(2)
        self.fc = nn.Linear(32 * 5 * 5, CLASSES)
        self.flatten = nn.Flatten()
        self.lif1, self.lif2, self.lif3 = (
            snntorch.Leaky(beta=BETA, reset_mechanism="zero") for _ in range(3)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mem1, mem2, mem3 = (lif.init_leaky() for lif in (self.lif1, self.lif2, self.lif3))
        spikes = []
        for step in range(x.size(0)):
            spk1, mem1 = self.lif1(self.pool1(self.conv1(x[step])), mem1)
            spk2, mem2 = self.lif2(self.pool2(self.conv2(spk1)), mem2)
            spk3, mem3 = self.lif3(self.fc(self.flatten(spk2)), mem3)
            spikes.append(spk3)
        return torch.stack(spikes).sum(dim=0)


def made(density: float, frames: torch.Tensor, seed: int = 0) -> Rival:
    """Random weights, the smallest left out, each layer scaled so that a part of it fires."""
    torch.manual_seed(seed)
    found = Rival().eval()
    with torch.no_grad():
        for layer in (found.conv1, found.conv2, found.fc):
            limit = layer.weight.abs().flatten().quantile(1 - density)
            layer.weight *= layer.weight.abs() >= limit
            assert layer.bias is not None
            layer.bias.zero_()
        _fire(found, frames)
    return found


def _fire(found: Rival, frames: torch.Tensor) -> None:
    """Scale weights so that about a tenth of each layer's neurons fire at a step."""
    x = frames.flatten(0, 1)
    for layer, pool in ((found.conv1, found.pool1), (found.conv2, found.pool2), (found.fc, None)):
        current = layer(found.flatten(x) if pool is None else x)
        current = current if pool is None else pool(current)
        layer.weight /= current.flatten().sort().values[int(0.9 * current.numel())].clamp(min=1e-3)
        layer.weight *= 0.9
        current = layer(found.flatten(x) if pool is None else x)
        current = current if pool is None else pool(current)
        steps = current.reshape(*frames.shape[:2], *current.shape[1:])
        lif, mem = snntorch.Leaky(beta=BETA, reset_mechanism="zero"), torch.zeros(())
        spikes = []
        for step in steps:
            fired, mem = lif(step, mem)
            spikes.append(fired)
        x = torch.stack(spikes).flatten(0, 1)


def event_frames(rate: float, steps: int) -> Array:
    """int16 0 and 1 (T, SAMPLES, 2, 34, 34): `rate` of all on average, most in the middle."""
    rng = np.random.default_rng(7)
    y, x = np.mgrid[:34, :34] - 16.5
    near = np.exp(-(x**2 + y**2) / (2 * 8.0**2))
    chance = np.minimum(rate * near / near.mean(), 1)
    spikes: Array = rng.random((steps, SAMPLES, *SHAPE)) < chance
    return spikes.astype(np.int16)


def programs(rival: Rival, frames: Array) -> tuple[CProgram, CProgram, dict[str, float]]:
    """float32 and int8, and the firing rates of the latter's populations."""
    example = torch.from_numpy(frames[:, :2].astype(np.float32))
    model = from_torch(rival, SHAPE, len(frames), example=example, input_kind="spikes")
    plan = network.make_plan(model, units.UnitChoice(), 1)
    fixed = network.integer_network(plan)
    state = {name: np.asarray(array) for name, array in fixed.state.items()}
    fixed = replace(fixed, state=state)
    floats = build_c(model, frames, prefix="f", as_float=True, layout="dense")
    whole = build_c(fixed, frames, prefix="q", layout="dense")
    spikes = golden(whole.program, torch.from_numpy(frames)).spikes
    return floats, whole, {name: float(found.mean()) for name, found in spikes.items()}


TIMER = """\
#define _POSIX_C_SOURCE 199309L
#include "model.h"
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static {p}_state state;
static {p}_events events[{SAMPLES}][{STEPS}];
static uint16_t all[{SAMPLES}][{STEPS}][{P}_INPUTS];

int main(int argc, char **argv)
{{
    const int times = argc > 1 ? atoi(argv[1]) : 1;
    struct timespec a, b;
    long checked = 0;
    for (int s = 0; s < {SAMPLES}; s++) {{
        for (int t = 0; t < {STEPS}; t++) {{
            uint32_t n;
            if (fread(&n, sizeof n, 1, stdin) != 1 || fread(all[s][t], 2, n, stdin) != n) {{
                return 1;
            }}
            events[s][t].index = all[s][t];
            events[s][t].count = NULL;
            events[s][t].n = n;
        }}
    }}
    {p}_init(&state);
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &a);
    for (int i = 0; i < times; i++) {{
        for (int s = 0; s < {SAMPLES}; s++) {{
            if ({p}_run(&state, events[s]) != {P}_OK) {{
                return 1;
            }}
            checked += (long)state.scores[0];
        }}
    }}
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &b);
    printf("%.9f %ld\\n",
           ((b.tv_sec - a.tv_sec) + (b.tv_nsec - a.tv_nsec) * 1e-9) / times / {SAMPLES}, checked);
    return 0;
}}
"""


def timer(found: CProgram, frames: Array, folder: Path, cc: str) -> Callable[[], float]:
    """Seconds of a sample."""
    write_files(found, folder)
    p, steps = found.program.prefix, len(frames)
    text = TIMER.format(p=p, P=p.upper(), STEPS=steps, SAMPLES=SAMPLES)
    (folder / "timer.c").write_text(text)
    command = [cc, *FLAGS, "-std=c99", "timer.c", "model.c", "weights.c", "-o", "timer"]
    subprocess.run(command, cwd=folder, check=True)
    sent = b""
    places = np.moveaxis(frames, 2, -1).reshape(steps, SAMPLES, -1)
    for s in range(SAMPLES):
        for t in range(steps):
            index = np.nonzero(places[t, s])[0].astype(np.uint16)
            sent += np.uint32(len(index)).tobytes() + index.tobytes()

    def run() -> float:
        done = subprocess.run(["./timer", "10"], cwd=folder, input=sent, capture_output=True)
        assert done.returncode == 0
        return float(done.stdout.split()[0])

    return run


def rival_timer(rival: Rival, frames: Array, batch: int) -> Callable[[], float]:
    times = -(-batch // SAMPLES)
    x = torch.from_numpy(frames.astype(np.float32)).repeat(1, times, 1, 1, 1)[:, :batch]

    def run() -> float:
        with torch.inference_mode():
            begun = time.process_time()
            rival(x)
            return (time.process_time() - begun) / batch

    return run


ALONE = "snnTorch, a sample at a time"


def measured(
    name: str, density: float, frames: Array, given: argparse.Namespace
) -> dict[str, float]:
    """Least seconds of a sample, by engine."""
    rival = made(density, torch.from_numpy(frames.astype(np.float32)))
    floats, whole, rates = programs(rival, frames)
    with tempfile.TemporaryDirectory() as folder:
        engines = {
            ALONE: rival_timer(rival, frames, 1),
            f"snnTorch, batches of {BATCH}": rival_timer(rival, frames, BATCH),
            "C, float32": timer(floats, frames, Path(folder) / "f", given.cc),
            "C, int8": timer(whole, frames, Path(folder) / "q", given.cc),
        }
        least = dict.fromkeys(engines, float("inf"))
        for _ in range(given.rounds):
            for engine, run in engines.items():
                least[engine] = min(least[engine], run())
    told = ", ".join(f"{layer} {rate:.1%}" for layer, rate in rates.items())
    show(f"{name}: density {density:.0%}, neurons that fire at a step: {told}")
    return least


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--density", type=float, default=0.1)
    parser.add_argument("--rate", type=float, default=0.05)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--cc", default=harness.compiler())
    given = parser.parse_args()
    torch.set_num_threads(1)
    frames = event_frames(given.rate, given.steps)
    show(f"{given.cc} {' '.join(FLAGS)}; T {given.steps}, inputs that spike {frames.mean():.1%}")
    densities = {"dense": 1.0, "pruned": given.density}
    found = {name: measured(name, part, frames, given) for name, part in densities.items()}
    alone = min(times[ALONE] for times in found.values())
    lines = [
        (name, engine, f"{seconds * 1e3:.3f}", f"{alone / seconds:.1f}")
        for name, times in found.items()
        for engine, seconds in times.items()
    ]
    show(
        output.drawn([Table("Time", ("weights", "engine", "ms a sample", "times as fast"), lines)])
    )
    ratios = {name: alone / times["C, int8"] for name, times in found.items()}
    held = all(ratios[name] >= floor for name, floor in FLOORS.items())
    show(f"floors of the int8 C, {FLOORS}: {'hold' if held else 'do not hold'}")
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
