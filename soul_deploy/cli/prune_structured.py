"""`soul-deploy prune structured`: train or load, prune by SCA, fine-tune, remove."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click

from soul_deploy import distributed
from soul_deploy.base.brief import brief
from soul_deploy.base.errors import UnknownNameError, UsageError
from soul_deploy.base.files import file_sha256, require_file
from soul_deploy.base.progress import status
from soul_deploy.cli.config import (
    Task,
    checkpoints_of,
    data_of,
    load_task_data,
    new_module,
    prepare,
    provenance,
    recipe_of,
    require_outputs,
    task_of,
    warn_of_replacing,
)
from soul_deploy.cli.index_lists import SoulCommand, existing_indexes, explicit_flags
from soul_deploy.cli.options import (
    DataOptions,
    LearningOptions,
    NetworkChoice,
    ResumeOptions,
    RunOptions,
    data_options,
    learning_options,
    network_options,
    resume_options,
    run_options,
)
from soul_deploy.cli.sca_options import ScaOptions, sca_options
from soul_deploy.cli.sca_report import ChannelCounts, print_outcome, print_preview
from soul_deploy.cli.start_model import NAME_HELP, Start, assumed, open_start
from soul_deploy.cli.train import save_dense, train_dense, train_log
from soul_deploy.data.datasets import Data
from soul_deploy.model.model import Model, ModelInfo, from_module, save_model
from soul_deploy.nn.graph_module import GraphModule
from soul_deploy.prune.channel_groups import Residual
from soul_deploy.prune.removal.apply import remove
from soul_deploy.prune.removal.planner import plan_removal
from soul_deploy.prune.structured.sca import ChannelPruning, PruneStep, Sca, check, plan_of_weights
from soul_deploy.prune.structured.units import pruning_units
from soul_deploy.training.checkpoint import checkpoint_path
from soul_deploy.training.checkpoint_manager import (
    CheckpointManager,
    managed,
)
from soul_deploy.training.device import module_of
from soul_deploy.training.epoch_log import epoch_log
from soul_deploy.training.messages import note, warn
from soul_deploy.training.state import Bundle, Tree, number_of
from soul_deploy.training.trainer import TrainConfig, accuracy


@brief
@dataclass(frozen=True)
class Job:
    """All that was asked for, checked."""

    task: Task
    data_dir: Path
    recipe: TrainConfig
    sca: Sca
    names: tuple[str, ...]
    data: Data
    module: GraphModule
    run: RunOptions
    epochs: int
    """Dense epochs before the loop; 0 in mode load."""
    keeping: ResumeOptions
    start: Start | None

    @property
    def dense_path(self) -> Path:
        """Where mode train writes the network before pruning."""
        return outputs(self.task, self.run, trained=True)["Dense model"]

    @property
    def masked_path(self) -> Path:
        """Where the result goes."""
        return outputs(self.task, self.run)["Masked model"]


def outputs(task: Task, run: RunOptions, *, trained: bool = False) -> dict[str, Path]:
    """Every file that is written, but for checkpoints' numbers; trained: after dense epochs."""
    pruned = run.model_dir / f"pruned_{task.stem}.safetensors"
    dense = {
        "Dense model": run.model_dir / f"best_{task.stem}.safetensors",
        "Dense epochs": train_log(run.log_dir, task),
    }
    return (dense if trained else {}) | {
        "Masked model": pruned,
        "Compact model": pruned.with_name(f"{pruned.stem}_compact{pruned.suffix}"),
        "Epochs": run.log_dir / f"prune_{task.stem}.jsonl",
        "Checkpoint": checkpoint_path(_checkpoints(task, run)),
    }


def _checkpoints(task: Task, run: RunOptions) -> Path:
    return run.model_dir / "checkpoints" / f"structured_{task.stem}"


