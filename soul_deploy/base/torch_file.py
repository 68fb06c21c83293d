"""What a `.pt`, `.pth` or `.ckpt` file holds, told without PyTorch and without unpickling.

People save a state dict as it is, or among other things: an epoch, an optimizer's state, the
arguments of the training. Where the weights stand is decided here, for whoever loads them and for
whoever only shows them.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

from soul_deploy.base import errors, json_text, memory, opening, torch_container
from soul_deploy.base.pickle_data import PERSISTENT, Made, read_pickle

WEIGHT_KEYS = (
    *("state_dict", "model_state_dict", "model_state", "model", "net", "network"),
    *("module", "weights"),
)
"""Under which names people save their weights among other things."""
ARGUMENT_KEYS = (
    *("args", "hyper_parameters", "hparams", "config", "cfg", "opt", "options", "settings"),
)
"""Under which names people save what a network was made with; the second is Lightning's."""
NAMESPACE = "argparse.Namespace"
DICTS = ("dict", "collections.OrderedDict", "collections.defaultdict")
TENSORS = re.compile(
    r"torch\._utils\._rebuild_(tensor(_v[23])?|parameter(_with_state)?)|torch\.Tensor"
)
LOADED = re.compile(
    r"torch\._utils\._rebuild_\w+|torch\.(\w*Storage|Size|device|dtype|Tensor|u?int\d+|b?float\d+|"
    r"double|half|float|long|int|bool)|torch\.nn\.parameter\.Parameter|torch\.storage\.\w+|"
    r"collections\.(OrderedDict|defaultdict|Counter)|argparse\.Namespace|builtins\.set|"
    r"__builtin__\.set|_codecs\.encode"
)
"""Names that loading weights resolves without running anybody's code."""
DEEPEST = 3
PLAIN = (str, int, float, type(None))
Key: TypeAlias = tuple[str, ...]


