"""`soul-deploy bench sparse`."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import click

from soul_deploy.base import errors, progress, terminal
from soul_deploy.base.files import require_writable, temporary_folder, write_text
from soul_deploy.cli import common_options as common
from soul_deploy.cli import parsing
from soul_deploy.cli.common_options import option
from soul_deploy.cli.output import drawn
from soul_deploy.runtime.bench import inputs, runner, timing
from soul_deploy.runtime.bench.engines import ENGINES
from soul_deploy.runtime.bench.inputs import ReferenceRequest
from soul_deploy.runtime.bench.profile_table import chrome_trace
from soul_deploy.runtime.bench.report import BenchReport, load_baseline
from soul_deploy.runtime.io.inputs import RANDOM
from soul_deploy.runtime.plan.forms import FORMS

TRACE = "Write the profile's last run as a Chrome trace (JSON) here; implies --profile."


@dataclass(frozen=True)
class BenchRequest:
    """What was asked, checked."""

    files: inputs.BenchFiles
    config: runner.BenchConfig
    given_input: str
    reference: ReferenceRequest | None


def _instrument(flag: str) -> Callable[[Any], Any]:
    """A flag of an earlier version, refused: what measured is a script in benchmarks/."""

    def refuse(context: click.Context, parameter: click.Parameter, wanted: bool) -> None:
        if wanted:
            name = flag.removeprefix("--")
            raise errors.UsageError(
                f"{flag} is a script of its own now; run python benchmarks/{name}.py, which is in "
                "soul-deploy's repository"
            )

    return click.option(flag, is_flag=True, hidden=True, expose_value=False, callback=refuse)


def _network_options() -> common.Decorator:
    reference = (
        "Time 6Conv2FC with random weights, every layer firing at --rate; no file is needed."
    )
    steered = "Instead of --density: the paper's pruned network."

    def file(*flags: str, text: str) -> common.Decorator:
        return option(*flags, type=common.FILE, help=text, heading="Files")

    def number(flag: str, text: str) -> common.Decorator:
        return option(flag, type=float, help=text, heading="Network")

    return common.options(
        option("--reference", is_flag=True, help=reference, heading="Network"),
        number("--density", "Its share of nonzero weights.  [default: 1]"),
        number("--connectivity", steered),
        number("--rate", "Its firing rate per step.  [default: 0.08]"),
        common.steps_option("Its time steps.  [default: 4]"),
        file("--model", "-m", text="Model file of the dense network."),
        file("--compact", "-c", text="Model file of the compact network."),
        file("--onnx", text="ONNX of the dense network.  [default: exported]"),
        file("--onnx_compact", text="ONNX of the compact one.  [default: exported]"),
        file("--event", text="Event network.  [default: exported]"),
    )


def _timing_options() -> common.Decorator:
    engines = (
        f"Which of {', '.join(ENGINES)}.  [default: all that the files allow, without openvino "
        "and int8]"
    )
    batch = ("--batch_size", "--batch_sizes", "-b")
    duration = "Seconds per engine, at least --iterations runs."
    fresh = "Also start each engine in a process of its own: load time, first run, memory."

    profile = "Also the event runtime's time by layer and kind of work."

    def number(flag: str, least: int, default: int, text: str | None = None) -> common.Decorator:
        return option(flag, type=click.IntRange(least), default=default, help=text)

    return common.options(
        option("--engines", "--backend", help=engines),
        common.threads_option("List of numbers.", cls=parsing.ListOption, kind=str, default="1"),
        option(*batch, cls=parsing.ListOption, default="1"),
        common.input_option("given_input", RANDOM, "test images"),
        common.resize_option(),
        common.data_dir_option(),
        number("--warmup", 0, 5, "Runs."),
        number("--iterations", 1, 50),
        option("--duration", type=float, help=duration),
        option("--percentiles", cls=parsing.ListOption, default="50 90 99"),
        common.seed_option("Of the random input.", "Data"),
        option("--fresh/--no_fresh", default=True, help=fresh),
        option("--profile", is_flag=True, help=profile),
        common.rows_option(),
    )


@click.command(
    cls=parsing.SoulCommand, example="bench sparse --reference --density 0.02 --engines event"
)
@_network_options()
@_timing_options()
@_instrument("--roof")
@_instrument("--calibrate")
@common.output_option("Write the result as JSON here too.")
@option("--trace", type=common.FILE, help=TRACE, heading="Files")
@option("--compare", type=common.FILE, help="An earlier --output to compare with.", heading="Files")
@common.format_option("style")
def sparse(
    style: str, output: Path | None, trace: Path | None, compare: Path | None, **values: Any
) -> None:
    """Time engines side by side: same input, same threads, medians of many runs.

    Engines take turns in blocks after a warm-up. Missing ONNX and event files are exported from
    the model files to a temporary folder.
    """
    from soul_deploy.runtime.kernels.cache import compiling_announced  # imports numba

    require_writable(*(path for path in (output, trace) if path is not None))
    values["profile"] |= trace is not None
    request = read_request(values)
    baseline = None if compare is None else load_baseline(compare)
    with progress.warnings_said(terminal.warn), compiling_announced():
        report = bench(request)
    if baseline is not None:
        report = report.against(baseline)
        for text in report.document["comparison_differences"]:
            terminal.warn(f"{compare} is of something else: {text}")
    text = json.dumps(report.to_dict(), indent=1)
    if output is not None:
        write_text(output, text + "\n")
    if trace is not None:
        write_text(trace, json.dumps(chrome_trace(report.document["profile"])) + "\n")
    terminal.show(text if style == "json" else drawn(report))
    for path in filter(None, (output, trace)):
        terminal.say(f"Wrote {path} ({path.stat().st_size:,} bytes)", err=style == "json")


def read_request(values: dict[str, Any]) -> BenchRequest:
    """Options as a request. Raises UsageError, UnknownNameError."""
    files = inputs.BenchFiles(
        **{key: values[key] for key in ("model", "compact", "onnx", "onnx_compact", "event")}
    )
    reference = read_reference(values, files)
    if reference is not None:
        # It is written when the bench begins.
        files = inputs.BenchFiles(model=Path("reference.safetensors"))
    duration = values["duration"]
    if duration is not None and not 0 < duration <= 3600:
        raise errors.UsageError(f"--duration {duration} must be above 0 and at most 3600 seconds")
    engines = inputs.choose_engines(read_engines(values["engines"]), files)
    config = runner.BenchConfig(
        engines=engines,
        threads=read_threads(values["threads"]),
        batch_sizes=parsing.positive_integers("--batch_size", values["batch_size"]),
        schedule=timing.TimingSchedule(values["warmup"], values["iterations"], duration),
        percentiles=read_percentiles(values["percentiles"]),
        fresh=values["fresh"],
        seed=values["seed"],
        data_dir=values["data_dir"],
        resize=values["resize"],
        profile=values["profile"],
        forms=parsing.read_forms(values["rows"], FORMS),
    )
    return BenchRequest(files, config, values["given_input"], reference)


def read_reference(values: dict[str, Any], files: inputs.BenchFiles) -> ReferenceRequest | None:
    """The reference network asked for. Raises UsageError for options that don't belong together."""
    parsing.require_steps("--time_step", values["time_step"])
    fields = {key: values[key] for key in ("density", "connectivity", "rate", "time_step")}
    given = [f"--{key}" for key, value in fields.items() if value is not None]
    if not values["reference"]:
        if given:
            told = f"{', '.join(given)}: these describe the network of --reference"
            raise errors.UsageError(told)
        return None
    if files != inputs.BenchFiles():
        raise errors.UsageError("--reference makes its own network; leave out the files")
    if values["given_input"] != RANDOM:
        raise errors.UsageError("--reference makes its own input; leave out --input")
    return ReferenceRequest(**fields, seed=values["seed"])


