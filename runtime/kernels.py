"""Events to currents: the compiled loops over synapses.

Pure functions over arrays that were checked before (eventnet.py); they write only into the arrays
given for it and allocate nothing. Values arrive as (T, positions, channels), uint8 from spikes or
float32 from an analog input; a value that is 0 costs no synapse. Currents leave as (T, n).

A source's row is fetched once and used at every step in which the source is active: synapses are
the expensive data, so the loop over time is inside.

Sums run in one order for each target: sources by position, then channel; kernel rows, columns.
Indices into rows are unsigned: signed ones cost a wrap-around check each, three times the time.
"""

import numpy as np
from numba import njit
from numba.extending import register_jitable

from soul_deploy.runtime.config import FASTMATH
from soul_deploy.runtime.files import Array


@register_jitable
def collect_events(values: Array, position: int, channel: Array, step: Array) -> int:
    """Write (channel, step) of every nonzero value at `position`, by channel; return how many.

    Without branches: always write, advance by whether the value is nonzero.
    """
    steps, _, channels = values.shape
    count = np.uint32(0)
    for c in range(channels):
        for t in range(steps):
            channel[count] = c
            step[count] = t
            count = np.uint32(count + np.uint32(values[t, position, c] != 0))
    return count


@register_jitable
def add_row(
    out: Array, first: int, weight: Array, begin: int, length: int, value: np.float32
) -> None:
    """out[first + k] += value · weight[begin + k] for k below `length`."""
    target = out[first : first + length]
    row = weight[begin : begin + length]
    if value == np.float32(1):
        for k in range(length):
            target[k] += row[k]
    else:
        for k in range(length):
            target[k] += row[k] * value


@register_jitable
def add_sparse(
    out: Array,
    base: int,
    targets: Array,
    weight: Array,
    begin: np.uint32,
    end: np.uint32,
    value: np.float32,
) -> None:
    """out[base + targets[k]] += value · weight[k] for k from `begin` to `end`."""
    if value == np.float32(1):
        for k in range(begin, end):
            out[np.uint64(base + np.int64(targets[k]))] += weight[k]
    else:
        for k in range(begin, end):
            out[np.uint64(base + np.int64(targets[k]))] += weight[k] * value


@njit(cache=True, nogil=True, fastmath=FASTMATH)
def start_currents(out: Array, bias: Array) -> None:
    """Fill out (T, n) with the bias (m,), repeated n / m times; or with 0 if m is 0."""
    steps, size = out.shape
    width = len(bias)
    for t in range(steps):
        row = out[t]
        if width == 0:
            row[:] = np.float32(0)
        else:
            for first in range(0, size, width):
                part = row[first : first + width]
                for k in range(width):
                    part[k] = bias[k]


