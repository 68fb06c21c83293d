"""Maps to maps and to scores: the compiled loops without synapses.

As synapses.py: pure functions over arrays that were checked before. Loops with `first` and `last`
compute the outputs from `first` to below `last`. Those of merges and of scattering compute columns
(scatter: positions) from `begin` to `end`; their maps are (T, n), and one with a single step is the
same at every step.
"""

import numpy as np

from soul_deploy.base import Array
from soul_deploy.runtime.kernels.cache import cached_njit
from soul_deploy.runtime.kernels.neurons import NEURON_BLOCK


@cached_njit
def gather_currents(current: Array, index: Array, first: int, last: int, out: Array) -> None:
    """Gather currents of live neurons: out[t, i] = current[t, index[i]], `first` <= i < `last`."""
    for t in range(len(current)):
        for i in range(first, last):
            out[t, i] = current[t, np.uint64(index[i])]


@cached_njit
def scatter_spikes(spikes: Array, index: Array, first: int, last: int, out: Array) -> None:
    """Scatter spikes of live neurons into the map: out[t, index[i]] = spikes[t, i]; out (T, n)."""
    for begin in range(first, last, NEURON_BLOCK):
        end = min(begin + NEURON_BLOCK, last)
        for t in range(len(spikes)):
            source, to = spikes[t], out[t]
            for i in range(np.uint64(begin), np.uint64(end)):
                to[np.uint64(index[i])] = source[i]


@cached_njit
def mask_out(spikes: Array, index: Array, first: int, last: int) -> None:
    """Mask the spikes of dead neurons out: spikes[t, index[i]] = 0, i from `first` to `last`."""
    for t in range(len(spikes)):
        fired = spikes[t]
        for i in range(np.uint64(first), np.uint64(last)):
            fired[np.uint64(index[i])] = 0


@cached_njit
def max_pool(
    values: Array, columns: int, kernel: tuple[int, int], stride: tuple[int, int],
    padding: tuple[int, int], out_columns: int, lowest: np.generic, first: int,
    last: int, out: Array,
) -> None:  # fmt: skip
    """Maximum over windows, at least `lowest`; values (T, H·W, C), out (T, OH·OW, C).

    Both uint8, whose maximum is OR of spikes, int8 or float32. Output positions from `first` to
    `last` are computed.
    """
    steps, positions, channels = values.shape
    height = positions // columns
    for t in range(steps):
        for o in range(first, last):
            top = (o // out_columns) * stride[0] - padding[0]
            left = (o % out_columns) * stride[1] - padding[1]
            target = out[t, o]
            target[:] = lowest
            for y in range(max(top, 0), min(top + kernel[0], height)):
                for x in range(max(left, 0), min(left + kernel[1], columns)):
                    source = values[t, y * columns + x]
                    for c in range(channels):
                        target[c] = max(target[c], source[c])


@cached_njit
def max_of_fours(
    values: Array, columns: int, stride: tuple[int, int], out_columns: int,
    lowest: np.uint8 | np.float32, first: int, last: int, out: Array,
) -> None:  # fmt: skip
    """As `max_pool`, of windows of two by two inside the map: each in one pass, which for the few
    channels of a map is half of the time.
    """
    steps, _, channels = values.shape
    for t in range(steps):
        for o in range(first, last):
            at = (o // out_columns) * stride[0] * columns + (o % out_columns) * stride[1]
            a, b = values[t, at], values[t, at + 1]
            c, d = values[t, at + columns], values[t, at + columns + 1]
            target = out[t, o]
            for i in range(channels):
                target[i] = max(max(max(max(lowest, a[i]), b[i]), c[i]), d[i])


@cached_njit
def sum_spikes(spikes: Array, out: Array) -> None:
    """Sums over time and positions; spikes (T, P, C) uint8, out (C,) int64."""
    steps, positions, channels = spikes.shape
    out[:] = 0
    for t in range(steps):
        for p in range(positions):
            source = spikes[t, p]
            for c in range(channels):
                out[c] += source[c]


@cached_njit
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


@cached_njit
def score_integers(
    sums: Array, weight: Array, bias: Array, times: int, scale: np.float32, out: Array
) -> None:
    """out = (sums @ weight + times · bias), an integer, rounded once to float32, · scale.

    weight int8 (classes, C), bias int32 (classes,) or empty.
    """
    for k in range(len(out)):
        total, row = np.int64(0), weight[k]
        for c in range(len(sums)):
            total += sums[c] * np.int64(row[c])
        if len(bias):
            total += times * np.int64(bias[k])
        out[k] = np.float32(total) * scale


@cached_njit
def vote(sums: Array, votes: int, scale: np.float32, out: Array) -> None:
    """out[k] = (sum of the `votes` neighbouring sums of class k) · scale."""
    for k in range(len(out)):
        total = np.int64(0)
        for i in range(votes):
            total += sums[k * votes + i]
        out[k] = np.float32(total) * scale


@cached_njit
def add_in_order(values: Array, scale: np.float32, out: Array) -> None:
    """out[k] = (values[0, k] + values[1, k] + …) · scale; scale 1 changes nothing."""
    for k in range(len(out)):
        total = values[0, k]
        for t in range(1, len(values)):
            total += values[t, k]
        out[k] = total * scale


@cached_njit
def keep_largest(scores: Array, first: bool, out: Array) -> None:
    """out[k] = scores[k], and where it is not the `first` step the larger of both."""
    for k in range(len(out)):
        if first or scores[k] > out[k]:
            out[k] = scores[k]


@cached_njit
def add_integers(first: Array, second: Array, begin: int, end: int, out: Array) -> None:
    """out = first + second, integers; their bounds were checked to fit."""
    for t in range(len(out)):
        a, b, to = first[t % len(first)], second[t % len(second)], out[t]
        for i in range(begin, end):
            to[i] = a[i] + b[i]


@cached_njit
def add_currents(first: Array, second: Array, begin: int, end: int, out: Array) -> None:
    """out = first + second in float32; either may hold spikes."""
    for t in range(len(out)):
        a, b, to = first[t % len(first)], second[t % len(second)], out[t]
        for i in range(begin, end):
            to[i] = np.float32(a[i]) + np.float32(b[i])


@cached_njit
def both(first: Array, second: Array, begin: int, end: int, out: Array) -> None:
    """out = first and second, of spikes."""
    for t in range(len(out)):
        a, b, to = first[t], second[t], out[t]
        for i in range(begin, end):
            to[i] = a[i] & b[i]


@cached_njit
def first_without_second(first: Array, second: Array, begin: int, end: int, out: Array) -> None:
    """out = first · (1 - second), of spikes."""
    for t in range(len(out)):
        a, b, to = first[t], second[t], out[t]
        for i in range(begin, end):
            to[i] = a[i] & (b[i] ^ np.uint8(1))


@cached_njit
def scatter_channels(values: Array, index: Array, begin: int, end: int, out: Array) -> None:
    """out[t, p, index[c]] = values[t, p, c]; values (T, P, C), out (T, P, wide), 0 elsewhere."""
    for t in range(len(values)):
        for p in range(begin, end):
            source, to = values[t, p], out[t, p]
            for c in range(len(index)):
                to[np.uint64(index[c])] = source[c]
