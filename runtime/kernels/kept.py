"""Where compiled kernels are kept on disk, and which of them are found again.

numba keeps a kernel until the file that it stands in changes. What it inlines from other files (a
neuron's equation, a constant) may change without that, and the time of a file, which older versions
of numba look at, is another one in each copy of a container's layer. So kernels are kept by
contents: their folder is named after the runtime's sources and the versions that compiled them,
wherever the sources stand and whenever they were written. Each file in it is named after what
kernels of the same sources are told apart by: types, closure, processor. No two processes write
different kernels into one file, as they might with numba's own index of all kernels of a function.

Kernels are read from the folder that NUMBA_CACHE_DIR names, from `__pycache__` beside the sources
and from the user's cache folder, in this order, up to the first that can be written, where new
ones go. Reading writes nothing, so kernels that an image brings along are found by any user, on a
read-only file system too.

Whoever can write to such a folder decides what code runs here, as with Python's own `.pyc` files.
"""

import hashlib
import logging
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from pickle import UnpicklingError
from types import FunctionType
from typing import Any

import llvmlite
import numba
from numba.core import caching, compiler, config
from numba.misc import appdirs

IndexFile: Any = caching.IndexDataCacheFile  # untyped
CompileResult: Any = compiler.CompileResult
AppDirs: Any = appdirs.AppDirs
LOGGER = logging.getLogger("soul_deploy")
VARIABLE = "NUMBA_CACHE_DIR"
SOURCES = Path(__file__).parents[1]
PREFIX = "soul_deploy_kernels-"
MOST_VERSIONS = 4
"""Folders of kernels that stay in one place; with a newer one, the oldest goes."""


def sources_stamp(sources: Path) -> str | None:
    """A sha256 over what kernels depend on: all Python files below `sources`, by their names there
    and contents, the versions of Python, numba and LLVM's binding, numba's bounds checks.

    None without sources (an installation of compiled files alone): then nothing is kept.
    """
    paths = sorted(sources.rglob("*.py"))
    if not paths:
        return None
    versions = sys.implementation.cache_tag, numba.__version__, llvmlite.__version__
    sha = hashlib.sha256(repr((*versions, bool(_setting("BOUNDSCHECK")))).encode())
    for path in paths:
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        sha.update(f"{path.relative_to(sources).as_posix()} {content}\n".encode())
    return sha.hexdigest()


def _setting(name: str) -> Any:
    """What numba's environment variable NUMBA_`name` says."""
    return getattr(config, name)


def candidates() -> Iterator[Path]:
    """Folders in which kernels may be kept, the preferred one first."""
    if _setting("CACHE_DIR"):
        yield Path(_setting("CACHE_DIR")).absolute()
    yield Path(__file__).parent / "__pycache__"
    users = Path(AppDirs(appname="numba", appauthor=False).user_cache_dir)
    if users.is_absolute():  # it is ~/.cache/numba for a user without a home
        yield users


def can_be_written(folder: Path) -> bool:
    """Whether files can be made in a folder, which may have to be made first; nothing is written.

    What the system grants and then refuses (/proc, a full disk) shows when the folder is made or a
    kernel is written.
    """
    there = next((path for path in (folder, *folder.parents) if os.path.lexists(path)), folder)
    return there.is_dir() and os.access(there, os.W_OK | os.X_OK)


