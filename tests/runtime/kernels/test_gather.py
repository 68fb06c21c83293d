"""Gathered rows against naive twins: sums of lists, layers with their neurons, tiles, memory."""

import math
from dataclasses import replace

import naive
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from projections import Case, dyadic, equations, layer_of, run_in_turn, values_of

from soul_deploy.base import Array
from soul_deploy.runtime.engine.inputs import to_channel_last
from soul_deploy.runtime.equations import NeuronEquation
from soul_deploy.runtime.format.network import EdgeKind
from soul_deploy.runtime.kernels import gather, listed
from soul_deploy.runtime.kernels.cache import cached_njit
from soul_deploy.runtime.kernels.listed import AHEAD, UNROLLED, sum_lists
from soul_deploy.runtime.kernels.simd import VECTOR, compiled, has_mask_registers
from soul_deploy.runtime.plan import regions
from soul_deploy.runtime.plan.forms import possible_forms
from soul_deploy.runtime.plan.layer_plan import plan_layer

KINDS: tuple[EdgeKind, ...] = ("spike", "graded")


@st.composite
def gathered_cases(draw: st.DrawFn) -> Case:
    """Dense rows with more than one block, blocks that are padded, lists of up to 70 events."""
    rng = np.random.default_rng(draw(st.integers(0, 2**20)))
    groups = draw(st.sampled_from((1, 1, 2)))
    channels = groups * draw(st.sampled_from((1, 5, 64, 70)))
    out = groups * draw(st.sampled_from((1, 40)))
    kernel, stride = draw(st.sampled_from(((1, 1), (3, 3), (2, 3)))), draw(st.integers(1, 2))
    size = draw(st.sampled_from(((1, 1), (3, 4), (5, 3))))
    shape = tuple((n + 2 - k) // stride + 1 for n, k in zip(size, kernel, strict=True))
    kind, steps = draw(st.sampled_from(KINDS)), draw(st.sampled_from((1, 2, 4, 5)))
    return Case(
        dyadic((out, channels // groups, *kernel), rng),
        dyadic((out,), rng) if draw(st.booleans()) else None,
        values_of(kind, (steps, channels, *size), rng),
        kind,
        sparse=False,
        geometry={
            "stride": (stride, stride),
            "padding": (1, 1),
            "dilation": (1, 1),
            "groups": groups,
            "out_shape": (out, *shape),
            "reach": size,
        },
    )


@settings(max_examples=20 if compiled() else 4)  # each equation is a kernel of its own
@given(gathered_cases(), equations(), st.integers(1, 3), st.booleans(), st.booleans())
def test_a_gathered_layer_equals_sums_and_the_equation(
    case: Case, neuron: NeuronEquation, parts: int, carry: bool, masked: bool
) -> None:
    layer, rng = layer_of(case, neuron), np.random.default_rng(len(case.weight))
    channels, size = layer.out_shape[0], math.prod(layer.out_shape[1:])
    if masked:
        layer = replace(layer, live=np.arange(channels * size) % 17 != 0)
    plan = plan_layer(layer, "gather")
    currents = naive.convolve(case.values, case.weight, case.bias, **case.geometry)
    flat = currents.reshape(len(currents), channels, -1).transpose(0, 2, 1)
    flat = np.ascontiguousarray(flat.reshape(len(currents), -1), np.float32)
    start = np.full(flat.shape[1], neuron.rest, np.float32)
    if carry:
        start = rng.normal(0, 0.5, flat.shape[1]).astype(np.float32)
    expected, last = naive.simulate(
        flat, len(flat), neuron.charge, neuron.constant, neuron.v_threshold, neuron.v_reset,
        neuron.fire, start,
    )  # fmt: skip
    if layer.live is not None:
        expected = expected * layer.live
    source = np.ascontiguousarray(to_channel_last(case.values, layer.in_shape))
    v, spikes = start.copy(), np.full(flat.shape, 9, np.uint8)
    assume(plan.gather_index is None)  # compacted neurons run apart
    made = regions.spiking_regions(
        layer, plan, source, np.zeros((0, 0), np.float32), v, spikes, carry=carry, partitions=parts
    )
    assert next(call.work for call in made[0][0]) == "fused"
    run_in_turn(made[0])
    np.testing.assert_array_equal(spikes, expected)
    if carry:
        np.testing.assert_array_equal(v, last)


@pytest.mark.parametrize("graded", [False, True])
@pytest.mark.parametrize("vectors", [1, 2, 4])
def test_lists_of_any_length_and_number(vectors: int, graded: bool) -> None:
    """Pairs of lists and the one that is left over, lengths around multiples of UNROLLED."""
    rng, wide = np.random.default_rng(vectors), vectors * VECTOR

    @cached_njit
    def summed(
        weight: Array, rows: Array, amounts: Array, begins: Array, places: Array, last: int,
        length: int, sums: Array,
    ) -> None:  # fmt: skip
        given = rows, amounts, begins, places
        sum_lists(
            weight, 3, given[0], given[1], given[2], given[3], 1, last, length, sums, vectors,
            graded,
        )  # fmt: skip

    weight = rng.normal(size=13 * wide).astype(np.float32)
    rows = rng.integers(0, 10, 60 + UNROLLED).astype(np.uint16)
    amounts = rng.integers(1, 5, 60).astype(np.float32)
    begins = rng.integers(0, 40, 8 + AHEAD).astype(np.uint32)
    places = np.concatenate([rng.permutation(8), np.zeros(AHEAD)]).astype(np.uint32)
    for last in (1, 2, 3, 8):
        for length in range(2 * UNROLLED + 2):
            found = rng.normal(size=(8, wide)).astype(np.float32)
            expected = found.copy()
            given = weight, 3, rows, amounts, begins, places, 1, last, length
            listed._plain_sum_lists(*given, expected, vectors, graded)
            summed(weight, rows, amounts, begins, places, last, length, found)
            np.testing.assert_array_equal(found, expected)


def test_tiles_of_rows_change_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    geometry = {"stride": (1, 1), "padding": (1, 1), "dilation": (1, 1), "groups": 1}
    case = Case(
        rng.normal(size=(20, 9, 3, 3)).astype(np.float32), None,
        values_of("spike", (3, 9, 7, 6), rng), "spike", False,
        geometry | {"out_shape": (20, 7, 6), "reach": (7, 6)},
    )  # fmt: skip
    layer, found = layer_of(case), []
    source = np.ascontiguousarray(to_channel_last(case.values, layer.in_shape))
    plan = plan_layer(layer, "gather")
    for tile in (7, 3, 1):
        monkeypatch.setattr(gather, "rows_of_tile", lambda rows, sums, tile=tile: tile)
        current = np.full((3, math.prod(layer.out_shape)), np.nan, np.float32)
        run_in_turn(regions.current_region(layer, plan, source, current, lanes=0, partitions=1))
        found.append(current)
    np.testing.assert_array_equal(found[1], found[0])
    np.testing.assert_array_equal(found[2], found[0])


def test_tiles_fill_the_share_of_the_cache_evenly() -> None:
    wide = 2 * VECTOR
    for rows in range(1, 40):
        for columns in (1, 32, 4096, 1 << 20):
            tile = gather.rows_of_tile(rows, 4 * columns * wide)
            assert 1 <= tile <= rows
            assert tile == 1 or 4 * tile * columns * wide < 1 << 25
    assert gather.rows_of_tile(0, wide) == 0


def test_blocks_are_wide_but_not_padded() -> None:
    assert gather.vectors_for(VECTOR, 1 << 15) == 1
    assert gather.vectors_for(256, 1 << 15) == 2
    assert gather.vectors_for(3 * VECTOR, 16) == (4 if has_mask_registers() else 2)  # never 3
    assert gather.vectors_for(6 * VECTOR, 16) == 2
    assert gather.vectors_for(256, 16) == (4 if has_mask_registers() else 2)


def test_more_channels_than_a_list_can_name_are_not_gathered() -> None:
    for channels, forms in ((1 << 16, ("dense", "gather")), ((1 << 16) + 1, ("dense",))):
        geometry = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": 1}
        case = Case(
            np.ones((1, channels, 1, 1), np.float32), None, np.ones((1, channels, 1, 1), np.uint8),
            "spike", False, geometry | {"out_shape": (1, 1, 1), "reach": (1, 1)},
        )  # fmt: skip
        assert possible_forms(layer_of(case)) == forms
