"""Currents of all steps to the spikes of neurons that mix the steps (`dynamics.parallel`)."""

from collections.abc import Callable
from functools import cache

import numpy as np

from soul_deploy.base import Array
from soul_deploy.runtime import equations
from soul_deploy.runtime.kernels.cache import cached_njit


@cache
def parallel_kernel(fire: equations.FireRule, lanes: bool) -> Callable[..., None]:
    """The compiled update; lanes: of currents (n, lanes), which stand side by side."""
    above = equations.FIRE[fire]

    @cached_njit
    def update(
        current: Array, weight: Array, bias: Array, sent: Array, begin: int, end: int
    ) -> None:
        """Spikes of the neurons from `begin` to `end`: sum of weight · current by step, then bias.

        current (T, n), (1, n), the same at every step, or (n, lanes); weight (T, T); bias (T,);
        sent (T, n) uint8.
        """
        steps = len(sent)
        repeated = not lanes and current.shape[0] == 1
        for t in range(steps):
            for i in range(begin, end):
                h = np.float32(0)
                for s in range(steps):
                    x = current[i, s] if lanes else current[0 if repeated else s, i]
                    h += weight[t, s] * x
                sent[t, i] = above(h + bias[t], np.float32(0))

    return update
