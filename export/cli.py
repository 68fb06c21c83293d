"""`soul-deploy export onnx`, `export event` and `verify`."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor

from soul_deploy.arguments import SoulCommand
from soul_deploy.data import load_data
from soul_deploy.export import verify as gates
from soul_deploy.export.event import export_event
from soul_deploy.export.onnx_check import input_mode_of
from soul_deploy.export.onnx_graph import INPUT_MODES, OPSETS, export_onnx
from soul_deploy.export.onnx_reading import read_onnx
from soul_deploy.export.representation import CHOICES
from soul_deploy.export.verify import Kind, VerifyReport, kind_of
from soul_deploy.modelfile import Model, load_model
from soul_deploy.options import Decorator, option_group
from soul_deploy.reporting import print_files
from soul_deploy.runtime.errors import UsageError, VerificationError
from soul_deploy.runtime.files import file_sha256, write_atomically
from soul_deploy.runtime.inspect_report import representation_table
from soul_deploy.runtime.inspection import representations

EXPORT_SCHEMA = "soul-deploy/export/1"


@dataclass(frozen=True)
class CheckOptions:
    """On how many images of what an artifact is verified."""

    samples: int
    batch: int
    source: str
    dataset_name: str | None
    data_dir: Path
    download: bool
    seed: int
    threads: int | None
    output_format: str

    def __post_init__(self) -> None:
        for name, value in (
            ("samples", self.samples),
            ("batch", self.batch),
            ("threads", 1 if self.threads is None else self.threads),
        ):
            if value < 1:
                raise UsageError(f"{name} {value} must be at least 1")


def check_options() -> Decorator:
    """--samples, --batch, --input, the data set's options, --seed, --threads, --format."""
    return option_group(
        "check_on",
        CheckOptions,
        click.option(
            "--samples", type=int, default=32, show_default=True, help="Images to verify on."
        ),
        click.option(
            *("--batch", "-b"),
            type=int,
            default=16,
            show_default=True,
            help="Images at a time while verifying; files take any batch.",
        ),
        click.option(
            "--input",
            "source",
            type=click.Choice(["data", "random"], case_sensitive=False),
            default="data",
            show_default=True,
            help="data: validation images of the data set; random: random pixels.",
        ),
        click.option(
            *("--dataset_name", "--dataset", "-dataset"),
            default=None,
            help="Data set to verify on.  [default: the one the model was trained on]",
        ),
        click.option(
            *("--data_dir", "-data_dir"),
            type=click.Path(path_type=Path),
            default=Path("data"),
            show_default=True,
            help="Folder of the data set's files; mnist5k and digits need none.",
        ),
        click.option("--download", is_flag=True, help="Download a missing data set."),
        click.option(
            *("--seed", "-seed"),
            type=int,
            default=2025,
            show_default=True,
            help="Of random pixels.",
        ),
        click.option("--threads", type=int, default=None, help="CPU threads. [default: PyTorch's]"),
        click.option(
            "--format",
            "output_format",
            type=click.Choice(["table", "json"], case_sensitive=False),
            default="table",
            show_default=True,
            help="How the result is printed on standard output.",
        ),
    )


def _steps_option() -> Decorator:
    return click.option(
        *("--time_step", "-T"),
        type=int,
        default=None,
        help="Run for another number of time steps.  [default: the model's]",
    )


def _export_options() -> Callable[[Any], Any]:
    """MODEL, -o, -T, --check and what the check runs on."""

    def decorate(command: Any) -> Any:
        for option in reversed(
            (
                click.argument("model_path", metavar="MODEL", type=click.Path(path_type=Path)),
                click.option(
                    *("--output", "-o"),
                    type=click.Path(path_type=Path),
                    help="Where the file goes.  [default: beside MODEL, under its name]",
                ),
                _steps_option(),
                click.option(
                    "--check/--no-check",
                    default=True,
                    show_default=True,
                    help="Verify the file against the model; a file that fails is not kept.",
                ),
                check_options(),
            )
        ):
            command = option(command)
        return command

    return decorate


@click.command(cls=SoulCommand)
@_export_options()
@click.option(
    "--opset",
    type=int,
    default=18,
    show_default=True,
    help=f"Version of ONNX's operators, {OPSETS[0]} to {OPSETS[-1]}.",
)
@click.option(
    "--input_mode",
    type=click.Choice(INPUT_MODES, case_sensitive=False),
    default="static",
    show_default=True,
    help="static: one image shown at every step; sequence: T frames.",
)
def onnx(
    model_path: Path,
    output: Path | None,
    time_step: int | None,
    check: bool,
    check_on: CheckOptions,
    opset: int,
    input_mode: Any,
) -> None:
    """Write MODEL, a soul-deploy model file, as one self-contained ONNX file.

    All T steps are inside, batch norm is folded, the batch axis is dynamic.
    """
    source = _Source.load(model_path, time_step)
    target = output or model_path.with_suffix(".onnx")

    def write(path: Path) -> None:
        export_onnx(
            source.model, path, opset=opset, input_mode=input_mode, source_sha256=source.sha256
        )

    _export("onnx", source, target, write, check_on if check else None, check_on.output_format)


