"""Bit planes of fixed-point networks: as bit_planes.py, with sums of int16 or int32.

A tile has as many positions as `lines` vectors of words hold: the fewer its lines, the less is
computed beyond a small map, and the oftener weights are read. Sums, membranes and words stand in
the order of the positions.
"""

from collections.abc import Callable
from functools import cache

from soul_deploy.base import Array
from soul_deploy.runtime.kernels.bit_planes import CHANNELS, parts_of
from soul_deploy.runtime.kernels.cache import cached_njit
from soul_deploy.runtime.kernels.fours import STEP_BITS
from soul_deploy.runtime.kernels.integer_fours import sums_of_integers
from soul_deploy.runtime.kernels.steps import Form, Numbers, step_of

Kernel = Callable[..., None]


@cache
def convolve_fixed(form: Form, steps: int, lines: int, tile: int) -> Kernel:
    """The kernel for one form of neurons and a chunk of so many steps, in tiles of `tile`
    positions, which are `lines` vectors of words.

    source (C, length); the weights of output channel c stand from starts[c] to starts[c + 1], in
    fours, as `weights_for`; their inputs from source.reshape(-1)[places] on, int32; bias int32
    (C_out,). live (C_out or 1, tiles · tile): bits of the words that leave. v (C_out, tiles ·
    tile): membranes; taken from before if `carry`, otherwise started at rest, and kept if `keep`.
    Scratch: sums (T · CHANNELS · tile,), membrane (tile,). words (C_out, ...): spikes, written from
    `front` on.
    """
    rest, after, own = step_of(form)
    apart = CHANNELS * tile

    @cached_njit
    def convolve(
        source: Array, starts: Array, places: Array, weight: Array, bias: Array, live: Array,
        numbers: Numbers, carry: bool, keep: bool, v: Array, first: int, last: int, front: int,
        sums: Array, membrane: Array, words: Array,
    ) -> None:  # fmt: skip
        """Currents and neurons of the parts from `first` to `last`."""
        flat, channels, parts = source.reshape(-1), len(starts) - 1, parts_of(len(starts) - 1)
        for t in range(first // parts, -(-last // parts)):
            some, beyond, at = max(0, first - t * parts), min(parts, last - t * parts), t * tile
            for begun in range(some * CHANNELS, beyond * CHANNELS, CHANNELS):
                count = min(CHANNELS, channels - begun)
                for i in range(count):
                    c = begun + i
                    sums_of_integers(
                        flat, at, places, weight, starts[c], starts[c + 1], bias[c], sums, i * tile,
                        apart, lines, steps,
                    )  # fmt: skip
                for i in range(count):
                    c = begun + i
                    mine, arriving = own(numbers, c), sums[i * tile :]
                    if carry:
                        membrane[:tile] = v[c, at : at + tile]
                    else:
                        membrane[:tile] = rest(numbers)
                    kept, to = live[min(c, len(live) - 1), at : at + tile], words[c, front + at :]
                    for j in range(tile):
                        u, fired = membrane[j], kept.dtype.type(0)
                        for s in range(steps):
                            spike, u = after(u, arriving[s * apart + j], mine)
                            bit = kept.dtype.type(1 << STEP_BITS * s)
                            fired |= bit if spike else kept.dtype.type(0)
                        membrane[j] = u
                        to[j] = fired & kept[j]
                    if keep:
                        v[c, at : at + tile] = membrane[:tile]

    return convolve
