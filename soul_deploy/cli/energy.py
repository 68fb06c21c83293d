"""`soul-deploy energy`."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor

from soul_deploy.analysis.measure import EnergyChoice, Measured, Original, ops_report, original_of
from soul_deploy.analysis.report import SCHEMA, OpsReport
from soul_deploy.analysis.tables import csv_text, markdown, report_text
from soul_deploy.base.errors import UnsupportedGraphError, UsageError, VerificationError
from soul_deploy.base.files import OpenFile
from soul_deploy.base.progress import status
from soul_deploy.base.terminal import show
from soul_deploy.cli.index_lists import SoulCommand
from soul_deploy.cli.parsing import require_steps, require_threads
from soul_deploy.cli.progress import remark_on
from soul_deploy.data.datasets import load_data_for, require_kind
from soul_deploy.equivalence.engines import BATCH, Agreement, Comparer
from soul_deploy.equivalence.golden import Golden
from soul_deploy.equivalence.verdict import Verdict, untested
from soul_deploy.export.event.build import build_event_network
from soul_deploy.export.verify.event import EventExecution, static_problems
from soul_deploy.lowering.liveness import deployed
from soul_deploy.model.file import load
from soul_deploy.model.model import Model
from soul_deploy.runtime.engine.network import Network
from soul_deploy.runtime.kernels.compile_message import compiling_announced
from soul_deploy.runtime.ops.energy import ARITHMETIC, MEMORY, OPTIONAL_TERMS

FILE = click.Path(path_type=Path)
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Counted:
    """A report, and how the event runtime's own counts compare; None: not compared, `why`."""

    report: OpsReport
    check: dict[str, Any] | None
    why: str = ""

    def to_json(self) -> dict[str, Any]:
        return {**self.report.to_json(), "check": self.check}

    def text(self) -> str:
        """The report and one line about the check."""
        if self.check is None:
            line = f"Counters not compared with the event runtime: {self.why}"
        else:
            gates = " ".join(
                f"{gate} {'yes' if self.check[gate] else 'NO'},"
                for gate in ("static", "forced", "end_to_end")
            )
            line = f"Counters equal the event runtime's: {gates} spike mismatches "
            line += str(self.check["spike_mismatch"])
            if self.check["verdict"] == Verdict.INCONCLUSIVE:
                line += f"; inconclusive: {untested(self.check['silent_layers'])}"
        return f"{report_text(self.report)}\n{line}"


@click.command(cls=SoulCommand)
@click.argument("models", metavar="MODEL...", nargs=-1, required=True, type=FILE)
@click.option(
    "--original",
    type=FILE,
    default=None,
    help="The network that the others came from: firing rates and shares are of its "
    "neurons and synapses.  [default: the first MODEL]",
)
@click.option(
    *("--dataset_name", "--dataset", "-dataset"),
    default=None,
    help="Data set to run on.  [default: the one the model was trained on]",
)
@click.option(
    *("--data_dir", "-data_dir"),
    type=FILE,
    default=Path("data"),
    show_default=True,
    help="Folder of the data set's files; mnist5k and digits need none.",
)
@click.option("--download", is_flag=True, help="Download a missing data set.")
@click.option(
    "--split",
    type=click.Choice(SPLITS, case_sensitive=False),
    default="test",
    show_default=True,
    help="Which images.",
)
@click.option("--samples", type=click.IntRange(1), default=200, show_default=True, help="Images.")
@click.option(
    *("--time_step", "-T"),
    type=int,
    default=None,
    help="Run for another number of time steps.  [default: the model's]",
)
@click.option(
    "--preset",
    "presets",
    multiple=True,
    type=click.Choice(list(ARITHMETIC), case_sensitive=False),
    help="Arithmetic of the estimate; may be given again.  [default: fp32, fp16 and int8]",
)
@click.option(
    "--term",
    "terms",
    multiple=True,
    type=click.Choice(OPTIONAL_TERMS, case_sensitive=False),
    help="Also charge biases, neurons, or graded events as multiplications; may be given again.",
)
@click.option(
    "--memory",
    "memories",
    multiple=True,
    type=click.Choice(list(MEMORY), case_sensitive=False),
    help="Cost of memory accesses; may be given again.  [default: all]",
)
@click.option(
    "--rows",
    type=click.Choice(["auto", "explicit", "implicit"], case_sensitive=False),
    default="auto",
    show_default=True,
    help="For memory: an index and a weight per synapse, or weights shared by all positions. "
    "auto: whichever is smaller, layer by layer.",
)
@click.option(
    "--check/--no-check",
    default=True,
    show_default=True,
    help="Compare all counts with those of the event runtime.",
)
@click.option("--threads", type=click.IntRange(1), default=None, help="CPU threads.")
@click.option(
    "--format",
    "output_format",
    type=click.Choice(["text", "table", "json", "csv", "markdown"], case_sensitive=False),
    default="text",
    show_default=True,
    help="How the result is printed on standard output; table is text.",
)
def energy(
    models: tuple[Path, ...],
    original: Path | None,
    dataset_name: str | None,
    data_dir: Path,
    download: bool,
    split: str,
    samples: int,
    time_step: int | None,
    presets: tuple[str, ...],
    terms: tuple[str, ...],
    memories: tuple[str, ...],
    rows: Any,
    check: bool,
    threads: int | None,
    output_format: str,
) -> None:
    """Count the operations of MODEL..., and estimate their energy.

    Give the dense original first, then what was made from it (masked, compact). Counts are exact
    integers and, unless told not to, compared with those of the event runtime; energy is an
    estimate from the constants that are printed. Exits with 1 if counts differ.
    """
    require_steps("time_step", time_step)
    require_threads(threads)
    if threads is not None:
        torch.set_num_threads(threads)
    choice = EnergyChoice(
        presets or EnergyChoice.presets,
        terms,
        memories or EnergyChoice.memories,
        None if rows == "auto" else rows,
    )
    wanted = Wanted(dataset_name, data_dir, download, split, samples, time_step)
    first = original or models[0]
    denominators = original_of(str(first), load(first))
    found = [counted(path, denominators, wanted, choice, check) for path in models]
    show(_shown(found, output_format))
    failed = [item.report.path for item in found if item.check and not _equal(item.check)]
    if failed:
        raise VerificationError(
            f"the event runtime counts differently for {', '.join(failed)}; see the report, and "
            "verify an event file of it to find out where"
        )


