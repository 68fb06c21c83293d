"""Layers on bit planes against naive twins: sums, whole layers, networks."""

import copy
import math
import tracemalloc
from dataclasses import replace
from functools import cache
from typing import Any

import naive
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numba import njit
from projections import Case, dyadic, equations, layer_of, run_in_turn, values_of

from soul_deploy.base import Array
from soul_deploy.base.errors import LimitError, UnknownNameError, UsageError
from soul_deploy.runtime.engine.inputs import to_channel_last
from soul_deploy.runtime.engine.network import Network
from soul_deploy.runtime.equations import NeuronEquation
from soul_deploy.runtime.format.network import (
    EventNetwork,
    Layer,
    PoolLayer,
    PopulationLayer,
    ReadoutLayer,
    SpikingLayer,
)
from soul_deploy.runtime.kernels import simd
from soul_deploy.runtime.kernels.bit_planes import (
    MOST_STEPS,
    MOST_SUMS,
    chunks_of,
    held_of,
    lines_of,
    tile_of,
    word_of,
)
from soul_deploy.runtime.kernels.fours import STEP_BITS, sums_of_fours
from soul_deploy.runtime.plan import plane_regions, planes
from soul_deploy.runtime.plan.buffers import build_buffers
from soul_deploy.runtime.plan.estimate import running_bytes
from soul_deploy.runtime.plan.forms import Form, event_forms
from soul_deploy.runtime.plan.layer_plan import plan_layer
from soul_deploy.runtime.plan.layout import DENSE_FROM

FIRES = NeuronEquation("decay_multiply", 0.5, 0.5, 0.0, "ge")
STEPS = (1, 2, 3, 4, 5, 6, 8, 16, 17, 24)


