"""The state of a run as plain data: nested dictionaries of tensors and JSON values.

What takes part in a run has `state`, which describes it, and `restore`, which makes it so again.
Restoring compares names, shapes and kinds with what is there; nothing is made from the file's
word alone.
"""

import random
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol, TypeAlias, TypeVar, get_type_hints

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from soul_deploy.base import Array, errors
from soul_deploy.ir.neurons import LARGEST

Tree: TypeAlias = dict[str, Any]
"""str -> Tree, Tensor, numpy array or JSON value."""
SEPARATOR = "/"
MOST = 2**53
NUMPY_WORDS = 624  # of numpy's generator; it reads past its end from a place beyond them
Record = TypeVar("Record")


class Restorable(Protocol):
    """Something whose state a checkpoint holds."""

    def state(self) -> Tree:
        """Its state; tensors may be views of live ones."""
        ...

    def restore(self, tree: Tree) -> None:
        """Be in the state that `tree` describes. Raises FileFormatError if it does not fit."""
        ...


class Bundle:
    """Several parts under their names."""

    def __init__(self, parts: Mapping[str, Restorable]) -> None:
        self._parts = parts

    def state(self) -> Tree:
        """The states by name."""
        return {name: part.state() for name, part in self._parts.items()}

    def restore(self, tree: Tree) -> None:
        """Restore all parts. Raises FileFormatError unless the names are the same."""
        same_names("parts", self._parts, tree)
        for name, part in self._parts.items():
            part.restore(tree_of(tree, name))


@dataclass
class TrainingCursor:
    """How far a loop has come: whole epochs, and in the present one steps and sums over samples.

    loss: the sum of the samples' losses; hits: how many were right; seconds: the epoch's so far.
    """

    epoch: int = 0
    step: int = 0
    loss: float = 0.0
    hits: int = 0
    seconds: float = 0.0

    def state(self) -> Tree:
        return asdict(self)

    def restore(self, tree: Tree) -> None:
        vars(self).update(asdict(record_of(TrainingCursor, tree)))

    def check(self, epochs: int, steps: int, samples: int) -> None:
        """Raise FileFormatError unless it lies in a run of `epochs` with so many steps each."""
        last = 0 if self.epoch == epochs else steps
        errors.require(
            self.epoch <= epochs and self.step <= last and self.hits <= samples,
            f"epoch {self.epoch}, step {self.step}, {self.hits} right: this run has {epochs} "
            f"epochs of {steps} steps and {samples} samples",
        )

    def next_epoch(self) -> None:
        """One more epoch is whole."""
        self.epoch, self.step, self.loss, self.hits, self.seconds = self.epoch + 1, 0, 0.0, 0, 0.0


def split_tree(tree: Tree) -> tuple[dict[str, Array], Tree]:
    """The arrays by path, and the rest, which is JSON."""
    arrays: dict[str, Array] = {}
    facts: Tree = {}
    for key, value in tree.items():
        assert SEPARATOR not in key, key
        if isinstance(value, Tensor):
            arrays[key] = value.detach().cpu().numpy()
        elif isinstance(value, np.ndarray):
            arrays[key] = value
        elif isinstance(value, dict):
            inner, facts[key] = split_tree(value)
            arrays |= {f"{key}{SEPARATOR}{name}": array for name, array in inner.items()}
        else:
            facts[key] = value
    return arrays, facts


def join_tree(arrays: Mapping[str, Array], facts: Tree) -> Tree:
    """The inverse of `split_tree`. Raises FileFormatError for a path that does not fit."""
    tree: Tree = {k: join_tree({}, v) if isinstance(v, dict) else v for k, v in facts.items()}
    for path, array in arrays.items():
        *folders, name = path.split(SEPARATOR)
        place = tree
        for folder in folders:
            place = tree_of(place, folder)
        if name in place:
            raise errors.FileFormatError(f"tensor {path!r} stands where there is already a value")
        place[name] = array
    return tree


def tree_of(tree: Tree, key: str) -> Tree:
    """The tree under `key`. Raises FileFormatError, as the next ones do."""
    return _typed(tree, key, dict)


def text_of(tree: Tree, key: str) -> str:
    """The text under `key`."""
    return _typed(tree, key, str)


def list_of(tree: Tree, key: str) -> list[Any]:
    """The list under `key`."""
    return _typed(tree, key, list)


def count_of(tree: Tree, key: str) -> int:
    """The whole number, not negative, under `key`; floats hold it exactly."""
    number = _typed(tree, key, int)
    needed = f"a whole number from 0 to {MOST}"
    errors.require(_whole(number, MOST), f"{key} is {_short(number)}, needs {needed}")
    return number


def number_of(tree: Tree, key: str) -> float:
    """The finite number under `key`."""
    number: float = _typed(tree, key, int, float)
    errors.require(_finite(number), f"{key} is {_short(number)}, needs a finite number")
    return float(number)


