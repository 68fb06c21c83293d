"""Values of JSON data by type. Each function raises TypeError or ValueError for another type."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

T = TypeVar("T")


def _reader(kind: type[T], what: str) -> Callable[[Any], T]:
    def read(value: Any) -> T:
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise TypeError(f"{value!r} is not {what}")
        return value

    return read


integer = _reader(int, "an integer")
truth = _reader(bool, "true or false")
text = _reader(str, "text")
items: Callable[[Any], list[Any]] = _reader(list, "a list")


def number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{value!r} is not a number")
    return float(value)


def integers(value: Any) -> tuple[int, ...]:
    found = tuple(integer(item) for item in items(value))
    if not found:
        raise ValueError("an empty shape")
    return found


def pair(value: Any) -> tuple[int, int]:
    first, second = integers(value)
    return first, second


def numbers(value: Any) -> tuple[float, ...]:
    return tuple(number(item) for item in items(value))


def by_name(read: Callable[[Any], T], value: Any) -> Mapping[str, T]:
    """An object, each of whose values `read` takes."""
    if not isinstance(value, dict):
        raise TypeError(f"{value!r} is not an object")
    return {name: read(item) for name, item in value.items()}


def optional(read: Callable[[Any], T], value: Any) -> T | None:
    return None if value is None else read(value)
