"""Arrays of numbers: .npy files, .npz archives, .npy from a stream. Nothing is unpickled.

A header says how many bytes follow; that is compared with what is there, and with what may be
taken, before any memory is.
"""

import math
import zipfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import IO, Any

import numpy as np

from soul_deploy.base import Array, errors, memory
from soul_deploy.base.opening import OpenFile

MAX_ENTRIES = 64
CHUNK = 1 << 20
INSTEAD = "Give fewer samples"
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""What numpy writes."""


def read_npy(source: OpenFile) -> Array:
    """The array of a .npy file, mapped and read-only. Raises FileFormatError."""
    with _told(f"{source} is not a .npy file of numbers"):
        shape, by_columns, dtype = _header(source.stream)
        begin, needed = source.stream.tell(), math.prod(shape) * dtype.itemsize
        if begin + needed > source.size:
            raise ValueError(f"{needed} bytes of values announced, {source.size - begin} there")
        values: Array = source.data[begin : begin + needed].view(dtype)
        return values.reshape(shape, order="F" if by_columns else "C")


def read_npy_stream(stream: IO[bytes], name: str, max_memory: int | None = None) -> Array:
    """The array of a .npy file that comes through a pipe; the stream must end behind it.

    max_memory: bytes that it may take; None: 4 GiB. Raises FileFormatError, LimitError.
    """
    with _told(f"{name} is not a .npy file of numbers"):
        return _unpacked(stream, name, memory.WORK_BYTES if max_memory is None else max_memory)


def npz_names(source: OpenFile) -> tuple[str, ...]:
    """Names of a .npz archive's arrays. Raises FileFormatError."""
    with _archive(source) as archive:
        return tuple(_entries(archive))


def read_npz(source: OpenFile, names: Collection[str]) -> dict[str, Array]:
    """These arrays of a .npz archive, which holds them.

    Raises FileFormatError, or LimitError if they take more memory than 4 GiB and more than the
    file's size explains.
    """
    found: dict[str, Array] = {}
    room = max(memory.WORK_BYTES, source.size)
    with _archive(source) as archive:
        entries = _entries(archive)
        for name in names:
            with archive.open(entries[name]) as stream:
                found[name] = _unpacked(stream, f"{source}: {name}", room)
            room -= found[name].nbytes
    return found


def _entries(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    every = archive.infolist()
    if len(every) > MAX_ENTRIES:
        raise ValueError(f"{len(every)} entries; the limit is {MAX_ENTRIES}")
    names = [entry.filename.removesuffix(".npy") for entry in every]
    if len(set(names)) < len(names):
        raise ValueError("two entries of one name")
    for entry in every:
        encrypted = entry.flag_bits & 1
        if encrypted or entry.compress_type not in METHODS or entry.filename in names:
            raise ValueError(f"{entry.filename!r} is no array that numpy wrote")
    return dict(zip(names, every, strict=True))


@contextmanager
def _archive(source: OpenFile) -> Iterator[zipfile.ZipFile]:
    with _told(f"{source} is not a .npz archive of arrays"):
        source.stream.seek(0)
        with zipfile.ZipFile(source.stream) as archive:
            yield archive


def _unpacked(stream: IO[bytes], name: str, allowed: int) -> Array:
    """The array whose header and bytes are all that the stream holds."""
    shape, by_columns, dtype = _header(stream)
    needed = math.prod(shape) * dtype.itemsize
    memory.require_memory(name, needed, min(allowed, memory.machine_memory()), INSTEAD)
    content = bytearray()  # grows with what comes, whatever was announced
    while len(content) < needed:
        part = stream.read(min(CHUNK, needed - len(content)))
        if not part:
            raise ValueError(f"{needed} bytes of values announced, {len(content)} there")
        content += part
    if stream.read(1):
        raise ValueError(f"more than the {needed} bytes of values that were announced")
    values: Array = np.frombuffer(content, dtype)
    return values.reshape(shape, order="F" if by_columns else "C")


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, Any]:
    """Shape, whether columns come first, dtype. Raises what numpy does for what is no header."""
    version = np.lib.format.read_magic(stream)
    if version not in ((1, 0), (2, 0), (3, 0)):
        raise ValueError(f"a header of version {version}")
    first = version == (1, 0)
    read = np.lib.format.read_array_header_1_0 if first else np.lib.format.read_array_header_2_0
    shape, by_columns, dtype = read(stream)
    if dtype.hasobject:
        raise ValueError("it holds Python objects")
    if min(shape, default=0) < 0:
        raise ValueError(f"a shape of {shape}")
    return shape, by_columns, dtype


@contextmanager
def _told(problem: str) -> Iterator[None]:
    """Whatever goes wrong as a FileFormatError that begins with `problem`; errors of ours stay.

    A header is a Python literal, an archive a directory of offsets: both fail in a dozen ways.
    """
    try:
        yield
    except (errors.SoulDeployError, MemoryError):
        raise
    except Exception as error:
        raise errors.FileFormatError(f"{problem} ({error})") from error
