"""Where samples of event cameras lie: in the published archives, or in SpikingJelly's folders.

Both are looked for in the folder that is given, where SpikingJelly keeps them too: `events_np`
(.npz of each sample), then `extract`. Labels count classes in the order of their folders' names,
as texts, as SpikingJelly and Soul do: of DVS-Gesture's 0 to 10 that is 0, 1, 10, 2, …
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from soul_deploy.base import errors
from soul_deploy.base.events import Recording
from soul_deploy.runtime.io import event_files

CIFAR10 = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)
GESTURES = (
    *("hand_clapping", "right_hand_wave", "left_hand_wave", "right_arm_clockwise"),
    *("right_arm_counter_clockwise", "left_arm_clockwise", "left_arm_counter_clockwise"),
    *("arm_roll", "air_drums", "air_guitar", "other_gestures"),
)
"""gesture_mapping.csv; folder 0 is the first."""
LABEL_LINES = 10_000  # of one recording


@dataclass(frozen=True)
class Sample:
    """One sample: a file, or what a window of its times [begin, end) in µs holds.

    split: train or test, of a data set that has both
    """

    path: Path
    label: int
    split: str | None = None
    window: tuple[int, int] | None = None

    def of(self, recording: Recording) -> Recording:
        """The sample's events of its file."""
        if self.window is None:
            return recording
        time = recording.events["t"]
        inside = (time >= self.window[0]) & (time < self.window[1])
        return Recording(recording.events[inside], recording.width, recording.height)


@dataclass(frozen=True)
class Layout:
    """The samples that were found, in order, and how a file of theirs is read."""

    root: Path
    samples: tuple[Sample, ...]
    classes: tuple[str, ...]
    read: Callable[[Path], Recording]

    def fingerprint(self) -> str:
        """sha256 over names, sizes and times of the files, labels, splits and windows."""
        state = hashlib.sha256()
        for sample in self.samples:
            held = sample.path.stat()
            place = sample.path.relative_to(self.root).as_posix()
            told = (
                place,
                held.st_size,
                held.st_mtime_ns,
                sample.label,
                sample.split,
                sample.window,
            )
            state.update(repr(told).encode())
        return state.hexdigest()


@dataclass(frozen=True)
class EventSet:
    """A public data set.

    sensor   (H, W)
    side     (H, W) of Soul's frames, to which it scales them
    suffix   of the published files, read by `read`
    folders  where they lie below the folder that is given
    classes  all of them, in the order of their folders' names; empty: those that are there
    has_test  its folders say what is for training and what for testing
    """

    sensor: tuple[int, int]
    side: tuple[int, int]
    suffix: str
    read: Callable[[Path], Recording]
    folders: tuple[str, ...]
    classes: tuple[str, ...] = ()
    has_test: bool = False
    labels_of: Mapping[str, str] = field(default_factory=dict)


def _atis(width: int, height: int) -> Callable[[Path], Recording]:
    return partial(event_files.read_atis, width=width, height=height)


NUMBERED = tuple(sorted(map(str, range(len(GESTURES)))))
SETS: Mapping[str, EventSet] = {
    "cifar10dvs": EventSet(
        *((128, 128), (48, 48), ".aedat", event_files.read_aedat2, (".",)), classes=CIFAR10
    ),
    "dvsgesture": EventSet(
        *((128, 128), (64, 64), ".aedat", event_files.read_aedat3, ("DvsGesture", ".")),
        classes=NUMBERED,
        has_test=True,
        labels_of={name: GESTURES[int(name)] for name in NUMBERED},
    ),
    "nmnist": EventSet(
        *((34, 34), (34, 34), ".bin", _atis(34, 34), (".",)),
        classes=tuple("0123456789"),
        has_test=True,
    ),
    "ncaltech101": EventSet(*((180, 240), (64, 64), ".bin", _atis(240, 180), ("Caltech101", "."))),
}


def find(name: str, folder: Path) -> Layout:
    """The samples of the data set `name` in `folder`.

    Raises MissingFileError where there are none, UsageError for folders that are no classes.
    """
    known = SETS[name]
    places = [folder / "events_np", folder]
    for place in places:
        found = _npz(known, place)
        if found is not None:
            return found
    places = [above / below for above in (folder / "extract", folder) for below in known.folders]
    for place in places:
        found = _trials(known, place) if name == "dvsgesture" else _files(known, place)
        if found is not None:
            return found
    what = {
        "dvsgesture": "trials_to_train.txt, trials_to_test.txt, .aedat and _labels.csv",
        "nmnist": "Train and Test with a folder of .bin files per class",
    }.get(name, f"a folder of {known.suffix} files per class")
    raise errors.MissingFileError(
        f"data set {name!r}: nothing of it in {folder}; needed is there, unpacked, {what}, or "
        "SpikingJelly's folder events_np; give it with --data_dir"
    )