class Places:
    """The folders of kernels of these sources."""

    def __init__(self, folders: Iterator[Path], stamp: str | None) -> None:
        """folders: the preferred one first; stamp: see `sources_stamp`."""
        self.read: list[Path] = []
        self.written: Path | None = None
        self.tried: list[Path] = []
        self._left = iter(folders if stamp is not None else ())
        self._name = f"{PREFIX}{stamp}"[: len(PREFIX) + 16]
        self._go_on()

    def _go_on(self) -> None:
        """Take folders up to the next that can be written, if there is one."""
        self.written = None
        for folder in self._left:
            self.tried.append(folder)
            self.read.append(folder / self._name)
            if can_be_written(folder):
                self.written = self.read[-1]
                break

    def sought(self) -> Iterator[Path]:
        """Where a kernel may be kept, in order. At the end, so that new ones can be kept, the
        folder for them is there; where it cannot be made (/proc), the folders behind it follow.
        """
        at = 0
        while at < len(self.read):
            yield self.read[at]
            at += 1
            if self.written is not None and at == len(self.read):
                try:
                    _make(self.written)
                except OSError:
                    self._go_on()

    def write(self, save: Callable[[Path], None]) -> None:
        """Call `save` with the folder for new kernels, which is there then; nothing without one.

        An error of the system ends it for this process, with a warning.
        """
        if (folder := self.written) is None:
            return
        try:
            _make(folder)
            save(folder)
        except OSError as error:
            self.written = None
            LOGGER.warning(
                "kernels that were compiled cannot be kept in %s (%s); free some space, or set %s "
                "to another folder", folder, error.strerror or error, VARIABLE,
            )  # fmt: skip


def _make(folder: Path) -> None:
    """Make a folder of kernels, unless it is there; the oldest ones go for it."""
    if not folder.exists():
        folder.mkdir(parents=True, exist_ok=True)
        _remove_oldest(folder)


def _remove_oldest(newest: Path) -> None:
    """Remove kernels of former sources beside the folder `newest`, but for some."""
    with suppress(OSError):  # somebody else removed one
        others = [path for path in newest.parent.glob(f"{PREFIX}*") if path != newest]
        for path in sorted(others, key=lambda path: path.stat().st_mtime)[: 1 - MOST_VERSIONS]:
            shutil.rmtree(path, ignore_errors=True)


def _described(value: Any) -> str:
    """A function by its name and line and by what its closure holds, wherever its source stands;
    anything else by its text. numba's own key holds the paths of functions in closures.
    """
    if not isinstance(value, FunctionType):
        return repr(value)
    held = (_described(cell.cell_contents) for cell in value.__closure__ or ())
    name = f"{value.__module__}.{value.__qualname__}:{value.__code__.co_firstlineno}"
    return f"{name}({', '.join(held)})"


@cache
def places() -> Places:
    """This process's, as sources and numba's settings are when it is first asked."""
    return Places(candidates(), sources_stamp(SOURCES))


class KernelCache(caching.FunctionCache):
    """The compiled forms of one function; what numba asks and tells."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._py_func = function  # numba's name: its `_index_key` looks at it
        module = function.__module__.rpartition(".")[2]
        self._stem = f"{module}.{function.__qualname__.replace('<locals>.', '')}"

    @property
    def cache_path(self) -> str | None:
        """Where new ones are kept."""
        found = places().written
        return None if found is None else str(found)

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """The compiled form for the argument types `sig`; None if it is in no place."""
        target_context.refresh()
        key = self._key(sig, target_context.codegen())
        for place in places().sought():
            # What a power cut left of a file is as good as no file.
            with suppress(OSError, EOFError, UnpicklingError):
                if (kept := self._file(place, key).load(key)) is not None:
                    return CompileResult._rebuild(target_context, *kept)
        return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keep a compiled form, unless addresses of this process are in it."""
        if data.library.has_dynamic_globals or not all(part.can_cache for part in data.lifted):
            return
        key = self._key(sig, data.codegen)
        places().write(lambda place: self._save(self._file(place, key), key, data))

    def _save(self, file: Any, key: Any, data: Any) -> None:
        file.flush()  # so that an index that is damaged is not read
        file.save(key, data._reduce())

    def flush(self) -> None:
        """Nothing: what is kept is for other processes too."""

    def _key(self, sig: Any, codegen: Any) -> Any:
        """What compiled forms of the same sources are told apart by."""
        return sig, codegen.magic_tuple(), _described(self._py_func)

    def _file(self, place: Path, key: Any) -> Any:
        name = f"{self._stem}-{hashlib.sha256(repr(key).encode()).hexdigest()[:16]}"
        return IndexFile(str(place), name, place.name)
