"""The event runtime against an earlier version of it, over a grid of small networks.

    git worktree add ../before 88029a9
    python benchmarks/forms_grid.py --against ../before [--folder FOLDER] [--points N] [--seconds S]

A point is a static image, one layer of neurons, then one or two 3×3 convolutions, one thread, batch
1. Points cover every pair of values of the factors (rate, density, map, T, layers) at least once,
then are drawn; the channels are those that keep a point short. Each point's event file is made
once, and both versions run it, each in a process of its own; they take turns, so that a slow
moment of the machine falls on both. Points that are slower than before by more than 10 % are
measured three times (the median counts), in every form that their layers can have.

Everything is kept in FOLDER: a run that was stopped, or ended after S seconds of measuring, goes
on as long as no source of either runtime changes. `--seconds 0` only makes files and compiles.
Then the worst points are printed. Exits with 1 if a point is slower by more than 10 %, or the
median is less than 1.5 times as fast.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from soul_deploy.analysis.reference_network import set_rates
from soul_deploy.base import environment
from soul_deploy.base.tables import Table
from soul_deploy.export.event.build import export_event
from soul_deploy.frontend.from_torch import trace
from soul_deploy.ir import NeuronSpec
from soul_deploy.model.model import Model, arrays_of
from soul_deploy.nn import layers
from soul_deploy.nn.graph_module import GraphModule
from soul_deploy.nn.neuron import SpikingNeuron
from soul_deploy.runtime.format.file import save_event_network
from soul_deploy.runtime.kernels.kept import sources_stamp
from soul_deploy.runtime.plan.forms import FORMS

ROOT = Path(__file__).resolve().parents[1]
FACTORS: Mapping[str, Sequence[Any]] = {
    "rate": (0.01, 0.02, 0.05, 0.1, 0.2, 0.4),
    "density": (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0),
    "sides": (
        *((2, 2), (4, 4), (7, 7), (8, 8), (14, 14), (5, 31), (31, 31), (32, 32), (33, 33)),
        *((9, 33), (56, 56), (3, 112), (112, 112), (4, 224), (48, 224)),
    ),
    "steps": (1, 2, 3, 4, 6, 8, 16, 24),
    "depth": (1, 2),
}
IMAGES = 8
"""Of each point, one a run in turns: of an image that comes again a processor has learned all
branches, which flatters forms that go from event to event."""
CHANNELS = (4, 7, 16, 31, 33, 64, 96, 112, 224, 256)
MOST_SYNOPS, MOST_NEURON_STEPS = 15e6, 1.2e6
"""Of a layer, expected: what keeps a point to about 20 ms."""
SLOWER, FASTER = 1 / 1.1, 1.5
ROUNDS, BLOCK_MS, MOST_RUNS = 5, 12.0, 40
INPUT_CHANNELS, CLASSES = 3, 10


@dataclass(frozen=True)
class Point:
    """rate: spikes per neuron and step of every layer; sides: of the map; density: of weights."""

    rate: float
    density: float
    sides: tuple[int, int]
    steps: int
    depth: int
    channels: int = 0

    @property
    def name(self) -> str:
        """Its files' name."""
        height, width = self.sides
        return (
            f"{height}x{width}-c{self.channels}-d{self.density:g}-r{self.rate:g}-T{self.steps}"
            f"-{self.depth}"
        )

    @property
    def synops(self) -> float:
        """Expected additions of a layer."""
        weights = 9 * self.channels**2 * self.density
        return self.sides[0] * self.sides[1] * weights * self.rate * self.steps

    @property
    def neuron_steps(self) -> int:
        return self.sides[0] * self.sides[1] * self.channels * self.steps