def _npz(known: EventSet, place: Path) -> Layout | None:
    height, width = known.sensor
    read = partial(event_files.read_npz_events, width=width, height=height)
    return _classes(known, place, ".npz", read, ("train", "test"))


def _files(known: EventSet, place: Path) -> Layout | None:
    return _classes(known, place, known.suffix, known.read, ("Train", "Test"))


def _classes(
    known: EventSet,
    place: Path,
    suffix: str,
    read: Callable[[Path], Recording],
    splits: Sequence[str],
) -> Layout | None:
    """A folder per class, below one per split if the data set has them."""
    listed: list[tuple[str | None, Path]] = []
    for split in splits if known.has_test else (None,):
        above = place if split is None else place / split
        for folder in _folders(above):
            listed += [
                (split and split.lower(), path)
                for path in sorted(folder.iterdir())
                if path.suffix.lower() == suffix and path.is_file()
            ]
    if not listed:
        return None
    classes = known.classes or tuple(sorted({path.parent.name for _, path in listed}))
    samples = []
    for said, path in listed:
        if path.parent.name not in classes:
            raise errors.UsageError(
                f"{path.parent} is none of the classes {', '.join(classes)}; leave it elsewhere"
            )
        samples.append(Sample(path, classes.index(path.parent.name), said))
    return Layout(place, tuple(samples), _named(known, classes), read)


def _folders(place: Path) -> Iterator[Path]:
    if place.is_dir():
        yield from (
            path
            for path in sorted(place.iterdir())
            if path.is_dir() and not path.name.startswith((".", "__"))
        )


def _named(known: EventSet, classes: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(known.labels_of.get(name, name) for name in classes)


def _trials(known: EventSet, place: Path) -> Layout | None:
    """DVS-Gesture as published: recordings, and when which gesture was made; in the order of the
    files that SpikingJelly makes of them, so that both have the same splits.
    """
    lists = {split: place / f"trials_to_{split}.txt" for split in ("train", "test")}
    if not all(path.is_file() for path in lists.values()):
        return None
    named: list[tuple[tuple[bool, int, str], Sample]] = []
    for split, listing in lists.items():
        for line in _lines(listing):
            path = place / line
            if Path(line).name != line or path.suffix != known.suffix:
                raise errors.FileFormatError(
                    f"{listing}: {line!r} is no name of an {known.suffix} file"
                )
            seen: Counter[int] = Counter()
            for label, begin, end in _windows(path.with_name(f"{path.stem}_labels.csv")):
                at = known.classes.index(str(label))
                order = (split == "test", at, f"{path.stem}_{seen[at]}.npz")
                named.append((order, Sample(path, at, split, (begin, end))))
                seen[at] += 1
    samples = tuple(sample for _, sample in sorted(named, key=lambda pair: pair[0]))
    for path in {sample.path for sample in samples}:
        if not path.is_file():
            raise errors.MissingFileError(
                f"no file at {path}, which {lists['train']} or the other "
                "list names; unpack the whole archive"
            )
    return Layout(place, samples, _named(known, known.classes), known.read)


def _lines(path: Path) -> list[str]:
    if not path.is_file():
        raise errors.MissingFileError(f"no file at {path}, where the data set's other files are")
    try:
        found = [line.strip() for line in path.read_text(encoding="ascii").splitlines()]
    except UnicodeDecodeError as error:
        raise errors.FileFormatError(f"{path} is no text ({error})") from error
    errors.require(len(found) <= LABEL_LINES, f"{path} has {len(found)} lines")
    return [line for line in found if line]


def _windows(path: Path) -> list[tuple[int, int, int]]:
    """(folder's number, begin, end) of each line of a _labels.csv, behind its heading."""
    heading, *lines = _lines(path) or [""]
    errors.require(
        heading.replace(" ", "") == "class,startTime_usec,endTime_usec",
        f"{path}: its heading is {heading[:60]!r}",
    )
    found = []
    for line in lines:
        words = line.split(",")
        numbers = [int(word) for word in words if word.strip().isdecimal() and len(word) < 20]
        errors.require(
            len(words) == len(numbers) == 3 and 1 <= numbers[0] <= len(GESTURES),
            f"{path}: {line[:60]!r} is no class from 1 to {len(GESTURES)}, begin and end in µs",
        )
        found.append((numbers[0] - 1, numbers[1], numbers[2]))
    return found
