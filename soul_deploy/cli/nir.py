"""`soul-deploy export nir` and `import nir`."""

from pathlib import Path
from typing import Any, get_args

import click

from soul_deploy.base.errors import UsageError
from soul_deploy.base.files import require_file, require_writable
from soul_deploy.cli.check_options import CheckOptions, export_options
from soul_deploy.cli.checking import Source, target_of, write_checked
from soul_deploy.cli.index_lists import SoulCommand, input_kind_option
from soul_deploy.cli.output import DATA_DIR, data_flags, print_files, print_result
from soul_deploy.cli.parsing import require_steps
from soul_deploy.export.nir.neuron import ResetRule
from soul_deploy.export.nir.package import DEFAULT_DT
from soul_deploy.export.nir.read import import_nir, read_nir
from soul_deploy.export.nir.write import export_nir
from soul_deploy.model.file import save
from soul_deploy.model.model import Model
from soul_deploy.training.messages import note

IMPORT_SCHEMA = "soul-deploy/import/1"


@click.command("nir", cls=SoulCommand)
@export_options()
@click.option(
    "--dt",
    type=float,
    default=DEFAULT_DT,
    show_default=True,
    help="Seconds per time step; snnTorch's reader knows no other than the default.",
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


@click.command("nir", cls=SoulCommand)
@click.argument("nir_path", metavar="FILE", type=click.Path(path_type=Path))
@click.option(
    *("--output", "-o"),
    type=click.Path(path_type=Path),
    help="Where the model file goes.  [default: beside FILE, under its name]",
)
@click.option(
    *("--time_step", "-T"),
    type=int,
    default=None,
    help="Time steps to run.  [default: those in FILE's metadata]",
)
@click.option(
    "--dt",
    type=float,
    default=None,
    help=f"Seconds per time step.  [default: those in FILE's metadata, or {DEFAULT_DT:g}, if FILE "
    "makes sense with it]",
)
@click.option(
    "--reset",
    type=click.Choice(get_args(ResetRule)),
    default=None,
    help="What a spike does, where FILE's metadata do not say: set the membrane to v_reset (zero); "
    "take the threshold off in the next step, after the decay, as snnTorch's Leaky does "
    "(subtract); take it off in the same step (subtract_at_once).  [default: zero, as NIR says]",
)
@click.option(
    "--fire",
    type=click.Choice(["gt", "ge"]),
    default=None,
    help="Whether neurons fire above their threshold or also at it, where FILE's metadata do not "
    "say.  [default: gt, as NIR says]",
)
@input_kind_option("the one in FILE's metadata, or images")
@click.option(
    "--format",
    "output_format",
    type=click.Choice(["table", "json"], case_sensitive=False),
    default="table",
    show_default=True,
    help="How the result is printed on standard output.",
)
def import_command(
    nir_path: Path,
    output: Path | None,
    time_step: int | None,
    dt: float | None,
    reset: Any,
    fire: Any,
    input_kind: Any,
    output_format: str,
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
    model = import_nir(
        read_nir(nir_path),
        time_steps=time_step,
        dt=dt,
        fire=fire,
        reset=reset,
        input_kind=input_kind,
    )
    for sentence in _assumptions(model):
        note(f"Assumed: {sentence}")
    save(model, target)
    _print(model, target, output_format)


def _assumptions(model: Model) -> list[str]:
    return list(model.info.provenance.get("assumptions", ()))


def _print(model: Model, target: Path, output_format: str) -> None:
    graph = model.graph
    nodes = [(node.name, node.op, node.describe()) for node in graph.nodes]
    result = {
        "path": str(target),
        "time_steps": graph.time_steps,
        "nodes": [{"name": name, "op": op, "description": text} for name, op, text in nodes],
        "assumptions": _assumptions(model),
    }
    title = f"{len(nodes)} nodes, T = {graph.time_steps}"
    print_result(output_format, IMPORT_SCHEMA, result, title, ["node", "op", "what"], nodes)
    words = ["export", "event", target, *data_flags(None, DATA_DIR)]  # NIR names no data set
    print_files(output_format, {"Model": target}, words)
