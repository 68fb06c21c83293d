"""Option groups that commands share; each arrives in the command as one frozen dataclass.

Names, aliases and defaults are those of Soul's scripts (run_soul.py, structured_prune.py,
unstructured_prune.py) unless said otherwise.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import click

from soul_deploy.base.errors import UnknownNameError, UsageError
from soul_deploy.cli.index_lists import ListOption
from soul_deploy.cli.neuron_flags import CONSTANTS, constant_options, given_constants
from soul_deploy.cli.parsing import require_steps, require_threads

Command = Callable[..., Any]
Decorator = Callable[[Command], Command]


def option_group(name: str, group: type[Any], *options: Decorator) -> Decorator:
    """Decorate a command with `options`; their values arrive as `name=group(...)`."""

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def collect(**values: Any) -> Any:
            mine = {item.name: values.pop(item.name) for item in fields(group)}
            return command(**{name: group(**mine)}, **values)

        decorated: Command = collect
        for option in reversed(options):
            decorated = option(decorated)
        return decorated

    return decorate


@dataclass(frozen=True)
class DataOptions:
    """Which data set, and where it is."""

    dataset_name: str
    data_dir: Path
    download: bool
    size: int | None = None


def data_options(dataset: str = "cifar10") -> Decorator:
    """--dataset_name, --data_dir, --download, --size."""
    return option_group(
        "data",
        DataOptions,
        click.option(
            *("--dataset_name", "--dataset", "-dataset"),
            default=dataset,
            show_default=True,
            help="mnist5k, digits, mnist, fashionmnist, cifar10, cifar100 or svhn.",
        ),
        click.option(
            *("--data_dir", "-data_dir"),
            type=click.Path(path_type=Path),
            default=Path("data"),
            show_default=True,
            help="Folder of the data set's files; mnist5k and digits need none.",
        ),
        click.option(
            "--download", is_flag=True, help="Let torchvision download a missing data set."
        ),
        size_option(),
    )


def size_option() -> Decorator:
    """--size."""
    return click.option(
        "--size",
        type=int,
        default=None,
        help="Side in pixels to which mnist's and fashionmnist's images are scaled.  "
        "[default: the model file's, or 32, as in Soul]",
    )


@dataclass(frozen=True)
class NetworkChoice:
    """A network of the zoo and its neurons."""

    model: str
    neuron_type: str
    time_step: int
    hidden: int
    width: int
    connect_function: str
    groups: int
    width_per_group: int
    stem: str
    tau: float | None
    v_threshold: float | None
    v_reset: str | None
    decay_input: bool | None
    fire: str | None
    surrogate: str | None
    coding_schema: str

    def __post_init__(self) -> None:
        if self.coding_schema.lower() != "direct":
            raise UnknownNameError("coding", self.coding_schema, ["direct"])
        require_steps("time_step", self.time_step)
        for name in ("hidden", "width", "groups", "width_per_group"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} {getattr(self, name)} must be at least 1")

    def constants(self) -> dict[str, Any]:
        """The neuron's constants that were given, by NeuronSpec's names. Raises UsageError."""
        return given_constants({name: getattr(self, name) for name in CONSTANTS})


def network_options(model: str) -> Decorator:
    """--model, --neuron_type, --time_step and the neuron's fields."""
    return option_group(
        "network",
        NetworkChoice,
        click.option(
            *("--model", "-m"),
            default=model,
            show_default=True,
            help="Network name, or package.module:factory for one of your own.",
        ),
        click.option(
            *("--neuron_type", "-n"), default="LIF", show_default=True, help="LIF, PLIF or IF."
        ),
        click.option(
            *("--time_step", "-T"), type=int, default=4, show_default=True, help="Time steps T."
        ),
        click.option(
            *("--hidden", "--mlp_hidden_dim"),
            type=int,
            default=2048,
            show_default=True,
            help="Width of SpikingVGG's head.",
        ),
        *_size_options(),
        *constant_options(),
        click.option(
            *("--coding_schema", "-coding"), default="direct", show_default=True, help="direct."
        ),
    )


def _size_options() -> tuple[Decorator, ...]:
    return (
        click.option(
            "--width", type=int, default=256, show_default=True, help="Channels of Cifar10Net."
        ),
        click.option(
            "--connect_function",
            default="ADD",
            show_default=True,
            help="SEW-ResNet's merge: ADD, AND or IAND.",
        ),
        click.option(
            "--groups", type=int, default=1, show_default=True, help="ResNet-50's: grouped 3×3."
        ),
        click.option(
            *("--width_per_group", "--base_width"),
            type=int,
            default=64,
            show_default=True,
            help="Residual networks: channels per group.",
        ),
        click.option(
            "--stem",
            default="soul",
            show_default=True,
            help="Residual networks: soul (7×7, stride 2, max pooling) or small (3×3).",
        ),
    )


