"""Shared sparse rows on bit planes: each output adds the weights whose input fired, in registers.

Spikes are bits. A word is a position of a channel: its spikes at up to MOST_STEPS steps, step t at
bit STEP_BITS · t. The words of a channel stand row by row, with zeros between the rows and around
the map, so that an output finds every input under its kernel at one distance, inside the map or
not: (C, length) uint8, uint16 or uint32, by the steps. Nothing is copied or shifted.

A tile is `tile_of(T)` positions of one output channel at all T steps: MOST_SUMS vectors of sums at
most, which stay in registers. With more steps than a word holds, chunks of them follow one another.
The weights of the channel are taken in fours. Which of four inputs fired is a number below 16, and
their words, interleaved, are such numbers for all positions and steps: each picks its sum from the
16 that four weights can have, and one addition adds it. Then the neurons of the tile run, for a few
channels at once, since each of their steps waits for the one before.

Each sum runs by input channel, then by kernel row and column, after the bias; each TOGETHER weights
are summed first, from 0 on. This order is another than that of synapses.py; it is the same for any
number of threads, and in streams.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numba.extending import register_jitable

from soul_deploy.base import Array
from soul_deploy.runtime.kernels.cache import cached_njit
from soul_deploy.runtime.kernels.fours import STEP_BITS, sums_of_fours
from soul_deploy.runtime.kernels.simd import VECTOR, transpose_block
from soul_deploy.runtime.kernels.steps import Form, Numbers, Step, step_of

Kernel = Callable[..., None]

MOST_STEPS = 32 // STEP_BITS
"""Steps of a word."""

MOST_SUMS = 24
"""Vectors of sums in a tile: three quarters of the registers that AVX-512 has."""

CHANNELS = 8
"""Output channels of a tile whose neurons run at once."""

BLOCK = VECTOR
"""Positions whose words are transposed at once."""


def chunks_of(steps: int) -> tuple[int, ...]:
    """So many steps as chunks that a word can hold, of about the same length."""
    count = -(-steps // MOST_STEPS)
    return tuple(steps * (i + 1) // count - steps * i // count for i in range(count))


def word_of(steps: int) -> Any:
    """The type of the words, for so many steps in chunks."""
    return np.dtype(np.uint8 if (n := max(chunks_of(steps))) <= 2 else f"u{2 if n <= 4 else 4}")


def lines_of(steps: int) -> int:
    """Vectors of 32-bit integers in a tile's words."""
    return MOST_SUMS // (held_of(steps) * max(chunks_of(steps)))


def held_of(steps: int) -> int:
    """Words in a 32-bit integer."""
    return 4 // int(word_of(steps).itemsize)


def tile_of(steps: int) -> int:
    """Positions of a tile."""
    return lines_of(steps) * VECTOR * held_of(steps)


