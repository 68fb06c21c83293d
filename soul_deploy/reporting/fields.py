"""Values of a JSON document, each checked before it is believed."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from soul_deploy.base import errors

LONGEST = 2000  # characters of a text


@dataclass(frozen=True)
class Fields:
    """A JSON object of the file `where`. Each method raises FileFormatError for another value."""

    where: str
    data: Mapping[str, Any]

    def text(self, name: str) -> str:
        """A text, cut off at LONGEST."""
        value = self.data.get(name)
        self._require(isinstance(value, str), name, "a text")
        return str(value)[:LONGEST]

    def maybe_text(self, name: str) -> str | None:
        return None if self.data.get(name) is None else self.text(name)

    def number(self, name: str) -> float:
        """A finite number."""
        value = self.data.get(name)
        plain = isinstance(value, int | float) and not isinstance(value, bool)
        self._require(plain and math.isfinite(value or 0), name, "a finite number")
        return float(value or 0)

    def maybe(self, name: str) -> float | None:
        """A finite number, or None for null and for a name that is not there."""
        return None if self.data.get(name) is None else self.number(name)

    def whole(self, name: str) -> int:
        """An integer from 0."""
        value = self.data.get(name)
        fits = isinstance(value, int) and not isinstance(value, bool) and value >= 0
        self._require(fits, name, "an integer from 0")
        return int(value or 0)

    def flag(self, name: str) -> bool:
        value = self.data.get(name)
        self._require(isinstance(value, bool), name, "true or false")
        return bool(value)

    def part(self, name: str) -> "Fields":
        """An object."""
        value = self.data.get(name)
        self._require(isinstance(value, dict), name, "an object")
        return Fields(f"{self.where}: {name}", value or {})

    def maybe_part(self, name: str) -> "Fields | None":
        return None if self.data.get(name) is None else self.part(name)

    def parts(self, name: str) -> Iterator["Fields"]:
        """The objects of a list; none for a name that is not there."""
        value = self.data.get(name) or []
        self._require(isinstance(value, list), name, "a list")
        for item in value:
            self._require(isinstance(item, dict), name, "a list of objects")
            yield Fields(f"{self.where}: {name}", item)

    def texts(self, name: str) -> tuple[str, ...]:
        """A list of texts; none for a name that is not there."""
        value = self.data.get(name) or []
        fits = isinstance(value, list) and all(isinstance(item, str) for item in value)
        self._require(fits, name, "a list of texts")
        return tuple(item[:LONGEST] for item in value)

    def numbers(self, name: str) -> dict[str, float]:
        """An object of finite numbers, by name."""
        part = self.part(name)
        return {key: part.number(key) for key in part.data}

    def _require(self, holds: object, name: str, what: str) -> None:
        errors.require(holds, f"{self.where}: {name!r} is not {what}; print it again")
