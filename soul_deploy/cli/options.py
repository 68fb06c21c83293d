"""Option groups that commands share; each arrives in the command as one frozen dataclass.

Names, aliases and defaults are those of Soul's scripts (run_soul.py, structured_prune.py,
unstructured_prune.py) unless said otherwise. A neuron's constants have no default: what is not
given is Soul's, by neuron (`ir.neurons.SOUL_NEURONS`).
"""

import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from soul_deploy.base import errors, event_frames, pixel_rule
from soul_deploy.cli import common_options as common
from soul_deploy.cli import parsing
from soul_deploy.cli.common_options import Decorator, choice, given, option, option_group, shared
from soul_deploy.data import chosen
from soul_deploy.data.event_sets import EventOptions
from soul_deploy.ir import SOUL_NEURONS
from soul_deploy.ir.neurons import constant_text
from soul_deploy.runtime.io import inputs
from soul_deploy.training import recipes

TRAINED_ON = "[default: the one the model was trained on]"
FOLDER = click.Path(path_type=Path, file_okay=False)
DATA_SETS = (
    f"{', '.join(inputs.DATA_SETS)}: folder and npz are your own, images in a folder per class and "
    "arrays in .npz, both at --data_dir. A model file says its own."
)


def size_option() -> Decorator:
    text = (
        "Side in pixels to which images of mnist, fashionmnist and folder are scaled, and frames "
        "of events (0: the sensor's own).  [default: the model file's, or Soul's: 32, cifar10dvs "
        "48, dvsgesture and ncaltech101 64; folder: as they are]"
    )
    return option("--size", type=int, help=text, heading="Data")


def input_kind_option(default: str) -> Decorator:
    """--input_kind of the commands that make models; default: what counts without it, in words."""
    text = (
        "What the network is given. images: uint8 are pixels and are normalised; counts, "
        f"spikes, values: numbers are taken as they are.  [default: {default}]"
    )
    kinds = click.Choice(pixel_rule.INPUT_KINDS)
    return option("--input_kind", type=kinds, help=text, heading="Data")


@dataclass(frozen=True)
class EventFlags:
    """How events of a camera become frames, and where those are kept."""

    split_by: Any = given(
        None,
        "Frames of equal numbers of events, or of equal times.  "
        "[default: the model file's, or number, as in Soul]",
        type=choice(event_frames.SPLIT_BY),
        heading="Events",
    )
    duration: int | None = given(
        None, "Frames of so many microseconds each instead, the first T.", heading="Events"
    )
    frame_scaling: Any = given(
        None,
        "How frames become --size. nearest: by leaving pixels out, as in Soul; sum: every event "
        "counts.  [default: the model file's, or nearest]",
        type=choice(event_frames.SCALINGS),
        heading="Events",
    )
    cache_dir: Path | None = given(
        None, "Where frames are kept.  [default: beside the data]", type=FOLDER, heading="Events"
    )
    no_cache: bool = given(False, "Keep frames in memory alone.", heading="Events")
    skip_damaged: bool = given(
        False, "Go on without recordings that cannot be read; each is named.", heading="Events"
    )
    clip_counts: bool = given(
        False, "Counts above 255 are 255, instead of an error.", heading="Events"
    )

    def events(self, steps: int | None = None) -> EventOptions:
        """What is asked of frames."""
        return EventOptions(
            steps=steps,
            split_by=self.split_by,
            duration=self.duration,
            scaling=self.frame_scaling,
            cache_dir=self.cache_dir,
            cache=not self.no_cache,
            skip_damaged=self.skip_damaged,
            clip_counts=self.clip_counts,
        )


@dataclass(frozen=True)
class DataOptions(EventFlags):
    """Which data set, and where it is."""

    dataset_name: str = shared(common.dataset_option(DATA_SETS, "cifar10"))
    data_dir: Path = shared(common.data_dir_option())
    download: bool = shared(common.download_option())
    size: int | None = shared(size_option())
    input_kind: str | None = shared(input_kind_option("the model file's or the data set's"))


