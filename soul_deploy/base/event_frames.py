"""Events to frames (T, 2, H, W): counts per pixel and polarity; channel 0 is polarity 0.

The values are those of SpikingJelly 2.0.0 (spikingjelly/datasets/utils.py). With N events at times
t and M frames, frame j holds

number    events j·⌊N/M⌋ to (j + 1)·⌊N/M⌋, the last one all that are left
time      with D = ⌊(t_last - t_first) / M⌋ the events from the first to the last of those with
          t_first + j·D ≤ t < t_first + (j + 1)·D; the last frame goes on to the last event
duration  events of j·D ≤ t - t_least < (j + 1)·D; there are ⌈(t_last - t_least) / D⌉ frames, and
          an event at exactly the end of the last one belongs to it

A bin of time without events is an empty frame, where SpikingJelly raises IndexError, and so are all
frames of a recording without events. By duration, events whose times jump back are brought into the
order of their times first.
"""

from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import numpy as np

from soul_deploy.base import Array, errors
from soul_deploy.base.events import MAX_TIME, Recording

SplitBy: TypeAlias = Literal["number", "time"]
SPLIT_BY: tuple[SplitBy, ...] = get_args(SplitBy)
Scaling: TypeAlias = Literal["nearest", "sum"]
SCALINGS: tuple[Scaling, ...] = get_args(Scaling)
MAX_VALUES = 1 << 30
"""Of the frames of one recording: a duration of 1 µs must not take the machine's memory."""


@dataclass(frozen=True)
class FrameRule:
    """How a recording becomes frames.

    steps     T
    split_by  which of the two, where there is no duration
    duration  of a frame, in µs: the first T of such frames, empty ones where the recording ends
              earlier
    side      H and W that frames are scaled to; None: the sensor's own
    scaling   nearest: each pixel of the new frame is one of the sensor's, the others are left out,
              as in Soul; sum: each event counts at the place that its pixel goes to
    """

    steps: int
    split_by: SplitBy = "number"
    duration: int | None = None
    side: tuple[int, int] | None = None
    scaling: Scaling = "nearest"

    def __post_init__(self) -> None:
        errors.require_least(1, steps=self.steps, duration=self.duration)
        if (self.duration or 0) * self.steps > MAX_TIME:
            raise errors.UsageError(
                f"{self.steps} frames of {self.duration} µs; together at most {MAX_TIME} µs"
            )
        errors.require_known("split_by", self.split_by, SPLIT_BY)
        errors.require_known("scaling", self.scaling, SCALINGS)
        if self.side is not None:
            errors.require_least(1, height=self.side[0], width=self.side[1])


def frames_of(recording: Recording, rule: FrameRule) -> Array:
    """Counts (T, 2, H, W) of a recording, int64.

    Raises ValidityError for frames of equal times of a recording that ends before it begins,
    UsageError for a sum on more pixels than the sensor has, LimitError.
    """
    found = _summed(recording, rule.side) if rule.scaling == "sum" else recording
    times = found.events["t"]
    if rule.duration is not None:
        frames = by_duration(found, rule.duration, most=rule.steps)
    elif rule.split_by == "number":
        frames = _segments(found, *number_bounds(len(found), rule.steps))
    else:
        frames = _segments(found, *time_bounds(times, rule.steps))
    return frames if rule.scaling == "sum" else nearest(frames, rule.side)


