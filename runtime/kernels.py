"""Events to currents: the compiled loops over synapses.

Pure functions over arrays that were checked before (eventnet.py); they write only into the arrays
given for it and allocate nothing. Values arrive as (T, positions, channels), uint8 from spikes or
float32 from an analog input; a value that is 0 costs no synapse. Currents leave as (T, n).

All steps of a position are done before the next position, so that its rows, the expensive data,
are still in the cache at the second step. Each target's sum runs in one order: sources by
position, then by channel; for the analog input, kernel positions, then channels.

Indices into compressed rows are unsigned: signed ones cost a wrap-around check each and take three
times as long.
"""

import numpy as np
from numba import njit
from numba.extending import register_jitable

from soul_deploy.runtime.config import FASTMATH, SOURCE_BLOCK
from soul_deploy.runtime.files import Array


@register_jitable
def collect_events(values: Array, first: int, rows: Array, amounts: Array) -> np.int64:
    """List the nonzero values: rows[e] = first + index, amounts[e] = value; return how many.

    Without branches: always write, advance by whether the value is nonzero. rows and amounts are
    at least as long as `values`.
    """
    count = np.uint32(0)
    for i in range(len(values)):
        rows[count] = first + i
        amounts[count] = values[i]
        count = np.uint32(count + np.uint32(values[i] != 0))
    return np.int64(count)


@register_jitable
def add_rows(
    out: Array,
    first: int | np.int64,
    length: int | np.int64,
    weight: Array,
    row_size: int,
    offset: int | np.int64,
    rows: Array,
    amounts: Array,
    count: int | np.int64,
) -> None:
    """out[first + k] += amounts[e] · weight[rows[e] · row_size + offset + k], for k below length.

    Four rows are added in one pass: the target is loaded and stored once, and its sum is still
    rounded after each row, in the order of e.
    """
    to, size, shift = np.uint64(first), np.uint64(row_size), np.uint64(offset)
    done, width = 0, np.uint64(length)
    while done + 4 <= count:
        v0, v1, v2, v3 = amounts[done], amounts[done + 1], amounts[done + 2], amounts[done + 3]
        r0 = np.uint64(rows[done]) * size + shift
        r1 = np.uint64(rows[done + 1]) * size + shift
        r2 = np.uint64(rows[done + 2]) * size + shift
        r3 = np.uint64(rows[done + 3]) * size + shift
        for k in range(width):
            out[to + k] = (
                out[to + k]
                + v0 * weight[r0 + k]
                + v1 * weight[r1 + k]
                + v2 * weight[r2 + k]
                + v3 * weight[r3 + k]
            )
        done += 4
    while done < count:
        v0 = amounts[done]
        r0 = np.uint64(rows[done]) * size + shift
        for k in range(width):
            out[to + k] = out[to + k] + v0 * weight[r0 + k]
        done += 1


@register_jitable
def add_sparse(
    target: Array,
    base: int,
    targets: Array,
    weight: Array,
    begin: np.uint32,
    end: np.uint32,
    amount: np.float32,
) -> None:
    """target[base + targets[k]] += amount · weight[k] for k from `begin` to `end`."""
    for k in range(np.uint64(begin), np.uint64(end)):
        target[np.uint64(base + np.int64(targets[k]))] += amount * weight[k]


