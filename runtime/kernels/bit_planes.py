"""Shared sparse rows on bit planes: each output adds the weights whose input fired, in registers.

Spikes are bits. The positions of a map are numbered row by row, and BLOCK of them make a word of
each channel and step: (channels, blocks, T) uint16, with blocks of zeros around each channel's. For
a layer, the words are copied once for every kernel position, shifted so that bit i of an output's
word says whether the input under that kernel position fired; outside the map it did not.

A tile is `group_of(T)` blocks of one output channel at all T steps: MOST_SUMS vectors of sums at
most, which stay in registers. With more steps than that, chunks of them follow one another. Each
weight of the channel is added where its word has a bit:
sum = sum + w if bit else sum. So no sum is loaded or stored, and no address is computed but the
word's. Then the neurons of the tile run, and their spikes leave as words.

Each sum runs by input channel, then by kernel row and column, after the bias. This order is another
than that of synapses.py; it is the same for any number of threads, and in streams.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from soul_deploy.base import Array
from soul_deploy.runtime import equations
from soul_deploy.runtime.kernels.cache import cached_njit
from soul_deploy.runtime.kernels.masked import masked_sums, shift_words
from soul_deploy.runtime.kernels.simd import BYTES, VECTOR, nonzero_bits

Kernel = Callable[..., None]
BLOCK = VECTOR
"""Positions whose spikes are one word."""

WORDS = BYTES // BLOCK
"""Words that are made at once."""

MOST_SUMS = 16
"""Vectors of sums in a tile: half of the registers that AVX-512 has."""


def chunks_of(steps: int) -> tuple[int, ...]:
    """So many steps as chunks that a tile can hold, of about the same length."""
    count = -(-steps // MOST_SUMS)
    return tuple(steps * (i + 1) // count - steps * i // count for i in range(count))


def group_of(steps: int) -> int:
    """Blocks of a tile, for so many steps in chunks."""
    return MOST_SUMS // max(chunks_of(steps))


@cached_njit
def pack_words(values: Array, first: int, last: int, front: int, sums: Array, words: Array) -> None:
    """words[c, front + b, t] of the blocks b from `first` to `last`.

    values uint8 (T, positions, C) of 0 and 1; words uint16 (C, ..., T); sums: scratch uint16 (C,).
    """
    steps, positions, channels = values.shape
    for b in range(first, last):
        begin = b * BLOCK
        for t in range(steps):
            sums[:] = 0
            for i in range(min(BLOCK, positions - begin)):
                arrived, place = values[t, begin + i], np.uint16(i)
                for c in range(channels):
                    sums[c] |= np.uint16(np.uint16(arrived[c]) << place)
            for c in range(channels):
                words[c, front + b, t] = sums[c]


@cached_njit
def unpack_words(
    words: Array, first: int, last: int, front: int, sums: Array, values: Array
) -> None:
    """The inverse of `pack_words`."""
    steps, positions, channels = values.shape
    for b in range(first, last):
        begin = b * BLOCK
        for t in range(steps):
            for c in range(channels):
                sums[c] = words[c, front + b, t]
            for i in range(min(BLOCK, positions - begin)):
                to, place = values[t, begin + i], np.uint16(i)
                for c in range(channels):
                    to[c] = np.uint8((sums[c] >> place) & np.uint16(1))


@cache
def shift_kernel(steps: int, group: int) -> Kernel:
    """The kernel for a chunk of so many steps, in tiles of `group` blocks."""
    size = group * steps

    @cached_njit
    def shift(
        words: Array, shifts: Array, inside: Array, first: int, last: int, shifted: Array
    ) -> None:
        """shifted[tile, c, k, word] of the tiles from `first` to `last`, for kernel position k.

        words uint16 (C, ..., T), read from block shifts[k, 0] + tile · group on and moved down by
        shifts[k, 1] bits; inside uint16 (kernel positions, blocks · T): bits under which the input
        has a position. shifted uint16 (tiles, C · kernel positions · T · group, or more).
        """
        flat, masks, out = words.reshape(-1), inside.reshape(-1), shifted.reshape(-1)
        channels, taps = words.shape[0], len(shifts)
        pitch, row, tile_pitch = words.shape[1] * steps, inside.shape[1], shifted.shape[1]
        for tile in range(first, last):
            for c in range(channels):
                for k in range(taps):
                    at = c * pitch + shifts[k, 0] * steps + tile * size
                    to = tile * tile_pitch + (c * taps + k) * size
                    mask = k * row + tile * size
                    shift_words(flat, at, shifts[k, 1], masks, mask, out, to, steps, size)

    return shift


@cache
def convolve_kernel(
    charge: equations.ChargeForm, fire: equations.FireRule, soft_reset: bool, steps: int, group: int
) -> Kernel:
    """The kernel for one equation form and a chunk of so many steps, in tiles of `group` blocks."""
    reset = equations.reset_soft if soft_reset else equations.reset_hard
    return _make_convolve(equations.CHARGE[charge], equations.FIRE[fire], reset, steps, group)


def _make_convolve(
    charge: Callable[..., Any], fire: Callable[..., Any], reset: Callable[..., Any],
    steps: int, group: int,
) -> Kernel:  # fmt: skip
    size, lanes = group * steps, group * BLOCK

    @cached_njit
    def convolve(
        shifted: Array, starts: Array, places: Array, weight: Array, bias: Array, live: Array,
        constant: np.float32, threshold: np.float32, rest: np.float32, target: np.float32,
        carry: bool, v: Array, first: int, last: int, front: int, sums: Array, fired: Array,
        words: Array,
    ) -> None:  # fmt: skip
        """Currents and neurons of the tiles from `first` to `last`.

        shifted as `shift` leaves it; the weights of output channel c stand from starts[c] to
        starts[c + 1], places int32 = channel · kernel positions + kernel position; bias (C_out,).
        live uint16 (C_out, tiles · group): neurons whose spikes leave. v (C_out, tiles · group ·
        BLOCK): membrane potentials, kept from before if `carry`, otherwise started at `rest`.
        Scratch: sums (T · group · BLOCK,), fired uint8, longer by BYTES. words uint16 (C_out, ...,
        T): spikes, written from block `front` on.
        """
        flat, pitch = shifted.reshape(-1), shifted.shape[1]
        for tile in range(first, last):
            for c in range(len(live)):
                begin, end = starts[c], starts[c + 1]
                masked_sums(flat, tile * pitch, places, weight, begin, end, bias[c], sums, size)
                membrane = v[c, tile * lanes : tile * lanes + lanes]
                if not carry:
                    membrane[:] = rest
                for t in range(steps):
                    arriving, fires = sums[t * lanes : t * lanes + lanes], fired[t * lanes :]
                    for i in range(lanes):
                        h = charge(membrane[i], arriving[i], constant, rest)
                        spike = fire(h, threshold)
                        fires[i] = spike
                        membrane[i] = reset(h, np.float32(spike), target)
                for t in range(np.uint64(steps)):
                    for begun in range(0, group, WORDS):
                        bits = np.uint64(nonzero_bits(fired, t * np.uint64(lanes) + begun * BLOCK))
                        for g in range(np.uint64(begun), np.uint64(min(begun + WORDS, group))):
                            block = np.uint64(tile * group) + g
                            spikes = np.uint16(bits & np.uint64(0xFFFF))
                            words[c, np.uint64(front) + block, t] = spikes & live[c, block]
                            bits >>= np.uint64(BLOCK)

    return convolve


@cache
def update_kernel(
    charge: equations.ChargeForm, fire: equations.FireRule, soft_reset: bool
) -> Kernel:
    """The update of neurons whose currents other kernels left, for one equation form."""
    reset = equations.reset_soft if soft_reset else equations.reset_hard
    return _make_update(equations.CHARGE[charge], equations.FIRE[fire], reset)


def _make_update(
    charge: Callable[..., Any], fire: Callable[..., Any], reset: Callable[..., Any]
) -> Kernel:
    @cached_njit
    def update(
        current: Array, constant: np.float32, threshold: np.float32, rest: np.float32,
        target: np.float32, carry: bool, v: Array, live: Array, first: int, last: int, front: int,
        sums: Array, words: Array,
    ) -> None:  # fmt: skip
        """Charge, fire and reset the neurons of the blocks from `first` to `last`.

        current (T, n) or (1, n), the same at every step, channel-last; v (n,) is the membrane
        potential, kept from before if `carry`, otherwise started at `rest`. live uint16 (C,
        blocks): neurons whose spikes leave; sums: scratch uint16 (T, C); words uint16 (C, ..., T):
        spikes, written from block `front` on.
        """
        steps, channels = sums.shape
        positions, repeated = len(v) // channels, len(current) == 1
        for b in range(first, last):
            sums[:] = 0
            for i in range(min(BLOCK, positions - b * BLOCK)):
                begin, place = (b * BLOCK + i) * channels, np.uint16(i)
                membrane = v[begin : begin + channels]
                if not carry:
                    membrane[:] = rest
                for t in range(steps):
                    arriving = current[0 if repeated else t, begin : begin + channels]
                    fired = sums[t]
                    for c in range(channels):
                        h = charge(membrane[c], arriving[c], constant, rest)
                        spike = fire(h, threshold)
                        fired[c] |= np.uint16(np.uint16(spike) << place)
                        membrane[c] = reset(h, np.float32(spike), target)
            for c in range(channels):
                for t in range(steps):
                    words[c, front + b, t] = sums[t, c] & live[c, b]

    return update
