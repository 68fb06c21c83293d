"""From option groups to what they mean: neurons, recipe, device, networks; all checked at once."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, get_args

import click
import torch
from torch import nn

from soul_deploy import distributed, ir
from soul_deploy.base import errors, files, progress
from soul_deploy.cli import options, parsing, run_config
from soul_deploy.data import datasets, event_sets, own, sampler
from soul_deploy.frontend.factory import is_dotted
from soul_deploy.model.file import load
from soul_deploy.model.model import Model, ModelInfo, from_module
from soul_deploy.nn import graph_module
from soul_deploy.nn.surrogate import DEFAULT_ALPHA
from soul_deploy.training import checkpoint_manager, lr_schedules, messages, recipes, train, trainer
from soul_deploy.training.objective import CRITERIA, Objective
from soul_deploy.zoo import registry as zoo
from soul_deploy.zoo import resnet
from soul_deploy.zoo.import_zoo import SIZE_FLAGS
from soul_deploy.zoo.initialisation import INITIALISATIONS, Initialisation

NEURONS = tuple(ir.SOUL_NEURONS)


def neuron_spec(choice: options.NetworkChoice) -> ir.NeuronSpec:
    """The neuron that the options describe: Soul's of that name, but for what was given.

    Raises UnknownNameError or UsageError.
    """
    family: ir.NeuronFamily = errors.known("neuron", choice.neuron_type, NEURONS)
    given = choice.constants()
    if "surrogate" in given:
        given["surrogate"] = errors.known("surrogate", given["surrogate"], DEFAULT_ALPHA)
    if "fire" in given:
        given["fire"] = errors.known("firing rule", given["fire"], ("gt", "ge"))
    soul = ir.SOUL_NEURONS[family]
    if "settings" in given:
        given["settings"] = tuple({**dict(soul.settings), **dict(given["settings"])}.items())
    spec = replace(soul, **given)
    _warn_of_unread(spec, [name for name in given if name in options.CONSTANTS])
    if "surrogate" not in given:
        return spec
    return replace(spec, surrogate_alpha=DEFAULT_ALPHA[spec.surrogate])


TRAINING_ONLY = ("surrogate",)


def _warn_of_unread(spec: ir.NeuronSpec, given: list[str]) -> None:
    """Say which constants were given that this neuron has not, and what it has instead."""
    starts = ("tau",) if spec.family == "plif" else ()
    unread = [name for name in given if name not in (*spec.reads, *starts, *TRAINING_ONLY)]
    if not unread:
        return
    own = ", ".join(f"{name} {value:g}" for name, value in spec.settings)
    instead = f"; its own, for --neuron_settings: {own}" if own else ""
    flags = ", ".join(f"--{name}" for name in unread)
    messages.warn(f"{flags} ignored; {spec.family} does not read it{instead}")


def recipe_of(learning: options.LearningOptions) -> trainer.TrainConfig:
    """The training that the options describe; `on_data` decides an augmentation that is left open.

    Raises UnknownNameError or UsageError.
    """
    chosen = asdict(learning)
    del chosen["recipe"]
    schedule = lr_schedules.parse_schedule([chosen.pop("scheduler")])
    chosen["optimizer"] = errors.known("optimizer", learning.optimizer, trainer.OPTIMIZERS)
    chosen["augment"] = _augment(learning) or "none"
    criterion = errors.known("criterion", chosen.pop("criterion"), CRITERIA)
    tet = {name: chosen.pop(name) for name in ("tet", "tet_phi", "tet_lambda")}
    return trainer.TrainConfig(schedule=schedule, objective=Objective(criterion, **tet), **chosen)


def _augment(learning: options.LearningOptions) -> str | None:
    """The augmentation that is asked for; None: the recipe's for the data set."""
    name = learning.augment.replace("-", "_")
    known = errors.known("augmentation", name, (*sampler.AUGMENTS, recipes.AUTO))
    return None if known == recipes.AUTO else known


def on_data(
    training: trainer.TrainConfig, learning: options.LearningOptions, data: str
) -> trainer.TrainConfig:
    """The training on this data set. Which defaults of the command are not Soul's is said."""
    context = click.get_current_context()
    assert isinstance(context.command, parsing.SoulCommand)
    name, recipe = context.command.recipes_of, learning.recipe
    assert name is not None
    found = recipes.differences(name, recipe, data, parsing.explicit_flags(context))
    if found:
        messages.note(f"recipe {recipe}: {', '.join(found)}")
    augment: Any = recipes.augment_of(recipe, data)
    if _augment(learning) is not None or augment == "none":
        return training
    messages.note(f"augment: {augment}, for data set {data}; --augment none leaves it out")
    return replace(training, augment=augment)


