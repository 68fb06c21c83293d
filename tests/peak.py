"""How much memory this process has taken at most, since the last `reset`."""

import re
import resource
from pathlib import Path

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def resettable() -> bool:
    """Whether the system can forget a peak (Linux)."""
    return RESET.exists() and "VmHWM" in STATUS.read_text()


RESETTABLE = resettable()


def reset() -> int:
    """Forget the peak, where the system can; what is taken now, in bytes."""
    if RESETTABLE:
        RESET.write_text("5")
    return peak()


def peak() -> int:
    """The most that was taken since the last `reset`; elsewhere since the process began."""
    if not RESETTABLE:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    found = re.search(r"VmHWM:\s+(\d+) kB", STATUS.read_text())
    assert found is not None
    return int(found[1]) << 10
