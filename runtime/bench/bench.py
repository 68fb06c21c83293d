"""`bench`: engines timed side by side on files of one network, or of a dense and a compact one."""

import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path

from soul_deploy.base.errors import NetworkWarning, UsageError
from soul_deploy.runtime.bench import inputs, report, runner
from soul_deploy.runtime.io.inspect import kind_of_file

PLACES = {"model": ("model", "compact"), "onnx": ("onnx", "onnx_compact"), "event": ("event",)}


def bench(
    files: Sequence[Path | str] | inputs.BenchFiles,
    images: str | object = inputs.RANDOM,
    config: runner.BenchConfig | None = None,
    *,
    progress: runner.Progress = lambda text: None,
) -> report.BenchReport:
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
        return time_files(files, images, config or runner.BenchConfig(), Path(folder), progress)


def time_files(
    files: Sequence[Path | str] | inputs.BenchFiles,
    images: str | object,
    config: runner.BenchConfig,
    folder: Path,
    progress: runner.Progress,
) -> report.BenchReport:
    """As `bench`; what is missing is exported to `folder`."""
    given = files if isinstance(files, inputs.BenchFiles) else files_of(files)
    specs = inputs.prepare_engines(inputs.choose_engines(config.engines, given), given, folder)
    for text in inputs.foreign_files(given):
        warnings.warn(NetworkWarning(text), stacklevel=3)
    facts = {path: inputs.facts_of(path) for path in dict.fromkeys(spec.path for spec in specs)}
    rule = inputs.common_rule(list(facts.values()))
    count = max(config.batch_sizes) * runner.MAX_BATCHES
    samples, axis = inputs.input_samples(images, config.data_dir, rule, count, config.seed)
    document = runner.run_bench(specs, config, samples, axis, progress)
    sources = {spec.name: inputs.source_of(facts[spec.path]) for spec in specs}
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
        place = next((place for place in PLACES[kind] if place not in found), None)
        if place is None:
            raise UsageError(f"{path}: at most {len(PLACES[kind])} files of the kind {kind}")
        found[place] = path
    return inputs.BenchFiles(**found)
