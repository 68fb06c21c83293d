"""What commands print, on standard output and standard error; nothing else prints.

Names come from outside (files, classes, layers), so text is shown as it is: nothing in it is
markup, and control characters are made visible, so that no name moves the cursor or forges a line.
What a terminal's encoding lacks is shown in ASCII. A report that cannot be printed is an error;
what standard error does not take is dropped: no work ends because nobody reads of it any more.
"""

import codecs
import errno
import io
import os
import re
import shutil
import sys
import unicodedata
from contextlib import suppress
from threading import RLock
from typing import TextIO

from soul_deploy.base.errors import OutputError, ReaderGoneError

PLAIN_ERRORS = "soul-deploy-plain"
"""The encoding errors' handler that shows a character in ASCII."""
CONTROLS = re.compile(
    "[\x00-\x09\x0b-\x1f\x7f-\x9f"  # C0 but for the end of line, DEL, C1
    "\u00ad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"  # invisible, bidi
    "\ud800-\udfff"  # bytes of file names that are not text
    "\U000e0000-\U000e007f]"
)
PLAIN = {"→": "->", "←": "<-", "≤": "<=", "≥": ">=", "×": "x", "·": "*", "…": "...", "µ": "u"}
_lock = RLock()


def visible(text: str) -> str:
    """`text` with control characters as escapes, such as \\x1b; ends of lines stay."""
    return CONTROLS.sub(lambda found: _escape(found[0]), text)


def one_line(text: str) -> str:
    """`text` with control characters and ends of lines as escapes."""
    return visible(text).replace("\n", "\\n")


def printable(text: str) -> str:
    """`text` as one line of standard output shows it, so that its width is known."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return one_line(text).encode(encoding, PLAIN_ERRORS).decode(encoding)


def _escape(char: str) -> str:
    if "\udc80" <= char <= "\udcff":  # a byte that Python could not decode
        return f"\\x{ord(char) - 0xDC00:02x}"
    return char.encode("unicode_escape").decode("ascii")


def _plain(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(_ascii, error.object[error.start : error.end])), error.end


def _ascii(char: str) -> str:
    name = unicodedata.name(char, "")
    if name.startswith("BOX DRAWINGS"):
        return {"HORIZONTAL": "-", "VERTICAL": "|"}.get(name.split(maxsplit=3)[-1], "+")
    return PLAIN.get(char) or _escape(char)


codecs.register_error(PLAIN_ERRORS, _plain)


def say(line: str, *, err: bool = False) -> None:
    """Print one line, whatever it holds. Raises OutputError, ReaderGoneError as `show` does."""
    show(one_line(line), err=err)


def warn(text: str) -> None:
    """Print a warning on standard error."""
    say(f"Warning: {text}", err=True)


def show(text: str, *, err: bool = False) -> None:
    """Print lines that were composed here, with an end of line.

    Raises OutputError if standard output does not take them, ReaderGoneError if whoever read it
    has gone.
    """
    with _lock:
        STATUS.erase()
        try:
            _write(sys.stderr if err else sys.stdout, visible(text) + "\n")
        except (OSError, ValueError) as error:  # ValueError: it was closed
            _abandon(sys.stderr if err else sys.stdout)
            if not err:
                raise _lost(error) from error
        STATUS.draw()


def _write(stream: TextIO | None, text: str) -> None:
    if stream is None:  # Python's sign that it was closed at the start
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    stream.write(text)
    stream.flush()


def _lost(error: OSError | ValueError) -> OutputError:
    if isinstance(error, OSError) and error.errno == errno.EPIPE:
        return ReaderGoneError("standard output: whoever read it has gone")
    reason = getattr(error, "strerror", None) or error
    return OutputError(f"standard output: {reason}")


def _abandon(stream: TextIO | None) -> None:
    """What is still buffered goes nowhere; else Python complains of it when it ends."""
    with suppress(OSError, ValueError):
        if stream is not None:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, stream.fileno())
            os.close(null)


def show_as_ascii() -> None:
    """Let both streams show in ASCII what their encoding lacks, whoever writes to them."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=PLAIN_ERRORS)


def hold_descriptors() -> None:
    """Take the numbers of standard streams that were closed.

    The first file that is opened would get them, and what a library prints would land in it.
    """
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(number)


def flush() -> None:
    """Hand over what is buffered; for processes that end without Python's own end."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            if stream is not None:
                stream.flush()


def is_terminal(*, err: bool = False) -> bool:
    """Whether standard output, or standard error, is a terminal."""
    stream = sys.stderr if err else sys.stdout
    with suppress(ValueError):  # it was closed
        return stream is not None and stream.isatty()
    return False


class StatusLine:
    """A line at the bottom of a terminal, which is drawn again and again. Others print above it."""

    def __init__(self) -> None:
        self._text = ""
        self._drawn = 0

    def set(self, text: str) -> None:
        """Draw `text` instead of what is there; nothing if it is empty."""
        with _lock:
            self.erase()
            self._text = one_line(text)
            self.draw()

    def draw(self) -> None:
        """Draw it, if there is any text, as far as the terminal is wide."""
        shown = _cut(self._text, shutil.get_terminal_size().columns - 1)
        self._put(shown)
        self._drawn = _cells(shown)

    def erase(self) -> None:
        """Clear it, if it is drawn: blanks do on every terminal, escape sequences don't."""
        if self._drawn:
            self._put("\r" + " " * self._drawn + "\r")
            self._drawn = 0

    def _put(self, text: str) -> None:
        if text:
            with suppress(OSError, ValueError):
                _write(sys.stderr, text)


def _cells(text: str) -> int:
    """Columns of a terminal that `text` takes."""
    return sum(2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text)


def _cut(text: str, columns: int) -> str:
    while _cells(text) > columns:
        text = text[:-1]
    return text


STATUS = StatusLine()
