"""Data sets of event cameras, as frames (N, T, 2, H, W): counts of events, or spikes.

`events5k` are mnist5k's digits before a camera (saccade.py) and need no files. The others are read
from a folder, in the layouts that event_layouts.py knows, and their frames kept in a cache.

T frames are made as base/event_frames.py says. Where a data set has no test samples, a fifth of
each class is taken for testing, as many as in Soul, by a permutation with a fixed seed (Soul takes
the last ones in the order of the file system); a tenth of the training samples is for validation.
"""

import itertools
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from soul_deploy.base import Array, errors, event_frames, memory, progress
from soul_deploy.base.event_frames import FrameRule, Scaling, SplitBy
from soul_deploy.base.events import Recording
from soul_deploy.base.pixel_rule import MOST_COUNT, InputKind
from soul_deploy.data import event_layouts, saccade
from soul_deploy.data.event_layouts import SETS, Layout
from soul_deploy.data.frame_cache import FrameCache, Frames
from soul_deploy.data.samples import Data, Split, stratified_parts

MADE = "events5k"
NAMES = (MADE, *SETS)
KINDS: tuple[InputKind, ...] = ("counts", "spikes")
"""What frames hold; the first is the default: SpikingJelly's and Soul's values."""
DEFAULT_STEPS = 4
TESTED, VALIDATED = 5, 10
"""One in so many samples of a class is for testing, and of what is left for validation."""
CACHE = "soul_deploy_frames"
NPY_HEADER = 128  # bytes
Read = Recording | errors.SoulDeployError


@dataclass(frozen=True, kw_only=True)
class EventOptions:
    """What is asked of frames. None: what a model file records, or else the default.

    steps         T; default 4, as in Soul
    split_by      number (default), time
    duration      of a frame in µs, instead of split_by
    scaling       nearest (default), sum
    cache_dir     folder of the cache; default: soul_deploy_frames in the data set's folder
    cache         whether frames are kept on the disk, or in memory alone
    skip_damaged  go on without the files that cannot be read
    clip_counts   of more events than a network takes, MOST_COUNT, count so many
    """

    steps: int | None = None
    split_by: SplitBy | None = None
    duration: int | None = None
    scaling: Scaling | None = None
    cache_dir: Path | None = None
    cache: bool = True
    skip_damaged: bool = False
    clip_counts: bool = False

    def over(self, recorded: Any, steps: int | None = None) -> "EventOptions":
        """These, and what is not said as a model file records it under "frames"."""
        told = recorded if isinstance(recorded, Mapping) else {}
        timed = self.split_by is None and self.duration is None
        return replace(
            self,
            steps=self.steps or steps,
            split_by=told.get("split_by") if timed else self.split_by,
            duration=told.get("duration") if timed else self.duration,
            scaling=self.scaling or told.get("scaling"),
        )

    def rule(self, side: tuple[int, int]) -> FrameRule:
        """Raises UsageError."""
        if self.split_by is not None and self.duration is not None:
            raise errors.UsageError(
                f"split_by {self.split_by} and duration {self.duration} are both given; frames "
                "have equal numbers of events, equal times, or a duration: leave one out"
            )
        return FrameRule(
            DEFAULT_STEPS if self.steps is None else self.steps,
            self.split_by or "number",
            self.duration,
            side,
            self.scaling or "nearest",
        )


DEFAULTS = EventOptions()


def sides_of(name: str, size: int) -> tuple[int, int]:
    """(H, W) of frames whose sides are `size` pixels; 0: of the sensor's."""
    sensor = SETS[name].sensor if name in SETS else (saccade.SIDE, saccade.SIDE)
    return (size, size) if size else sensor


def load(
    name: str,
    folder: Path,
    options: EventOptions,
    *,
    side: tuple[int, int] | None = None,
    kind: InputKind | None = None,
    made_of: Data | None = None,
) -> Data:
    """The data set `name`.

    side: (H, W) of the frames; None: Soul's. kind: counts or spikes. made_of: mnist5k, for events5k
    Raises MissingFileError, UsageError, DataError for files that cannot be read, LimitError.
    """
    if kind is not None and kind not in KINDS:
        raise errors.UsageError(
            f"data set {name!r} holds events, of which frames of counts or spikes are made; {kind} "
            "are needed"
        )
    found = kind or KINDS[0]
    if made_of is not None:
        return _events5k(made_of, options, side or (saccade.SIDE, saccade.SIDE), found)
    return _public(name, folder, options, side or SETS[name].side, found)


