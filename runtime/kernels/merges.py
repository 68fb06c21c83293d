"""Maps to one map: the compiled loops of residual merges and of scattering.

As synapses.py: pure functions over arrays that were checked before. Maps are (T, n); one with a
single step is the same at every step. Loops compute columns (scatter: positions) from `begin` to
`end`.
"""

import numpy as np
from numba import njit

from soul_deploy.base.files import Array
from soul_deploy.runtime.kernels.cache import CACHE
from soul_deploy.runtime.kernels.config import FASTMATH


@njit(cache=CACHE, nogil=True, fastmath=FASTMATH)
def add_events(first: Array, second: Array, begin: int, end: int, out: Array) -> None:
    """out = first + second, uint8; their bounds were checked to fit."""
    for t in range(len(out)):
        a, b, to = first[t], second[t], out[t]
        for i in range(begin, end):
            to[i] = np.uint8(a[i] + b[i])


@njit(cache=CACHE, nogil=True, fastmath=FASTMATH)
def add_currents(first: Array, second: Array, begin: int, end: int, out: Array) -> None:
    """out = first + second in float32; either may hold spikes."""
    for t in range(len(out)):
        a, b, to = first[t % len(first)], second[t % len(second)], out[t]
        for i in range(begin, end):
            to[i] = np.float32(a[i]) + np.float32(b[i])


@njit(cache=CACHE, nogil=True, fastmath=FASTMATH)
def both(first: Array, second: Array, begin: int, end: int, out: Array) -> None:
    """out = first and second, of spikes."""
    for t in range(len(out)):
        a, b, to = first[t], second[t], out[t]
        for i in range(begin, end):
            to[i] = a[i] & b[i]


@njit(cache=CACHE, nogil=True, fastmath=FASTMATH)
def first_without_second(first: Array, second: Array, begin: int, end: int, out: Array) -> None:
    """out = first · (1 - second), of spikes."""
    for t in range(len(out)):
        a, b, to = first[t], second[t], out[t]
        for i in range(begin, end):
            to[i] = a[i] & (b[i] ^ np.uint8(1))


@njit(cache=CACHE, nogil=True, fastmath=FASTMATH)
def scatter(values: Array, index: Array, begin: int, end: int, out: Array) -> None:
    """out[t, p, index[c]] = values[t, p, c]; values (T, P, C), out (T, P, wide), 0 elsewhere."""
    for t in range(len(values)):
        for p in range(begin, end):
            source, to = values[t, p], out[t, p]
            for c in range(len(index)):
                to[np.uint64(index[c])] = source[c]
