"""Option groups that commands share; each arrives in the command as one frozen dataclass.

Names, aliases and defaults are those of Soul's scripts (run_soul.py, structured_prune.py,
unstructured_prune.py) unless said otherwise. A neuron's constants have no default: what is not
given is Soul's, by neuron (`ir.neurons.SOUL_NEURONS`).
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import click

from soul_deploy.base import errors, input_rule
from soul_deploy.cli import common_options as common
from soul_deploy.cli import parsing
from soul_deploy.cli.common_options import FILE, Command, Decorator, choice, option
from soul_deploy.ir import SOUL_NEURONS


def option_group(
    name: str, group: type[Any], *options: Decorator, heading: str = "Method"
) -> Decorator:
    """Decorate a command with `options`; their values arrive as `name=group(...)`.

    heading: where help shows the options that have none of their own.
    """

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def collect(**values: Any) -> Any:
            mine = {item.name: values.pop(item.name) for item in fields(group)}
            return command(**{name: group(**mine)}, **values)

        before = len(vars(command).get("__click_params__", ()))
        decorated = common.options(*options)(collect)
        for parameter in vars(decorated)["__click_params__"][before:]:
            vars(parameter).setdefault("heading", heading)
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
    text = "mnist5k, digits, mnist, fashionmnist, cifar10, cifar100 or svhn."
    named, place = common.dataset_option(text, dataset), common.data_place_options()
    return option_group("data", DataOptions, named, place, size_option())


def size_option() -> Decorator:
    """--size."""
    return option(
        "--size",
        type=int,
        help="Side in pixels to which mnist's and fashionmnist's images are scaled.  "
        "[default: the model file's, or 32, as in Soul]",
        heading="Data",
    )


def input_kind_option(default: str) -> Decorator:
    """--input_kind of the commands that make models; default: what counts without it, in words."""
    return option(
        "--input_kind",
        type=click.Choice(input_rule.INPUT_KINDS),
        help="What the network is given. images: uint8 are pixels and are normalised; counts, "
        f"spikes, values: numbers are taken as they are.  [default: {default}]",
        heading="Data",
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
            raise errors.UnknownNameError("coding", self.coding_schema, ["direct"])
        parsing.require_steps("time_step", self.time_step)
        for name in ("hidden", "width", "groups", "width_per_group"):
            parsing.require_least(1, **{name: getattr(self, name)})

    def constants(self) -> dict[str, Any]:
        """The neuron's constants that were given, by NeuronSpec's names. Raises UsageError."""
        return given_constants({name: getattr(self, name) for name in CONSTANTS})


def network_options(model: str) -> Decorator:
    """--model, --neuron_type, --time_step, sizes and the neuron's fields."""
    named = "Network name, or package.module:factory for one of your own."
    return option_group(
        "network",
        NetworkChoice,
        option("--model", "-m", default=model, help=named),
        option("--neuron_type", "-n", default="LIF", help="LIF, PLIF or IF."),
        common.steps_option("Time steps T.", 4),
        *_size_options(),
        *_constant_options(),
        option("--coding_schema", "-coding", default="direct", help="direct."),
        heading="Network",
    )


def _size_options() -> tuple[Decorator, ...]:
    def number(*flags: str, default: int, text: str) -> Decorator:
        return option(*flags, type=int, default=default, help=text)

    merge = "SEW-ResNet's merge: ADD, AND or IAND."
    stem = "Residual networks: soul (7×7, stride 2, max pooling) or small (3×3)."
    per_group = "Residual networks: channels per group."
    return (
        number("--hidden", "--mlp_hidden_dim", default=2048, text="Width of SpikingVGG's head."),
        number("--width", default=256, text="Channels of Cifar10Net."),
        option("--connect_function", default="ADD", help=merge),
        number("--groups", default=1, text="ResNet-50's: grouped 3×3."),
        number("--width_per_group", "--base_width", default=64, text=per_group),
        option("--stem", default="soul", help=stem),
    )


CONSTANTS = {
    "tau": "Time constant in steps; where PLIF begins to learn its own.",
    "v_threshold": "Firing threshold.",
    "v_reset": "Potential after a spike; none: the threshold is subtracted (soft reset).",
    "decay_input": "The input current is divided by tau too.",
    "fire": "gt: fires above the threshold; ge: also at it (SpikingJelly).",
    "surrogate": "atan, sigmoid or rectangle.",
}
"""The flags of a neuron's constants, by the names of NeuronSpec's fields, and their help."""


def _constant_options() -> tuple[Decorator, ...]:
    """None of the values that are not given."""
    kinds = {"tau": float, "v_threshold": float, "decay_input": None}
    return tuple(
        option(
            f"--{name}/--no_{name}" if name == "decay_input" else f"--{name}",
            type=kinds.get(name, str),
            default=None,
            help=f"{text}  [default: {_souls(name)}]",
        )
        for name, text in CONSTANTS.items()
    )