@njit(cache=True, nogil=True, fastmath=FASTMATH)
def start_currents(out: Array, bias: Array) -> None:
    """Fill out (T, n) with the bias (m,), repeated n / m times; or with 0 if m is 0."""
    steps, size = out.shape
    width = len(bias)
    for t in range(steps):
        if width == 0:
            out[t] = np.float32(0)
        else:
            for first in range(0, size, width):
                part = out[t, first : first + width]
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
    rows: Array,
    amounts: Array,
    out: Array,
) -> None:
    """Add the rows of every event to its targets; dense rows.

    values (T, H·W, C); weight (C, kh, kw, C_out / groups), mirrored; out (T, OH·OW·C_out).
    y_*, x_*: runs of the axes (windows.py), rows unmerged; a merged run of columns is one
    contiguous piece of both the kernel and the output, so it is added at once.
    rows, amounts: scratch (C,).
    """
    channels, kernel_height, kernel_width, width = weight.shape
    flat = weight.reshape(-1)
    row_size = kernel_height * kernel_width * width
    height, columns, inner = len(y_first) - 1, len(x_first) - 1, channels // groups
    for y in range(height):
        for x in range(columns):
            if y_first[y] == y_first[y + 1] or x_first[x] == x_first[x + 1]:
                continue
            for t in range(values.shape[0]):
                for g in range(groups):
                    arrived = values[t, y * columns + x, g * inner : (g + 1) * inner]
                    count = collect_events(arrived, g * inner, rows, amounts)
                    if count == 0:
                        continue
                    for a in range(y_first[y], y_first[y + 1]):
                        for b in range(x_first[x], x_first[x + 1]):
                            to = (y_out[a] * out_width + x_out[b]) * out_channels + g * width
                            length = x_length[b] * width
                            offset = (y_tap[a] * kernel_width + x_tap[b]) * width
                            add_rows(
                                out[t], to, length, flat, row_size, offset, rows, amounts, count
                            )


@njit(cache=True, nogil=True, fastmath=FASTMATH)
def convolve_analog(
    values: Array,
    weight: Array,
    groups: int,
    sources: Array,
    rows: Array,
    amounts: Array,
    out: Array,
) -> None:
    """As `convolve_dense` for values that are mostly nonzero: each output gathers its inputs.

    values (T, H·W, C); weight (groups, inputs, C_out / groups); sources uint32 (OH·OW, groups,
    inputs): index of each input of an output position among the H·W·C values, or H·W·C where it
    lies outside. rows, amounts: scratch of at least `inputs`.
    """
    _, inputs, width = weight.shape
    flat = weight.reshape(-1)
    size = values.shape[1] * values.shape[2]
    for i in range(inputs):
        rows[i] = i
    for t in range(values.shape[0]):
        arrived = values[t].reshape(-1)
        for position in range(len(sources)):
            for g in range(groups):
                listed = sources[position, g]
                for i in range(inputs):
                    j = listed[i]
                    amounts[i] = arrived[j] if j < size else np.float32(0)
                to = (position * groups + g) * width
                add_rows(out[t], to, width, flat, width, g * inputs * width, rows, amounts, inputs)


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
    pitch_y: int,
    pitch_x: int,
    y_first: Array,
    y_tap: Array,
    y_out: Array,
    y_length: Array,
    x_first: Array,
    x_tap: Array,
    x_out: Array,
    x_length: Array,
    rows: Array,
    amounts: Array,
    out: Array,
) -> None:
    """Add the rows of every event to its targets; compressed rows (channel, kernel position).

    targets: output channel, plus kernel row · pitch_y and kernel column · pitch_x. The pitches are
    the distances between the outputs of neighbouring kernel indices if the runs are merged, so
    that one base serves a whole run, and 0 if every run has length 1.
    rows, amounts: scratch (C,).
    """
    height, columns = len(y_first) - 1, len(x_first) - 1
    for y in range(height):
        for x in range(columns):
            if y_first[y] == y_first[y + 1] or x_first[x] == x_first[x + 1]:
                continue
            for t in range(values.shape[0]):
                count = collect_events(values[t, y * columns + x], 0, rows, amounts)
                for e in range(count):
                    kernel, amount = np.int64(rows[e]) * kernel_height, amounts[e]
                    for a in range(y_first[y], y_first[y + 1]):
                        for b in range(x_first[x], x_first[x + 1]):
                            base = (
                                (y_out[a] * out_width + x_out[b]) * out_channels
                                - y_tap[a] * pitch_y
                                - x_tap[b] * pitch_x
                            )
                            # Rows of neighbouring columns follow each other; whole kernel rows too.
                            whole = x_length[b] == kernel_width
                            pieces = 1 if whole else y_length[a]
                            length = y_length[a] * kernel_width if whole else x_length[b]
                            for i in range(pieces):
                                r = (kernel + y_tap[a] + i) * kernel_width + x_tap[b]
                                begin, end = starts[r], starts[r + length]
                                add_sparse(out[t], base, targets, weight, begin, end, amount)


