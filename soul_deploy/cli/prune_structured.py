"""`soul-deploy prune structured`: train or load, prune by SCA, fine-tune, remove."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click

from soul_deploy import distributed
from soul_deploy.base import errors, terminal
from soul_deploy.base.files import file_sha256, require_file
from soul_deploy.cli import common_options as common
from soul_deploy.cli import config as resolve
from soul_deploy.cli import curve, options, output, parsing, run_config, start_model, train
from soul_deploy.cli.common_options import given, option
from soul_deploy.data.datasets import Data
from soul_deploy.ir import SpikingGraph
from soul_deploy.model.file import save
from soul_deploy.model.model import Model
from soul_deploy.prune.channel_groups import RESIDUAL
from soul_deploy.prune.ramp import RAMPS
from soul_deploy.prune.result import PruneResult
from soul_deploy.prune.structured import budget, pipeline, scores, selection
from soul_deploy.prune.structured import config as sca
from soul_deploy.prune.structured.measurement import CostPlan
from soul_deploy.prune.target import UNITS, Target
from soul_deploy.training import checkpoint, messages, trainer
from soul_deploy.training.tensorboard import scalars_of
from soul_deploy.training.train import TrainResult


def _one_of(valid: tuple[str, ...], text: str) -> Any:
    return given(valid[0], f"{text} [{'|'.join(valid)}]")


@dataclass(frozen=True)
class ScaOptions:
    """--pruning_nodes (Soul's) and the options of SCA that Soul has hard-coded or lacks.

    `config` checks them.
    """

    pruning_nodes: str = given(
        "all",
        "Spiking layers to prune, counted from 0 in forward order: 0 1 2 or [0, 1, 2].",
        "-nodes",
        cls=parsing.ListOption,
    )
    prune_ratio: float | None = given(
        None, "p: pruned share of all channels of these layers. [default: 0.1]"
    )
    target_synops: str | None = curve.given_targets(
        "Instead of p: SynOps per sample of the validation split, as a share of the dense "
        "network's (0.1) or a count. Of several, falling (0.5,0.2), each goes on from the network "
        "before it."
    )
    target_params: str | None = curve.given_targets(
        "Instead of p: parameters of the compact network, shares or counts."
    )
    target_connectivity: str | None = curve.given_targets(
        "Instead of p: live synapses, shares of the dense network's."
    )
    regrow_ratio: float = given(
        0.1, "q: share (of a target, its cost) that comes back by gradient; p + q < 1."
    )
    prune_interval: int = given(1, "Epochs from one mask update to the next.")
    prune_warmup: int = given(0, "Epochs before the first interval.")
    prune_ramp: str = _one_of(RAMPS, "How the share rises to p over the updates.")
    prune_epochs: int | None = given(None, "Length of the pruning loop. [default: --epochs]")
    finetune_epochs: int = given(0, "Epochs with frozen masks at the loop's end.")
    score: str = _one_of(
        scores.SCORES,
        "What keeps a channel: its spikes + |membrane|, or one of them; a random rank; its mean "
        "|weight|; its |gamma|; the SynOps it causes.",
    )
    score_window: str = _one_of(
        scores.WINDOWS, "Batches that count into the score (Soul: last_batch)."
    )
    regrow_window: str = _one_of(scores.WINDOWS, "Batches that count into the regrowth gradient.")
    regrow_weights: str = _one_of(sca.REGROW_WEIGHTS, "Weights with which a channel comes back.")
    budget_rule: str = _one_of(
        budget.RULES,
        "By what channels go. per_cost: share of the layer's score by what is saved, SynOps or "
        "the target's cost; score: the lowest scores of all layers, whatever they save.",
    )
    kept_count: str = _one_of(
        selection.KEPT_COUNT, "How (1 - p) N becomes a whole number (Soul, the authors: floor)."
    )
    min_channels: int = given(1, "Channels that every layer keeps.")
    min_keep: float = given(0.0, "Share of its channels that every layer keeps.")
    round_to: int = given(1, "Kept counts are raised to a multiple of this.")
    residual: str = _one_of(
        RESIDUAL, "What is pruned of residual streams: nothing, all their members, branches."
    )

    def indexes(self) -> tuple[int, ...] | None:
        """The chosen layers, or None for all. Raises UsageError."""
        return parsing.parse_indexes("pruning_nodes", self.pruning_nodes)

    def config(self, epochs: int) -> sca.ScaConfig:
        """SCA as asked for; `epochs` is the length of its loop unless prune_epochs is given.

        Raises UsageError.
        """
        names: Any = {name: _plain(getattr(self, name)) for name in ("prune_ramp", *sca.NAMED)}
        return sca.ScaConfig(
            schedule=sca.PruneSchedule(
                ratio=0.1 if self.prune_ratio is None else self.prune_ratio,
                regrow_ratio=self.regrow_ratio,
                epochs=epochs if self.prune_epochs is None else self.prune_epochs,
                finetune_epochs=self.finetune_epochs,
                interval=self.prune_interval,
                warmup=self.prune_warmup,
                ramp=names.pop("prune_ramp"),
            ),
            guard=selection.Guard(self.min_channels, self.min_keep, self.round_to),
            target=next(iter(self.targets()), None),
            **names,
        )

    def targets(self) -> tuple[Target, ...]:
        """Those that are given, if any, of one quantity. Raises UsageError."""
        return curve.targets_of(self, *(["prune_ratio"] if self.prune_ratio is not None else []))


def _plain(text: str) -> str:
    return text.lower().replace("-", "_")


def outputs(
    task: resolve.Task, run: options.RunOptions, *, trained: bool = False
) -> dict[str, Path]:
    """Every file that is written, but for checkpoints' numbers; trained: after dense epochs."""
    pruned = run.model_dir / f"pruned_{task.stem}.safetensors"
    folder = run.model_dir / "checkpoints" / f"structured_{task.stem}"
    dense = {
        "Dense model": run.model_dir / f"best_{task.stem}.safetensors",
        "Dense epochs": train.train_log(run.log_dir, task),
    }
    return (dense if trained else {}) | {
        "Masked model": pruned,
        "Compact model": pruned.with_stem(f"{pruned.stem}_compact"),
        "Configuration": run_config.beside(pruned),
        "Epochs": run.log_dir / f"prune_{task.stem}.jsonl",
        "Checkpoint": checkpoint.checkpoint_path(folder),
    }


@click.command(
    cls=parsing.SoulCommand,
    recipes_of="prune structured",
    example="prune structured --model spikingvgg5 --dataset_name digits --epochs 2",
)
@option(
    *("--mode", "-mode"),
    help="train: --epochs dense epochs first; load: go on from --model_path.  "
    "[default: load with --model_path, else train]",
)
@start_model.model_path_option("Network to start from: a model file")
@common.dry_run_option("Print the plan and stop; no file is written.")
@options.network_options("spikingvgg16")
@options.data_options
@common.option_group("pruning", ScaOptions)
@options.learning_options
@options.run_options
@options.resume_options
@run_config.config_option()
@click.pass_context
def structured(
    context: click.Context,
    mode: str | None,
    model_path: Path | None,
    dry_run: bool,
    network: options.NetworkChoice,
    data: options.DataOptions,
    pruning: ScaOptions,
    learning: options.LearningOptions,
    run: options.RunOptions,
    keeping: options.ResumeOptions,
) -> None:
    """Prune channels by spiking channel activity, then remove them.

    The channels with the highest mean of spikes + |membrane potential|, as a share of their
    layer's and for the SynOps that they cost, stay; of the others, some come back by the gradient
    of their batch-norm scale. At the end the masked network and a
    compact one without the pruned channels are written.
    """
    task, training = resolve.task_of(network, data, learning.seed), resolve.recipe_of(learning)
    config, indexes = pruning.config(learning.epochs), pruning.indexes()
    path, device = _start_file(mode, model_path), resolve.prepare(run).type
    start, task = start_model.started(path, task, context)
    files = outputs(task, run, trained=start is None)
    targets = pruning.targets()
    resolve.require_outputs(*curve.outputs(files, targets), unless=dry_run)
    training = resolve.on_data(training, learning, task.data)
    loaded = start_model.data_for(data, task, start)
    model = start_model.network(start, task, loaded)
    asked: dict[str, Any] = {"layers": _layers(model.graph, config, indexes), "device": device}
    if dry_run:
        curve.tell_first(targets)
        _preview(run.output_format, model, loaded if start else None, config, training, asked)
        return
    sha256, folder = path and file_sha256(path), files["Checkpoint"].parent
    kept = resolve.checkpoints_of(keeping, folder, task=task.facts(), model_path=sha256)
    asked |= {"dense": None if start else _dense(learning.epochs, files), "checkpoints": kept}
    asked["log"] = files["Epochs"]
    asked["on_epoch"] = scalars_of(files["Epochs"], wanted=run.tensorboard)
    if targets[1:]:
        curve.go_down(targets, (model, loaded, config, training), asked, files, run, data)
        return
    resolve.warn_of_replacing(files["Masked model"], pipeline.COMMAND)
    asked["on_masked"] = partial(start_model.save_masked, files["Masked model"])
    result = pipeline.prune_structured(model, loaded, config, training, **asked)
    with kept.watching():
        _finish(result, files, run.output_format, data.data_dir)


def _start_file(mode: str | None, path: Path | None) -> Path | None:
    """The file to go on from; without a mode, a file given means load. Raises UsageError."""
    known = mode and errors.known("mode", mode, ("train", "load"))
    loads = path is not None if known is None else known == "load"
    if loads and path is None:
        raise errors.UsageError("--mode load needs --model_path, the file to start from")
    if path is not None and not loads:
        told = "--mode train starts from nothing, but --model_path is given; leave one of them out"
        raise errors.UsageError(told)
    return path and require_file(path)


def _layers(
    graph: SpikingGraph, config: sca.ScaConfig, indexes: tuple[int, ...] | None
) -> tuple[str, ...] | None:
    """Names of the populations to prune, or None for all; a warning for unknown indexes."""
    names = [node.name for node in graph.populations]
    able = tuple(pipeline.prunable_layers(graph, config))
    chosen, warning = parsing.existing_indexes(
        "pruning_nodes", indexes, len(names), "spiking layers", able
    )
    if warning:
        messages.warn(warning)
    return None if indexes is None else tuple(names[index] for index in chosen)


def _dense(epochs: int, files: Mapping[str, Path]) -> pipeline.DensePhase:
    def keep(result: TrainResult | None) -> None:
        if distributed.current().is_main:
            if result is not None:
                save(result.model, files["Dense model"])
            require_file(files["Dense model"])

    return pipeline.DensePhase(epochs, files["Dense epochs"], keep)


def _finish(
    result: PruneResult, outputs: Mapping[str, Path], output_format: str, data_dir: Path
) -> None:
    """Write and print, in the main process."""
    if not distributed.hand_over():
        return
    resolve.leave_options(outputs["Configuration"])
    written = ("Dense model", "Masked model", "Compact model")
    files = {what: outputs[what] for what in written if what in outputs}
    start_model.save_compact(result, files["Compact model"], files["Masked model"])
    told = result.to_dict()
    kept = ("test_accuracy", "layers", "parameters", "synops", "target", "history")
    document = {name: told[name] for name in kept}
    document["files"] = output.files_json(files)
    (before, after), tested = result.parameters, result.accuracies
    rows: list[tuple[object, ...]] = [*result.layers, ("parameters", before, before, after)]
    if result.synops is not None:
        dense, masked = (f"{count:,.0f}" for count in result.synops)
        rows.append(("SynOps per sample", dense, masked, masked))
    shares = [f"{tested[kind]:.2%}" for kind in ("dense", "masked", "compact")]
    rows.append(("test accuracy", *shares))
    columns, title = ("layer", "before", "masked", "compact"), "Structured pruning"
    output.print_result(output_format, "soul-deploy/prune/1", document, title, columns, rows)
    if result.spent is not None and output_format != "json":
        terminal.say(f"{result.spent.target}: {result.spent}")
    words = ["export", "event", files["Compact model"], *output.folder_flags(data_dir)]
    output.print_files(output_format, files, words)


def _preview(
    output_format: str,
    model: Model,
    data: Data | None,
    config: sca.ScaConfig,
    training: trainer.TrainConfig,
    asked: Mapping[str, Any],
) -> None:
    """What would be pruned and when; with weights at hand, how many channels would stay."""
    plan = pipeline.plan_structured(model, data, config, training, **asked)
    if not distributed.hand_over():
        return
    columns = ("layer", "index", "pruned", "channels", "at least", "kept now")
    schema, title = "soul-deploy/prune-plan/1", "Channel plan"
    output.print_result(output_format, schema, plan.to_dict(), title, columns, plan.layers)
    if output_format != "json":
        last = config.schedule.last_update
        stays = f"{plan.updates[last]} of {plan.channels} channels stay"
        if config.target is not None:
            stays = f"{config.target} decides how many of {plan.channels} channels stay"
        terminal.say(
            f"{len(plan.updates)} mask updates in {config.schedule.epochs} epochs, the last after "
            f"epoch {last}: {stays}"
        )
        if plan.costs is not None:
            _print_costs(output_format, plan.costs)


def _print_costs(output_format: str, costs: CostPlan) -> None:
    """A row per projection: what it costs, what is planned, its share of the planned cost."""
    told = costs.to_dict()
    rows = [
        (row["name"], f"{row['dense']:,.0f}", f"{row['planned']:,.0f}", f"{row['share']:.1%}")
        for row in told["layers"]
    ]
    columns = ("layer", "all channels", "planned", "share")
    unit = UNITS[costs.spent.target.quantity]
    output.print_result(output_format, "", told, f"Budget, {unit}", columns, rows)
    terminal.say(f"Planned from the present weights: {costs.spent}")
