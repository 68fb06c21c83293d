"""Texts of objects that hold arrays: one short line that says what is there, never its numbers."""

from collections.abc import Mapping, Sequence, Set
from dataclasses import fields, is_dataclass
from itertools import islice
from typing import Any, TypeVar

FIELD = 240
"""Characters of one field's text; beyond, only its kind and size are said."""

SHOWN = 3
"""Items of a sequence or mapping that are shown."""

C = TypeVar("C", bound=type[Any])


def brief(cls: C) -> C:
    """Class decorator, above `@dataclass`: arrays and tensors are shown as dtype and shape.

    Fields with repr=False are left out, as by `@dataclass`.
    """
    cls.__repr__ = brief_repr  # type: ignore[assignment]
    return cls


def brief_repr(found: Any) -> str:
    """Name(field=text, …) of a dataclass instance."""
    shown = [item.name for item in fields(found) if item.repr]
    # An object that is being built or copied may lack fields.
    texts = [f"{name}={brief_text(vars(found)[name])}" for name in shown if name in vars(found)]
    return f"{type(found).__name__}({', '.join(texts)})"


def brief_text(value: Any) -> str:
    """`value` in at most about FIELD characters."""
    text = _text(value)
    return text if len(text) <= FIELD else _kind(value)


def _text(value: Any) -> str:
    if isinstance(value, str | bytes | int | float | complex | None):
        return repr(value)
    if _is_array(value):
        return _array_text(value)
    if isinstance(value, Mapping):
        items = [f"{key!r}: {brief_text(value[key])}" for key in islice(value, SHOWN)]
        return f"{{{_joined(items, len(value))}}}"
    if isinstance(value, Sequence | Set):
        opening, closing = "()" if isinstance(value, tuple) else "[]"
        if isinstance(value, tuple) and len(value) == 1:
            closing = ",)"
        inside = _joined([brief_text(item) for item in islice(value, SHOWN)], len(value))
        return f"{opening}{inside}{closing}"
    if is_dataclass(value) and not isinstance(value, type):
        return brief_repr(value) if type(value).__repr__ is brief_repr else repr(value)
    return repr(value) if type(value).__module__ == "pathlib" else _kind(value)


def _joined(items: list[str], count: int) -> str:
    return ", ".join([*items, *([f"… {count} in all"] if count > len(items) else [])])


def _is_array(value: Any) -> bool:
    found = not isinstance(value, type)  # np.float32 itself has both
    return found and hasattr(value, "dtype") and hasattr(value, "shape")


def _array_text(value: Any) -> str:
    return f"{str(value.dtype).removeprefix('torch.')}{tuple(value.shape)}"


def _kind(value: Any) -> str:
    """What it is, and how much of it."""
    if _is_array(value):
        return _array_text(value)
    size = f"{len(value)} items" if hasattr(value, "__len__") else "…"
    return f"{type(value).__name__}({size})"
