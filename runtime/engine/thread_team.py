"""Threads that go through the stages of one sample together.

Every thread runs its part of a stage and then waits until the others have done theirs. The wait
spins, because stages take a fraction of a millisecond, less than the system takes to wake a thread;
after `barrier.SPINS` it gives way between looks, so that more threads than cores still get on.

Threads stay on a core of their own if there are as many as the process may use: otherwise the
system wakes them on the core where the work came from, and moves them too late.
"""

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from weakref import finalize

from soul_deploy.base.environment import physical_cores
from soul_deploy.base.errors import LimitError
from soul_deploy.runtime.kernels.barrier import Meet, barrier_for


class _Job:
    """What each thread does once, whoever asks it how often."""

    def __init__(self, threads: int, work: Callable[[int], None], let_go: Callable[[], None]):
        self.work, self.let_go = work, let_go
        self.taken, self.finished = [False] * threads, [False] * threads
        self.failures: list[BaseException] = []
        self.news: SimpleQueue[None] = SimpleQueue()

    def do(self, thread: int) -> None:
        """This thread's part, unless it has been done."""
        if self.taken[thread]:
            return
        self.taken[thread] = True
        try:
            self.work(thread)
        except BaseException as failure:
            self.failures.append(failure)
            self.let_go()
        self.finished[thread] = True
        self.news.put(None)

    def wait(self) -> None:
        """Return when all threads have finished."""
        while not all(self.finished):
            self.news.get()


Inboxes = tuple["SimpleQueue[_Job | None]", ...]


class Crew:
    """`threads` threads for one caller at a time. They end when nothing holds the crew any more.

    concurrent.futures would not do: a stage needs all threads at once, and Ctrl-C in the middle of
    its waiting leaves locks behind.
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._inboxes: Inboxes = ()

    def __reduce__(self) -> tuple[type["Crew"], tuple[int]]:
        """A copy is another crew of as many threads, which start when they are needed."""
        return Crew, (self.threads,)

    def together(self, work: Callable[[int, Meet], None]) -> None:
        """work(thread, meet) on every thread; meet() returns when all have called it.

        Raises what the first thread that failed raised; the others are let go. Raises LimitError if
        the system gives no more threads.
        """
        barrier = barrier_for(self.threads)
        self._run(lambda thread: work(thread, lambda: barrier.wait(thread)), barrier.break_up)

    def each(self, work: Callable[[int, Meet], None]) -> None:
        """As `together`, but meet() waits for nobody; it only ends the work if another failed."""
        over = threading.Event()

        def go_on() -> None:
            if over.is_set():
                raise threading.BrokenBarrierError

        self._run(lambda thread: work(thread, go_on), over.set)

    def _run(self, work: Callable[[int], None], let_go: Callable[[], None]) -> None:
        if self._process != os.getpid():  # a fork takes neither threads nor owners of locks along
            self._process, self._lock, self._inboxes = os.getpid(), threading.Lock(), ()
        job, stopped = _Job(self.threads, work, let_go), None
        with self._lock:
            inboxes = self._inboxes = self._inboxes or self._start()
            while True:
                try:
                    if stopped is not None:
                        let_go()
                    for inbox in inboxes:
                        inbox.put(job)
                    job.wait()
                    break
                except BaseException as interruption:
                    stopped = interruption  # the threads still use the caller's buffers
        if stopped is not None:
            raise stopped
        _raise_first(job.failures)

    def _start(self) -> Inboxes:
        inboxes: Inboxes = tuple(SimpleQueue() for _ in range(self.threads))
        dismissal = finalize(self, _dismiss, inboxes)
        cores = physical_cores()
        pinned = len(cores) == self.threads and hasattr(os, "sched_setaffinity")
        try:
            for thread, inbox in enumerate(inboxes):
                given = (thread, inbox, cores[thread] if pinned else None)
                threading.Thread(target=_serve, args=given, name="soul-deploy", daemon=True).start()
        except RuntimeError as error:
            dismissal()
            raise LimitError(
                f"{self.threads} threads asked, and the system gives no more ({error}); load the "
                "network with fewer threads"
            ) from error
        except BaseException:
            dismissal()
            raise
        return inboxes


def _serve(thread: int, inbox: "SimpleQueue[_Job | None]", core: int | None) -> None:
    """A thread's life. Between jobs it holds nothing, so that crews can be collected."""
    if core is not None:
        with suppress(OSError):  # the system may refuse; then it runs where the system puts it
            os.sched_setaffinity(0, {core})
    while (job := inbox.get()) is not None:
        job.do(thread)
        del job


def _dismiss(inboxes: Inboxes) -> None:
    for inbox in inboxes:
        inbox.put(None)


def _raise_first(failures: list[BaseException]) -> None:
    """Raise the first failure, if there is one, that is not another thread's consequence."""
    failures.sort(key=lambda failure: isinstance(failure, threading.BrokenBarrierError))
    if failures:
        raise failures[0]
