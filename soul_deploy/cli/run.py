"""`soul-deploy inspect` and `soul-deploy run`. Each imports what it uses, when it uses it."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import click

from soul_deploy.base import errors, memory, progress, tables, terminal
from soul_deploy.cli import common_options as common
from soul_deploy.cli import parsing
from soul_deploy.cli.common_options import option
from soul_deploy.cli.run_events import HEADING, EventOptions, run_recording

DRAWN = 32
"""Samples of a data set or random ones that `run` takes unless told otherwise."""
MAX_MEMORY = common.max_memory_option(
    "Refuse a file that would take more memory than its size explains, before it is taken: "
    "bytes, or with a unit (500MB, 2GiB).  [default: 4GiB; 128MiB for its description]"
)


@click.command(cls=parsing.SoulCommand, example="inspect net.event")
@click.argument("path", metavar="FILE", type=common.FILE)
@MAX_MEMORY
@common.format_option("style")
def inspect(path: Path, max_memory: str | None, style: str) -> None:
    """Print what is in FILE, of any kind that a command takes.

    Model files, event networks and checkpoints; weights of others (.pt, .pth, .ckpt, .safetensors),
    which are not unpickled; ONNX and NIR files of any tool; NumPy arrays, images, results of bench.
    """
    memory.require_address_space(1)
    from soul_deploy.cli.output import drawn
    from soul_deploy.runtime.io.inspect import describe_file
    from soul_deploy.runtime.io.inspect_tables import inspect_report

    found = describe_file(path, max_memory=memory.parse_bytes(max_memory))
    terminal.show(json.dumps(found, indent=1) if style == "json" else drawn(inspect_report(found)))


def _run_options() -> common.Decorator:
    samples = "At most so many of each INPUT.  [default: 32, of a path all]"
    threads = "CPU threads.  [default: all cores]"
    counts = "Count events and operations per layer."
    step_by_step = "Run step by step and show each step's scores."
    return common.options(
        common.resize_option(),
        option("--samples", type=click.IntRange(1), help=samples, heading="Data"),
        common.data_dir_option(),
        common.seed_option("Of random input.", "Data"),
        option("--top", type=click.IntRange(1), default=1, help="Classes shown.", heading="Output"),
        common.threads_option(threads, click.IntRange(0), default=0, show_default=False),
        option("--stream", is_flag=True, help=step_by_step),
        common.rows_option(),
        option("--counts", is_flag=True, help=counts, heading="Output"),
        MAX_MEMORY,
        common.format_option("style"),
    )


@click.command(cls=parsing.SoulCommand, example="run net.event image.png --counts")
@click.argument("path", metavar="NETWORK", type=common.FILE)
@click.argument("inputs", metavar="INPUT...", nargs=-1, required=True)
@common.option_group("recording", EventOptions, HEADING)
@_run_options()
def run(
    path: Path,
    inputs: tuple[str, ...],
    recording: EventOptions,
    threads: int,
    style: str,
    **wanted: Any,
) -> None:
    """Run the event network NETWORK without PyTorch, on images, folders of them or arrays.

    INPUT is an image, a folder of images, a .npy or .npz file, - (a .npy on standard input),
    random, or a data set's name (its test images; reading it needs PyTorch).

    Images are converted to the network's channels and normalised as its file says. A .npy array
    is one sample (C, H, W), a batch (B, C, H, W) or a sequence (T, B, C, H, W), the array images of
    a .npz a batch or sequences (B, T, C, H, W): uint8 values are pixels and normalised,
    floating-point values are taken as they are. A network that takes counts, spikes or values
    (`inspect` says so) takes all numbers of an array as they are.

    With --window, INPUT is a recording of events (.npy, .npz, .txt, .csv, .events, .aedat4, .raw,
    or - with --input_format), and each window is a step: answers are lines of JSON.
    """
    if recording.window is not None:
        _run_recording(path, inputs, recording, **wanted)
        return
    memory.require_address_space(1 if wanted["stream"] else threads)
    if wanted["stream"] and threads > 1:
        raise errors.UsageError("--stream runs on one thread; leave out --threads")
    found = _results(path, inputs, threads, **wanted)
    terminal.show(json.dumps(found, indent=1) if style == "json" else run_report(found))


def _run_recording(
    path: Path, words: tuple[str, ...], recording: EventOptions, **wanted: Any
) -> None:
    from soul_deploy.base.files import OpenFile
    from soul_deploy.runtime.engine.network import load
    from soul_deploy.runtime.io.inspect import require_event_network
    from soul_deploy.runtime.kernels.cache import compiling_announced
    from soul_deploy.runtime.plan.forms import FORMS

    if len(words) != 1:
        raise errors.UsageError(f"{len(words)} inputs given; --window takes one recording")
    memory.require_address_space(1)
    allowed = memory.parse_bytes(wanted["max_memory"])
    forms = parsing.read_forms(wanted["rows"], FORMS)
    with OpenFile(path) as source:
        require_event_network(source)
        network = load(source, 1, max_memory=allowed, forms=forms)
    with progress.warnings_said(terminal.warn), compiling_announced():
        run_recording(network, words[0], recording, counts=wanted["counts"])


def _results(
    path: Path,
    words: tuple[str, ...],
    threads: int,
    *,
    resize: bool,
    samples: int | None,
    data_dir: Path,
    seed: int,
    max_memory: str | None,
    stream: bool,
    rows: tuple[str, ...],
    **shown: Any,
) -> dict[str, Any]:
    """JSON data of all inputs. Imports what it uses: numba alone takes half a second."""
    from soul_deploy.base.files import OpenFile
    from soul_deploy.runtime.engine.network import load
    from soul_deploy.runtime.io.inputs import run_samples
    from soul_deploy.runtime.io.inspect import require_event_network
    from soul_deploy.runtime.io.results import result
    from soul_deploy.runtime.kernels.cache import compiling_announced
    from soul_deploy.runtime.plan.forms import FORMS

    allowed = memory.parse_bytes(max_memory)
    forms = parsing.read_forms(rows, FORMS)
    with OpenFile(path) as source:
        require_event_network(source)
        network = load(source, threads, max_memory=allowed, forms=forms)
    with progress.warnings_said(terminal.warn), compiling_announced():
        rule = replace(network.events.rule, resize=resize)
        where: Any = {"stdin": _standard_input, "data_dir": data_dir, "seed": seed}
        groups = run_samples(words, rule, count=samples, drawn=DRAWN, **where)
        network.warm_up(stream=stream)
        return result(network, groups, stream=stream, **shown)


def _standard_input() -> IO[bytes]:
    if sys.stdin is None:
        raise errors.UsageError("- stands for standard input, which is closed")
    return sys.stdin.buffer


def run_report(found: dict[str, Any]) -> str:
    """The text that `soul-deploy run` prints."""
    from soul_deploy.cli.output import drawn

    rows = [
        [row["input"] if rank == 0 else "", entry["class"], f"{entry['score']:.4f}"]
        for row in found["results"]
        for rank, entry in enumerate(row["top"])
    ]
    parts: list[tables.Table | str] = [
        tables.Table(f"T = {found['time_steps']}", ["file", "class", "score"], rows)
    ]
    if any("steps" in row for row in found["results"]):
        parts.append(_step_table(found))
    if "counts" in found:
        from soul_deploy.runtime.io.results import count_table, energy_line

        parts.append(count_table(found["counts"], found["samples"]))
        parts += [energy_line(entry, found["samples"]) for entry in found["energy"]]
    return drawn(parts)


def _step_table(found: dict[str, Any]) -> tables.Table:
    """The best class of the mean so far, its score at this step and its mean so far."""
    rows: list[list[object]] = []
    for row in found["results"]:
        sums = [0.0] * len(row["steps"][0])
        for t, scores in enumerate(row["steps"], start=1):
            sums = [total + score for total, score in zip(sums, scores, strict=True)]
            best = max(range(len(sums)), key=sums.__getitem__)
            name = found["classes"][best] if found["classes"] else str(best)
            shown = f"{scores[best]:.4f}", f"{sums[best] / t:.4f}"
            rows.append([row["input"] if t == 1 else "", t, name, *shown])
    columns = ["file", "step", "class so far", "score of the step", "mean so far"]
    return tables.Table("Step by step", columns, rows)
