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
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

import numpy as np
from numba import njit, types
from numba.extending import intrinsic

from soul_deploy.runtime.config import FASTMATH
from soul_deploy.runtime.environment import physical_cores
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
    """`threads` threads for one caller at a time. They end when nothing holds the crew any more."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._start()

    def _start(self) -> None:
        self._process, self._lock = os.getpid(), threading.Lock()
        cores = physical_cores()
        own = iter(cores if len(cores) == self.threads else ())
        # Nothing that the threads hold may hold the pool: it ends them when it is collected.
        self._pool = ThreadPoolExecutor(
            self.threads, "soul-deploy", initializer=_settle, initargs=(own,)
        )

    def together(self, work: Callable[[int, Meet], None]) -> None:
        """work(thread, meet) on every thread; meet() returns when all have called it.

        Raises what the first thread that failed raised; the others are let go.
        """
        barrier = barrier_for(self.threads)

        def guarded(thread: int) -> None:
            try:
                work(thread, lambda: barrier.wait(thread))
            except BaseException:
                barrier.break_up()
                raise

        self._run(guarded, barrier.break_up)

    def each(self, work: Callable[[int], None]) -> None:
        """work(share) on every thread, for itself. Raises what one raised."""
        self._run(work, lambda: None)

    def _run(self, work: Callable[[int], None], let_go: Callable[[], None]) -> None:
        if self._process != os.getpid():  # a fork takes no threads along
            self._start()
        futures: list[Future[None]] = []
        with self._lock:
            try:
                for share in range(self.threads):
                    futures.append(self._pool.submit(work, share))
                wait(futures)
            except BaseException:  # Ctrl-C: the threads still use the caller's buffers
                let_go()
                wait(futures)
                raise
        _raise_first(futures)


def _settle(cores: Iterator[int]) -> None:
    """In a new thread: take the next core."""
    core = next(cores, None)
    if core is not None and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {core})


def _raise_first(done: list[Future[None]]) -> None:
    """Raise the first failure, if there is one, that is not another thread's consequence."""
    failures = [failure for failure in (future.exception() for future in done) if failure]
    failures.sort(key=lambda failure: isinstance(failure, threading.BrokenBarrierError))
    if failures:
        raise failures[0]
