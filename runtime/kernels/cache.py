"""How kernels are compiled, where they are kept, and when they are stale.

numba keeps a kernel until the file that it stands in changes. What it inlines from other files (a
neuron's equation, a constant) may change without that: a source tree that was updated would run
kernels of before. So all kernels are compiled again when any source of the runtime changes. All
kernels stand in this folder, since numba has a cache for each folder.

The first run in a new installation takes seconds, so that kernels are compiled is said: numba
reports, as events, only those that it has to compile.

As soon as any kernel is compiled, or read from disk, numba imports scipy.linalg to know whether a
kernel could use a BLAS. That loads an OpenBLAS, which reserves memory for every core; where the
system gives none (`ulimit -v`), it asks again for ever and holds Python's lock meanwhile, so that
no signal ends it. No kernel of ours multiplies matrices, so numba is without until somebody's
does: it asks again, by itself, whenever a function that needs a BLAS (`np.dot`) is compiled.
"""

import hashlib
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from threading import Lock, get_ident
from types import ModuleType
from typing import Any

from numba import config, njit
from numba.core.event import Event, Listener, install_listener

from soul_deploy.base.terminal import say

FASTMATH = False
"""Never on: a reordered or contracted sum can land on the other side of a threshold."""

STAMP = "soul_deploy_kernels.sha256"
WITHHELD = "scipy.linalg"
ASKING = "numba.np.arraymath"
ANSWER = "_HAVE_BLAS"


def _nothing() -> None:
    """An empty kernel: compiling it shows the folder where kernels are kept."""


def _folder() -> Path | None:
    try:
        probe: Any = njit(cache=True, nogil=True, fastmath=FASTMATH)(_nothing)
    except RuntimeError:  # neither the package's folder nor the user's can be written
        return None
    stats = getattr(probe, "stats", None)  # without compilation it is the function itself
    return None if stats is None else Path(stats.cache_path)


def sources_stamp(folders: Iterable[Path]) -> str:
    """A sha256 over names, sizes and times of all Python files below, and numba's bounds checks."""
    sha = hashlib.sha256(f"bounds checks {config.BOUNDSCHECK}".encode())  # type: ignore[attr-defined]
    for folder in folders:
        for path in sorted(folder.rglob("*.py")):
            status = path.stat()
            sha.update(f"{path} {status.st_size} {status.st_mtime_ns}\n".encode())
    return sha.hexdigest()


def forget_stale(kept: Path, stamp: str) -> None:
    """Remove numba's indexes in the folder `kept` if they are of other sources.

    Raises OSError if that cannot be done, or not be noted: they must not be used then.
    """
    mark = kept / STAMP
    if mark.exists() and mark.read_bytes() == stamp.encode():
        return
    kept.mkdir(parents=True, exist_ok=True)
    for index in kept.glob("*.nbi"):
        index.unlink(missing_ok=True)
    with tempfile.NamedTemporaryFile(dir=kept, delete=False) as new:
        new.write(stamp.encode())
    try:
        os.replace(new.name, mark)
    finally:
        Path(new.name).unlink(missing_ok=True)


def _usable() -> bool:
    """Whether there is a folder whose kernels are of these sources."""
    kept = _folder()
    if kept is None:
        return False
    try:
        forget_stale(kept, sources_stamp([Path(__file__).parents[1]]))
    except OSError:
        return False
    return True


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
CACHE = _usable()
"""Whether kernels are kept on disk; without, each process compiles them, and says so."""


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
