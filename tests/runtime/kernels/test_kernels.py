"""Every kernel against its naive twin, compiled and (NUMBA_DISABLE_JIT=1) as plain Python."""

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import naive
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from numba.core.dispatcher import Dispatcher
from projections import Case, dyadic, equations, layer_of, run_in_turn, values_of

from soul_deploy.runtime.engine.inputs import by_step, to_channel_last
from soul_deploy.runtime.equations import NeuronEquation
from soul_deploy.runtime.format.network import EdgeKind, PoolLayer, ReadoutLayer, Shape
from soul_deploy.runtime.kernels import bit_planes, rows
from soul_deploy.runtime.kernels import maps as mapping
from soul_deploy.runtime.kernels import synapses as kernels
from soul_deploy.runtime.kernels.bit_planes import convolve_kernel
from soul_deploy.runtime.kernels.gather import convolve_gathered, fire_gathered
from soul_deploy.runtime.kernels.kept import KernelCache
from soul_deploy.runtime.kernels.neurons import LANE_BLOCK, update_kernel
from soul_deploy.runtime.kernels.simd import compiled
from soul_deploy.runtime.kernels.steps import LeakyForm, form_of, numbers_of
from soul_deploy.runtime.kernels.synapses import SOURCE_BLOCK
from soul_deploy.runtime.kernels.time_vectorised import (
    SPIKE_BLOCK,
    gather_lanes,
    lanes_for,
    multiply_lanes,
    start_lanes,
)
from soul_deploy.runtime.ops import counting
from soul_deploy.runtime.ops.fan_out import fanout_map
from soul_deploy.runtime.plan.forms import Form, possible_forms
from soul_deploy.runtime.plan.layer_plan import plan_layer
from soul_deploy.runtime.plan.readout import readout_region
from soul_deploy.runtime.plan.regions import (
    current_region,
    currents_shape,
    lanes_of,
    map_region,
    scatter_spikes_region,
)

Array = npt.NDArray[Any]
KINDS: tuple[EdgeKind, ...] = ("spike", "graded", "analog")


