"""Writes the files of event-camera data sets from their formats' specifications.

AEDAT 2.0 and 3.1: iniVation, "AEDAT file formats"; .bin: Orchard et al. (2015), Read_Ndataset.m;
gesture labels: the README of DVS128 Gesture. None of it is read from the readers under test.
"""

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np

from soul_deploy.base import Array
from soul_deploy.base.events import EVENT, Recording

CIFAR10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def recording(seed: int, count: int = 40, width: int = 128, height: int = 128) -> Recording:
    """Events at random pixels, in the order of their times."""
    random = np.random.default_rng(seed)
    events = np.zeros(count, EVENT)
    events["t"] = 500 + np.sort(random.integers(0, 90_000, count))
    for name, most in (("x", width), ("y", height), ("p", 2)):
        events[name] = random.integers(0, most, count)
    return Recording(events, width, height)


def aedat2(path: Path, found: Recording) -> None:
    """8 bytes an event, highest first: the DVS128's address (bit 0 polarity, 1 to 7 x, 8 to 14 y)
    and µs. CIFAR10-DVS was recorded with the camera on its side and the other polarity.
    """
    events = found.events.astype([(name, "<i8") for name in "txyp"])
    address = (1 - events["p"]) | (127 - events["y"]) << 1 | (127 - events["x"]) << 8
    words = np.stack([address, events["t"]], 1).astype(">u4")
    text = "#!AER-DAT2.0\r\n# This is a raw AE data file - do not edit\r\n# created today\r\n"
    path.write_bytes(text.encode() + words.tobytes())


def packet(kind: int, rows: Array, overflow: int = 0, size: int = 8) -> bytes:
    """An AEDAT 3.1 packet of `rows`, bytes (n, size)."""
    head = struct.pack("<hhiiiiii", kind, 1, size, 4, overflow, len(rows), len(rows), len(rows))
    return head + rows.astype(np.uint8).tobytes()


def polarity_packet(events: Array, overflow: int = 0, valid: int = 1) -> bytes:
    data = valid | events["p"].astype("<u4") << 1
    data = data | events["y"].astype("<u4") << 2 | events["x"].astype("<u4") << 17
    time = events["t"] & np.uint64(2**31 - 1)
    words = np.stack([data.astype("<u4"), time.astype("<u4")], 1)
    return packet(1, words.view(np.uint8).reshape(-1, 8), overflow)


def aedat3(path: Path, found: Recording) -> None:
    """Packets of at most 32 events, between which one of another kind stands."""
    text = b"#!AER-DAT3.1\r\n#Format: RAW\r\n#Source 1: DVS128\r\n#!END-HEADER\r\n"
    parts = [text, packet(0, np.zeros((2, 8)))]
    for first in range(0, len(found), 32):
        part = found.events[first : first + 32]
        for high in np.unique(part["t"] >> np.uint64(31)).tolist():
            parts.append(polarity_packet(part[part["t"] >> np.uint64(31) == high], high))
        parts.append(packet(6, np.zeros((1, 36)), size=36))
    path.write_bytes(b"".join(parts))


def atis(path: Path, found: Recording) -> None:
    """5 bytes an event: x, y, polarity and 23 bits of time, highest first."""
    time = found.events["t"].astype(np.uint32)
    columns = [
        found.events["x"],
        found.events["y"],
        found.events["p"].astype(np.uint32) << 7 | time >> 16,
        time >> 8 & 255,
        time & 255,
    ]
    path.write_bytes(np.stack(columns, 1).astype(np.uint8).tobytes())


def cifar10dvs(root: Path, each: int = 2) -> None:
    for label, name in enumerate(CIFAR10):
        (root / name).mkdir(parents=True)
        for k in range(each):
            aedat2(root / name / f"cifar10_{name}_{k}.aedat", recording(100 * label + k))


def nmnist(root: Path, each: int = 2) -> None:
    for part, offset in (("Train", 0), ("Test", 5000)):
        for label in range(10):
            folder = root / part / str(label)
            folder.mkdir(parents=True)
            for k in range(each if part == "Train" else 1):
                found = recording(offset + 100 * label + k, 60, 34, 34)
                atis(folder / f"{k:05}.bin", found)


def ncaltech101(root: Path) -> None:
    for label, name in enumerate(("BACKGROUND_Google", "ant", "yin_yang")):
        folder = root / "Caltech101" / name
        folder.mkdir(parents=True)
        for k in range(6):
            atis(folder / f"image_{k:04}.bin", recording(100 * label + k, 60, 240, 180))


def dvsgesture(root: Path) -> None:
    """Two recordings for training and one for testing, in each all gestures, one of them twice."""
    folder = root / "DvsGesture"
    folder.mkdir(parents=True)
    lists = {"train": ["user01_led", "user02_lab"], "test": ["user24_led"]}
    for part, names in lists.items():
        (folder / f"trials_to_{part}.txt").write_text("".join(f"{name}.aedat\n" for name in names))
        for seed, name in enumerate(names):
            found = recording(seed + len(part), 1200)
            found.events["t"] += 2**31 - 45_000  # over the first overflow of the time
            aedat3(folder / f"{name}.aedat", found)
            begin = int(found.events["t"][0])
            lines = ["class,startTime_usec,endTime_usec"]
            for k, label in enumerate([*range(1, 12), 8]):
                lines.append(f"{label},{begin + 7000 * k},{begin + 7000 * k + 6500}")
            (folder / f"{name}_labels.csv").write_text("\n".join(lines) + "\n")


SETS: dict[str, Callable[[Path], None]] = {
    "cifar10dvs": cifar10dvs,
    "dvsgesture": dvsgesture,
    "nmnist": nmnist,
    "ncaltech101": ncaltech101,
}
