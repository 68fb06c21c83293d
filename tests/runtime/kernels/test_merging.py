"""The kernels of merges, scattering and analog pooling against their definitions; compiled and
with NUMBA_DISABLE_JIT=1."""

from typing import Any

import naive
import numpy as np
import numpy.typing as npt
from hypothesis import given
from hypothesis import strategies as st

from soul_deploy.runtime.engine.inputs import by_step, to_channel_last
from soul_deploy.runtime.format.map_layers import MergeLayer, PoolLayer, ScatterLayer
from soul_deploy.runtime.plan.regions import Region, map_region, run_calls

Array = npt.NDArray[Any]
KINDS = ("spike", "graded", "analog")


def values(rng: np.random.Generator, kind: str, steps: int, shape: tuple[int, ...]) -> Array:
    if kind == "analog":
        return rng.normal(size=(steps, *shape)).astype(np.float32)
    return rng.integers(0, 2 if kind == "spike" else 8, (steps, *shape)).astype(np.uint8)


def branches_of(
    rng: np.random.Generator, function: str, count: int, steps: int, shape: tuple[int, ...]
) -> list[Array]:
    """Drawn branches; analog ones may be the same at every step."""
    kinds = rng.choice(KINDS if function == "add" else KINDS[:1], count)
    lengths = [1 if k == "analog" and rng.random() < 0.4 else steps for k in kinds]
    return [values(rng, k, n, shape) for k, n in zip(kinds, lengths, strict=True)]


def run_in_turn(stage: Region) -> None:
    """All parts, last first: their order must not matter."""
    for calls in reversed(stage):
        run_calls(calls)


def contiguous(array: Array, shape: tuple[int, ...]) -> Array:
    return np.ascontiguousarray(to_channel_last(array, shape))


@given(
    st.sampled_from(("add", "and", "iand")),
    st.integers(2, 4),
    st.integers(1, 4),
    st.integers(0, 99),
)
def test_merges(function: Any, count: int, steps: int, seed: int) -> None:
    rng, shape = np.random.default_rng(seed), (3, 2, 4)
    count = 2 if function == "iand" else count
    branches = branches_of(rng, function, count, steps, shape)
    expected = naive.merge(function, branches)
    layer = MergeLayer("m", tuple(map(str, range(count))), function, shape)
    out = np.full((len(expected), 8, 3), 7, expected.dtype)
    sources = [contiguous(b, shape) for b in branches]
    run_in_turn(map_region(layer, sources, out, partitions=1 + seed % 3))
    found = by_step(out[None], shape)[:, 0]
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)


@given(st.sampled_from(KINDS), st.sets(st.integers(0, 5), min_size=1), st.integers(0, 99))
def test_scatter(kind: str, places: set[int], seed: int) -> None:
    rng, index = np.random.default_rng(seed), sorted(places)
    shape, wide = (len(index), 2, 3), (6, 2, 3)
    given_values = values(rng, kind, 2, shape)
    out = np.zeros((2, 6, 6), given_values.dtype)
    layer = ScatterLayer("s", "p", shape, wide, np.array(index, np.uint32))
    run_in_turn(map_region(layer, [contiguous(given_values, shape)], out, partitions=1 + seed % 3))
    expected = naive.scatter(given_values, index, 6)
    np.testing.assert_array_equal(by_step(out[None], wide)[:, 0], expected)


@given(
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.booleans(),
    st.integers(0, 99),
)
def test_analog_max_pool(
    kernel: tuple[int, int], stride: tuple[int, int], padded: bool, seed: int
) -> None:
    padding = (kernel[0] // 2 * padded, kernel[1] // 2 * padded)
    shape = (2, 4, 5)
    given_values = values(np.random.default_rng(seed), "analog", 2, shape) - np.float32(1)
    expected = naive.max_pool_analog(given_values, kernel, stride, padding)
    layer = PoolLayer("p", "c", shape, expected.shape[1:], kernel, stride, padding)
    out = np.zeros((2, expected[0, 0].size, 2), np.float32)
    run_in_turn(map_region(layer, [contiguous(given_values, shape)], out, partitions=1 + seed % 3))
    np.testing.assert_array_equal(by_step(out[None], layer.out_shape)[:, 0], expected)