def covering_points(count: int, seed: int) -> list[Point]:
    """Points in which every pair of values of two factors occurs, then drawn ones up to `count`.

    Greedy: of 60 drawn combinations the one with the most pairs that are still missing.
    """
    rng = np.random.default_rng(seed)
    sizes = [len(values) for values in FACTORS.values()]
    missing = {
        ((a, i), (b, j))
        for a, b in combinations(range(len(sizes)), 2)
        for i, j in product(range(sizes[a]), range(sizes[b]))
    }
    rows: list[tuple[int, ...]] = []
    while missing or len(rows) < count:
        drawn = [tuple(int(rng.integers(size)) for size in sizes) for _ in range(60)]
        if missing:
            (a, i), (b, j) = min(missing)
            drawn = [tuple({a: i, b: j}.get(at, v) for at, v in enumerate(row)) for row in drawn]
        best = max(drawn, key=lambda row: len(missing & _pairs(row)))
        missing -= _pairs(best)
        rows.append(best)
    return list(dict.fromkeys(_point(row, rng) for row in rows))


def _pairs(row: tuple[int, ...]) -> set[tuple[tuple[int, int], tuple[int, int]]]:
    return set(combinations(enumerate(row), 2))


def _point(row: tuple[int, ...], rng: np.random.Generator) -> Point:
    """With channels that keep it short, the upper half of them; the fewest if none do."""
    point = Point(*(values[at] for values, at in zip(FACTORS.values(), row, strict=True)))
    able = [replace(point, channels=channels) for channels in CHANNELS]
    short = [p for p in able if p.synops <= MOST_SYNOPS and p.neuron_steps <= MOST_NEURON_STEPS]
    return short[int(rng.integers(len(short) // 2, len(short)))] if short else able[0]


def model_of(point: Point) -> tuple[Model, torch.Tensor]:
    """The network of a point, set to its rate, and the images that it was set on."""
    channels, steps = point.channels, point.steps
    modules: list[nn.Module] = []
    for inputs, kernel in [(INPUT_CHANNELS, 1), *[(channels, 3)] * point.depth]:
        padding = kernel // 2
        modules += [layers.Conv2d(inputs, channels, kernel, padding=padding, bias=False)]
        modules += [layers.BatchNorm2d(channels), SpikingNeuron(NeuronSpec(), steps)]
    network = nn.Sequential(*modules, layers.RateReadout(channels, CLASSES))
    shape = (INPUT_CHANNELS, *point.sides)
    module = GraphModule(trace(network, shape, steps)).eval()
    generator = torch.Generator().manual_seed(2025)
    with torch.no_grad():
        for name, tensor in module.named_parameters():
            if tensor.dim() == 4:
                tensor.normal_(generator=generator)
                if tensor.shape[-1] == 3:
                    tensor.mul_(torch.rand(tensor.shape, generator=generator) < point.density)
            elif name.endswith("bias"):  # channels without synapses do not all fire at once
                tensor.normal_(0, 0.3, generator=generator)
        images = torch.randn((IMAGES, *shape), generator=generator)
        set_rates(module, module.as_signal(images), point.rate)
    return Model(module.graph, arrays_of(module.state_dict())), images


def make(point: Point, folder: Path) -> None:
    """Write the point's event files, its images and the rates that its layers have, if missing.

    The plain file says nothing of rates: versions before them refuse it otherwise.
    """
    told = folder / f"{point.name}.json"
    if told.exists():
        return
    model, images = model_of(point)
    network = export_event(model, folder / f"{point.name}.event.safetensors", images=images.numpy())
    save_event_network(
        folder / f"{point.name}.plain.event.safetensors", replace(network, rates={}, active={})
    )
    np.save(folder / f"{point.name}.npy", images.numpy(), allow_pickle=False)
    spikes = model.module().record(images).spikes
    rates = {name: float(fired.float().mean()) for name, fired in spikes.items()}
    told.write_text(json.dumps({**asdict(point), "rates": rates}))


class Version:
    """One version of the runtime, in a process of its own."""

    def __init__(self, process: "subprocess.Popen[str]", suffix: str) -> None:
        self.process, self.suffix = process, suffix

    def ask(self, **what: Any) -> dict[str, Any]:
        """The answer to one request of grid_child.py."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(what) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"the version in {self.process.args!r} ended; its error stands above")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def load(self, point: Point, folder: Path, forms: Sequence[str | None]) -> list[dict[str, str]]:
        """The layers' forms of each contender."""
        path = folder / f"{point.name}{self.suffix}"
        image = folder / f"{point.name}.npy"
        found: list[dict[str, str]] = self.ask(load=str(path), input=str(image), forms=forms)[
            "forms"
        ]
        return found


@contextmanager
def version(tree: Path) -> Iterator[Version]:
    """The version whose sources are in `tree`, where its compiled kernels are kept too."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    own = {"PYTHONPATH": str(tree), **dict.fromkeys(names, "1")}
    words = [sys.executable, str(ROOT / "benchmarks" / "grid_child.py")]
    pipe, environ = subprocess.PIPE, {**os.environ, **own}
    with subprocess.Popen(words, stdin=pipe, stdout=pipe, text=True, env=environ) as process:
        try:
            rated = (tree / "runtime" / "plan" / "costs.py").exists()
            yield Version(process, f"{'' if rated else '.plain'}.event.safetensors")
        finally:
            process.kill()


def measure(before: Version, now: Version, contenders: Sequence[int]) -> dict[str, Any]:
    """Median ms of the version before and of each contender of the one now, in turns."""
    runs = [(before, 0), *((now, which) for which in contenders)]
    first = [one.ask(time=which, runs=1) for one, which in runs]
    counts = [int(np.clip(BLOCK_MS / one["ms"][0], 1, MOST_RUNS)) for one in first]
    times: list[list[float]] = [[] for _ in runs]
    for _ in range(ROUNDS):
        for at, (one, which) in enumerate(runs):
            times[at] += one.ask(time=which, runs=counts[at])["ms"]
    medians = [float(np.median(found)) for found in times]
    scores = [np.array(one["scores"]) for one in first]
    return {
        "before_ms": medians[0],
        "ms": medians[1:],
        "score_difference": float(max(np.abs(one - scores[0]).max() for one in scores[1:])),
    }


def measured(point: Point, folder: Path, before: Version, now: Version) -> dict[str, Any]:
    """One point's record: the ratio (above 1: faster now), forms, and for outliers all forms."""
    before.load(point, folder, [None])
    (chosen,) = now.load(point, folder, [None])
    told = measure(before, now, [0])
    record = {"chosen": chosen, **told, "ms": told["ms"][0], "repeats": []}
    record["ratio"] = told["before_ms"] / record["ms"]
    if record["ratio"] >= SLOWER:
        return record
    wanted = [None, *FORMS]
    forms = now.load(point, folder, wanted)
    different = [at for at, found in enumerate(forms) if found not in forms[:at]]
    repeats = [measure(before, now, different) for _ in range(3)]
    ratios = [[one["before_ms"] / ms for ms in one["ms"]] for one in repeats]
    middle = np.median(ratios, axis=0)
    record["repeats"] = [record["ratio"], *(row[0] for row in ratios)]
    record["ratio"] = float(middle[0])
    record["other_forms"] = {
        str(wanted[at]): float(ratio) for at, ratio in zip(different[1:], middle[1:], strict=True)
    }
    return record


def table_of(points: Sequence[Point], records: Sequence[Mapping[str, Any]], worst: int) -> Table:
    """The worst points, slowest first."""
    order = sorted(zip(points, records, strict=True), key=lambda pair: pair[1]["ratio"])[:worst]
    rows = []
    for point, record in order:
        forms = ", ".join(list(record["chosen"].values())[1:])  # without the image's layer
        others = {name: f"{ratio:.2f}" for name, ratio in record.get("other_forms", {}).items()}
        rows.append(
            [
                f"{point.sides[0]}x{point.sides[1]}",
                *(point.channels, f"{point.density:.1%}", f"{point.rate:.0%}", point.steps),
                *(forms, f"{record['before_ms']:.3f}", f"{record['ms']:.3f}"),
                f"{record['ratio']:.2f}",
                ", ".join(f"{name} {ratio}" for name, ratio in others.items()),
            ]
        )
    columns = ("map", "channels", "weights", "rate", "T", "forms", "before, ms", "now, ms", "ratio")
    return Table("Worst points", (*columns, "in other forms"), rows)


def summary(records: Sequence[Mapping[str, Any]]) -> tuple[str, bool]:
    """What is asked of the grid in one line, and whether it holds."""
    ratios = np.array([record["ratio"] for record in records])
    slower = int((ratios < SLOWER).sum())
    text = (
        f"{len(ratios)} points: median {np.median(ratios):.2f} times as fast, slowest "
        f"{ratios.min():.2f}, fastest {ratios.max():.2f}; slower by more than 10 %: {slower} "
        f"({slower / len(ratios):.1%}), slower at all: {(ratios < 1).mean():.1%}"
    )
    return text, slower == 0 and float(np.median(ratios)) >= FASTER


def stamp_of(tree: Path) -> str:
    """What tells versions of the runtime apart."""
    stamp = sources_stamp(tree / "runtime")
    assert stamp is not None
    return stamp[:12]


def prepare(points: Sequence[Point], folder: Path, sources: Sequence[Path]) -> None:
    """Write all files and let both versions compile their kernels, which is not measured."""
    for point in points:
        make(point, folder)
    for tree in sources:
        mark = folder / f"{stamp_of(tree)}-{len(points)}.compiled"
        if not mark.exists():
            with version(tree) as one:
                for point in points:
                    one.load(point, folder, [None, *FORMS])
            mark.touch()


def run(points: Sequence[Point], given: argparse.Namespace) -> dict[str, Any]:
    """Measure what is missing; all records by the point's name."""
    sources = (given.against.resolve(), ROOT)
    kept = given.folder / f"{'-'.join(map(stamp_of, sources))}.json"
    records: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {}
    prepare(points, given.folder, sources)
    missing = [point for point in points if point.name not in records]
    if not missing or given.seconds <= 0:
        return records
    end = time.monotonic() + given.seconds
    with ExitStack() as stack:
        before, now = (stack.enter_context(version(tree)) for tree in sources)
        for point in missing:
            if time.monotonic() >= end:
                break
            records[point.name] = measured(point, given.folder, before, now)
            new = kept.with_suffix(".new")
            new.write_text(json.dumps(records, indent=1))
            new.replace(kept)
    return records


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--against", type=Path, required=True, help="a checkout of before")
    parser.add_argument("--folder", type=Path, default=Path("forms_grid"), help="what is kept")
    parser.add_argument("--points", type=int, default=160, help="at least those that cover")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="of measuring")
    parser.add_argument("--worst", type=int, default=20, help="points that are printed")
    parser.add_argument("--seed", type=int, default=2025)
    given = parser.parse_args(words)
    if not (given.against / "soul_deploy").exists():
        parser.error(f"--against {given.against}: give the root of a checkout")
    given.folder = given.folder.resolve()
    given.folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    points = covering_points(given.points, given.seed)
    records = run(points, given)
    done = [point for point in points if point.name in records]
    if not done:
        return 1
    found = [records[point.name] for point in done]
    text, holds = summary(found)
    told = [{**asdict(point), **records[point.name]} for point in done]
    document = {"environment": environment.environment(), "summary": text, "points": told}
    (given.folder / "forms_grid.json").write_text(json.dumps(document, indent=1))
    print(f"\n{table_of(done, found, given.worst)}\n{text}; {len(points) - len(done)} left")
    return 0 if holds and len(done) == len(points) else 1


if __name__ == "__main__":
    sys.exit(main())
