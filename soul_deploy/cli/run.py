"""`soul-deploy inspect` and `soul-deploy run`. Each imports what it uses, when it uses it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from soul_deploy.base.errors import UsageError
from soul_deploy.base.tables import Table
from soul_deploy.base.terminal import say, show
from soul_deploy.cli.parsing import SoulCommand

FILE = click.Path(path_type=Path)
STYLE = click.option(
    "--format", "style", type=click.Choice(["table", "json"]), default="table", show_default=True
)
MAX_MEMORY = click.option(
    "--max_memory",
    default=None,
    metavar="SIZE",
    help="Refuse a file that would take more memory than its size explains, before it is taken: "
    "bytes, or with a unit (500MB, 2GiB).  [default: 4GiB; 128MiB for its description]",
)


@click.command(cls=SoulCommand)
@click.argument("path", metavar="FILE", type=FILE)
@MAX_MEMORY
@STYLE
def inspect(path: Path, max_memory: str | None, style: str) -> None:
    """Print what is in FILE: a model file, an event network or an ONNX file."""
    from soul_deploy.base.address_space import require_address_space

    require_address_space(1)
    from soul_deploy.base.memory import parse_bytes
    from soul_deploy.cli.text_table import drawn
    from soul_deploy.runtime.io.inspect import describe
    from soul_deploy.runtime.io.inspect_tables import report

    found = describe(path, max_memory=parse_bytes(max_memory))
    show(json.dumps(found, indent=1) if style == "json" else drawn(report(found)))


@click.command(cls=SoulCommand)
@click.argument("path", metavar="NETWORK", type=FILE)
@click.argument("inputs", metavar="INPUT...", nargs=-1, type=FILE, required=True)
@click.option("--resize", is_flag=True, help="Scale images of another size (bilinear).")
@click.option("--top", type=click.IntRange(1), default=1, show_default=True, help="Classes shown.")
@click.option(
    "--threads", type=click.IntRange(0), default=0, help="CPU threads.  [default: all cores]"
)
@click.option("--stream", is_flag=True, help="Run step by step and show each step's scores.")
@click.option("--counts", is_flag=True, help="Count events and operations per layer.")
@MAX_MEMORY
@STYLE
def run(
    path: Path,
    inputs: tuple[Path, ...],
    resize: bool,
    top: int,
    threads: int,
    stream: bool,
    counts: bool,
    max_memory: str | None,
    style: str,
) -> None:
    """Run the event network NETWORK on images or .npy arrays, without PyTorch.

    Images are converted to the network's channels and normalised as its file says. A .npy array
    is one sample (C, H, W), a batch (B, C, H, W) or a sequence (T, B, C, H, W): uint8 values are
    pixels and normalised, floating-point values are taken as they are. A network that takes counts,
    spikes or values (`inspect` says so) takes all numbers of a .npy array as they are.
    """
    from soul_deploy.base.address_space import require_address_space

    require_address_space(1 if stream else threads)
    # Imported here: the kernels compile nothing then, but numba alone takes half a second.
    from soul_deploy.base.files import OpenFile
    from soul_deploy.base.memory import parse_bytes
    from soul_deploy.base.warned import warnings_said
    from soul_deploy.runtime.engine.network import load
    from soul_deploy.runtime.io.images import read_samples
    from soul_deploy.runtime.io.inspect import require_event_network
    from soul_deploy.runtime.io.results import result
    from soul_deploy.runtime.kernels.compile_message import compiling_announced

    if stream and threads > 1:
        raise UsageError("--stream runs on one thread; leave out --threads")
    allowed = parse_bytes(max_memory)
    with OpenFile(path) as source:
        require_event_network(source)
        network = load(source, threads, max_memory=allowed)
    with warnings_said(_warn), compiling_announced():
        groups = read_samples(inputs, replace(network.events.rule, resize=resize))
        network.warm_up(stream=stream)
        found = result(network, groups, top=top, stream=stream, counts=counts)
    show(json.dumps(found, indent=1) if style == "json" else run_report(found))


def _warn(text: str) -> None:
    say(f"Warning: {text}", err=True)


def run_report(found: dict[str, Any]) -> str:
    """The text that `soul-deploy run` prints."""
    from soul_deploy.cli.text_table import drawn

    rows = [
        [row["input"] if rank == 0 else "", entry["class"], f"{entry['score']:.4f}"]
        for row in found["results"]
        for rank, entry in enumerate(row["top"])
    ]
    parts: list[Table | str] = [
        Table(f"T = {found['time_steps']}", ["file", "class", "score"], rows)
    ]
    if any("steps" in row for row in found["results"]):
        parts.append(_step_table(found))
    if "counts" in found:
        from soul_deploy.runtime.io.results import count_table, energy_line

        parts.append(count_table(found["counts"], found["samples"]))
        parts += [energy_line(entry, found["samples"]) for entry in found["energy"]]
    return drawn(parts)


def _step_table(found: dict[str, Any]) -> Table:
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
    return Table("Step by step", columns, rows)