def prepare(run: options.RunOptions) -> torch.device:
    """`prepare_device` as the options say."""
    return train.prepare_device(run.device, run.threads, run.process_timeout)


def checkpoints_of(
    keeping: options.ResumeOptions, folder: Path, **start: Any
) -> checkpoint_manager.Checkpoints:
    """The checkpoints in `folder`. start: what the run begins with, name -> JSON value."""
    resume = True if keeping.resume == "auto" else keeping.resume or False
    return checkpoint_manager.Checkpoints(folder, keeping.save_steps, resume, settings=start)


def leave_options(path: Path) -> None:
    """Leave the options of the command that runs at `path`, for --config."""
    run_config.write(path, threads=torch.get_num_threads())


def sizes_of(choice: options.NetworkChoice) -> dict[str, Any]:
    """The network's sizes and variants, by field. Raises UnknownNameError."""
    sizes = {field: getattr(choice, flag) for flag, field in SIZE_FLAGS.items()}
    merges = get_args(ir.MergeFunction)
    sizes["connect"] = errors.known("connect_function", choice.connect_function, merges)
    sizes["stem"] = errors.known("stem", choice.stem, get_args(resnet.Stem))
    return sizes


@dataclass(frozen=True)
class Task:
    """A checked choice of network and data set, before anything is read or built.

    sizes: as `sizes_of` gives them
    """

    model: str
    neuron: ir.NeuronSpec
    data: str
    time_steps: int
    sizes: Mapping[str, Any]
    seed: int
    initialisation: Initialisation

    def facts(self) -> dict[str, Any]:
        """All fields, as checkpoints hold them; what most neurons do not have is left out."""
        found = asdict(self) | {"sizes": dict(self.resolved)}
        if found["sizes"]["mlp_ratio"] == 1:
            del found["sizes"]["mlp_ratio"]
        for name in ("settings", "tensors"):
            if not found["neuron"][name]:
                del found["neuron"][name]
        return found

    @property
    def resolved(self) -> Mapping[str, Any]:
        """The sizes, where the network decides what no flag says."""
        hidden = zoo.hidden_of(self.model, self.sizes["hidden"])
        return {**self.sizes, "hidden": hidden}

    @property
    def stem(self) -> str:
        """The part of file names that says what it is: network, neuron, data, T, seed."""
        if is_dotted(self.model):  # it brings its own neurons
            name = self.model.replace(":", ".")
        else:
            name = f"{self.model}_{self.neuron.family}"
        return f"{name}_{self.data}_T{self.time_steps}_{self.seed}"

    def network_options(self, data: datasets.Data) -> zoo.NetworkOptions:
        """What the zoo needs to build the network for this data set."""
        return zoo.NetworkOptions(
            *(data.input_shape, len(data.classes), self.neuron, self.time_steps),
            **self.sizes,
            initialisation=self.initialisation,
        )


def task_of(network: options.NetworkChoice, data: options.DataOptions, seed: int) -> Task:
    """Check all names. Raises UnknownNameError or UsageError."""
    if is_dotted(network.model):
        _refuse_flags_of_the_zoo(network.model)
    return Task(
        zoo.canonical_name(network.model),
        neuron_spec(network),
        datasets.canonical_data_name(data.dataset_name),
        network.time_step,
        sizes_of(network),
        seed,
        errors.known("initialisation", network.initialisation.replace("-", "_"), INITIALISATIONS),
    )


def _refuse_flags_of_the_zoo(model: str) -> None:
    """A network of the user's own brings neurons and sizes: flags for them would do nothing."""
    context = click.get_current_context(silent=True)
    names = {item.name for item in fields(options.NetworkChoice)}
    names -= {"model", "time_step", "coding_schema"}
    given = [] if context is None else sorted(names & parsing.explicit_flags(context))
    if given:
        raise errors.UsageError(
            f"--{given[0]} given, but {model!r} brings its own neurons and sizes; "
            "leave the flag out"
        )


def require_outputs(*paths: Path, unless: bool = False) -> None:
    """Raise FileWriteError or PathKindError unless each of `paths` can be written, before the work.

    Of several processes only the main one looks, since only that one writes. unless: none does.
    """
    if distributed.current().is_main and not unless:
        files.require_writable(*paths)


