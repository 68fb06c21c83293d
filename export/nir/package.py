"""The package `nir`, imported when it is first needed, and what both directions agree on.

NIR (Pedersen et al., Nature Communications 2024) describes networks in continuous time; steps of
`DEFAULT_DT` seconds of forward Euler are what readers assume.
"""

import math
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from types import ModuleType
from typing import Any

import numpy as np

from soul_deploy.base import Array, files, memory
from soul_deploy.base.errors import FileFormatError, UsageError
from soul_deploy.base.file_kinds import reads

FORMAT = "soul-deploy/nir/1"
DEFAULT_DT = 1e-4  # seconds per step; fixed in snnTorch's reader, the default of SpikingJelly's
BEGINNING = b"\x89HDF\r\n\x1a\n"
FREE_BYTES, LARGEST_RATIO = 1 << 20, 64  # what arrays of a file may take, by its size
TEXT_BYTES = 64  # what a text takes besides its letters
NAME, POPULATION, DECAY_PARAMETER = "name", "population", "w"  # keys of a node's metadata
SECONDS = 20.0
SECONDS_PER_BYTE = 1e-7
PROGRAM: tuple[str, ...] = ("-m", __name__)  # what Python runs
MEMORY = 4 << 30  # bytes of address space, besides 64 times the file


def nir_package() -> ModuleType:
    """The module `nir`. Raises UsageError if it is not installed."""
    try:
        return import_module("nir")
    except ImportError as error:
        raise UsageError(
            f"NIR files need the package nir, which cannot be imported ({error}); install it with "
            "pip install nir"
        ) from error


@reads("nir")
def read_graph(file: files.File) -> Any:
    """The `nir.NIRGraph` in a file.

    Raises MissingFileError, UsageError if the package nir is missing, and FileFormatError.
    """
    with files.opened(file) as source:
        if source.start(len(BEGINNING)) != BEGINNING:
            raise FileFormatError(f"{source} is not an intact NIR file, which is one of HDF5")
        nir = nir_package()
        check_sizes(source)
        try_reading(source)
        try:
            with source.again() as stream:
                graph = nir.read(stream, type_check=False)
        except Exception as error:  # h5py and nir fail in a dozen ways on foreign bytes
            raise not_intact(source, error) from error
    if not isinstance(graph, nir.NIRGraph):
        kind = type(graph).__name__
        raise FileFormatError(f"{source} holds a single {kind}, not a NIR graph")
    return graph


def check_sizes(file: files.OpenFile) -> None:
    """Raise FileFormatError for an HDF5 file whose arrays claim far more than it can hold, or which
    takes them from elsewhere.

    HDF5 reads a packed array, or one that was never written, at its announced size; an array with
    several names is read under each of them.
    """
    announced, allowed = 0, _allowed(file)
    for item in _datasets(file):
        least = TEXT_BYTES if item.dtype.hasobject else item.dtype.itemsize
        announced += math.prod(item.shape or ()) * least
    if announced > allowed:
        raise FileFormatError(
            f"{file} announces {announced:,} bytes of arrays in {file.size:,} bytes; "
            f"at most {allowed:,} are read"
        )


def check_texts(file: files.File) -> None:
    """Raise FileFormatError for an HDF5 file whose texts take far more than it can hold: many can
    be the same one. Not for the caller's own process: the library may not come back.
    """
    with files.opened(file) as source:
        text_bytes, allowed = 0, _allowed(source)
        for item in _datasets(source):
            for block in _blocks(item) if item.dtype.hasobject else ():
                text_bytes += sum(len(text) for text in np.ravel(block) if isinstance(text, bytes))
                if text_bytes > allowed:
                    raise FileFormatError(f"its texts take more than {allowed:,} bytes")


def _allowed(file: files.OpenFile) -> int:
    return FREE_BYTES + LARGEST_RATIO * file.size


