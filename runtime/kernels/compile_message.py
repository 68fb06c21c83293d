"""Saying that kernels are compiled: the first run in a new installation takes seconds, in silence.

numba keeps compiled kernels on disk and reports, as events, only those that it has to compile.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any

from numba.core.event import Event, Listener, install_listener

from soul_deploy.base.terminal import say

Say = Callable[[str], None]
PACKAGE = __name__.rpartition(".")[0]


def to_stderr(message: str) -> None:
    """One line on stderr, where it does not mix with results."""
    say(message, err=True)


def compiling_message(kept: str | None) -> str:
    """What is said once; kept: the folder where compiled kernels stay, if there is one."""
    where = f"they are kept in {kept}" if kept else "no folder is there to keep them in"
    return f"Compiling kernels once for this machine (up to about 20 s); {where}"


class _Announcer(Listener):
    """Says it at the first kernel of this package that is compiled, from whichever thread."""

    def __init__(self, say: Say) -> None:
        self._say = say
        self._lock = Lock()
        self._said = False

    def on_start(self, event: Event) -> None:
        dispatcher: Any = event.data["dispatcher"]
        if not dispatcher.py_func.__module__.startswith(PACKAGE):
            return
        with self._lock:
            first, self._said = not self._said, True
        if first:
            self._say(compiling_message(dispatcher.stats.cache_path))

    def on_end(self, event: Event) -> None:
        """Nothing: the result follows."""


@contextmanager
def compiling_announced(say: Say = to_stderr) -> Iterator[None]:
    """Inside, `say` gets one line when the first kernel is compiled; none if all are on disk."""
    with install_listener("numba:compile", _Announcer(say)):
        yield
