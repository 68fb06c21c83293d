"""Where pruning starts: a model file, somebody's state dict, or a fresh network."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np

from soul_deploy.base import errors, files
from soul_deploy.cli import common_options as common
from soul_deploy.cli import config, options, parsing
from soul_deploy.data.datasets import NAMES, Data
from soul_deploy.data.given import check_data
from soul_deploy.frontend.factory import is_dotted
from soul_deploy.ir import SOUL_NEURONS, NeuronSpec
from soul_deploy.model.file import check_state, load, load_state_dict
from soul_deploy.model.model import Model, ModelInfo
from soul_deploy.training.messages import note
from soul_deploy.zoo.soul_names import WORDS, Asked, SoulName, read_name, require_neurons, settle

NEURON_FLAGS = {"neuron_type": "family", **{name: name for name in options.CONSTANTS}}


def model_path_option(what: str) -> common.Decorator:
    """--model_path of the commands that prune."""
    text = (
        f"{what}, or a .pt/.pth/.safetensors state dict. What a state dict's name says of network, "
        "neuron, data set and T, as Soul names files, holds where no flag is given; flags that say "
        "something else are refused."
    )
    flags = ("--model_path", "-model_path")
    return common.option(*flags, type=common.FILE, help=text, heading="Files")


@dataclass(frozen=True)
class Start:
    """Where pruning starts, before the data set is read.

    task         the choice of network and data set that the file belongs to
    model        the network of a model file; None for bare weights, which need the data set's sizes
    name         what the name of a file of bare weights says
    assumptions  sentences: what the file does not say, and was assumed
    """

    path: Path
    task: config.Task
    model: Model | None = None
    name: SoulName | None = None
    assumptions: tuple[str, ...] = ()

    def network(self, data: Data) -> Model:
        """The network to prune. Raises UsageError or FileFormatError if it does not fit."""
        model = self.model or _from_state_dict(self.path, self.task, data, self.name)
        check_data(self.path, model, data)
        return model


def open_start(path: Path, task: config.Task, explicit: Collection[str]) -> Start:
    """The file to start from, and the task that it belongs to; what was assumed is said.

    A model file brings its own graph; flags in `explicit` (given by the user) that contradict it
    are refused. A bare state dict needs the task's network; what its name says of model, neuron,
    data set and T holds where no flag was given, and flags that contradict it are refused. Raises
    UsageError or FileFormatError.
    """
    with files.OpenFile(path) as source:
        container = path.suffix == ".safetensors"
        own = container and files.METADATA_KEY in files.read_tensors(source).metadata
        model = load(source) if own else None
    if model is not None:
        task = _task_of_file(path, model, task, explicit)
        if "time_step" in explicit:
            model = model.with_time_steps(task.time_steps)
        told = model.info.provenance.get("assumptions")
        return Start(path, task, model, assumptions=tuple(told) if isinstance(told, list) else ())
    name = read_name(path)
    taken = {} if name is None else settle(path, name, _asked(task, explicit))
    task = _with_taken(task, taken, explicit)
    assumptions = _assumptions(path, task, name, taken, explicit)
    for sentence in assumptions:
        note(sentence)
    return Start(path, task, None, name, assumptions)


def started(
    path: Path | None, task: config.Task, context: click.Context
) -> tuple[Start | None, config.Task]:
    """The file to start from, if there is one, and the task. Raises as `open_start`."""
    if path is None:
        return None, task
    start = open_start(path, task, parsing.explicit_flags(context))
    return start, start.task


def data_for(given: options.DataOptions, task: config.Task, start: Start | None) -> Data:
    """The task's data set, which the file to start from may have named, as its network takes it."""
    chosen = replace(given, dataset_name=task.data)
    return config.load_task_data(chosen, None if start is None else start.model)


def assumed(start: Start | None) -> dict[str, list[str]]:
    """For a model file's provenance: what was assumed on the way to it, if anything was."""
    found = [] if start is None else list(start.assumptions)
    return {"assumptions": found} if found else {}


def _asked(task: config.Task, explicit: Collection[str]) -> dict[str, Asked]:
    """What a name is compared with. A network of the user's own has a name and neurons of its own,
    which are compared when it is built.
    """
    fields: dict[str, tuple[str, Any]] = {}
    if not is_dotted(task.model):
        fields |= {"model": ("model", task.model), "neuron": ("neuron_type", task.neuron.family)}
    fields |= {"data": ("dataset_name", task.data), "time_steps": ("time_step", task.time_steps)}
    return {
        field: Asked(f"--{flag}", value, flag in explicit)
        for field, (flag, value) in fields.items()
    }


