"""`soul-deploy bench sparse`."""

import json
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np

from soul_deploy.base.errors import UsageError
from soul_deploy.base.files import require_writable, write_text
from soul_deploy.base.progress import status
from soul_deploy.base.terminal import say, show
from soul_deploy.base.warned import warnings_said
from soul_deploy.cli.parsing import (
    ListOption,
    SoulCommand,
    positive_integers,
    require_steps,
    require_threads,
    words,
)
from soul_deploy.cli.text_table import drawn
from soul_deploy.runtime.bench.bench import time_files
from soul_deploy.runtime.bench.calibrate import calibrate, calibration_report, crossover
from soul_deploy.runtime.bench.engines import ENGINES
from soul_deploy.runtime.bench.inputs import (
    RANDOM,
    BenchFiles,
    choose_engines,
    common_rule,
    facts_of,
    input_samples,
    prepare_engines,
)
from soul_deploy.runtime.bench.reference import ReferenceRequest
from soul_deploy.runtime.bench.report import BenchReport, load_baseline
from soul_deploy.runtime.bench.roofline import measure_roof
from soul_deploy.runtime.bench.runner import MAX_BATCHES, BenchConfig
from soul_deploy.runtime.bench.timing import Schedule

FILE = click.Path(path_type=Path)


@dataclass(frozen=True)
class BenchRequest:
    """What was asked, checked."""

    files: BenchFiles
    config: BenchConfig
    given_input: str
    reference: ReferenceRequest | None
    roof: bool = False


@click.command(cls=SoulCommand)
@click.option(
    "--reference",
    is_flag=True,
    help="Time 6Conv2FC with random weights, every layer firing at --rate; no file is needed.",
)
@click.option(
    "--calibrate",
    is_flag=True,
    help="Only find the share of weights from which on dense rows are faster, at --rate and -T.",
)
@click.option("--density", type=float, help="Its share of nonzero weights.  [default: 1]")
@click.option(
    "--connectivity", type=float, help="Instead of --density: the paper's pruned network."
)
@click.option("--rate", type=float, help="Its firing rate per step.  [default: 0.08]")
@click.option("--time_step", "-T", type=int, help="Its time steps.  [default: 4]")
@click.option("--model", "-m", type=FILE, help="Model file of the dense network.")
@click.option("--compact", "-c", type=FILE, help="Model file of the compact network.")
@click.option("--onnx", type=FILE, help="ONNX of the dense network.  [default: exported]")
@click.option("--onnx_compact", type=FILE, help="ONNX of the compact one.  [default: exported]")
@click.option("--event", type=FILE, help="Event network.  [default: exported]")
@click.option(
    "--engines",
    "--backend",
    default=None,
    help=f"Which of {', '.join(ENGINES)}.  [default: all that the files allow]",
)
@click.option("--threads", cls=ListOption, default="1", show_default=True, help="List of numbers.")
@click.option(
    *("--batch_size", "--batch_sizes", "-b"), cls=ListOption, default="1", show_default=True
)
@click.option(
    "--input",
    "given_input",
    default=RANDOM,
    show_default=True,
    help="random (uniform pixels), a data set's name (its test images), or a .npy file.",
)
@click.option("--data_dir", type=FILE, default=Path("data"), show_default=True)
@click.option("--warmup", type=click.IntRange(0), default=5, show_default=True, help="Runs.")
@click.option("--iterations", type=click.IntRange(1), default=50, show_default=True)
@click.option("--duration", type=float, help="Seconds per engine, at least --iterations runs.")
@click.option("--percentiles", cls=ListOption, default="50 90 99", show_default=True)
@click.option("--seed", type=int, default=2025, show_default=True, help="Of the random input.")
@click.option(
    "--fresh/--no_fresh",
    default=True,
    help="Also start each engine in a process of its own: load time, first run, memory.",
)
@click.option(
    "--roof",
    is_flag=True,
    help="Also compare the event engine's largest layers with their bare additions, one thread.",
)
@click.option("--output", "-o", type=FILE, help="Write the result as JSON here too.")
@click.option("--compare", type=FILE, help="An earlier --output to compare with.")
@click.option(
    "--format", "style", type=click.Choice(["table", "json"]), default="table", show_default=True
)
def sparse(style: str, output: Path | None, compare: Path | None, **values: Any) -> None:
    """Time engines side by side: same input, same threads, medians of many runs.

    Engines take turns in blocks after a warm-up. Missing ONNX and event files are exported from
    the model files to a temporary folder.
    """
    from soul_deploy.runtime.kernels.compile_message import compiling_announced  # imports numba

    if values.pop("calibrate"):
        show(calibration(style, output, values))
        return
    if output is not None:
        require_writable(output)
    request = read_request(values)
    baseline = None if compare is None else load_baseline(compare)
    with warnings_said(_warn), compiling_announced():
        report = bench(request)
    if baseline is not None:
        report = report.against(baseline)
        for text in report.document["comparison_differences"]:
            _warn(f"{compare} is of something else: {text}")
    text = json.dumps(report.to_dict(), indent=1)
    if output is not None:
        write_text(output, text + "\n")
    show(text if style == "json" else drawn(report))
    if output is not None:
        say(f"Wrote {output} ({output.stat().st_size:,} bytes)", err=style == "json")