@st.composite
def plane_cases(draw: st.DrawFn) -> Case:
    """Convolutions with stride 1 whose rows are as long as their input's, on spikes."""
    rng = np.random.default_rng(draw(st.integers(0, 2**20)))
    groups = draw(st.sampled_from((1, 1, 2)))
    channels, out = (groups * draw(st.integers(1, 4)) for _ in range(2))
    kernel_width, dilation = (
        draw(st.integers(1, 5)),
        (draw(st.integers(1, 2)), draw(st.integers(1, 2))),
    )
    margin = dilation[1] * (kernel_width - 1)
    width = draw(st.sampled_from((1, 2, 5, 7, 8, 16, 17, 31, 33)))
    kernel_height, padding = draw(st.integers(1, 3)), (draw(st.integers(0, 2)), -(-margin // 2))
    height = draw(st.integers(1, 9))
    largest = height + 2 * padding[0] - dilation[0] * (kernel_height - 1)
    assume(largest >= 1)
    rows = draw(st.integers(max(1, largest - 1), largest))
    shape = (draw(st.sampled_from(STEPS)), channels, height, width)
    return Case(
        dyadic((out, channels // groups, kernel_height, kernel_width), rng, 0.4),
        dyadic((out,), rng) if draw(st.booleans()) else None,
        values_of("spike", shape, rng),
        "spike",
        sparse=True,
        geometry={
            "stride": (1, 1),
            "padding": padding,
            "dilation": dilation,
            "groups": groups,
            "out_shape": (out, rows, width),
            "reach": (height, width),
        },
    )


def spikes_on_planes(layer: SpikingLayer, values: Array, v: Array | None, parts: int) -> Array:
    """Spikes (T, positions, C_out) of spikes (T, C, H, W); v: membranes to go on with."""
    source = np.ascontiguousarray(to_channel_last(values, layer.in_shape))
    rows, steps = plan_layer(layer, "planes").planes, len(values)
    assert rows is not None and planes.fits_planes(layer)
    columns = layer.in_shape[2]
    pitch = columns + planes.gap_of(rows.moves) + 1  # a larger gap than needed does no harm
    before, behind = rows.needed(pitch, steps)
    behind = max(behind, layer.in_shape[1] * pitch)
    arriving = planes.empty_words(
        layer.in_shape[0], steps, planes.frame_of(columns, pitch, before, behind, steps)
    )
    run_in_turn(plane_regions.pack_region(source, arriving, partitions=parts))
    np.testing.assert_array_equal(planes.map_of(arriving, layer.in_shape), source)
    size = rows.tiling(pitch, steps).size
    frame = planes.frame_of(columns, pitch, 3, size, steps)
    leaving = planes.empty_words(layer.out_shape[0], steps, frame)
    place = positions_in_tiles(layer.out_shape, pitch, steps)
    membranes = np.zeros((layer.out_shape[0], size), np.float32)
    if v is not None:
        membranes[:, place] = v
    live = planes.live_words(layer, pitch, steps, size)
    assert isinstance(layer.neuron, NeuronEquation)
    region = plane_regions.plane_region(
        layer.neuron, rows, live, arriving, membranes, leaving, carry=v is not None,
        partitions=parts,
    )  # fmt: skip
    run_in_turn(region)
    out = np.full((steps, layer.out_shape[1] * layer.out_shape[2], layer.out_shape[0]), 9, np.uint8)
    run_in_turn(plane_regions.unpack_region(leaving, out, partitions=parts))
    np.testing.assert_array_equal(planes.map_of(leaving, layer.out_shape), out)
    inside = np.zeros(frame.length, np.bool_)
    inside[
        frame.front + np.add.outer(np.arange(layer.out_shape[1]) * pitch, np.arange(columns))
    ] = 1
    assert not any(chunk[:, ~inside].any() for chunk in leaving.chunks)
    if v is not None:
        v[...] = membranes[:, place]
    return out


def positions_in_tiles(shape: tuple[int, ...], pitch: int, steps: int) -> Array:
    """Where each position's membrane stands: words of an integer are a line apart."""
    rows = np.arange(shape[1])[:, None] * pitch
    tile, within = np.divmod((rows + np.arange(shape[2])).reshape(-1), tile_of(steps))
    place, h = np.divmod(within, held_of(steps))
    return np.asarray(tile * tile_of(steps) + h * lines_of(steps) * simd.VECTOR + place)


@settings(max_examples=50)  # each equation and T is a kernel of its own
@given(plane_cases(), equations(), st.integers(1, 4), st.booleans(), st.data())
def test_a_layer_on_planes_equals_sums_and_the_equation(
    case: Case, neuron: NeuronEquation, parts: int, carry: bool, data: Any
) -> None:
    layer = layer_of(case, neuron)
    rng = np.random.default_rng(data.draw(st.integers(0, 2**20)))
    if data.draw(st.booleans()):
        live = rng.random(np.prod(layer.out_shape)) < 0.7
        layer = replace(layer, live=live)
        assume(planes.fits_planes(layer))
    currents = naive.convolve(case.values, case.weight, case.bias, **case.geometry)
    channels, size = layer.out_shape[0], layer.out_shape[1] * layer.out_shape[2]
    start = np.full((channels, size), neuron.rest, np.float32)
    if carry:
        start = rng.normal(0, 0.5, start.shape).astype(np.float32)
    flat = np.asarray(currents, np.float32).reshape(len(currents), -1)
    expected, last = naive.simulate(
        flat, len(flat), neuron.charge, neuron.constant, neuron.v_threshold, neuron.v_reset,
        neuron.fire, start.reshape(-1),
    )  # fmt: skip
    if layer.live is not None:
        expected = expected * layer.live.reshape(size, channels).T.reshape(-1)
    v = start.copy() if carry else None
    found = spikes_on_planes(layer, case.values, v, parts)
    by_channel = found.transpose(0, 2, 1).reshape(len(found), -1)
    np.testing.assert_array_equal(by_channel, expected)
    if v is not None:
        np.testing.assert_array_equal(v.reshape(-1), last)


@settings(max_examples=40)  # each T is a kernel of its own
@given(st.sampled_from(STEPS), st.integers(0, 4), st.integers(0, 2**20))
def test_sums_of_fours_add_four_weights_first(steps: int, fours: int, seed: int) -> None:
    """In float32: the sums of four are added in another order than one by one."""
    rng, longest = np.random.default_rng(seed), max(chunks_of(steps))
    tile, held, lines = tile_of(steps), held_of(steps), lines_of(steps)
    words = (rng.integers(0, 1 << 32, 3 * tile + 7) & 0x11111111).astype(word_of(steps))
    places = rng.integers(0, 2 * tile, 4 * fours).astype(np.int32)
    weight, bias = rng.normal(size=4 * fours).astype(np.float32), np.float32(rng.normal())
    apart = lines * simd.VECTOR + 3
    found = np.full(5 + longest * held * apart, 9, np.float32)
    sums_kernel(longest, lines)(words, 7, places, weight, bias, found, 5, apart)
    expected = found.copy()
    for t in range(longest):
        for i in range(tile):
            fired = [int(words[7 + place + i]) >> STEP_BITS * t & 1 for place in places]
            total = bias
            for k in range(0, len(places), 4):
                few = np.float32(0)
                for bit, w in zip(fired[k : k + 4], weight[k : k + 4], strict=True):
                    few = np.float32(few + w) if bit else few
                total = np.float32(total + few)
            expected[5 + (t * held + i % held) * apart + i // held] = total
    np.testing.assert_array_equal(found, expected)


@cache
def sums_kernel(steps: int, lines: int) -> Any:
    @njit
    def run(
        words: Array, base: int, places: Array, weight: Array, bias: np.float32, sums: Array,
        at: int, apart: int,
    ) -> None:  # fmt: skip
        size = len(places)
        sums_of_fours(words, base, places, weight, 0, size, bias, sums, at, apart, lines, steps)

    return run


def test_tiles_fit_into_registers() -> None:
    for steps in range(1, 4 * MOST_STEPS):
        chunks, lines, held = chunks_of(steps), lines_of(steps), held_of(steps)
        assert sum(chunks) == steps and max(chunks) - min(chunks) <= 1
        assert max(chunks) * STEP_BITS <= 8 * word_of(steps).itemsize
        assert lines * held * max(chunks) <= MOST_SUMS < (lines + 1) * held * max(chunks)
        assert tile_of(steps) == lines * held * simd.VECTOR


@settings(max_examples=40 if simd.compiled() else 4)  # plain Python takes a second for each
@given(plane_cases(), st.integers(1, 3), st.booleans(), st.booleans(), st.booleans())
def test_a_network_is_the_same_on_planes_and_by_events(
    case: Case, threads: int, pooled: bool, weighed: bool, static: bool
) -> None:
    """Two layers, the second on the words of the first or on a pooling; also in streams.

    weighed: the first reads the words of neurons behind an analog convolution, else a packed map.
    """
    network = chained(case, pooled=pooled, weighed=weighed)
    rng, sides = np.random.default_rng(0), (2, *network.input_shape)
    steps = rng.integers(-64, 64, (network.time_steps, *sides)).astype(np.float32) / 32
    samples = steps[0] if static else steps
    by_events = Network(network, threads, forms=event_forms(network))
    on_planes = Network(network, threads, forms={"b": "planes", "c": "planes"})
    assert [on_planes.layer_forms[name] for name in "bc"] == ["planes", "planes"]
    expected, found = by_events.run_recorded(samples), on_planes.run_recorded(samples)
    for name, spikes in expected.spikes.items():
        np.testing.assert_array_equal(found.spikes[name], spikes)
    scores = by_events.run(samples)
    np.testing.assert_array_equal(on_planes.run(samples), scores)
    for step in [samples] * len(steps) if static else samples:
        np.testing.assert_array_equal(on_planes.step(step), by_events.step(step))
    state = on_planes.__getstate__()  # all forms, so that membranes fit on another processor
    assert state[3] == on_planes.layer_forms
    other = copy.deepcopy(on_planes)
    assert other.layer_forms == on_planes.layer_forms
    np.testing.assert_array_equal(other.run(samples), scores)


def chained(case: Case, *, pooled: bool, weighed: bool = False) -> EventNetwork:
    """Neurons (a) on the input, `weighed` or as it is, the case (b), pooled or not, and a 3×3
    convolution (c); some neurons of a are dead if it is weighed.
    """
    rng, shape = np.random.default_rng(len(case.values)), case.values.shape[1:]
    first = replace(layer_of(case, FIRES), name="b", projection="b.conv", source="a")
    between: list[PoolLayer] = []
    source, inner = "b", first.out_shape
    if pooled:
        source = "pool"
        pooling = PoolLayer("pool", "b", inner, inner, (3, 3), (1, 1), (1, 1))
        between = [pooling]
    weight = dyadic((3, inner[0], 3, 3), rng, 0.5)
    geometry = {"stride": (1, 1), "padding": (1, 1), "dilation": (1, 1), "groups": 1}
    more = {"out_shape": (3, *inner[1:]), "reach": inner[1:]}
    values = np.zeros((1, *inner), np.uint8)
    second = layer_of(Case(weight, None, values, "spike", True, geometry | more), FIRES)
    last = replace(second, name="c", projection="c.conv", source=source)
    start: Layer = PopulationLayer("a", "input", shape, FIRES)
    if weighed:
        more = {"out_shape": shape, "reach": shape[1:]}
        weight = dyadic((shape[0], shape[0], 3, 3), rng)
        zeros = np.zeros((1, *shape), np.float32)
        weighing = layer_of(Case(weight, None, zeros, "analog", False, geometry | more), FIRES)
        live = rng.random(math.prod(shape)) < 0.9
        start = replace(
            weighing, name="a", projection="a.conv", source="input",
            live=live if live.mean() >= DENSE_FROM else None,
        )  # fmt: skip
    layers = (start, first, *between, last)
    size = math.prod(last.out_shape)
    head = dyadic((2, size), rng)
    readout = ReadoutLayer("out", "c", last.out_shape, 2, False, head, None, 1, 1)
    return EventNetwork("input", shape, len(case.values), layers, readout)


def test_dead_neurons_of_a_single_channel_give_no_words() -> None:
    """Neurons that always fire, every other one dead, in a layer whose map has one channel."""
    geometry = {"stride": (1, 1), "padding": (1, 1), "dilation": (1, 1), "groups": 1}
    case = Case(
        np.ones((1, 1, 3, 3), np.float32), None, np.ones((2, 1, 3, 5), np.uint8), "spike", True,
        geometry | {"out_shape": (1, 3, 5), "reach": (3, 5)},
    )  # fmt: skip
    network = chained(case, pooled=False, weighed=True)
    first = network.layers[0]
    assert isinstance(first, SpikingLayer)
    synapses = replace(first.synapses, bias=np.full(1, 100, np.float32))
    dead = replace(first, synapses=synapses, live=np.arange(15) % 2 == 0)
    network = replace(network, layers=(dead, *network.layers[1:]))
    samples = np.ones((1, 1, 3, 5), np.float32)
    by_events = Network(network, 1, forms=event_forms(network)).run_recorded(samples)
    on_planes = Network(network, 1, forms={"b": "planes", "c": "planes"}).run_recorded(samples)
    np.testing.assert_array_equal(by_events.spikes["a"].reshape(2, 15), [dead.live] * 2)
    for name, spikes in by_events.spikes.items():
        np.testing.assert_array_equal(on_planes.spikes[name], spikes)


@pytest.mark.parametrize("steps", [4, 17, 25])
def test_threads_keep_apart_in_chunks_of_unequal_length(steps: int) -> None:
    """Each is somewhere else in the chunks of a layer meanwhile: fifty runs, the same bits."""
    rng = np.random.default_rng(steps)
    geometry = {"stride": (1, 1), "padding": (1, 1), "dilation": (1, 1), "groups": 1}
    case = Case(
        dyadic((2, 3, 3, 3), rng), None, values_of("spike", (steps, 3, 9, 33), rng), "spike", True,
        geometry | {"out_shape": (2, 9, 33), "reach": (9, 33)},
    )  # fmt: skip
    network = chained(case, pooled=False)
    samples = rng.integers(-64, 64, (steps, 2, 3, 9, 33)).astype(np.float32) / 32
    expected = Network(network, 1, forms=event_forms(network)).run(samples)
    on_planes = Network(network, 3, forms={"b": "planes", "c": "planes"})
    for _ in range(50 if simd.compiled() else 1):
        np.testing.assert_array_equal(on_planes.run(samples), expected)


def test_where_memory_is_short_layers_go_from_event_to_event() -> None:
    rng, shape = np.random.default_rng(0), (16, 4, 5)  # little but weights, which are sorted
    geometry = {"stride": (1, 1), "padding": (3, 3), "dilation": (1, 1), "groups": 1}
    more = {"out_shape": shape, "reach": shape[1:]}
    weight, values = dyadic((16, 16, 7, 7), rng), values_of("spike", (4, *shape), rng)
    network = chained(Case(weight, None, values, "spike", True, geometry | more), pooled=False)
    by_event = sum(running_bytes(network, event_forms(network)).values())
    on_planes = sum(running_bytes(network, {"b": "planes", "c": "sparse"}).values())
    assert on_planes > by_event
    samples = rng.normal(size=(1, *shape)).astype(np.float32)
    short = Network(network, 1, by_event)
    assert short.layer_forms == {"b": "sparse", "c": "sparse"}
    scores = Network(network, 1, forms={"b": "planes"}).run(samples)
    np.testing.assert_array_equal(short.run(samples), scores)
    with pytest.raises(LimitError, match="running this network"):
        Network(network, 1, by_event, forms={"b": "planes"})


@pytest.mark.parametrize(("steps", "channels"), [(4000, 1), (1, 20000), (1, 1)])
def test_buffers_take_no_more_memory_than_estimated(steps: int, channels: int) -> None:
    """Of many chunks, which follow one another and share their scratch; of many channels, where
    packing takes much; of hardly anything, where a tile's scratch does.
    """
    geometry = {"stride": (1, 1), "padding": (1, 1), "dilation": (1, 1), "groups": 1}
    case = Case(
        np.ones((1, channels, 1, 1), np.float32), None, np.ones((steps, channels, 1, 1), np.uint8),
        "spike", True, geometry | {"padding": (0, 0), "out_shape": (1, 1, 1), "reach": (1, 1)},
    )  # fmt: skip
    network = chained(case, pooled=False)
    forms: dict[str, Form] = {"b": "planes", "c": "planes"}
    plans = {
        layer.name: plan_layer(layer, "planes", network.by_name[layer.source])
        for layer in network.projected
    }
    tracemalloc.start()
    build_buffers(network, plans, input_steps=steps, steps=steps, carry=False)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < sum(running_bytes(network, forms).values())


def test_forms_that_a_layer_cannot_have_are_refused() -> None:
    case = Case(
        np.ones((16, 1, 3, 3), np.float32), None, np.ones((2, 1, 5, 5), np.uint8), "spike", False,
        {"stride": (1, 1), "padding": (1, 1), "dilation": (1, 1), "groups": 1,
         "out_shape": (16, 5, 5), "reach": (5, 5)},
    )  # fmt: skip
    network = chained(case, pooled=False)
    assert Network(network, 1, forms={"b": "gather"}).layer_forms["b"] == "gather"
    assert Network(network, 1, forms={"b.conv": "dense", "c": "sparse"}).layer_forms == {
        "b": "dense",
        "c": "sparse",
    }
    with pytest.raises(
        UsageError, match="b: its synapses cannot run as 'planes'; give dense or ga"
    ):
        Network(network, 1, forms={"b": "planes"})
    with pytest.raises(UnknownNameError, match="layer with synapses"):
        Network(network, 1, forms={"a": "sparse"})