def given_constants(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values that were given (not None), v_reset as a number or None for soft reset.

    Raises UsageError for a v_reset that is neither a number nor none.
    """
    found = {name: value for name, value in values.items() if value is not None}
    if "v_reset" in found:
        found["v_reset"] = _reset(found["v_reset"])
    return found


def _reset(text: str) -> float | None:
    if text.lower() == "none":
        return None
    try:
        return float(text)
    except ValueError:
        raise errors.UsageError(
            f"v_reset {text!r} is neither a number nor none (soft reset)"
        ) from None


def _souls(name: str) -> str:
    """Soul's values of one constant, as help says them."""
    values = {
        family.upper(): constant_text(getattr(spec, name)) for family, spec in SOUL_NEURONS.items()
    }
    if len(set(values.values())) == 1:
        return f"Soul's, by neuron: all {next(iter(values.values()))}"
    return "Soul's, by neuron: " + ", ".join(f"{key} {value}" for key, value in values.items())


def constant_text(value: object) -> str:
    """A neuron's constant as people write it: 2, yes, none (soft reset), gt."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


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
    samples = "Samples per step, of all processes together."
    schedules = "cosine, linear, warmup, constant, 'Cosine T0 Tt Tmax' or 'Step m1 m2 …'."
    moves = "none; shift (by up to 2 pixels); crop_flip (up to 4 pixels and mirroring)."
    l1 = "Added to convolution gradients, times the weight's sign (SCA: 3e-5)."
    frozen = "Batch norms normalise by their running statistics, which stay as they are."
    return option_group(
        "learning",
        LearningOptions,
        option("--epochs", "-epochs", type=int, default=epochs, help="Epochs."),
        option("--batch_size", "-b", type=int, default=batch_size, help=samples),
        option("--optimizer", "-optimizer", default="adam", help="adam, sgd, adamw or rmsprop."),
        option(
            "--scheduler", "-scheduler", cls=parsing.ListOption, default=scheduler, help=schedules
        ),
        option("--learning_rate", "-lr", type=float, default=1e-3),
        option("--weight_decay", "-wd", type=float, default=0.0),
        option("--momentum", "-momentum", type=float, default=0.9, help="For sgd and rmsprop."),
        option("--augment", default="none", help=moves),
        option("--l1", type=float, default=0.0, help=l1),
        common.seed_option(),
        option("--freeze_batch_norm", is_flag=True, help=frozen),
        heading="Training",
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
        parsing.require_threads(self.threads)
        parsing.require_least(0, workers=self.workers)
        if not 1 <= self.process_timeout <= 86400:
            raise errors.UsageError(
                f"process_timeout {self.process_timeout:g} must be from 1 to 86400 seconds"
            )


def run_options() -> Decorator:
    """--model_dir, --log_dir, --device, --threads, --workers, --format."""

    def folder(name: str, default: str, text: str) -> Decorator:
        kind = click.Path(path_type=Path, file_okay=False)
        flags = (f"--{name}", f"-{name}")
        return option(*flags, type=kind, default=Path(default), help=text, heading="Files")

    logs = "Where the epochs' results go, one JSON object a line."
    idle = "Taken from Soul's commands; data stay in memory, so no loader process starts."
    patience = "Seconds that a process started by torchrun waits for the others."
    return option_group(
        "run",
        RunOptions,
        folder("model_dir", "saved_models", "Where model files go."),
        folder("log_dir", "logs", logs),
        option("--device", type=choice(["auto", "cpu", "cuda"]), default="auto"),
        common.threads_option(heading="Training"),
        option("--workers", "-j", type=int, default=4, help=idle),
        option("--process_timeout", type=float, default=300.0, help=patience),
        common.format_option(),
        heading="Training",
    )


@dataclass(frozen=True)
class ResumeOptions:
    """When checkpoints are written, and whether the run starts from one."""

    save_steps: int | None
    resume: str | None

    def __post_init__(self) -> None:
        parsing.require_least(1, save_steps=self.save_steps)


def resume_options() -> Decorator:
    """--save_steps, --resume."""
    steps = "Write a checkpoint after every so many steps too. [default: after epochs only]"
    resume = (
        "Go on from a checkpoint: a file, a folder of them, or auto: the newest of the "
        "same run in --model_dir, or from the beginning if there is none."
    )
    return option_group(
        "keeping",
        ResumeOptions,
        option("--save_steps", type=int, help=steps),
        option("--resume", metavar="PATH|auto", help=resume),
        heading="Files",
    )


@dataclass(frozen=True)
class CheckOptions:
    """On how many images of what an artifact is verified."""

    samples: int
    batch: int
    source: str
    dataset_name: str | None
    data_dir: Path
    download: bool
    seed: int
    threads: int | None
    output_format: str

    def __post_init__(self) -> None:
        parsing.require_least(1, samples=self.samples, batch=self.batch)
        parsing.require_threads(self.threads)
        parsing.require_seed(self.seed)


def check_options() -> Decorator:
    """--samples, --batch, --input, the data set's options, --seed, --threads, --format."""
    batch = "Images at a time while verifying; files take any batch."
    source = (
        "data: validation images of the data set; random: random pixels, or for other "
        "kinds of input random numbers of that kind."
    )
    data = "Data set to verify on.  [default: the one the model was trained on]"
    return option_group(
        "check_on",
        CheckOptions,
        option("--samples", type=int, default=32, help="Images to verify on."),
        option("--batch", "-b", type=int, default=16, help=batch),
        option("--input", "source", type=choice(["data", "random"]), default="data", help=source),
        common.dataset_option(data),
        common.data_place_options(),
        common.seed_option("Of random pixels.", "Data"),
        common.threads_option(),
        common.format_option(),
        heading="Data",
    )


def model_steps_option() -> Decorator:
    """--time_step of commands that read a model file."""
    return common.steps_option("Run for another number of time steps.  [default: the model's]")


def export_options() -> Decorator:
    """MODEL, -o, -T, --check and what the check runs on."""
    check = "Verify the file against the model; a file that fails is not kept."
    return common.options(
        click.argument("model_path", metavar="MODEL", type=FILE),
        common.output_option("Where the file goes.  [default: beside MODEL, under its name]"),
        model_steps_option(),
        option("--check/--no-check", default=True, help=check),
        check_options(),
    )
