"""Engines side by side in one process: the same input, the same threads, medians of many runs.

Engines take turns in blocks, so they meet the same state of the machine. What a first use costs is
measured apart, once for each engine in a fresh process (timing.py).
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from soul_deploy.base import Array, environment, errors, file_kinds
from soul_deploy.base.files import temporary_folder
from soul_deploy.runtime.bench import inputs, report, timing
from soul_deploy.runtime.bench.engines import ENGINES, Engine, EngineSpec
from soul_deploy.runtime.io.inputs import DATA, RANDOM
from soul_deploy.runtime.io.inspect import kind_of_file

EVENT = "event"
"""The engine that has forms of rows, and whose time is told by layer."""
MAX_BATCHES = 8
"""Different batches that runs cycle through: an event network's time depends on its input."""

Progress = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class BenchConfig:
    """How engines are timed.

    engines      names; none: all that the files allow
    threads      numbers of threads, each with each of `batch_sizes`
    percentiles  of the runs' times, in percent
    fresh        also start each engine in a process of its own: load time, first run, memory
    seed         of random images
    data_dir     where a data set's files stand
    resize       scale image files of another size
    profile      also where the event runtime's time goes, by layer and kind of work
    forms        how some layers' synapses run in the event runtime, by name; see `Network`
    """

    engines: tuple[str, ...] = ()
    threads: tuple[int, ...] = (1,)
    batch_sizes: tuple[int, ...] = (1,)
    schedule: timing.TimingSchedule = field(default_factory=timing.TimingSchedule)
    percentiles: tuple[float, ...] = (50, 90, 99)
    fresh: bool = True
    seed: int = 2025
    data_dir: Path = Path("data")
    resize: bool = False
    profile: bool = False
    forms: Mapping[str, str] = field(default_factory=dict)


def bench(
    files: Sequence[Path | str] | inputs.BenchFiles,
    images: str | object = RANDOM,
    config: BenchConfig | None = None,
    *,
    progress: Progress = lambda text: None,
) -> report.BenchReport:
    """Time engines side by side: the same input, the same threads, medians of many runs.

    files: model files, ONNX files and an event network, of one network, or two of a kind: the
    first of the dense network, the second of the compact one. Missing ONNX and event files are
    exported from model files, which needs PyTorch. images: an array (N, C, H, W), or
    (T, N, C, H, W) for a sequence; "random"; "data", the data set that a model file records; a data
    set's name; the path of a .npy or .npz file or of a folder of images.
    Warns of ONNX and event files that were not made from the model files given with them.
    Raises UsageError for files or engines that do not go together, ValidityError if they take
    different inputs, MissingFileError, FileFormatError, DataError.
    """
    with temporary_folder() as folder:
        settings = config or BenchConfig()
        return time_files(files, images, settings, Path(folder), progress, _warn)


def _warn(text: str) -> None:
    warnings.warn(errors.NetworkWarning(text), stacklevel=4)  # the caller of `bench`


def time_files(
    files: Sequence[Path | str] | inputs.BenchFiles,
    images: str | object,
    config: BenchConfig,
    folder: Path,
    progress: Progress,
    warn: Callable[[str], None],
) -> report.BenchReport:
    """As `bench`; what is missing is exported to `folder`; `warn` is called first."""
    given = files if isinstance(files, inputs.BenchFiles) else files_of(files)
    names = inputs.choose_engines(config.engines, given)
    if (config.profile or config.forms) and EVENT not in names:
        raise errors.UsageError(
            f"a profile, and forms of rows, are of the engine {EVENT}, which is not among "
            f"{', '.join(names)}; give an event network or a model file, and leave --engines out "
            "or add it"
        )
    specs = inputs.prepare_engines(names, given, folder, config.forms)
    for text in inputs.foreign_files(given):
        warn(text)
    facts = {path: inputs.facts_of(path) for path in dict.fromkeys(spec.path for spec in specs)}
    sources = {spec.name: inputs.source_of(facts[spec.path]) for spec in specs}
    rule = replace(inputs.common_rule(list(facts.values())), resize=config.resize)
    if isinstance(images, str) and images.lower() == DATA:
        images = inputs.recorded_data(given)
    count = max(config.batch_sizes) * MAX_BATCHES
    samples, axis = inputs.input_samples(images, config.data_dir, rule, count, config.seed)
    if any(ENGINES[name].int8 for name in names):
        progress("quantising")
        specs = inputs.quantised(specs, split_batches(samples, 1, axis), folder)
    document = run_bench(specs, config, samples, axis, progress)
    if config.profile:
        progress("profiling")
        from soul_deploy.runtime.bench.profile import profile  # imports numba's kernels

        (path,) = (spec.path for spec in specs if spec.name == EVENT)
        batch = split_batches(samples, 1, axis)[0]
        runs = config.schedule.iterations
        document["profile"] = profile(path, batch, runs, config.forms)
    for entry in document["entries"]:
        entry["source_sha256"] = sources[entry["engine"]]
    kind = "sequence" if axis == 1 else "static"
    name = images if isinstance(images, str) else "array"
    shown = f"{name}, {kind}, {samples.shape[axis]} samples, T = {rule.time_steps}"
    document |= {"reference": None, "input": shown, "seed": config.seed}
    return report.BenchReport(document, config.percentiles)


def files_of(paths: Sequence[Path | str]) -> inputs.BenchFiles:
    """Each file by what it is. Raises UsageError, MissingFileError, FileFormatError."""
    found: dict[str, Path] = {}
    for path in map(Path, paths):
        kind = kind_of_file(path)
        if kind not in inputs.PLACES:
            raise file_kinds.wrong_kind(path, kind, inputs.TIMED)
        places = dict.fromkeys(inputs.PLACES[kind].values())
        place = next((place for place in places if place not in found), None)
        if place is None:
            raise errors.UsageError(f"{path}: at most {len(places)} files of the kind {kind}")
        found[place] = path
    return inputs.BenchFiles(**found)


