"""What long work says of itself on standard error: one line, drawn again and again on a terminal;
elsewhere a new line every ten seconds, so that a log shows that it goes on, and where it is.

A command is watched as a whole (`watched`, by the root of the command line); whatever it does says
so with `status`. A thread looks at the clock, since a single step may take longer than that.
"""

import logging
import math
import os
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Thread

from soul_deploy.base import errors, terminal

LOGGER = logging.getLogger("soul_deploy")
VARIABLE = "SOUL_DEPLOY_PROGRESS"
EVERY = 10.0  # seconds between two lines
LOOK = 1.0  # seconds between two looks at the clock
REDRAW = 0.1  # seconds for which a drawn line stays at least


class Progress:
    """What one command is at. `every`: seconds between two lines; `drawn`: it is a terminal's."""

    def __init__(
        self, text: str, every: float, *, drawn: bool, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._every, self._drawn, self._clock = every, drawn, clock
        self._begun = self._last = clock()
        self._text = text
        self._share: float | None = None
        self._since = self._begun, 0.0  # when this label's share was first heard of, and the share
        self._label = ""

    def status(self, text: str, share: float | None = None, label: str = "") -> None:
        """It is at `text`; share: how much of `label` is done, 0 to 1, if that is known."""
        now = self._clock()
        if share is not None and (self._share is None or label != self._label):
            self._since, self._label = (now, share), label
        self._text, self._share = text, share
        if self._drawn and now - self._last >= REDRAW:
            self._draw(now)

    def look(self) -> None:
        """What the clock asks for: a line if it is time for one."""
        now = self._clock()
        if self._drawn:
            self._draw(now)
        elif now - self._last >= self._every:
            self._last = now
            terminal.say(self.line(now), err=True)

    def said(self) -> None:
        """Something else was just said of the work."""
        self._last = self._clock()

    def line(self, now: float) -> str:
        """All that is known at the time `now`."""
        known = [f"{duration(now - self._begun)} so far"]
        if self._share is not None:
            known.insert(0, f"{math.floor(100 * self._share)} %")
            begun, before = self._since
            if self._share > before and now > begun:
                left = (now - begun) / (self._share - before) * (1 - self._share)
                known.append(f"about {duration(left)} left")
        return f"{self._text} ({', '.join(known)})"

    def _draw(self, now: float) -> None:
        if now - self._begun >= LOOK:  # short work draws nothing
            self._last = now
            terminal.STATUS.set(self.line(now))


def duration(seconds: float) -> str:
    """Whole seconds, minutes or hours, as people say it."""
    whole = round(seconds)
    if whole < 100:
        return f"{whole} s"
    return f"{round(whole / 60)} min" if whole < 6000 else f"{whole / 3600:.1f} h"


_current: list[Progress] = []  # of a command inside a command (demo), the inner one is the last


def status(text: str, share: float | None = None, label: str = "") -> None:
    """The command is at `text` now; nothing where no command is watched, as in somebody's program.

    share: how much of `label` is done, 0 to 1.
    """
    if _current:
        _current[-1].status(text, share, label)


def said() -> None:
    """A line about the work was just printed, so the next one has time."""
    if _current:
        _current[-1].said()


@contextmanager
def watched(name: str, *, quiet: bool = False) -> Iterator[None]:
    """Inside, the command `name` says what it is at. quiet: another process speaks for this one.

    Raises UsageError for a setting of SOUL_DEPLOY_PROGRESS that is no number of seconds.
    """
    every = interval(os.environ)
    if quiet or not every:
        yield
        return
    drawn = terminal.is_terminal(err=True) and os.environ.get("TERM") != "dumb"
    progress, ended = Progress(name, every, drawn=drawn), Event()
    _current.append(progress)
    watch = Thread(target=_watch, args=(progress, ended, min(every, LOOK)), daemon=True)
    watch.start()
    try:
        yield
    finally:
        ended.set()
        watch.join(LOOK)
        _current.remove(progress)
        terminal.STATUS.set("")


def _watch(progress: Progress, ended: Event, pause: float) -> None:
    while not ended.wait(pause):
        if _current[-1:] == [progress]:
            progress.look()


def interval(environment: "os._Environ[str] | dict[str, str]") -> float:
    """Seconds between two lines: SOUL_DEPLOY_PROGRESS, or EVERY; 0: say nothing.

    Raises UsageError.
    """
    given = environment.get(VARIABLE, "")
    if not given:
        return EVERY
    try:
        seconds = float(given)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise errors.UsageError(
            f"{VARIABLE} is {given!r}; give the seconds between two lines about long work, 0 for "
            "none of them, or unset it"
        )
    return seconds


class _Printer(logging.Handler):
    """A line for each message; the progress clock is told that something was said."""

    def emit(self, record: logging.LogRecord) -> None:
        prefix = "Warning: " if record.levelno >= logging.WARNING else ""
        terminal.say(prefix + record.getMessage(), err=True)
        said()


@contextmanager
def messages_printed() -> Iterator[None]:
    """Inside, notes and warnings are printed; of a command inside a command, once."""
    if any(isinstance(handler, _Printer) for handler in LOGGER.handlers):
        yield
        return
    printer, level = _Printer(), LOGGER.level
    LOGGER.addHandler(printer)
    LOGGER.setLevel(logging.INFO)
    try:
        yield
    finally:
        LOGGER.setLevel(level)
        LOGGER.removeHandler(printer)


@contextmanager
def warnings_said(say: Callable[[str], None], advice: str = "") -> Iterator[None]:
    """Inside, NetworkWarnings are kept, and told to `say` at the end, each text once.

    advice: takes the place of a warning's own. Other warnings are shown as Python shows them.
    """
    caught: list[warnings.WarningMessage] = []
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", errors.NetworkWarning)
            yield
    finally:
        told: set[str] = set()
        for item in caught:
            found = item.message
            if not isinstance(found, errors.NetworkWarning):
                warnings.showwarning(found, item.category, item.filename, item.lineno)
            elif found.text not in told:
                told.add(found.text)
                say(f"{found.text}; {advice}" if found.advice and advice else str(found))
