"""A pickle as data: what loading it would make, read from its opcodes.

Loading a pickle imports and calls whatever it names. Here a name stays a text, and a call stays a
record of it: nothing is imported, called or built.
"""

import pickletools
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from soul_deploy.base import errors, memory

BYTES_PER_CODE = 256
"""What one opcode takes at most here: a record with its lists."""
PERSISTENT = "persistent id"
"""The name of what a pickle takes from outside itself; the values of tensors."""


@dataclass(eq=False, slots=True)
class Made:
    """What an opcode would make: a container, or the result of a call.

    name    "dict", "list", "tuple" or "set" for Python's own; else the dotted name of what is
            called, or named only (`called` is False)
    values  the elements of a container, or the arguments of the call
    items   keys and values that were put into it, in their order
    state   what the object is told after the call; None: nothing
    """

    name: str
    values: list[Any] = field(default_factory=list)
    items: list[tuple[Any, Any]] = field(default_factory=list)
    state: Any = None
    called: bool = True


@dataclass
class PickleData:
    """root: what the whole pickle would make. names: every dotted name that it would import."""

    root: Any
    names: tuple[str, ...]


def read_pickle(
    stream: Any, what: str, max_memory: int, advice: str = memory.RAISE_IT
) -> PickleData:
    """The next pickle of `stream`, which then stands behind it.

    what: starts the errors. max_memory: bytes that the records may take; advice: what to do where
    they are too few. Raises FileFormatError
    for what is no pickle, LimitError.
    """
    machine, most = _Machine(), max_memory // BYTES_PER_CODE
    try:
        for count, (code, argument, _) in enumerate(pickletools.genops(stream), 1):
            if count > most:
                raise errors.LimitError(
                    f"{what} has more than {most:,} opcodes, which need more than {max_memory:,} "
                    f"bytes of memory. {advice}"
                )
            machine.step(code.name, argument)
        return PickleData(machine.pop(), tuple(machine.names))
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise errors.FileFormatError(f"{what} is no intact pickle ({error!r:.80})") from error


class _Machine:
    """The stack that opcodes work on, as Python's unpickler has it."""

    def __init__(self) -> None:
        self.names: dict[str, None] = {}
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def step(self, name: str, argument: Any) -> None:
        """What one opcode does. Raises KeyError for one that we do not know."""
        if name in PUSHED:
            self._stack.append(argument)
        elif name in FRESH:
            self._stack.append(FRESH[name]())
        elif name in SIZES:
            self._stack.append(Made("tuple", [self.pop() for _ in range(SIZES[name])][::-1]))
        elif name in MARKED:
            self._stack.append(Made(MARKED[name], self._from_mark()))
        elif name not in IGNORED:
            RULES[name](self, argument)

    def pop(self) -> Any:
        """What lies on top. Raises IndexError below a mark."""
        if self._marks and len(self._stack) == self._marks[-1]:
            raise IndexError("nothing above the mark")
        return self._stack.pop()

    def mark(self, _: Any) -> None:
        self._marks.append(len(self._stack))

    def discard(self, _: Any) -> None:
        if self._marks and len(self._stack) == self._marks[-1]:
            self._marks.pop()
        else:
            self._stack.pop()

    def drop_to_mark(self, _: Any) -> None:
        self._from_mark()

    def again(self, _: Any) -> None:
        self._stack.append(self._stack[-1])

    def put(self, place: Any) -> None:
        self._memo[len(self._memo) if place is None else place] = self._stack[-1]

    def get(self, place: Any) -> None:
        self._stack.append(self._memo[place])

    def named(self, text: Any) -> None:
        """GLOBAL: the argument is "module name"; STACK_GLOBAL: both lie on the stack."""
        if text is None:
            name, module = self.pop(), self.pop()
            text = f"{module} {name}" if isinstance(module, str) and isinstance(name, str) else "?"
        dotted = text.replace(" ", ".")
        self.names[dotted] = None
        self._stack.append(Made(dotted, called=False))

    def call(self, _: Any) -> None:
        """REDUCE and NEWOBJ: a name and a tuple of arguments."""
        arguments, target = self.pop(), self.pop()
        self._stack.append(Made(_name(target), list(_values(arguments))))

    def call_with_keywords(self, _: Any) -> None:
        keywords, arguments, target = self.pop(), self.pop(), self.pop()
        made = Made(_name(target), list(_values(arguments)), list(getattr(keywords, "items", ())))
        self._stack.append(made)

    def call_from_mark(self, text: Any) -> None:
        """INST names its class, OBJ has it above the mark."""
        arguments = self._from_mark()
        if text is not None:
            self.named(text)
            arguments = [self.pop(), *arguments]
        self._stack.append(Made(_name(arguments[0]), arguments[1:]))

    def append(self, _: Any) -> None:
        value = self.pop()
        self._top().values.append(value)

    def extend(self, _: Any) -> None:
        values = self._from_mark()
        self._top().values.extend(values)

    def set_item(self, _: Any) -> None:
        value, key = self.pop(), self.pop()
        self._top().items.append((key, value))

    def set_items(self, _: Any) -> None:
        pairs = _pairs(self._from_mark())
        self._top().items.extend(pairs)

    def make_dict(self, _: Any) -> None:
        self._stack.append(Made("dict", items=_pairs(self._from_mark())))

    def tell(self, _: Any) -> None:
        state = self.pop()
        self._top().state = state

    def from_outside(self, text: Any) -> None:
        given = self.pop() if text is None else text
        self._stack.append(Made(PERSISTENT, list(_values(given))))

    def _top(self) -> Made:
        """What is changed; a text or a number cannot be."""
        made = self._stack[-1]
        if not isinstance(made, Made):
            raise TypeError("a value that nothing can be put into")
        return made

    def _from_mark(self) -> list[Any]:
        place = self._marks.pop()
        found = self._stack[place:]
        del self._stack[place:]
        return found


