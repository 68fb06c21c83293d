"""`soul-deploy export nir` and `import nir`."""

from pathlib import Path
from typing import Any, get_args

import click

from soul_deploy.base import errors, files
from soul_deploy.cli import checking, options, parsing
from soul_deploy.cli import common_options as common
from soul_deploy.cli.common_options import Decorator, option
from soul_deploy.cli.output import data_flags, print_import
from soul_deploy.export.nir import neuron, package, read
from soul_deploy.export.nir.write import export_nir
from soul_deploy.model.file import save
from soul_deploy.training.messages import note


@click.command(
    "nir", cls=parsing.SoulCommand, example="export nir model.safetensors -o net.nir --input random"
)
@options.export_options()
@option(
    "--dt",
    type=float,
    default=package.DEFAULT_DT,
    help="Seconds per time step; snnTorch's reader knows no other than the default.",
    heading="Network",
)
def export_command(
    model_path: Path,
    output: Path | None,
    time_step: int | None,
    check: bool,
    check_on: options.CheckOptions,
    dt: float,
) -> None:
    """Write MODEL, a soul-deploy model file, as a NIR graph for other toolkits and chips.

    Batch norm is folded. Max pooling, soft reset, groups, masked neurons and generated channels
    cannot be written and are refused by name.
    """
    target = checking.target_of(output, model_path, ".nir")
    source = checking.Source.load(model_path, time_step)

    def write(path: Path) -> None:
        export_nir(source.model, path, dt=dt, source_sha256=source.sha256)

    checking.write_checked("nir", source, target, write, check_on, check)


def _import_options() -> Decorator:
    dt = (
        f"Seconds per time step.  [default: those in FILE's metadata, or {package.DEFAULT_DT:g}, "
        "if FILE makes sense with it]"
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
    rules, fires = click.Choice(get_args(neuron.ResetRule)), click.Choice(["gt", "ge"])
    return common.options(
        click.argument("nir_path", metavar="FILE", type=common.FILE),
        common.output_option("Where the model file goes.  [default: beside FILE, under its name]"),
        common.steps_option("Time steps to run.  [default: those in FILE's metadata]"),
        option("--dt", type=float, help=dt, heading="Network"),
        option("--reset", type=rules, help=reset, heading="Network"),
        option("--fire", type=fires, help=fire, heading="Network"),
        options.input_kind_option("the one in FILE's metadata, or images"),
        common.format_option(),
    )


@click.command(
    "nir", cls=parsing.SoulCommand, example="import nir net.nir --output model.safetensors"
)
@_import_options()
def import_command(
    nir_path: Path, output: Path | None, time_step: int | None, output_format: str, **rules: Any
) -> None:
    """Read FILE, a NIR graph from any tool, as a soul-deploy model file.

    NIR does not say how long a time step is, and tools write neurons that reset or fire otherwise
    in the same way. What FILE leaves open and no flag says is assumed, a line each on standard
    error; docs/nir.md says what to give for which tool.
    """
    parsing.require_steps("time_step", time_step)
    target = output or files.require_file(nir_path).with_suffix(".safetensors")
    if target.resolve() == nir_path.resolve():
        raise errors.UsageError(f"{target} is the NIR file itself; give another --output")
    files.require_writable(target)
    model = read.import_nir(read.read_nir(nir_path), time_steps=time_step, **rules)
    assumptions = list(model.info.provenance.get("assumptions", ()))
    for sentence in assumptions:
        note(f"Assumed: {sentence}")
    save(model, target)
    data = data_flags(None, common.DATA_DIR)  # NIR names no data set
    print_import(output_format, model, target, data, "", assumptions=assumptions)
