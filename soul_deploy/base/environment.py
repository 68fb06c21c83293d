"""Where something was measured: processor, cores, versions, time."""

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("soul-deploy", "numpy", "numba", "scipy", "onnxruntime", "onnx", "torch")
CPUINFO = Path("/proc/cpuinfo")
TOPOLOGY = Path("/sys/devices/system/cpu")


def environment() -> dict[str, Any]:
    """A block of JSON data that makes a measurement comparable."""
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": cpu_model(),
        "cores": len(physical_cores()),
        "load_average": _load_average(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: package_version(name) for name in PACKAGES},
    }


def _load_average() -> float | None:
    """Of the last minute; None where the system keeps none (Windows)."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def physical_cores() -> tuple[int, ...]:
    """One logical processor of each physical core that this process may use, by number."""
    if hasattr(os, "sched_getaffinity"):
        usable = sorted(os.sched_getaffinity(0))
    else:
        usable = list(range(os.cpu_count() or 1))
    found: dict[str, int] = {}
    for number in usable:
        siblings = TOPOLOGY / f"cpu{number}" / "topology" / "thread_siblings_list"
        core = siblings.read_text(encoding="ascii") if siblings.exists() else str(number)
        found.setdefault(core, number)
    return tuple(found.values())


def cpu_model() -> str:
    """The processor's name."""
    if CPUINFO.exists():
        for line in CPUINFO.read_text(encoding="utf-8").splitlines():
            if line.startswith(("model name", "Model")):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def package_version(name: str) -> str | None:
    """Its version, or None if it is not installed (nothing is imported)."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None
