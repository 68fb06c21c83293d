"""Dense rows of a convolution, gathered: each output adds the rows of the events in its window.

The events of a layer are listed once, by position and step. Then, for a block of output channels
and one kernel position after the other, each output and step adds the rows of the list under it, in
registers: one load per addition. The weights of one kernel position and block stay in the first
cache meanwhile; the sums wait in the second between kernel positions.

Lists of the same length follow one another: the end of a list is then no surprise to the processor,
which would otherwise cost as much as half of its additions.

Each target's sum runs in the order of synapses.py: sources by position, then by channel. A window's
positions rise with the kernel's row and column, so the sums are the same to the bit.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numba.extending import register_jitable

from soul_deploy.base import Array, environment
from soul_deploy.runtime.kernels.cache import cached_njit
from soul_deploy.runtime.kernels.listed import sum_lists
from soul_deploy.runtime.kernels.simd import (
    BYTES,
    VECTOR,
    has_mask_registers,
    lowest_bit,
    nonzero_bits,
    prefetch,
)
from soul_deploy.runtime.kernels.steps import FixedForm, Form, step_of

Kernel = Callable[..., None]
MOST_CHANNELS = 1 << 16
"""Input channels of a group: an event's takes 16 bits."""

MOST_VECTORS, MOST_WITH_FEW = 4, 2
"""Of output channels whose sums are kept at once; with 16 registers of eight floats (AVX2)."""

SHARE_OF_FIRST, USUAL_FIRST = 0.75, 1 << 15
"""Of the first cache, that the weights of a kernel position take; bytes of one that is not known.
"""

SHARE_OF_SECOND, USUAL_SECOND = 0.6, 1 << 20
"""Of the second cache, that the sums of a block take."""

TOGETHER = 32
"""Positions whose neurons are updated together."""