@click.command(cls=SoulCommand)
@_export_options()
@click.option(
    "--representation",
    type=click.Choice(CHOICES, case_sensitive=False),
    default="auto",
    show_default=True,
    help="Synapses of convolutions: rows shared by all positions (implicit), or one row per live "
    "neuron with nothing but live synapses (explicit). auto: by estimated time, layer by layer.",
)
def event(
    model_path: Path,
    output: Path | None,
    time_step: int | None,
    check: bool,
    check_on: CheckOptions,
    representation: Any,
) -> None:
    """Write MODEL, a soul-deploy model file, as an event network, which runs without PyTorch.

    Masked neurons, and neurons that no output depends on, are left out.
    """
    source = _Source.load(model_path, time_step)
    target = output or model_path.with_suffix(".event.safetensors")
    layers: list[dict[str, Any]] = []

    def write(path: Path) -> None:
        network = export_event(
            source.model, path, source_sha256=source.sha256, representation=representation
        )
        layers.extend(representations(network))

    checked = check_on if check else None
    _export("event", source, target, write, checked, check_on.output_format, layers)


@click.command(cls=SoulCommand)
@click.argument("model_path", metavar="MODEL", type=click.Path(path_type=Path))
@click.argument("artifact", metavar="ARTIFACT", type=click.Path(path_type=Path))
@_steps_option()
@check_options()
def verify(model_path: Path, artifact: Path, time_step: int | None, check_on: CheckOptions) -> None:
    """Prove that ARTIFACT, an ONNX or event file, does what MODEL does.

    Three gates: stored structures, layer by layer, end to end. Exits with 1 if one fails.
    """
    source = _Source.load(model_path, time_step)
    kind = kind_of(artifact)
    images = check_images(source.model, check_on)
    report = _check(kind, source, (artifact, artifact), images, check_on)
    if check_on.output_format == "json":
        click.echo(_json(report.to_json()))
    else:
        click.echo(report.table())
    if not report.passed:
        raise VerificationError(f"{artifact} is not what {model_path} says; see the report")


@dataclass(frozen=True)
class _Source:
    """The golden: a model file as read."""

    path: Path
    model: Model
    sha256: str

    @staticmethod
    def load(path: Path, time_step: int | None) -> "_Source":
        model = load_model(path)
        if time_step is not None:
            model = model.with_time_steps(time_step)
        return _Source(path, model, file_sha256(path))


def _export(
    kind: Kind,
    source: _Source,
    target: Path,
    write: Callable[[Path], None],
    check_on: CheckOptions | None,
    output_format: str,
    layers: list[dict[str, Any]] | None = None,
) -> None:
    """Write, verify what was written, and only then put it in place.

    layers: filled by `write`, the representation of each layer, to be printed.
    """
    if target.resolve() == source.path.resolve():
        raise UsageError(f"{target} is the model itself; give another --output")
    images = None if check_on is None else check_images(source.model, check_on)
    reports: list[VerifyReport] = []

    def write_and_check(temporary: Path) -> None:
        write(temporary)
        if check_on is not None and images is not None:
            reports.append(_check(kind, source, (temporary, target), images, check_on))
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
        click.echo(_json(result))
        return
    if layers is not None:
        click.echo(representation_table(layers))
    if report is not None:
        click.echo(report.table())
    following = f"inspect {target}" if report else f"verify {source.path} {target}"
    print_files(
        output_format,
        {"ONNX" if kind == "onnx" else "Event network": target},
        f"soul-deploy {following}",
    )


def _check(
    kind: Kind,
    source: _Source,
    paths: tuple[Path, Path],
    chosen: tuple[Tensor, str],
    check_on: CheckOptions,
) -> VerifyReport:
    """The gates on the chosen images; paths: where the file is, and how it will be called."""
    if check_on.threads is not None:
        torch.set_num_threads(check_on.threads)
    (path, shown), (images, described) = paths, chosen
    if kind == "onnx" and input_mode_of(read_onnx(path)) == "sequence":
        steps = source.model.graph.time_steps
        images = torch.stack([images.roll(t, dims=0) for t in range(steps)])
        described += ", a sequence of different frames each"
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


def _json(document: Any) -> str:
    return json.dumps(document, indent=2)
