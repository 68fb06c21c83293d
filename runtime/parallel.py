"""A batch on several threads: samples are independent, and the kernels release Python's lock."""

from concurrent.futures import Executor
from typing import Protocol

import numpy as np

from soul_deploy.runtime.files import Array


class Runner(Protocol):
    """What runs a batch; see runtime.network.Network."""

    def run(self, x: Array) -> Array:
        """Class scores (B, classes)."""


def run_on_threads(network: Runner, x: Array, pool: Executor | None, threads: int) -> Array:
    """`network.run(x)`, with the samples of the batch dealt to `threads` tasks of `pool`.

    Each sample is computed as on one thread, so the scores are the same to the bit. x is
    (B, C, H, W) or (T, B, C, H, W); a batch of one runs on the caller's thread.
    """
    axis = 1 if x.ndim == 5 else 0
    parts = min(threads, x.shape[axis]) if x.ndim >= 4 else 1
    if pool is None or parts < 2:
        return network.run(x)
    return np.concatenate(list(pool.map(network.run, np.array_split(x, parts, axis))))
