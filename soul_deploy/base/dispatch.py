"""Operation tables: what one consumer does with each operation, a function for each class.

A table is a function whose body says what happens to an operation that nobody entered: it is
refused. `tables_over` gives all tables over one family of classes, so that a test can name what
is missing when an operation is added.
"""

from collections.abc import Callable, Iterable
from functools import singledispatch, update_wrapper
from typing import Any, Generic, TypeVar

from soul_deploy.base.errors import SoulDeployError

Result = TypeVar("Result")
Entry = TypeVar("Entry", bound=Callable[..., Any])


class OperationTable(Generic[Result]):
    """A function of an operation, whose entry is chosen by the class of its first argument.

    A class without an entry takes that of its nearest base class.
    """

    def __init__(self, fallback: Callable[..., Result], family: type) -> None:
        self.family = family
        self._entries = singledispatch(fallback)
        self._fallback = fallback
        update_wrapper(self, fallback)

    def __call__(self, operation: Any, /, *args: Any, **named: Any) -> Result:
        return self._entries.dispatch(type(operation))(operation, *args, **named)

    def on(self, *kinds: type) -> Callable[[Entry], Entry]:
        """Enter the decorated function for operations of `kinds`. Raises ValueError if one is."""

        def enter(function: Entry) -> Entry:
            for kind in kinds:
                if kind in self._entries.registry and kind is not object:
                    raise ValueError(f"{self.name}: {kind.__name__} is entered twice")
                self._entries.register(kind, function)
            return function

        return enter

    def refuse(self, *kinds: type, error: Callable[[Any], SoulDeployError]) -> None:
        """Operations of `kinds` are known and refused: raise `error(operation)` for them."""

        def refused(operation: Any, *args: Any, **named: Any) -> Result:
            raise error(operation)

        self.on(*kinds)(refused)

    def of(self, kind: type) -> Callable[..., Result]:
        """The entry of a class, for tables whose operations are yet to be made."""
        return self._entries.dispatch(kind)

    def forget(self, *kinds: type) -> None:
        """Take the entries of `kinds` out again."""
        kept = [(k, f) for k, f in self._entries.registry.items() if k not in (object, *kinds)]
        self._entries = singledispatch(self._fallback)
        for kind, function in kept:
            self._entries.register(kind, function)

    def unknown(self, operation: Any) -> NotImplementedError:
        """What the function itself raises for an operation that nobody entered."""
        return NotImplementedError(f"{self.name}: {type(operation).__name__} has no entry")

    @property
    def kinds(self) -> tuple[Any, ...]:
        """The classes that have an entry of their own, as they were entered."""
        return tuple(kind for kind in self._entries.registry if kind is not object)

    @property
    def name(self) -> str:
        """The function's module and name."""
        return f"{self._fallback.__module__}.{self._fallback.__qualname__}"

    def missing(self, kinds: Iterable[type]) -> list[str]:
        """Names of those of `kinds` that have no entry."""
        return [k.__name__ for k in kinds if self._entries.dispatch(k) is self._fallback]


_tables: list[OperationTable[Any]] = []


def operation_table(family: type) -> Callable[[Callable[..., Result]], OperationTable[Result]]:
    """Make the decorated function a table over the subclasses of `family`.

    The function itself is called for operations without an entry; it should raise.
    """

    def make(function: Callable[..., Result]) -> OperationTable[Result]:
        table = OperationTable(function, family)
        _tables.append(table)
        return table

    return make


def tables_over(family: type) -> tuple[OperationTable[Any], ...]:
    """All tables over `family` whose modules were imported."""
    return tuple(table for table in _tables if table.family is family)
