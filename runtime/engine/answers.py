"""Answers over time: class scores at the end of each window, or after each event."""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from soul_deploy.base import Array, brief, errors
from soul_deploy.base.events import EVENT
from soul_deploy.base.reduction import OverTime
from soul_deploy.runtime.engine.windows import WindowRule, windows_of


class Steps(Protocol):
    """A stream that takes events: `Stream`, or `EventStream`."""

    def push(self, events: Array) -> None: ...

    def step(self) -> Array: ...


class Peeks(Steps, Protocol):
    """One that can say what it would answer if the step ended now: `EventStream`."""

    def peek(self) -> Array: ...


@dataclass(frozen=True)
class Fit:
    """Which part of a sensor a network sees, and how much smaller.

    left, top  of the part, in the sensor's pixels
    width, height  of the part, a multiple of `down`
    down       so many pixels a side become one
    """

    left: int
    top: int
    width: int
    height: int
    down: int = 1

    def __post_init__(self) -> None:
        errors.require_least(0, left=self.left, top=self.top)
        errors.require_least(1, width=self.width, height=self.height, down=self.down)
        if self.width % self.down or self.height % self.down:
            raise errors.UsageError(
                f"a region of {self.width}×{self.height} pixels does not divide by {self.down}"
            )

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width of what the network sees."""
        return self.height // self.down, self.width // self.down

    def of(self, events: Array) -> Array:
        """Those of the region, in the network's pixels."""
        x, y = events["x"].astype(np.int64) - self.left, events["y"].astype(np.int64) - self.top
        inside = (x >= 0) & (x < self.width) & (y >= 0) & (y < self.height)
        found: Array = events[inside]
        found["x"], found["y"] = x[inside] // self.down, y[inside] // self.down
        return found


@brief
@dataclass(frozen=True)
class Answer:
    """What the network says at a time.

    time     µs: the end of the window, or the time of the event
    window   counted from 0
    events   that the network saw in the window so far; late: that were left out
    scores   (classes,) float32, of the step alone
    average  (classes,) float32 of the last T steps: their mean, sum, last or maximum, as the
             network's
    ended    whether the step has ended; if not, scores are what it would give if it ended now
    """

    time: int
    window: int
    events: int
    late: int
    scores: Array
    average: Array
    ended: bool = True

    @property
    def best(self) -> int:
        """The class with the highest average."""
        return int(self.average.argmax())

    @property
    def margin(self) -> float:
        """From the second highest average to the highest; infinite of one class."""
        ranked = np.sort(self.average)
        return float(ranked[-1] - ranked[-2]) if len(ranked) > 1 else float("inf")


class LastSteps:
    """The scores of the last T steps, and what becomes of them."""

    def __init__(self, time_steps: int, over_time: OverTime) -> None:
        self.kept: deque[Array] = deque(maxlen=time_steps)
        self.over_time = over_time

    def with_one(self, scores: Array) -> Array:
        """What becomes of them with one more, which is not kept."""
        steps = np.stack([*self.kept, scores][-(self.kept.maxlen or 1) :])
        found = {
            "mean": lambda: steps.mean(axis=0, dtype=np.float64),
            "sum": lambda: steps.sum(axis=0, dtype=np.float64),
            "last": lambda: steps[-1],
            "max": lambda: steps.max(axis=0),
        }[self.over_time]()
        reduced: Array = found.astype(np.float32)
        return reduced

    def add(self, scores: Array) -> Array:
        """What becomes of them with one more, which is kept."""
        found = self.with_one(scores)
        self.kept.append(scores)
        return found


def answers(
    stream: Steps, arrays: Iterable[Array], rule: WindowRule, last: LastSteps,
    fit: Fit | None = None,
) -> Iterator[Answer]:  # fmt: skip
    """An answer for each window of events (N,) that come in arrays. fit: None: as they are."""
    for number, window in enumerate(windows_of(arrays, rule)):
        seen = window.events if fit is None else fit.of(window.events)
        stream.push(seen)
        scores = stream.step()[0]
        yield Answer(window.end, number, len(seen), window.late, scores, last.add(scores))


def answers_by_event(
    stream: Peeks, arrays: Iterable[Array], rule: WindowRule, last: LastSteps,
    fit: Fit | None = None,
) -> Iterator[Answer]:  # fmt: skip
    """An answer for each event that the network sees, as if its step ended with it, and one at the
    end of each window.
    """
    for number, window in enumerate(windows_of(arrays, rule)):
        seen = window.events if fit is None else fit.of(window.events)
        for place in range(len(seen)):
            stream.push(seen[place : place + 1])
            scores = stream.peek()[0]
            time, so_far = int(seen["t"][place]), last.with_one(scores)
            yield Answer(time, number, place + 1, 0, scores, so_far, ended=False)
        scores = stream.step()[0]
        yield Answer(window.end, number, len(seen), window.late, scores, last.add(scores))


def chunks_of(events: Array, size: int = 1 << 16) -> Iterator[Array]:
    """Events (N,) in arrays of at most `size`."""
    if events.dtype != EVENT:
        raise errors.ValidityError(f"{events.dtype} given; events are {EVENT}")
    for first in range(0, len(events), size):
        yield events[first : first + size]
