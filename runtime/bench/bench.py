"""`bench`: engines timed side by side on files of one network, or of a dense and a compact one."""

import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from soul_deploy.base.errors import NetworkWarning, UsageError
from soul_deploy.base.files import Array
from soul_deploy.runtime.bench.engines import EngineSpec
from soul_deploy.runtime.bench.inputs import (
    RANDOM,
    BenchFiles,
    choose_engines,
    common_rule,
    facts_of,
    foreign_files,
    input_samples,
    prepare_engines,
    source_of,
)
from soul_deploy.runtime.bench.report import BenchReport
from soul_deploy.runtime.bench.runner import MAX_BATCHES, BenchPlan, run_bench
from soul_deploy.runtime.bench.timing import Schedule
from soul_deploy.runtime.io.inspect import kind_of

Progress: TypeAlias = Callable[[str], None]
PLACES = {"model": ("model", "compact"), "onnx": ("onnx", "onnx_compact"), "event": ("event",)}


@dataclass(frozen=True, kw_only=True)
class BenchConfig:
    """How engines are timed.

    engines     names; none: all that the files allow
    threads, batch_sizes   every combination of both
    percentiles of the runs' times, in percent
    fresh       also start each engine in a process of its own: load time, first run, memory
    seed        of random images
    data_dir    where a data set's files stand
    """

    engines: tuple[str, ...] = ()
    threads: tuple[int, ...] = (1,)
    batch_sizes: tuple[int, ...] = (1,)
    schedule: Schedule = field(default_factory=Schedule)
    percentiles: tuple[float, ...] = (50, 90, 99)
    fresh: bool = True
    seed: int = 2025
    data_dir: Path = Path("data")


@dataclass(frozen=True, kw_only=True)
class Timed:
    """What was timed: engines with their files, samples along the batch `axis`, the report."""

    specs: tuple[EngineSpec, ...]
    samples: Array
    axis: int
    report: BenchReport


def bench(
    files: Sequence[Path | str] | BenchFiles,
    images: str | object = RANDOM,
    config: BenchConfig = BenchConfig(),
    *,
    progress: Progress = lambda text: None,
) -> BenchReport:
    """Time engines side by side: the same input, the same threads, medians of many runs.

    files: model files, ONNX files and an event network, of one network, or two of a kind: the
    first of the dense network, the second of the compact one. Missing ONNX and event files are
    exported from model files, which needs PyTorch. images: an array (N, C, H, W), or
    (T, N, C, H, W) for a sequence; "random"; a data set's name; the path of a .npy file.
    Warns of ONNX and event files that were not made from the model files given with them.
    Raises UsageError for files or engines that do not go together, ValidityError if they take
    different inputs, MissingFileError, FileFormatError, DataError.
    """
    with tempfile.TemporaryDirectory(prefix="soul-deploy-bench-") as folder:
        return time_files(files, images, config, Path(folder), progress).report


def time_files(
    files: Sequence[Path | str] | BenchFiles,
    images: str | object,
    config: BenchConfig,
    folder: Path,
    progress: Progress,
) -> Timed:
    """As `bench`; what is missing is exported to `folder`."""
    given = files if isinstance(files, BenchFiles) else files_of(files)
    specs = prepare_engines(choose_engines(config.engines, given), given, folder)
    for text in foreign_files(given):
        warnings.warn(NetworkWarning(text), stacklevel=3)
    facts = {path: facts_of(path) for path in dict.fromkeys(spec.path for spec in specs)}
    rule = common_rule(list(facts.values()))
    count = max(config.batch_sizes) * MAX_BATCHES
    samples, axis = input_samples(images, config.data_dir, rule, count, config.seed)
    plan = BenchPlan(
        specs,
        config.threads,
        config.batch_sizes,
        config.schedule,
        config.percentiles,
        config.fresh,
    )
    document = run_bench(plan, samples, axis, progress)
    sources = {spec.name: source_of(facts[spec.path]) for spec in specs}
    for entry in document["entries"]:
        entry["source_sha256"] = sources[entry["engine"]]
    kind = "sequence" if axis == 1 else "static"
    name = images if isinstance(images, str) else "array"
    shown = f"{name}, {kind}, {samples.shape[axis]} samples, T = {rule.time_steps}"
    document |= {"reference": None, "input": shown, "seed": config.seed}
    return Timed(
        specs=specs, samples=samples, axis=axis, report=BenchReport(document, config.percentiles)
    )


def files_of(paths: Sequence[Path | str]) -> BenchFiles:
    """Each file by what it is. Raises UsageError, MissingFileError, FileFormatError."""
    found: dict[str, Path] = {}
    for path in map(Path, paths):
        kind = kind_of(path)
        place = next((place for place in PLACES[kind] if place not in found), None)
        if place is None:
            raise UsageError(f"{path}: at most {len(PLACES[kind])} files of the kind {kind}")
        found[place] = path
    return BenchFiles(**found)