def _with_taken(
    task: config.Task, taken: Mapping[str, Any], explicit: Collection[str]
) -> config.Task:
    """The task as the file's name says; constants that no flag gives are those of its neuron."""
    others = {field: value for field, value in taken.items() if field != "neuron"}
    task = replace(task, **others)
    if "neuron" not in taken:
        return task
    given = {flag: getattr(task.neuron, flag) for flag in options.CONSTANTS if flag in explicit}
    if "surrogate" in given:
        given["surrogate_alpha"] = task.neuron.surrogate_alpha
    return replace(task, neuron=replace(SOUL_NEURONS[taken["neuron"]], **given))


def _assumptions(
    path: Path,
    task: config.Task,
    name: SoulName | None,
    taken: Mapping[str, Any],
    explicit: Collection[str],
) -> tuple[str, ...]:
    """Sentences about what neither the file holds nor a flag says. Empty if nothing is."""
    found = []
    if taken:
        items = ", ".join(f"{WORDS[field]} {value}" for field, value in taken.items())
        found.append(f"{path.name}: taken from its name: {items}")
    own, neuron = is_dotted(task.model), task.neuron
    open_fields = [
        f"{flag} {options.constant_text(getattr(neuron, flag))}"
        for flag in (() if own else _read_by(neuron))
        if flag not in explicit
    ]
    if not own and name is None and "neuron_type" not in explicit:
        open_fields.insert(0, f"neuron {neuron.family}")
    if (name is None or name.time_steps is None) and "time_step" not in explicit:
        open_fields.append(f"T {task.time_steps}")
    if open_fields:
        whose = "" if own else f" (Soul's {neuron.family})"
        found.append(
            f"{path.name} holds weights only; assumed without being told{whose}: "
            f"{', '.join(open_fields)}"
        )
    return tuple(found)


def _read_by(neuron: NeuronSpec) -> tuple[str, ...]:
    """The constants that decide a neuron's spikes: PLIF has learned its tau, IF has none."""
    unread = {"if": ("tau", "decay_input"), "plif": ("tau",), "lif": ()}[neuron.family]
    return tuple(flag for flag in options.CONSTANTS if flag not in (*unread, "surrogate"))


def _from_state_dict(path: Path, task: config.Task, data: Data, name: SoulName | None) -> Model:
    state = load_state_dict(path)
    _, graph = config.create_network(task, data)
    require_neurons(path, name, [node.neuron.family for node in graph.populations])
    try:
        check_state(graph, state, str(path))
    except errors.FileFormatError as error:
        raise errors.FileFormatError(
            f"{error}. It was read as {task.model} for {task.data} (input {data.input_shape}), "
            f"hidden {task.sizes.hidden}; give --model, --hidden and --dataset_name of its training"
        ) from error
    arrays = {key: np.array(array, order="C") for key, array in state.items()}
    info = ModelInfo("dense", data.normalization, data.classes, input_kind=data.input_kind)
    return Model(graph, arrays, info=info)


def _task_of_file(
    path: Path, model: Model, task: config.Task, explicit: Collection[str]
) -> config.Task:
    made, neuron = model.info.provenance, model.graph.populations[0].neuron
    sizes = {
        field: made.get(flag, getattr(task.sizes, field))
        for flag, field in config.SIZE_FLAGS.items()
    }
    pairs: list[tuple[str, Any, Any]] = [("model", task.model, made.get("model", task.model))]
    for flags, asked, held in (
        (config.SIZE_FLAGS, vars(task.sizes), sizes),
        (NEURON_FLAGS, vars(task.neuron), vars(neuron)),
    ):
        pairs += [(flag, asked[field], held[field]) for flag, field in flags.items()]
    for flag, given, found in pairs:
        if flag in explicit and given != found:
            raise errors.UsageError(
                f"--{flag} {given} given, but {path} holds a network with {flag} {found}; "
                "leave the flag out"
            )
    return replace(
        task,
        model=str(made.get("model", task.model)),
        sizes=replace(task.sizes, **sizes),
        neuron=neuron,
        data=task.data if "dataset_name" in explicit else _recorded_data(path, model),
        time_steps=task.time_steps if "time_step" in explicit else model.graph.time_steps,
    )


def _recorded_data(path: Path, model: Model) -> str:
    """The data set that the model file records. Raises UsageError if it is none of ours."""
    found = model.info.provenance.get("data")
    if not isinstance(found, str) or found not in NAMES:
        told = "no data set" if found is None else f"the data {found!r}, which are none of ours"
        raise errors.UsageError(f"{path} records {told}; give --dataset_name: {', '.join(NAMES)}")
    return found
