"""Where something was measured: processor, instruction sets, caches, cores, versions, time."""

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("soul-deploy", "numpy", "numba", "scipy", "onnxruntime", "onnx", "openvino", "torch")
CPUINFO = Path("/proc/cpuinfo")
TOPOLOGY = Path("/sys/devices/system/cpu")
VECTOR_SETS = ("asimd", "sve", "sse4_2", "avx", "avx2", "fma", "avx512f", "avx512bw", "avx512_vnni")
"""Instruction sets, as Linux calls them, that say how fast vectors are."""


def environment() -> dict[str, Any]:
    """A block of JSON data that makes a measurement comparable."""
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": cpu_model(),
        "instruction_sets": instruction_sets(),
        "caches": caches(),
        "clock_mhz": clock_mhz(),
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
    return _cpuinfo("model name") or _cpuinfo("Model") or platform.processor() or platform.machine()


def instruction_sets() -> list[str]:
    """Those of VECTOR_SETS that the processor has; none where the system does not say."""
    words = set((_cpuinfo("flags") or _cpuinfo("Features") or "").split())
    return [name for name in VECTOR_SETS if name in words]


def clock_mhz() -> float | None:
    """The clock now, or None where the system does not say."""
    told = _cpuinfo("cpu MHz")
    return None if told is None else round(float(told), 1)


def caches() -> dict[str, int]:
    """Bytes of each cache of the first core, {"L1d": 49152, …}; none where it is not known."""
    found: dict[str, int] = {}
    for index in sorted((TOPOLOGY / "cpu0" / "cache").glob("index[0-9]*")):
        try:
            level, kind, size = (
                (index / name).read_text(encoding="ascii").strip()
                for name in ("level", "type", "size")
            )
        except OSError:
            continue
        if kind != "Instruction" and size.endswith("K"):
            found[f"L{level}{'d' if kind == 'Data' else ''}"] = 1024 * int(size[:-1])
    return found


def _cpuinfo(key: str) -> str | None:
    """The first value that /proc/cpuinfo has under a key."""
    if CPUINFO.exists():
        for line in CPUINFO.read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == key:
                return value.strip()
    return None


def package_version(name: str) -> str | None:
    """Its version, or None if it is not installed (nothing is imported)."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None