@dataclass(frozen=True)
class TensorFacts:
    """A stored tensor. dtype: as PyTorch calls it, or "" if that is not said."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class TorchFile:
    """The contents of a file that torch.save wrote.

    root    what it would make
    key     where the state dict stands in it, () for the whole; None if `why` says why not
    left    names of what stands beside it
    facts   plain values beside it, by name: those saved alone, and those of arguments and
            hyper-parameters
    names   every dotted name that loading would import
    keys    of a legacy file: of its blocks of values
    """

    root: Any
    names: tuple[str, ...]
    key: Key | None = None
    why: str = ""
    left: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    keys: frozenset[str] | None = None

    @property
    def tensors(self) -> dict[str, TensorFacts]:
        """The state dict; empty without one."""
        found = self.root
        for name in self.key or ():
            found = entries_in(found)[name]
        return {} if self.key is None else tensors_of(found)

    @property
    def foreign(self) -> list[str]:
        """The names among them whose code loading would run."""
        return [name for name in self.names if not LOADED.fullmatch(name)]


def read_torch_file(
    file: opening.OpenFile, *, max_memory: int | None = None, advice: str = memory.RAISE_IT
) -> TorchFile:
    """The contents of the file, whose sizes are compared with its own first.

    max_memory: bytes that its description may take; None: DESCRIPTION_BYTES of json_text.py.
    advice: what to do where these are too few. Raises FileFormatError for what torch.save did not
    write, LimitError.
    """
    allowed = json_text.DESCRIPTION_BYTES if max_memory is None else max_memory
    archive, what = torch_container.is_archive(file), f"{file}: its pickle"
    if archive and any(n.endswith("constants.pkl") for n in torch_container.entry_names(file)):
        why = f"{file} is a TorchScript program, not a file of weights. {SAVE}"
        return TorchFile(None, (), why=why)
    try:
        keys = torch_container.checked(file) if archive else None
        with torch_container.object_pickle(file) as stream:
            pickled = read_pickle(stream, what, allowed, advice)
        found = _placed(file.path, TorchFile(pickled.root, pickled.names))
        network = _pickled_network(file.path, found.root, entries_in(found.root))
        if not archive and not network:  # the source of its classes is no block of values
            keys = torch_container.checked(file)
    except (ValueError, IndexError, AttributeError) as error:
        told = f"{file} is not a file of weights, as torch.save writes them ({error!s:.80})"
        raise errors.FileFormatError(told) from error
    return replace(found, keys=keys)


def _placed(path: Path, file: TorchFile) -> TorchFile:
    """`file`, with where its weights are, or why they are not."""
    place, key, left, facts = file.root, list[str](), list[str](), dict[str, Any]()
    why = ""
    while not why:
        inside = entries_in(place)
        facts |= _facts(inside)
        why = _pickled_network(path, place, inside)
        found = [name for name in WEIGHT_KEYS if _holds_weights(inside.get(name))]
        if why or not found:
            break
        why = _several(path, found, len(key))
        left += [name for name in inside if name != found[0]]
        key.append(found[0])
        place = inside[found[0]]
    why = why or _no_state(path, key, entries_in(place))
    return replace(
        file, key=None if why else tuple(key), why=why, left=() if why else tuple(left), facts=facts
    )


SAVE = "Save the weights with torch.save(network.state_dict(), path), or as safetensors"


def _holds_weights(value: Any) -> bool:
    """Whether it is a state dict, or one stands in it under a name that says so."""
    inside = entries_in(value)
    return bool(tensors_of(value)) or any(tensors_of(inside.get(name)) for name in WEIGHT_KEYS)


def _several(path: Path, found: list[str], depth: int) -> str:
    told = ", ".join(map(repr, found))
    if len(found) > 1:
        return f"{path} holds several state dicts, {told}; save alone the one that is meant"
    return "" if depth < DEEPEST else f"{path} holds its weights too deep, under {told}. {SAVE}"


def _pickled_network(path: Path, place: Any, inside: Mapping[str, Any]) -> str:
    for where, value in ("", place), *((f" under {name!r}", inside[name]) for name in inside):
        if module := module_class(value):
            return (
                f"{path} is not a file of weights alone: it holds objects whose code would run, "
                f"a whole pickled network of class {module}{where}. {SAVE}"
            )
    return ""


def _no_state(path: Path, key: list[str], inside: Mapping[str, Any]) -> str:
    """Why `inside`, which stands under `key`, is no state dict; empty if it is one."""
    tensors = [name for name in inside if tensor_facts(inside[name]) is not None]
    if inside and len(tensors) == len(inside):
        return ""
    where = f" under {'.'.join(key)!r}" if key else ""
    told = f"{path} does not hold a state dict (a dict of name to tensor){where}"
    if tensors:
        other = next(name for name in inside if name not in tensors)
        return f"{told}: {other!r} is no plain tensor. {SAVE}"
    others = [name for name, value in inside.items() if tensors_of(value)]
    more = f"; tensors stand under {', '.join(map(repr, others[:3]))}" if others else ""
    return f"{told}, nor one under {', '.join(WEIGHT_KEYS)}{more}. {SAVE}"


def entries_in(value: Any) -> dict[str, Any]:
    """What a dict or an argparse.Namespace holds under texts; empty for anything else."""
    if not isinstance(value, Made):
        return {}
    if value.name == NAMESPACE:
        return entries_in(value.state)
    if value.name.rpartition(".")[2] == "AttributeDict" or value.name in DICTS:
        return {key: item for key, item in value.items if isinstance(key, str)}
    return {}


def tensors_of(value: Any) -> dict[str, TensorFacts]:
    """The tensors that a dict holds by name."""
    found = {name: tensor_facts(item) for name, item in entries_in(value).items()}
    return {name: facts for name, facts in found.items() if facts is not None}


def tensor_facts(value: Any) -> TensorFacts | None:
    """A tensor's, or None for anything else."""
    if not isinstance(value, Made) or not TENSORS.fullmatch(value.name) or not value.called:
        return None
    if "parameter" in value.name:
        return tensor_facts(value.values[0]) if value.values else None
    if len(value.values) < 3:  # torch.Tensor(size): its values are in no file
        return TensorFacts("", ())
    storage, shape = value.values[0], value.values[2]
    sides = shape.values if isinstance(shape, Made) else []
    if len(sides) == 1 and isinstance(sides[0], Made):  # torch.Size((...))
        sides = sides[0].values
    if not all(isinstance(side, int) for side in sides):
        return None
    return TensorFacts(_dtype(storage, value.values), tuple(sides))


def _dtype(storage: Any, arguments: Iterable[Any]) -> str:
    """FloatStorage is float32; an untyped storage stands beside the dtype itself."""
    named = [item.name for item in arguments if isinstance(item, Made) and not item.called]
    held = storage.values if isinstance(storage, Made) and storage.name == PERSISTENT else []
    named += [item.name for item in held if isinstance(item, Made) and not item.called]
    words = [name.rpartition(".")[2].removesuffix("Storage").lower() for name in named]
    return next((DTYPES.get(word, word) for word in words if word != "untyped"), "")


DTYPES = {
    "float": "float32",
    "double": "float64",
    "half": "float16",
    "long": "int64",
    "int": "int32",
    "short": "int16",
    "char": "int8",
    "byte": "uint8",
}


def module_class(value: Any) -> str:
    """The class of a pickled network, "" for anything else."""
    if not isinstance(value, Made) or value.name in DICTS or not value.called:
        return ""
    state = entries_in(value.state)
    return value.name if "_modules" in state and "_parameters" in state else ""


def _facts(inside: Mapping[str, Any]) -> dict[str, Any]:
    """Plain values, those of arguments among them too."""
    arguments = [entries_in(inside.get(name)) for name in ARGUMENT_KEYS]
    return {
        name: value
        for part in (inside, *arguments)
        for name, value in part.items()
        if is_plain(value)
    }


def is_plain(value: Any) -> bool:
    """Whether it is a text, a number that a line can show, yes, no or nothing."""
    return isinstance(value, PLAIN) and not (isinstance(value, int) and value.bit_length() > 64)
