"""`soul-deploy export onnx`, `export event` and `verify`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from soul_deploy.base.errors import InconclusiveError, UsageError, VerificationError
from soul_deploy.base.files import require_writable
from soul_deploy.base.memory import HELP as MEMORY_HELP
from soul_deploy.base.memory import parse_bytes
from soul_deploy.base.terminal import show
from soul_deploy.cli.check_options import (
    CheckOptions,
    check_options,
    export_options,
    steps_option,
)
from soul_deploy.cli.checking import (
    Source,
    as_json,
    check_file,
    check_images,
    inconclusive,
    target_of,
    write_checked,
)
from soul_deploy.cli.index_lists import SoulCommand
from soul_deploy.cli.text_table import drawn
from soul_deploy.equivalence.verdict import Verdict
from soul_deploy.export.event.build import export_event
from soul_deploy.export.event.storage_format import CHOICES, CONVOLUTION_FORMS, Form
from soul_deploy.export.onnx.model import INPUT_MODES, OUTPUTS, export_onnx
from soul_deploy.export.onnx.opsets import OPSETS, require_opset
from soul_deploy.export.onnx.step import STATIC_INPUTS, export_currents, export_step
from soul_deploy.export.verify.verify import kind_of
from soul_deploy.runtime.io.inspect import representations


@click.command(cls=SoulCommand)
@export_options()
@click.option(
    "--opset",
    type=int,
    default=18,
    show_default=True,
    help=f"Version of ONNX's operators, {OPSETS[0]} to {OPSETS[-1]}; new ones need a new onnx and, "
    "for --check, onnxruntime.",
)
@click.option(
    "--input_mode",
    type=click.Choice(INPUT_MODES, case_sensitive=False),
    default="static",
    show_default=True,
    help="static: one image shown at every step; sequence: T frames. For --mode sequence.",
)
@click.option(
    "--mode",
    type=click.Choice(["sequence", "step"], case_sensitive=False),
    default="sequence",
    show_default=True,
    help="sequence: all steps inside. step: one step, for streams; membranes go in and come out.",
)
@click.option(
    "--static_input",
    type=click.Choice(STATIC_INPUTS, case_sensitive=False),
    default="image",
    show_default=True,
    help="For --mode step, what the file takes at each step: the image or frame, or the first "
    "layers' currents, which a second file, .currents.onnx, computes once per image.",
)
@click.option(
    "--outputs",
    type=click.Choice(OUTPUTS, case_sensitive=False),
    default="logits",
    show_default=True,
    help="logits: class scores; spikes: also every population's spikes, (T, batch, ...), so that "
    "operations can be counted. For --mode sequence.",
)
def onnx(
    model_path: Path,
    output: Path | None,
    time_step: int | None,
    check: bool,
    check_on: CheckOptions,
    opset: int,
    input_mode: Any,
    mode: str,
    static_input: Any,
    outputs: Any,
) -> None:
    """Write MODEL, a soul-deploy model file, as one self-contained ONNX file.

    All T steps are inside (or one, with --mode step), batch norm is folded, the batch axis is
    dynamic.
    """
    if mode == "step" and input_mode != "static":
        raise UsageError("--input_mode is for --mode sequence; a step takes one frame")
    if mode == "step" and outputs != "logits":
        raise UsageError("--outputs spikes is for --mode sequence; a step yields its membranes")
    if mode != "step" and static_input != "image":
        raise UsageError("--static_input current is for --mode step")
    require_opset(opset, run=check)
    target = target_of(output, model_path, ".onnx")
    currents = target.with_suffix(".currents.onnx")
    if static_input == "current":
        require_writable(currents)
    source = Source.load(model_path, time_step)
    model, sha256 = source.model, source.sha256

    def write(path: Path) -> None:
        if mode == "step":
            export_step(model, path, opset=opset, static_input=static_input, source_sha256=sha256)
        else:
            export_onnx(
                model,
                path,
                opset=opset,
                input_mode=input_mode,
                outputs=outputs,
                source_sha256=sha256,
            )

    def write_currents() -> dict[str, Path]:
        if static_input != "current":
            return {}
        export_currents(model, currents, opset=opset, source_sha256=sha256)
        return {"Currents": currents}

    write_checked("onnx", source, target, write, check_on, check, beside=write_currents)


@click.command(cls=SoulCommand)
@export_options()
@click.option(
    "--representation",
    type=click.Choice(CHOICES, case_sensitive=False),
    default="auto",
    show_default=True,
    help="Synapses of convolutions: rows shared by all positions (implicit), or one row per live "
    "neuron with nothing but live synapses (explicit). auto: by estimated time, layer by layer.",
)
@click.option(
    "--rows",
    multiple=True,
    metavar="LAYER=FORM",
    help="The form of one layer's rows: dense, sparse (shared and compressed, convolutions only) "
    "or explicit. May be repeated; --representation is for the other layers.",
)
@click.option("--max_memory", default=None, metavar="SIZE", help=MEMORY_HELP)
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
    allowed, forms = parse_bytes(max_memory), read_forms(rows)
    target = target_of(output, model_path, ".event.safetensors")
    source = Source.load(model_path, time_step, allowed)
    layers: list[dict[str, Any]] = []

    def write(path: Path) -> None:
        network = export_event(
            source.model,
            path,
            source_sha256=source.sha256,
            representation=representation,
            rows=forms,
            max_memory=allowed,
        )
        layers.extend(representations(network))

    write_checked("event", source, target, write, check_on, check, layers)


def read_forms(given: Sequence[str]) -> dict[str, Form]:
    """LAYER=FORM words as a mapping. Raises UsageError."""
    forms: dict[str, Form] = {}
    for word in given:
        layer, equals, form = word.rpartition("=")
        found = next((known for known in CONVOLUTION_FORMS if known == form.lower()), None)
        if not equals or not layer or found is None:
            raise UsageError(
                f"--rows {word}: give LAYER=FORM, where FORM is {', '.join(CONVOLUTION_FORMS)}"
            )
        if forms.setdefault(layer, found) != found:
            raise UsageError(f"--rows {word}: {layer} was given as {forms[layer]} too")
    return forms


@click.command(cls=SoulCommand)
@click.argument("model_path", metavar="MODEL", type=click.Path(path_type=Path))
@click.argument("artifact", metavar="ARTIFACT", type=click.Path(path_type=Path))
@steps_option()
@check_options()
@click.option(
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
    """Prove that ARTIFACT, an ONNX, event or NIR file, does what MODEL does.

    Three gates: stored structures, layer by layer, end to end. Exits with 1 if one fails, and with
    3, inconclusive, if none fails but a population of neurons never fired on the images: nothing
    is proven about it.
    """
    source = Source.load(model_path, time_step)
    kind = kind_of(artifact)
    images = check_images(source.model, check_on)
    report = check_file(kind, source, (artifact, artifact), images, check_on, allow_silent)
    if check_on.output_format == "json":
        show(as_json(report.to_dict()))
    else:
        show(drawn(report))
    if report.verdict is Verdict.FAILED:
        raise VerificationError(f"{artifact} is not what {model_path} says; see the report")
    if report.verdict is Verdict.INCONCLUSIVE:
        raise InconclusiveError(
            f"{inconclusive(report, model_path)}; where they cannot fire, give --allow_silent"
        )