@njit(cache=True, nogil=True, fastmath=FASTMATH)
def multiply_dense(values: Array, weight: Array, rows: Array, amounts: Array, out: Array) -> None:
    """Add the row of every event; values (T, 1, n_in), weight (n_in, n_out), out (T, n_out).

    rows, amounts: scratch (n_in,).
    """
    steps, _, size = values.shape
    width = weight.shape[1]
    flat = weight.reshape(-1)
    for first in range(0, size, SOURCE_BLOCK):
        for t in range(steps):
            arrived = values[t, 0, first : first + SOURCE_BLOCK]
            count = collect_events(arrived, first, rows, amounts)
            add_rows(out[t], 0, width, flat, width, 0, rows, amounts, count)


@njit(cache=True, nogil=True, fastmath=FASTMATH)
def multiply_sparse(
    values: Array,
    starts: Array,
    targets: Array,
    weight: Array,
    rows: Array,
    amounts: Array,
    out: Array,
) -> None:
    """Add the compressed row of every event; values (T, 1, n_in), out (T, n_out).

    rows, amounts: scratch (n_in,).
    """
    steps, _, size = values.shape
    for first in range(0, size, SOURCE_BLOCK):
        for t in range(steps):
            arrived = values[t, 0, first : first + SOURCE_BLOCK]
            count = collect_events(arrived, first, rows, amounts)
            for e in range(count):
                j = rows[e]
                add_sparse(out[t], 0, targets, weight, starts[j], starts[j + 1], amounts[e])


@njit(cache=True, nogil=True, fastmath=FASTMATH)
def pick(current: Array, index: Array, out: Array) -> None:
    """The currents of the live neurons: out[t, i] = current[t, index[i]]; index uint32 (L,)."""
    for t in range(len(current)):
        for i in range(len(index)):
            out[t, i] = current[t, np.uint64(index[i])]


@njit(cache=True, nogil=True, fastmath=FASTMATH)
def place(spikes: Array, index: Array, out: Array) -> None:
    """Spikes of the live neurons into the map: out[t, index[i]] = spikes[t, i]; out (T, n)."""
    for t in range(len(spikes)):
        for i in range(len(index)):
            out[t, np.uint64(index[i])] = spikes[t, i]


@register_jitable
def pool_into(
    values: Array,
    columns: int,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    out_columns: int,
    lowest: np.uint8 | np.float32,
    out: Array,
) -> None:
    """Maximum over windows, at least `lowest`; values (T, H·W, C), out (T, OH·OW, C)."""
    steps, positions, channels = values.shape
    height = positions // columns
    for t in range(steps):
        for o in range(out.shape[1]):
            top = (o // out_columns) * stride[0] - padding[0]
            left = (o % out_columns) * stride[1] - padding[1]
            target = out[t, o]
            target[:] = lowest
            for y in range(max(top, 0), min(top + kernel[0], height)):
                for x in range(max(left, 0), min(left + kernel[1], columns)):
                    source = values[t, y * columns + x]
                    for c in range(channels):
                        target[c] = max(target[c], source[c])


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
    pool_into(spikes, columns, kernel, stride, padding, out_columns, np.uint8(0), out)


@njit(cache=True, nogil=True, fastmath=FASTMATH)
def max_pool_analog(
    values: Array,
    columns: int,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    out_columns: int,
    out: Array,
) -> None:
    """As `max_pool` for float32 values of any sign; every window meets a value."""
    pool_into(values, columns, kernel, stride, padding, out_columns, np.float32(-np.inf), out)


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
