"""Events from files and from standard input, as arrays that come one after the other.

records  16 bytes an event, little-endian: t uint64 in µs, x uint16, y uint16, p uint8, 3 bytes of
         padding
text     a line `t x y p` an event, separated by blanks or commas; lines that begin with # are notes
npy      an array with the fields t, x, y, p, or (N, 4) integers in that order
npz      arrays t, x, y, p, as SpikingJelly's events_np folders have them
aedat4, evt3   by the packages `aedat` and `evt3` (soul-deploy[events])

What is read is believed as little as any file: numbers that the fields of EVENT cannot hold, other
polarities than 0 and 1, and ends in the middle of an event are errors.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import IO, Any, Literal, TypeAlias, get_args

import numpy as np

from soul_deploy.base import Array, errors, files
from soul_deploy.base.events import EVENT, FIELDS, packed
from soul_deploy.base.files import OpenFile
from soul_deploy.runtime.io import arrays

InputFormat: TypeAlias = Literal["records", "text", "npy", "npz", "aedat4", "evt3"]
INPUT_FORMATS: tuple[InputFormat, ...] = get_args(InputFormat)
PIPED: tuple[InputFormat, ...] = ("records", "text")
RECORD = np.dtype([*EVENT.descr, ("", "V3")])
SUFFIXES: dict[str, InputFormat] = {
    ".npy": "npy",
    ".npz": "npz",
    ".txt": "text",
    ".csv": "text",
    ".events": "records",
    ".aedat4": "aedat4",
    ".raw": "evt3",
}
CHUNK = 1 << 16
"""Events of an array at most."""
LINE = 256
"""Bytes of a line of text at most."""


def format_of(path: Path, given: InputFormat | None) -> InputFormat:
    """The format that was given, or that the suffix says. Raises UsageError."""
    found = given or SUFFIXES.get(path.suffix.lower())
    if found is None:
        raise errors.UsageError(
            f"{path}: nothing says in which format its events are; give --input_format "
            f"{', '.join(INPUT_FORMATS)}"
        )
    return found


def read_events(path: Path, given: InputFormat | None = None) -> Iterator[Array]:
    """Events (N,) of EVENT of a file, array by array.

    Raises MissingFileError, FileFormatError, UsageError where a package is missing.
    """
    kind = format_of(path, given)
    files.require_file(path)
    if kind in PIPED:
        with path.open("rb") as stream:
            yield from stream_events(stream, kind, str(path))
    elif kind == "aedat4":
        yield from _aedat4(path)
    elif kind == "evt3":
        yield from _in_chunks(_evt3(path))
    else:
        with OpenFile(path) as source:
            found = _npy(source) if kind == "npy" else _npz(source)
        yield from _in_chunks(found)


def stream_events(stream: IO[bytes], kind: InputFormat, name: str) -> Iterator[Array]:
    """Events of a stream of bytes, as soon as they are there. Raises FileFormatError."""
    if kind == "records":
        yield from _records(stream, name)
    elif kind == "text":
        yield from _text(stream, name)
    else:
        raise errors.UsageError(
            f"{name}: {kind} does not come through a pipe; give --input_format "
            f"{' or '.join(PIPED)}, or a file"
        )


def _records(stream: IO[bytes], name: str) -> Iterator[Array]:
    read = getattr(stream, "read1", stream.read)  # what is there, without waiting for more
    rest = b""
    while part := read(RECORD.itemsize * CHUNK):
        rest += part
        whole = len(rest) - len(rest) % RECORD.itemsize
        if whole:
            found = np.frombuffer(rest[:whole], RECORD)
            yield _checked(packed(name, *(found[field] for field in FIELDS)), name)
            rest = rest[whole:]
    errors.require(not rest, f"{name} ends in the middle of an event: {len(rest)} bytes of 16")


def _text(stream: IO[bytes], name: str) -> Iterator[Array]:
    rows: list[tuple[int, ...]] = []
    number = 0
    while line := stream.readline(LINE + 1):
        number += 1
        errors.require(len(line) <= LINE, f"{name}: line {number} is longer than {LINE} bytes")
        words = line.replace(b",", b" ").split()
        if not words or words[0].startswith(b"#"):
            continue
        fits = len(words) == len(FIELDS) and all(w.isdigit() and len(w) <= 20 for w in words)
        told = line[:60].decode("ascii", "backslashreplace").strip()
        errors.require(
            fits, f"{name}: line {number} is {told!r}; needed is `t x y p`, four integers"
        )
        rows.append(tuple(map(int, words)))
        if len(rows) == CHUNK or not _more(stream):
            yield _of_rows(rows, name)
            rows = []
    if rows:
        yield _of_rows(rows, name)


def _more(stream: IO[bytes]) -> bool:
    """Whether more lines are there without waiting; of what cannot say, that there are."""
    peek = getattr(stream, "peek", None)
    buffered = getattr(stream, "seekable", lambda: False)()
    return buffered or peek is None or b"\n" in peek()


def _of_rows(rows: list[tuple[int, ...]], name: str) -> Array:
    try:
        columns = np.array(rows, np.uint64).T
    except OverflowError as error:
        raise errors.FileFormatError(f"{name}: a number beyond 64 bits") from error
    return _checked(packed(name, *columns), name)


def _npy(source: OpenFile) -> Array:
    found, name = arrays.read_npy(source), str(source.path)
    if found.dtype.names is not None:
        missing = [field for field in FIELDS if field not in found.dtype.names]
        errors.require(not missing, f"{name}: no field {missing[:1]}; needed are t, x, y and p")
        columns = [found[field] for field in FIELDS]
    else:
        errors.require(
            found.ndim == 2 and found.shape[1] == len(FIELDS),
            f"{name} is {found.dtype} {found.shape}; needed are fields t, x, y, p or (N, 4)",
        )
        columns = list(found.T)
    return _checked(packed(name, *columns), name)


def _npz(source: OpenFile) -> Array:
    names = arrays.npz_names(source)
    missing = [field for field in FIELDS if field not in names]
    errors.require(not missing, f"{source.path}: no array {missing[:1]}; needed are t, x, y and p")
    found = arrays.read_npz(source, FIELDS)
    columns = [found[field] for field in FIELDS]
    return _checked(packed(str(source.path), *columns), str(source.path))


def _aedat4(path: Path) -> Iterator[Array]:
    package = _package("aedat", path)
    with _foreign(path, "AEDAT4"):
        for packet in package.Decoder(str(path)):
            if "events" in packet:
                found = packet["events"]
                on = "on" if "on" in found.dtype.names else "p"
                columns = [found[field] for field in ("t", "x", "y", on)]
                yield from _in_chunks(_checked(packed(str(path), *columns), str(path)))


def _evt3(path: Path) -> Array:
    package = _package("evt3", path)
    with _foreign(path, "EVT3"):
        found = package.decode_file(str(path))
        columns = found.timestamp, found.x, found.y, found.polarity
        return _checked(packed(str(path), *map(np.asarray, columns)), str(path))


def _package(name: str, path: Path) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise errors.UsageError(
            f"{path}: reading it needs the package {name}, which is not installed ({error}): pip "
            f"install {name}, or soul-deploy[events]"
        ) from error


@contextmanager
def _foreign(path: Path, what: str) -> Iterator[None]:
    """Whatever a package raises as a FileFormatError."""
    try:
        yield
    except (errors.SoulDeployError, MemoryError):
        raise
    except Exception as error:
        raise errors.FileFormatError(f"{path} cannot be read as {what}: {error}") from error


def _checked(events: Array, name: str) -> Array:
    most = int(events["p"].max(initial=0))
    errors.require(most <= 1, f"{name}: a polarity of {most}; known are 0 and 1")
    return events


def _in_chunks(events: Array) -> Iterator[Array]:
    for first in range(0, len(events), CHUNK):
        yield events[first : first + CHUNK]


def write_records(events: Array) -> bytes:
    """Events (N,) of EVENT as records."""
    found = np.zeros(len(events), RECORD)
    for field in FIELDS:
        found[field] = events[field]
    return found.tobytes()


assert RECORD.itemsize == 16 and EVENT.names == FIELDS
