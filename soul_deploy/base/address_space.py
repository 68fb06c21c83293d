"""Whether the process may map the memory that compiled kernels need.

LLVM ends the process where it gets none, without an exception, so that is asked before it is
loaded. What is needed was measured (peak of a small network, kernels compiled anew) and rounded up;
the system reserves a stack and an arena of its own for each thread.
"""

from soul_deploy.base import environment, errors

ONE_THREAD = 350 << 20
EACH_MORE = 72 << 20  # 8 MiB of stack, 64 MiB of arena
ALIGNING = 64 << 20  # an arena is cut out of twice its size


def limit() -> int | None:
    """Bytes that this process may map (`ulimit -v`), or None if there is no limit."""
    try:
        import resource
    except ImportError:  # no such limit on this system
        return None
    most = resource.getrlimit(resource.RLIMIT_AS)[0]
    return None if most == resource.RLIM_INFINITY else most


def needed(threads: int) -> int:
    """Bytes that a small network maps on so many threads."""
    return ONE_THREAD if threads == 1 else ONE_THREAD + ALIGNING + (threads - 1) * EACH_MORE


def require_address_space(threads: int) -> None:
    """Raise LimitError if the process may map less than so many threads need; 0: one per core."""
    most = limit()
    threads = threads or len(environment.physical_cores())
    if most is None or most >= needed(threads):
        return
    advice = "Raise the limit"
    if threads > 1 and most >= needed(1):
        advice += " or give --threads 1"
    raise errors.LimitError(
        f"this process may map {most >> 10:,} kB of memory (ulimit -v); kernels on {threads} "
        f"thread{'s' if threads > 1 else ''} need at least {needed(threads) >> 10:,} kB. {advice}"
    )
