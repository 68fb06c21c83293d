"""`soul-deploy export onnx`, `export event`, `export nir` and `verify`; C is in `export_c`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from torch import Tensor

from soul_deploy.base import errors, files, memory
from soul_deploy.cli import checking, export_c, options, parsing
from soul_deploy.cli import common_options as common
from soul_deploy.cli.checking import Source, target_of, write_checked
from soul_deploy.cli.common_options import FILE, Decorator, choice, given, one_of, option
from soul_deploy.cli.options import CheckOptions, export_options
from soul_deploy.export.event import build, storage_format
from soul_deploy.export.nir import package
from soul_deploy.export.nir.write import export_nir
from soul_deploy.export.onnx import model, opsets, step
from soul_deploy.export.verify.verify import artifact_kind
from soul_deploy.runtime.io.inspect import representations
from soul_deploy.runtime.kernels.cache import compiling_announced


@dataclass(frozen=True)
class OnnxOptions:
    """What the ONNX file holds, and what it takes and yields."""

    opset: int = given(
        18,
        f"Version of ONNX's operators, {opsets.OPSETS[0]} to {opsets.OPSETS[-1]}; new ones need a "
        "new onnx and, for --check, onnxruntime.",
    )
    input_mode: Any = given(
        None,
        "static: one image shown at every step; sequence: T frames. For --mode sequence.  "
        "[default: sequence of a network of events or trained on frames of them, else static]",
        type=choice(model.INPUT_MODES),
    )
    mode: str = one_of(
        ("sequence", "step"),
        "sequence: all steps inside. step: one step, for streams; membranes go in and come out.",
    )
    static_input: Any = one_of(
        step.STATIC_INPUTS,
        "For --mode step, what the file takes at each step: the image or frame, or the first "
        "layers' currents, which a second file, .currents.onnx, computes once per image.",
    )
    outputs: Any = one_of(
        model.OUTPUTS,
        "logits: class scores; spikes: also every population's spikes, (T, batch, ...), so that "
        "operations can be counted; steps: the scores of each step, (T, batch, classes), instead "
        "of what the readout makes of them. For --mode sequence.",
    )
    functions: bool = given(
        False,
        "Neurons as calls of functions inside the file, which ONNX Runtime knows and few others "
        "do, instead of operators.",
    )
    fixed_batch: int | None = given(
        None, "Samples of every call, for engines without dynamic shapes. [default: any number]"
    )

    def __post_init__(self) -> None:
        if self.fixed_batch is not None:
            errors.require_least(1, fixed_batch=self.fixed_batch)
        if self.mode == "step" and self.input_mode == "sequence":
            raise errors.UsageError("--input_mode is for --mode sequence; a step takes one frame")
        if self.mode == "step" and self.outputs != "logits":
            raise errors.UsageError(
                f"--outputs {self.outputs} is for --mode sequence; a step yields its own scores "
                "and its membranes"
            )
        if self.mode != "step" and self.static_input != "image":
            raise errors.UsageError("--static_input current is for --mode step")

    def write(self, source: Source, path: Path) -> None:
        """Export the model to `path`. Raises what the exporters raise."""
        known: Any = {"opset": self.opset, "source_sha256": source.sha256}
        known |= {"functions": self.functions, "fixed_batch": self.fixed_batch}
        if self.mode == "step":
            step.export_step(source.model, path, static_input=self.static_input, **known)
        else:
            known |= {"input_mode": self.input_mode, "outputs": self.outputs}
            model.export_onnx(source.model, path, **known)


@click.command(
    cls=parsing.SoulCommand, example="export onnx model.safetensors -o net.onnx --input random"
)
@export_options()
@common.option_group("form", OnnxOptions)
def onnx(
    model_path: Path,
    output: Path | None,
    time_step: int | None,
    check: bool,
    check_on: CheckOptions,
    form: OnnxOptions,
) -> None:
    """Write MODEL, a soul-deploy model file, as one self-contained ONNX file of flat operators.

    All T steps are inside (or one, with --mode step), batch norm is folded, the batch axis is
    dynamic (or fixed, with --fixed_batch).
    """
    opsets.require_opset(form.opset, run=check)
    target = target_of(output, model_path, ".onnx")
    currents = target.with_suffix(".currents.onnx")
    if form.static_input == "current":
        files.require_writable(currents)
    source = Source.load(model_path, time_step)

    def write_currents() -> dict[str, Path]:
        if form.static_input != "current":
            return {}
        known: Any = {"opset": form.opset, "fixed_batch": form.fixed_batch}
        step.export_currents(source.model, currents, source_sha256=source.sha256, **known)
        return {"Currents": currents}

    def write(path: Path, _: Tensor | None) -> None:
        form.write(source, path)

    write_checked("onnx", source, target, write, check_on, check, beside=write_currents)


def _event_options() -> Decorator:
    representation = (
        "Synapses of convolutions: rows shared by all positions (implicit), or one row per live "
        "neuron with nothing but live synapses (explicit). auto: by estimated time, layer by layer."
    )
    rows = (
        "How one layer's rows are stored and run: sparse or planes (shared and compressed, "
        "convolutions only), dense, gather or analog (whole), or explicit. Kept in the file; run "
        "--rows overrides it. May be repeated; --representation is for the other layers."
    )
    kind = choice(storage_format.CHOICES)
    return common.options(
        option("--representation", type=kind, default="auto", help=representation),
        option("--rows", multiple=True, metavar="LAYER=FORM", help=rows),
        common.max_memory_option(),
    )


@click.command(
    cls=parsing.SoulCommand, example="export event model.safetensors -o net.event --input random"
)
@export_options()
@_event_options()
def event(
    model_path: Path,
    output: Path | None,
    time_step: int | None,
    check: bool,
    check_on: CheckOptions,
    representation: Any,
    rows: tuple[str, ...],
    max_memory: str | None,
) -> None:
    """Write MODEL, a soul-deploy model file, as an event network, which runs without PyTorch.

    Masked neurons, and neurons that no output depends on, are left out.
    """
    allowed = memory.parse_bytes(max_memory)
    forms = parsing.read_forms(rows, build.ROW_FORMS)
    target = target_of(output, model_path, ".event.safetensors")
    source = Source.load(model_path, time_step, allowed)
    layers: list[dict[str, Any]] = []
    wanted: Any = {"representation": representation, "rows": forms, "max_memory": allowed}

    def write(path: Path, images: Tensor | None) -> None:
        told: Any = {"source_sha256": source.sha256, "images": images, **wanted}
        network = build.export_event(source.model, path, **told)
        layers.extend(representations(network))

    write_checked("event", source, target, write, check_on, check, layers)


@click.command(
    cls=parsing.SoulCommand, example="export nir model.safetensors -o net.nir --input random"
)
@export_options()
@option(
    "--dt",
    type=float,
    default=package.DEFAULT_DT,
    help="Seconds per time step; snnTorch's reader knows no other than the default.",
    heading="Network",
)
def nir(
    model_path: Path,
    output: Path | None,
    time_step: int | None,
    check: bool,
    check_on: CheckOptions,
    dt: float,
) -> None:
    """Write MODEL, a soul-deploy model file, as a NIR graph for other toolkits and chips.

    Batch norm is folded. Max pooling, soft reset, groups, masked neurons and generated channels
    cannot be written and are refused by name.
    """
    target = target_of(output, model_path, ".nir")
    source = Source.load(model_path, time_step)

    def write(path: Path, _: Tensor | None) -> None:
        export_nir(source.model, path, dt=dt, source_sha256=source.sha256)

    write_checked("nir", source, target, write, check_on, check)


@click.command(cls=parsing.SoulCommand, example="verify model.safetensors net.event --input random")
@click.argument("model_path", metavar="MODEL", type=FILE)
@click.argument("artifact", metavar="ARTIFACT", type=FILE)
@options.model_steps_option()
@options.check_options
@option(
    "--allow_silent",
    is_flag=True,
    help="Pass also where a population of neurons never fires; it is named as untested.",
)
def verify(
    model_path: Path,
    artifact: Path,
    time_step: int | None,
    check_on: CheckOptions,
    allow_silent: bool,
) -> None:
    """Prove that ARTIFACT, an ONNX, event or NIR file or a folder of C, does what MODEL does.

    Three gates: stored structures, layer by layer, end to end. Of a folder of C, two: its bytes,
    and every integer that it computes. The structure of an ONNX file that
    another tool has simplified or converted is not comparable: the other two decide. Exits with 1
    if one fails, and with 3, inconclusive, if none fails but a population of neurons never fired on
    the images: nothing is proven about it.
    """
    source = Source.load(model_path, time_step)
    if artifact.is_dir():
        export_c.verify_folder(source, artifact, check_on, allow_silent)
        return
    kind = artifact_kind(artifact)
    images = checking.check_images(source.model, check_on)
    paths = (artifact, artifact)
    with compiling_announced():
        report = checking.check_file(kind, source, paths, images, check_on, allow_silent)
    checking.conclude(report, artifact, model_path, check_on)
