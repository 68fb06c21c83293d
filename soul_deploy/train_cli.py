"""`soul-deploy train`."""

from dataclasses import asdict, replace
from pathlib import Path

import click

from soul_deploy.arguments import SoulCommand
from soul_deploy.data import Data
from soul_deploy.modelfile import ModelInfo, from_module, save_model
from soul_deploy.module import GraphModule
from soul_deploy.options import (
    DataOptions,
    LearningOptions,
    NetworkChoice,
    RunOptions,
    data_options,
    learning_options,
    network_options,
    run_options,
)
from soul_deploy.preparing import (
    Task,
    load_task_data,
    new_module,
    prepare,
    provenance,
    recipe_of,
    task_of,
)
from soul_deploy.progress import epoch_log
from soul_deploy.reporting import print_files, print_result
from soul_deploy.training import BestState, EpochResult, Recipe, accuracy, fit


@click.command(cls=SoulCommand)
@network_options("spikingvgg9")
@data_options()
@learning_options(epochs=150, batch_size=64)
@run_options()
def train(
    network: NetworkChoice, data: DataOptions, learning: LearningOptions, run: RunOptions
) -> None:
    """Train a spiking network by direct coding and write the best epoch as a model file.

    The best epoch is chosen on a validation split of the training images; the test images are
    used once, at the end.
    """
    recipe = recipe_of(learning)
    task = task_of(network, data, learning.seed)
    device = prepare(run)
    loaded = load_task_data(data)
    module = new_module(task, loaded).to(device)
    results, best = train_dense(module, loaded, recipe, learning.epochs, run.log_dir, task)
    test = accuracy(module, loaded, loaded.test)
    path = run.model_dir / f"best_{task.stem}.safetensors"
    made = provenance(task, recipe, learning.epochs, command="train", best_epoch=best.epoch)
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
        f"soul-deploy prune structured --mode load --model_path {path} "
        f"--dataset_name {task.data} --prune_ratio 0.5",
    )


def train_dense(
    module: GraphModule, data: Data, recipe: Recipe, epochs: int, log_dir: Path, task: Task
) -> tuple[list[EpochResult], EpochResult]:
    """Train in place; `module` ends with the best epoch's weights. Returns all epochs and it."""
    best, results = BestState(), []
    with epoch_log("train", epochs, log_dir / f"train_{task.stem}.jsonl") as log:
        for result in fit(module, data, recipe, epochs, tick=log.tick):
            best.offer(module, result)
            results.append(result)
            log.epoch(result)
    return results, best.restore(module)


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
    info = ModelInfo("dense", data.normalization, data.classes, made | {"accuracy": accuracies})
    save_model(path, replace(from_module(module, info), channel_masks={}))


def _row(result: EpochResult) -> tuple[object, ...]:
    return (
        result.epoch,
        result.loss,
        f"{result.train_accuracy:.2%}",
        f"{result.validation_accuracy:.2%}",
        f"{result.seconds:.1f}",
    )
