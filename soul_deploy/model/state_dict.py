"""State dicts in strangers' `.pt`, `.pth` and `.ckpt` files: what they take is known before it is
taken.

Nothing is unpickled but by `torch.load(weights_only=True)`. Where the weights stand in a file is
told without it (soul_deploy/base/torch_file.py).
"""

from argparse import Namespace
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, UntypedStorage

from soul_deploy.base import Array, brief, errors, files, torch_file
from soul_deploy.base.torch_container import ADVICE

FREE_BYTES, LARGEST_RATIO = 1 << 20, 4  # what arrays may take, by the file's size
PICKLE_BYTES = 512 << 20  # what a file's pickle may take as data, before it is loaded
PREFIXES = ("module.", "model.", "_orig_mod.", "net.", "network.")
"""What DataParallel, Lightning and torch.compile put before the names of weights."""
COUNT, LARGEST_COUNT = ".num_batches_tracked", 1 << 53
LISTED = 5


@brief
@dataclass(frozen=True)
class Weights:
    """A state dict as a file holds it.

    state  name -> array
    left   names of what stands beside it in the file
    facts  plain values beside it, by name: an epoch, arguments of the training
    told   sentences: where in the file it stood, and what was done to its names
    """

    path: Path
    state: Mapping[str, Array]
    left: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    told: tuple[str, ...] = ()

    def fitted(self, names: Collection[str]) -> "Weights":
        """The weights under a network's `names`, if these lack a prefix that the file's have.

        Whether all of them fit is for the caller to check.
        """
        state, left, taken = dict(self.state), list[str](), ""
        while state and not state.keys() & set(names):
            under = {p: [n for n in state if n.startswith(p)] for p in PREFIXES}
            prefix = max(PREFIXES, key=lambda p: len(under[p]))
            if not under[prefix]:
                return self
            left += [taken + name for name in state if not name.startswith(prefix)]
            state = {name.removeprefix(prefix): state[name] for name in under[prefix]}
            taken += prefix
        if not taken or (left and state.keys() != set(names)):
            return self
        more = f"; left out: {_listed(left)}" if left else ""
        sentence = f"{self.path.name}: {taken!r} is taken off the names of its weights{more}"
        return replace(self, state=state, told=(*self.told, sentence))


def with_whole_counts(weights: Weights) -> Weights:
    """The weights, batch norm's counts of batches as integers where they are whole numbers in
    floating point: averages of models, and those that were cast as a whole, have them so.
    """
    counts = {
        name: array.astype(np.int64)
        for name, array in weights.state.items()
        if name.endswith(COUNT) and array.dtype.kind == "f" and _are_counts(array)
    }
    if not counts:
        return weights
    sentence = (
        f"{weights.path.name}: {len(counts)} counts of batches ({COUNT[1:]}) are floating-point "
        "numbers; as whole numbers they are taken for integers"
    )
    state = {**weights.state, **counts}
    return replace(weights, state=state, told=(*weights.told, sentence))


def _are_counts(array: Array) -> bool:
    return bool(((array >= 0) & (array < LARGEST_COUNT) & (array == np.floor(array))).all())