@click.command(cls=SoulCommand)
@click.option(
    *("--mode", "-mode"),
    default="train",
    show_default=True,
    help="train: --epochs dense epochs first; load: go on from --model_path.",
)
@click.option(
    *("--model_path", "-model_path"),
    type=click.Path(path_type=Path),
    help="For --mode load: a model file, or a .pt/.pth/.safetensors state dict. " + NAME_HELP,
)
@click.option("--dry_run", is_flag=True, help="Print the plan and stop; no file is written.")
@network_options("spikingvgg16")
@data_options()
@sca_options()
@learning_options(epochs=50, batch_size=128)
@run_options()
@resume_options()
@click.pass_context
def structured(
    context: click.Context,
    mode: str,
    model_path: Path | None,
    dry_run: bool,
    network: NetworkChoice,
    data: DataOptions,
    pruning: ScaOptions,
    learning: LearningOptions,
    run: RunOptions,
    keeping: ResumeOptions,
) -> None:
    """Prune channels by spiking channel activity, then remove them.

    The channels with the highest mean of spikes + |membrane potential| stay; of the others, some
    come back by the gradient of their batch-norm scale. At the end the masked network and a
    compact one without the pruned channels are written.
    """
    task, recipe = task_of(network, data, learning.seed), recipe_of(learning)
    sca, indexes = pruning.sca(learning.epochs), pruning.indexes()
    path = _start_file(mode, model_path)
    device = prepare(run)
    start = None if path is None else open_start(path, task, explicit_flags(context))
    task = task if start is None else start.task
    epochs = 0 if start else learning.epochs
    if not dry_run:
        require_outputs(*outputs(task, run, trained=epochs > 0).values())
    loaded = load_task_data(data_of(task, data), None if start is None else start.taken)
    module = _module(task, start, loaded, device)
    names = _chosen_layers(module, indexes, sca.residual)
    check(module, sca, names)
    job = Job(task, data.data_dir, recipe, sca, names, loaded, module, run, epochs, keeping, start)
    if dry_run:
        _preview(job)
    else:
        warn_of_replacing(job.masked_path, "prune structured")
        with _keeper(job).watching() as keeper:
            _carry_out(job, keeper)


def _module(task: Task, start: Start | None, data: Data, device: Any) -> GraphModule:
    if start is None:
        return new_module(task, data).to(device)
    return module_of(start.network(data), device)


def _start_file(mode: str, path: Path | None) -> Path | None:
    if mode.lower() not in ("train", "load"):
        raise UnknownNameError("mode", mode, ("train", "load"))
    if mode.lower() == "train":
        if path is not None:
            raise UsageError("--model_path belongs to --mode load; mode train starts from nothing")
        return None
    if path is None:
        raise UsageError("--mode load needs --model_path, the file to start from")
    return require_file(path)


def _chosen_layers(
    module: GraphModule, indexes: tuple[int, ...] | None, residual: Residual
) -> tuple[str, ...]:
    """Names of the populations to prune; a warning for indexes that don't exist."""
    populations = module.graph.populations
    able = {name for unit in pruning_units(module.graph, residual) for name in unit.populations}
    chosen, warning = existing_indexes("pruning_nodes", indexes, len(populations), "spiking layers")
    if warning:
        warn(warning)
    names = tuple(populations[index].name for index in sorted(chosen))
    if indexes is None:
        names = tuple(name for name in names if name in able)
    refused = [name for name in names if name not in able]
    if refused or not names:
        raise UsageError(
            f"pruning_nodes: {', '.join(refused) or 'no layer'} cannot be pruned by channel; a "
            "layer can if its current comes from one convolution or linear layer of its own, if "
            "it belongs to no residual stream (or with --residual coupled or scatter), and if its "
            "channels are not the classes"
        )
    return names


def _preview(job: Job) -> None:
    plan = None
    if not job.epochs:
        plan = plan_of_weights(job.module, job.data, job.recipe, job.sca, job.names)
    if distributed.hand_over():
        print_preview(job.run.output_format, job.module.graph, job.sca, job.names, plan)


def _keeper(job: Job) -> CheckpointManager:
    path = None if job.start is None else file_sha256(job.start.path)
    kept = checkpoints_of(
        job.keeping, _checkpoints(job.task, job.run), task=asdict(job.task), model_path=path
    )
    return managed(
        *(("train", "prune"), kept, job.module, job.data, "prune structured"),
        recipe=job.recipe.recorded(),
        epochs=job.epochs,
        sca=asdict(job.sca),
        layers=list(job.names),
    )


