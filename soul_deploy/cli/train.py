"""`soul-deploy train`."""

from pathlib import Path
from typing import Any

import click

from soul_deploy import distributed
from soul_deploy.cli import config as resolve
from soul_deploy.cli import options, output, parsing, run_config
from soul_deploy.model.file import save
from soul_deploy.training import checkpoint
from soul_deploy.training import train as training
from soul_deploy.training.tensorboard import scalars_of


@click.command(
    cls=parsing.SoulCommand,
    recipes_of="train",
    example="train --model spikingvgg5 --dataset_name digits --epochs 2",
)
@options.network_options("spikingvgg9")
@options.data_options
@options.learning_options
@options.run_options
@options.resume_options
@run_config.config_option()
def train(
    network: options.NetworkChoice,
    data: options.DataOptions,
    learning: options.LearningOptions,
    run: options.RunOptions,
    keeping: options.ResumeOptions,
) -> None:
    """Train a spiking network by direct coding and write the best epoch as a model file.

    The best epoch is chosen on a validation split of the training images; the test images are
    used once, at the end.
    """
    config, task = resolve.recipe_of(learning), resolve.task_of(network, data, learning.seed)
    config = resolve.on_data(config, learning, task.data)
    device = resolve.prepare(run)
    path = run.model_dir / f"best_{task.stem}.safetensors"
    log = train_log(run.log_dir, task)
    folder = run.model_dir / "checkpoints" / f"train_{task.stem}"
    chosen = run_config.beside(path)
    resolve.require_outputs(path, log, chosen, checkpoint.checkpoint_path(folder))
    on_epoch = scalars_of(log, wanted=run.tensorboard)
    loaded = resolve.load_task_data(data, task.time_steps)
    kept = resolve.checkpoints_of(keeping, folder, task=task.facts())
    model = resolve.new_model(task, loaded)
    how: dict[str, Any] = {"checkpoints": kept, "log": log, "on_epoch": on_epoch}
    result = training.train(model, loaded, config, device=device.type, **how)
    with kept.watching():
        if distributed.hand_over():
            save(result.model, path)
            resolve.leave_options(chosen)
            _print(result, path, task, run.output_format, data.data_dir)


def train_log(log_dir: Path, task: resolve.Task) -> Path:
    """Where the epochs' results go."""
    return log_dir / f"train_{task.stem}.jsonl"


def _print(
    result: training.TrainResult, path: Path, task: resolve.Task, output_format: str, data_dir: Path
) -> None:
    rows: list[tuple[object, ...]] = [
        (
            *(epoch.epoch, epoch.loss, f"{epoch.train_accuracy:.2%}"),
            *(f"{epoch.validation_accuracy:.2%}", f"{epoch.seconds:.1f}"),
        )
        for epoch in result.history
    ]
    rows.append(("test", "", "", f"{result.test_accuracy:.2%}", f"epoch {result.best.epoch}"))
    document = {"model": str(path), "bytes": path.stat().st_size, **result.to_dict()}
    title = f"{task.model} on {task.data}, T = {task.time_steps}"
    columns = ("epoch", "loss", "train", "validation", "s")
    output.print_result(output_format, "soul-deploy/train/1", document, title, columns, rows)
    following = [
        *("prune", "structured", "--mode", "load", "--model_path", path),
        *("--dataset_name", task.data, *output.folder_flags(data_dir), "--prune_ratio", 0.5),
    ]
    output.print_files(output_format, {"Model": path}, following)