@register_jitable
def parts_of(channels: int) -> int:
    """Parts of a tile: CHANNELS channels each. Threads share parts, tile by tile."""
    return -(-channels // CHANNELS)


@register_jitable
def to_words(bits: Array, size: int, words: Array, at: int) -> None:
    """words[c, at + i] = bits[i, c] for i below `size`, at most BLOCK."""
    channels = bits.shape[1]
    whole = channels // BLOCK * BLOCK if size == BLOCK else 0
    for c in range(0, whole, BLOCK):
        transpose_block(bits, 0, c, words, c, at)
    for c in range(whole, channels):
        for i in range(size):
            words[c, at + i] = bits[i, c]


@register_jitable
def written_at(at: int, size: int, end: int) -> int:
    """Words to write from `at` on of a row's last ones: a whole block where only zeros between rows
    and rows that come later are hit, all before `end`; those are zero in `bits`.
    """
    return BLOCK if at + BLOCK <= end else size


@register_jitable
def from_words(words: Array, at: int, size: int, bits: Array) -> None:
    """bits[i, c] = words[c, at + i] for i below `size`, at most BLOCK."""
    channels = bits.shape[1]
    whole = channels // BLOCK * BLOCK if size == BLOCK else 0
    for c in range(0, whole, BLOCK):
        transpose_block(words, c, at, bits, 0, c)
    for c in range(whole, channels):
        for i in range(size):
            bits[i, c] = words[c, at + i]


@cached_njit
def pack_words(
    values: Array, columns: int, pitch: int, first: int, last: int, front: int, bits: Array,
    words: Array,
) -> None:  # fmt: skip
    """words[c, front + y · pitch + x] of the rows y from `first` to `last`.

    values uint8 (T, positions, C) of 0 and 1, `columns` positions a row; bits: scratch uint32
    (BLOCK, C).
    """
    steps, channels = len(values), values.shape[2]
    for y in range(first, last):
        for begin in range(0, columns, BLOCK):
            size = min(BLOCK, columns - begin)
            bits[:] = 0
            for t in range(steps):
                bit = np.uint32(1 << STEP_BITS * t)
                for i in range(size):
                    arrived, to = values[t, y * columns + begin + i], bits[i]
                    for c in range(channels):
                        to[c] |= bit if arrived[c] else np.uint32(0)
            at = y * pitch + begin
            to_words(bits, written_at(at, size, last * pitch), words, front + at)


@cached_njit
def unpack_words(
    words: Array, columns: int, pitch: int, first: int, last: int, front: int, bits: Array,
    values: Array,
) -> None:  # fmt: skip
    """The inverse of `pack_words`."""
    steps, channels = len(values), values.shape[2]
    for y in range(first, last):
        for begin in range(0, columns, BLOCK):
            size, at = min(BLOCK, columns - begin), front + y * pitch + begin
            from_words(words, at, BLOCK if at + BLOCK <= words.shape[1] else size, bits)
            for t in range(steps):
                bit = np.uint32(1 << STEP_BITS * t)
                for i in range(size):
                    to, fired = values[t, y * columns + begin + i], bits[i]
                    for c in range(channels):
                        to[c] = (fired[c] & bit) != 0


@cached_njit
def pool_words(
    source: Array, pitch: int, front: int, first: int, last: int, columns: int, to_pitch: int,
    to_front: int, words: Array,
) -> None:  # fmt: skip
    """OR of windows of two by two that stand side by side: the rows of outputs from `first` to
    `last`, of `columns` each. source, words: as `pack_words` leaves them.
    """
    for c in range(len(words)):
        for y in range(first, last):
            begin = np.uint64(front + 2 * y * pitch)
            above, below = source[c, begin:], source[c, begin + np.uint64(pitch) :]
            to = words[c, to_front + y * to_pitch :]
            for x in range(columns):
                left, right = above[2 * x] | below[2 * x], above[2 * x + 1] | below[2 * x + 1]
                to[x] = left | right


@register_jitable
def take_over(v: Array, wide: int, membrane: Array) -> None:
    """membrane[h, i · wide + j] = v[i, h · wide + j]."""
    for i in range(len(v)):
        for h in range(len(membrane)):
            for j in range(wide):
                membrane[h, i * wide + j] = v[i, h * wide + j]


@register_jitable
def keep_for_later(membrane: Array, wide: int, v: Array) -> None:
    """The inverse of `take_over`."""
    for i in range(len(v)):
        for h in range(len(membrane)):
            for j in range(wide):
                v[i, h * wide + j] = membrane[h, i * wide + j]


@register_jitable
def leave(
    fired: Array, live: Array, begun: int, count: int, at: int, front: int, wide: int, words: Array
) -> None:
    """Spikes of `count` channels from `begun` on, those of live neurons, from `front` + `at` on."""
    for i in range(count):
        c = begun + i
        kept, to = live[min(c, len(live) - 1), at : at + wide], words[c, front + at :]
        for j in range(wide):
            to[j] = fired[i * wide + j] & kept[j]


@cache
def convolve_kernel(form: Form, steps: int, lines: int, held: int) -> Kernel:
    """The kernel for one form of neurons and a chunk of so many steps, in tiles of `lines` vectors
    of integers that hold `held` words each: wide = lines · VECTOR integers, lanes = held · wide.

    source (C, length); the weights of output channel c stand from starts[c] to starts[c + 1], in
    fours, their inputs from source.reshape(-1)[places] on, int32; bias (C_out,). live uint32 (C_out
    or 1, tiles · wide): bits of the words that leave. v (C_out, tiles · lanes): membrane potentials
    in the order of `sums_of_fours`; taken from before if `carry`, otherwise started at `rest`, and
    kept if `keep`. Scratch: sums (T · lanes · CHANNELS,), membrane (held, wide · CHANNELS), fired
    uint32 (wide · CHANNELS,). words uint32 (C_out, ...): spikes, `held` words each, written from
    `front` on.
    """
    return _make_convolve(step_of(form), steps, lines, held)


def _make_convolve(functions: Step, steps: int, lines: int, held: int) -> Kernel:
    rest, after, own = functions
    wide, bits = lines * VECTOR, 32 // held
    lanes, apart = wide * held, wide * CHANNELS

    @cached_njit
    def convolve(
        source: Array, starts: Array, places: Array, weight: Array, bias: Array, live: Array,
        numbers: Numbers, carry: bool, keep: bool, v: Array, first: int, last: int, front: int,
        sums: Array, membrane: Array, fired: Array, words: Array,
    ) -> None:  # fmt: skip
        """Currents and neurons of the parts from `first` to `last`: see `convolve_kernel`."""
        flat, channels, parts = source.reshape(-1), len(starts) - 1, parts_of(len(starts) - 1)
        for tile in range(first // parts, -(-last // parts)):
            some, beyond = max(0, first - tile * parts), min(parts, last - tile * parts)
            for begun in range(some * CHANNELS, beyond * CHANNELS, CHANNELS):
                count, at = min(CHANNELS, channels - begun), tile * lanes
                for i in range(count):
                    begin, end = starts[begun + i], starts[begun + i + 1]
                    sums_of_fours(
                        flat, at, places, weight, begin, end, bias[begun + i], sums, i * wide,
                        apart, lines, steps,
                    )  # fmt: skip
                membrane[:] = rest(numbers)
                if carry:
                    take_over(v[begun : begun + count, at : at + lanes], wide, membrane)
                fired[:] = 0
                for t in range(steps):
                    for h in range(held):
                        bit, row = np.uint32(1 << h * bits + STEP_BITS * t), (t * held + h) * apart
                        arriving, state = sums[row : row + apart], membrane[h]
                        for j in range(count * wide):
                            spike, state[j] = after(state[j], arriving[j], own(numbers, begun))
                            fired[j] |= bit if spike else np.uint32(0)
                leave(fired, live, begun, count, tile * wide, front, wide, words)
                if keep:
                    keep_for_later(membrane, wide, v[begun : begun + count, at : at + lanes])

    return convolve


@cache
def update_kernel(form: Form, steps: int) -> Kernel:
    """The update of neurons whose currents other kernels left, for one form of neurons and a chunk
    of so many steps.
    """
    return _make_update(step_of(form), steps)


def _make_position(functions: Step, steps: int) -> tuple[Callable[..., None], ...]:
    """What fires the neurons of one position, channel by channel: currents that are the same at
    every step, and others.
    """
    _, after, own = functions

    @register_jitable
    def fire_same(current: Array, membrane: Array, numbers: Numbers, fired: Array) -> None:
        for c in range(len(fired)):
            u, x, word, mine = membrane[c], current[c], np.uint32(0), own(numbers, c)
            for t in range(steps):
                spike, u = after(u, x, mine)
                word |= np.uint32(1 << STEP_BITS * t) if spike else np.uint32(0)
            membrane[c], fired[c] = u, word

    @register_jitable
    def fire_step(arriving: Array, membrane: Array, numbers: Numbers, t: int, fired: Array) -> None:
        bit = np.uint32(1 << STEP_BITS * t)
        for c in range(len(fired)):
            spike, membrane[c] = after(membrane[c], arriving[c], own(numbers, c))
            fired[c] |= bit if spike else np.uint32(0)

    return fire_same, fire_step


def _make_update(functions: Step, steps: int) -> Kernel:
    rest, (fire_same, fire_step) = functions.rest, _make_position(functions, steps)

    @cached_njit
    def update(
        current: Array, columns: int, pitch: int, numbers: Numbers, carry: bool, v: Array,
        live: Array, first: int, last: int, front: int, bits: Array, words: Array,
    ) -> None:  # fmt: skip
        """Charge, fire and reset the neurons of the rows from `first` to `last`.

        current (T, n) or (1, n), the same at every step, channel-last, `columns` positions a row;
        v (n,) is the membrane potential, kept from before if `carry`, otherwise started at rest.
        live (C or 1, length): bits of the words that leave, position 0 first; bits: scratch uint32
        (BLOCK, C); words: spikes, written from `front` on.
        """
        channels, repeated = bits.shape[1], len(current) == 1
        for y in range(first, last):
            for left in range(0, columns, BLOCK):
                size = min(BLOCK, columns - left)
                bits[:] = 0
                for i in range(size):
                    begin = (y * columns + left + i) * channels
                    membrane, fired = v[begin : begin + channels], bits[i]
                    if not carry:
                        membrane[:] = rest(numbers)
                    if repeated:
                        fire_same(current[0, begin:], membrane, numbers, fired)
                    else:
                        for t in range(steps):
                            fire_step(current[t, begin:], membrane, numbers, t, fired)
                at = y * pitch + left
                to_words(bits, written_at(at, size, last * pitch), words, front + at)
                for c in range(len(live)):
                    to, kept = words[c, front + at : front + at + size], live[c, at : at + size]
                    for i in range(size):
                        to[i] &= kept[i]

    return update
