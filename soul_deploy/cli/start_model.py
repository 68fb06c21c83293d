"""Where pruning starts: a model file, somebody's state dict, or a fresh network; what it writes."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click

from soul_deploy import distributed
from soul_deploy.base import errors, files
from soul_deploy.cli import common_options as common
from soul_deploy.cli import config, options, parsing
from soul_deploy.data.datasets import NAMES, Data
from soul_deploy.data.given import check_data
from soul_deploy.model.file import load, load_weights, save
from soul_deploy.model.model import Model, ModelInfo
from soul_deploy.prune.result import PruneResult
from soul_deploy.runtime.io.inspect import is_model_file
from soul_deploy.training.messages import note, warn
from soul_deploy.zoo import read_weights
from soul_deploy.zoo.import_zoo import SIZE_FLAGS

NEURON_FLAGS = {"neuron_type": "family", **{name: name for name in options.CONSTANTS}}


def model_path_option(what: str) -> common.Decorator:
    """--model_path of the commands that prune."""
    text = (
        f"{what}, or weights (.pt, .pth, .ckpt, .safetensors). What their file's name, as Soul "
        "gives names, and arguments saved in it say of network, neuron, data set and T holds where "
        "no flag is given; flags that say something else are refused."
    )
    flags = ("--model_path", "-model_path")
    return common.option(*flags, type=common.FILE, help=text, heading="Files")


@dataclass(frozen=True)
class Start:
    """Where pruning starts, before the data set is read.

    task     the choice of network and data set that the file belongs to
    model    the network of a model file; None for bare weights, which need the data set's sizes
    reading  bare weights, and what they are read as
    """

    path: Path
    task: config.Task
    model: Model | None = None
    reading: read_weights.Reading | None = None

    def network(self, data: Data) -> Model:
        """The network to prune. Raises UsageError or FileFormatError if it does not fit."""
        model = self.model
        if model is None:
            assert self.reading is not None
            model = _from_weights(self.reading, self.task, data)
            say_assumed(assumed(model)[len(self.reading.assumptions) :])
        check_data(self.path, model, data)
        return model


def open_start(path: Path, task: config.Task, explicit: Collection[str]) -> Start:
    """The file to start from, and the task that it belongs to; what was assumed is said.

    A model file brings its own graph; flags in `explicit` (given by the user) that contradict it
    are refused. Bare weights need the task's network; what the file says of model, neuron, data
    set and T, by its name or by arguments saved in it, holds where no flag was given, and flags
    that contradict it are refused. Raises UsageError or FileFormatError.
    """
    with files.OpenFile(path) as source:
        if is_model_file(source):
            model = load(source)
            task = _task_of_file(path, model, task, explicit)
            if "time_step" in explicit:
                model = model.with_time_steps(task.time_steps)
            return Start(path, task, model)
        weights = load_weights(source)
    reading = read_weights.read_as(weights, choice_of(task, explicit))
    say_assumed(reading.assumptions, reading.warning)
    found = reading.choice
    task = replace(task, model=found.model, neuron=found.neuron, time_steps=found.time_steps)
    return Start(path, replace(task, data=found.data or task.data), None, reading)


def started(
    path: Path | None, task: config.Task, context: click.Context
) -> tuple[Start | None, config.Task]:
    """The file to start from, if there is one, and the task. Raises as `open_start`."""
    if path is None:
        return None, task
    if "initialisation" in parsing.explicit_flags(context):
        raise errors.UsageError(
            f"--initialisation given, but the weights come from {path}; leave the flag out"
        )
    start = open_start(path, task, parsing.explicit_flags(context))
    return start, start.task


def data_for(given: options.DataOptions, task: config.Task, start: Start | None) -> Data:
    """The task's data set, which the file to start from may have named, as its network takes it."""
    chosen = replace(given, dataset_name=task.data)
    return config.load_task_data(chosen, task.time_steps, None if start is None else start.model)


def network(
    start: Start | None, task: config.Task, data: Data, told: Mapping[str, Any] | None = None
) -> Model:
    """The network to prune, whose provenance says where it began, what was assumed, and `told`."""
    model = config.new_model(task, data) if start is None else start.network(data)
    made = config.facts(task) | dict(told or {}) | kept(model) | data.record()
    return replace(model, info=replace(model.info, provenance=made))


def save_masked(path: Path, masked: Model) -> None:
    """Write it in the main process."""
    if distributed.current().is_main:
        save(masked, path)


def save_compact(result: PruneResult, path: Path, masked: Path) -> None:
    """Write the compact network, if there is one; a note if it is as large as that at `masked`."""
    if result.compact is not None and result.plan is not None:
        save(result.compact, path)
        if not result.plan.removes:
            note(result.plan.whole_note(path, masked))


def assumed(model: Model) -> list[str]:
    """What was assumed on the way to a model, as sentences."""
    told = model.info.provenance.get("assumptions")
    return told if isinstance(told, list) else []


def kept(model: Model) -> dict[str, Any]:
    """For the provenance of what is made of the model: how its weights were drawn, if that is
    known, what was assumed and what was not tested, if anything was.
    """
    made = model.info.provenance
    drawn = {name: made[name] for name in ("initialisation",) if name in made}
    told = {name: made.get(name) for name in ("assumptions", "untested")}
    lists = {name: list(said) for name, said in told.items() if isinstance(said, list) and said}
    return drawn | lists


def say_assumed(sentences: Sequence[str], warning: str | None = None) -> None:
    """Say what was assumed, and what of it is a warning."""
    for sentence in sentences:
        (warn if sentence == warning else note)(sentence)


def choice_of(task: config.Task, explicit: Collection[str]) -> read_weights.Choice:
    flags = read_weights.FLAGS.items()
    given = {name for name, flag in flags if flag.removeprefix("--") in explicit}
    return read_weights.Choice(task.model, task.neuron, task.time_steps, task.data, given)


def _from_weights(reading: read_weights.Reading, task: config.Task, data: Data) -> Model:
    _, graph, told = config.create_network(task, data)
    info = ModelInfo(
        *("dense", data.normalization, data.classes, told | data.record()),
        input_kind=data.input_kind,
    )
    read_as = (
        f"{task.model} for {task.data} (input {data.input_shape}), hidden "
        f"{task.resolved['hidden']}; give --model, --hidden and --dataset_name of its training"
    )
    return reading.model(graph, info, read_as)


def _task_of_file(
    path: Path, model: Model, task: config.Task, explicit: Collection[str]
) -> config.Task:
    made, neuron = model.info.provenance, model.graph.populations[0].neuron
    sizes = {field: made.get(flag, task.sizes[field]) for flag, field in SIZE_FLAGS.items()}
    pairs: list[tuple[str, Any, Any]] = [("model", task.model, made.get("model", task.model))]
    for flags, asked, held in (
        (SIZE_FLAGS, task.resolved, sizes),
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
        sizes=sizes,
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
