"""What each kind of work in the event runtime takes here, and how well the rule chooses by it.

    python benchmarks/calibrate.py [--check] [--milliseconds N] [--seed N] [--json]

Layers of a few shapes, densities, rates and steps are timed in every form that they can have, on
one thread, in about ten seconds (once more for kernels that have to be compiled). Printed are the
constants of runtime/plan/costs.py that explain these times best (least squares of relative errors,
none below 0), ready to paste, and the layers for which they choose worst: the time of the form that
they choose over that of the fastest form. --check judges the constants that stand there instead,
on other layers.

For a processor without registers for masks, run it as one: with NUMBA_CPU_NAME=haswell and
NUMBA_CPU_FEATURES=+avx2,+fma,+bmi,+bmi2,+lzcnt,+popcnt,+f16c,+movbe.
"""

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from scipy.optimize import nnls

from soul_deploy.base import Array
from soul_deploy.base.tables import Table
from soul_deploy.runtime.equations import NeuronEquation
from soul_deploy.runtime.format import network as net
from soul_deploy.runtime.kernels.program import Program
from soul_deploy.runtime.kernels.simd import has_mask_registers
from soul_deploy.runtime.plan import costs
from soul_deploy.runtime.plan.buffers import Builder, bind
from soul_deploy.runtime.plan.costs import Costs, Expected
from soul_deploy.runtime.plan.forms import possible_forms
from soul_deploy.runtime.plan.layer_plan import EMPTY, aligned, plan_layer
from soul_deploy.runtime.plan.layout import channel_last
from soul_deploy.runtime.plan.regions import Region

RUNS, MAPS = 4, 8
"""Of each form at least, of which the first is not counted; different maps of values."""


@dataclass(frozen=True)
class Case:
    """A layer that is timed. side 0: a matrix from `channels` to `outputs` neurons. often: the
    share of neurons that fire at all; None: each step is left to chance.
    """

    channels: int
    outputs: int
    side: int
    density: float
    rate: float = costs.USUAL_RATE
    steps: int = 4
    stride: int = 1
    kernel: int = 3
    edge: net.EdgeKind = "spike"
    often: float | None = None

    def text(self) -> str:
        """The layer in a few words."""
        place = f" {self.side}×{self.side}" if self.side else ""
        stride = f"/{self.stride}" if self.stride > 1 else ""
        kernel = f" {self.kernel}×{self.kernel}{stride}" if self.side else ""
        return (
            f"{self.channels}→{self.outputs}{place}{kernel} {self.density:.2%} at {self.rate:.0%}, "
            f"T = {self.steps}"
            + ("" if self.edge == "spike" else f", {self.edge}")
            + ("" if self.often is None else f", of {self.often:.0%}")
        )

    def values(self, shape: net.Shape, rng: np.random.Generator) -> Array:
        """Maps of values, (maps, *shape), bool."""
        if self.often is None:
            return rng.random((MAPS, *shape), np.float32) < self.rate
        fires = rng.random((MAPS, *shape), np.float32) < self.rate / self.often
        return fires & (rng.random((MAPS, 1, *shape[1:]), np.float32) < self.often)


SHAPES = ((64, 64, 32), (128, 128, 16), (256, 256, 8), (256, 256, 16), (512, 512, 4))
DENSITIES = (0.005, 0.02, 0.05, 0.1, 0.2, 0.4, 1.0)
RATES = (0.02, 0.08, 0.25)


