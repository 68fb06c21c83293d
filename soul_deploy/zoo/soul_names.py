"""What a file of weights says by its name, and by the arguments saved in it; and whether that is
what was asked for.

Soul's scripts write `best_{model}_{neuron}_{data}_T{T}_{seed}.pt`, some without T, and
`pruned_…`, `up_search_…`, `up_finetune_…` (run_efficiency.py, structured_prune.py,
unstructured_prune.py). Nothing else in such a file says which neuron it is of: CLIF, ILIF, INTLIF,
TLIF and others have the tensors of LIF. Other people save their arguments beside the weights.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from soul_deploy.base.errors import UsageError
from soul_deploy.data.datasets import ALIASES, NAMES
from soul_deploy.ir import SOUL_NEURONS
from soul_deploy.ir.neurons import LARGEST, constant_text
from soul_deploy.runtime.format.validate import MAX_STEPS
from soul_deploy.zoo.registry import NETWORKS

NAMED_NEURONS = frozenset(
    (
        *("clif", "glif", "ielif", "ilif", "intlif", "izhikevich"),
        *("lif", "ltmd", "plif", "psn", "rplif", "stbif", "tlif"),
    )
)
"""The neurons of Soul (soul/neuron/__init__.py)."""
SHORT_WORDS = frozenset(("if", "ann"))
"""Neurons whose names are words of their own: believed behind a model's name only."""
KINDS = frozenset(("best", "pruned", "up"))


@dataclass(frozen=True)
class SoulName:
    """What a file's name says; None: nothing about it."""

    model: str | None
    neuron: str
    data: str | None
    time_steps: int | None

    def said(self) -> dict[str, Any]:
        """What it says, by field."""
        return {field: value for field, value in vars(self).items() if value is not None}


@dataclass(frozen=True)
class Asked:
    """A value that a command would use.

    given: by the user, or said by `source`, another part of the file; not by default.
    """

    flag: str
    value: Any
    given: bool
    source: str = ""


def read_name(path: Path) -> SoulName | None:
    """What the name says about model, neuron, data set and T, or None if it names no neuron.

    Believed is a neuron's name between others (`…_clif_…`), what stands before and behind it if it
    is a network and a data set that we know, and, in a name as Soul writes it (from `best_` to the
    seed), whatever stands in their places.
    """
    words = re.split(r"[^a-z0-9]+", path.stem.lower())
    soul = words[0] in KINDS and words[-1].isdecimal()
    place = _place_of_neuron(words, soul)
    if place is None:
        return None
    model = words[place - 1] if place else ""
    data, *behind = [*words[place + 1 :], ""]
    data = ALIASES.get(data, data)
    steps = re.fullmatch(r"t(\d{1,6})", behind[0] if behind else "")
    return SoulName(
        model if model in NETWORKS or (soul and place > 1) else None,
        words[place],
        data if data in NAMES or (soul and len(behind) > 1) else None,
        int(steps[1]) if steps else None,
    )


def _place_of_neuron(words: Sequence[str], soul: bool) -> int | None:
    def named(at: int) -> bool:
        word, behind_model = words[at], at > 0 and words[at - 1] in NETWORKS
        return word in NAMED_NEURONS or (behind_model and (soul or word in SHORT_WORDS))

    places = [at for at in range(len(words)) if named(at)]
    return places[0] if len({words[at] for at in places}) == 1 else None


SPELLINGS: Mapping[str, tuple[str, ...]] = {
    "model": ("model", "arch", "model_name"),
    "neuron": ("neuron_type", "neuron", "neuron_model"),
    "data": ("dataset_name", "dataset", "data_set"),
    "time_steps": ("time_step", "time_steps", "timesteps", "num_steps", "T"),
    "tau": ("tau",),
    "v_threshold": ("v_threshold", "v_th", "V_th", "threshold", "thresh"),
    "v_reset": ("v_reset",),
    "decay_input": ("decay_input",),
}
"""How people call what decides a network's spikes; the constants are NeuronSpec's."""
CONSTANTS = tuple(SPELLINGS)[4:]