def calibration(style: str, output: Path | None, values: dict[str, Any]) -> str:
    """What `--calibrate` prints. Raises UsageError for options of other benches."""
    if output is not None:
        require_writable(output)
    others = ("reference", "density", "connectivity", "model", "compact", "onnx", "event", "roof")
    given = [f"--{name}" for name in others if values[name]]
    if given:
        raise UsageError(f"{', '.join(given)}: --calibrate times a layer of its own; leave it out")
    rate = 0.08 if values["rate"] is None else values["rate"]
    steps = 4 if values["time_step"] is None else values["time_step"]
    require_steps("--time_step", steps)
    if not 0 < rate <= 1:
        raise UsageError(
            f"--rate {rate:g}: give 0 < rate <= 1, the share of neurons that fire per step"
        )
    schedule = Schedule(2, min(values["iterations"], 15))
    status("bench: calibrating")
    found = calibrate(rate, steps, schedule, values["seed"])
    document = {"schema": "soul-deploy/calibration/1", "rate": rate, "time_steps": steps}
    document |= {"crossover": crossover(found), "layers": [asdict(item) for item in found]}
    if output is not None:
        write_text(output, json.dumps(document, indent=1) + "\n")
    return json.dumps(document, indent=1) if style == "json" else drawn(calibration_report(found))


def read_request(values: dict[str, Any]) -> BenchRequest:
    """Options as a request. Raises UsageError, UnknownNameError."""
    files = BenchFiles(
        **{key: values[key] for key in ("model", "compact", "onnx", "onnx_compact", "event")}
    )
    reference = read_reference(values, files)
    if reference is not None:
        files = BenchFiles(model=Path("reference.safetensors"))  # written when the bench begins
    duration = values["duration"]
    if duration is not None and not 0 < duration <= 3600:
        raise UsageError(f"--duration {duration} must be above 0 and at most 3600 seconds")
    engines = choose_engines(read_engines(values["engines"]), files)
    if values["roof"] and "event" not in engines:
        raise UsageError("--roof measures the engine event; add it to --engines")
    config = BenchConfig(
        engines=engines,
        threads=read_threads(values["threads"]),
        batch_sizes=positive_integers("--batch_size", values["batch_size"]),
        schedule=Schedule(values["warmup"], values["iterations"], duration),
        percentiles=read_percentiles(values["percentiles"]),
        fresh=values["fresh"],
        seed=values["seed"],
        data_dir=values["data_dir"],
    )
    return BenchRequest(files, config, values["given_input"], reference, values["roof"])


def read_reference(values: dict[str, Any], files: BenchFiles) -> ReferenceRequest | None:
    """The reference network asked for. Raises UsageError for options that don't belong together."""
    require_steps("--time_step", values["time_step"])
    fields = {key: values[key] for key in ("density", "connectivity", "rate", "time_step")}
    given = [f"--{key}" for key, value in fields.items() if value is not None]
    if not values["reference"]:
        if given:
            raise UsageError(f"{', '.join(given)}: these describe the network of --reference")
        return None
    if files != BenchFiles():
        raise UsageError("--reference makes its own network; leave out the files")
    if values["given_input"] != RANDOM:
        raise UsageError("--reference makes its own input; leave out --input")
    return ReferenceRequest(**fields, seed=values["seed"])


def read_engines(text: str | None) -> list[str]:
    """Names of engines; none if the option was not given. Raises UsageError for an empty list."""
    if text is None:
        return []
    names = [word.lower() for word in words(text)]
    if not names:
        raise UsageError(
            f"--engines {text!r}: the list is empty; give some of {', '.join(ENGINES)}, or leave "
            "the option out"
        )
    return names


def read_threads(text: str) -> tuple[int, ...]:
    """Numbers of threads. Raises UsageError."""
    threads = positive_integers("--threads", text)
    require_threads(max(threads))
    return threads


def read_percentiles(text: str) -> tuple[float, ...]:
    """Numbers from 0 to 100. Raises UsageError."""
    try:
        shares = tuple(dict.fromkeys(float(word) for word in words(text)))
    except ValueError:
        shares = ()
    if not shares or not all(0 <= share <= 100 for share in shares):
        raise UsageError(f"--percentiles {text!r}: give numbers from 0 to 100, such as 50 90 99")
    return shares


def bench(request: BenchRequest) -> BenchReport:
    """Export what is missing, check that the files fit together, time them."""
    with tempfile.TemporaryDirectory(prefix="soul-deploy-bench-") as folder:
        status("bench: preparing")
        files, images, config = request.files, request.given_input, request.config
        if request.reference is not None:
            count = max(config.batch_sizes) * MAX_BATCHES
            model, path = request.reference.write(Path(folder), count)
            files, images = BenchFiles(model=model), str(path)
        report = time_files(
            files, images, config, Path(folder), lambda text: status(f"bench: {text}")
        )
        document = dict(report.document)
        if request.roof:
            status("bench: measuring the roof")
            (spec,) = prepare_engines(("event",), files, Path(folder))
            rule = common_rule([facts_of(spec.path)])
            samples, axis = input_samples(images, config.data_dir, rule, 1, config.seed)
            first = np.take(samples, [0], axis)
            document |= measure_roof(spec.path, first, config.schedule.iterations)
    if request.reference is not None:
        told_input = document["input"].replace(images, RANDOM, 1)
        document |= {"reference": asdict(request.reference), "input": told_input}
    return replace(report, document=document)


def _warn(text: str) -> None:
    say(f"Warning: {text}", err=True)