def number_bounds(count: int, frames: int) -> tuple[Array, Array]:
    """First event of each frame, and the one behind its last; by equal numbers of events."""
    first = np.arange(frames) * (count // frames)
    return first, np.append(first[1:], count)


def time_bounds(times: Array, frames: int) -> tuple[Array, Array]:
    """The same by equal times; empty frames begin where they end. times: (N,), µs.

    Raises ValidityError if the last event is earlier than the first.
    """
    if not len(times):
        return np.zeros(frames, np.int64), np.zeros(frames, np.int64)
    begin, end = int(times[0]), int(times[-1])
    if end < begin:
        raise errors.ValidityError(
            f"the first event is of {begin} µs and the last of {end} µs: there are no frames of "
            "equal times; split by number"
        )
    width = (end - begin) // frames
    first, behind = np.zeros((2, frames), np.int64)
    late = times >= np.uint64(begin)
    for frame in range(frames):
        start = np.uint64(begin + width * frame)
        inside = late & (times >= start)
        if frame < frames - 1:
            inside &= times < np.uint64(begin + width * (frame + 1))
        there = np.flatnonzero(inside)
        if len(there):
            first[frame], behind[frame] = there[0], there[-1] + 1
    if behind[-1]:
        behind[-1] = len(times)
    return first, behind


def by_duration(recording: Recording, duration: int, most: int | None = None) -> Array:
    """Frames of `duration` µs each, (T, 2, H, W); most: exactly so many of them, the first ones,
    then empty ones.

    Raises LimitError for more values than MAX_VALUES.
    """
    times, found = recording.events["t"], recording
    if len(times) > 1 and (times[1:] < times[:-1]).any():
        found = Recording(
            recording.events[np.argsort(times, kind="stable")], recording.width, recording.height
        )
        times = found.events["t"]
    since = times - times[0] if len(times) else times
    last = int(since[-1]) if len(since) else 0
    count = max(1, -(-last // duration))
    frames = count if most is None else most
    _require_room(found, frames)
    bounds = np.searchsorted(since, np.arange(1, frames, dtype=np.uint64) * np.uint64(duration))
    behind = np.append(bounds, len(since))
    if most is not None and frames < count:
        behind[-1] = np.searchsorted(since, np.uint64(frames * duration))
    elif frames > count:  # the event at the end of the last frame stays in it
        behind[count - 1 :] = len(since)
    return _segments(found, np.append(0, behind[:-1]), behind)


def _segments(recording: Recording, first: Array, behind: Array) -> Array:
    """Counts of the events first[j] to behind[j], without the latter, for each frame j."""
    _require_room(recording, len(first))
    events, sides = recording.events, (2, recording.height, recording.width)
    place = events["p"].astype(np.int64) * sides[1]
    place = (place + events["y"]) * sides[2] + events["x"]
    frames = np.zeros((len(first), *sides), np.int64)
    for frame, (start, end) in enumerate(zip(first, behind, strict=True)):
        counts = np.bincount(place[start:end], minlength=frames[frame].size)
        frames[frame] = counts.reshape(sides)
    return frames


def _require_room(recording: Recording, frames: int) -> None:
    values = frames * 2 * recording.height * recording.width
    if values > MAX_VALUES:
        raise errors.LimitError(
            f"{frames} frames of {recording.width}×{recording.height} pixels hold {values:,} "
            f"values; the limit is {MAX_VALUES:,}: give a longer duration, or fewer frames"
        )


def nearest(frames: Array, side: tuple[int, int] | None) -> Array:
    """Frames (..., H, W) scaled to `side` (H, W): pixel i is the one at ⌊i · old / new⌋, as
    PyTorch's "nearest".
    """
    if side is None or side == frames.shape[-2:]:
        return frames
    rows, columns = (_sources(old, new) for old, new in zip(frames.shape[-2:], side, strict=True))
    return frames[..., rows[:, None], columns]


def _sources(old: int, new: int) -> Array:
    scale = np.float32(old) / np.float32(new)  # as PyTorch computes it
    found = np.floor(np.arange(new, dtype=np.float32) * scale).astype(np.int64)
    sources: Array = np.minimum(found, old - 1)
    return sources


def _summed(recording: Recording, side: tuple[int, int] | None) -> Recording:
    """The recording on a sensor of `side`: pixel x goes to ⌊x · new / old⌋."""
    if side is None or side == (recording.height, recording.width):
        return recording
    height, width = side
    if height > recording.height or width > recording.width:
        raise errors.UsageError(
            f"a sensor of {recording.width}×{recording.height} cannot be summed up to {width}×"
            f"{height} pixels; give at most its own size, or scale to the nearest"
        )
    events = recording.events.copy()
    for name, old, new in (("x", recording.width, width), ("y", recording.height, height)):
        events[name] = events[name].astype(np.int64) * new // old
    return Recording(events, width, height)
