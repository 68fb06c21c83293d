"""State dicts in strangers' `.pt` and `.pth` files: what they take is known before it is taken.

Nothing is unpickled but by `torch.load(weights_only=True)`. It reads archives (since PyTorch 1.6)
and legacy files, which are pickles with the values behind them.
"""

import mmap
import pickletools
import re
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, UntypedStorage

from soul_deploy.base import Array, errors, files

ARCHIVE = b"PK\x03\x04"  # torch.load takes a file for an archive by its first bytes alone
FREE_BYTES, LARGEST_RATIO = 1 << 20, 4  # what arrays may take, by the file's size
LEGACY_PICKLES = 4  # magic number, version, machine, object; the keys of the storages follow
KEY_LIST = re.compile(r"](?:\(S*e|Sa)*\.")  # opcodes of a list of texts, S for a text
UNSAID = "\x80\x95\x94qr"  # opcodes that add nothing to a list: protocol, frame, memo
END, END64, LOCATOR = "<4s4H2LH", "<4s36x2Q", "<4s4xQ4x"  # an archive's last three records
ADVICE = "Save it again with torch.save of a current PyTorch"


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


def read_state_dict(file: files.OpenFile) -> dict[str, Array]:
    """A dict of tensors, or what it holds under 'model' or 'state_dict'.

    Raises FileFormatError for everything else, and before memory is taken that the file's size
    does not explain.
    """
    path, storages = file.path, Storages(file)
    loaded = _load(file, storages)
    for key in ("model", "state_dict"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
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


def _load(file: files.OpenFile, storages: Storages) -> Any:
    path = file.path
    try:
        keys = _checked(file)
        with file.again() as stream:
            loaded = torch.load(stream, map_location=storages.take, weights_only=True)
    except errors.FileFormatError:
        raise
    except Exception as error:  # foreign bytes make the unpickler fail in a dozen ways
        first = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise errors.FileFormatError(
            f"{path} is not a file of weights ({first}). Readable: soul-deploy model files, "
            "safetensors, and .pt/.pth state dicts that hold nothing but tensors"
        ) from error
    # What no key names stays as it was allocated: unset memory.
    if keys is not None and len(keys) != len(storages):
        raise errors.FileFormatError(
            f"{path} announces {len(storages)} blocks of values and holds {len(keys)}; it is "
            f"damaged. {ADVICE}"
        )
    return loaded


def _checked(file: files.OpenFile) -> set[str] | None:
    """What can be told without unpickling; the keys of the blocks that a legacy file holds."""
    if file.start(len(ARCHIVE)) == ARCHIVE:
        _check_archive(file)
        return None
    # A map ends at the file's end, so that an announced length allocates nothing.
    with mmap.mmap(file.stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        for _ in range(LEGACY_PICKLES):
            _check_pickle(file.path, data, legacy=True)
        return _keys(file.path, data)


def _check_pickle(path: Path, stream: Any, *, legacy: bool) -> None:
    """Raise FileFormatError for a pickle that asks for a bytearray, which is as long as it says, or
    whose blocks of values are parts of others: a key could then fill a part and leave the rest.
    """
    last = ""
    for code, told, _ in pickletools.genops(stream):
        if isinstance(told, str) and told.split()[-1:] == ["bytearray"]:
            raise errors.FileFormatError(
                f"{path} asks for a bytearray; weights are tensors. {ADVICE}"
            )
        if legacy and code.code == "Q" and last != "Nt":  # (..., no part of another), its id
            raise errors.FileFormatError(f"{path} holds parts of blocks of values. {ADVICE}")
        if code.code not in UNSAID:
            last = (last + code.code)[-2:]


def _keys(path: Path, stream: Any) -> set[str]:
    """The texts of a pickled list of different texts; anything else raises FileFormatError."""
    told = [(code.code, text) for code, text, _ in pickletools.genops(stream)]
    said = "".join(
        "S" if isinstance(text, str) else code for code, text in told if code not in UNSAID
    )
    keys = [text for _, text in told if isinstance(text, str)]
    plain = KEY_LIST.fullmatch(said) is not None and len(set(keys)) == len(keys)
    errors.require(plain, f"{path}: its list of values is not one of torch.save. {ADVICE}")
    return set(keys)


def _check_archive(file: files.OpenFile) -> None:
    """Raise FileFormatError for a zip archive with packed entries: torch.save packs none, so that
    what is read is never larger than the file.
    """
    path, size = file.path, file.size
    try:
        with zipfile.ZipFile(file.stream) as archive:
            packed = [e for e in archive.infolist() if e.compress_type != zipfile.ZIP_STORED]
            stored = sum(entry.file_size for entry in archive.infolist())
            ends = _one_directory(file)
            if ends and not packed and stored <= size:
                for entry in archive.infolist():
                    if entry.filename.endswith("data.pkl"):
                        with archive.open(entry) as stream:
                            _check_pickle(path, stream, legacy=False)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise errors.FileFormatError(f"{path} is not an intact archive ({error})") from error
    where = "its directory is not at its end"
    errors.require(ends, f"{path} is not an intact archive: {where}. {ADVICE}")
    told = f"{path} is an archive that unpacks to more than it holds; it was not opened"
    errors.require(not packed and stored <= size, told)


def _one_directory(file: files.OpenFile) -> bool:
    """Whether the archive's directory ends right before its last records, where every reader finds
    it: PyTorch's could see another one than ours, with packed entries.
    """
    last, located, wide = (struct.calcsize(form) for form in (END, LOCATOR, END64))
    file.stream.seek(max(0, file.size - last - located - wide))
    tail = file.stream.read().rjust(last + located + wide, b"\0")
    name, _, _, _, _, length, start, comment = struct.unpack(END, tail[-last:])
    if name != b"PK\x05\x06" or comment:
        return False
    behind = file.size - last
    name, place = struct.unpack(LOCATOR, tail[wide : wide + located])
    if name == b"PK\x06\x07":
        behind -= located + wide
        name, length, start = struct.unpack(END64, tail[:wide])
        if name != b"PK\x06\x06" or place != behind:
            return False
    return bool(start + length == behind)


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