def usual_cases() -> tuple[Case, ...]:
    """Shapes, densities and rates crossed, and single deviations in stride, steps, kernel."""
    found = [
        Case(*shape, density, rate) for shape in SHAPES for density in DENSITIES for rate in RATES
    ]
    for density in (0.01, 0.05, 0.2, 1.0):
        for rate in (0.02, 0.1):
            found += [
                Case(128, 128, 16, density, rate, stride=2),
                Case(64, 64, 16, density, rate, steps=1),
                Case(64, 64, 16, density, rate, steps=8),
                Case(64, 64, 16, density, rate, steps=16),
                Case(64, 64, 16, density, rate, steps=20),
                Case(128, 256, 16, density, rate, kernel=1),
                Case(32, 32, 28, density, rate, kernel=5),
                Case(4096, 256, 0, density, rate),
                Case(512, 512, 0, density, rate),
                Case(16, 24, 32, density, rate),
                Case(64, 64, 7, density, rate),
                Case(32, 80, 28, density, rate),
                Case(7, 7, 56, density, rate),
                Case(7, 7, 28, density, rate, steps=8),
                Case(33, 33, 31, density, rate),
                Case(31, 16, 20, density, rate, steps=3),
                Case(64, 64, 7, density, rate, steps=16),
                Case(96, 96, 4, density, rate, steps=6),
                Case(256, 256, 2, density, rate),
                Case(96, 96, 4, density, rate),
                Case(64, 64, 14, density, rate, steps=16, often=2 * rate),
                Case(64, 64, 31, density, rate / 4, steps=16, often=rate / 2),
                Case(128, 128, 14, density, rate, steps=8, often=2 * rate),
                Case(64, 64, 28, density, rate, often=2 * rate),
            ]
    found += [Case(3, 64, 32, 1.0, 1.0, 1, edge="analog")]
    return tuple(found)


def other_cases() -> tuple[Case, ...]:
    """Layers that `usual_cases` does not have."""
    shapes = ((48, 96, 28), (96, 160, 14), (320, 320, 8), (128, 128, 28), (448, 512, 5))
    found = [
        Case(*shape, density, rate)
        for shape in shapes
        for density in (0.01, 0.08, 0.15, 0.3)
        for rate in (0.01, 0.05, 0.15, 0.4)
    ]
    for density in (0.01, 0.05, 0.15, 0.6):
        found += [Case(96, 96, 20, density, 0.05, steps) for steps in (2, 6, 12, 32)]
        found += [Case(80, 80, 15, density, 0.05, steps, often=0.12) for steps in (4, 8, 16)]
        found += [Case(128, 128, side, density, 0.05) for side in (2, 3, 7)]
        found += [Case(64, 128, 28, density, rate, stride=2) for rate in (0.05, 0.2)]
        found += [Case(96, 96, 12, density, rate, kernel=1) for rate in (0.05, 0.2)]
        found += [Case(24, 40, 24, density, rate, kernel=7) for rate in (0.05, 0.2)]
        found += [Case(1024, 1024, 0, density, rate) for rate in (0.05, 0.2)]
    return tuple(found)


@dataclass(frozen=True)
class Timed:
    """A layer in one form: what it does, and nanoseconds."""

    case: Case
    form: str
    work: Mapping[str, float] = field(repr=False)
    ns: float


def layers_of(case: Case, rng: np.random.Generator) -> tuple[net.SpikingLayer, ...]:
    """The layer on each kind of rows: whole and compressed."""
    if case.side == 0:
        weight = rng.normal(size=(case.channels, case.outputs)).astype(np.float32)
        shapes: tuple[net.Shape, net.Shape] = (case.channels,), (case.outputs,)
    else:
        size = (case.channels, case.kernel, case.kernel, case.outputs)
        weight = rng.normal(size=size).astype(np.float32)
        out = (case.side - 1) // case.stride + 1
        shapes = (case.channels, case.side, case.side), (case.outputs, out, out)
    weight[rng.random(weight.shape) >= case.density] = 0
    weight *= np.float32(4 / np.sqrt(max(1, np.count_nonzero(weight) / case.outputs)))
    kinds: list[net.Rows] = [net.DenseRows(weight)]
    if case.edge == "spike":
        kinds.append(_compressed(weight))
    neuron = NeuronEquation("soul_lif_decay", 2.0, 1.0, 0.0, "gt")
    source, bound = ("source", 1) if case.edge == "spike" else ("input", None)
    return tuple(
        net.SpikingLayer(
            "layer", "synapses", source, case.edge, bound, _synapses(case, shapes, rows), neuron
        )
        for rows in kinds
    )


