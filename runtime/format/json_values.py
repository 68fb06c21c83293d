"""Values of JSON data by type. Each function raises TypeError or ValueError for another type."""

from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


def integer(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{value!r} is not an integer")
    return value


def number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{value!r} is not a number")
    return float(value)


def truth(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{value!r} is not true or false")
    return value


def text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not text")
    return value


def items(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError(f"{value!r} is not a list")
    return value


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


def optional(read: Callable[[Any], T], value: Any) -> T | None:
    return None if value is None else read(value)
