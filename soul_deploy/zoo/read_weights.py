"""Somebody's weights as a Model: what their file says, what was asked for, what is assumed."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from soul_deploy.base import errors
from soul_deploy.frontend.factory import is_dotted
from soul_deploy.ir import SOUL_NEURONS, NeuronSpec, SpikingGraph
from soul_deploy.ir.neurons import constant_text
from soul_deploy.model.file import check_state, expected_shapes
from soul_deploy.model.model import Model, ModelInfo
from soul_deploy.model.state_dict import Weights
from soul_deploy.zoo.soul_names import (
    ARGUMENTS,
    CONSTANTS,
    NAME,
    WORDS,
    Asked,
    SoulName,
    read_arguments,
    read_name,
    require_neurons,
    settle,
    unsaved_masks,
)

SETTINGS = "settings"
DECIDING = (*CONSTANTS, "fire")
"""The constants of NeuronSpec that decide spikes."""
FLAGS = {
    "model": "--model",
    "neuron": "--neuron_type",
    "data": "--dataset_name",
    "time_steps": "--time_step",
    **{name: f"--{name}" for name in (*DECIDING, "surrogate")},
}


@dataclass(frozen=True)
class Choice:
    """What weights are to be read as.

    model  a network of the zoo, or `package.module:factory`, which brings its own neurons
    data   a data set's name; None: the weights may be of any
    given  what the user gave, by the keys of FLAGS; the rest are defaults
    said   what the file says, by the same keys -> a key of soul_names.CURES
    flags  how the user gives them, for messages
    """

    model: str
    neuron: NeuronSpec
    time_steps: int
    data: str | None = None
    given: Collection[str] = ()
    said: Mapping[str, str] = field(default_factory=dict)
    flags: Mapping[str, str] = field(default_factory=lambda: FLAGS)

    def asked(self, names: Collection[str]) -> dict[str, Asked]:
        """What a file may say something else about, of `names`."""
        values: dict[str, Any] = {"model": self.model, "neuron": self.neuron.family}
        values |= {"data": self.data, "time_steps": self.time_steps}
        values |= {name: getattr(self.neuron, name) for name in DECIDING}
        own = ("model", "neuron", *DECIDING) if is_dotted(self.model) else ()
        unsaid = ("data",) if self.data is None else ()
        settled = dict.fromkeys(self.given, "") | {
            name: source for name, source in self.said.items() if name not in self.given
        }
        return {
            name: Asked(self.flags[name], values[name], name in settled, settled.get(name, ""))
            for name in names
            if name not in (*own, *unsaid)
        }

    def taking(self, taken: Mapping[str, Any]) -> "Choice":
        """With what a file says; the constants of another neuron are Soul's, but for given ones."""
        spec = self.neuron
        if "neuron" in taken:
            given = {n: getattr(spec, n) for n in (*DECIDING, "surrogate") if n in self.given}
            if "surrogate" in given:
                given["surrogate_alpha"] = spec.surrogate_alpha
            if SETTINGS in self.given:
                given[SETTINGS] = spec.settings
            spec = replace(SOUL_NEURONS[taken["neuron"]], **given)
        spec = replace(spec, **{name: taken[name] for name in CONSTANTS if name in taken})
        others = {name: taken[name] for name in ("model", "data", "time_steps") if name in taken}
        return replace(self, neuron=spec, **others)


@dataclass(frozen=True)
class Reading:
    """Weights, and what they are read as.

    name         what the file's name says
    assumptions  sentences: what was taken from the file, and what nobody said
    warning      the one among them that says that something is missing, if there is one
    """

    weights: Weights
    choice: Choice
    name: SoulName | None
    assumptions: tuple[str, ...]
    warning: str | None = None

    def model(self, graph: SpikingGraph, info: ModelInfo, read_as: str) -> Model:
        """The weights as those of `graph`; `info` gets the assumptions.

        read_as: for the error where they do not fit, as what network they were read and what to
        give. Raises UsageError for other neurons than the name says, FileFormatError.
        """
        path, names = self.weights.path, expected_shapes(graph)
        fitted = self.weights.fitted(names)
        require_neurons(path, self.name, [node.neuron.family for node in graph.populations])
        try:
            check_state(graph, fitted.state, str(path))
        except errors.FileFormatError as error:
            masked = any(name.endswith("_orig") for name in fitted.state)
            more = f". {PRUNED}" if masked else f". It was read as {read_as}"
            raise errors.FileFormatError(f"{error}{more}") from error
        arrays = {name: np.array(fitted.state[name], order="C") for name in names}
        told = [*self.assumptions, *fitted.told[len(self.weights.told) :]]
        made = {**info.provenance, "assumptions": told} if told else info.provenance
        return Model(graph, arrays, info=replace(info, provenance=made))