def _synapses(case: Case, shapes: tuple[net.Shape, net.Shape], rows: net.Rows) -> net.Synapses:
    if case.side == 0:
        return net.MatrixSynapses(*shapes, rows, None)
    kernel, pad = (case.kernel, case.kernel), (case.kernel // 2, case.kernel // 2)
    geometry: Any = (kernel, (case.stride, case.stride), pad, (1, 1), 1, (case.side, case.side))
    return net.ConvSynapses(*shapes, rows, None, *geometry)


def _compressed(weight: Array) -> net.SparseRows:
    flat = weight.reshape(-1, weight.shape[-1])
    row, target = np.nonzero(flat)
    starts = np.searchsorted(row, np.arange(len(flat) + 1)).astype(np.uint32)
    return net.SparseRows(starts, target.astype(np.uint32), flat[row, target])


def network_of(layer: net.SpikingLayer, steps: int) -> net.EventNetwork:
    """The layer behind neurons, or behind the input if it takes analog values."""
    before: tuple[net.Layer, ...] = ()
    if layer.edge == "spike":
        before = (net.PopulationLayer("source", "input", layer.in_shape, layer.neuron),)
    space = len(layer.out_shape) == 3
    head: Any = (layer.out_shape, layer.out_shape[0], space, None, None, 1, 1)
    readout = net.ReadoutLayer("head", layer.name, *head)
    return net.EventNetwork("input", layer.in_shape, steps, (*before, layer), readout)


@dataclass(frozen=True)
class Bound:
    """All that a layer runs, from one map of values to another."""

    regions: Sequence[Region]
    out: Array


def regions_of(network: net.EventNetwork, form: Any, values: Array) -> Bound:
    """The last layer in a form, on a map (T, positions, channels)."""
    layer = network.projected[-1]
    plans = {layer.name: plan_layer(layer, form)}
    builder = Builder(network, plans, network.time_steps, False, 1, EMPTY)
    builder.read = {layer.name}
    builder.made.values[layer.source] = values
    bind(layer, builder)
    return Bound(builder.made.regions, builder.made.values[layer.name])


def time_regions(regions: Sequence[Region], values: Array, maps: Array, seconds: float) -> float:
    """Nanoseconds of the fastest run, of at least RUNS and of as many as `seconds` allow.

    `values`, which the regions read, is another of the maps at each run: a processor learns the
    branches that a map takes if it comes again.
    """
    calls = [call for region in regions for call in region[0]]
    program = Program([(call.kernel, call.arguments) for call in calls])
    found: list[int] = []
    end = time.perf_counter() + seconds
    while len(found) < RUNS or time.perf_counter() < end:
        values[...] = maps[len(found) % len(maps)]
        start = time.perf_counter_ns()
        program.run()
        found.append(time.perf_counter_ns() - start)
    return float(min(found[1:]))


def time_case(case: Case, seconds: float, rng: np.random.Generator) -> list[Timed]:
    """The layer in all forms of both kinds of rows, on the same values."""
    steps, found = 1 if case.edge == "analog" else case.steps, []
    for layer in layers_of(case, rng):
        network = network_of(layer, case.steps)
        shape = (steps, *channel_last(layer.in_shape))
        values = aligned(shape, np.float32 if case.edge == "analog" else np.uint8)
        maps = case.values(shape, rng).astype(values.dtype)
        active = float(maps.any(axis=1).mean())
        expected = Expected(steps, case.steps, float(maps.astype(bool).mean()), active=active)
        for form in possible_forms(layer):
            work = costs.work_of(layer.synapses, form, expected)
            ns = time_regions(regions_of(network, form, values).regions, values, maps, seconds)
            found.append(Timed(case, form, work, ns))
    return found


def fit(timed: Sequence[Timed]) -> Costs:
    """The constants, none below 0, with the least squares of relative errors; those of work that
    nothing did are as before.
    """
    rows = [[each.work.get(kind, 0.0) / each.ns for kind in costs.KINDS] for each in timed]
    most = np.abs(rows).max(axis=0)
    scale = np.where(most > 0, most, 1.0)
    found, _ = nnls(np.array(rows) / scale, np.ones(len(rows)))
    before = asdict(costs.costs_here())
    fitted = {
        kind: float(f"{value:.3g}") if done else before[kind]
        for kind, value, done in zip(costs.KINDS, found / scale, most > 0, strict=True)
    }
    return Costs(**fitted)


@dataclass(frozen=True)
class Choice:
    """The form that the constants choose for a layer, the fastest, and the ratio of their times."""

    case: Case
    chosen: str
    fastest: str
    ratio: float


COMPRESSED = ("sparse", "planes")
"""Forms on compressed rows; the others run on whole rows."""


def choices(timed: Sequence[Timed], constants: Costs, *, stored: bool) -> list[Choice]:
    """What the constants choose in each case, the worst first. stored: among forms of the same
    rows, as a runtime does; otherwise among all, as an export would that knew the processor.
    """
    groups: dict[tuple[Case, bool], list[Timed]] = {}
    for each in timed:
        groups.setdefault((each.case, stored and each.form in COMPRESSED), []).append(each)
    found = []
    for (case, _), forms in groups.items():
        chosen = min(forms, key=lambda each: constants.nanoseconds(each.work))
        best = min(forms, key=lambda each: each.ns)
        found.append(Choice(case, chosen.form, best.form, chosen.ns / best.ns))
    return sorted(found, key=lambda choice: -choice.ratio)


def constants_text(constants: Costs) -> str:
    """The constants as they stand in costs.py."""
    name = "WITH_MASKS" if has_mask_registers() else "WITHOUT_MASKS"
    lines = [f"    {kind}={value:g}," for kind, value in asdict(constants).items()]
    return "\n".join([f"{name} = Costs(", *lines, ")"])


def report(timed: Sequence[Timed], constants: Costs, worst: int = 8) -> str:
    """How far estimates are off, and the worst choices."""
    ratios = [constants.nanoseconds(each.work) / each.ns for each in timed]
    spread = ", ".join(f"{value:.2f}" for value in np.quantile(ratios, [0, 0.1, 0.5, 0.9, 1]))
    parts = [f"Estimated over measured times: {spread} (0, 10, 50, 90 and 100 % of the forms)"]
    for stored, rows in ((True, "the same rows"), (False, "all rows")):
        found = choices(timed, constants, stored=stored)
        cells = [[c.case.text(), c.chosen, c.fastest, f"{c.ratio:.2f}"] for c in found[:worst]]
        title = f"Worst of {len(found)} choices among forms of {rows}"
        parts.append(str(Table(title, ["layer", "chosen", "fastest", "time ratio"], cells)))
    return "\n".join(parts)


def document_of(timed: Sequence[Timed], constants: Costs) -> dict[str, Any]:
    """Constants, times and ratios as JSON data."""
    return {
        "schema": "soul-deploy/calibration/2",
        "mask_registers": has_mask_registers(),
        "constants": asdict(constants),
        "worst": choices(timed, constants, stored=True)[0].ratio,
        "forms": [{**asdict(each.case), "form": each.form, "ns": each.ns} for each in timed],
    }


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--milliseconds", type=float, default=12, help="for each form of a layer")
    parser.add_argument("--seed", type=int, default=2025)
    parser.add_argument("--check", action="store_true", help="judge the constants in costs.py")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args(words)
    if not 0 <= given.milliseconds <= 10_000:
        parser.error(f"--milliseconds {given.milliseconds:g}: give 0 to 10000")
    rng, cases = np.random.default_rng(given.seed), other_cases() if given.check else usual_cases()
    timed = [each for case in cases for each in time_case(case, given.milliseconds / 1e3, rng)]
    constants = costs.costs_here() if given.check else fit(timed)
    if given.json:
        print(json.dumps(document_of(timed, constants), indent=1))
        return
    told = [] if given.check else [constants_text(constants)]
    print("\n".join([*told, report(timed, constants)]))


if __name__ == "__main__":
    main()
