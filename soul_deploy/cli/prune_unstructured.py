"""`soul-deploy prune unstructured`: search for masks of weights and neurons, fine-tune, remove."""

from collections.abc import Collection, Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import click

from soul_deploy import distributed
from soul_deploy.base import errors, terminal
from soul_deploy.base.files import file_sha256, require_file
from soul_deploy.cli import config as resolve
from soul_deploy.cli import curve, options, output, parsing, run_config, start_model
from soul_deploy.cli.common_options import dry_run_option, option, option_group
from soul_deploy.cli.search_options import MaskOptions, SearchOptions
from soul_deploy.ir import SpikingGraph
from soul_deploy.prune.result import PruneResult
from soul_deploy.prune.unstructured import budget, masks, pipeline, pruning, search
from soul_deploy.training import checkpoint, messages
from soul_deploy.training.tensorboard import check_tensorboard

SEARCHED = (
    *("penalty_lmbda", "penalty_coef", "mask_init_factor", "temp_scheduler"),
    *("prune_optimizer", "prune_lr", "prune_weight_decay"),
)
"""Options of the masks' training, which a baseline has not."""
SCHEMA = "soul-deploy/prune-unstructured/1"


@click.command(
    cls=parsing.SoulCommand,
    recipes_of="prune unstructured",
    example="prune unstructured --model spikingvgg5 --dataset_name digits --epochs 2",
)
@option(*("--mode", "-mode"), default="search", help="search, as in Soul's script.")
@start_model.model_path_option("Trained network to start from: a model file")
@dry_run_option("Print what would be masked; no file is written.")
@options.network_options("spikingvgg9")
@options.data_options
@option_group("masking", MaskOptions)
@option_group("searching", SearchOptions)
@options.learning_options
@options.run_options
@options.resume_options
@run_config.config_option()
@click.pass_context
def unstructured(
    context: click.Context,
    mode: str,
    model_path: Path | None,
    dry_run: bool,
    network: options.NetworkChoice,
    data: options.DataOptions,
    masking: MaskOptions,
    searching: SearchOptions,
    learning: options.LearningOptions,
    run: options.RunOptions,
    keeping: options.ResumeOptions,
) -> None:
    """Prune single weights and neurons by trainable masks, then remove what died.

    Masks are searched for with a penalty on synaptic operations and a rising temperature; with
    --finetune the network is then trained on with the masks fixed. At the end the masked network
    and a compact one without its dead channels are written.
    """
    _check(mode, searching, masking, parsing.explicit_flags(context))
    check_tensorboard(run.tensorboard)
    task, training = resolve.task_of(network, data, learning.seed), resolve.recipe_of(learning)
    config, path = searching.config(masking), model_path and require_file(model_path)
    if path is None:
        budget.refuse_fresh(config.target)
    device = resolve.prepare(run).type
    start, task = start_model.started(path, task, context)
    files, targets = outputs(task, run, latest=searching.save_latest), searching.targets()
    resolve.require_outputs(*curve.outputs(files, targets), unless=dry_run)
    training = resolve.on_data(training, learning, task.data)
    loaded, told = start_model.data_for(data, task, start), {"masking": asdict(masking)}
    model = start_model.network(start, task, loaded, told | {"start": path and str(path)})
    config = replace(config, **_layers(masking, model.graph))
    plan = pipeline.plan_unstructured(model, config, path=path)
    if config.penalty_coef is None and config.cost_rule != "authors":
        messages.note(f"penalty_coef: {config.cost_rule}, for {config.target} (Soul: authors)")
    if dry_run:
        curve.tell_first(targets)
        _print_preview(run.output_format, plan)
        return
    asked = {**told, "task": task.facts(), "model_path": path and file_sha256(path)}
    kept = resolve.checkpoints_of(keeping, files["Checkpoint"].parent, **asked)
    how: dict[str, Any] = {"device": device, "tensorboard": run.tensorboard}
    how |= {"checkpoints": kept, "test_start": path is not None, "log": files["Epochs"]}
    latest = files.get("Latest model")
    how["on_epoch"] = None if latest is None else partial(_save_latest, latest)
    if targets[1:]:
        curve.go_down(targets, (model, loaded, config, training), how, files, run, data)
        return
    result = _pruned((model, loaded, config, training), plan, how, files)
    with kept.watching():
        _finish(result, files, run.output_format, data.data_dir)


def _check(
    mode: str, searching: SearchOptions, masking: MaskOptions, given: Collection[str]
) -> None:
    """Raise UsageError for what needs no network to be seen wrong; tell what does nothing."""
    errors.known("mode", mode, ("search",))
    masking.indexes()
    idle = searching.idle(given)
    if idle:
        names = ", ".join(idle)
        messages.warn(f"{names} given without --finetune: there is no fine-tuning, so unused")
    unused = [f"--{name}" for name in SEARCHED if name in given and searching.method != "search"]
    if unused:
        messages.warn(f"{', '.join(unused)} given with --method {searching.method}: unused")


