"""Events to currents: the compiled loops over synapses.

The types of the arrays say what is computed: float32, or int8 weights, added to integers.

Pure functions over arrays that were checked before (network.py); they write only into the arrays
given for it and allocate nothing. Values arrive as (T, positions, channels), uint8 from spikes or
float32 from an analog input; a value that is 0 costs no synapse. Currents leave as (T, n).

All steps of a position are done before the next position, so that its rows, the expensive data,
are still in the cache at the second step. Each target's sum runs in one order: sources by
position, then by channel; for the analog input, kernel positions, then channels.

Indices into compressed rows are unsigned: signed ones cost a wrap-around check each and take three
times as long.
"""

import numpy as np
from numba.extending import register_jitable

from soul_deploy.base import Array
from soul_deploy.runtime.kernels.cache import cached_njit

SOURCE_BLOCK = 64
"""Presynaptic neurons of a matrix whose rows are used at all steps before the next ones."""

Taps = tuple[Array, Array, Array, Array]
"""First, tap, out and length of an axis's tap table (tap_tables.py)."""


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
    out: Array, first: int | np.int64, length: int | np.int64, weight: Array, row_size: int,
    offset: int | np.int64, rows: Array, amounts: Array, count: int | np.int64,
) -> None:  # fmt: skip
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
    target: Array, base: int | np.int64, targets: Array, weight: Array, begin: np.uint32,
    end: np.uint32, amount: np.float32,
) -> None:  # fmt: skip
    """target[base + targets[k]] += amount · weight[k] for k from `begin` to `end`."""
    for k in range(np.uint64(begin), np.uint64(end)):
        target[np.uint64(base + np.int64(targets[k]))] += amount * weight[k]


@cached_njit
def start_currents(out: Array, bias: Array, first: int, last: int) -> None:
    """Fill out (T, n) from `first` to `last` with the bias (m,), repeated; or with 0 if m is 0.

    `first` and `last` are multiples of m.
    """
    width = len(bias)
    for t in range(len(out)):
        if width == 0:
            out[t, first:last] = np.float32(0)
        else:
            for start in range(first, last, width):
                piece = out[t, start : start + width]
                for k in range(width):
                    piece[k] = bias[k]


@cached_njit
def convolve_dense(
    values: Array, weight: Array, groups: int, out_width: int, out_channels: int, y_first: Array,
    y_tap: Array, y_out: Array, x_first: Array, x_tap: Array, x_out: Array, x_length: Array,
    rows: Array, amounts: Array, out: Array,
) -> None:  # fmt: skip
    """Add the rows of every event to its targets; dense rows.

    values (T, H·W, C); weight (C, kh, kw, C_out / groups), mirrored; out (T, OH·OW·C_out).
    y_*, x_*: tap tables of the axes (tap_tables.py), rows unmerged; a merged entry of columns is
    one contiguous piece of both the kernel and the output, so it is added at once.
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


@cached_njit
def convolve_analog(
    values: Array, weight: Array, groups: int, sources: Array, begin: int, end: int, rows: Array,
    amounts: Array, out: Array,
) -> None:  # fmt: skip
    """As `convolve_dense` for values that are mostly nonzero: each output gathers its inputs.

    Output positions from `begin` to `end` are computed.

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
        for position in range(begin, end):
            for g in range(groups):
                listed = sources[position, g]
                for i in range(inputs):
                    j = listed[i]
                    amounts[i] = arrived[j] if j < size else arrived.dtype.type(0)
                to = (position * groups + g) * width
                add_rows(out[t], to, width, flat, width, g * inputs * width, rows, amounts, inputs)


@cached_njit
def convolve_sparse(
    values: Array, starts: Array, targets: Array, weight: Array, kernel: tuple[int, int],
    out_width: int, out_channels: int, pitch: tuple[int, int], y_taps: Taps, x_taps: Taps,
    rows: Array, amounts: Array, out: Array,
) -> None:  # fmt: skip
    """Add the rows of every event to its targets; compressed rows (channel, kernel position).

    targets: output channel, plus kernel row · pitch[0] and kernel column · pitch[1]. The pitches
    are the distances between the outputs of neighbouring kernel indices if taps are merged, so that
    one base serves a whole entry, and 0 if every entry has length 1.
    rows, amounts: scratch (C,).
    """
    (y_first, y_tap, y_out, y_length), (x_first, x_tap, x_out, x_length) = y_taps, x_taps
    height, columns = len(y_first) - 1, len(x_first) - 1
    for y in range(height):
        for x in range(columns):
            if y_first[y] == y_first[y + 1] or x_first[x] == x_first[x + 1]:
                continue
            for t in range(values.shape[0]):
                count = collect_events(values[t, y * columns + x], 0, rows, amounts)
                for e in range(count):
                    row, amount = np.int64(rows[e]) * kernel[0], amounts[e]
                    for a in range(y_first[y], y_first[y + 1]):
                        for b in range(x_first[x], x_first[x + 1]):
                            base = (y_out[a] * out_width + x_out[b]) * out_channels
                            base -= y_tap[a] * pitch[0] + x_tap[b] * pitch[1]
                            # Rows of neighbouring columns follow each other; whole kernel rows too.
                            whole = x_length[b] == kernel[1]
                            pieces = 1 if whole else y_length[a]
                            length = y_length[a] * kernel[1] if whole else x_length[b]
                            for i in range(pieces):
                                r = (row + y_tap[a] + i) * kernel[1] + x_tap[b]
                                begin, end = starts[r], starts[r + length]
                                add_sparse(out[t], base, targets, weight, begin, end, amount)


@cached_njit
def multiply_dense(
    values: Array, weight: Array, begin: int, end: int, rows: Array, amounts: Array, out: Array
) -> None:
    """Add the row of every event; values (T, 1, n_in), weight (n_in, n_out), out (T, n_out).

    Targets from `begin` to `end` are computed. rows, amounts: scratch (n_in,).
    """
    steps, _, size = values.shape
    width = weight.shape[1]
    flat = weight.reshape(-1)
    for first in range(0, size, SOURCE_BLOCK):
        for t in range(steps):
            arrived = values[t, 0, first : first + SOURCE_BLOCK]
            count = collect_events(arrived, first, rows, amounts)
            add_rows(out[t], begin, end - begin, flat, width, begin, rows, amounts, count)


@cached_njit
def multiply_sparse(
    values: Array, starts: Array, ends: Array, bases: Array, targets: Array, weight: Array,
    rows: Array, amounts: Array, out: Array,
) -> None:  # fmt: skip
    """Add the compressed row of every event; values (T, 1, n_in), out (T, n_out).

    Row j stands from starts[j] to ends[j]; its targets count from bases[j]. rows, amounts: scratch
    (n_in,).
    """
    steps, _, size = values.shape
    for first in range(0, size, SOURCE_BLOCK):
        for t in range(steps):
            arrived = values[t, 0, first : first + SOURCE_BLOCK]
            count = collect_events(arrived, first, rows, amounts)
            for e in range(count):
                j, amount = rows[e], amounts[e]
                add_sparse(out[t], bases[j], targets, weight, starts[j], ends[j], amount)
