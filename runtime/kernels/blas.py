"""numba without a BLAS, until somebody's kernel uses one.

As soon as any kernel is compiled, or read from disk, numba imports scipy.linalg to know whether it
could. That loads an OpenBLAS, which reserves memory for every core; where the system gives none
(`ulimit -v`), it asks again for ever and holds Python's lock meanwhile, so that no signal ends it.
No kernel of ours multiplies matrices.

numba asks again, by itself, whenever a function that needs a BLAS (`np.dot`) is compiled. So what
others compile in the same process works as before.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from threading import get_ident
from types import ModuleType
from typing import Any

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
