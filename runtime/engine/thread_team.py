"""A thread team: threads that run the regions of one sample in parallel.

Every thread runs its partition of a region and then waits at a barrier for the other threads. The
wait spins, because a region takes a fraction of a millisecond, less than waking a thread takes;
after `barrier.SPINS` it gives way between looks, so that more threads than cores still get on.

Threads stay on a core of their own if there are as many as the process may use: otherwise the
system wakes them on the core where the work came from, and moves them too late.
"""

import ctypes
import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from queue import SimpleQueue
from weakref import finalize

from soul_deploy.base import environment, errors
from soul_deploy.runtime.kernels.barrier import SPINS, Barrier, Meeting
from soul_deploy.runtime.kernels.duty import (
    ASLEEP,
    AWAKE,
    LOOKS,
    POSTED,
    REACHED,
    change,
    give,
    is_busy,
    new_post,
    serve,
)
from soul_deploy.runtime.kernels.program import Program
from soul_deploy.runtime.kernels.simd import compiled


class _TeamTask:
    """Work that each thread of a team runs once, however often it is asked to."""

    def __init__(self, threads: int, work: Callable[[int], None], cancel: Callable[[], None]):
        self.work, self.cancel = work, cancel
        self.taken, self.finished = [False] * threads, [False] * threads
        self.failures: list[BaseException] = []
        self.news: SimpleQueue[None] = SimpleQueue()

    def do(self, thread: int) -> None:
        """Run the work of this thread, unless this thread has run it."""
        if self.taken[thread]:
            return
        self.taken[thread] = True
        try:
            self.work(thread)
        except BaseException as failure:
            self.failures.append(failure)
            self.cancel()
        self.finished[thread] = True
        self.news.put(None)

    def wait(self) -> None:
        """Return when all threads have finished."""
        while not all(self.finished):
            self.news.get()


class _ProgramTask:
    """Programs that run at the same time, one for each thread."""

    def __init__(self, programs: Sequence[Program], barrier: Meeting) -> None:
        self.programs, self.barrier = programs, barrier
        self.failures: list[BaseException] = []

    def go_on(self, thread: int, reached: int) -> None:
        """Run this thread's program from the call that was reached, or that failed, below 0."""
        at = reached if reached >= 0 else -1 - reached
        try:
            self.programs[thread].run(self.barrier.delayed, at)
        except BaseException as failure:
            self.fail(failure)

    def fail(self, failure: BaseException) -> None:
        self.failures.append(failure)
        self.barrier.abort()


class _Worker:
    """What one thread of a team shares with whoever calls the team.

    inbox  tasks; None: end
    post   as duty.py says
    given  the task of the program that was posted last
    """

    def __init__(self, thread: int) -> None:
        self.thread, self.post = thread, new_post()
        self.inbox: SimpleQueue[_TeamTask | _ProgramTask | None] = SimpleQueue()
        self.given: _ProgramTask | None = None

    def give(self, task: _ProgramTask) -> None:
        """Have this thread run its program."""
        program, self.given = task.programs[self.thread], task
        if not give(self.post, program.place, len(program.calls)):
            self.inbox.put(task)

    def call(self, task: _TeamTask) -> None:
        """Have this thread do a task."""
        self.inbox.put(task)
        if compiled():
            change(self.post, AWAKE, ASLEEP)

    def serve(self, core: int | None) -> None:
        """The loop of the thread. Between tasks it knows no team, so that those can be collected.

        core: on which it stays, None: on any.
        """
        if core is not None:
            with suppress(OSError):  # the system may refuse; then it runs where the system puts it
                os.sched_setaffinity(0, {core})
        while (task := self.inbox.get()) is not None:
            if isinstance(task, _TeamTask):
                task.do(self.thread)
            elif task is self.given:  # otherwise somebody was interrupted, and asked twice
                self._go_on()
                while change(self.post, ASLEEP, AWAKE) and serve(self.post, LOOKS):
                    self._go_on()
            del task

    def _go_on(self) -> None:
        """With the program that was posted, if there is one that has not ended."""
        if self.given is not None and is_busy(self.post, 0):
            self.given.go_on(self.thread, int(self.post[REACHED]))
            change(self.post, POSTED, ASLEEP)

    def wait(self) -> None:
        """Return when this thread has finished the program that it was given, if any."""
        while is_busy(self.post, SPINS):
            time.sleep(0)


