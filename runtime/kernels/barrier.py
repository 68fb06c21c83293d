"""A barrier that spins: threads of one run wait for each other, several times a millisecond."""

import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import types
from numba.extending import intrinsic

from soul_deploy.base import Array
from soul_deploy.runtime.kernels.cache import cached_njit
from soul_deploy.runtime.kernels.simd import compiled

SPINS = 20_000
"""Looks at the counter before giving way: some tens of microseconds."""

BROKEN = 1 << 62
"""The counter when a thread has failed: beyond what any thread waits for."""


@intrinsic
def _add_atomically(typing: Any, counter: Any, amount: Any) -> Any:
    """Add to counter[0], seen by all threads before anything they do later."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        return builder.atomic_rmw("add", data, args[1], "seq_cst")

    return types.int64(counter, types.int64), generate


@cached_njit
def arrive(counter: Array) -> None:
    """Add one to the counter: one thread more has arrived."""
    _add_atomically(counter, 1)  # type: ignore[call-arg]


@cached_njit
def spin(counter: Array, goal: int, looks: int) -> int:
    """Look until counter[0] has reached `goal`, at most `looks` times; return what was seen."""
    seen: int = _add_atomically(counter, 0)  # type: ignore[call-arg]
    while seen < goal and looks > 0:
        seen = _add_atomically(counter, 0)
        looks -= 1
    return seen


class SpinBarrier:
    """A barrier for `threads` threads that may be passed again and again."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._counter = np.zeros(1, np.int64)
        self._rounds = [0] * threads

    def wait(self, thread: int) -> None:
        """Return when all threads have come. Raises BrokenBarrierError if one never will."""
        self._rounds[thread] += 1
        goal = self._rounds[thread] * self.threads
        arrive(self._counter)
        while (seen := spin(self._counter, goal, SPINS)) < goal:
            time.sleep(0)
        if seen >= BROKEN:
            raise threading.BrokenBarrierError

    def abort(self) -> None:
        """Release every thread that waits, with BrokenBarrierError, now and later."""
        self._counter[0] = BROKEN


def barrier_for(threads: int) -> "SpinBarrier | _PlainBarrier":
    """A barrier; without compilation, Python's own."""
    return SpinBarrier(threads) if compiled() else _PlainBarrier(threads)


class _PlainBarrier(threading.Barrier):
    """As SpinBarrier, by the standard library."""

    def wait(self, thread: int) -> None:  # type: ignore[override]
        super().wait()


Barrier = Callable[[], None]
