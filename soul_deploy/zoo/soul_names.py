"""What a file of weights says by its name, and whether that is what was asked for.

Soul's scripts write `best_{model}_{neuron}_{data}_T{T}_{seed}.pt`, some without T, and
`pruned_…`, `up_search_…`, `up_finetune_…` (run_efficiency.py, structured_prune.py,
unstructured_prune.py). Nothing else in such a file says which neuron it is of: CLIF, ILIF, INTLIF,
TLIF and others have the tensors of LIF.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from soul_deploy.base.errors import UsageError
from soul_deploy.data.datasets import NAMES
from soul_deploy.ir import SOUL_NEURONS
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


@dataclass(frozen=True)
class Asked:
    """A value that a command would use. given: by the user, not by default."""

    flag: str
    value: Any
    given: bool


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


VALID: Mapping[str, Collection[Any]] = {"model": NETWORKS, "neuron": SOUL_NEURONS, "data": NAMES}
WORDS = {"model": "model", "neuron": "neuron", "data": "data set", "time_steps": "T"}


def settle(path: Path, name: SoulName, asked: Mapping[str, Asked]) -> dict[str, Any]:
    """What the name says and the user did not: field of SoulName -> value.

    Raises UsageError, naming both, where the name says something else than what was asked for, or
    something that cannot be loaded. `asked` holds the fields that are to agree.
    """
    taken: dict[str, Any] = {}
    wrong: list[str] = []
    for field, wish in asked.items():
        said = getattr(name, field)
        if said is None or said == wish.value:
            continue
        known = said in VALID.get(field, (said,))
        if known and not wish.given:
            taken[field] = said
        else:
            wrong.append(_disagreement(field, said, wish, known))
    if wrong:
        raise UsageError(
            f"{path}: {'; '.join(wrong)}. If the file's name is wrong, rename the file"
        )
    return taken


def _disagreement(field: str, said: Any, wish: Asked, known: bool) -> str:
    word, default = WORDS[field], "" if wish.given else ", the default"
    advice = f"give {wish.flag} {said}"
    if not known:
        advice = f"{word} {said} cannot be loaded, valid: {', '.join(VALID[field])}"
    return (
        f"its name says {word} {said}, but {word} {wish.value} is asked for "
        f"({wish.flag}{default}); {advice}"
    )


def require_neurons(path: Path, name: SoulName | None, families: Sequence[str]) -> None:
    """Raise UsageError unless a network of `families` has the neurons that the name says."""
    if name is not None and set(families) != {name.neuron}:
        found = ", ".join(sorted(set(families)))
        raise UsageError(
            f"{path}: its name says neuron {name.neuron}, but the network's neurons are {found}; "
            "give the network that the weights are of. If the file's name is wrong, rename the file"
        )