data_options = option_group("data", DataOptions)


CONSTANTS = {
    "tau": "Time constant in steps; where PLIF begins to learn its own.",
    "v_threshold": "Firing threshold.",
    "v_reset": "Potential after a spike; none: the threshold is subtracted (soft reset).",
    "decay_input": "The input current is divided by tau too.",
    "fire": "gt: fires above the threshold; ge: also at it (SpikingJelly).",
    "surrogate": "atan, sigmoid or rectangle.",
}
"""The flags of a neuron's constants, by the names of NeuronSpec's fields, and their help."""


def _constant(name: str, *flags: str) -> Any:
    """The field of one constant; help says Soul's values, of the neurons that read it."""
    values = {
        family.upper(): constant_text(getattr(spec, name))
        for family, spec in SOUL_NEURONS.items()
        if name in spec.reads or name == "surrogate"
    }
    usual, _ = Counter(values.values()).most_common(1)[0]
    others = [f"{family} {value}" for family, value in values.items() if value != usual]
    told = f"{usual}{'; ' if others else ''}{', '.join(others)}"
    text = f"{CONSTANTS[name]}  [default: Soul's, by neuron: {told}]"
    return given(None, text, *flags, **({"is_flag": None} if flags else {}))


@dataclass(frozen=True)
class NetworkChoice:
    """A network of the zoo and its neurons. Constants that are not given are None."""

    model: str = given("", "Network name, or package.module:factory for one of your own.", "-m")
    neuron_type: str = given("LIF", f"{', '.join(map(str.upper, SOUL_NEURONS))}.", "-n")
    time_step: int = shared(common.steps_option("Time steps T.", 4))
    hidden: int | None = given(
        *(None, "Neurons of fully connected layers.  [default: 2048; mlp 1024, lenet 512]"),
        *("--hidden", "--mlp_hidden_dim", "--hidden_dim"),
    )
    mlp_ratio: float = given(1.0, "SpikingVGG: share of --hidden in its first hidden layer.")
    width: int = given(256, "Channels of Cifar10Net.")
    connect_function: str = given("ADD", "SEW-ResNet's merge: ADD, AND or IAND.")
    groups: int = given(1, "ResNet-50's: grouped 3×3.")
    width_per_group: int = given(
        *(64, "Residual networks: channels per group.", "--width_per_group", "--base_width")
    )
    stem: str = given(
        "soul", "Residual networks: soul (7×7, stride 2, max pooling) or small (3×3)."
    )
    tau: float | None = _constant("tau")
    v_threshold: float | None = _constant("v_threshold")
    v_reset: str | None = _constant("v_reset")
    decay_input: bool | None = _constant("decay_input", "--decay_input/--no_decay_input")
    fire: str | None = _constant("fire")
    surrogate: str | None = _constant("surrogate")
    neuron_settings: str | None = given(
        None, "Numbers that only this neuron has, such as alpha=1.3,v_c=0.7 (docs/neurons.md)."
    )
    initialisation: str = given(
        "default",
        "How fresh weights are drawn. default: as the network's source does; kaiming_fan_out: all "
        "layers of a network of the zoo.",
    )
    coding_schema: str = given("direct", "direct.", "-coding")

    def __post_init__(self) -> None:
        errors.known("coding", self.coding_schema, ["direct"])
        parsing.require_steps("time_step", self.time_step)
        sizes = ("hidden", "width", "groups", "width_per_group")
        given = {name: getattr(self, name) for name in sizes}
        errors.require_least(1, **{name: n for name, n in given.items() if n is not None})
        if not 0 < self.mlp_ratio < math.inf:
            raise errors.UsageError(f"mlp_ratio {self.mlp_ratio:g} must be above 0")

    def constants(self) -> dict[str, Any]:
        """The neuron's constants that were given, by NeuronSpec's names.

        Raises UsageError for a v_reset that is neither a number nor none (soft reset).
        """
        values = {name: getattr(self, name) for name in CONSTANTS}
        found = {name: value for name, value in values.items() if value is not None}
        if self.v_reset is not None:
            soft = self.v_reset.lower() == "none"
            try:
                found["v_reset"] = None if soft else float(self.v_reset)
            except ValueError:
                told = f"v_reset {self.v_reset!r} is neither a number nor none (soft reset)"
                raise errors.UsageError(told) from None
        if self.neuron_settings is not None:
            found["settings"] = _settings(self.neuron_settings)
        return found


