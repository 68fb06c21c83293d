"""Duty: how a thread is given a program while it spins, without Python's lock or a wake-up.

To wake a thread takes longer than many layers, above all where its core has gone to sleep. So a
thread that has run a program looks for the next one for a while. Its *post*, an array of its own,
says where it is:

ASLEEP  it is in Python, or waits there; whoever has work leaves it a message there
AWAKE   it looks at its post
POSTED  it has been given the program at TABLE, of COUNT calls, and has not finished
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from soul_deploy.base import Array
from soul_deploy.runtime.kernels.barrier import APART, look
from soul_deploy.runtime.kernels.cache import cached_njit
from soul_deploy.runtime.kernels.program import runner
from soul_deploy.runtime.kernels.simd import WIDE, compiled

ASLEEP, AWAKE, POSTED = 0, 1, 2
STATE, TABLE, COUNT, REACHED, RUN = range(5)

LOOKS = 600_000
"""Looks at a post before a thread goes to sleep: about 200 microseconds."""


def new_post() -> Array:
    """Of a thread that is in Python."""
    post = np.zeros(APART, np.int64)
    if compiled():
        post[RUN] = runner()
    return post


@intrinsic
def _atomic_exchange(typing: Any, array: Any, expected: Any, wanted: Any) -> Any:
    """Set array[0] to `wanted` if it is `expected`; return whether it was."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        found = builder.cmpxchg(data, args[1], args[2], "seq_cst", "seq_cst")
        return builder.extract_value(found, 1)

    return types.boolean(array, types.int64, types.int64), generate


@intrinsic
def _call_runner(typing: Any, address: Any, last: Any, table: Any) -> Any:
    """The function at `address`, `program.runner`, from the first call on."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = ir.FunctionType(WIDE, [WIDE, WIDE, WIDE])
        run = builder.inttoptr(args[0], kind.as_pointer())
        return builder.call(run, [WIDE(0), args[1], args[2]])

    return types.int64(types.int64, types.int64, types.int64), generate


exchange: Any = _atomic_exchange
run_at: Any = _call_runner


@cached_njit
def give(post: Array, table: int, count: int) -> bool:
    """Give a program to a thread that has none. Returns whether it looks; if not, wake it."""
    post[TABLE], post[COUNT], post[REACHED] = table, count, 0
    while True:  # it may fall asleep, or wake up, between two questions
        if exchange(post, AWAKE, POSTED):
            return True
        if exchange(post, ASLEEP, POSTED):
            return False


@cached_njit
def serve(post: Array, looks: int) -> bool:
    """Of the thread itself: run what is posted, until nothing has come for so many looks, or until
    `call_back`: returns False, ASLEEP. True, POSTED: a program has stopped at call REACHED.
    """
    left = looks
    while True:
        state = look(post)
        if state == POSTED:
            post[REACHED] = run_at(post[RUN], post[COUNT], post[TABLE])
            if post[REACHED] != post[COUNT]:
                return True
            exchange(post, POSTED, AWAKE)
            left = looks
        elif state == ASLEEP:
            return False
        elif left > 0:
            left -= 1
        elif exchange(post, AWAKE, ASLEEP):
            return False


@cached_njit
def change(post: Array, before: int, after: int) -> bool:
    """Move a post from one state to another; returns whether it was in the first."""
    return bool(exchange(post, before, after))


@cached_njit
def is_busy(post: Array, looks: int) -> bool:
    """Whether a thread has not finished its program after so many looks."""
    while look(post) == POSTED:
        if looks == 0:
            return True
        looks -= 1
    return False
