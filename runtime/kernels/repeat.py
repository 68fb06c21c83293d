"""The innermost loop of the kernels on lanes over a list of passes: what the bench calls a roof."""

from functools import cache

import numpy as np
from numba import njit

from soul_deploy.base.files import Array
from soul_deploy.runtime.kernels.cache import CACHE
from soul_deploy.runtime.kernels.config import FASTMATH
from soul_deploy.runtime.kernels.simd import add_row
from soul_deploy.runtime.kernels.time_vectorised import Kernel, fetch_row


@cache
def repeat_lanes(lanes: int) -> Kernel:
    """repeat(begins, ends, bases, events, ahead, targets, weight, amounts, out): listed passes.

    ahead: a row's cache lines are asked for so many passes before it; 0: they are not.
    """

    @njit(cache=CACHE, nogil=True, fastmath=FASTMATH)
    def repeat(
        begins: Array,
        ends: Array,
        bases: Array,
        events: Array,
        ahead: int,
        targets: Array,
        weight: Array,
        amounts: Array,
        out: Array,
    ) -> None:
        count = np.uint64(len(begins))
        for i in range(count):
            if ahead > 0 and i + np.uint64(ahead) < count:
                j = np.uint64(i + np.uint64(ahead))
                fetch_row(targets, weight, begins[j], ends[j])
            add_row(out, bases[i], targets, weight, begins[i], ends[i], amounts, events[i], lanes)

    return repeat