def _blocks(item: Any) -> Iterator[Any]:
    """A dataset of texts, few at a time, so that a block is no larger than what is allowed."""
    if not item.shape:
        yield item[()]
        return
    rows = max(1, LARGEST_RATIO // max(1, math.prod(item.shape[1:])))
    for start in range(0, item.shape[0], rows):
        yield item[start : start + rows]


def _datasets(file: files.OpenFile) -> Iterator[Any]:
    """Every dataset of an HDF5 file, once for each of its names; the file is open meanwhile.

    Raises FileFormatError.
    """
    h5py = import_module("h5py")
    try:
        with h5py.File(file.stream, "r") as opened:
            groups, seen = [opened], {h5py.h5o.get_info(opened.id).addr}
            while groups:
                group = groups.pop()
                for name in group:
                    item = _own(h5py, group, name)
                    if isinstance(item, h5py.Dataset):
                        yield item
                    elif isinstance(item, h5py.Group):
                        groups.append(item)
                        place = h5py.h5o.get_info(item.id).addr
                        # Few groups with two names each make more paths than can be walked.
                        _require(place not in seen, name, "is a group that has another name")
                        seen.add(place)
    except Exception as error:  # h5py fails in a dozen ways on foreign bytes
        raise not_intact(file, error) from error


def not_intact(file: files.OpenFile, error: Exception) -> FileFormatError:
    """What is raised where a library fails at a file: its first line."""
    first = (str(error).strip().splitlines() or [repr(error)])[0]
    return FileFormatError(f"{file} is not an intact NIR file ({first})")


def _own(h5py: ModuleType, group: Any, name: str) -> Any:
    """The object `name` of a group, if its content is this file's. Raises FileFormatError."""
    link = group.get(name, getlink=True)
    _require(isinstance(link, h5py.HardLink), name, "is a link to another place or file")
    item = group[name]
    if isinstance(item, h5py.Dataset):
        stored_here = not item.is_virtual and item.external is None
        _require(stored_here, name, "takes its values from another place or file")
        texts = not item.dtype.hasobject or h5py.check_string_dtype(item.dtype) is not None
        _require(texts, name, f"is of {item.dtype}, neither numbers nor texts")
        wide = math.prod((item.shape or ())[1:]) > LARGEST_RATIO
        fits = not (wide and item.dtype.hasobject)
        _require(fits, name, f"holds texts in the shape {item.shape}")
    return item


def _require(holds: bool, name: str, what: str) -> None:
    if not holds:
        raise FileFormatError(f"{name!r} {what}; NIR files hold their values themselves, once")


def vote_weight(classes: int, votes: int) -> Array:
    """(classes, classes · votes) float32: the mean of each class's neurons as a matrix."""
    means = np.kron(np.eye(classes), np.ones(votes)) / votes
    return means.astype(np.float32)


def try_reading(file: files.File, seconds: float | None = None) -> None:
    """Raise FileFormatError unless another process can read the NIR file in time.

    The HDF5 library loops for ever, or crashes, on some damaged files (a heap of texts with an
    object of size 0 is one). What a process can read is then read again by the caller.

    seconds: until it is given up; None: 20, and a second more per 10 MB.
    """
    path = files.path_of(file)
    command = [sys.executable, *PROGRAM, str(path)]
    try:
        with files.opened(file) as source, source.again() as stream:
            limit = SECONDS + SECONDS_PER_BYTE * source.size if seconds is None else seconds
            # Its standard input, so that it reads this very file, whatever is at the path by then.
            done = subprocess.run(
                command, stdin=stream, capture_output=True, text=True, timeout=limit, check=False
            )
    except subprocess.TimeoutExpired as error:
        raise FileFormatError(
            f"{path} is not an intact NIR file: the HDF5 library did not finish within {limit:g} s"
        ) from error
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"]
        raise FileFormatError(f"{path} is not an intact NIR file ({said[-1]})")


def main() -> None:
    """What that process does (`python -m`, this module's name): read its standard input, texts
    first, and nothing else."""
    with open(sys.stdin.fileno(), "rb", closefd=False) as stream:
        source = files.OpenFile(sys.argv[1], stream)
        most = MEMORY + 64 * source.size
        memory.limit_address_space(most)
        check_texts(source)
        nir_package().read(stream, type_check=False)


if __name__ == "__main__":
    main()
