"""How much memory an operation may take and a process may map: checked before any is allocated."""

import os
import re

from soul_deploy.base import environment
from soul_deploy.base.errors import LimitError, UsageError

UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 1 << 10, "mi": 1 << 20, "gi": 1 << 30}
WORK_BYTES = 4 << 30
"""What running a network may take besides its file's arrays, unless the caller allows more."""
RAISE_IT = "Raise it with --max_memory, or max_memory of the function that reads the file"
HELP = (
    "Refuse what would take more memory, before taking it: bytes, or with a unit (500MB, 2GiB).  "
    "[default: what the machine has; 4GiB for what the file's size does not explain]"
)


def parse_bytes(text: str | None) -> int | None:
    """A number of bytes: 4096, 500MB, 1.5GiB. None stays None. Raises UsageError."""
    if text is None:
        return None
    found = re.fullmatch(r"(\d{1,15}(?:\.\d{1,9})?)\s*([kmg]i?|)b?", text.strip(), re.IGNORECASE)
    size = int(float(found[1]) * UNITS[found[2].lower()]) if found else 0
    if size < 1:
        raise UsageError(
            f"max_memory {text!r} is no size; give bytes, or a number with kB, MB, GB, KiB, MiB or "
            "GiB"
        )
    return size


def machine_memory() -> int:
    """Bytes of memory that the machine has; WORK_BYTES where it does not say (Windows)."""
    if not hasattr(os, "sysconf"):
        return WORK_BYTES
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def require_memory(what: str, needed_bytes: int, allowed: int | None, instead: str) -> None:
    """Raise LimitError unless `needed_bytes` bytes are allowed (None: what the machine has).

    what: says what needs them; instead: what to do.
    """
    limit = machine_memory() if allowed is None else allowed
    if needed_bytes > limit:
        raise LimitError(
            f"{what} needs {needed_bytes:,} bytes of memory; allowed are {limit:,}. {instead}"
        )


# LLVM ends the process where it may map no memory, without an exception, so that is asked first.
# What is needed was measured (peak of a small network, kernels compiled anew) and rounded up; the
# system reserves a stack and an arena of its own for each thread.
ONE_THREAD = 350 << 20
EACH_MORE = 72 << 20  # 8 MiB of stack, 64 MiB of arena
ALIGNING = 64 << 20  # an arena is cut out of twice its size


def address_limit() -> int | None:
    """Bytes that this process may map (`ulimit -v`), or None if there is no limit."""
    try:
        import resource
    except ImportError:  # no such limit on this system
        return None
    most = resource.getrlimit(resource.RLIMIT_AS)[0]
    return None if most == resource.RLIM_INFINITY else most


def limit_address_space(most: int) -> None:
    """Let this process map at most so many bytes, where the system has such a limit."""
    try:
        import resource
    except ImportError:
        return
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def needed_bytes(threads: int) -> int:
    """Bytes that a small network maps on so many threads."""
    return ONE_THREAD if threads == 1 else ONE_THREAD + ALIGNING + (threads - 1) * EACH_MORE


def require_address_space(threads: int) -> None:
    """Raise LimitError if the process may map less than so many threads need; 0: one per core."""
    most = address_limit()
    threads = threads or len(environment.physical_cores())
    if most is None or most >= needed_bytes(threads):
        return
    advice = "Raise the limit"
    if threads > 1 and most >= needed_bytes(1):
        advice += " or give --threads 1"
    raise LimitError(
        f"this process may map {most >> 10:,} kB of memory (ulimit -v); kernels on {threads} "
        f"thread{'s' if threads > 1 else ''} need at least {needed_bytes(threads) >> 10:,} kB. "
        f"{advice}"
    )
