"""`soul-deploy run NETWORK RECORDING --window 10ms`: answers over time, as lines of JSON."""

import json
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from soul_deploy.base import errors, terminal
from soul_deploy.cli import common_options as common
from soul_deploy.cli.common_options import given

if TYPE_CHECKING:
    from soul_deploy.runtime.engine.answers import Answer, Fit
    from soul_deploy.runtime.engine.network import Network
    from soul_deploy.runtime.engine.windows import WindowRule

UNITS = {"us": 1, "µs": 1, "ms": 1_000, "s": 1_000_000}
FORMATS = ("records", "text", "npy", "npz", "aedat4", "evt3")
HEADING = "Events"


@dataclass(frozen=True)
class EventOptions:
    """How a recording becomes steps."""

    window: str | None = given(
        None, "INPUT is a recording of events, and a step holds those of so much time: 10ms, 500us."
    )
    stride: str | None = given(
        None, "From the begin of a window to that of the next.  [default: --window]"
    )
    every: str = given(
        "window",
        "An answer for each window, or for each event too, as if its step ended with it.",
        type=common.choice(("window", "event")),
    )
    input_format: Any = given(
        None,
        "Of the recording.  [default: as its name ends; - is a .npy without it, and records or "
        "text with it]",
        type=common.choice(FORMATS),
    )
    region: str | None = given(
        None, "X,Y,WIDTH,HEIGHT: the part of the sensor that the network sees.  [default: all]"
    )
    down: int = given(1, "So many pixels a side become one.", type=click.IntRange(1))
    margin: float | None = given(
        None, "Stop at the first answer whose class is so far ahead of the next one."
    )
    label: int | None = given(
        None, "The right class: the summary says since when the answer was right."
    )

    def rule(self) -> "WindowRule":
        from soul_deploy.runtime.engine.windows import WindowRule

        length = duration("window", self.window or "")
        stride = length if self.stride is None else duration("stride", self.stride)
        return WindowRule(length, stride)

    def fit(self, height: int, width: int) -> "Fit":
        """Raises UsageError for a region that is not what the network sees."""
        from soul_deploy.runtime.engine.answers import Fit

        sides = 0, 0, width * self.down, height * self.down
        if self.region is not None:
            words = re.fullmatch(r"(\d+),(\d+),(\d+),(\d+)", self.region.replace(" ", ""))
            if words is None:
                raise errors.UsageError(f"region {self.region!r}; give X,Y,WIDTH,HEIGHT")
            sides = tuple(map(int, words.groups()))  # type: ignore[assignment]
        fit = Fit(*sides, down=self.down)
        if fit.sides != (height, width):
            seen = f"{fit.sides[1]}×{fit.sides[0]}"
            raise errors.UsageError(
                f"region {self.region}, down {self.down}: {seen} pixels are left, and the network "
                f"sees {width}×{height}; give a region of {width * self.down}×{height * self.down}"
            )
        return fit

    @property
    def fits(self) -> bool:
        """Whether events are moved at all; otherwise those outside of the network's map are
        errors."""
        return self.region is not None or self.down > 1


def duration(name: str, text: str) -> int:
    """Microseconds of 10ms, 500us or 1s. Raises UsageError."""
    found = re.fullmatch(r"(\d{1,9}(?:\.\d{1,6})?)\s*(us|µs|ms|s)", text.strip())
    length = 0 if found is None else round(float(found[1]) * UNITS[found[2]])
    if length < 1:
        raise errors.UsageError(f"{name} {text!r}; give a time from 1us on, such as 10ms or 500us")
    return length


class Summary:
    """What is said at the end, on standard error."""

    def __init__(self, options: EventOptions) -> None:
        self.options, self.began = options, time.perf_counter()
        self.events = self.late = self.windows = self.synops = self.spent = 0
        self.first: int | None = None
        self.last: Answer | None = None
        self.right_since: int | None = None

    def add(self, answer: "Answer", begin: int) -> None:
        self.first = begin if self.first is None else self.first
        self.last = answer
        right = answer.best == self.options.label
        self.right_since = (self.right_since or answer.time) if right else None
        if answer.ended:
            self.events += answer.events
            self.late += answer.late
            self.windows += 1

    def lines(self, *, stopped: bool) -> Iterator[str]:
        if self.last is None or self.first is None:
            yield "no events"
            return
        spent = time.perf_counter() - self.began
        seconds = (self.last.time - self.first) / 1e6
        yield (
            f"{self.events:,} events in {self.windows:,} windows of {seconds:,.3f} s, in "
            f"{spent:.3f} s: {seconds / spent:,.1f} × real time, {self.events / spent:,.0f} "
            "events/s"
        )
        if self.synops:
            yield f"{self.synops / max(1, self.windows):,.0f} SynOps a window"
        if self.late:
            yield f"{self.late:,} events were late, and left out"
        if stopped:
            yield f"stopped at {self.last.time} µs: the margin is {self.last.margin:.4g}"
        if self.options.label is not None:
            since = self.right_since
            yield (
                f"class {self.options.label}: "
                + ("not the last answer" if since is None else f"right from {since} µs to the end")
            )


def run_recording(network: "Network", word: str, options: EventOptions, *, counts: bool) -> None:
    """Print an answer a line; then what it took, on standard error."""
    from soul_deploy.runtime.engine import answers as engine
    from soul_deploy.runtime.ops.stream_counts import StepCounter

    events, rule = network.events, options.rule()
    shape = events.input_shape
    fit = options.fit(*shape[1:]) if options.fits and len(shape) == 3 else None
    last = engine.LastSteps(events.time_steps, events.readout.over_time)
    arrays = _arrays(word, options)
    if options.every == "event":
        if counts:
            raise errors.UsageError("--counts is of windows; leave out --every event")
        updated, counter = network.event_stream(), None
        updated.peek()  # so that no event waits for a kernel
        found = engine.answers_by_event(updated, arrays, rule, last, fit)
    else:
        stream = network.stream()
        stream.warm_up()
        found = engine.answers(stream, arrays, rule, last, fit)
        counter = StepCounter(network) if counts else None
    summary, stopped = Summary(options), False
    for answer in found:
        summary.add(answer, answer.time - rule.length)
        line = as_json(network, answer)
        if counter is not None:
            line["synops"] = counter.synops(stream)
            summary.synops += line["synops"]
        terminal.show(json.dumps(line))
        stopped = options.margin is not None and answer.margin >= options.margin
        if stopped:
            break
    for text in summary.lines(stopped=stopped):
        terminal.say(text, err=True)


def as_json(network: "Network", answer: "Answer") -> dict[str, Any]:
    """A line: docs/event-cameras.md says what the fields are."""
    names = network.events.classes
    return {
        "t": answer.time,
        "window": answer.window,
        "ended": answer.ended,
        "events": answer.events,
        "late": answer.late,
        "class": names[answer.best] if names else str(answer.best),
        "margin": answer.margin,
        "average": answer.average.tolist(),
        "scores": answer.scores.tolist(),
    }


def _arrays(word: str, options: EventOptions) -> Iterator[Any]:
    from soul_deploy.runtime.io import recordings

    if word != "-":
        return recordings.read_events(Path(word), options.input_format)
    if options.input_format is None:
        raise errors.UsageError("- is a pipe; give --input_format records or text")
    if sys.stdin is None:
        raise errors.UsageError("- stands for standard input, which is closed")
    return recordings.stream_events(sys.stdin.buffer, options.input_format, "standard input")