class _DenseAccuracy:
    """The test accuracy before the loop, which cannot be measured again inside it."""

    def __init__(self, value: float) -> None:
        self.value = value

    def state(self) -> Tree:
        return {"test": self.value}

    def restore(self, tree: Tree) -> None:
        self.value = number_of(tree, "test")


def _train(job: Job, keeper: CheckpointManager) -> None:
    """The dense epochs of mode train, and their file."""
    module, data = job.module, job.data
    _, best = train_dense(module, data, job.recipe, job.epochs, job.run.log_dir, job.task, keeper)
    made = provenance(job.task, job.recipe, job.epochs, command="prune structured")
    test = accuracy(module, data, data.test)
    if distributed.current().is_main:
        save_dense(job.dense_path, module, data, made, best, test)


def _carry_out(job: Job, keeper: CheckpointManager) -> None:
    if job.epochs and not keeper.passed("train"):
        _train(job, keeper)
    if job.epochs and distributed.current().is_main:
        require_file(job.dense_path)
    dense = _DenseAccuracy(0.0)
    if not keeper.starts_in("prune"):
        dense.value = accuracy(job.module, job.data, job.data.test)
    _prune(job, keeper, dense)
    if distributed.hand_over():
        _finish(job, dense.value)


def _finish(job: Job, dense: float) -> None:
    """Remove, test, write, print."""
    status("prune structured: removing and testing")
    files = {"Dense model": job.dense_path} if job.epochs else {}
    accuracies = {"dense": dense}
    accuracies["masked"] = accuracy(job.module, job.data, job.data.test)
    masked = _masked_model(job, accuracies)
    files["Masked model"] = job.masked_path
    save_model(files["Masked model"], masked)
    removal = plan_removal(masked, residual=_removal(job.sca))
    compact = remove(masked, removal)
    device = next(job.module.parameters()).device
    accuracies["compact"] = accuracy(module_of(compact, device), job.data, job.data.test)
    files["Compact model"] = outputs(job.task, job.run)["Compact model"]
    save_model(files["Compact model"], compact)
    if not removal.removes:
        note(removal.whole_note(files["Compact model"], job.masked_path))
    counts = ChannelCounts.of(masked, compact)
    print_outcome(job.run.output_format, accuracies, counts, files, job.data_dir)


def _removal(sca: Sca) -> Residual:
    """Streams lose what is dead in all members anyway; single branches only if asked for."""
    return "scatter" if sca.residual == "scatter" else "coupled"


def _prune(job: Job, keeper: CheckpointManager, dense: _DenseAccuracy) -> None:
    """Run the loop."""
    epochs = job.sca.schedule.epochs
    path = outputs(job.task, job.run)["Epochs"]
    with epoch_log("prune", epochs, path) as log:
        pruning = ChannelPruning(
            *(job.module, job.data, job.recipe, job.sca, job.names),
            tick=log.tick,
            after_step=keeper.after_step,
        )
        with keeper.loop("prune", Bundle({"pruning": pruning, "dense": dense, "log": log})):
            for step in pruning.run():
                log.epoch(step.result, _note(step))
                keeper.after_epoch()


def _note(step: PruneStep) -> str:
    """The epoch's results are those before its update of the masks."""
    plan = step.plan
    return "" if plan is None else f"after it {plan.kept} of {plan.total} channels stay"


def _masked_model(job: Job, accuracies: dict[str, float]) -> Model:
    made: dict[str, Any] = provenance(
        job.task,
        job.recipe,
        job.epochs,
        command="prune structured",
        sca=asdict(job.sca),
        layers=list(job.names),
        accuracy=dict(accuracies),
        **assumed(job.start),
    )
    info = ModelInfo(
        "masked",
        job.data.normalization,
        job.data.classes,
        made,
        input_kind=job.data.input_kind,
    )
    return from_module(job.module, info)
