"""Where pruning starts: a model file, somebody's state dict, or a fresh network."""

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from click.core import ParameterSource

from soul_deploy.data import Data
from soul_deploy.modelfile import (
    Model,
    ModelInfo,
    check_state,
    load_model,
    load_state_dict,
)
from soul_deploy.module import GraphModule
from soul_deploy.preparing import SIZE_FLAGS, Task, create_network
from soul_deploy.runtime.errors import FileFormatError, UsageError
from soul_deploy.runtime.files import METADATA_KEY, OpenFile, read_tensors

NEURON_FLAGS = {
    "neuron_type": "family",
    "tau": "tau",
    "v_threshold": "v_threshold",
    "v_reset": "v_reset",
    "decay_input": "decay_input",
    "fire": "fire",
    "surrogate": "surrogate",
}


def explicit_flags(context: click.Context) -> set[str]:
    """Names of the flags that the user gave."""
    return {
        name
        for name in context.params
        if context.get_parameter_source(name) is not ParameterSource.DEFAULT
    }


def load_start(path: Path, task: Task, data: Data, explicit: Collection[str]) -> tuple[Model, Task]:
    """The network to prune and the task that it belongs to.

    A model file brings its own graph; flags in `explicit` (given by the user) that contradict it
    are refused. A bare state dict needs the task's network. Raises UsageError or FileFormatError.
    """
    with OpenFile(path) as source:
        own = path.suffix == ".safetensors" and METADATA_KEY in read_tensors(source).metadata
        model = load_model(source) if own else _from_state_dict(source, task, data)
    if own:
        task = _task_of_file(path, model, task, explicit)
        if "time_step" in explicit:
            model = model.with_time_steps(task.time_steps)
    check_data(path, model, data)
    return model, task


def _from_state_dict(file: OpenFile, task: Task, data: Data) -> Model:
    state = load_state_dict(file)
    _, graph = create_network(task, data)
    try:
        check_state(graph, state, str(file))
    except FileFormatError as error:
        raise FileFormatError(
            f"{error}. It was read as {task.model} for {task.data} (input {data.input_shape}), "
            f"hidden {task.sizes.hidden}; give --model, --hidden and --dataset_name of its training"
        ) from error
    arrays = {name: np.array(array, order="C") for name, array in state.items()}
    return Model(graph, arrays, info=ModelInfo("dense", data.normalization, data.classes))


def _task_of_file(path: Path, model: Model, task: Task, explicit: Collection[str]) -> Task:
    made = model.info.provenance
    neuron = model.graph.populations[0].neuron
    pairs: list[tuple[str, Any, Any]] = [
        ("model", task.model, made.get("model", task.model)),
    ]
    pairs += [
        (flag, getattr(task.sizes, field), made.get(flag, getattr(task.sizes, field)))
        for flag, field in SIZE_FLAGS.items()
    ]
    found_sizes = {SIZE_FLAGS[flag]: found for flag, _, found in pairs if flag in SIZE_FLAGS}
    pairs += [
        (flag, getattr(task.neuron, field), getattr(neuron, field))
        for flag, field in NEURON_FLAGS.items()
    ]
    for flag, given, found in pairs:
        if flag in explicit and given != found:
            raise UsageError(
                f"--{flag} {given} given, but {path} holds a network with {flag} {found}; "
                "leave the flag out"
            )
    return replace(
        task,
        model=str(made.get("model", task.model)),
        sizes=replace(task.sizes, **found_sizes),
        neuron=neuron,
        time_steps=task.time_steps if "time_step" in explicit else model.graph.time_steps,
    )


def check_data(path: Path, model: Model, data: Data) -> None:
    """Raise UsageError unless the network fits the data set's images, classes and scaling."""
    norm = model.info.normalization
    for what, needs, has in (
        ("images of", model.input_shape, data.input_shape),
        ("classes:", model.graph.readout.classes, len(data.classes)),
        ("normalisation", norm or data.normalization, data.normalization),
    ):
        if needs != has:
            raise UsageError(
                f"{path} needs {what} {needs}, but data set {data.name!r} has {has}; "
                "give the data set that it was trained on with --dataset_name"
            )


def module_of(model: Model, device: torch.device) -> GraphModule:
    """The model as a module on `device`, masks included."""
    module = model.module().to(device)
    for mask in module.channel_masks.values():
        mask.keep = mask.keep.to(device)
    return module
