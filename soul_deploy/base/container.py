"""The container of our files, safetensors: a JSON header, then raw arrays side by side.

The library opens paths only, or copies every array. Here the header is read from the file that is
open already, by the library's rules, and the arrays are views of its mapped bytes.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from soul_deploy.base import Array, errors, json_text, opening

DTYPES = {
    "F32": "<f4",
    "F64": "<f8",
    "I64": "<i8",
    "I32": "<i4",
    "U32": "<u4",
    "U16": "<u2",
    "I16": "<i2",
    "I8": "i1",
    "U8": "u1",
    "BOOL": "?",
}
METADATA = "__metadata__"
MAX_HEADER = 100_000_000  # bytes; the library's
FIELDS = ("dtype", "shape", "data_offsets")
MAX_SIDES = 64  # numpy's


class _BrokenError(Exception):
    """What makes a file no safetensors file."""


class _DtypeError(Exception):
    """An array that may be intact, and of numbers that we do not use."""


@dataclass(frozen=True)
class Place:
    """Where an array lies; bytes count from the end of the header."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class Header:
    """What the arrays are, by name; the metadata's texts; and how long it is itself, in bytes."""

    places: Mapping[str, Place]
    metadata: Mapping[str, str]
    length: int


def read_header(file: opening.OpenFile, max_memory: int | None = None) -> Header:
    """The header, checked: its arrays lie side by side and fill the file.

    max_memory: bytes that it may take as data; None: DESCRIPTION_BYTES of json_text.py.
    Raises FileFormatError, LimitError.
    """
    try:
        raw = _header_bytes(file, max_memory)
        found = _parsed(raw, f"{file}: its header", max_memory)
        metadata = found.pop(METADATA, None) or {}
        texts = isinstance(metadata, dict) and all(isinstance(v, str) for v in metadata.values())
        _require(texts, "its metadata are no texts")
        places = {name: _place(name, entry) for name, entry in found.items()}
        _require_filled(places, file.size - 8 - len(raw))
    except _BrokenError as error:
        raise errors.FileFormatError(
            f"{file} is not an intact safetensors file ({error}); it may be truncated or of "
            "another format"
        ) from error
    except _DtypeError as error:
        raise errors.FileFormatError(f"{file}: {error}") from error
    return Header(places, metadata, 8 + len(raw))


def _header_bytes(file: opening.OpenFile, max_memory: int | None) -> bytes:
    _require(file.size >= 8, f"{file.size} bytes, no room for a header")
    length = int.from_bytes(file.data[:8].tobytes(), "little")
    _require(length <= MAX_HEADER, f"a header of {length} bytes; at most {MAX_HEADER} are read")
    _require(8 + length <= file.size, f"a header of {length} bytes in {file.size}")
    start = file.data[8 : 8 + min(length, 64)].tobytes()
    _require(start.lstrip(b" \t\r\n").startswith(b"{"), "its header is no JSON object")
    json_text.require_length(f"{file}: its header", length, max_memory)
    return file.data[8 : 8 + length].tobytes()


def _parsed(raw: bytes, what: str, max_memory: int | None) -> dict[str, Any]:
    try:
        found = json_text.parse_json(raw, what, max_memory=max_memory, strict=True)
    except errors.FileFormatError as error:
        raise _BrokenError(str(error.__cause__)) from error
    if not isinstance(found, dict):
        raise _BrokenError("its header is no JSON object")
    return found


def _place(name: str, entry: Any) -> Place:
    known = isinstance(entry, dict) and all(field in entry for field in FIELDS)
    _require(known, f"tensor {name!r} without {', '.join(FIELDS)}")
    dtype, shape, offsets = (entry[field] for field in FIELDS)
    _require(_naturals(shape) and _naturals(offsets), f"tensor {name!r}: no shape, or no place")
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise _DtypeError(
            f"tensor {name!r} has dtype {str(dtype)[:40]}; readable: {', '.join(DTYPES)}"
        )
    _require(len(offsets) == 2, f"tensor {name!r}: {len(offsets)} offsets")
    _require(len(shape) <= MAX_SIDES, f"tensor {name!r} has {len(shape)} sides")
    begin, end = offsets
    needed = math.prod(shape) * np.dtype(DTYPES[dtype]).itemsize
    _require(end - begin == needed, f"tensor {name!r}: {end - begin} bytes for {needed}")
    return Place(dtype, tuple(shape), begin, end)


def _naturals(value: Any) -> bool:
    """Whether it is a list of integers from 0 on, none of them beyond what an index can be."""
    return isinstance(value, list) and all(
        isinstance(n, int) and not isinstance(n, bool) and 0 <= n < 1 << 63 for n in value
    )


def _require_filled(places: Mapping[str, Place], room: int) -> None:
    """Arrays one behind the other, from the first byte to the last."""
    at = 0
    for name, place in sorted(places.items(), key=lambda item: (item[1].begin, item[1].end)):
        _require(place.begin == at, f"tensor {name!r} begins at {place.begin}, not at {at}")
        at = place.end
    _require(at == room, f"its arrays take {at} bytes, and it has {room}")


def _require(holds: bool, problem: str) -> None:
    if not holds:
        raise _BrokenError(problem)


def map_arrays(file: opening.OpenFile, header: Header) -> dict[str, Array]:
    """Views of the mapped file, read-only. Raises FileFormatError for sides that numpy lacks."""
    data = file.data[header.length :]
    arrays = {}
    for name, place in header.places.items():
        try:
            view = data[place.begin : place.end].view(DTYPES[place.dtype])
            arrays[name] = view.reshape(place.shape)
        except (ValueError, OverflowError) as error:
            raise errors.FileFormatError(
                f"{file}: tensor {name!r} cannot be mapped in the shape {place.shape} ({error})"
            ) from error
    return arrays
