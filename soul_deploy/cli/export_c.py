"""`soul-deploy export c`, and what `verify` prints of a folder of C."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from torch import Tensor

from soul_deploy.base import errors, files, progress, tables, terminal
from soul_deploy.cli import checking, options, output, parsing
from soul_deploy.cli import common_options as common
from soul_deploy.cli.checking import EXPORT_SCHEMA, Source
from soul_deploy.cli.common_options import given, one_of
from soul_deploy.cli.options import CheckOptions
from soul_deploy.equivalence.verdict import Verdict
from soul_deploy.export.c import rows, write
from soul_deploy.export.c.program import make_program
from soul_deploy.export.c.source import FLOAT
from soul_deploy.export.verify import c as c_check
from soul_deploy.export.verify.c import CReport
from soul_deploy.nn.given_input import shows_image


@dataclass(frozen=True)
class COptions:
    """How the C program is written."""

    layout: Any = one_of(
        rows.LAYOUTS,
        "How a layer's weights are stored, compressed rows of those that are not 0 or all of them: "
        "what takes less flash, what takes fewer instructions, or one for all layers.",
    )
    prefix: str = given(
        "soul", "Of every name in the program, so that two networks fit into one program."
    )
    golden: int = given(2, "Samples in the self-test, test_model.c, the first of the images.")

    def __post_init__(self) -> None:
        errors.require_least(1, golden=self.golden)


@click.command(cls=parsing.SoulCommand, example="export c model_int8.safetensors -o net_c")
@options.export_options()
@common.option_group("form", COptions)
@common.option("--float", "as_float", is_flag=True, help="float32, of a float model: to compare.")
def c(
    model_path: Path,
    output: Path | None,
    time_step: int | None,
    check: bool,
    check_on: CheckOptions,
    form: COptions,
    as_float: bool,
) -> None:
    """Write MODEL, a fixed-point model file, as a folder of C99 for microcontrollers.

    Integers only, no heap, no library; spikes drive the loops over compressed or dense rows of
    weights. The folder holds a self-test and a Makefile. --float writes float32 of a float model,
    to compare with.
    """
    files.require_file(model_path)
    folder = output or model_path.with_name(f"{model_path.stem}_c")
    source = Source.load(model_path, time_step)
    program = make_program(source.model, layout=form.layout, prefix=form.prefix, as_float=as_float)
    images, described = checking.check_images(source.model, check_on)
    progress.status(f"export: writing {folder}")
    found = write.program_files(program, _first(source, images, form.golden))
    report = None
    if check:
        report = _checked(source, found, images, described, str(folder), check_on)
    write.write_files(found, folder)
    _tell(source, found, folder, report, check_on)


def _first(source: Source, images: Tensor, count: int) -> Tensor:
    still = shows_image(source.model.graph, images)
    return images[:count] if still else images[:, :count]


def _checked(
    source: Source, found: write.CProgram, images: Tensor, described: str, name: str,
    check_on: CheckOptions,
) -> CReport:  # fmt: skip
    """Raises VerificationError for a program that does something else; nothing is written then."""
    report = CReport(
        artifact=name, time_steps=source.model.graph.time_steps, images=described, problems=None
    )
    axis = 0 if shows_image(source.model.graph, images) else 1
    report = c_check.run_checked(report, found, images, axis, check_on.batch)
    if report.verdict is Verdict.FAILED:
        terminal.show(output.drawn(report), err=True)
        raise errors.VerificationError(f"the C program is not what {source.path} says; not written")
    if report.verdict is Verdict.INCONCLUSIVE:
        terminal.say(
            f"Inconclusive, but kept: {checking.inconclusive(report, source.path)}", err=True
        )
    return report


def _tell(
    source: Source, found: write.CProgram, folder: Path, report: CReport | None,
    check_on: CheckOptions,
) -> None:  # fmt: skip
    sizes = {"flash": found.flash, "ram": found.ram}
    if check_on.output_format == "json":
        document = {
            "schema": EXPORT_SCHEMA,
            "kind": "c",
            "path": str(folder),
            **sizes,
            "time_steps": source.model.graph.time_steps,
            "source_sha256": source.sha256,
            "verdict": None if report is None else report.verdict.value,
            "verified": None if report is None else report.to_dict(),
        }
        terminal.show(json.dumps(document, indent=2))
        return
    terminal.show(output.drawn([layer_table(found)]))
    if report is not None:
        terminal.show(output.drawn(report))
    terminal.show(
        f"Flash: {found.flash:,} bytes of constant tables, and the loops. RAM: {found.ram:,} "
        f"bytes, all in {found.program.prefix}_state"
    )
    paths = {name: folder / name for name in found.texts}
    output.print_files("table", paths, ["verify", source.path, folder, "--input", "random"])


def layer_table(found: write.CProgram) -> tables.Table:
    """How each layer's weights are stored."""
    rows_of, values = found.program.rows, found.program.values
    scores = FLOAT if found.program.floats else "int32"
    lines = [
        (
            name,
            "compressed" if stored.compressed else "dense",
            stored.stored,
            stored.weight.size,
            stored.bytes,
            (values[name].type if name in values else scores).removesuffix("_t"),
        )
        for name, stored in rows_of.items()
    ]
    columns = ("layer", "rows", "weights", "of", "bytes", "sums")
    return tables.Table("Weights", columns, lines)


def verify_folder(source: Source, folder: Path, check_on: CheckOptions, allow_silent: bool) -> None:
    """Print the report; raise VerificationError or InconclusiveError by its verdict."""
    images, described = checking.check_images(source.model, check_on)
    progress.status(f"verifying {folder} on {described}")
    told: Any = {"described": described, "name": str(folder), "batch": check_on.batch}
    report = c_check.verify_c(source.model, folder, images, allow_silent=allow_silent, **told)
    checking.conclude(report, folder, source.path, check_on)
