"""`soul-deploy export nir` and `import nir`."""

from pathlib import Path
from typing import Any, get_args

import click

from soul_deploy.base.errors import UsageError
from soul_deploy.base.files import require_file, require_writable
from soul_deploy.cli import common_options as common
from soul_deploy.cli.checking import Source, target_of, write_checked
from soul_deploy.cli.common_options import Decorator, option
from soul_deploy.cli.options import CheckOptions, export_options, input_kind_option
from soul_deploy.cli.output import data_flags, print_import
from soul_deploy.cli.parsing import SoulCommand, require_steps
from soul_deploy.export.nir.neuron import ResetRule
from soul_deploy.export.nir.package import DEFAULT_DT
from soul_deploy.export.nir.read import import_nir, read_nir
from soul_deploy.export.nir.write import export_nir
from soul_deploy.model.file import save
from soul_deploy.training.messages import note


@click.command(
    "nir", cls=SoulCommand, example="export nir model.safetensors -o net.nir --input random"
)
@export_options()
@option(
    "--dt",
    type=float,
    default=DEFAULT_DT,
    help="Seconds per time step; snnTorch's reader knows no other than the default.",
    heading="Network",
)
def export_command(
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

    def write(path: Path) -> None:
        export_nir(source.model, path, dt=dt, source_sha256=source.sha256)

    write_checked("nir", source, target, write, check_on, check)


def _import_options() -> Decorator:
    dt = (
        f"Seconds per time step.  [default: those in FILE's metadata, or {DEFAULT_DT:g}, if FILE "
        "makes sense with it]"
    )
    reset = (
        "What a spike does, where FILE's metadata do not say: set the membrane to v_reset (zero); "
        "take the threshold off in the next step, after the decay, as snnTorch's Leaky does "
        "(subtract); take it off in the same step (subtract_at_once).  [default: zero, as NIR says]"
    )
    fire = (
        "Whether neurons fire above their threshold or also at it, where FILE's metadata do not "
        "say.  [default: gt, as NIR says]"
    )
    rules, fires = click.Choice(get_args(ResetRule)), click.Choice(["gt", "ge"])
    return common.options(
        click.argument("nir_path", metavar="FILE", type=common.FILE),
        common.output_option("Where the model file goes.  [default: beside FILE, under its name]"),
        common.steps_option("Time steps to run.  [default: those in FILE's metadata]"),
        option("--dt", type=float, help=dt, heading="Network"),
        option("--reset", type=rules, help=reset, heading="Network"),
        option("--fire", type=fires, help=fire, heading="Network"),
        input_kind_option("the one in FILE's metadata, or images"),
        common.format_option(),
    )


@click.command("nir", cls=SoulCommand, example="import nir net.nir --output model.safetensors")
@_import_options()
def import_command(
    nir_path: Path, output: Path | None, time_step: int | None, output_format: str, **rules: Any
) -> None:
    """Read FILE, a NIR graph from any tool, as a soul-deploy model file.

    NIR does not say how long a time step is, and tools write neurons that reset or fire otherwise
    in the same way. What FILE leaves open and no flag says is assumed, a line each on standard
    error; docs/nir.md says what to give for which tool.
    """
    require_steps("time_step", time_step)
    target = output or require_file(nir_path).with_suffix(".safetensors")
    if target.resolve() == nir_path.resolve():
        raise UsageError(f"{target} is the NIR file itself; give another --output")
    require_writable(target)
    model = import_nir(read_nir(nir_path), time_steps=time_step, **rules)
    assumptions = list(model.info.provenance.get("assumptions", ()))
    for sentence in assumptions:
        note(f"Assumed: {sentence}")
    save(model, target)
    data = data_flags(None, common.DATA_DIR)  # NIR names no data set
    print_import(output_format, model, target, data, "", assumptions=assumptions)