def outputs(task: resolve.Task, run: options.RunOptions, *, latest: bool) -> dict[str, Path]:
    """Every file that may be written, but for checkpoints' numbers."""
    best, pruned, newest = (
        run.model_dir / f"{kind}_{task.stem}.safetensors" for kind in ("best", "pruned", "latest")
    )
    log = run.log_dir / f"unstructured_{task.stem}.jsonl"
    folder = run.model_dir / "checkpoints" / f"unstructured_{task.stem}"
    return {
        "Model": best,
        "Masked model": pruned,
        "Compact model": pruned.with_stem(f"{pruned.stem}_compact"),
        **({"Latest model": newest} if latest else {}),
        "Configuration": run_config.beside(pruned),
        "Epochs": log,
        "Table of epochs": log.with_suffix(".csv"),
        "Checkpoint": checkpoint.checkpoint_path(folder),
    }


def _layers(masking: MaskOptions, graph: SpikingGraph) -> dict[str, Any]:
    """The layers to mask, as `SearchConfig` takes them; a warning for indexes that don't exist."""
    weights, neurons = masking.indexes()
    found: dict[str, Any] = {}
    for name, left_out, indexes, nodes, what in (
        ("weight", masking.not_prune_weight, weights, graph.projections, "layers with weights"),
        ("neuron", masking.not_prune_neuron, neurons, graph.populations, "spiking layers"),
    ):
        option = f"{name}_prune_layers"
        found[option] = () if left_out else indexes
        if indexes is not None and not left_out:
            found[option], warning = parsing.existing_indexes(option, indexes, len(nodes), what)
            if warning:
                messages.warn(warning)
    return found


def _pruned(
    inputs: tuple[Any, ...],
    plan: pipeline.MaskPlan,
    how: Mapping[str, Any],
    files: Mapping[str, Path],
) -> PruneResult:
    """The result, of which the network is written; if the search stops, that of the last epoch."""
    path = files["Masked model" if any(row.entries for row in plan.layers) else "Model"]
    resolve.warn_of_replacing(path, pipeline.COMMAND)
    try:
        on_masked = partial(start_model.save_masked, path)
        return pipeline.prune_unstructured(*inputs, **how, on_masked=on_masked)
    except search.SearchStoppedError as stop:
        told = ". No epoch was left to keep; no model was written"
        with how["checkpoints"].watching():
            if stop.last_good is not None:
                start_model.save_masked(path, stop.last_good)
                told = f". The last model with all layers alive was kept in {path}"
        distributed.current().wait()  # until it is written: torchrun ends all when one has ended
        raise errors.SoulDeployError(f"{stop}{told}") from stop


def _save_latest(path: Path, epoch: pruning.SearchEpoch) -> None:
    made = {**epoch.model.info.provenance, "accuracy": {"validation": epoch.hard_accuracy}}
    info = replace(epoch.model.info, provenance=made)
    start_model.save_masked(path, replace(epoch.model, info=info))


def _print_preview(output_format: str, plan: pipeline.MaskPlan) -> None:
    """What would be masked, and what each entry costs."""
    if not distributed.hand_over():
        return
    document, schema = plan.to_dict(), "soul-deploy/mask-plan/1"
    title = "Masks, and the penalty's coefficient of each of their entries"
    columns = ("layer", "masks", "index", "entries", "cost")
    rows = [tuple(row.values()) for row in document["layers"]]
    output.print_result(output_format, schema, document, title, columns, rows)


def _finish(
    result: PruneResult, outputs: Mapping[str, Path], output_format: str, data_dir: Path
) -> None:
    """Write, and print survivors, connectivity, SynOps, accuracies, files, the next command."""
    if not distributed.hand_over():
        return
    resolve.leave_options(outputs["Configuration"])
    start_model.save_compact(result, outputs["Compact model"], outputs["Masked model"])
    compact, connectivity = result.compact, result.connectivity
    written = ["Model"] if compact is None else ["Masked model", "Compact model"]
    files = {what: outputs[what] for what in (*written, "Table of epochs")}
    layers = masks.survivors(result.masked)
    assert connectivity is not None
    tested, (before, after) = result.accuracies, result.synops or (0.0, 0.0)
    document = {
        "test_accuracy": dict(tested),
        "connectivity": connectivity.to_dict(),
        "target": None if result.spent is None else result.spent.to_dict(),
        "synops_per_image": {"before": before, "after": after},
        "survivors": [asdict(layer) for layer in layers],
        "parameters": {
            "before": result.parameters[0],
            "after": None if compact is None else result.parameters[1],
        },
        "history": result.to_dict()["history"],
        "files": output.files_json(files),
    }
    rows = [(row.projection, *_shares(row.weights), *_shares(row.neurons)) for row in layers]
    columns, schema = ("layer", "weights", "kept", "neurons", "kept"), SCHEMA
    output.print_result(output_format, schema, document, "Survivors", columns, rows)
    if output_format == "json":
        return
    terminal.show(output.drawn(connectivity))
    fewer = f" ({before / after:.1f}× fewer)" if after else ""
    terminal.say(f"SynOps per image: {before:,.0f} → {after:,.0f}{fewer}")
    if result.spent is not None:
        terminal.say(f"{result.spent.target}: {result.spent}")
    shares = ", ".join(f"{kind} {value:.2%}" for kind, value in tested.items())
    terminal.say(f"Test accuracy: {shares}")
    words = ["export", "event", files[written[-1]], *output.folder_flags(data_dir)]
    output.print_files(output_format, files, words)


def _shares(pair: tuple[int, int] | None) -> tuple[object, object]:
    if pair is None:
        return "", ""
    kept, total = pair
    return f"{total:,}", f"{kept:,} ({kept / total:.2%})"