@dataclass(frozen=True)
class LearningOptions:
    """How weights are learned."""

    epochs: int
    batch_size: int
    optimizer: str
    scheduler: str
    learning_rate: float
    weight_decay: float
    momentum: float
    augment: str
    l1: float
    seed: int
    freeze_batch_norm: bool


def learning_options(*, epochs: int, batch_size: int, scheduler: str = "cosine") -> Decorator:
    """--epochs, --batch_size, --optimizer, --scheduler, the rates, --augment, --l1, --seed."""
    return option_group(
        "learning",
        LearningOptions,
        click.option(
            *("--epochs", "-epochs"), type=int, default=epochs, show_default=True, help="Epochs."
        ),
        click.option(
            *("--batch_size", "-b"),
            type=int,
            default=batch_size,
            show_default=True,
            help="Samples per step, of all processes together.",
        ),
        click.option(
            *("--optimizer", "-optimizer"),
            default="adam",
            show_default=True,
            help="adam, sgd, adamw or rmsprop.",
        ),
        click.option(
            *("--scheduler", "-scheduler"),
            cls=ListOption,
            default=scheduler,
            show_default=True,
            help="cosine, linear, warmup, constant, 'Cosine T0 Tt Tmax' or 'Step m1 m2 …'.",
        ),
        click.option(*("--learning_rate", "-lr"), type=float, default=1e-3, show_default=True),
        click.option(*("--weight_decay", "-wd"), type=float, default=0.0, show_default=True),
        click.option(
            *("--momentum", "-momentum"),
            type=float,
            default=0.9,
            show_default=True,
            help="For sgd and rmsprop.",
        ),
        click.option(
            "--augment",
            default="none",
            show_default=True,
            help="none; shift (by up to 2 pixels); crop_flip (up to 4 pixels and mirroring).",
        ),
        click.option(
            "--l1",
            type=float,
            default=0.0,
            show_default=True,
            help="Added to convolution gradients, times the weight's sign (SCA: 3e-5).",
        ),
        click.option(*("--seed", "-seed"), type=int, default=2025, show_default=True),
        click.option(
            "--freeze_batch_norm",
            is_flag=True,
            help="Batch norms normalise by their running statistics, which stay as they are.",
        ),
    )


@dataclass(frozen=True)
class RunOptions:
    """Where it runs and where its files go."""

    model_dir: Path
    log_dir: Path
    device: str
    threads: int | None
    workers: int
    process_timeout: float
    output_format: str

    def __post_init__(self) -> None:
        require_threads(self.threads)
        if self.workers < 0:
            raise UsageError(f"workers {self.workers} must be at least 0")
        if not 1 <= self.process_timeout <= 86400:
            raise UsageError(
                f"process_timeout {self.process_timeout:g} must be from 1 to 86400 seconds"
            )


def run_options() -> Decorator:
    """--model_dir, --log_dir, --device, --threads, --workers, --format."""
    folder = click.Path(path_type=Path, file_okay=False)
    return option_group(
        "run",
        RunOptions,
        click.option(
            *("--model_dir", "-model_dir"),
            type=folder,
            default=Path("saved_models"),
            show_default=True,
            help="Where model files go.",
        ),
        click.option(
            *("--log_dir", "-log_dir"),
            type=folder,
            default=Path("logs"),
            show_default=True,
            help="Where the epochs' results go, one JSON object a line.",
        ),
        click.option(
            "--device",
            type=click.Choice(["auto", "cpu", "cuda"], case_sensitive=False),
            default="auto",
            show_default=True,
        ),
        click.option("--threads", type=int, default=None, help="CPU threads. [default: PyTorch's]"),
        click.option(
            *("--workers", "-j"),
            type=int,
            default=4,
            show_default=True,
            help="Taken from Soul's commands; data stay in memory, so no loader process starts.",
        ),
        click.option(
            "--process_timeout",
            type=float,
            default=300.0,
            show_default=True,
            help="Seconds that a process started by torchrun waits for the others.",
        ),
        click.option(
            "--format",
            "output_format",
            type=click.Choice(["table", "json"], case_sensitive=False),
            default="table",
            show_default=True,
            help="How results are printed on standard output.",
        ),
    )


@dataclass(frozen=True)
class ResumeOptions:
    """When checkpoints are written, and whether the run starts from one."""

    save_steps: int | None
    resume: str | None

    def __post_init__(self) -> None:
        if self.save_steps is not None and self.save_steps < 1:
            raise UsageError(f"save_steps {self.save_steps} must be at least 1")


def resume_options() -> Decorator:
    """--save_steps, --resume."""
    return option_group(
        "keeping",
        ResumeOptions,
        click.option(
            "--save_steps",
            type=int,
            default=None,
            help="Write a checkpoint after every so many steps too. [default: after epochs only]",
        ),
        click.option(
            "--resume",
            default=None,
            metavar="PATH|auto",
            help="Go on from a checkpoint: a file, a folder of them, or auto: the newest of the "
            "same run in --model_dir, or from the beginning if there is none.",
        ),
    )
