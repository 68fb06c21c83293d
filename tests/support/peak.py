"""How much memory this process has taken at most, since the last `reset`."""

import os
import re
import resource
from pathlib import Path

CHILD = "FUZZ_CHILD_PEAK"  # the variable that names the file in which a child leaves its own
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


def of_child() -> int:
    """What the child that ran since the last call took, if it could say so.

    What the system says of children begins at the peak of the process that started them.
    """
    path = Path(os.environ.get(CHILD, os.devnull))
    if not path.is_file():
        return 0
    found = int(path.read_text())
    path.unlink()
    return found