def _settings(text: str) -> tuple[tuple[str, float], ...]:
    """NAME=NUMBER, separated by commas or spaces. Raises UsageError for what is not."""
    found: dict[str, float] = {}
    for part in text.replace(",", " ").split():
        name, _, number = part.partition("=")
        try:
            value = float(number)
        except ValueError:
            value = None
        if not name or value is None:
            told = f"neuron_settings {part!r} is not NAME=NUMBER, such as alpha=1.3"
            raise errors.UsageError(told)
        if name in CONSTANTS:
            raise errors.UsageError(
                f"neuron_settings {part}: give --{name}, which many neurons have"
            )
        if name in found:
            raise errors.UsageError(f"neuron_settings says {name} twice; give it once")
        found[name] = value
    return tuple(found.items())


def network_options(model: object) -> Decorator:
    """--model, unless `model` is ARGUMENT, --neuron_type, --time_step, sizes, neuron's fields."""
    return option_group("network", NetworkChoice, "Network", model=model)


@dataclass(frozen=True)
class LearningOptions:
    """How weights are learned."""

    recipe: recipes.Recipe = given(
        recipes.RECIPES[0],
        "Where the defaults of all options come from that touch accuracy: ours, soul or authors "
        "(of the paper). What differs from Soul is printed; docs/methods.md has them all.",
        type=choice(recipes.RECIPES),
        is_eager=True,
        callback=parsing.use_recipe,
        heading="Method",
    )
    epochs: int = given(None, "Epochs.", "-epochs")
    batch_size: int = given(None, "Samples per step, of all processes together.", "-b")
    optimizer: str = given("adam", "adam, sgd, adamw or rmsprop.", "-optimizer")
    scheduler: str = given(
        "cosine",
        "cosine, linear, warmup, constant, 'Cosine T0 Tt Tmax' or 'Step m1 m2 …'.",
        "-scheduler",
        cls=parsing.ListOption,
    )
    learning_rate: float = given(1e-3, None, "-lr")
    weight_decay: float = given(0.0, None, "-wd")
    momentum: float = given(0.9, "For sgd and rmsprop.", "-momentum")
    nesterov: bool = given(False, "For sgd.", "--nesterov/--no_nesterov")
    criterion: str = given(
        recipes.AUTO, "MSE (one-hot targets), CE or auto: MSE for a network that votes, else CE."
    )
    tet: bool = given(
        False, "Loss of every step's output, not of their mean.", "--TET/--no_TET", "tet"
    )
    tet_phi: float = given(1.0, None, "--TET_phi", "tet_phi")
    tet_lambda: float = given(0.0, None, "--TET_lambda", "tet_lambda")
    augment: str = given(
        recipes.AUTO,
        "none; shift (by up to 2 pixels); crop_flip (up to 4 pixels and mirroring); dvs15, dvs30 "
        "(rolled, turned or sheared, as Soul's frames of events); auto: by data set, crop_flip for "
        "cifar10 and cifar100, dvs30 or dvs15 for recordings of cameras, else none.",
    )
    l1: float = given(0.0, "Added to convolution gradients, times the weight's sign (SCA: 3e-5).")
    seed: int = shared(common.seed_option())
    freeze_batch_norm: bool = given(
        False, "Batch norms normalise by their running statistics, which stay as they are."
    )


