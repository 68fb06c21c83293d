"""A thread team: threads that run the regions of one sample in parallel.

Every thread runs its partition of a region and then waits at a barrier for the other threads. The
wait spins, because a region takes a fraction of a millisecond, less than waking a thread takes;
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

from soul_deploy.base import environment, errors
from soul_deploy.runtime.kernels.barrier import Barrier, barrier_for


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


Inboxes = tuple["SimpleQueue[_TeamTask | None]", ...]


class ThreadTeam:
    """`threads` threads for one caller at a time. The threads end when the team is collected.

    concurrent.futures would not do: a region needs all threads at once, and Ctrl-C in the middle of
    its waiting leaves locks behind.
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._inboxes: Inboxes = ()

    def __reduce__(self) -> tuple[type["ThreadTeam"], tuple[int]]:
        """A copy is another team of as many threads, which start when they are needed."""
        return ThreadTeam, (self.threads,)

    def parallel(self, work: Callable[[int, Barrier], None]) -> None:
        """Call work(thread, barrier) on every thread; barrier() returns when all have called it.

        Raises what the first thread that failed raised; the others are cancelled. Raises LimitError
        if the system gives no more threads.
        """
        barrier = barrier_for(self.threads)
        self._run(lambda thread: work(thread, lambda: barrier.wait(thread)), barrier.abort)

    def each(self, work: Callable[[int, Barrier], None]) -> None:
        """As `parallel`, but barrier() does not wait: it raises if another thread failed."""
        over = threading.Event()

        def go_on() -> None:
            if over.is_set():
                raise threading.BrokenBarrierError

        self._run(lambda thread: work(thread, go_on), over.set)

    def _run(self, work: Callable[[int], None], cancel: Callable[[], None]) -> None:
        if self._process != os.getpid():  # a fork takes neither threads nor owners of locks along
            self._process, self._lock, self._inboxes = os.getpid(), threading.Lock(), ()
        task, interrupted_by = _TeamTask(self.threads, work, cancel), None
        with self._lock:
            inboxes = self._inboxes = self._inboxes or self._start()
            while True:
                try:
                    if interrupted_by is not None:
                        cancel()
                    for inbox in inboxes:
                        inbox.put(task)
                    task.wait()
                    break
                except BaseException as interruption:
                    interrupted_by = interruption  # the threads still use the caller's buffers
        if interrupted_by is not None:
            raise interrupted_by
        # The first failure that is not another thread's consequence.
        task.failures.sort(key=lambda failure: isinstance(failure, threading.BrokenBarrierError))
        if task.failures:
            raise task.failures[0]

    def _start(self) -> Inboxes:
        inboxes: Inboxes = tuple(SimpleQueue() for _ in range(self.threads))
        dismissal = finalize(self, _dismiss, inboxes)
        cores = environment.physical_cores()
        pinned = len(cores) == self.threads and hasattr(os, "sched_setaffinity")
        try:
            for thread, inbox in enumerate(inboxes):
                arguments = (thread, inbox, cores[thread] if pinned else None)
                threading.Thread(
                    target=_serve, args=arguments, name="soul-deploy", daemon=True
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
        return inboxes


def _serve(thread: int, inbox: "SimpleQueue[_TeamTask | None]", core: int | None) -> None:
    """The loop of a thread. Between tasks it refers to no team, so that teams can be collected."""
    if core is not None:
        with suppress(OSError):  # the system may refuse; then it runs where the system puts it
            os.sched_setaffinity(0, {core})
    while (task := inbox.get()) is not None:
        task.do(thread)
        del task


def _dismiss(inboxes: Inboxes) -> None:
    for inbox in inboxes:
        inbox.put(None)
