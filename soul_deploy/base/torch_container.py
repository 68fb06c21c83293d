"""The container of `.pt` and `.pth` files, looked at without PyTorch: what they take is known
before it is taken.

PyTorch reads archives (since 1.6) and legacy files, which are pickles with the values behind them.
"""

import mmap
import pickletools
import re
import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from soul_deploy.base import errors, opening

ARCHIVE = b"PK\x03\x04"  # torch.load takes a file for an archive by its first bytes alone
LEGACY = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the pickle of its magic number, behind the protocol
LEGACY_PICKLES = 4  # magic number, version, machine, object; the keys of the storages follow
KEY_LIST = re.compile(r"](?:\(S*e|Sa)*\.")  # opcodes of a list of texts, S for a text
UNSAID = "\x80\x95\x94qr"  # opcodes that add nothing to a list: protocol, frame, memo
END, END64, LOCATOR = "<4s4H2LH", "<4s36x2Q", "<4s4xQ4x"  # an archive's last three records
OBJECT = "data.pkl"  # an archive's entry
ADVICE = "Save it again with torch.save of a current PyTorch"


def is_archive(file: opening.OpenFile) -> bool:
    """Whether it begins as a zip archive does."""
    return file.start(len(ARCHIVE)) == ARCHIVE


def entry_names(file: opening.OpenFile) -> list[str]:
    """The names of an archive's entries. Raises FileFormatError."""
    try:
        with zipfile.ZipFile(file.stream) as archive:
            return archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise errors.FileFormatError(f"{file} is not an intact archive ({error})") from error


@contextmanager
def object_pickle(file: opening.OpenFile) -> Iterator[Any]:
    """A stream that stands before the pickle of what was saved; the file was `checked`.

    Raises FileFormatError for an archive without one.
    """
    if is_archive(file):
        names = [n for n in entry_names(file) if n.rpartition("/")[2] == OBJECT]
        told = f"{file} is an archive without {OBJECT}; torch.save writes one"
        errors.require(names, told)
        with zipfile.ZipFile(file.stream) as archive, archive.open(names[0]) as stream:
            yield stream
        return
    with mmap.mmap(file.stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        for _ in range(LEGACY_PICKLES - 1):
            _check_pickle(file.path, data, legacy=True)
        yield data


def checked(file: opening.OpenFile) -> frozenset[str] | None:
    """What can be told without unpickling; the keys of the blocks that a legacy file holds.

    Raises FileFormatError, and what `pickletools` raises.
    """
    if is_archive(file):
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


def _keys(path: Path, stream: Any) -> frozenset[str]:
    """The texts of a pickled list of different texts; anything else raises FileFormatError."""
    told = [(code.code, text) for code, text, _ in pickletools.genops(stream)]
    said = "".join(
        "S" if isinstance(text, str) else code for code, text in told if code not in UNSAID
    )
    keys = [text for _, text in told if isinstance(text, str)]
    plain = KEY_LIST.fullmatch(said) is not None and len(set(keys)) == len(keys)
    errors.require(plain, f"{path}: its list of values is not one of torch.save. {ADVICE}")
    return frozenset(keys)


def _check_archive(file: opening.OpenFile) -> None:
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


def _one_directory(file: opening.OpenFile) -> bool:
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
