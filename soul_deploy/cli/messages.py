"""What the package logs, printed on standard error while a command runs."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from soul_deploy.base import progress, terminal

LOGGER = logging.getLogger("soul_deploy")


class _Printer(logging.Handler):
    """A line for each message; the progress clock is told that something was said."""

    def emit(self, record: logging.LogRecord) -> None:
        prefix = "Warning: " if record.levelno >= logging.WARNING else ""
        terminal.say(prefix + record.getMessage(), err=True)
        progress.said()


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
