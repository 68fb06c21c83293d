"""`soul-deploy energy`."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch

from soul_deploy.analysis import measure
from soul_deploy.analysis import report as reported
from soul_deploy.analysis.reports_table import side_by_side
from soul_deploy.base import errors, files, progress, terminal
from soul_deploy.cli import common_options as common
from soul_deploy.cli import options, output, parsing
from soul_deploy.cli.common_options import choice, given, option, shared
from soul_deploy.data.chosen import Wish, choose
from soul_deploy.equivalence.verdict import Verdict
from soul_deploy.export.verify.event_run import CountCheck, verify_counts
from soul_deploy.model.file import load
from soul_deploy.runtime.io.inputs import read_input_name
from soul_deploy.runtime.ops.energy import ARITHMETIC, DROPPED, MEMORY, OPTIONAL_TERMS, dropped_hint
from soul_deploy.training.messages import note

SPLITS = ("train", "validation", "test")
FORMATS = ("text", "table", "json", "csv", "markdown")


@dataclass(frozen=True)
class CountedModel:
    """A report, and how the event runtime's own counts compare; None: not compared, `why`."""

    report: reported.OpsReport
    check: CountCheck | None
    why: str = ""

    @property
    def failed(self) -> bool:
        return self.check is not None and self.check.verdict is Verdict.FAILED

    def to_dict(self) -> dict[str, Any]:
        check = None if self.check is None else self.check.to_dict()
        return {**self.report.to_dict(), "check": check}

    def text(self) -> str:
        """The report and one line about the check."""
        line = f"Counters not compared with the event runtime: {self.why}"
        line = line if self.check is None else self.check.line()
        return output.drawn([*self.report.parts(), line])


@dataclass(frozen=True)
class Wanted(options.EventFlags):
    """On how many images of what, for how many steps."""

    source: str = shared(common.input_option("source", "data", "those of --split"))
    resize: bool = shared(common.resize_option())
    dataset_name: str | None = shared(
        common.dataset_option(f"Data set to run on.  {options.TRAINED_ON}")
    )
    data_dir: Path = shared(common.data_dir_option())
    download: bool = shared(common.download_option())
    split: str | None = given(
        None, "Which images of a data set.  [default: test]", type=choice(SPLITS)
    )
    samples: int = given(200, "Images.", type=click.IntRange(1))
    seed: int = shared(common.seed_option("Of random pixels.", "Data"))
    time_step: int | None = shared(options.model_steps_option())

    def __post_init__(self) -> None:
        errors.require_seed(self.seed)

    def wish(self) -> Wish:
        """What the networks run on. Raises UsageError for a split of what has none."""
        if self.split is not None and read_input_name(self.source).kind not in ("data", "name"):
            raise errors.UsageError(
                f"--split {self.split} belongs to a data set, and --input {self.source} is none; "
                "leave it out"
            )
        return Wish(
            source=self.source,
            dataset=self.dataset_name,
            data_dir=self.data_dir,
            download=self.download,
            split=self.split or "test",
            count=self.samples,
            seed=self.seed,
            resize=self.resize,
            events=self.events(),
        )


class PresetChoice(click.Choice[str]):
    """The energy presets; one that an earlier version had is refused with what to do instead."""

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if value.lower() in DROPPED:
            self.fail(dropped_hint(value.lower()), param, ctx)
        return super().convert(value, param, ctx)


def _energy_options() -> common.Decorator:
    original = (
        "The network that the others came from: firing rates and shares are of its "
        "neurons and synapses.  [default: the first MODEL]"
    )
    preset = "Arithmetic of the estimate; may be given again.  [default: all]"
    term = "Also charge biases, neurons, or graded events as multiplications; may be given again."
    memory = "Cost of memory accesses; may be given again.  [default: all]"
    rows = (
        "For memory: an index and a weight per synapse, or weights shared by all positions. "
        "auto: whichever is smaller, layer by layer."
    )
    printed = "How the result is printed on standard output; table is text."
    compared = "Compare all counts with those of the event runtime."
    forms = choice(["auto", "explicit", "implicit"])
    arithmetic = PresetChoice(list(ARITHMETIC), case_sensitive=False)
    return common.options(
        option("--original", type=common.FILE, help=original, heading="Files"),
        common.option_group("wanted", Wanted, "Data"),
        option("--preset", "presets", multiple=True, type=arithmetic, help=preset),
        option("--term", "terms", multiple=True, type=choice(OPTIONAL_TERMS), help=term),
        option("--memory", "memories", multiple=True, type=choice(list(MEMORY)), help=memory),
        option("--rows", type=forms, default="auto", help=rows),
        option("--check/--no-check", default=True, help=compared),
        common.threads_option("CPU threads.", click.IntRange(1)),
        common.format_option(valid=FORMATS, text=printed),
    )


@click.command(cls=parsing.SoulCommand, example="energy model.safetensors --dataset_name digits")
@click.argument("models", metavar="MODEL...", nargs=-1, required=True, type=common.FILE)
@_energy_options()
def energy(
    models: tuple[Path, ...],
    original: Path | None,
    wanted: Wanted,
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
    parsing.require_steps("time_step", wanted.time_step)
    parsing.require_threads(threads)
    if threads is not None:
        torch.set_num_threads(threads)
    usual = measure.EnergyChoice
    choice = usual(
        presets=presets or usual.presets,
        terms=terms,
        memories=memories or usual.memories,
        rows=None if rows == "auto" else rows,
    )
    first = original or models[0]
    denominators = measure.original_of(str(first), load(first))
    found = [counted(path, denominators, wanted, choice, check) for path in models]
    terminal.show(_shown(found, output_format))
    failed = [item.report.path for item in found if item.failed]
    if failed:
        raise errors.VerificationError(
            f"the event runtime counts differently for {', '.join(failed)}; see the report, and "
            "verify an event file of it to find out where"
        )


def counted(
    path: Path,
    original: measure.Original,
    wanted: Wanted,
    choice: measure.EnergyChoice,
    check: bool,
) -> CountedModel:
    """The report of one model file."""
    progress.status(f"energy: counting {path}")
    with files.OpenFile(path) as source:
        model, sha256, size = load(source), source.sha256(), source.size
    if wanted.time_step is not None:
        model = model.with_time_steps(wanted.time_step)
    chosen = choose(model, wanted.wish())
    for line in chosen.remarks:
        note(line)
    images, arch = chosen.images, model.info.provenance.get("model", "")
    data = {"name": chosen.name, "split": chosen.split, "arch": arch}
    measured = measure.Measured(path=str(path), sha256=sha256, artifact_bytes=size, data=data)
    report = measure.count(
        model, images, labels=chosen.labels, original=original, energy=choice, measured=measured
    )
    if not check:
        return CountedModel(report, None, "not asked for")
    try:
        return CountedModel(report, verify_counts(model, images))
    except errors.UnsupportedGraphError as error:
        return CountedModel(report, None, str(error))


def _shown(found: list[CountedModel], output_format: str) -> str:
    reports = [item.report for item in found]
    if output_format == "csv":
        return reported.csv_text(reports)
    if output_format == "markdown":
        return reported.markdown(reports)
    if output_format == "json":
        documents = [item.to_dict() for item in found]
        whole = (
            documents[0] if len(found) == 1 else {"schema": reported.SCHEMA, "reports": documents}
        )
        return json.dumps(whole, indent=2)
    table = [output.drawn(side_by_side(reports))] if len(reports) > 1 else []
    return "\n\n".join([*table, *(item.text() for item in found)])
