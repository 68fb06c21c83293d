"""Events of a camera as an array: when, where, and whether the pixel became brighter.

Readers of files make a `Recording` with `recording_of`, which believes nothing: numbers that do not
fit the fields, events outside of the sensor and other polarities than 0 and 1 are errors. Events
keep the order of the file, whatever their times say.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from soul_deploy.base import Array, brief, errors

EVENT = np.dtype([("t", "<u8"), ("x", "<u2"), ("y", "<u2"), ("p", "u1")])
"""t in microseconds, x to the right, y downwards, p 1: brighter, 0: darker. 13 bytes, packed."""

MAX_SIDE = 1 << 16  # what x and y can say
MAX_TIME = (1 << 63) - 1
"""In µs: differences of times are signed."""

FIELDS = ("t", "x", "y", "p")


@brief
@dataclass(frozen=True)
class Recording:
    """Events (N,) of EVENT, and the sensor's sides in pixels.

    Raises ValidityError for what `problem_of` finds.
    """

    events: Array
    width: int
    height: int

    def __post_init__(self) -> None:
        problem = problem_of(self.events, self.width, self.height)
        if problem:
            raise errors.ValidityError(problem)

    def __len__(self) -> int:
        return len(self.events)


def problem_of(events: object, width: int, height: int) -> str | None:
    """What is wrong with events of a sensor, as a phrase; None if nothing is."""
    if not (1 <= width <= MAX_SIDE and 1 <= height <= MAX_SIDE):
        return f"a sensor of {width}×{height} pixels; sides are from 1 to {MAX_SIDE}"
    if not isinstance(events, np.ndarray) or events.dtype != EVENT or events.ndim != 1:
        what = f"{events.dtype} {events.shape}" if isinstance(events, np.ndarray) else type(events)
        return f"{what} where a row of {EVENT} is needed"
    for name, limit in (("x", width), ("y", height)):
        most = int(events[name].max(initial=0))
        if most >= limit:
            return (
                f"an event {int(events[name].argmax())} at {name} = {most}, outside of the sensor "
                f"of {width}×{height}"
            )
    most = int(events["p"].max(initial=0))
    if most > 1:
        return f"an event {int(events['p'].argmax())} of polarity {most}; known are 0 and 1"
    return None


def packed(name: str, t: Array, x: Array, y: Array, p: Array) -> Array:
    """Events (N,) of four arrays of integers (p may be bool). Raises FileFormatError for arrays of
    different lengths, other numbers, and what the fields of EVENT cannot hold.
    """
    columns = dict(zip(FIELDS, (t, x, y, p), strict=True))
    for field, column in columns.items():
        errors.require(
            column.ndim == 1 and column.dtype.kind in "iub",
            f"{name}: {field} is {column.dtype} {column.shape}; needed is a row of integers",
        )
        errors.require(
            len(column) == len(t),
            f"{name}: {len(column)} values of {field}, {len(t)} of t; each event has one",
        )
    events: npt.NDArray[np.void] = np.zeros(len(t), EVENT)
    for field, column in columns.items():
        low, high = (int(column.min()), int(column.max())) if len(column) else (0, 0)
        most = MAX_TIME if field == "t" else int(np.iinfo(EVENT[field]).max)
        errors.require(
            low >= 0 and high <= most,
            f"{name}: {field} from {low} to {high}; it is from 0 to {most}",
        )
        events[field] = column
    return events


def recording_of(events: Array, width: int, height: int, name: str) -> Recording:
    """The events of a file. Raises FileFormatError, which begins with the file's `name`."""
    try:
        return Recording(events, width, height)
    except errors.ValidityError as error:
        raise errors.FileFormatError(f"{name}: {error}") from error


def count_of(size_bytes: int, record_bytes: int, name: str, declared: int | None = None) -> int:
    """How many records of `record_bytes` there are in `size_bytes`, which must be whole ones, and
    as many as the file declares, if it does. Raises FileFormatError: it is cut off or damaged.
    """
    count, rest = divmod(size_bytes, record_bytes)
    errors.require(
        rest == 0,
        f"{name} is cut off or damaged: {size_bytes} bytes of events, which take {record_bytes} "
        "bytes each",
    )
    errors.require(
        declared is None or declared == count,
        f"{name} is cut off or damaged: {declared} events declared, {count} there",
    )
    return count