def _events5k(digits: Data, options: EventOptions, side: tuple[int, int], kind: InputKind) -> Data:
    splits = {name: getattr(digits, name) for name in ("train", "validation", "test")}
    images = np.concatenate([split.images[:, 0].numpy() for split in splits.values()])
    labels = torch.cat([split.labels for split in splits.values()])
    rule = options.rule(side)
    key = _key(MADE, rule, kind, {"digits": len(images), "sensor": saccade.SIDE})
    cache = None
    if options.cache and options.cache_dir is not None:  # else: made in seconds
        cache = FrameCache(options.cache_dir, MADE, key)
    made = _kept(
        cache, MADE, lambda: enumerate(saccade.recordings(images)), len(images), rule, kind, options
    )
    sizes = [len(split) for split in splits.values()]
    return _data(MADE, made, labels, sizes, digits.classes, rule, kind, ())


def _public(
    name: str, folder: Path, options: EventOptions, side: tuple[int, int], kind: InputKind
) -> Data:
    layout = event_layouts.find(name, folder)
    rule, parts = options.rule(side), _parts(name, layout)
    order = torch.cat(parts).tolist()
    key = _key(name, rule, kind, {"files": layout.fingerprint()})
    key |= {"skip_damaged": options.skip_damaged, "clip_counts": options.clip_counts}
    cache = None
    if options.cache:
        cache = FrameCache(options.cache_dir or folder / CACHE, name, key)
    made = _kept(cache, name, partial(_each, layout, order), len(order), rule, kind, options)
    labels = torch.tensor([layout.samples[place].label for place in order])
    notes = [f"data set {name}: {line}" for line in made.told]
    if cache is not None:
        notes += [f"data set {name}: its frames are in {cache.paths[0]} ({_size(made):,} bytes)"]
    return _data(name, made, labels, list(map(len, parts)), layout.classes, rule, kind, notes)


def _size(made: Frames) -> int:
    return int(made.values.nbytes)


def _parts(name: str, layout: Layout) -> list[torch.Tensor]:
    """Places of the training, validation and test samples."""
    labels = torch.tensor([sample.label for sample in layout.samples])
    said = [sample.split for sample in layout.samples]
    if None in said:
        held = len(labels) // TESTED
        rest, test = stratified_parts(labels, (len(labels) - held, held))
    else:
        rest, test = (
            torch.tensor([place for place, split in enumerate(said) if split == wanted])
            for wanted in ("train", "test")
        )
    held = len(rest) // VALIDATED
    if not held or not len(test):
        raise errors.UsageError(
            f"data set {name!r}: {len(rest)} samples for training and {len(test)} for testing in "
            f"{layout.root}; {VALIDATED} at least are needed for training, and one for testing"
        )
    kept, validation = stratified_parts(labels[rest], (len(rest) - held, held))
    return [rest[kept], rest[validation], test]


def _key(name: str, rule: FrameRule, kind: InputKind, source: Mapping[str, Any]) -> dict[str, Any]:
    return {"data": name, "rule": asdict(rule), "kind": kind, **source}


def _each(layout: Layout, order: list[int]) -> Iterator[tuple[int, Read]]:
    """(row, recording) or (row, what is wrong with its file), a file at a time."""
    rows: dict[Path, list[int]] = {}
    for row, place in enumerate(order):
        rows.setdefault(layout.samples[place].path, []).append(row)
    for path, of_it in rows.items():
        try:
            recording = layout.read(path)
        except errors.SoulDeployError as error:
            yield from ((row, error) for row in of_it)
            continue
        for row in of_it:
            found = layout.samples[order[row]].of(recording)
            empty = errors.FileFormatError(f"{path}: a sample without events; it is cut off")
            yield row, found if len(found) else empty


