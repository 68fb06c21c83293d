"""Threads that go through the stages of one sample together.

Every thread runs its part of a stage and then waits until the others have done theirs. The wait
spins, because stages take a fraction of a millisecond, less than the system takes to wake a thread;
after `SPINS` it gives way between looks, so that more threads than cores still get on.

Threads stay on a core of their own if there are as many as the process may use: otherwise the
system wakes them on the core where the work came from, and moves them too late.
"""

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
from numba import njit, types
from numba.extending import intrinsic

from soul_deploy.runtime.config import FASTMATH
from soul_deploy.runtime.files import Array
from soul_deploy.runtime.vectors import compiled

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


@njit(cache=True, nogil=True, fastmath=FASTMATH)
def arrive(counter: Array) -> None:
    """One thread more."""
    _add_atomically(counter, 1)  # type: ignore[call-arg]


@njit(cache=True, nogil=True, fastmath=FASTMATH)
def spin(counter: Array, goal: int, looks: int) -> int:
    """Look until counter[0] has reached `goal`, at most `looks` times; return what was seen."""
    seen: int = _add_atomically(counter, 0)  # type: ignore[call-arg]
    while seen < goal and looks > 0:
        seen = _add_atomically(counter, 0)
        looks -= 1
    return seen


class SpinBarrier:
    """Where `threads` threads meet, again and again."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._counter = np.zeros(1, np.int64)
        self._meetings = [0] * threads

    def wait(self, thread: int) -> None:
        """Return when all threads have come. Raises BrokenBarrierError if one never will."""
        self._meetings[thread] += 1
        goal = self._meetings[thread] * self.threads
        arrive(self._counter)
        while (seen := spin(self._counter, goal, SPINS)) < goal:
            time.sleep(0)
        if seen >= BROKEN:
            raise threading.BrokenBarrierError

    def break_up(self) -> None:
        """Let nobody wait any more: the thread that calls this won't come."""
        self._counter[0] = BROKEN


def barrier_for(threads: int) -> "SpinBarrier | _PlainBarrier":
    """A barrier; without compilation, Python's own."""
    return SpinBarrier(threads) if compiled() else _PlainBarrier(threads)


class _PlainBarrier:
    """As SpinBarrier, by the standard library."""

    def __init__(self, threads: int) -> None:
        self._barrier = threading.Barrier(threads)

    def wait(self, thread: int) -> None:
        """As SpinBarrier.wait."""
        self._barrier.wait()

    def break_up(self) -> None:
        """As SpinBarrier.break_up."""
        self._barrier.abort()


Meet = Callable[[], None]


class Crew:
    """`threads` threads for one caller at a time."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        cores = sorted(os.sched_getaffinity(0))
        self._cores = iter(cores if len(cores) == threads else ())
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(threads, "soul-deploy", initializer=self._settle)

    def _settle(self) -> None:
        """In a new thread: take the next core."""
        core = next(self._cores, None)
        if core is not None:
            os.sched_setaffinity(0, {core})

    def together(self, work: Callable[[int, Meet], None]) -> None:
        """work(thread, meet) on every thread; meet() returns when all have called it.

        Raises what the first thread that failed raised; the others are let go.
        """
        with self._lock:
            barrier = barrier_for(self.threads)

            def guarded(thread: int) -> None:
                try:
                    work(thread, lambda: barrier.wait(thread))
                except BaseException:
                    barrier.break_up()
                    raise

            _gather([self._pool.submit(guarded, thread) for thread in range(self.threads)])

    def each(self, work: Callable[[int], None]) -> None:
        """work(share) on every thread, for itself. Raises what one raised."""
        with self._lock:
            _gather([self._pool.submit(work, share) for share in range(self.threads)])


def _gather(futures: list[Future[None]]) -> None:
    """Wait for all; raise the first failure that is not another thread's consequence."""
    failures = [failure for failure in (future.exception() for future in futures) if failure]
    failures.sort(key=lambda failure: isinstance(failure, threading.BrokenBarrierError))
    if failures:
        raise failures[0]
