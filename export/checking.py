"""What `export` and `verify` do alike: a file is checked, and put in place only if it passed."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor

from soul_deploy.data import load_data
from soul_deploy.export import verify as gates
from soul_deploy.export.check_options import CheckOptions
from soul_deploy.export.onnx_check import input_mode_of, static_input_of
from soul_deploy.export.onnx_reading import read_onnx
from soul_deploy.export.verify import Kind, VerifyReport
from soul_deploy.modelfile import Model, load_model
from soul_deploy.reporting import print_files
from soul_deploy.runtime.arguments import require_steps
from soul_deploy.runtime.errors import UsageError, VerificationError
from soul_deploy.runtime.files import (
    OpenFile,
    refuse_itself,
    require_output,
    write_atomically,
)
from soul_deploy.runtime.inspect_report import representation_table
from soul_deploy.runtime.warming import compiling_announced

EXPORT_SCHEMA = "soul-deploy/export/1"
TITLES: dict[Kind, str] = {"onnx": "ONNX", "event": "Event network", "nir": "NIR"}


@dataclass(frozen=True)
class Source:
    """The golden: a model file as read."""

    path: Path
    model: Model
    sha256: str

    @staticmethod
    def load(path: Path, time_step: int | None, max_memory: int | None = None) -> "Source":
        require_steps("time_step", time_step)
        with OpenFile(path) as source:
            model, sha256 = load_model(source, max_memory=max_memory), source.sha256()
        if time_step is not None:
            model = model.with_time_steps(time_step)
        return Source(path, model, sha256)


def write_checked(
    kind: Kind,
    source: Source,
    target: Path,
    write: Callable[[Path], None],
    check_on: CheckOptions | None,
    output_format: str,
    layers: list[dict[str, Any]] | None = None,
) -> None:
    """Write, verify what was written, and only then put it in place.

    layers: filled by `write`, the representation of each layer, to be printed.
    """
    refuse_itself(require_output(target), source.path)
    images = None if check_on is None else check_images(source.model, check_on)
    reports: list[VerifyReport] = []

    def write_and_check(temporary: Path) -> None:
        write(temporary)
        if check_on is not None and images is not None:
            reports.append(check_file(kind, source, (temporary, target), images, check_on))
            if not reports[-1].passed:
                click.echo(reports[-1].table(), err=True)
                raise VerificationError(
                    f"the exported {kind} file is not what {source.path} says; it was not kept"
                )

    write_atomically(target, write_and_check)
    report = reports[0] if reports else None
    if output_format == "json":
        result = {
            "schema": EXPORT_SCHEMA,
            "kind": kind,
            "path": str(target),
            "bytes": target.stat().st_size,
            "time_steps": source.model.graph.time_steps,
            "source_sha256": source.sha256,
            **({} if layers is None else {"layers": layers}),
            "verified": None if report is None else report.to_json(),
        }
        click.echo(as_json(result))
        return
    if layers is not None:
        click.echo(representation_table(layers))
    if report is not None:
        click.echo(report.table())
    shown = report is not None and kind != "nir"
    following = f"inspect {target}" if shown else f"verify {source.path} {target}"
    print_files(
        output_format,
        {TITLES[kind]: target},
        f"soul-deploy {following}",
    )


def check_file(
    kind: Kind,
    source: Source,
    paths: tuple[Path, Path],
    chosen: tuple[Tensor, str],
    check_on: CheckOptions,
) -> VerifyReport:
    """The gates on the chosen images; paths: where the file is, and how it will be called."""
    if check_on.threads is not None:
        torch.set_num_threads(check_on.threads)
    (path, shown), (images, described) = paths, chosen
    if kind == "onnx" and _takes_frames(path):
        steps = source.model.graph.time_steps
        images = torch.stack([images.roll(t, dims=0) for t in range(steps)])
        described += ", a sequence of different frames each"
    with compiling_announced():
        return gates.verify(
            source.model,
            path,
            images,
            kind=kind,
            source_sha256=source.sha256,
            described=described,
            name=str(shown),
            batch=check_on.batch,
        )


def _takes_frames(path: Path) -> bool:
    """Whether an ONNX file can be shown another frame at every step."""
    file = read_onnx(path)
    mode = input_mode_of(file)
    return mode == "sequence" or (mode == "step" and static_input_of(file) == "image")


def check_images(model: Model, check_on: CheckOptions) -> tuple[Tensor, str]:
    """Normalised images (N, C, H, W) and what they are.

    Raises UsageError if the model does not say what it was trained on, or the data do not fit it.
    """
    shape, norm = model.input_shape, model.info.normalization
    if check_on.source.lower() == "random":
        seeded = torch.Generator().manual_seed(check_on.seed)
        pixels = torch.rand((check_on.samples, *shape), generator=seeded)
        if norm is not None:
            sides = (-1, *[1] * (len(shape) - 1))
            mean, std = torch.tensor(norm.mean), torch.tensor(norm.std)
            pixels = (pixels - mean.reshape(sides)) / std.reshape(sides)
        return pixels, f"{len(pixels)} random images, seed {check_on.seed}"
    name = check_on.dataset_name or model.info.provenance.get("data")
    if not isinstance(name, str):
        raise UsageError(
            "the model file does not say which data it was trained on; give --dataset_name, or "
            "--input random to verify on random pixels"
        )
    data = load_data(name, check_on.data_dir, download=check_on.download)
    if data.input_shape != shape:
        raise UsageError(f"{name} has images of {data.input_shape}, this model takes {shape}")
    data = data if norm is None else replace(data, normalization=norm)
    chosen = data.validation.images[: check_on.samples]
    return data.normalise(chosen), f"{len(chosen)} validation images of {name}"


def as_json(document: Any) -> str:
    return json.dumps(document, indent=2)