def _kept(
    cache: FrameCache | None,
    name: str,
    each: Any,
    count: int,
    rule: FrameRule,
    kind: InputKind,
    options: EventOptions,
) -> Frames:
    """The frames of all samples, mapped from the cache, if there is one."""
    found = None if cache is None else cache.read()
    if found is not None:
        return found
    assert rule.side is not None
    shape = (count, rule.steps, 2, *rule.side)
    size = int(np.prod(shape))

    def fill(place: Path | None) -> Frames:
        if cache is None or place is None:
            memory.require_memory(f"{name}: its frames", size, None, "Leave --no_cache out")
            values: Array = np.zeros(shape, np.uint8)
        else:
            cache.make_room(size + NPY_HEADER)
            values = np.lib.format.open_memmap(place, "w+", np.uint8, shape)
        return _without(values, *_filled(values, name, each(), rule, kind, options))

    return fill(None) if cache is None else cache.make(fill)


def _filled(
    values: Array,
    name: str,
    each: Iterator[tuple[int, Read]],
    rule: FrameRule,
    kind: InputKind,
    options: EventOptions,
) -> tuple[dict[int, str], int]:
    """Fill the rows; row -> why not, and how many counts were cut off."""
    left_out: dict[int, str] = {}
    clipped = 0
    for done, (row, read) in enumerate(each):
        if done % 100 == 0:
            progress.status(f"{name}: frames of sample {done + 1} of {len(values)}")
        try:
            if isinstance(read, errors.SoulDeployError):
                raise read
            frames = event_frames.frames_of(read, rule)
        except (errors.FileFormatError, errors.ValidityError, errors.LimitError) as error:
            if not options.skip_damaged:
                raise errors.DataError(
                    f"data set {name!r}: {error}. Get the file again, or give --skip_damaged to go "
                    "on without what cannot be read"
                ) from error
            left_out[row] = str(error)
            continue
        frames = frames > 0 if kind == "spikes" else frames
        above = int((frames > MOST_COUNT).sum())
        if above and not options.clip_counts:
            raise errors.DataError(
                f"data set {name!r}: a pixel counts {int(frames.max())} events in a frame, and "
                f"networks take {MOST_COUNT} at most; give more time steps (-T), a shorter "
                "--duration, --input_kind spikes, or --clip_counts"
            )
        values[row] = np.minimum(frames, MOST_COUNT)
        clipped += above
    return left_out, clipped


def _without(values: Array, left_out: Mapping[int, str], clipped: int) -> Frames:
    """Rows that were left out are closed up by those behind them."""
    places = tuple(row for row in range(len(values)) if row not in left_out)
    if left_out:
        for row, place in enumerate(places):
            values[row] = values[place]
    told = [f"left out, {line}" for line in dict.fromkeys(left_out.values())]
    told += [f"{clipped:,} counts above {MOST_COUNT} are {MOST_COUNT}"] if clipped else []
    return Frames(values, places, tuple(told))


def _data(
    name: str,
    made: Frames,
    labels: torch.Tensor,
    sizes: list[int],
    classes: tuple[str, ...],
    rule: FrameRule,
    kind: InputKind,
    notes: Any,
) -> Data:
    bounds = np.searchsorted(made.places, np.cumsum([0, *sizes]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is mapped cannot be written to, and nobody does
        images = torch.from_numpy(made.values)
    kept = labels[list(made.places)]
    train, validation, test = (
        Split(images[first:behind], kept[first:behind])
        for first, behind in itertools.pairwise(bounds.tolist())
    )
    if not (len(train) and len(validation) and len(test)):
        raise errors.DataError(
            f"data set {name!r}: nothing is left of a split; get its files again"
        )
    how = {"split_by": rule.split_by, "duration": rule.duration, "scaling": rule.scaling}
    return Data(
        name,
        train,
        validation,
        test,
        classes=classes,
        normalization=None,
        input_kind=kind,
        frames=True,
        notes=(*notes, _told(name, rule)),
        frame_rule=how,
    )


def _told(name: str, rule: FrameRule) -> str:
    if rule.duration is not None:
        how = f"of {rule.duration:,} µs each, the rest left out"
    else:
        equal = {"number": "numbers of events", "time": "times"}[rule.split_by]
        how = f"of equal {equal}"
    return f"data set {name}: {rule.steps} frames {how}"