def read_engines(text: str | None) -> list[str]:
    """Names of engines; none if the option was not given. Raises UsageError for an empty list."""
    if text is None:
        return []
    names = [word.lower() for word in parsing.words(text)]
    if not names:
        raise errors.UsageError(
            f"--engines {text!r}: the list is empty; give some of {', '.join(ENGINES)}, or leave "
            "the option out"
        )
    return names


def read_threads(text: str) -> tuple[int, ...]:
    """Numbers of threads. Raises UsageError."""
    threads = parsing.positive_integers("--threads", text)
    parsing.require_threads(max(threads))
    return threads


def read_percentiles(text: str) -> tuple[float, ...]:
    """Numbers from 0 to 100. Raises UsageError."""
    try:
        shares = tuple(dict.fromkeys(float(word) for word in parsing.words(text)))
    except ValueError:
        shares = ()
    if not shares or not all(0 <= share <= 100 for share in shares):
        raise errors.UsageError(
            f"--percentiles {text!r}: give numbers from 0 to 100, such as 50 90 99"
        )
    return shares


def bench(request: BenchRequest) -> BenchReport:
    """Export what is missing, check that the files fit together, time them."""
    with temporary_folder() as folder:
        progress.status("bench: preparing")
        files, images, config = request.files, request.given_input, request.config
        if request.reference is not None:
            count = max(config.batch_sizes) * runner.MAX_BATCHES
            model, path = request.reference.write(Path(folder), count)
            files, images = inputs.BenchFiles(model=model), str(path)
        report = runner.time_files(
            *(files, images, config, Path(folder)),
            lambda text: progress.status(f"bench: {text}"),
            terminal.warn,
        )
        document = dict(report.document)
    if request.reference is not None:
        told_input = document["input"].replace(images, RANDOM, 1)
        document |= {"reference": asdict(request.reference), "input": told_input}
    return replace(report, document=document)
