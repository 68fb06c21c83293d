"""Sums of integers over bit planes: the vector instructions against the loop beside them."""

from typing import Any

import numpy as np
import pytest
from numba import njit

from soul_deploy.runtime.kernels.fours import STEP_BITS, TOGETHER
from soul_deploy.runtime.kernels.integer_fours import (
    _plain_sums_of_integers,
    positions_of,
    sums_of_integers,
    weights_for,
)

CASES: list[tuple[Any, Any, int, int]] = [
    (np.int16, np.uint8, 2, 1),
    (np.int16, np.uint16, 4, 2),
    (np.int16, np.uint32, 7, 2),
    (np.int32, np.uint8, 2, 1),
    (np.int32, np.uint16, 4, 1),
    (np.int32, np.uint32, 5, 1),
]


@pytest.mark.parametrize(("kind", "word", "steps", "lines"), CASES)
def test_vectors_sum_as_the_loop_does(kind: Any, word: Any, steps: int, lines: int) -> None:
    """Sums that begin anywhere, of a share of the weights; nothing else is written."""

    @njit
    def run(words, base, places, weight, begin, end, bias, sums, at, apart):  # type: ignore[no-untyped-def]
        sums_of_integers(
            words, base, places, weight, begin, end, bias, sums, at, apart, lines, steps
        )

    rng, size = np.random.default_rng(steps), positions_of(lines, word)
    words = np.zeros(4 * size + 64, word)
    for t in range(steps):
        fired = rng.random(len(words)) < 0.3
        words |= (fired.astype(word) << word(STEP_BITS * t)).astype(word)
    weight = rng.integers(-127, 128, 6 * TOGETHER).astype(np.int8)
    places = rng.integers(0, len(words) - size - 3, len(weight)).astype(np.int32)
    expected, found = (np.full((steps, size + 9), 5, kind) for _ in range(2))
    begin, end, bias, apart = TOGETHER, 5 * TOGETHER, -77, size + 9
    flat, to = weight.astype(kind), (expected.reshape(-1), found.reshape(-1))
    _plain_sums_of_integers(words, 3, places, flat, begin, end, bias, to[0], 2, apart, lines, steps)
    run(words, 3, places, weights_for(weight, kind), begin, end, bias, to[1], 2, apart)
    np.testing.assert_array_equal(found, expected)
    assert len(np.unique(expected)) > 50
