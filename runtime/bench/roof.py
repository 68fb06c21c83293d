"""What the memory system allows: the additions of a layer's synapses with nothing else around them.

The passes over rows that a kernel of time_vectorised.py makes are listed beforehand. `repeat`
then follows the list with the kernel's innermost loop: it looks for no events, computes no
addresses, and no pass is over an empty row.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from soul_deploy.base.brief import brief
from soul_deploy.base.files import Array
from soul_deploy.runtime.kernels.config import AHEAD
from soul_deploy.runtime.kernels.repeat import repeat_lanes
from soul_deploy.runtime.kernels.time_vectorised import (
    MOST_LANES,
    convolve_lanes,
    multiply_lanes,
)
from soul_deploy.runtime.plan.partition import Call


@brief
@dataclass(frozen=True)
class Passes:
    """Passes over rows that are not empty, in the order in which a kernel makes them.

    begins, ends  uint32 (passes,): synapses of the row
    bases         int64 (passes,): what their targets count from
    events        uint32 (passes,): which event
    amounts       float32 (events, lanes): values of the events at each step, 0 beyond the last
    """

    begins: Array
    ends: Array
    bases: Array
    events: Array
    amounts: Array

    @property
    def synapses(self) -> int:
        """Synapses passed over."""
        return int((self.ends.astype(np.int64) - self.begins).sum())


def roof_of(call: Call) -> tuple[Call, Passes] | None:
    """A call that makes the same additions as a kernel's call, for the values it would read now.

    None for kernels without lanes (dense rows, analog inputs, a single step, many steps).
    """
    out = call.arguments[-1]
    lanes = out.shape[1]
    if lanes > MOST_LANES:
        return None
    if call.kernel is convolve_lanes(lanes):
        passes, ahead, (targets, weight) = _of_convolution(call.arguments), 0, call.arguments[2:4]
    elif call.kernel is multiply_lanes(lanes):
        passes, ahead = _of_matrix(call.arguments), AHEAD
        targets, weight = call.arguments[4:6]
    else:
        return None
    listed = (passes.begins, passes.ends, passes.bases, passes.events)
    arguments = (*listed, ahead, targets, weight, passes.amounts, out)
    return Call(repeat_lanes(lanes), arguments), passes


def _of_matrix(arguments: tuple[Any, ...]) -> Passes:
    values, starts, ends, bases = arguments[:4]
    fired = np.flatnonzero(values[:, 0].any(axis=0))
    events = np.arange(len(fired), dtype=np.uint32)
    amounts = _in_lanes(values[:, 0, fired], arguments[-1].shape[1])
    return _filled(starts[fired], ends[fired], bases[fired], events, amounts)


def _of_convolution(arguments: tuple[Any, ...]) -> Passes:
    values, starts, (height, width) = arguments[0], arguments[1], arguments[4]
    position, channel = np.nonzero(values.any(axis=0))
    pieces = _pieces(*arguments[4:10], columns=len(arguments[9][0]) - 1)
    begins, ends, bases, events = [], [], [], []
    for at, (offset, length, base) in pieces:
        first, last = np.searchsorted(position, (at, at + 1))
        rows = channel[first:last] * (height * width) + offset
        begins.append(starts[rows])
        ends.append(starts[rows + length])
        bases.append(np.full(len(rows), base, np.int64))
        events.append(np.arange(first, last, dtype=np.uint32))
    amounts = _in_lanes(values[:, position, channel], arguments[-1].shape[1])
    return _filled(
        np.concatenate([starts[:0], *begins]),
        np.concatenate([starts[:0], *ends]),
        np.concatenate([np.zeros(0, np.int64), *bases]),
        np.concatenate([np.zeros(0, np.uint32), *events]),
        amounts,
    )


Runs = tuple[Array, Array, Array, Array]


def _pieces(
    kernel: tuple[int, int],
    out_width: int,
    out_channels: int,
    pitch: tuple[int, int],
    y_runs: Runs,
    x_runs: Runs,
    *,
    columns: int,
) -> list[tuple[int, tuple[int, int, int]]]:
    """(position, (kernel offset, kernel positions, base)) of what an event there passes over.

    Kernel rows that are whole lie behind one another and are one pass, as in `convolve_lanes`.
    """
    (y_first, y_tap, y_out, y_length), (x_first, x_tap, x_out, x_length) = y_runs, x_runs
    found = []
    for at in range((len(y_first) - 1) * columns):
        y, x = divmod(at, columns)
        for a in range(y_first[y], y_first[y + 1]):
            for b in range(x_first[x], x_first[x + 1]):
                base = (y_out[a] * out_width + x_out[b]) * out_channels
                base -= y_tap[a] * pitch[0] + x_tap[b] * pitch[1]
                offset = y_tap[a] * kernel[1] + x_tap[b]
                if x_length[b] == kernel[1]:
                    found.append((at, (offset, y_length[a] * kernel[1], base)))
                else:
                    steps = range(y_length[a])
                    found += [(at, (offset + i * kernel[1], x_length[b], base)) for i in steps]
    return found


def _in_lanes(values: Array, lanes: int) -> Array:
    """float32 (events, lanes) from (T, events)."""
    amounts = np.zeros((values.shape[1], lanes), np.float32)
    amounts[:, : len(values)] = values.T
    return amounts


def _filled(begins: Array, ends: Array, bases: Array, events: Array, amounts: Array) -> Passes:
    """Without passes over empty rows."""
    filled = ends > begins
    return Passes(begins[filled], ends[filled], bases[filled], events[filled], amounts)
