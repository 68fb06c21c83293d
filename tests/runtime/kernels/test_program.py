"""Programs: kernels find the arguments that Python would give them, in order, and what they raise
arrives.
"""

from typing import Any

import numpy as np
import pytest

from soul_deploy.runtime.kernels.cache import cached_njit
from soul_deploy.runtime.kernels.program import Bound, Program
from soul_deploy.runtime.kernels.simd import compiled


@cached_njit
def note(seen: np.ndarray, at: int, value: Any) -> None:
    seen[at] = value


@cached_njit
def scale(
    values: np.ndarray, factor: np.float32, negative: bool, few: tuple[np.ndarray, int],
    pair: tuple[tuple[np.ndarray, np.ndarray], bool], out: np.ndarray,
) -> None:  # fmt: skip
    (weights, begin), ((more, bits), added) = few, pair
    for i in range(values.shape[0]):
        for j in range(values.shape[1]):
            product = factor * values[i, j] * weights[begin + j]
            if added:
                product += more[i]
            out[i, j] = -product if negative and bits[i] else product


@cached_njit
def divide(a: int, b: int, out: np.ndarray) -> None:
    if b == 0:
        raise ZeroDivisionError("by none")
    out[0] = a // b


@cached_njit
def count_down(left: np.ndarray) -> int:
    left[0] -= 1
    return 1 if left[0] > 0 else 0


def test_every_kind_of_argument_arrives() -> None:
    rng = np.random.default_rng(3)
    wide = rng.random((7, 22)).astype(np.float32)
    values = wide[1::2, ::-3]  # strides of its own, one below 0
    weights, more = rng.random(20).astype(np.float32), rng.random(9).astype(np.float32)[::2]
    bits = rng.integers(0, 2, 9).astype(np.uint8)
    for negative in (False, True):
        for added in (False, True):
            expected, found = np.zeros((2, *values.shape), np.float32)
            given = values, np.float32(0.3), negative, (weights, 5), ((more, bits), added)
            scale(*given, expected)
            Program([(scale, (*given, found))]).run()
            assert found.any()
            np.testing.assert_array_equal(found, expected)


def test_calls_run_in_order_and_again() -> None:
    seen = np.zeros(2, np.int64)
    calls: list[Bound] = [(note, (seen, i % 2, i - 3)) for i in range(8)]
    program = Program(calls)
    for _ in range(3):
        seen[:] = 0
        program.run()
        assert seen.tolist() == [3, 4]
    program.run(at=8)
    Program([]).run()


def test_a_kernel_that_raises_ends_a_program() -> None:
    out, seen = np.zeros(1, np.int64), np.zeros(2, np.int64)
    calls: list[Bound] = [
        (note, (seen, 0, 1)), (divide, (7, 2, out)), (divide, (7, 0, out)), (note, (seen, 1, 1)),
    ]  # fmt: skip
    with pytest.raises(ZeroDivisionError, match="by none"):
        Program(calls).run()
    assert (out.tolist(), seen.tolist()) == ([3], [1, 0])


def test_a_call_that_is_delayed_is_asked_again() -> None:
    left, seen, asked = np.array([3]), np.zeros(1, np.int64), list[int]()
    calls: list[Bound] = [(count_down, (left,)), (note, (seen, 0, 9))]
    Program(calls).run(lambda: asked.append(int(seen[0])))
    assert (asked, left[0], seen[0]) == ([0, 0], 0, 9)


@pytest.mark.skipif(not compiled(), reason="without compilation no slots are made")
def test_a_number_that_a_slot_would_change_is_refused() -> None:
    """As an integer 0.5 is 0: a kernel that takes float64 would compute with something else."""
    with pytest.raises(TypeError, match=r"0\.5: a slot holds arrays, float32, integers and bool"):
        Program([(divide, (0.5, 2, np.zeros(1, np.int64)))])
