"""What `export` and `verify` do alike: a file is checked, and put in place unless it failed."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from soul_deploy.base import brief, errors, files, progress, terminal
from soul_deploy.cli import options, parsing
from soul_deploy.cli.output import data_flags, drawn, folder_flags, print_files
from soul_deploy.data.chosen import choose
from soul_deploy.equivalence.verdict import Verdict, untested
from soul_deploy.export.onnx.reader import read_onnx
from soul_deploy.export.verify import onnx_static
from soul_deploy.export.verify import verify as gates
from soul_deploy.export.verify.c import NO_COMPILER, CReport
from soul_deploy.export.verify.verify import Kind, VerifyReport
from soul_deploy.model.file import load
from soul_deploy.model.model import Model
from soul_deploy.nn.given_input import shows_image
from soul_deploy.runtime.io import inputs
from soul_deploy.runtime.io.inspect_tables import representation_table
from soul_deploy.runtime.kernels.cache import compiling_announced
from soul_deploy.training.messages import note

EXPORT_SCHEMA = "soul-deploy/export/2"
TITLES: dict[Kind, str] = {"onnx": "ONNX", "event": "Event network", "nir": "NIR"}


@brief
@dataclass(frozen=True)
class Source:
    """The golden: a model file as read."""

    path: Path
    model: Model
    sha256: str
    time_step: int | None = None  # as it was asked for

    @staticmethod
    def load(path: Path, time_step: int | None, max_memory: int | None = None) -> "Source":
        parsing.require_steps("time_step", time_step)
        with files.OpenFile(path) as source:
            model, sha256 = load(source, max_memory=max_memory), source.sha256()
        if time_step is not None:
            model = model.with_time_steps(time_step)
        return Source(path, model, sha256, time_step)


def target_of(output: Path | None, model_path: Path, suffix: str) -> Path:
    """Where the exported file goes; whether it can be written is found out before the model is
    read. Raises MissingFileError, PathKindError, UsageError (the model itself), FileWriteError.
    """
    files.require_file(model_path)
    target = output or model_path.with_suffix(suffix)
    files.refuse_itself(target, model_path)
    files.require_writable(target)
    return target


def write_checked(
    kind: Kind,
    source: Source,
    target: Path,
    write: Callable[[Path, Tensor | None], None],
    check_on: options.CheckOptions,
    check: bool,
    layers: list[dict[str, Any]] | None = None,
    beside: Callable[[], Mapping[str, Path]] = dict,
) -> None:
    """Write, verify what was written unless told not to, and only then put it in place.

    A file on which the check is inconclusive is kept, and stderr says so.
    write: writes to a path; also takes the images that the file is checked on, None if it is not.
    layers: filled by `write`, the representation of each layer, to be printed. beside: writes what
    belongs to the file, once that is in place.
    """
    files.refuse_itself(files.require_output(target), source.path)
    images = check_images(source.model, check_on) if check else None
    reports: list[VerifyReport] = []

    def write_and_check(temporary: Path) -> None:
        progress.status(f"export: writing {target}")
        with compiling_announced():
            write(temporary, images and images[0])
            if images is not None:
                reports.append(check_file(kind, source, (temporary, target), images, check_on))
        if reports and (reports[-1].verdict is Verdict.FAILED or reports[-1].incomparable):
            terminal.show(drawn(reports[-1]), err=True)
            raise errors.VerificationError(
                f"the exported {kind} file is not what {source.path} says; it was not kept"
            )

    files.write_atomically(target, write_and_check)
    others = beside()
    report = reports[0] if reports else None
    if report is not None and report.verdict is Verdict.INCONCLUSIVE:
        terminal.say(f"Inconclusive, but kept: {inconclusive(report, source.path)}", err=True)
    _tell(kind, source, target, report, layers, check_on, others)


def _tell(
    kind: Kind,
    source: Source,
    target: Path,
    report: VerifyReport | None,
    layers: list[dict[str, Any]] | None,
    check_on: options.CheckOptions,
    others: Mapping[str, Path],
) -> None:
    """What was exported, as JSON data of EXPORT_SCHEMA or as tables and a next step."""
    if check_on.output_format == "json":
        document = {
            "schema": EXPORT_SCHEMA,
            "kind": kind,
            "path": str(target),
            "bytes": target.stat().st_size,
            "time_steps": source.model.graph.time_steps,
            "source_sha256": source.sha256,
            **({} if layers is None else {"layers": layers}),
            "verdict": None if report is None else report.verdict.value,
            "verified": None if report is None else report.to_dict(),
        }
        terminal.show(json.dumps(document, indent=2))
        return
    if layers is not None:
        terminal.show(drawn([representation_table(layers)]))
    if report is not None:
        terminal.show(drawn(report))
    shown = report is not None and kind != "nir"
    following = ["inspect", target] if shown else _verifying(source, target, check_on)
    print_files("table", {TITLES[kind]: target, **others}, following)


def _verifying(source: Source, target: Path, check_on: options.CheckOptions) -> list[object]:
    """Words that verify a file on what this command was given."""
    steps = [] if source.time_step is None else ["--time_step", source.time_step]
    images = input_flags(check_on, source.model.info.provenance.get("data"))
    return ["verify", source.path, target, *steps, *images]


def input_flags(check_on: options.CheckOptions, recorded: object) -> list[object]:
    """Flags that give another command the same images. recorded: the model's data set."""
    if check_on.source.lower() == inputs.DATA:
        name = check_on.dataset_name
        given = [] if name is None else ["--dataset_name", name]
        return [*given, *data_flags(name or recorded, check_on.data_dir)]
    named = inputs.read_input_name(check_on.source).kind == "name"
    resize = ["--resize"] if check_on.resize else []
    folder = folder_flags(check_on.data_dir) if named else []
    return ["--input", check_on.source, *resize, *folder]