def _pairs(flat: list[Any]) -> list[tuple[Any, Any]]:
    return list(zip(flat[::2], flat[1::2], strict=True))


def _values(given: Any) -> list[Any]:
    return given.values if isinstance(given, Made) and given.name == "tuple" else [given]


def _name(target: Any) -> str:
    if isinstance(target, Made) and target.name == PERSISTENT and target.values[:1] == ["module"]:
        target = target.values[1]  # PyTorch's legacy files hold the source of classes beside them
    return target.name if isinstance(target, Made) else "?"


IGNORED = frozenset(("PROTO", "FRAME", "STOP", "READONLY_BUFFER"))
PUSHED = frozenset(
    (
        *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
        *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE"),
        *("BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
    )
)
FRESH: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": lambda: Made("dict"),
    "EMPTY_LIST": lambda: Made("list"),
    "EMPTY_TUPLE": lambda: Made("tuple"),
    "EMPTY_SET": lambda: Made("set"),
    "NEXT_BUFFER": lambda: Made("buffer"),
}
SIZES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
MARKED = {"TUPLE": "tuple", "LIST": "list", "FROZENSET": "set"}
RULES: dict[str, Callable[[_Machine, Any], None]] = {
    "MARK": _Machine.mark,
    "POP": _Machine.discard,
    "POP_MARK": _Machine.drop_to_mark,
    "DUP": _Machine.again,
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"), _Machine.put),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _Machine.get),
    **dict.fromkeys(("GLOBAL", "STACK_GLOBAL"), _Machine.named),
    **dict.fromkeys(("REDUCE", "NEWOBJ"), _Machine.call),
    "NEWOBJ_EX": _Machine.call_with_keywords,
    **dict.fromkeys(("INST", "OBJ"), _Machine.call_from_mark),
    "APPEND": _Machine.append,
    **dict.fromkeys(("APPENDS", "ADDITEMS"), _Machine.extend),
    "SETITEM": _Machine.set_item,
    "SETITEMS": _Machine.set_items,
    "DICT": _Machine.make_dict,
    "BUILD": _Machine.tell,
    **dict.fromkeys(("PERSID", "BINPERSID"), _Machine.from_outside),
}