def load_task_data(
    wanted: options.DataOptions, steps: int, model: Model | None = None
) -> datasets.Data:
    """The data set that the options name; of several processes, the main one downloads it, or makes
    its frames.

    steps: T of the network.

    model: of a model file, whose images, kind of input and normalisation count. Raises as
    `load_data`, and UsageError for an --input_kind that data or model contradict.
    """
    name, folder, kind = wanted.dataset_name, wanted.data_dir, _input_kind(wanted, model)
    recorded = None if model is None else model.info.provenance.get("frames")
    events = wanted.events(steps).over(recorded)

    def load(main: bool) -> datasets.Data:
        how: dict[str, Any] = {"download": wanted.download and main, "input_kind": kind}
        how |= {"events": events}
        if wanted.size is None and model is not None:
            return datasets.load_data_for(model.input_shape, name, folder, **how)
        return datasets.load_data(name, folder, size=wanted.size, **how)

    made = wanted.download or datasets.canonical_data_name(name) in event_sets.NAMES
    loaded = distributed.main_first(load) if made else load(False)
    if wanted.input_kind is not None:
        whose = f"a network of --input_kind {wanted.input_kind}"
        datasets.require_kind(loaded, wanted.input_kind, whose)
    return remark_on(loaded, "; --size chooses another side" if model is None else "")


def _input_kind(wanted: options.DataOptions, model: Model | None) -> Any:
    """What the numbers are, as the model or a flag says; None: as the data say."""
    held = None if model is None else model.info.input_kind
    if held is not None and wanted.input_kind not in (None, held):
        raise errors.UsageError(
            f"--input_kind {wanted.input_kind} given, but the model takes {held}; leave it out"
        )
    return held or wanted.input_kind


def remark_on(data: datasets.Data, advice: str = "") -> datasets.Data:
    """`data`; what was done to them is said, with `advice` on images that were scaled."""
    if data.remark:
        messages.note(f"{data.remark}{advice}")
    for line in data.notes:
        messages.note(line)
    return data


def create_network(
    task: Task, data: datasets.Data
) -> tuple[nn.Module, ir.SpikingGraph, dict[str, list[str]]]:
    """The task's network, its graph, and what its provenance says was not tested, if anything.

    Warnings are told as the command's own.
    """
    shown = f"soul-deploy import torch {task.model} --dataset_name {task.data}"
    with progress.warnings_said(messages.warn, f"`{shown}` compares on images"):
        wanted = task.network_options(data)
        if not is_dotted(task.model):
            return (*zoo.create(task.model, wanted), {})
        _, found = zoo.create_own(task.model, wanted)
        return found.module, found.traced.graph, found.told


def new_model(task: Task, data: datasets.Data) -> Model:
    """The task's network, freshly initialised from its seed."""
    if data.steps not in (None, task.time_steps):
        raise errors.UsageError(
            f"data set {data.name!r} holds sequences of {data.steps} frames, and the network is to "
            f"run {task.time_steps} steps; give --time_step {data.steps}"
        )
    torch.manual_seed(task.seed)
    network, graph, untested = create_network(task, data)
    module, state = graph_module.GraphModule(graph), network.state_dict()
    module.load_state_dict({name: state[name] for name in module.state_dict()})
    norm, kind = data.normalization, data.input_kind
    if norm is not None and data.name in own.READERS:
        messages.note(
            f"data set {data.name}: pixels are normalised by the mean of the {len(data.train)} "
            f"samples left for training, {norm.mean}, and deviation {norm.std}, which the model "
            "file records"
        )
    made = facts(task) | {"initialisation": task.initialisation} | untested | data.record()
    return from_module(module, ModelInfo("dense", norm, data.classes, made, input_kind=kind))


def facts(task: Task) -> dict[str, Any]:
    """What a model file says about where its network began; plain JSON data."""
    return {
        "model": task.model,
        **{flag: task.resolved[field] for flag, field in SIZE_FLAGS.items()},
        "data": task.data,
    }


def warn_of_replacing(path: Path, command: str) -> None:
    """Say so if the result of another command stands where this one's will go."""
    try:
        made = load(path).info.provenance.get("command")
    except errors.SoulDeployError:  # none, or a damaged one, which is no loss
        return
    if made is not None and made != command:
        messages.warn(
            f"{path} is the result of {made}, which this run will replace; stop it and give "
            "another --model_dir to keep both"
        )
