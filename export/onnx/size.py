"""What an ONNX file's structure takes, before it is parsed: two bytes become a node of hundreds."""

from collections.abc import Iterator
from typing import Any

from onnx import ModelProto

from soul_deploy.base import errors, json_text, memory, opening

MESSAGE_BYTES = 400  # of a node, a value or the like: in Python's parser, and in the checker's
VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5  # wire types


def require_structure(source: opening.OpenFile, max_memory: int | None = None) -> None:
    """Raise LimitError if nodes, attributes, values and so on take more than `max_memory` bytes.

    None: DESCRIPTION_BYTES. What is no ONNX file is left to the parser.
    """
    allowed = json_text.DESCRIPTION_BYTES if max_memory is None else max_memory
    most = allowed // MESSAGE_BYTES
    for count, _ in enumerate(_messages(source.data.data), 1):
        if count > most:
            raise errors.LimitError(
                f"{source} has more than {most:,} nodes, values and other parts, which need more "
                f"than {allowed:,} bytes of memory. {memory.RAISE_IT}"
            )


def _messages(data: memoryview) -> Iterator[None]:
    """One for every field that is a message, at any depth; ends where the bytes are none."""
    pending: list[tuple[int, int, Any]] = [(0, len(data), ModelProto.DESCRIPTOR)]
    while pending:
        at, end, kind = pending.pop()
        while at < end:
            key, at = _varint(data, at, end)
            if key & 7 == LENGTH:
                length, at = _varint(data, at, end)
                field = kind.fields_by_number.get(key >> 3)
                if field is not None and field.message_type is not None and at + length <= end:
                    pending.append((at, at + length, field.message_type))
                    yield None
                at += length
            elif key & 7 == VARINT:
                _, at = _varint(data, at, end)
            elif key & 7 in (FIXED64, FIXED32):
                at += 8 if key & 7 == FIXED64 else 4
            else:
                break


def _varint(data: memoryview, at: int, end: int) -> tuple[int, int]:
    """The number that begins at `at`, and where the next field does; `end` if it is none."""
    value = shift = 0
    while at < end and shift < 70:
        byte = data[at]
        value, shift, at = value | (byte & 127) << shift, shift + 7, at + 1
        if byte < 128:
            return value, at
    return 0, end