learning_options = option_group("learning", LearningOptions, "Training")


@dataclass(frozen=True)
class RunOptions:
    """Where it runs and where its files go."""

    model_dir: Path = given(
        *(Path("saved_models"), "Where model files go.", "-model_dir"), type=FOLDER, heading="Files"
    )
    log_dir: Path = given(
        *(Path("logs"), "Where the epochs' results go, one JSON object a line.", "-log_dir"),
        type=FOLDER,
        heading="Files",
    )
    tensorboard: bool = given(
        False, "Also log for tensorboard, into a folder in --log_dir.", heading="Files"
    )
    device: str = given("auto", type=choice(["auto", "cpu", "cuda"]))
    threads: int | None = shared(common.threads_option(heading="Training"))
    workers: int = given(
        4, "Taken from Soul's commands; data stay in memory, so no loader process starts.", "-j"
    )
    process_timeout: float = given(
        300.0, "Seconds that a process started by torchrun waits for the others."
    )
    output_format: str = shared(common.format_option())

    def __post_init__(self) -> None:
        parsing.require_threads(self.threads)
        errors.require_least(0, workers=self.workers)
        if not 1 <= self.process_timeout <= 86400:
            raise errors.UsageError(
                f"process_timeout {self.process_timeout:g} must be from 1 to 86400 seconds"
            )


run_options = option_group("run", RunOptions, "Training")


@dataclass(frozen=True)
class ResumeOptions:
    """When checkpoints are written, and whether the run starts from one."""

    save_steps: int | None = given(
        None, "Write a checkpoint after every so many steps too. [default: after epochs only]"
    )
    resume: str | None = given(
        None,
        "Go on from a checkpoint: a file, a folder of them, or auto: the newest of the "
        "same run in --model_dir, or from the beginning if there is none.",
        metavar="PATH|auto",
    )

    def __post_init__(self) -> None:
        errors.require_least(1, save_steps=self.save_steps)


resume_options = option_group("keeping", ResumeOptions, "Files")


@dataclass(frozen=True)
class CheckOptions(EventFlags):
    """On how many images of what an artifact is verified."""

    samples: int = given(32, "Images to verify on.")
    batch: int = given(16, "Images at a time while verifying; files take any batch.", "-b")
    source: str = shared(common.input_option("source", "data", "validation images"))
    resize: bool = shared(common.resize_option())
    dataset_name: str | None = shared(
        common.dataset_option(f"Data set to verify on.  {TRAINED_ON}")
    )
    data_dir: Path = shared(common.data_dir_option())
    download: bool = shared(common.download_option())
    seed: int = shared(common.seed_option("Of random pixels.", "Data"))
    threads: int | None = shared(common.threads_option())
    output_format: str = shared(common.format_option())

    def __post_init__(self) -> None:
        errors.require_least(1, samples=self.samples, batch=self.batch)
        parsing.require_threads(self.threads)
        errors.require_seed(self.seed)

    def wish(self) -> chosen.Wish:
        """What an artifact is verified on."""
        return chosen.Wish(
            source=self.source,
            dataset=self.dataset_name,
            data_dir=self.data_dir,
            download=self.download,
            split="validation",
            count=self.samples,
            seed=self.seed,
            resize=self.resize,
            events=self.events(),
        )


check_options = option_group("check_on", CheckOptions, "Data")


def model_steps_option() -> Decorator:
    """--time_step of commands that read a model file."""
    return common.steps_option("Run for another number of time steps.  [default: the model's]")


def export_options() -> Decorator:
    """MODEL, -o, -T, --check and what the check runs on."""
    check = "Verify the file against the model; a file that fails is not kept."
    return common.options(
        click.argument("model_path", metavar="MODEL", type=common.FILE),
        common.output_option("Where the file goes.  [default: beside MODEL, under its name]"),
        model_steps_option(),
        option("--check/--no-check", default=True, help=check),
        check_options,
    )