FROM = {NAME: "its name", ARGUMENTS: "the arguments saved in it"}
PRUNED = (
    "Its weights are stored beside masks of torch.nn.utils.prune; make those permanent with "
    "torch.nn.utils.prune.remove, and save it again"
)


def read_as(weights: Weights, choice: Choice) -> Reading:
    """What the file of weights says holds where nothing is given; the rest is assumed and said.

    Raises UsageError, naming both, where the file says something else than what is given, and
    FileFormatError for weights of a network of the zoo's names that has another shape.
    """
    _require_maps(weights, choice)
    taken = take_said(weights, choice)
    told = [*taken.assumptions, *_assumed(weights, taken.choice)]
    masks = unsaved_masks(weights.path, weights.left)
    return replace(taken, assumptions=(*told, *filter(None, [masks])), warning=masks)


def _require_maps(weights: Weights, choice: Choice) -> None:
    """Soul's networks for motion have the names of those for images, and none of their shapes."""
    flat = [name for name, array in weights.state.items() if np.ndim(array) == 3]
    if flat and not is_dotted(choice.model):
        raise errors.FileFormatError(
            f"{weights.path}: {flat[0]} is of convolutions along one axis, as Soul's networks for "
            "motion have them; of these, mlp and lenet are known here (input_shape 1,C,W)"
        )


def take_said(weights: Weights, choice: Choice) -> Reading:
    """As `read_as`, without what nobody says."""
    path, name, told = weights.path, read_name(weights.path), list(weights.told)
    choice = _settled(path, choice, NAME, {} if name is None else name.said(), WORDS, told)
    arguments = read_arguments(weights.facts)
    for names in (WORDS, DECIDING):  # the neuron first, which decides what its constants are
        choice = _settled(path, choice, ARGUMENTS, arguments, names, told)
    return Reading(weights, choice, name, tuple(told))


def _settled(
    path: Path,
    choice: Choice,
    source: str,
    said: Mapping[str, Any],
    names: Collection[str],
    told: list[str],
) -> Choice:
    """`choice` with what `source` says of `names`; `told` gets a sentence of what was taken,
    of arguments also where it is the default.
    """
    wanted = [name for name in names if name in WORDS or name in _read_by(choice.neuron)]
    asked = choice.asked(wanted)
    taken = settle(path, said, asked, source)
    named = {n: said[n] for n, wish in asked.items() if n in said and not wish.given}
    named = named if source == ARGUMENTS else taken  # a name is seen as it is
    if named:
        items = [f"{WORDS.get(n, n)} {constant_text(value)}" for n, value in named.items()]
        told.append(f"{path.name}: taken from {FROM[source]}: {', '.join(items)}")
    says = {name: source for name in wanted if name in said}
    return replace(choice.taking(taken), said={**says, **choice.said})


def _assumed(weights: Weights, choice: Choice) -> list[str]:
    """A sentence about what neither the file nor anybody says; none if that is nothing."""
    own, spec = is_dotted(choice.model), choice.neuron
    values: dict[str, Any] = {} if own else {"neuron": spec.family}
    values |= {} if own else {name: getattr(spec, name) for name in _read_by(spec)}
    values |= {} if own or SETTINGS in choice.given else dict(spec.settings)
    values |= {"time_steps": choice.time_steps}
    unsaid = [
        f"{WORDS.get(name, name)} {constant_text(value)}"
        for name, value in values.items()
        if name not in choice.given and name not in choice.said
    ]
    if not unsaid:
        return []
    holds = "holds weights only" if not weights.left else "says no more"
    whose = "" if own else f" (Soul's {spec.family})"
    return [f"{weights.path.name} {holds}; assumed without being told{whose}: {', '.join(unsaid)}"]


def _read_by(neuron: NeuronSpec) -> tuple[str, ...]:
    """The constants that decide a neuron's spikes, in the order of DECIDING."""
    return tuple(name for name in DECIDING if name in neuron.reads)
