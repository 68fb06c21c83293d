"""A file opened once: whatever is read of it is read from one and the same content.

A path can be given another file at any time (a rename by whoever writes it). So every reader opens
its path once, and takes header, arrays, size and digest from that one descriptor. Functions that
read take a path or an `OpenFile`, so that a caller that reads twice opens once too.
"""

import hashlib
import mmap
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from io import BufferedReader
from pathlib import Path
from typing import TypeAlias

import numpy as np

from soul_deploy.base import Array
from soul_deploy.base.errors import FileFormatError, MissingFileError, PathKindError

# Windows tells text from bytes, and a pipe would wait for its writer.
FLAGS = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)


class OpenFile:
    """A regular file, open for reading; used in a `with` block, which closes it.

    path    as it was given; for messages and for what a suffix says
    size    in bytes
    stream  for libraries that read from one; where it stands is left to whoever uses it
    """

    def __init__(self, path: Path | str, stream: BufferedReader | None = None) -> None:
        """stream: the file, where it is open already; `path` is its name then.

        Raises MissingFileError, PathKindError, FileFormatError if it may not be read.
        """
        self.path = Path(path)
        self.stream = _open(self.path) if stream is None else stream
        found = os.fstat(self.stream.fileno())
        if not stat.S_ISREG(found.st_mode):
            self.stream.close()
            raise PathKindError(f"{path} is not a file; give the path of a file")
        self.size = found.st_size

    def __enter__(self) -> "OpenFile":
        return self

    def __exit__(self, *error: object) -> None:
        self.stream.close()

    def __str__(self) -> str:
        return str(self.path)

    @property
    def name(self) -> str:
        """The last part of its path."""
        return self.path.name

    @cached_property
    def data(self) -> Array:
        """Its bytes, uint8 (size,), mapped and read-only; they outlive the `with` block.

        Raises FileFormatError if the file became shorter.
        """
        if not self.size:
            return np.zeros(0, np.uint8)
        try:
            mapped = mmap.mmap(self.stream.fileno(), self.size, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise FileFormatError(f"{self.path} cannot be mapped ({error})") from error
        return np.frombuffer(mapped, np.uint8)

    def start(self, count: int) -> bytes:
        """At most `count` bytes from its beginning, where the stream then stands behind them."""
        self.stream.seek(0)
        return self.stream.read(count)

    def again(self) -> BufferedReader:
        """Another stream of the same content, from its beginning; whoever asks closes it.

        The system has one place for both, so that the first must seek before it reads on.
        """
        stream = os.fdopen(os.dup(self.stream.fileno()), "rb")
        stream.seek(0)
        return stream

    def sha256(self) -> str:
        """sha256 of its bytes, as hexadecimal text."""
        self.stream.seek(0)
        return hashlib.file_digest(self.stream, "sha256").hexdigest()


File: TypeAlias = Path | str | OpenFile
"""What readers take: a path, which they open once, or a file that is open already."""


@contextmanager
def opened(file: File) -> Iterator[OpenFile]:
    """`file`, open: a path is opened for the `with` block, an open file stays its owner's.

    Raises as OpenFile.
    """
    if isinstance(file, OpenFile):
        yield file
    else:
        with OpenFile(file) as found:
            yield found


def path_of(file: File) -> Path:
    """The path of either."""
    return file.path if isinstance(file, OpenFile) else Path(file)


def _open(path: Path) -> BufferedReader:
    require_file(path)
    try:
        return open(path, "rb", opener=lambda name, flags: os.open(name, flags | FLAGS))
    except FileNotFoundError as error:
        raise MissingFileError(f"no file at {path}; check the path") from error
    except OSError as error:
        raise FileFormatError(f"{path} cannot be read ({error.strerror})") from error


def require_file(path: Path) -> Path:
    """`path` if it is a file. Raises MissingFileError, PathKindError."""
    try:
        exists, is_file = path.exists(), path.is_file()
    except OSError as error:  # a name that is too long, a folder that may not be entered
        raise MissingFileError(f"{path} cannot be looked up ({error.strerror})") from error
    if not exists:
        raise MissingFileError(f"no file at {path}; check the path")
    if not is_file:
        what = "; it is a folder" if path.is_dir() else ""
        raise PathKindError(f"{path} is not a file{what}; give the path of a file")
    return path