def vectors_for(width: int, channels: int, lanes: int = VECTOR) -> int:
    """Vectors of a block, for so many output and input channels: those that take the least, where
    looking a row up costs as much as one addition. Three are never taken: their code takes thrice
    as long. lanes: weights of a vector.
    """
    wanted, cache_size = -(-width // lanes), environment.caches().get("L1d", USUAL_FIRST)
    fits = int(SHARE_OF_FIRST * cache_size) // (BYTES * channels)
    most = min(MOST_VECTORS if has_mask_registers() else MOST_WITH_FEW, max(fits, 2))
    able = [vectors for vectors in (4, 2, 1) if vectors <= most]
    return min(able, key=lambda vectors: -(-wanted // vectors) * (vectors + 1))


def rows_of_tile(rows: int, size: int) -> int:
    """Output rows whose sums wait in the second cache, of so many rows of `size` bytes each."""
    fits = int(SHARE_OF_SECOND * environment.caches().get("L2", USUAL_SECOND)) // size
    tiles = -(-rows // max(1, fits))
    return -(-rows // max(1, tiles))


@register_jitable
def list_events(
    values: Array, first: int, last: int, groups: int, starts: Array, rows: Array, amounts: Array
) -> None:
    """List the channels that are nonzero at the positions from `first` to `last`, by step.

    values (T, positions, C) uint8. starts uint32 (T, positions · groups + 1): where the events of a
    position and group begin; rows uint16: their channels within the group; amounts: their values,
    or empty: those are not wanted.
    """
    steps, positions, channels = values.shape
    flat, inner, valued = values.reshape(-1), np.uint64(channels // groups), len(amounts) > 0
    count = np.uint64(0)
    for t in range(steps):
        for k in range(first * groups, last * groups):
            starts[t, k] = count
            begin = np.uint64(t * positions * groups + k) * inner
            whole = inner - inner % np.uint64(BYTES)
            for c in range(np.uint64(0), whole, np.uint64(BYTES)):
                bits = np.uint64(nonzero_bits(flat, begin + c))
                while bits != np.uint64(0):
                    channel = c + np.uint64(lowest_bit(bits))
                    rows[count] = channel
                    if valued:
                        amounts[count] = flat[begin + channel]
                    count += np.uint64(1)
                    bits &= bits - np.uint64(1)
            for c in range(whole, inner):
                if flat[begin + c] != 0:
                    rows[count] = c
                    if valued:
                        amounts[count] = flat[begin + c]
                    count += np.uint64(1)
        starts[t, last * groups] = count


@register_jitable
def sort_lists(
    starts: Array, y_under: Array, x_under: Array, pitch: tuple[int, int, int], counts: Array,
    begins: Array, places: Array,
) -> int:  # fmt: skip
    """The lists under one kernel position of each output, the shorter ones first.

    starts as `list_events` leaves it; y_under, x_under: the input row and column of each output row
    and column, -1 outside; pitch: lists per input row, per input column, first of a position. The
    lists of length n stand from counts[n - 1] to counts[n]: they begin at event begins[i], their
    sums are in row places[i] = (step · rows + output row) · columns + column. Returns the length of
    the longest.
    """
    steps, columns, longest = len(starts), len(x_under), 0
    counts[:] = 0
    for y in range(len(y_under)):
        for x in range(columns):
            if y_under[y] >= 0 and x_under[x] >= 0:
                at = np.uint64(y_under[y] * pitch[0] + x_under[x] * pitch[1] + pitch[2])
                for t in range(steps):
                    counts[starts[t, at + np.uint64(1)] - starts[t, at] + np.uint32(1)] += 1
    for n in range(1, len(counts)):
        longest = n - 1 if counts[n] else longest
        counts[n] += counts[n - 1]
    for y in range(len(y_under)):
        for x in range(columns):
            if y_under[y] >= 0 and x_under[x] >= 0:
                at = np.uint64(y_under[y] * pitch[0] + x_under[x] * pitch[1] + pitch[2])
                for t in range(steps):
                    begin = starts[t, at]
                    length = starts[t, at + np.uint64(1)] - begin
                    to = counts[length]
                    counts[length] += np.uint32(1)
                    begins[to] = begin
                    places[to] = (t * len(y_under) + y) * columns + x
    return longest


@register_jitable
def ask_for(weight: Array, begin: int, size: int, line: int) -> None:
    """Ask for the cache lines, of `line` weights each, that are read next: rows of events would
    each wait.
    """
    for i in range(np.uint64(begin), np.uint64(min(begin + size, len(weight))), np.uint64(line)):
        prefetch(weight, i)


@register_jitable
def start_sums(sums: Array, size: int, bias: Array, wide: int) -> None:
    """sums[k] = bias for k below `size`; sums (…, wide), and `wide` is a constant of the kernel."""
    for k in range(size):
        row = sums[k]
        for i in range(wide):
            row[i] = bias[i]


@register_jitable
def sort_tile(
    starts: Array, y_under: Array, x_under: Array, pitch: tuple[int, int, int],
    lists: tuple[Array, ...],
) -> int:  # fmt: skip
    """As `sort_lists`, under every kernel position; y_under (kh, rows), x_under (kw, columns)."""
    _, _, counts, begins, places = lists
    longest = 0
    for k in range(len(counts)):
        y, x = y_under[k // len(x_under)], x_under[k % len(x_under)]
        found = sort_lists(starts, y, x, pitch, counts[k], begins[k], places[k])
        longest = max(longest, found)
    return longest


@register_jitable
def copy_channels(
    source: Array, begin: int, width: int, out: Array, to: int, pitch: int, count: int
) -> None:
    """out[to + p · pitch + i] = source[begin + p, i] for p below `count`, i below `width`."""
    for p in range(count):
        row, at = source[begin + p], to + p * pitch
        written = out[at : at + width]
        for i in range(width):
            written[i] = row[i]


Place = tuple[int, int, int, int]
"""First output of a block, its output channels and all of them, positions."""


@register_jitable
def keep_currents(
    rest: None, after: None, own: None, sums: Array, place: Place, kept: tuple[Array]
) -> None:
    """Write the sums of a block of output channels; kept: (out,), float32 (T, OH·OW·C_out)."""
    (first, width, pitch, positions), (out,) = place, kept
    for t in range(len(out)):
        copy_channels(sums, t * positions, width, out[t], first, pitch, positions)


@register_jitable
def fire_neurons(
    rest: Callable[..., Any], after: Callable[..., Any], own: Callable[..., Any], sums: Array,
    place: Place, kept: tuple[Any, ...],
) -> None:  # fmt: skip
    """Charge, fire and reset the neurons of a block of output channels.

    kept: (numbers, carry, v, spikes, membranes, fired). numbers: as `steps.numbers_of`; v
    (OH·OW·C_out,): membrane potentials, kept from before and for later if `carry`, otherwise
    started at rest; spikes uint8 (T, OH·OW·C_out). Scratch: membranes and uint8 fired, both
    (TOGETHER, vectors · VECTOR).
    """
    first, width, pitch, positions = place
    numbers, carry, v, spikes, membranes, fired = kept
    flat, membrane, fires = sums.reshape(-1), membranes.reshape(-1), fired.reshape(-1)
    most, wide = membranes.shape
    for begin in range(0, positions, most):
        count, to = min(most, positions - begin), first + begin * pitch
        for i in range(count * wide):
            membrane[i] = rest(numbers)
        if carry:
            for p in range(count):
                for i in range(width):
                    membranes[p, i] = v[to + p * pitch + i]
        for t in range(len(spikes)):
            at = (t * positions + begin) * wide
            arriving = flat[at : at + count * wide]
            for i in range(count * wide):
                fires[i], membrane[i] = after(membrane[i], arriving[i], own(numbers, first))
            copy_channels(fired, 0, width, spikes[t], to, pitch, count)
        if carry:
            copy_channels(membranes, 0, width, v, to, pitch, count)


@register_jitable
def fire_each(
    rest: Callable[..., Any], after: Callable[..., Any], own: Callable[..., Any], sums: Array,
    place: Place, kept: tuple[Any, ...],
) -> None:  # fmt: skip
    """As `fire_neurons`, with numbers for each output channel and for those that fill a block."""
    first, width, pitch, positions = place
    numbers, carry, v, spikes, membranes, fired = kept
    most, wide = membranes.shape
    channel = first % pitch
    for begin in range(0, positions, most):
        count, to = min(most, positions - begin), first + begin * pitch
        for p in range(count):
            for i in range(wide):
                membranes[p, i] = rest(numbers)
            if carry:
                for i in range(width):
                    membranes[p, i] = v[to + p * pitch + i]
        for t in range(len(spikes)):
            for p in range(count):
                arriving, membrane = sums[t * positions + begin + p], membranes[p]
                fires = fired[p]
                for i in range(wide):
                    mine = own(numbers, np.uint64(channel + i))
                    fires[i], membrane[i] = after(membrane[i], arriving[i], mine)
            copy_channels(fired, 0, width, spikes[t], to, pitch, count)
        if carry:
            copy_channels(membranes, 0, width, v, to, pitch, count)


@cache
def convolve_gathered(vectors: int, graded: bool, lanes: int = VECTOR) -> Kernel:
    """The kernel for blocks of so many vectors. graded: events have amounts other than 1; lanes:
    weights of a vector.
    """
    return _make_convolve(vectors, graded, lanes, keep_currents, (None, None, None))


@cache
def fire_gathered(vectors: int, graded: bool, form: Form, lanes: int = VECTOR) -> Kernel:
    """As `convolve_gathered`; the currents go to the neurons of one form, block by block, and are
    not kept.
    """
    finish = fire_each if isinstance(form, FixedForm) and form.wide else fire_neurons
    return _make_convolve(vectors, graded, lanes, finish, step_of(form))


Part = Callable[..., Any] | None


def _make_convolve(
    vectors: int, graded: bool, lanes: int, finish: Callable[..., None],
    functions: tuple[Part, Part, Part],
) -> Kernel:  # fmt: skip
    wide, (rest, after, own) = vectors * lanes, functions

    @cached_njit
    def convolve(
        values: Array, weight: Array, bias: Array, out_channels: int, y_under: Array,
        x_under: Array, bounds: tuple[int, int], in_columns: int, arriving: tuple[int, int],
        tile: int, starts: Array, lists: tuple[Array, ...], sums: Array, kept: tuple[Any, ...],
    ) -> None:  # fmt: skip
        """Currents of the output rows from bounds[0] to bounds[1], the bias included; what becomes
        of them says `kept` (keep_currents, fire_neurons).

        values (T, H·W, C); weight (groups, blocks, kh · kw, C / groups, vectors · lanes), kernel
        positions in rising order of what lies under them; bias (groups, blocks, vectors · lanes);
        y_under int64 (kh, OH), x_under int64 (kw, OW): the input row and column under each kernel
        index, -1 outside; arriving: the input rows, of `in_columns` positions, whose events are
        listed; tile: output rows whose sums are kept at once. Scratch: starts as in `list_events`;
        lists: rows, amounts as there, counts, begins, places as in `sort_lists`, each (kh · kw, …);
        sums (outputs of a tile · T, vectors · VECTOR).
        """
        groups, blocks, taps, inner, _ = weight.shape
        rows, amounts, counts, begins, places = lists
        flat, width, columns = weight.reshape(-1), out_channels // groups, x_under.shape[1]
        first, last = arriving[0] * in_columns, arriving[1] * in_columns
        list_events(values, first, last, groups, starts, rows, amounts)
        for begin in range(bounds[0], bounds[1], tile):
            end = min(begin + tile, bounds[1])
            positions = (end - begin) * columns
            for g in range(groups):
                pitch = in_columns * groups, groups, g
                longest = sort_tile(starts, y_under[:, begin:end], x_under, pitch, lists)
                for block in range(blocks):
                    start_sums(sums, positions * len(values), bias[g, block], wide)
                    for k in range(taps):
                        row = ((g * blocks + block) * taps + k) * inner
                        ask_for(flat, (row + inner) * wide, inner * wide, lanes)
                        for n in range(1, longest + 1):
                            sum_lists(
                                flat, row, rows, amounts, begins[k], places[k], counts[k, n - 1],
                                counts[k, n], n, sums, vectors, graded,
                            )  # fmt: skip
                    to = begin * columns * out_channels + g * width + block * wide
                    place = to, min(wide, width - block * wide), out_channels, positions
                    finish(rest, after, own, sums, place, kept)

    return convolve
