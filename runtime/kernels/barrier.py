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
from soul_deploy.runtime.kernels.program import Bound
from soul_deploy.runtime.kernels.simd import compiled

SPINS = 300_000
"""Looks at the counter before giving way: about 100 microseconds."""

BROKEN = 1 << 62
"""The counter when a thread has failed: beyond what any thread waits for."""

APART = 16
"""Numbers from one thread's to the next: two cache lines, which some processors fetch together."""


@intrinsic
def _atomic_add(typing: Any, counter: Any, amount: Any) -> Any:
    """Add to counter[0], seen by all threads before anything they do later."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        return builder.atomic_rmw("add", data, args[1], "seq_cst")

    return types.int64(counter, types.int64), generate


@intrinsic
def _atomic_load(typing: Any, counter: Any) -> Any:
    """counter[0], as other threads leave it; what they did before is seen, too."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        return builder.load_atomic(data, "acquire", 8)

    return types.int64(counter), generate


add_atomically: Any = _atomic_add
look: Any = _atomic_load


@cached_njit
def arrive(counter: Array, own: Array) -> None:
    """Add one to the counter, and to the number of rounds of this thread."""
    own[0] += 1
    add_atomically(counter, 1)


@cached_njit
def is_missing(counter: Array, own: Array, threads: int, looks: int) -> int:
    """0 once all threads have come as often as this one; 1 if not all have after so many looks, or
    if one never will.
    """
    goal, seen = own[0] * threads, look(counter)
    while seen < goal and looks > 0:
        seen = look(counter)
        looks -= 1
    return 0 if goal <= seen < BROKEN else 1


class SpinBarrier:
    """A barrier for `threads` threads that may be passed again and again."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        counters = np.zeros((1 + threads) * APART, np.int64)
        self._counter = counters[:1]
        self._rounds = [counters[APART * i :][:1] for i in range(1, 1 + threads)]

    def calls(self, thread: int) -> tuple[Bound, ...]:
        """Of a program: as `wait`, where `delayed` has to be called as long as it takes."""
        own = self._rounds[thread]
        waiting = self._counter, own, self.threads, SPINS
        return (arrive, (self._counter, own)), (is_missing, waiting)

    def wait(self, thread: int) -> None:
        """Return when all threads have come. Raises BrokenBarrierError if one never will."""
        (_, arriving), (_, waiting) = self.calls(thread)
        arrive(*arriving)
        while is_missing(*waiting):
            self.delayed()

    def delayed(self) -> None:
        """Give way to other threads. Raises BrokenBarrierError if `abort` was called."""
        if self._counter[0] >= BROKEN:
            raise threading.BrokenBarrierError
        time.sleep(0)

    def abort(self) -> None:
        """Release every thread that waits, with BrokenBarrierError, now and later."""
        self._counter[0] = BROKEN


def barrier_for(threads: int) -> "Meeting":
    """A barrier; without compilation, Python's own."""
    return SpinBarrier(threads) if compiled() else _PlainBarrier(threads)


class _PlainBarrier(threading.Barrier):
    """As SpinBarrier, by the standard library."""

    @property
    def threads(self) -> int:
        return self.parties

    def calls(self, thread: int) -> tuple[Bound, ...]:
        return ((self.wait, (thread,)),)

    def wait(self, thread: int) -> None:  # type: ignore[override]
        super().wait()

    def delayed(self) -> None:
        """Never: `wait` does not return before."""


Meeting = SpinBarrier | _PlainBarrier
Barrier = Callable[[], None]