def _listed(names: Collection[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(list(names)[:LISTED]) + more


class Storages:
    """What `torch.load` allocates for the values of a file, added up while it does."""

    def __init__(self, file: files.OpenFile) -> None:
        self.path, self.size = file.path, file.size
        self._taken: list[UntypedStorage] = []  # kept, so that their addresses stay theirs
        self._places: set[int] = set()
        self._bytes = 0

    def take(self, storage: Any, location: str) -> Any:
        """As map_location: it stays where it is. Raises FileFormatError beyond the file's size."""
        self._bytes += storage.nbytes()
        if self._bytes > self.size:
            raise errors.FileFormatError(
                f"{self.path} announces {self._bytes:,} bytes of values in {self.size:,} bytes; it "
                f"is damaged. {ADVICE}"
            )
        self._taken.append(storage)
        self._places.add(storage.data_ptr())
        return storage

    def __len__(self) -> int:
        return len(self._taken)

    def hold(self, tensor: Tensor) -> bool:
        """Whether the values are the file's: a pickle can make tensors of unset memory too."""
        return tensor.numel() == 0 or tensor.untyped_storage().data_ptr() in self._places


def read_weights(file: files.OpenFile) -> Weights:
    """The state dict of a file, wherever it stands in it.

    Raises FileFormatError, with the reason, if there is none or another's code would have to run,
    and before memory is taken that the file's size does not explain; LimitError.
    """
    told = torch_file.read_torch_file(file, max_memory=PICKLE_BYTES, advice=torch_file.SAVE)
    if told.key is None:
        raise errors.FileFormatError(told.why)
    storages = Storages(file)
    loaded = _load(file, storages, told)
    for name in told.key:
        loaded = loaded.get(name) if isinstance(loaded, dict) else None
    state = _plain_state(file.path, storages, loaded)
    if not told.key:
        return Weights(file.path, state)
    beside = f"; beside them: {_listed(told.left)}" if told.left else ""
    sentence = f"{file.path.name}: weights taken from {'.'.join(told.key)!r}{beside}"
    return Weights(file.path, state, told.left, told.facts, (sentence,))


def _plain_state(path: Path, storages: Storages, loaded: Any) -> dict[str, Array]:
    if not isinstance(loaded, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in loaded.items()
    ):
        raise errors.FileFormatError(
            f"{path} does not hold a state dict (a dict of name to tensor)"
        )
    for name, tensor in loaded.items():
        _check_plain(storages, name, tensor)
    taken = sum(map(_bytes_of, loaded.values()))
    allowed = FREE_BYTES + LARGEST_RATIO * storages.size
    errors.require(
        taken <= allowed,
        f"{path}: its {len(loaded):,} tensors share values and would take {taken:,} bytes; at "
        f"most {allowed:,} are read from {storages.size:,} bytes. Save each tensor once",
    )
    return {name: _array(path, name, tensor) for name, tensor in loaded.items()}


def _load(file: files.OpenFile, storages: Storages, told: torch_file.TorchFile) -> Any:
    path, keys = file.path, told.keys
    try:
        with file.again() as stream, _namespaces(torch_file.NAMESPACE in told.names):
            loaded = torch.load(stream, map_location=storages.take, weights_only=True)
    except errors.FileFormatError:
        raise
    except Exception as error:  # foreign bytes make the unpickler fail in a dozen ways
        raise errors.FileFormatError(_not_loaded(path, told, error)) from error
    # What no key names stays as it was allocated: unset memory.
    if keys is not None and len(keys) != len(storages):
        raise errors.FileFormatError(
            f"{path} announces {len(storages)} blocks of values and holds {len(keys)}; it is "
            f"damaged. {ADVICE}"
        )
    return loaded


def _not_loaded(path: Path, told: torch_file.TorchFile, error: Exception) -> str:
    if told.foreign:
        return (
            f"{path} is not a file of weights alone: it holds objects whose code would run, "
            f"{_listed(told.foreign)}. {torch_file.SAVE}"
        )
    first = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
    return (
        f"{path} is not a file of weights ({first}). Readable: soul-deploy model files, "
        "safetensors, and .pt/.pth/.ckpt files of tensors and plain values"
    )


@contextmanager
def _namespaces(wanted: bool) -> Iterator[None]:
    """While a file with an argparse.Namespace is loaded: a class of plain attributes, whose making
    runs nobody's code. torch.serialization.safe_globals does the same since PyTorch 2.5.
    """
    before = list(torch.serialization.get_safe_globals()) if wanted else []
    try:
        if wanted:
            torch.serialization.add_safe_globals([Namespace])
        yield
    finally:
        if wanted:
            torch.serialization.clear_safe_globals()
            torch.serialization.add_safe_globals(before)


def _check_plain(storages: Storages, name: str, tensor: Tensor) -> None:
    """Raise FileFormatError for what is no plain tensor, or claims more values than it stores."""
    plain = tensor.layout == torch.strided and not (tensor.is_complex() or tensor.is_quantized)
    where, form = f"{storages.path}: {name}", f"({tensor.layout}, {tensor.dtype})"
    errors.require(plain and tensor.device.type == "cpu", f"{where} is no plain tensor {form}")
    there = tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()
    claimed = f"claims {tuple(tensor.shape)}, more values than the file stores"
    errors.require(there, f"{where} {claimed}")
    errors.require(storages.hold(tensor), f"{where} has no values in the file. {ADVICE}")


def _bytes_of(tensor: Tensor) -> int:
    """What `_array` takes."""
    return tensor.numel() * (4 if tensor.is_floating_point() else tensor.element_size())


def _array(path: Path, name: str, tensor: Tensor) -> Array:
    """A copy; floating point becomes float32."""
    whole = tensor.detach()
    array = (whole.float() if whole.is_floating_point() else whole).numpy().copy()
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise errors.FileFormatError(f"{path}: {name} holds values that are not finite")
    return array