def read_arguments(facts: Mapping[str, Any]) -> dict[str, Any]:
    """What the plain values beside weights say, by the keys of SPELLINGS.

    Believed are whole numbers of steps, numbers, and names of networks, neurons and data sets that
    we know, however they are spelled; others may call other things so.
    """
    found: dict[str, Any] = {}
    for field, spellings in SPELLINGS.items():
        values = [_believed(field, facts[name]) for name in spellings if name in facts]
        if values and values[0] is not UNKNOWN:
            found[field] = values[0]
    return found


UNKNOWN: Any = object()
KNOWN: Mapping[str, Collection[str]] = {
    "model": NETWORKS,
    "neuron": NAMED_NEURONS | {"if"},
    "data": NAMES,
}


def _believed(field: str, value: Any) -> Any:
    """The value in our spelling; UNKNOWN if it may mean anything."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    number = number and abs(value) <= LARGEST
    if field in KNOWN:
        word = re.sub(r"[^a-z0-9]", "", str(value).lower())
        word = word.removesuffix("node").removesuffix("neuron") if field == "neuron" else word
        word = "plif" if word == "parametriclif" else word
        return word if word in KNOWN[field] else UNKNOWN
    if field == "time_steps":
        return value if number and isinstance(value, int) and 1 <= value <= MAX_STEPS else UNKNOWN
    if field == "decay_input":
        return value if isinstance(value, bool) else UNKNOWN
    if field == "v_reset" and value is None:
        return None
    return float(value) if number else UNKNOWN


VALID: Mapping[str, Collection[Any]] = {"model": NETWORKS, "neuron": SOUL_NEURONS, "data": NAMES}
WORDS = {"model": "model", "neuron": "neuron", "data": "data set", "time_steps": "T"}
NAME = "its name says"
ARGUMENTS = "the arguments saved in it say"
CURES = {
    NAME: "If the file's name is wrong, rename the file",
    ARGUMENTS: "If they are not those of this training, save the weights alone",
}


def settle(
    path: Path, said: Mapping[str, Any], asked: Mapping[str, Asked], source: str = NAME
) -> dict[str, Any]:
    """What the file says and the user did not: field -> value.

    source: a key of CURES. Raises UsageError, naming both, where the file says something else than
    what was asked for, or something that cannot be loaded. `asked` holds the fields that are to
    agree.
    """
    taken: dict[str, Any] = {}
    wrong: list[str] = []
    for field, wish in asked.items():
        if field not in said or said[field] == wish.value:
            continue
        known = said[field] in VALID.get(field, (said[field],))
        if known and not wish.given:
            taken[field] = said[field]
        else:
            wrong.append(f"{source} {_disagreement(field, said[field], wish, known)}")
    if wrong:
        raise UsageError(f"{path}: {'; '.join(wrong)}. {CURES[source]}")
    return taken


def _disagreement(field: str, said: Any, wish: Asked, known: bool) -> str:
    word, default = WORDS.get(field, field), "" if wish.given else ", the default"
    told, value = constant_text(said), constant_text(wish.value)
    if wish.source:
        return f"{word} {told}, but {wish.source} {word} {value}"
    advice = f"give {wish.flag} {told}"
    if not known:
        advice = f"{word} {told} cannot be loaded, valid: {', '.join(VALID[field])}"
    return f"{word} {told}, but {word} {value} is asked for ({wish.flag}{default}); {advice}"


def unsaved_masks(path: Path, left: Collection[str]) -> str | None:
    """A sentence if Soul's unstructured pruning wrote the file: its masks are in none.

    left: what stands beside the weights in the file.
    """
    words = path.stem.lower().split("_")[:2]
    if words not in (["up", "search"], ["up", "finetune"]) and "optimizer_prune" not in left:
        return None
    return (
        f"{path.name}: Soul's unstructured pruning saves no masks with the weights; the network "
        "is loaded as a dense one"
    )


def require_neurons(path: Path, name: SoulName | None, families: Sequence[str]) -> None:
    """Raise UsageError unless a network of `families` has the neurons that the name says."""
    if name is not None and set(families) != {name.neuron}:
        found = ", ".join(sorted(set(families)))
        raise UsageError(
            f"{path}: its name says neuron {name.neuron}, but the network's neurons are {found}; "
            "give the network that the weights are of. If the file's name is wrong, rename the file"
        )
