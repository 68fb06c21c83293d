"""Every error that soul-deploy raises on purpose. A message says what was given, the rule, and what
to do. The exit code is 1 (an operation or a check failed) unless the class has another.
"""

from collections.abc import Collection, Iterable
from typing import Any, TypeVar

Name = TypeVar("Name", bound=str)


class _Copied(BaseException):
    """An exception that a worker process can send home.

    Python makes a copy by calling the class with the message, which classes that take anything
    else do not survive; here the message and the attributes are copied.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuilt, (type(self), self.args), self.__dict__


def _rebuilt(kind: type[BaseException], args: tuple[object, ...]) -> BaseException:
    made = kind.__new__(kind)
    made.args = args
    return made


class SoulDeployError(_Copied, Exception):
    """Base of all errors below; `exit_code` is what the command line returns."""

    exit_code = 1


class UsageError(SoulDeployError):
    """A value that the caller gave breaks a rule."""

    exit_code = 2


class UnknownNameError(UsageError):
    """A name that is not in its list."""

    def __init__(self, kind: str, given: str, valid: Iterable[str]) -> None:
        super().__init__(f"unknown {kind} {given!r}; valid: {', '.join(valid)}")


class MissingFileError(UsageError):
    """A path that does not exist."""


class PathKindError(UsageError):
    """A path of the wrong kind: a folder where a file is needed, or the other way round."""


class ValidityError(UsageError):
    """An artifact used with a T, an input shape or a reset rule that it is not valid for."""


class FileFormatError(SoulDeployError):
    """A file that exists but is not what it should be: damaged, foreign, of another version."""


class DataError(SoulDeployError):
    """A data set whose files are there but damaged."""


class UnsupportedGraphError(SoulDeployError):
    """A network with a part that the spiking graph cannot represent."""


class RemovalError(SoulDeployError):
    """A removal that would change the network's outputs or leave nothing."""


class LimitError(SoulDeployError):
    """A size beyond the stated bound."""


class FileWriteError(SoulDeployError):
    """A file that could not be written (disk full, no permission); the old one is as it was."""


class UnconfirmedWriteError(SoulDeployError):
    """A file that is written and in place, but the system did not confirm that it stays there."""


class DistributedError(SoulDeployError):
    """Processes of one job that cannot reach each other, or no longer hold the same network."""


class VerificationError(SoulDeployError):
    """Two executions of one network differ without an explanation."""


class InconclusiveError(SoulDeployError):
    """A check that found no difference and proves nothing: part of the network never fired."""

    exit_code = 3


class TargetError(SoulDeployError):
    """A search that cannot meet its target."""


class OutputError(SoulDeployError):
    """Standard output does not take the report; what was written to files is there."""


class ReaderGoneError(OutputError):
    """Whoever read standard output has gone (`| head`), and wants no more."""

    exit_code = 128 + 13  # as shells report SIGPIPE, which ends other programs then


class NetworkWarning(_Copied, UserWarning):
    """What could not be promised about a network; `advice` is for callers of the functions, and
    commands give their own in its place.
    """

    def __init__(self, text: str, advice: str = "") -> None:
        super().__init__(f"{text}; {advice}" if advice else text)
        self.text, self.advice = text, advice


class InterruptedRunError(_Copied):
    """SIGTERM or Ctrl-C stopped a run; the message says how to go on. It is no SoulDeployError, so
    that nothing that catches errors goes on after it.
    """

    def __init__(self, message: str, signal_number: int) -> None:
        self.exit_code = 128 + signal_number  # as shells report it: 143, 130
        super().__init__(message)


def require(holds: object, problem: str) -> None:
    """Raise FileFormatError, which says `problem`, unless it holds."""
    if not holds:
        raise FileFormatError(problem)


def require_known(kind: str, given: str, valid: Collection[str]) -> None:
    """Raise UnknownNameError unless `given` is one of `valid`."""
    if given not in valid:
        raise UnknownNameError(kind, given, valid)


def known(kind: str, given: str, valid: Iterable[Name]) -> Name:
    """`given` as one of `valid`, whatever its case. Raises UnknownNameError."""
    for name in valid:
        if name == given.lower():
            return name
    raise UnknownNameError(kind, given, valid)


def require_least(least: int, **values: int | None) -> None:
    """Raise UsageError unless each of the numbers given, if any, is at least `least`."""
    for name, value in values.items():
        if value is not None and value < least:
            raise UsageError(f"{name} {value} must be at least {least}")


def require_seed(seed: int) -> None:
    """Raise UsageError unless PyTorch takes the seed."""
    if not 0 <= seed < 2**63:
        raise UsageError(f"seed {seed} must be from 0 to 2^63 - 1")
