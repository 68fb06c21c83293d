"""How much memory an operation may take: checked before anything is allocated."""

import os
import re

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
    """Bytes of memory that the machine has."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def require_memory(what: str, needed: int, allowed: int | None, instead: str) -> None:
    """Raise LimitError unless `needed` bytes are allowed (None: what the machine has).

    what: says what needs them; instead: what to do.
    """
    limit = machine_memory() if allowed is None else allowed
    if needed > limit:
        raise LimitError(
            f"{what} needs {needed:,} bytes of memory; allowed are {limit:,}. {instead}"
        )
