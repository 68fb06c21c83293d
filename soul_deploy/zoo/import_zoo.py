"""Weights of a network of the zoo, Soul's or anybody's, as a Model: for any data set."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from soul_deploy.base import errors, file_kinds, pixel_rule
from soul_deploy.frontend.factory import is_dotted
from soul_deploy.ir import SOUL_NEURONS, MergeFunction, NeuronSpec, Shape
from soul_deploy.model.file import load_weights
from soul_deploy.model.model import Model, ModelInfo, Normalization
from soul_deploy.runtime.io.inspect import is_model_file
from soul_deploy.zoo import read_weights, registry, resnet

SIZE_FLAGS = {
    flag: flag.removesuffix("_function")
    for flag in (
        *("hidden", "width", "connect_function", "groups", "width_per_group", "stem", "mlp_ratio"),
    )
}
"""Flag -> field of NetworkOptions; a model file's provenance holds them by flag."""
ARGUMENTS = {"model": "name", "neuron": "neuron", "time_steps": "time_steps"}
PIXELS = "no normalisation is given: the network is taken to be trained on pixel / 255"


def import_zoo(
    path: Path | str, name: str, *, input_shape: Shape, classes: int | Sequence[str],
    time_steps: int | None = None, neuron: NeuronSpec | Mapping[str, Any] | None = None,
    mean: Sequence[float] = (), std: Sequence[float] = (),
    input_kind: pixel_rule.InputKind = "images", hidden: int | None = None, width: int = 256,
    connect: MergeFunction = "add", groups: int = 1, width_per_group: int = 64,
    stem: resnet.Stem = "soul", mlp_ratio: float = 1.0,
) -> Model:  # fmt: skip
    """A Model of a network of the zoo with the weights in a file, of any data set.

    path         .pt, .pth, .ckpt or .safetensors: weights, or a checkpoint with weights in it
    input_shape  (C, H, W) of one image; classes: how many class scores, or their names
    time_steps   T; None: what the file says, or 4
    neuron       the neurons, or those fields of NeuronSpec that are known; the others are what the
                 file says, or Soul's of that family
    mean, std    of pixels in [0, 1], by channel, as in training; input_kind: "images", "counts",
                 "spikes" or "values"
    hidden, width, connect, groups, width_per_group, stem, mlp_ratio   as `create` has them

    What the file's name and the arguments saved in it say holds where nothing is given. What was
    taken and assumed are sentences in the model's `info.provenance["assumptions"]`. Raises
    UnknownNameError, UsageError where the file says something else than what is given, or
    FileFormatError that says why the file cannot be loaded or does not fit.
    """
    known = asdict(neuron) if isinstance(neuron, NeuronSpec) else dict(neuron or {})
    names = () if isinstance(classes, int) else tuple(classes)
    options = registry.NetworkOptions(
        tuple(input_shape),
        classes if isinstance(classes, int) else len(names),
        neuron if isinstance(neuron, NeuronSpec) else partial_neuron(known),
        4 if time_steps is None else time_steps,
        *(hidden, width, connect, groups, width_per_group, stem),
        mlp_ratio=mlp_ratio,
    )
    given = {"model", *known, *(["neuron"] if "family" in known else [])}
    given |= set() if time_steps is None else {"time_steps"}
    flags = {flag: flag for flag in read_weights.FLAGS} | ARGUMENTS
    reading = read_file(path, name, options.neuron, options.time_steps, given, flags=flags)
    norm = normalization(mean, std)
    return build(reading, options, ModelInfo("dense", norm, names, input_kind=input_kind))


def partial_neuron(known: Mapping[str, Any]) -> NeuronSpec:
    """Soul's neuron of the family, LIF's without one, with the other fields that are known.

    Raises UnknownNameError, UsageError.
    """
    family = str(known.get("family", "lif")).lower()
    neurons = {str(name): spec for name, spec in SOUL_NEURONS.items()}
    if family not in neurons:
        raise errors.UnknownNameError("neuron", family, neurons)
    fields = asdict(neurons[family])
    unknown = [name for name in known if name not in fields]
    if unknown:
        raise errors.UnknownNameError("field of a neuron", unknown[0], fields)
    return NeuronSpec(**fields | dict(known) | {"family": family})


def normalization(mean: Sequence[float], std: Sequence[float]) -> Normalization | None:
    """None without numbers. Raises UsageError unless there are as many of both, std above 0."""
    numbers = [*map(float, mean), *map(float, std)]
    finite = all(map(math.isfinite, numbers)) and all(value > 0 for value in std)
    if len(mean) != len(std) or not finite:
        raise errors.UsageError(
            f"mean {tuple(mean)} and std {tuple(std)}: give as many of both, finite, std above 0"
        )
    return Normalization(tuple(map(float, mean)), tuple(map(float, std))) if numbers else None


def read_file(
    path: Path | str,
    name: str,
    neuron: NeuronSpec,
    time_steps: int,
    given: set[str],
    *,
    data: str | None = None,
    flags: Mapping[str, str] = read_weights.FLAGS,
) -> read_weights.Reading:
    """The weights, and what they are read as; the rest as `read_weights.Choice` has it.

    Raises as `import_zoo`.
    """
    if is_dotted(name):
        raise errors.UsageError(
            f"{name!r} is a network of your own; `soul-deploy import torch {name}` or from_torch "
            "makes a model of it"
        )
    if is_model_file(path):
        needed = file_kinds.KINDS["weights"].what
        raise file_kinds.wrong_kind(Path(path), "model", needed)
    known = registry.canonical_name(name)
    choice = read_weights.Choice(known, neuron, time_steps, data, given)
    return read_weights.read_as(load_weights(path), replace(choice, flags=flags))


def build(
    reading: read_weights.Reading, options: registry.NetworkOptions, info: ModelInfo
) -> Model:
    """The network with its weights. Raises UsageError, FileFormatError, UnsupportedGraphError."""
    choice, norm, shape = reading.choice, info.normalization, options.input_shape
    if len(shape) != 3 or min(*shape, options.classes, choice.time_steps) < 1:
        raise errors.UsageError(
            f"input_shape {shape}, classes {options.classes} and T {choice.time_steps}: give "
            "channels, height and width, each at least 1, and at least one class and step"
        )
    hidden = registry.hidden_of(choice.model, options.hidden)
    options = replace(options, neuron=choice.neuron, time_steps=choice.time_steps, hidden=hidden)
    if norm is not None and info.input_kind != "images":
        raise errors.UsageError(f"mean and std belong to images; the input is {info.input_kind}")
    if norm is not None and len(norm.mean) not in (1, shape[0]):
        raise errors.UsageError(
            f"mean of {len(norm.mean)} channels given, but the input has {shape[0]}; give one "
            "number, or one a channel"
        )
    if norm is None and info.input_kind == "images":
        reading = replace(reading, assumptions=(*reading.assumptions, PIXELS))
    _, graph = registry.create(choice.model, options)
    made = {"model": choice.model, "command": "import zoo"}
    made |= {flag: getattr(options, field) for flag, field in SIZE_FLAGS.items()}
    read_as = (
        f"{choice.model} with {choice.neuron.family} neurons for an input of {shape} and "
        f"{options.classes} classes, hidden {options.hidden}; give what it was trained with"
    )
    info = replace(info, provenance={**made, **info.provenance})
    return reading.model(graph, info, read_as)
