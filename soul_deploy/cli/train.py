"""`soul-deploy train`."""

from dataclasses import asdict, replace
from pathlib import Path

import click

from soul_deploy import distributed
from soul_deploy.base.progress import status
from soul_deploy.cli.config import (
    Task,
    checkpoints_of,
    load_task_data,
    new_module,
    prepare,
    provenance,
    recipe_of,
    require_outputs,
    task_of,
)
from soul_deploy.cli.index_lists import SoulCommand, input_kind_option
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
from soul_deploy.cli.output import folder_flags, print_files, print_result
from soul_deploy.data.datasets import Data, require_kind
from soul_deploy.model.model import ModelInfo, from_module, save_model
from soul_deploy.nn.graph_module import GraphModule
from soul_deploy.training.checkpoint import checkpoint_path
from soul_deploy.training.checkpoint_manager import (
    CheckpointManager,
    managed,
)
from soul_deploy.training.epoch_log import epoch_log
from soul_deploy.training.state import Bundle
from soul_deploy.training.trainer import (
    BestState,
    EpochResult,
    History,
    TrainConfig,
    Training,
    accuracy,
)


@click.command(cls=SoulCommand)
@network_options("spikingvgg9")
@data_options()
@learning_options(epochs=150, batch_size=64)
@run_options()
@resume_options()
@input_kind_option("the data set's")
def train(
    network: NetworkChoice,
    data: DataOptions,
    learning: LearningOptions,
    run: RunOptions,
    keeping: ResumeOptions,
    input_kind: str | None,
) -> None:
    """Train a spiking network by direct coding and write the best epoch as a model file.

    The best epoch is chosen on a validation split of the training images; the test images are
    used once, at the end.
    """
    recipe = recipe_of(learning)
    task = task_of(network, data, learning.seed)
    device = prepare(run)
    require_outputs(*outputs(task, run))
    loaded = load_task_data(data)
    if input_kind is not None:
        require_kind(loaded, input_kind, f"a network of --input_kind {input_kind}")
    module = new_module(task, loaded).to(device)
    kept = checkpoints_of(keeping, _checkpoints(task, run), task=asdict(task))
    asked = {"recipe": recipe.recorded(), "epochs": recipe.epochs}
    with managed(("train",), kept, module, loaded, "train", **asked).watching() as keeper:
        results, best = train_dense(
            module, loaded, recipe, learning.epochs, run.log_dir, task, keeper
        )
        if distributed.hand_over():
            _finish(module, loaded, recipe, task, run, results, best, data.data_dir)


def _result(task: Task, run: RunOptions) -> Path:
    return run.model_dir / f"best_{task.stem}.safetensors"


def _checkpoints(task: Task, run: RunOptions) -> Path:
    return run.model_dir / "checkpoints" / f"train_{task.stem}"


def train_log(log_dir: Path, task: Task) -> Path:
    """Where the epochs' results go."""
    return log_dir / f"train_{task.stem}.jsonl"


def outputs(task: Task, run: RunOptions) -> list[Path]:
    """Every file that is written, but for checkpoints' numbers."""
    return [
        _result(task, run),
        train_log(run.log_dir, task),
        checkpoint_path(_checkpoints(task, run)),
    ]


def _finish(
    module: GraphModule,
    loaded: Data,
    recipe: TrainConfig,
    task: Task,
    run: RunOptions,
    results: list[EpochResult],
    best: EpochResult,
    data_dir: Path,
) -> None:
    """Test, write, print."""
    status("train: testing")
    test = accuracy(module, loaded, loaded.test)
    path = _result(task, run)
    made = provenance(task, recipe, len(results), command="train", best_epoch=best.epoch)
    save_dense(path, module, loaded, made, best, test)
    print_result(
        run.output_format,
        "soul-deploy/train/1",
        {
            "model": str(path),
            "bytes": path.stat().st_size,
            "best_epoch": best.epoch,
            "validation_accuracy": best.validation_accuracy,
            "test_accuracy": test,
            "epochs": [asdict(result) for result in results],
        },
        f"{task.model} on {task.data}, T = {task.time_steps}",
        ("epoch", "loss", "train", "validation", "s"),
        [_row(result) for result in results]
        + [("test", "", "", f"{test:.2%}", f"epoch {best.epoch}")],
    )
    print_files(
        run.output_format,
        {"Model": path},
        [
            *("prune", "structured", "--mode", "load", "--model_path", path),
            *("--dataset_name", task.data, *folder_flags(data_dir), "--prune_ratio", 0.5),
        ],
    )


def train_dense(
    module: GraphModule,
    data: Data,
    recipe: TrainConfig,
    epochs: int,
    log_dir: Path,
    task: Task,
    keeper: CheckpointManager,
) -> tuple[list[EpochResult], EpochResult]:
    """Train in place; `module` ends with the best epoch's weights. Returns all epochs and it."""
    best, history = BestState(), History()
    with epoch_log("train", epochs, train_log(log_dir, task)) as log:
        training = Training(module, data, recipe, tick=log.tick, after_step=keeper.after_step)
        whole = Bundle({"training": training, "best": best, "history": history, "log": log})
        with keeper.loop("train", whole):
            for result in training.run():
                best.offer(module, result)
                history.results.append(result)
                log.epoch(result)
                keeper.after_epoch()
    return history.results, best.take(module)


def save_dense(
    path: Path,
    module: GraphModule,
    data: Data,
    made: dict[str, object],
    best: EpochResult,
    test: float,
) -> None:
    """Write the trained network with what is known about it."""
    accuracies = {"validation": best.validation_accuracy, "test": test}
    info = ModelInfo(
        "dense",
        data.normalization,
        data.classes,
        made | {"accuracy": accuracies},
        input_kind=data.input_kind,
    )
    save_model(path, replace(from_module(module, info), channel_masks={}))


def _row(result: EpochResult) -> tuple[object, ...]:
    return (
        result.epoch,
        result.loss,
        f"{result.train_accuracy:.2%}",
        f"{result.validation_accuracy:.2%}",
        f"{result.seconds:.1f}",
    )