@njit(cache=True, nogil=True, fastmath=FASTMATH)
def convolve_dense(
    values: Array,
    weight: Array,
    groups: int,
    out_width: int,
    out_channels: int,
    y_first: Array,
    y_tap: Array,
    y_out: Array,
    x_first: Array,
    x_tap: Array,
    x_out: Array,
    x_length: Array,
    channel: Array,
    step: Array,
    out: Array,
) -> None:
    """Add the rows of every event to its targets; dense rows.

    values (T, H·W, C); weight (C, kh, kw, C_out / groups), mirrored; out (T, OH·OW·C_out).
    y_*, x_*: runs of the axes (windows.py), rows unmerged; a merged run of columns is one
    contiguous piece of both the kernel and the output, so it is added at once.
    channel, step: scratch (T·C + 1,).
    """
    channels, kernel_height, kernel_width, width = weight.shape
    flat = weight.reshape(-1)
    height, columns = len(y_first) - 1, len(x_first) - 1
    group_size = channels // groups
    for y in range(height):
        for x in range(columns):
            if y_first[y] == y_first[y + 1] or x_first[x] == x_first[x + 1]:
                continue
            count = collect_events(values, y * columns + x, channel, step)
            for e in range(count):
                c, t = np.int64(channel[e]), np.int64(step[e])
                value = np.float32(values[t, y * columns + x, c])
                current = out[t]
                shift = (c // group_size) * width
                for a in range(y_first[y], y_first[y + 1]):
                    kernel_row = (c * kernel_height + y_tap[a]) * kernel_width
                    out_row = y_out[a] * out_width
                    for b in range(x_first[x], x_first[x + 1]):
                        add_row(
                            current,
                            (out_row + x_out[b]) * out_channels + shift,
                            flat,
                            (kernel_row + x_tap[b]) * width,
                            x_length[b] * width,
                            value,
                        )


@njit(cache=True, nogil=True, fastmath=FASTMATH)
def convolve_sparse(
    values: Array,
    starts: Array,
    targets: Array,
    weight: Array,
    kernel_height: int,
    kernel_width: int,
    out_width: int,
    out_channels: int,
    tap_pitch_y: int,
    tap_pitch_x: int,
    y_first: Array,
    y_tap: Array,
    y_out: Array,
    y_length: Array,
    x_first: Array,
    x_tap: Array,
    x_out: Array,
    x_length: Array,
    channel: Array,
    step: Array,
    out: Array,
) -> None:
    """Add the rows of every event to its targets; compressed rows (channel, kernel position).

    targets: output channel, plus kernel index times tap_pitch_y and tap_pitch_x. The pitches are
    the distances between the outputs of neighbouring kernel indices if the runs are merged, so
    that one base serves a whole run, and 0 if every run has length 1.
    """
    height, columns = len(y_first) - 1, len(x_first) - 1
    for y in range(height):
        for x in range(columns):
            if y_first[y] == y_first[y + 1] or x_first[x] == x_first[x + 1]:
                continue
            count = collect_events(values, y * columns + x, channel, step)
            for e in range(count):
                c, t = np.int64(channel[e]), np.int64(step[e])
                value = np.float32(values[t, y * columns + x, c])
                current = out[t]
                for a in range(y_first[y], y_first[y + 1]):
                    for b in range(x_first[x], x_first[x + 1]):
                        base = (
                            (y_out[a] * out_width + x_out[b]) * out_channels
                            - y_tap[a] * tap_pitch_y
                            - x_tap[b] * tap_pitch_x
                        )
                        row = (c * kernel_height + y_tap[a]) * kernel_width + x_tap[b]
                        if x_length[b] == kernel_width:  # whole kernel rows follow each other
                            last = row + y_length[a] * kernel_width
                            add_sparse(
                                current, base, targets, weight, starts[row], starts[last], value
                            )
                        else:
                            for i in range(y_length[a]):
                                r = row + i * kernel_width
                                begin, end = starts[r], starts[r + x_length[b]]
                                add_sparse(current, base, targets, weight, begin, end, value)


@njit(cache=True, nogil=True, fastmath=FASTMATH)
def multiply_dense(
    values: Array, weight: Array, channel: Array, step: Array, out: Array
) -> None:
    """Add the row of every event; values (T, 1, n_in), weight (n_in, n_out), out (T, n_out)."""
    width = weight.shape[1]
    flat = weight.reshape(-1)
    count = collect_events(values, 0, channel, step)
    for e in range(count):
        j, t = np.int64(channel[e]), np.int64(step[e])
        add_row(out[t], 0, flat, j * width, width, np.float32(values[t, 0, j]))


@njit(cache=True, nogil=True, fastmath=FASTMATH)
def multiply_sparse(
    values: Array,
    starts: Array,
    targets: Array,
    weight: Array,
    channel: Array,
    step: Array,
    out: Array,
) -> None:
    """Add the compressed row of every event; values (T, 1, n_in), out (T, n_out)."""
    count = collect_events(values, 0, channel, step)
    for e in range(count):
        j, t = np.int64(channel[e]), np.int64(step[e])
        value = np.float32(values[t, 0, j])
        add_sparse(out[t], 0, targets, weight, starts[j], starts[j + 1], value)


@njit(cache=True, nogil=True, fastmath=FASTMATH)
def max_pool(
    spikes: Array,
    columns: int,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    out_columns: int,
    out: Array,
) -> None:
    """Maximum over windows; spikes (T, H·W, C) uint8, out (T, OH·OW, C) uint8. Of spikes: OR."""
    steps, positions, channels = spikes.shape
    height = positions // columns
    for t in range(steps):
        for o in range(out.shape[1]):
            top = (o // out_columns) * stride[0] - padding[0]
            left = (o % out_columns) * stride[1] - padding[1]
            target = out[t, o]
            target[:] = np.uint8(0)
            for y in range(max(top, 0), min(top + kernel[0], height)):
                for x in range(max(left, 0), min(left + kernel[1], columns)):
                    source = spikes[t, y * columns + x]
                    for c in range(channels):
                        target[c] = max(target[c], source[c])


@njit(cache=True, nogil=True, fastmath=FASTMATH)
def sum_spikes(spikes: Array, out: Array) -> None:
    """Sums over time and positions; spikes (T, P, C) uint8, out (C,) int64."""
    steps, positions, channels = spikes.shape
    out[:] = 0
    for t in range(steps):
        for p in range(positions):
            source = spikes[t, p]
            for c in range(channels):
                out[c] += source[c]


@njit(cache=True, nogil=True, fastmath=FASTMATH)
def score(sums: Array, weight: Array, bias: Array, scale: np.float32, out: Array) -> None:
    """out = (sums @ weight) · scale + bias, each rounded once; weight (C, classes), out (classes,).

    The integer sums are exact in float32 up to 2^24.
    """
    out[:] = np.float32(0)
    for c in range(len(sums)):
        count = np.float32(sums[c])
        row = weight[c]
        for k in range(len(out)):
            out[k] += count * row[k]
    for k in range(len(out)):
        out[k] = out[k] * scale
    for k in range(len(bias)):
        out[k] += bias[k]


@njit(cache=True, nogil=True, fastmath=FASTMATH)
def vote(sums: Array, votes: int, scale: np.float32, out: Array) -> None:
    """out[k] = (sum of the `votes` neighbouring sums of class k) · scale."""
    for k in range(len(out)):
        total = np.int64(0)
        for i in range(votes):
            total += sums[k * votes + i]
        out[k] = np.float32(total) * scale