class ThreadTeam:
    """`threads` threads for one caller at a time. The threads end when the team is collected.

    concurrent.futures would not do: a region needs all threads at once, and Ctrl-C in the middle of
    its waiting leaves locks behind.
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._workers: tuple[_Worker, ...] = ()
        self._cores: tuple[int, ...] = ()

    def __reduce__(self) -> tuple[type["ThreadTeam"], tuple[int]]:
        """A copy is another team of as many threads, which start when they are needed."""
        return ThreadTeam, (self.threads,)

    def each(self, work: Callable[[int, Barrier], None]) -> None:
        """Call work(thread, go_on) on every thread; go_on() raises if another thread failed.

        Raises what the first thread that failed raised; the others are cancelled. Raises LimitError
        if the system gives no more threads.
        """
        over = threading.Event()

        def go_on() -> None:
            if over.is_set():
                raise threading.BrokenBarrierError

        self._run(lambda thread: work(thread, go_on), over.set)

    def run(self, programs: Sequence[Program], barrier: Meeting) -> None:
        """Run a program on every thread, one of them on the caller's own.

        barrier: at which the programs meet; if this raises, it cannot be used again. Raises as
        `each`.
        """
        if not compiled():
            self._run(lambda thread: programs[thread].run(barrier.delayed), barrier.abort)
            return
        task, begun = _ProgramTask(programs, barrier), False
        with self._own_lock():
            workers = self._started()
            own = self._place_of_caller()
            others = workers[:own] + workers[own + 1 :]
            while True:
                try:
                    if begun:  # an interruption: the threads still use the caller's buffers
                        barrier.abort()
                        for worker in others:
                            worker.inbox.put(task)
                    else:
                        begun = True
                        for worker in others:
                            worker.give(task)
                        task.go_on(own, 0)
                    for worker in others:
                        worker.wait()
                    break
                except BaseException as interruption:
                    task.failures.append(interruption)
        _raise_first(task.failures)

    def _run(self, work: Callable[[int], None], cancel: Callable[[], None]) -> None:
        task, interrupted_by = _TeamTask(self.threads, work, cancel), None
        with self._own_lock():
            workers = self._started()
            while True:
                try:
                    if interrupted_by is not None:
                        cancel()
                    for worker in workers:
                        worker.call(task)
                    task.wait()
                    break
                except BaseException as interruption:
                    interrupted_by = interruption  # the threads still use the caller's buffers
        if interrupted_by is not None:
            raise interrupted_by
        _raise_first(task.failures)

    def _own_lock(self) -> threading.Lock:
        """The lock; after a fork a new one, which takes neither threads nor owners along."""
        if self._process != os.getpid():
            self._process, self._lock, self._workers = os.getpid(), threading.Lock(), ()
        return self._lock

    def _started(self) -> tuple[_Worker, ...]:
        """The threads."""
        if not self._workers:
            self._workers = self._start()
        return self._workers

    def _place_of_caller(self) -> int:
        """The thread whose core the caller is on, whose part it takes; 0 if that is nobody's."""
        core = _current_core()
        return self._cores.index(core) if core in self._cores else 0

    def _start(self) -> tuple[_Worker, ...]:
        workers = tuple(map(_Worker, range(self.threads)))
        dismissal = finalize(self, _dismiss, workers)
        cores = environment.physical_cores()
        pinned = len(cores) == self.threads and hasattr(os, "sched_setaffinity")
        self._cores = cores if pinned else ()
        try:
            for worker in workers:
                core = (cores[worker.thread] if pinned else None,)
                threading.Thread(
                    target=worker.serve, args=core, name="soul-deploy", daemon=True
                ).start()
        except RuntimeError as error:
            dismissal()
            raise errors.LimitError(
                f"{self.threads} threads asked, and the system gives no more ({error}); load the "
                "network with fewer threads"
            ) from error
        except BaseException:
            dismissal()
            raise
        return workers


def _raise_first(failures: list[BaseException]) -> None:
    """The first failure that is not another thread's consequence, if there are any."""
    failures.sort(key=lambda failure: isinstance(failure, threading.BrokenBarrierError))
    if failures:
        raise failures[0]


@cache
def _core_asker() -> Callable[[], int]:
    """sched_getcpu, where the system has it."""
    try:
        ask: Callable[[], int] = ctypes.CDLL(None).sched_getcpu
    except (OSError, AttributeError, TypeError):
        return lambda: -1
    return ask


def _current_core() -> int:
    """The core that the calling thread is on, -1 if unknown."""
    return _core_asker()()


def _dismiss(workers: tuple[_Worker, ...]) -> None:
    for worker in workers:
        worker.inbox.put(None)