def split_batches(samples: Array, batch_size: int, axis: int) -> list[Array]:
    """Up to MAX_BATCHES contiguous batches of `samples` along the batch `axis`.

    Raises UsageError if there are fewer samples than one batch takes.
    """
    count = samples.shape[axis]
    if count < batch_size:
        raise errors.UsageError(
            f"batch size {batch_size} asked, but the input holds {count} samples; give more "
            "samples or a smaller batch"
        )
    starts = range(0, count - batch_size + 1, batch_size)[:MAX_BATCHES]
    parts = [np.take(samples, range(start, start + batch_size), axis) for start in starts]
    return [np.ascontiguousarray(part, np.float32) for part in parts]


def run_bench(
    specs: Sequence[EngineSpec], config: BenchConfig, samples: Array, axis: int, progress: Progress
) -> dict[str, Any]:
    """Time every engine with its file; the result as JSON data of the schema `report.SCHEMA`.

    samples: (N, C, H, W) with axis 0, or (T, N, C, H, W) with axis 1, float32.
    Raises ValidityError if an engine does not take them, UsageError for too few samples.
    """
    before = environment.environment()
    entries: list[dict[str, Any]] = []
    agreement: dict[str, dict[str, Any]] = {}
    for threads in config.threads:
        progress(f"loading {len(specs)} engines, threads {threads}")
        engines: dict[EngineSpec, Engine] = {}
        for spec in specs:
            engines[spec] = spec.create(threads)
            engines[spec].load()
        for size in config.batch_sizes:
            batches = split_batches(samples, size, axis)
            progress(f"timing {len(engines)} engines, threads {threads}, batch {size}")
            merge_agreement(agreement, compare_engines(engines, batches))
            entries += time_engines(config, engines, threads, size, batches, progress)
    return {
        "schema": report.SCHEMA,
        "environment": {**before, "threads": list(config.threads)},
        "schedule": asdict(config.schedule),
        "entries": entries,
        "agreement": list(agreement.values()),
    }


def time_engines(
    config: BenchConfig,
    engines: Mapping[EngineSpec, Engine],
    threads: int,
    batch_size: int,
    batches: Sequence[Array],
    progress: Progress,
) -> list[dict[str, Any]]:
    """One entry per engine for one number of threads and one batch size."""
    runs = {spec.name: engine.infer for spec, engine in engines.items()}
    times = timing.time_in_turns(runs, batches, config.schedule)
    entries, fresh = [], None
    with temporary_folder() as folder:
        batch = Path(folder) / "batch.npy"
        np.save(batch, batches[0], allow_pickle=False)
        for spec in engines:
            if config.fresh:
                progress(f"{spec.name} in a fresh process, threads {threads}")
                fresh = timing.measure_fresh(spec, threads, batch)
            entries.append(
                engine_entry(spec, threads, batch_size, times[spec.name], config.percentiles, fresh)
            )
    return entries


def engine_entry(
    spec: EngineSpec,
    threads: int,
    batch_size: int,
    times: Sequence[float],
    percentiles: Sequence[float],
    fresh: timing.Fresh | None,
) -> dict[str, Any]:
    """One measurement as JSON data: times in ms, items_per_s = batch size / median time."""
    shares = sorted({50.0, 90.0, 99.0, *map(float, percentiles)})
    median = timing.percentile(times, 50)
    costs = dict.fromkeys(("import_ms", "load_ms", "first_ms", "rss_mb"))
    return {
        "engine": spec.name,
        "network": spec.network,
        "file": spec.path.name,
        "file_bytes": spec.path.stat().st_size,
        "threads": threads,
        "batch_size": batch_size,
        "runs": len(times),
        "mean_ms": float(np.mean(times)),
        "std_ms": float(np.std(times)),
        "min_ms": min(times),
        "max_ms": max(times),
        **{f"p{share:g}_ms": timing.percentile(times, share) for share in shares},
        "items_per_s": batch_size * 1000 / median,
        **(costs if fresh is None else asdict(fresh)),
    }


def compare_engines(
    engines: Mapping[EngineSpec, Engine], batches: Sequence[Array]
) -> list[dict[str, Any]]:
    """How each engine's scores differ from the first engine's of the same network."""
    first: dict[str, tuple[str, Array]] = {}
    found = []
    for spec, engine in engines.items():
        scores = np.concatenate([engine.infer(batch) for batch in batches])
        if spec.network not in first:
            first[spec.network] = spec.name, scores
            continue
        against, expected = first[spec.network]
        if scores.shape != expected.shape:
            raise errors.ValidityError(
                f"{spec.name} gives scores {scores.shape}, {against} {expected.shape}; these "
                f"files are not the same {spec.network} network"
            )
        same = scores.argmax(1) == expected.argmax(1)
        found.append(
            {
                "engine": spec.name,
                "network": spec.network,
                "against": against,
                "samples": len(scores),
                "classes_agree": int(same.sum()),
                "max_logit_difference": float(np.abs(scores.astype(np.float64) - expected).max()),
            }
        )
    return found


def merge_agreement(known: dict[str, dict[str, Any]], found: Sequence[Mapping[str, Any]]) -> None:
    """Add comparisons to `known`, by engine: samples summed, the largest difference kept."""
    for item in found:
        old = known.setdefault(
            item["engine"], {**item, "samples": 0, "classes_agree": 0, "max_logit_difference": 0.0}
        )
        old["samples"] += item["samples"]
        old["classes_agree"] += item["classes_agree"]
        old["max_logit_difference"] = max(old["max_logit_difference"], item["max_logit_difference"])
