"""A program: kernel calls in order, run as one, without Python's lock from the first to the last.

Between two kernels that Python calls it looks up types and takes its lock back, for which threads
wait on each other, some 20 µs each time. A program calls each kernel's compiled function through a
*way in*, which reads the arguments from a table of 64-bit slots; there is one for each kernel and
types of arguments. Ways in are written as LLVM's text and barely optimised: objects for their
instructions, and numba's own passes, take ten times as long, at every start of a process.
"""

import ctypes
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

import numba
import numpy as np
from llvmlite import binding, ir
from numba import types
from numba.core import callconv
from numba.core.compiler_lock import global_compiler_lock
from numba.core.registry import cpu_target

from soul_deploy.base import brief
from soul_deploy.runtime.kernels.simd import WIDE, compiled

Bound = tuple[Callable[..., Any], tuple[Any, ...]]
"""A kernel and all its arguments."""

RETURNED, RETURNED_NONE = callconv.RETCODE_OK.constant, callconv.RETCODE_NONE.constant
type_of: Callable[[Any], Any] = numba.typeof  # untyped
SLOT = np.dtype(np.int64).itemsize
RUN = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p)
POINTER = str(WIDE.as_pointer())
"""As the installed LLVM writes it."""

_Wanted = tuple[Any, tuple[Any, ...]]
_made: dict[_Wanted, int] = {}
_engines: list[Any] = []


@brief
class Program:
    """Kernel calls, and the tables by which compiled code finds them and their arguments."""

    def __init__(self, calls: Sequence[Bound]) -> None:
        self.calls = tuple(calls)  # they keep the arrays alive
        if not compiled():
            return
        kinds = [tuple(map(type_of, arguments)) for _, arguments in self.calls]
        addresses = _ways_in(
            [(kernel, kind) for (kernel, _), kind in zip(calls, kinds, strict=True)]
        )
        numbers = [list(numbers_of(arguments)) for _, arguments in self.calls]
        self._numbers = np.array([each for few in numbers for each in few] or [0], np.int64)
        lengths = np.array([len(few) for few in numbers], np.int64)
        begins = self._numbers.ctypes.data + SLOT * (np.cumsum(lengths) - lengths)
        self._table = np.stack([np.array(addresses, np.int64), begins], axis=1)
        self._place, self._run = self._table.ctypes.data, RUN(runner())

    @property
    def place(self) -> int:
        """Where the table is that `runner` takes."""
        return self._place

    def run(self, delayed: Callable[[], None] = lambda: None, at: int = 0) -> None:
        """All calls in order from `at` on. delayed: called where a kernel returned another number
        than 0, which is then called again. Raises what a kernel raises.
        """
        if not compiled():
            for kernel, arguments in self.calls[at:]:
                while kernel(*arguments):
                    delayed()
            return
        end = len(self.calls)
        while (at := self._run(at, end, self._place)) < end:
            if at < 0:
                kernel, arguments = self.calls[-1 - at]
                kernel(*arguments)  # raises again
                raise AssertionError(f"{kernel}: failed once")
            delayed()


def numbers_of(values: Any) -> Iterator[int]:
    """What compiled kernels take, one number in each slot: an array is no object, no parent, its
    size, the bytes of an item, its address, shape and strides; tuples are their values.
    """
    for value in values:
        if isinstance(value, np.ndarray):
            yield from (0, 0, value.size, value.itemsize, value.ctypes.data)
            yield from (*value.shape, *value.strides)
        elif isinstance(value, tuple):
            yield from numbers_of(value)
        elif isinstance(value, np.float32):
            yield int(value.view(np.uint32))
        elif isinstance(value, int | np.integer | np.bool_):
            yield int(value)
        else:
            raise TypeError(f"{value!r}: a slot holds arrays, float32, integers and bool")