@dataclass(frozen=True)
class Wanted:
    """On how many images of what, for how many steps."""

    dataset_name: str | None
    data_dir: Path
    download: bool
    split: str
    samples: int
    time_step: int | None


def counted(
    path: Path, original: Original, wanted: Wanted, choice: EnergyChoice, check: bool
) -> Counted:
    """The report of one model file."""
    status(f"energy: counting {path}")
    with OpenFile(path) as source:
        model, sha256, size = load(source), source.sha256(), source.size
    if wanted.time_step is not None:
        model = model.with_time_steps(wanted.time_step)
    images, labels, name = _images(model, wanted)
    data = {
        "name": name,
        "split": wanted.split,
        "arch": model.info.provenance.get("model", ""),
        "correct": _correct(model, images, labels),
    }
    measured = Measured(str(path), sha256, size, data)
    report = ops_report(model, images, original, measured, choice)
    if not check:
        return Counted(report, None, "not asked for")
    try:
        return Counted(report, check_counts(model, images))
    except UnsupportedGraphError as error:
        return Counted(report, None, str(error))


@torch.no_grad()
def _correct(model: Model, images: Tensor, labels: Tensor) -> int:
    """How many samples get their class."""
    module = model.module()
    parts = zip(torch.split(images, BATCH), torch.split(labels, BATCH), strict=True)
    return sum(int((module(part).argmax(dim=1) == given).sum()) for part, given in parts)


def _images(model: Model, wanted: Wanted) -> tuple[Tensor, Tensor, str]:
    """Normalised images, labels and the data set's name. Raises UsageError if they do not fit."""
    name = wanted.dataset_name or model.info.provenance.get("data")
    if not isinstance(name, str):
        raise UsageError(
            "the model file does not say which data it was trained on; give --dataset_name"
        )
    data = load_data_for(model.input_shape, name, wanted.data_dir, download=wanted.download)
    remark_on(data)
    if data.input_shape != model.input_shape:
        raise UsageError(
            f"{name} has images of {data.input_shape}, this model takes {model.input_shape}"
        )
    require_kind(data, model.info.input_kind, "the model")
    norm = model.info.normalization
    data = data if norm is None else replace(data, normalization=norm)
    split = {"train": data.train, "validation": data.validation, "test": data.test}[wanted.split]
    chosen = split.images[: wanted.samples], split.labels[: wanted.samples]
    return data.normalise(chosen[0]), chosen[1], data.name


def check_counts(model: Model, images: Tensor) -> dict[str, Any]:
    """The event runtime's counts against ours by the three gates, as JSON data.

    Raises UnsupportedGraphError for a network that cannot be an event network.
    """
    golden = Golden(deployed(model))
    network = Network(build_event_network(model))
    static = not static_problems(golden.model, network)
    execution, comparer = EventExecution(network, golden), Comparer(golden)
    with compiling_announced():
        forced = comparer.forced(execution, images)
        whole = comparer.end_to_end(execution, images)
    run = Agreement(forced, whole)
    return {
        "verdict": (run.verdict if static else Verdict.FAILED).value,
        "static": static,
        "forced": forced.passed,
        "end_to_end": whole.passed,
        "spike_mismatch": sum(layer.differing for layer in whole.layers),
        "counter_diff": {
            f"{item.layer}.{item.count}": item.difference for item in whole.differences
        },
        "silent_layers": list(run.silent),
    }


def _equal(check: dict[str, Any]) -> bool:
    return bool(check["verdict"] != Verdict.FAILED)


def _shown(found: list[Counted], output_format: str) -> str:
    reports = [item.report for item in found]
    if output_format == "csv":
        return csv_text(reports)
    if output_format == "markdown":
        return markdown(reports)
    if output_format == "json":
        documents = [item.to_json() for item in found]
        whole = documents[0] if len(found) == 1 else {"schema": SCHEMA, "reports": documents}
        return json.dumps(whole, indent=2)
    return "\n\n".join(item.text() for item in found)