def record_of(kind: type[Record], plain: Any) -> Record:
    """A dataclass of whole and other numbers from its `asdict`."""
    tree = tree_of({kind.__name__: plain}, kind.__name__)
    kinds = get_type_hints(kind)
    same_names(kind.__name__, kinds, tree)
    return kind(**{n: (count_of if kinds[n] is int else number_of)(tree, n) for n in kinds})


def array_of(tree: Tree, key: str) -> Array:
    """The array under `key`; a read-only view of the file."""
    return _typed(tree, key, np.ndarray)


def _whole(value: Any, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= most


def _finite(value: Any) -> bool:
    """Whether it is a number that a float can hold."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return -sys.float_info.max <= value <= sys.float_info.max


def _short(value: Any) -> str:
    """At most 80 letters of it; an integer of a file can have more digits than Python writes."""
    large = isinstance(value, int) and value.bit_length() > 256
    return f"an integer of {value.bit_length()} bits" if large else repr(value)[:80]


def _typed(tree: Tree, key: str, *kinds: type[Record]) -> Record:
    errors.require(key in tree, f"{key!r} is missing")
    found = tree[key]
    if not isinstance(found, kinds):
        raise errors.FileFormatError(f"{key!r} is a {type(found).__name__}, which does not fit")
    return found


def same_names(what: str, has: Mapping[str, Any], saved: Mapping[str, Any]) -> None:
    """Raise FileFormatError unless both have the same keys."""
    odd = sorted(set(has) ^ set(saved))
    errors.require(not odd, f"{what}: {', '.join(odd[:3])} not on both sides")


def tensor_like(like: Tensor, tree: Tree, key: str) -> Tensor:
    """A copy of the array under `key`. Raises FileFormatError unless it has `like`'s form."""
    tensor = torch.from_numpy(np.array(array_of(tree, key)))
    found, needed = (f"{t.dtype}{tuple(t.shape)}" for t in (tensor, like))
    errors.require(found == needed, f"{key} is {found}, this run needs {needed}")
    return tensor.to(like.device)


@torch.no_grad()
def fill(tensors: Mapping[str, Tensor], tree: Tree, what: str) -> None:
    """Copy arrays into `tensors`, in place. Raises FileFormatError unless all of them fit."""
    same_names(what, tensors, tree)
    found = {name: tensor_like(tensor, tree, name) for name, tensor in tensors.items()}
    for name, tensor in tensors.items():
        tensor.copy_(found[name])


RATES = ("lr", "initial_lr")
"""What of an optimizer's groups is kept."""


def optimizer_state(optimizer: Optimizer) -> Tree:
    """Moments and step counts by parameter number, and the groups' learning rates."""
    state = optimizer.state_dict()
    groups = state["param_groups"]
    rates = [{key: float(group[key]) for key in RATES if key in group} for group in groups]
    return {"moments": {str(i): dict(m) for i, m in state["state"].items()}, "rates": rates}


def restore_optimizer(optimizer: Optimizer, tree: Tree) -> None:
    """Set moments and rates. Raises FileFormatError unless they fit the parameters."""
    current = optimizer.state_dict()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    moments: dict[int, Tree] = {}
    for key in tree_of(tree, "moments"):
        if not key.isdecimal() or int(key) >= len(parameters):
            raise errors.FileFormatError(f"optimizer: no parameter {key!r}")
        moments[int(key)] = _moments(tree_of(tree["moments"], key), parameters[int(key)])
    needed = MOMENTS.get(type(optimizer).__name__, set())
    first = set(next(iter(moments.values()), needed))
    for number, held in moments.items():  # all have the same ones, and those that are needed
        there = {name for name, value in held.items() if isinstance(value, Tensor)}
        fits = set(held) == first and needed <= there
        errors.require(fits, f"optimizer: parameter {number} has the moments {sorted(held)}")
    rates, groups = list_of(tree, "rates"), current["param_groups"]
    fits = len(rates) == len(groups)
    errors.require(fits, f"optimizer: {len(rates)} groups, this run has {len(groups)}")
    for group, saved in zip(groups, rates, strict=True):
        if not isinstance(saved, dict):
            raise errors.FileFormatError(f"optimizer: learning rates {saved!r} are none")
        found = {key: number_of(saved, key) for key in RATES if key in saved}
        if not all(0 <= rate <= LARGEST for rate in found.values()):
            raise errors.FileFormatError(
                f"optimizer: learning rates {saved} are not from 0 to {LARGEST:g}"
            )
        group |= found
    optimizer.load_state_dict({"state": moments, "param_groups": groups})


MOMENTS = {
    "Adam": {"step", "exp_avg", "exp_avg_sq"},
    "AdamW": {"step", "exp_avg", "exp_avg_sq"},
    "RMSprop": {"step", "square_avg"},
}
"""What an optimizer keeps of every parameter that it has moved."""


def _moments(tree: Tree, parameter: nn.Parameter) -> Tree:
    """One parameter's state: arrays of its shape, step counts, and what is not there yet."""
    found: Tree = {}
    for name, value in tree.items():
        if isinstance(value, np.ndarray):
            like = torch.zeros(()) if name == "step" else parameter.detach()
            found[name] = tensor_like(like, tree, name)
        else:
            found[name] = None if value is None else number_of(tree, name)
    step = found.get("step")
    errors.require((step or 0) >= 0, f"optimizer: step {step} is below 0")
    return found


SCHEDULER_FIELDS = ("last_epoch", "_step_count", "T_cur", "T_i")
"""What of PyTorch's schedulers moves; the rates themselves are in the optimizer's groups."""


def scheduler_state(scheduler: LRScheduler) -> Tree:
    """How far a learning-rate schedule has come."""
    state = scheduler.state_dict()
    moving = {key: state[key] for key in SCHEDULER_FIELDS if key in state}
    return moving | {"rates": [float(rate) for rate in scheduler.get_last_lr()]}


def restore_scheduler(scheduler: LRScheduler, tree: Tree) -> None:
    """Set how far it has come; the optimizer's rates are restored with the optimizer."""
    same_names("scheduler", scheduler_state(scheduler), tree)
    moving: Tree = {key: count_of(tree, key) for key in tree if key != "rates"}
    rates = [number_of({"learning rate": rate}, "learning rate") for rate in list_of(tree, "rates")]
    needed = len(scheduler.get_last_lr())
    errors.require(len(rates) == needed, f"scheduler: {len(rates)} learning rates, needs {needed}")
    if "T_i" in moving:
        epoch, period = moving["T_cur"], moving["T_i"]
        told = f"scheduler: epoch {epoch} of a period of {period}, needs one before its end"
        errors.require(epoch < period, told)
    # Some kinds read all of their fields from what is loaded.
    scheduler.load_state_dict(scheduler.state_dict() | moving | {"_last_lr": rates})


def random_states() -> Tree:
    """The states of PyTorch's, numpy's and Python's global random generators."""
    name, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    version, words, following = random.getstate()
    assert name == "MT19937"
    tree: Tree = {
        "torch": torch.get_rng_state(),
        "numpy": np.asarray(keys, np.uint32),
        "numpy_place": [int(position), int(has_gauss), float(gauss)],
        "python": np.array(words, np.uint32),
        "python_place": [version, following],
        "cuda": {},
    }
    if torch.cuda.is_available():
        tree["cuda"] = {str(i): state for i, state in enumerate(torch.cuda.get_rng_state_all())}
    return tree


def _of_numpy(place: list[Any]) -> bool:
    whole = len(place) == 3 and _whole(place[0], NUMPY_WORDS) and _whole(place[1], 1)
    return whole and _finite(place[2])


def _of_python(place: list[Any]) -> bool:
    if len(place) != 2 or not _whole(place[0], MOST) or place[0] != random.getstate()[0]:
        return False
    return place[1] is None or _finite(place[1])


def _place(tree: Tree, key: str, fits: Callable[[list[Any]], bool], needed: str) -> list[Any]:
    """Where a generator is. Raises FileFormatError: what numpy and Python take unchecked here, they
    trip over at a later draw, or read memory that is not theirs.
    """
    place = list_of(tree, key)
    told = ", ".join(map(_short, place[:4]))
    errors.require(fits(place), f"random states: {key} is [{told}], needs {needed}")
    return place


def restore_random_states(tree: Tree) -> None:
    """Set the global random generators. Raises FileFormatError for states of another form.

    CUDA states are set where this machine has as many devices; a run on the CPU needs none.
    """
    now = random_states()
    same_names("random states", now, tree)
    keys = tensor_like(torch.from_numpy(now["numpy"]), tree, "numpy").numpy()
    words = tensor_like(torch.from_numpy(now["python"]), tree, "python").tolist()
    position, has_gauss, gauss = _place(
        tree, "numpy_place", _of_numpy, "0 to 624, 0 or 1, a number"
    )
    version, following = _place(tree, "python_place", _of_python, "3, a number or null")
    try:
        torch.set_rng_state(tensor_like(now["torch"], tree, "torch"))
        np.random.set_state(("MT19937", keys, position, has_gauss, gauss))
        random.setstate((version, tuple(words), following))
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise errors.FileFormatError(f"random states: {error}") from error
    cuda = tree_of(tree, "cuda")
    if cuda and set(cuda) == set(now["cuda"]):
        torch.cuda.set_rng_state_all(
            [tensor_like(now["cuda"][str(i)], cuda, str(i)) for i in range(len(cuda))]
        )