def _ways_in(wanted: Sequence[_Wanted]) -> list[int]:
    """The addresses of ways in; kernels that are not compiled are compiled for such arguments."""
    with global_compiler_lock:
        if new := [each for each in dict.fromkeys(wanted) if each not in _made]:
            texts = [_way_in(f"way_in_{i}", *each) for i, each in enumerate(new)]
            engine = _engine("\n".join(texts))
            for i, each in enumerate(new):
                _made[each] = engine.get_function_address(f"way_in_{i}")
        return [_made[each] for each in wanted]


def _engine(text: str) -> Any:
    """A module's compiled code, which stays."""
    target = binding.Target.from_default_triple().create_target_machine(opt=0, jit=True)
    engine = binding.create_mcjit_compiler(binding.parse_assembly(text), target)
    engine.finalize_object()
    _engines.append(engine)
    return engine


def _way_in(name: str, kernel: Any, kinds: tuple[Any, ...]) -> str:
    """LLVM's text of a way in: slots to 0, or to the integer that the kernel returns, or to -1 if
    it failed.
    """
    kernel.compile(kinds)
    found = kernel.overloads[kinds]
    address = found.library.get_pointer_to_function(found.fndesc.llvm_func_name)
    result, context = found.signature.return_type, cpu_target.target_context
    function = context.call_conv.get_function_type(result, kinds)
    (leaving, failure), taken = function.args[:2], function.args[2:]
    lines = [f"define i64 @{name}({POINTER} %slots) {{"]
    for argument, kind in (("leaving", leaving), ("failure", failure)):
        lines.append(f"%{argument} = alloca {kind.pointee}")
    for i, kind in enumerate(taken):
        pointer = ir.PointerType(kind)
        lines += [
            f"%p{i} = getelementptr i64, {POINTER} %slots, i64 {i}",
            f"%q{i} = bitcast {POINTER} %p{i} to {pointer}",
            f"%v{i} = load {kind}, {pointer} %q{i}",
        ]
    named = [f"{leaving} %leaving", f"{failure} %failure"]
    given = ", ".join(named + [f"{kind} %v{i}" for i, kind in enumerate(taken)])
    lines += [
        f"%kernel = inttoptr i64 {address} to {function.as_pointer()}",
        f"%status = call i32 %kernel({given})",
        f"%raised = icmp ne i32 %status, {RETURNED}",
        f"%valued = icmp ne i32 %status, {RETURNED_NONE}",
        "%fails = and i1 %raised, %valued",
    ]
    if result == types.int64:
        lines.append(f"%returned = load i64, {leaving} %leaving")
    else:
        lines.append("%returned = add i64 0, 0")
    lines += ["%found = select i1 %fails, i64 -1, i64 %returned", "ret i64 %found", "}"]
    return "\n".join(lines)


@cache
def runner() -> int:
    """The address of run(first, last, table): the calls from `first` on, (way in, slots) each;
    returns where it stopped: `last`, a call that returned another number than 0, or -1 - a call
    that failed.
    """
    entry = ir.PointerType(ir.FunctionType(WIDE, [WIDE.as_pointer()]))
    text = f"""
define i64 @run(i64 %first, i64 %last, {POINTER} %table) {{
begin:
  br label %look
look:
  %i = phi i64 [%first, %begin], [%next, %call]
  %more = icmp slt i64 %i, %last
  br i1 %more, label %call, label %end
call:
  %at = shl i64 %i, 1
  %behind = add i64 %at, 1
  %p = getelementptr i64, {POINTER} %table, i64 %at
  %q = getelementptr i64, {POINTER} %table, i64 %behind
  %address = load i64, {POINTER} %p
  %place = load i64, {POINTER} %q
  %way_in = inttoptr i64 %address to {entry}
  %slots = inttoptr i64 %place to {POINTER}
  %found = call i64 %way_in({POINTER} %slots)
  %next = add i64 %i, 1
  %good = icmp eq i64 %found, 0
  br i1 %good, label %look, label %stop
end:
  ret i64 %last
stop:
  %failed = icmp slt i64 %found, 0
  %negative = sub i64 -1, %i
  %where = select i1 %failed, i64 %negative, i64 %i
  ret i64 %where
}}
"""
    with global_compiler_lock:
        return int(_engine(text).get_function_address("run"))
