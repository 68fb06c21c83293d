"""JSON from files: what its data will take is estimated from the text, before it is parsed.

Three bytes (`[],`) become an object of 64 bytes and its place, so that a text's length says little.
"""

import json
from typing import Any

from soul_deploy.base import errors, memory

DESCRIPTION_BYTES = 128 << 20
"""What the data of one text may take, unless the caller allows more. The descriptions of networks
with 3,000 layers take 15 MB."""

PER_BYTE = 8  # the text, decoded, and its parts; a letter takes up to four bytes
PER_LIST, PER_DICT, PER_ITEM, PER_QUOTE = 64, 256, 48, 28


def json_bytes(text: str | bytes) -> int:
    """What parsing a JSON text takes at most, in bytes."""
    counts = {mark: _count(text, mark) for mark in '[{,"'}
    return (
        PER_BYTE * len(text)
        + PER_LIST * counts["["]
        + PER_DICT * counts["{"]
        + PER_ITEM * (counts[","] + counts["["] + counts["{"] + 1)
        + PER_QUOTE * counts['"']
    )


def _count(text: str | bytes, mark: str) -> int:
    return text.count(mark) if isinstance(text, str) else text.count(mark.encode())


def require_length(what: str, length: int, max_memory: int | None) -> None:
    """Raise LimitError if a text of `length` bytes is too long, whatever it says."""
    _require(what, PER_BYTE * length, max_memory)


def parse_json(
    text: str | bytes, what: str, *, max_memory: int | None = None, strict: bool = False
) -> Any:
    """JSON data of a text (bytes: UTF-8).

    what: starts the errors. max_memory: bytes that the data may take; None: DESCRIPTION_BYTES.
    strict: also refuse names that stand twice in one object, texts that are no Unicode, and
    numbers that JSON does not have. Raises FileFormatError, LimitError.
    """
    _require(what, json_bytes(text), max_memory)
    hooks: dict[str, Any] = (
        {"object_pairs_hook": _each_once, "parse_constant": _no_number} if strict else {}
    )
    try:
        return json.loads(text if isinstance(text, str) else text.decode("utf-8"), **hooks)
    except (ValueError, RecursionError) as error:  # too many digits are a plain ValueError
        raise errors.FileFormatError(f"{what} is not JSON ({error})") from error


def _require(what: str, needed: int, max_memory: int | None) -> None:
    allowed = DESCRIPTION_BYTES if max_memory is None else max_memory
    if needed > allowed:
        raise errors.LimitError(
            f"{what}, as JSON data, needs {needed:,} bytes of memory; allowed are {allowed:,}. "
            f"{memory.RAISE_IT}"
        )


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands twice")
    for name, value in pairs:
        name.encode()  # half of a pair of surrogates is a ValueError
        if isinstance(value, str):
            value.encode()
    return found


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is no number of JSON")