@st.composite
def convolution_cases(draw: st.DrawFn) -> Case:
    rng = np.random.default_rng(draw(st.integers(0, 2**20)))
    groups = draw(st.sampled_from((1, 1, 2, 3)))
    channels, out = (groups * draw(st.integers(1, 3)) for _ in range(2))
    axes = [_axis(draw) for _ in range(2)]
    size, kernel, stride, padding, dilation, positions, reach = zip(*axes, strict=True)
    kind = draw(st.sampled_from(KINDS))
    steps = draw(st.sampled_from((1, 2, 3, 5, 17)))
    return Case(
        dyadic((out, channels // groups, *kernel), rng, draw(st.sampled_from((1.0, 0.3)))),
        dyadic((out,), rng) if draw(st.booleans()) else None,
        values_of(kind, (steps, channels, *size), rng),
        kind,
        draw(st.booleans()),
        {
            "stride": stride,
            "padding": padding,
            "dilation": dilation,
            "groups": groups,
            "out_shape": (out, *positions),
            "reach": reach,
        },
    )


def _axis(draw: st.DrawFn) -> tuple[int, ...]:
    """(size, kernel, stride, padding, dilation, outputs, reach) along one axis."""
    stride, padding = draw(st.integers(1, 3)), draw(st.integers(0, 2))
    dilation, kernel = draw(st.integers(1, 2)), draw(st.integers(1, 3))
    span = dilation * (kernel - 1) + 1
    size = draw(st.integers(max(1, span - 2 * padding), 6))
    largest = (size + 2 * padding - span) // stride + 1
    outputs = draw(st.integers(max(1, largest - 1), largest))
    return size, kernel, stride, padding, dilation, outputs, draw(st.integers(size - 1, size))


@st.composite
def matrix_cases(draw: st.DrawFn) -> Case:
    rng = np.random.default_rng(draw(st.integers(0, 2**20)))
    shapes = st.sampled_from(((3,), (2 * SOURCE_BLOCK + 3,), (2, 3, 2), (9,), (SPIKE_BLOCK + 7,)))
    in_shape = draw(shapes)
    out_shape = draw(shapes if math.prod(in_shape) < SPIKE_BLOCK else st.sampled_from(((3,), (9,))))
    kind = draw(st.sampled_from(KINDS))
    size = math.prod(out_shape), math.prod(in_shape)
    return Case(
        dyadic(size, rng, draw(st.sampled_from((1.0, 0.3)))),
        dyadic((size[0],), rng) if draw(st.booleans()) else None,
        values_of(kind, (draw(st.sampled_from((1, 2, 3, 5, 17))), *in_shape), rng),
        kind,
        draw(st.booleans()),
        {"out_shape": out_shape},
    )


def forms(case: Case) -> list[Form]:
    """Those of the case that leave currents."""
    possible = possible_forms(layer_of(case))
    return [form for form in possible if form != "planes"]


def currents(case: Case, form: Form, parts: int = 1) -> Array:
    """What the bias and synapse kernels make of the case, channel-major (T, ...)."""
    layer = layer_of(case)
    source = np.ascontiguousarray(to_channel_last(case.values, layer.in_shape))
    ready, size = plan_layer(layer, form), math.prod(layer.out_shape)
    current = np.full(currents_shape(layer, ready, len(source)), np.nan, np.float32)
    lanes = lanes_of(layer, ready, len(source))
    run_in_turn(current_region(layer, ready, source, current, lanes=lanes, partitions=parts))
    stepwise = np.ascontiguousarray(current.T[: len(source)]) if lanes else current
    shape = layer.out_shape
    by_channel = stepwise.reshape(len(source), -1, shape[0] if len(shape) == 3 else size)
    return by_step(by_channel[None], shape)[:, 0]


@given(convolution_cases(), st.integers(1, 4))
def test_convolution_currents(case: Case, parts: int) -> None:
    expected = naive.convolve(case.values, case.weight, case.bias, **case.geometry)
    for form in forms(case):
        np.testing.assert_array_equal(currents(case, form, parts), expected)


@given(matrix_cases(), st.integers(1, 4))
def test_matrix_currents(case: Case, parts: int) -> None:
    flat = case.values.reshape(len(case.values), -1)
    expected = naive.multiply(flat, case.weight, case.bias)
    (form,) = forms(case)
    np.testing.assert_array_equal(currents(case, form, parts).reshape(expected.shape), expected)


@given(convolution_cases())
def test_convolution_counts(case: Case) -> None:
    values = case.values if case.kind != "analog" else (case.values != 0).astype(np.uint8)
    expected = naive.count_convolution(values, case.weight, **case.geometry)
    assert counted(case) == (expected if case.kind != "analog" else (expected[0],))


@given(matrix_cases())
def test_matrix_counts(case: Case) -> None:
    flat = case.values.reshape(len(case.values), -1)
    expected = naive.count_matrix(np.ceil(np.abs(flat)), case.weight)
    assert counted(case) == (expected if case.kind != "analog" else (expected[0],))


def counted(case: Case) -> tuple[int, ...]:
    layer = layer_of(case)
    values = to_channel_last(case.values, layer.in_shape)[None]
    silent = counting.neuron_steps(layer, np.zeros((1, 1, *layer.out_shape), np.bool_))
    counts = (counting.projection_steps(layer, values) + silent).total()
    if case.kind == "analog":
        assert counts.synops == counts.events_in == counts.touched == 0
        return (counts.macs_effective,)
    assert counts.events_in == np.count_nonzero(case.values)
    assert counts.spikes_in == case.values.sum()
    return counts.synops_events, counts.synops, counts.touched


@given(convolution_cases())
def test_fanout_is_the_number_of_nonzero_synapses_inside(case: Case) -> None:
    found = fanout_map(layer_of(case).synapses)
    for c, y, x in np.ndindex(*case.values.shape[1:]):
        synapses = naive.targets_of(c, y, x, case.weight, **case.geometry)
        assert found[c, y, x] == sum(w != 0 for *_, w in synapses)


@given(equations(), st.integers(1, 5), st.booleans(), st.booleans(), st.integers(0, 2**20))
def test_the_update_equals_the_equation_bit_for_bit(
    neuron: NeuronEquation, steps: int, repeated: bool, carry: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    current = rng.normal(0.4, 1.0, (1 if repeated else steps, 37)).astype(np.float32)
    current[:, :9] = np.float32(neuron.v_threshold)  # ties and near-ties
    current[:, 9:12] = np.nextafter(np.float32(neuron.v_threshold), np.float32(9))
    v = rng.normal(0, 0.5, 37).astype(np.float32)
    start = v.copy() if carry else np.full(37, neuron.rest, np.float32)
    spikes = np.empty((steps, 37), np.uint8)
    update_kernel(form_of(neuron), 0)(current, numbers_of(neuron, 1), carry, v, spikes, 0, 20)
    update_kernel(form_of(neuron), 0)(current, numbers_of(neuron, 1), carry, v, spikes, 20, 37)
    expected, last = naive.simulate(
        current, steps, neuron.charge, neuron.constant, neuron.v_threshold, neuron.v_reset,
        neuron.fire, start,
    )  # fmt: skip
    np.testing.assert_array_equal(spikes, expected)
    np.testing.assert_array_equal(v, last)
    stepwise, membrane = [], start
    for t in range(steps):
        fired, membrane = neuron.step(membrane, current[0 if repeated else t])
        stepwise.append(fired)
    np.testing.assert_array_equal(spikes, np.array(stepwise))
    np.testing.assert_array_equal(v, membrane)


@given(equations(), st.integers(2, 9), st.booleans(), st.integers(0, 2**20))
def test_the_lane_update_equals_the_update_step_by_step(
    neuron: NeuronEquation, steps: int, carry: bool, seed: int
) -> None:
    """Currents (n, lanes) give the same spikes and membranes; spare lanes are ignored."""
    rng, n, lanes = np.random.default_rng(seed), 2 * LANE_BLOCK + 5, lanes_for(steps)
    current = rng.normal(0.4, 1.0, (steps, n)).astype(np.float32)
    current[:, :9] = np.float32(neuron.v_threshold)
    v = rng.normal(0, 0.5, n).astype(np.float32)
    start = v.copy() if carry else np.full(n, neuron.rest, np.float32)
    side_by_side = np.full((n, lanes), np.nan, np.float32)
    side_by_side[:, :steps] = current.T
    spikes, turned = np.empty((steps, n), np.uint8), np.empty((lanes, LANE_BLOCK), np.float32)
    for bounds in ((300, n), (0, 300)):
        update_kernel(form_of(neuron), lanes)(
            side_by_side, numbers_of(neuron, 1), carry, v, spikes, *bounds, 0, turned
        )
    expected, last = naive.simulate(
        current, steps, neuron.charge, neuron.constant, neuron.v_threshold, neuron.v_reset,
        neuron.fire, start,
    )  # fmt: skip
    np.testing.assert_array_equal(spikes, expected)
    np.testing.assert_array_equal(v, last)


@given(st.integers(2, 9), st.lists(st.booleans(), min_size=1, max_size=12), st.integers(0, 99))
def test_pick_lanes(steps: int, live: list[bool], seed: int) -> None:
    lanes, index = lanes_for(steps), np.flatnonzero(live).astype(np.uint32)
    current = dyadic((len(live), lanes), np.random.default_rng(seed))
    gathered = np.full((len(index), lanes), np.nan, np.float32)
    half = len(index) // 2
    gather_lanes(current, index, half, len(index), gathered)
    gather_lanes(current, index, 0, half, gathered)
    np.testing.assert_array_equal(gathered, current[np.array(live)])


@pytest.mark.parametrize(("steps", "lanes"), [(1, 0), (2, 4), (4, 4), (5, 8), (16, 16), (17, 0)])
def test_lanes_for(steps: int, lanes: int) -> None:
    assert lanes_for(steps) == lanes


def test_an_update_covers_neurons_beyond_one_block() -> None:
    neuron = NeuronEquation("integrate", 1.0, 1.0, None, "ge")
    current = np.linspace(0, 2, 2500, dtype=np.float32)[None]
    spikes, v = np.empty((2, 2500), np.uint8), np.empty(2500, np.float32)
    update_kernel(form_of(neuron), 0)(current, numbers_of(neuron, 1), False, v, spikes, 0, 2500)
    np.testing.assert_array_equal(
        spikes, [current[0] >= 1, current[0] - (current[0] >= 1) + current[0] >= 1]
    )


@given(
    st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(3, 6), st.integers(3, 6)),
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.booleans(),
    st.integers(0, 2**20),
)
@example((2, 3, 5, 4), (2, 2), (2, 2), False, 1)  # a kernel of its own
@example((1, 2, 4, 6), (2, 2), (1, 3), False, 2)
def test_max_pool(
    shape: Shape, kernel: tuple[int, int], stride: tuple[int, int], padded: bool, seed: int
) -> None:
    padding = (kernel[0] // 2, kernel[1] // 2) if padded else (0, 0)
    spikes = values_of("graded", shape, np.random.default_rng(seed))
    expected = naive.max_pool(spikes, kernel, stride, padding)
    pool = PoolLayer("m", "s", shape[1:], expected.shape[1:], kernel, stride, padding)
    source = np.ascontiguousarray(to_channel_last(spikes, shape[1:]))
    out = np.empty((shape[0], math.prod(expected.shape[2:]), shape[1]), np.uint8)
    run_in_turn(map_region(pool, [source], out, partitions=1 + seed % 3))
    np.testing.assert_array_equal(by_step(out[None], pool.out_shape)[:, 0], expected)


@given(st.integers(1, 3), st.lists(st.booleans(), min_size=1, max_size=12), st.integers(0, 2**20))
def test_pick_and_place(steps: int, live: list[bool], seed: int) -> None:
    rng = np.random.default_rng(seed)
    index = np.flatnonzero(live).astype(np.uint32)
    current = dyadic((steps, len(live)), rng)
    gathered = np.full((steps, len(index)), np.nan, np.float32)
    half = len(index) // 2
    mapping.gather_currents(current, index, 0, half, gathered)
    mapping.gather_currents(current, index, half, len(index), gathered)
    spikes = values_of("spike", (steps, len(index)), rng)
    full = np.zeros((steps, len(live)), np.uint8)
    run_in_turn(scatter_spikes_region(spikes, index, full, partitions=1 + seed % 3))
    for t in range(steps):
        at = 0
        for i, kept in enumerate(live):
            assert full[t, i] == (spikes[t, at] if kept else 0)
            assert not kept or gathered[t, at] == current[t, i]
            at += kept


@given(st.integers(1, 3), st.lists(st.booleans(), min_size=1, max_size=12), st.integers(0, 2**20))
def test_silence(steps: int, dead: list[bool], seed: int) -> None:
    rng = np.random.default_rng(seed)
    index = np.flatnonzero(dead).astype(np.uint32)
    spikes = values_of("spike", (steps, len(dead)), rng)
    found, half = spikes.copy(), len(index) // 2
    mapping.mask_out(found, index, 0, half)
    for t in range(steps):
        for i in range(len(dead)):
            masked_out = dead[i] and sum(dead[:i]) < half
            assert found[t, i] == (0 if masked_out else spikes[t, i])
    mapping.mask_out(found, index, half, len(index))
    np.testing.assert_array_equal(found, spikes * ~np.array(dead))


@given(st.booleans(), st.booleans(), st.integers(1, 4), st.integers(0, 2**20))
def test_readout(linear: bool, biased: bool, steps: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    spikes = values_of("spike", (steps, 6, 2, 3), rng)
    weight = dyadic((3, 6), rng) if linear else None
    bias = dyadic((3,), rng) if linear and biased else None
    votes = 1 if linear else 2
    layer = ReadoutLayer("h", "s", (6, 2, 3), 3, True, weight, bias, votes, 6 * votes)
    scores = np.empty(3, np.float32)
    source = np.ascontiguousarray(to_channel_last(spikes, layer.in_shape))
    run_in_turn(readout_region(layer, source, scores))
    sums = naive.sum_spikes(spikes)
    scale = 1.0 / (steps * 6 * votes)
    expected = (
        naive.vote(sums, votes, scale) if weight is None else naive.score(sums, weight, bias, scale)
    )
    np.testing.assert_array_equal(scores, expected)


@given(st.lists(st.sampled_from((0, 0, 1, 3)), max_size=12))
def test_collect_events(values: list[int]) -> None:
    rows, amounts = np.empty(len(values) + 1, np.uint32), np.empty(len(values) + 1, np.float32)
    count = kernels.collect_events(np.array(values, np.uint8), 5, rows, amounts)
    found = list(zip(rows[:count] - 5, amounts[:count], strict=True))
    assert found == naive.nonzero(np.array(values))


@pytest.mark.parametrize("sparse", [False, True])
def test_a_one_step_flip_would_be_seen(sparse: bool) -> None:
    """The twin comparison goes red: one changed weight changes the currents."""
    rng = np.random.default_rng(3)
    geometry = dict.fromkeys(("stride", "dilation"), (1, 1)) | {
        "padding": (1, 1), "groups": 1, "out_shape": (2, 3, 3), "reach": (3, 3)
    }  # fmt: skip
    case = Case(
        dyadic((2, 1, 3, 3), rng), None, np.ones((1, 1, 3, 3), np.uint8), "spike", sparse, geometry
    )
    expected = naive.convolve(case.values, case.weight, None, **geometry)
    before = [currents(case, form) for form in forms(case)]
    case.weight[1, 0, 2, 0] += 1
    for form, same in zip(forms(case), before, strict=True):
        np.testing.assert_array_equal(same, expected)
        assert (currents(case, form) != expected).any()


def test_no_kernel_uses_fastmath() -> None:
    """Compiled as a strict sum, without Python's lock; functions made on demand included."""
    neuron = NeuronEquation("integrate", 1.0, 1.0, None, "gt")
    made = [
        update_kernel(form_of(neuron), 0),
        update_kernel(form_of(neuron), 4),
        start_lanes(4),
        multiply_lanes(4),
    ]
    made += [convolve_kernel(LeakyForm("integrate", "gt", False), 4, 2, 2)]
    made += [convolve_gathered(2, graded) for graded in (False, True)]
    made += [fire_gathered(2, False, LeakyForm("integrate", "gt", False))]
    modules = mapping, kernels, rows, bit_planes
    made += [value for module in modules for value in vars(module).values()]
    found = [kernel for kernel in made if isinstance(kernel, Dispatcher)]
    assert len(found) >= 20 or not compiled()
    for kernel in found:
        options = kernel.targetoptions
        assert (options["fastmath"], options["nogil"]) == (False, True), kernel
        assert isinstance(vars(kernel)["_cache"], KernelCache)


CACHE_PROBE = """
import numpy as np
from soul_deploy.runtime.kernels.kept import KernelCache
from soul_deploy.runtime.kernels.neurons import LANE_BLOCK
from soul_deploy.runtime.equations import NeuronEquation
from soul_deploy.runtime.kernels.time_vectorised import multiply_lanes, start_lanes
from soul_deploy.runtime.kernels.neurons import update_kernel
from soul_deploy.runtime.kernels.steps import form_of, numbers_of
neuron = NeuronEquation("soul_lif_decay", 2.0, 1.0, None, "ge")
numbers = numbers_of(neuron, 1)
v, current = np.zeros(3, np.float32), np.ones((1, 3), np.float32)
spikes = np.zeros((2, 3), np.uint8)
update_kernel(form_of(neuron), 0)(current, numbers, False, v, spikes, 0, 3)
lanes, turned = np.ones((3, 4), np.float32), np.zeros((4, LANE_BLOCK), np.float32)
start_lanes(4)(lanes, np.ones(3, np.float32), 0, 3)
starts = np.array([0, 2], np.uint32)
rows = (starts[:-1], starts[1:], np.zeros(1, np.int64), np.array([0, 2], np.uint16))
scratch = (np.zeros(1, np.uint8), np.zeros(1, np.uint32), np.zeros((1, 4), np.float32))
values = np.ones((2, 1, 1), np.uint8)
multiply_lanes(4)(values, *rows, np.ones(2, np.float32), *scratch, lanes)
update_kernel(form_of(neuron), 4)(lanes, numbers, False, v, spikes, 0, 3, 0, turned)
updates = [update_kernel(form_of(neuron), lanes) for lanes in (0, 4)]
for kernel in (*updates, start_lanes(4), multiply_lanes(4)):
    print(sum(kernel.stats.cache_hits.values()), sum(kernel.stats.cache_misses.values()))
"""


def test_compiled_kernels_are_found_again_by_a_fresh_process(tmp_path: Path) -> None:
    env = {k: v for k, v in os.environ.items() if k != "NUMBA_DISABLE_JIT"}
    env["NUMBA_CACHE_DIR"] = str(tmp_path)
    seen = [
        subprocess.run(
            [sys.executable, "-c", CACHE_PROBE], env=env, check=True, capture_output=True, text=True
        ).stdout.split()
        for _ in range(2)
    ]
    assert seen == [["0", "1"] * 4, ["1", "0"] * 4]
