"""`soul-deploy prune compact`: the removal of any masked or zeroed model file."""

import json
from dataclasses import replace
from pathlib import Path

import click

from soul_deploy.base import errors, files, memory, progress, terminal
from soul_deploy.cli import common_options as common
from soul_deploy.cli import parsing
from soul_deploy.cli.common_options import DATA_DIR
from soul_deploy.cli.output import data_flags, drawn, print_next
from soul_deploy.data.datasets import is_here
from soul_deploy.model.file import load, save
from soul_deploy.model.model import Model
from soul_deploy.prune.channel_groups import REMOVAL_HELP, RESIDUAL
from soul_deploy.prune.removal import apply, planner
from soul_deploy.prune.removal.plan import RemovalPlan
from soul_deploy.training.messages import note


@click.command(cls=parsing.SoulCommand, example="prune compact model.safetensors --dry_run")
@click.argument("model_path", metavar="MODEL", type=common.FILE)
@common.output_option("Where the compact model goes.  [default: MODEL_compact.safetensors]")
@common.option("--residual", default="coupled", help=REMOVAL_HELP)
@common.max_memory_option()
@common.dry_run_option("Print the plan and change nothing.")
@common.format_option("style")
def compact(
    model_path: Path,
    output: Path | None,
    residual: str,
    max_memory: str | None,
    dry_run: bool,
    style: str,
) -> None:
    """Remove the masked, silent or unread channels of MODEL, a soul-deploy model file.

    The outputs stay the same. The plan says which channels go and why.
    """
    allowed, streams = memory.parse_bytes(max_memory), errors.known("residual", residual, RESIDUAL)
    files.require_file(model_path)
    compacted = model_path.with_name(f"{model_path.stem}_compact.safetensors")
    place = None if dry_run else output or compacted
    if place is not None:
        files.refuse_itself(place, model_path)
        files.require_writable(place)
    progress.status(f"prune compact: planning the removal from {model_path}")
    with files.OpenFile(model_path) as source:
        model, sha256 = load(source, max_memory=allowed), source.sha256()
    limit = memory.WORK_BYTES if allowed is None else allowed
    plan = planner.plan_removal(model, residual=streams, max_memory=limit)
    smaller = apply.remove(model, plan, max_memory=allowed)
    if place is not None:
        provenance = {**model.info.provenance, "compacted_from_sha256": sha256}
        smaller = replace(smaller, info=replace(smaller.info, provenance=provenance))
        save(smaller, place)
    if not plan.removes:
        note(plan.whole_note(place, model_path))
    _print(style, model, smaller, plan, place)


def _print(style: str, model: Model, smaller: Model, plan: RemovalPlan, path: Path | None) -> None:
    """The result, as tables or as JSON data (schema soul-deploy/removal/1)."""
    before, after = apply.parameters(model.state), apply.parameters(smaller.state)
    if style != "json":
        terminal.show(drawn(plan))
        terminal.say(f"Parameters: {before:,} → {after:,}")
        if path is not None:
            terminal.say(f"Wrote {path} ({path.stat().st_size:,} bytes)")
            known = model.info.provenance.get("data")
            found = known if is_here(known, DATA_DIR) else None
            print_next(["export", "event", path, *data_flags(found, DATA_DIR)])
        return
    document = {
        "schema": "soul-deploy/removal/1",
        "path": None if path is None else str(path),
        "parameters": {"before": before, "after": after},
        "valid_for_time_steps": plan.validity.time_steps,
        "layers": [
            {
                "layer": layer.population,
                "channels": layer.channels,
                "kept": list(layer.kept),
                "removed": {str(channel): rule for channel, rule in layer.removed.items()},
                "tied": layer.tied,
            }
            for layer in plan.layers
        ],
    }
    terminal.show(json.dumps(document))
