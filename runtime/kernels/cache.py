"""How kernels are compiled, and that it is said.

`cached_njit` declares every kernel; kept.py says where compiled ones are found again. All kernels
stand in this folder, and all are compiled again when any source of the runtime changes.

The first run in a new installation takes seconds, so that kernels are compiled is said: numba
reports, as events, only those that it has to compile.

As soon as any kernel is compiled, or read from disk, numba imports scipy.linalg to know whether a
kernel could use a BLAS. That loads an OpenBLAS, which reserves memory for every core; where the
system gives none (`ulimit -v`), it asks again for ever and holds Python's lock meanwhile, so that
no signal ends it. No kernel of ours multiplies matrices, so numba is without until somebody's
does: it asks again, by itself, whenever a function that needs a BLAS (`np.dot`) is compiled.
"""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from threading import Lock, get_ident
from types import ModuleType
from typing import Any, TypeVar

from numba import njit
from numba.core.dispatcher import Dispatcher
from numba.core.event import Event, Listener, install_listener

from soul_deploy.base.terminal import say
from soul_deploy.runtime.kernels.kept import PREFIX, VARIABLE, KernelCache, Places, places

F = TypeVar("F", bound=Callable[..., Any])
FASTMATH = False
"""Never on: a reordered or contracted sum can land on the other side of a threshold."""

WITHHELD = "scipy.linalg"
ASKING = "numba.np.arraymath"
ANSWER = "_HAVE_BLAS"


class _Withhold:
    """Says that there is no scipy.linalg, to one thread."""

    def __init__(self) -> None:
        self._thread = get_ident()

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> None:
        """None, as for any module that others find. Raises ImportError for scipy.linalg."""
        if name == WITHHELD and get_ident() == self._thread:
            raise ImportError(f"{name} is not loaded before it is used", name=name)


@contextmanager
def _withheld() -> Iterator[None]:
    finder: Any = _Withhold()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


def defer_blas() -> None:
    """Let numba believe that there is a BLAS if scipy is installed, without loading it."""
    if WITHHELD in sys.modules or ASKING in sys.modules:
        return
    with _withheld():
        asking = import_module(ASKING)
    if hasattr(asking, ANSWER) and find_spec("scipy") is not None:
        setattr(asking, ANSWER, True)


defer_blas()  # every module with kernels imports this one, so none is compiled before
places()  # now: the sources that are imported may be replaced while the process runs


def cached_njit(function: F) -> "Dispatcher[F]":
    """Declare a kernel: compiled at the first call with arguments of new types, or found on disk.

    It holds no lock of Python's while it runs. Without compilation it is the function itself.
    """
    kernel = njit(nogil=True, fastmath=FASTMATH)(function)
    if isinstance(kernel, Dispatcher):
        vars(kernel)["_cache"] = KernelCache(function)
    return kernel


Say = Callable[[str], None]
PACKAGE = __name__.rpartition(".")[0]


def to_stderr(message: str) -> None:
    """One line on stderr, where it does not mix with results."""
    say(message, err=True)


def compiling_message(kept: Places) -> str:
    """What is said once; kept: the folders of compiled kernels."""
    if kept.written is not None:
        where = f"they are kept in {kept.written}"
        if passed := ", ".join(map(str, kept.tried[:-1])):
            where += f", since {passed} cannot be written"
        return f"Compiling kernels once for this machine (up to about 20 s); {where}"
    return (
        f"Compiling kernels, at every start (up to about 20 s): {unkept(kept)}, or fill it before, "
        "as for an image: soul-deploy warm-up NETWORK"
    )


def unkept(kept: Places) -> str:
    """Why compiled kernels are lost, and what to do."""
    tried = ", ".join(map(str, kept.tried)) or "there are no sources that they could be told by"
    known = ""
    if there := [place for place in kept.read if os.path.isdir(place)]:
        known = f"; those in {there[0]} are for another network or processor"
    elif others := [folder for folder in kept.tried if any(folder.glob(f"{PREFIX}*"))]:
        known = f"; those in {others[0]} are of other sources or versions"
    return f"no folder can be written to keep them ({tried}){known}. Set {VARIABLE} to one that can"


class _Listening(Listener):
    """Hears of each kernel of this package that is compiled, from whichever thread."""

    def __init__(self, hear: Callable[[Any], None]) -> None:
        self._hear = hear
        self._lock = Lock()

    def on_start(self, event: Event) -> None:
        dispatcher: Any = event.data["dispatcher"]
        if dispatcher.py_func.__module__.startswith(PACKAGE):
            with self._lock:
                self._hear(dispatcher)

    def on_end(self, event: Event) -> None:
        """Nothing: the result follows."""


@contextmanager
def compilations() -> Iterator[list[Any]]:
    """The kernels that are compiled inside, as they come; none that are found on disk."""
    found: list[Any] = []
    with install_listener("numba:compile", _Listening(found.append)):
        yield found


@contextmanager
def compiling_announced(say: Say = to_stderr) -> Iterator[None]:
    """Inside, `say` gets one line when the first kernel is compiled; none if all are on disk."""
    heard: list[Any] = []

    def hear(kernel: Any) -> None:
        if not heard:
            say(compiling_message(places()))
        heard.append(kernel)

    with install_listener("numba:compile", _Listening(hear)):
        yield
