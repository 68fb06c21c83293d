"""Windows of time over events: which events a step holds, in whatever order they come.

Window k reaches from begin + k · stride to that plus its length, its end not in it; `begin` is the
time of the first event. A window closes when an event arrives that is not before its end, and then
the next one may close too. Inside of the windows that are open, events may come in any order. An
event from before the first open window is late: it is left out, and counted. So what a window holds
does not depend on how the events are cut into arrays.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from soul_deploy.base import Array, brief, errors
from soul_deploy.base.events import EVENT, MAX_TIME

LONGEST = 1 << 60
"""µs of a window: ends of windows fit signed 64 bits with room."""
MOST_EMPTY = 1_000_000
"""Windows that may close at one event: more is no pause, but a time of another unit."""


@dataclass(frozen=True)
class WindowRule:
    """Lengths in microseconds: of a window, and from a window to the next."""

    length: int
    stride: int

    def __post_init__(self) -> None:
        errors.require_least(1, window=self.length, stride=self.stride)
        if self.length > LONGEST:
            raise errors.UsageError(
                f"a window of {self.length} µs; it is at most {LONGEST} µs long"
            )
        if self.stride > self.length:
            raise errors.UsageError(
                f"a window of {self.length} µs each {self.stride} µs leaves events out; give a "
                "stride of at most the window"
            )


@brief
@dataclass(frozen=True)
class Window:
    """Events (N,) from `begin` to `end`, in µs; late: that came while it was the first open one."""

    begin: int
    end: int
    events: Array
    late: int


class Windows:
    """Windows of arrays of events that come one after the other."""

    def __init__(self, rule: WindowRule) -> None:
        self.rule, self.begin, self.latest = rule, -1, 0
        self.held: Array = np.zeros(0, EVENT)
        self.late: Array = np.zeros(0, np.int64)  # the first open window's begin when they came

    def push(self, events: Array) -> Iterator[Window]:
        """The windows that these events close. Raises ValidityError for a pause without
        end, and a time beyond MAX_TIME."""
        if not len(events):
            return
        if (events["t"] > MAX_TIME).any():
            raise errors.ValidityError(
                f"a time of {events['t'].max()} µs; times are at most {MAX_TIME}"
            )
        times = events["t"].astype(np.int64)
        if self.begin < 0:
            self.begin = self.latest = int(times[0])
        seen = np.maximum.accumulate(np.maximum(times, self.latest))
        opened = self._first_open(seen)
        late = times < opened
        self.late = np.concatenate([self.late, opened[late]])
        self.latest = int(seen[-1])
        self._hold(events[~late])
        first, stride = int(opened[-1]), self.rule.stride
        if (first - self.begin) // stride > MOST_EMPTY:
            raise errors.ValidityError(
                f"{(first - self.begin) // stride:,} windows without an end from {self.begin} to "
                f"{self.latest} µs; times are in microseconds"
            )
        while self.begin < first:
            yield self._close()

    def finish(self) -> Iterator[Window]:
        """What is open and holds events, when no more come."""
        while len(self.held):
            yield self._close()

    def _first_open(self, seen: Array) -> Array:
        """The begin of the first window that is open once the latest time was `seen`."""
        rule = self.rule
        passed = np.maximum(0, (seen - self.begin - rule.length) // rule.stride + 1)
        begins: Array = self.begin + passed * rule.stride
        return begins

    def _hold(self, events: Array) -> None:
        joined = np.concatenate([self.held, events]) if len(self.held) else events
        times = joined["t"]
        if len(times) > 1 and (times[1:] < times[:-1]).any():
            joined = joined[np.argsort(times, kind="stable")]
        self.held = joined

    def _close(self) -> Window:
        end, following = self.begin + self.rule.length, self.begin + self.rule.stride
        times = self.held["t"]
        inside, gone = np.searchsorted(times, np.array([end, following], np.uint64))
        of_this = self.late == self.begin
        window = Window(self.begin, end, self.held[:inside], int(of_this.sum()))
        self.held, self.begin, self.late = self.held[gone:], following, self.late[~of_this]
        return window


def windows_of(arrays: Iterable[Array], rule: WindowRule) -> Iterator[Window]:
    """The windows of events (N,) that come in arrays; see the module for what is late."""
    windows = Windows(rule)
    for events in arrays:
        yield from windows.push(events)
    yield from windows.finish()