def conclude(
    report: VerifyReport | CReport, artifact: Path, model: Path, check_on: options.CheckOptions
) -> None:
    """Print the report of `verify`; raise VerificationError or InconclusiveError by its verdict."""
    if check_on.output_format == "json":
        terminal.show(json.dumps(report.to_dict(), indent=2))
    else:
        terminal.show(drawn(report))
    if report.verdict is Verdict.FAILED:
        raise errors.VerificationError(f"{artifact} is not what {model} says; see the report")
    if report.verdict is Verdict.INCONCLUSIVE:
        why = inconclusive(report, model)
        more = "; where they cannot fire, give --allow_silent" if report.silent else ""
        raise errors.InconclusiveError(f"{why}{more}")


def inconclusive(report: VerifyReport | CReport, model: Path) -> str:
    """Why a report without a difference proves nothing, and what to do."""
    if isinstance(report, CReport) and report.no_compiler:
        return NO_COMPILER
    return (
        f"{report.artifact} does not differ from {model} on {report.images}, but populations "
        f"{untested(report.silent)}. Verify on images on which they fire (--input, --dataset_name, "
        "--samples)"
    )


def check_file(
    kind: Kind,
    source: Source,
    paths: tuple[Path, Path],
    chosen: tuple[Tensor, str],
    check_on: options.CheckOptions,
    allow_silent: bool = False,
) -> VerifyReport:
    """The gates on the chosen images; paths: where the file is, and how it will be called."""
    if check_on.threads is not None:
        torch.set_num_threads(check_on.threads)
    (path, shown), (images, described) = paths, chosen
    progress.status(f"verifying {shown} on {described}")
    sequence = not shows_image(source.model.graph, images)
    frames_taken = kind == "onnx" and _takes_frames(path, source.model)
    if frames_taken and not sequence:
        images, frames = _moving(images, source.model.graph.time_steps)
        described += f", a sequence of {frames} frames each"
    if kind == "onnx" and sequence and not frames_taken:
        raise errors.UsageError(
            f"{shown} takes one image, shown at every step, and {described} are sequences; export "
            "it with --input_mode sequence, or verify on images"
        )
    return gates.verify(
        *(source.model, path, images),
        kind=kind,
        source_sha256=source.sha256,
        described=described,
        name=str(shown),
        batch=check_on.batch,
        allow_silent=allow_silent,
    )


def _moving(images: Tensor, steps: int) -> tuple[Tensor, str]:
    """Frames (T, N, ...), and whether they are `different` from step to step or `equal`.

    Another image at every step, moved by a pixel a step, so that one image gives a sequence too.
    """
    frames = torch.stack([images.roll((t, t), dims=(0, -1)) for t in range(steps)])
    alike = any(torch.equal(before, after) for before, after in pairwise(frames))
    return frames, "equal" if alike else "different"


def _takes_frames(path: Path, model: Model) -> bool:
    """Whether an ONNX file of the model can be shown another frame at every step."""
    try:
        return onnx_static.interface_of(read_onnx(path), model).takes_frames
    except errors.FileFormatError:
        return False  # the static check says so


def check_images(model: Model, check_on: options.CheckOptions) -> tuple[Tensor, str]:
    """Normalised images (N, C, H, W), sequences (T, N, C, H, W), or numbers of the model's kind,
    and what they are. Raises as `choose`.
    """
    found = choose(model, check_on.wish())
    for line in found.remarks:
        note(line)
    return found.images, found.what
