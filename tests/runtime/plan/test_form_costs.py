"""The cost rule: counts of work by hand, the form of least time, and what overrides it."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from soul_deploy.base import environment
from soul_deploy.base.errors import FileFormatError, UnknownNameError, UsageError
from soul_deploy.export.event import storage_format
from soul_deploy.lowering.linear_operators import ConvOperator
from soul_deploy.runtime.engine.network import load
from soul_deploy.runtime.equations import NeuronEquation
from soul_deploy.runtime.format.file import save_event_network
from soul_deploy.runtime.format.network import (
    ConvSynapses,
    DenseRows,
    EventNetwork,
    Layer,
    MatrixSynapses,
    PoolLayer,
    PopulationLayer,
    ReadoutLayer,
    Rows,
    SparseRows,
    SpikingLayer,
)
from soul_deploy.runtime.plan import costs
from soul_deploy.runtime.plan.costs import KINDS, WITH_MASKS, WITHOUT_MASKS, Costs, Expected
from soul_deploy.runtime.plan.estimate import affordable_forms, running_bytes
from soul_deploy.runtime.plan.forms import (
    Form,
    estimated_times,
    expected_of,
    forms_of,
    possible_forms,
)

NEURON = NeuronEquation("integrate", 1.0, 1.0, 0.0, "gt")
HALF = Expected(steps=2, run=2, rate=0.5)
"""Three of four neurons fire at any of two steps."""


def compressed(rows: int, width: int, density: float) -> SparseRows:
    """Of each row the same share, spread evenly."""
    each = max(1, round(width * density))
    targets = np.sort((np.arange(each) * width // each).astype(np.uint32))
    starts = np.arange(rows + 1, dtype=np.uint32) * np.uint32(each)
    return SparseRows(starts, np.tile(targets, rows), np.full(rows * each, 0.25, np.float32))


def convolution(
    channels: int, outputs: int, side: int, density: float = 1.0, *, dense: bool = False,
    stride: int = 1, groups: int = 1,
) -> ConvSynapses:  # fmt: skip
    rows: Rows = compressed(channels * 9, outputs, density)
    if dense:
        rows = DenseRows(np.full((channels, 3, 3, outputs // groups), 0.25, np.float32))
    out = (side - 1) // stride + 1
    shapes = (channels, side, side), (outputs, out, out)
    geometry: Any = ((3, 3), (stride, stride), (1, 1), (1, 1), groups, (side, side))
    return ConvSynapses(*shapes, rows, None, *geometry)


def network_of(
    synapses: ConvSynapses, steps: int = 4, *, pooled: bool = False, then: bool = False
) -> EventNetwork:
    """Neurons (a) on the input, the synapses with neurons (b) behind, or behind a pooling of a;
    `then`: the same synapses once more (c), on b.
    """
    shape = synapses.in_shape
    layers: list[Layer] = [PopulationLayer("a", "input", shape, NEURON)]
    if pooled:
        layers.append(PoolLayer("pool", "a", shape, shape, (3, 3), (1, 1), (1, 1)))
    source = layers[-1].name
    layers.append(SpikingLayer("b", "b.conv", source, "spike", 1, synapses, NEURON))
    if then:
        layers.append(SpikingLayer("c", "c.conv", "b", "spike", 1, synapses, NEURON))
    out = synapses.out_shape
    readout = ReadoutLayer("out", layers[-1].name, out, out[0], True, None, None, 1, 1)
    return EventNetwork("input", shape, steps, tuple(layers), readout)


def test_shares_of_what_fires() -> None:
    assert (HALF.fires, HALF.events) == (0.75, 1.0)
    assert Expected(1, 4, 0.25).fires == 0.25


def test_work_of_compressed_rows_by_hand() -> None:
    """2→3 channels, 3×3 at 4×4 with a border: 4·3 - 2 = 10 joins along each axis, 100 in all."""
    work = costs.work_of(convolution(2, 3, 4), "sparse", HALF)
    assert work == {
        "launch": 3,
        "neuron": 0,
        "lane_collect": 2 * 16 * 2,
        "lane_list": 2 * 16,
        "lane_neuron": 3 * 16 * 4,
        "lane_row": 2 * 16 * 0.75,
        "lane_addition": pytest.approx(100 * 2 * 3 * 0.75),
        "lane_wider": 0,
        "lane_far": 0,
    }
    more = costs.work_of(convolution(2, 3, 4), "sparse", Expected(9, 9, 0.5))
    assert more["lane_wider"] == pytest.approx(2 * more["lane_addition"])
    stepwise = costs.work_of(convolution(2, 3, 4), "sparse", Expected(1, 1, 0.5))
    assert stepwise == {
        "launch": 3,
        "neuron": 48,
        "collect": 32,
        "step_row": 2 * 16 * 0.5,
        "step_addition": pytest.approx(100 * 2 * 3 * 0.5),
    }


def test_work_of_a_stride_by_hand() -> None:
    """At 4×4 with stride 2, outputs lie at 0 and 2: 5 joins along each axis; rows are in pieces."""
    work = costs.work_of(convolution(2, 3, 4, stride=2), "sparse", HALF)
    assert work["lane_row"] == 2 * 25 * 0.75
    assert work["lane_addition"] == pytest.approx(25 * 2 * 3 * 0.75)
    whole = costs.work_of(convolution(2, 3, 4, dense=True, stride=2), "dense", HALF)
    assert whole["dense_piece"] == 25 * 2 * (1 - 0.5**2)


def test_work_of_whole_rows_by_hand() -> None:
    """Along columns the kernel positions under an input are one piece: 10 · 4 in all."""
    work = costs.work_of(convolution(2, 3, 4, dense=True), "dense", HALF)
    assert work == {
        "launch": 3,
        "neuron": 3 * 16 * 2,
        "collect": 2 * 16 * 2,
        "dense_far": 0,
        "dense_piece": 40 * 2 * (1 - 0.5**2),
        "dense_addition": 100 * 2 * 1.0 * 3,
    }
    gathered = costs.work_of(convolution(2, 40, 4, dense=True), "gather", HALF)
    assert gathered == {
        "launch": 2,
        "neuron": 40 * 16 * 2,
        "list_value": 64,
        "list_odd": 64,
        "list_event": 32,
        "gather_far": 0,
        "gather_output": 40 * 16 * 2,
        "gather_list": 100 * 2,
        "gather_window": 100 * 2 * 0.75,  # either of two channels
        "gather_row": 100 * 2 * 1.0,
        "gather_vector": 100 * 2 * 4,  # 40 channels are four vectors of 16: never three
    }
    many = costs.work_of(convolution(80, 3, 4, dense=True), "gather", HALF)
    assert many["list_odd"] == 16 * 16 * 2  # beyond 64 of 80 channels
    grouped = costs.work_of(convolution(2, 40, 4, dense=True, groups=2), "gather", HALF)
    assert (grouped["gather_list"], grouped["gather_window"]) == (100 * 2 * 2, 100 * 2 * 2 * 0.5)
    assert grouped["gather_vector"] == 100 * 2 * 2  # of 20 channels each


def test_work_on_bit_planes_by_hand() -> None:
    """Rows of 5 and a zero: 29 words, less than a tile of 192 at T = 2; 54 weights and what fills
    three channels up to whole fours.
    """
    work = costs.work_of(convolution(2, 3, 5), "planes", replace(HALF, packs=False))
    assert work == {
        "launch": 2,
        "plane_tile": 3,
        "plane_weight": 58.5,
        "plane_vector": 58.5 * 12 * 2,
        "plane_step": 3 * 2,
        "pack": 0,
        "pack_odd": 0,
        "unpack": 3 * 25 * 2,
        "unpack_odd": 3 * 25 * 2,
        "give": 25 * 2,
        "give_odd": 2 * 21,  # 16 words beyond the first of a row are written where rows follow
    }
    assert not {"give", "give_odd"} & costs.work_of(convolution(2, 3, 5), "planes", HALF).keys()
    given = costs.work_of(convolution(2, 3, 16), "planes", replace(HALF, packs=False))
    assert (given["give"], given["give_odd"]) == (256 * 2, 0)
    chunked = costs.work_of(convolution(2, 3, 5), "planes", Expected(20, 20, 0.5))
    assert chunked["launch"] == 3 * 3  # of 6, 7 and 7 steps: a tile of 48
    assert (chunked["plane_weight"], chunked["plane_vector"]) == (58.5 * 3, 58.5 * 3 * 20)
    wide = costs.work_of(convolution(2, 40, 5), "planes", HALF)
    assert wide["unpack_odd"] == 8 * 25 * 2  # beyond 32 of 40 channels
    assert wide["pack_odd"] == 2 * 25 * 2  # two channels fill no vector


def test_work_of_matrices_by_hand() -> None:
    whole = MatrixSynapses((6,), (5,), DenseRows(np.ones((6, 5), np.float32)), None)
    assert costs.work_of(whole, "dense", HALF) == {
        "launch": 3,
        "neuron": 10,
        "collect": 12,
        "matrix_weight": 6 * 0.75 * 5,
    }
    rows = MatrixSynapses((6,), (5,), compressed(6, 5, 0.4), None)
    assert costs.work_of(rows, "sparse", HALF) == {
        "launch": 3,
        "neuron": 10,
        "lane_collect": 12,
        "lane_list": 6,
        "explicit_row": 6 * 0.75,
        "explicit_addition": 12 * 0.75,
    }
    once = costs.work_of(rows, "sparse", Expected(1, 1, 0.5))
    assert (once["explicit_addition"], once["collect"]) == (6, 6)


def test_rows_beyond_the_second_cache_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "caches", lambda: {"L2": 2 * 9 * 3 * 4 - 1})
    whole = costs.work_of(convolution(2, 3, 4, dense=True), "gather", HALF)
    assert whole["gather_far"] == 54 * (1 - 0.5**32)
    rows = costs.work_of(convolution(2, 3, 4), "sparse", HALF)
    assert rows["lane_far"] == rows["lane_addition"] > 0


def test_nanoseconds_are_a_sum() -> None:
    primes = Costs(**{kind: float(k) for k, kind in enumerate(KINDS)})
    first, last = KINDS[1], KINDS[-1]
    assert primes.nanoseconds({first: 3, last: 0.5}) == 3 + 0.5 * (len(KINDS) - 1)
    for found in (WITH_MASKS, WITHOUT_MASKS):
        assert all(0 <= getattr(found, kind) < 1000 for kind in KINDS)


def test_an_analog_source_and_neighbours_on_planes() -> None:
    layer = network_of(convolution(4, 4, 5), pooled=True, then=True)
    first, second = layer.projected
    rate = costs.pooled_rate(costs.USUAL_RATE, 9)  # of nine values each
    assert rate == pytest.approx(1 - 0.92**9)
    assert expected_of(layer, first) == Expected(4, 4, rate, True, False)
    measured = replace(layer, rates={"a": 0.5})
    assert expected_of(measured, first).rate == pytest.approx(1 - 0.5**9)
    assert expected_of(layer, second) == Expected(4, 4, costs.USUAL_RATE, False, True)
    told = replace(layer, rates={"pool": 0.3, "b": 0.01})
    assert [expected_of(told, each).rate for each in told.projected] == [0.3, 0.01]
    often = replace(told, active={"b": 0.02})  # the same neurons fire again and again
    assert [expected_of(often, each).active for each in often.projected] == [None, 0.02]
    assert [expected_of(each, second).fires for each in (told, often)] == [1 - 0.99**4, 0.02]
    analog = SpikingLayer(
        "b", "b.conv", "input", "analog", None, convolution(4, 4, 5, dense=True), NEURON
    )
    readout = ReadoutLayer("out", "b", (4, 5, 5), 4, True, None, None, 1, 1)
    static = EventNetwork("input", (4, 5, 5), 3, (analog,), readout)
    assert expected_of(static, analog) == Expected(1, 3, 1.0)
    assert expected_of(replace(static, input_kind="values"), analog).steps == 3
    assert costs.work_of(analog.synapses, "analog", expected_of(static, analog)) == {
        "launch": 3,
        "neuron": 4 * 25 * 3,
        "analog_addition": 13 * 13 * 4 * 4,
    }


@given(
    st.sampled_from((2, 16, 48)), st.integers(1, 9), st.floats(0.01, 1), st.floats(0, 1),
    st.sampled_from((1, 2, 4, 9, 16, 20)), st.booleans(), st.sampled_from((1, 2)),
)  # fmt: skip
def test_the_form_of_least_time_is_taken(
    channels: int, side: int, density: float, rate: float, steps: int, dense: bool, stride: int
) -> None:
    synapses = convolution(channels, channels, side, density, dense=dense, stride=stride)
    network = replace(network_of(synapses, steps), rates={"a": rate})
    (layer,) = network.projected
    ((_, times),) = estimated_times(network).items()
    assert tuple(times) == possible_forms(layer)
    assert all(0 < ns < np.inf for ns in times.values())
    assert times[forms_of(network, {})["b"]] == min(times.values())


@pytest.mark.parametrize(
    ("here", "rate", "form"),
    [(WITH_MASKS, 0.001, "sparse"), (WITH_MASKS, 0.5, "planes"), (WITHOUT_MASKS, 0.08, "sparse")],
)
def test_rate_and_processor_decide(
    here: Costs, rate: float, form: Form, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit planes take the same time at any rate, and longer without registers for masks."""
    monkeypatch.setattr(costs, "costs_here", lambda: here)
    network = network_of(convolution(64, 64, 16, 0.1))
    low, high = (estimated_times(replace(network, rates={"a": r}))["b"] for r in (rate, 1.0))
    assert low["planes"] == high["planes"] and low["sparse"] < high["sparse"]
    assert forms_of(replace(network, rates={"a": rate}), {})["b"] == form
    other = estimated_times(network)
    monkeypatch.setattr(costs, "costs_here", lambda: WITHOUT_MASKS)
    assert estimated_times(network)["b"]["planes"] >= other["b"]["planes"]


def test_whole_rows_are_stored_between_the_crossings_of_both_processors() -> None:
    processors = (WITH_MASKS, WITHOUT_MASKS)
    with_masks, without = (storage_format._crossing(each, costs.USUAL_RATE) for each in processors)
    assert 0 < without < with_masks < 1
    between = math.sqrt(with_masks * without)
    assert pytest.approx(between, abs=5e-4) == storage_format.DENSE_FROM
    ratios = [share / storage_format.DENSE_FROM for share in (with_masks, without)]
    assert ratios[0] == pytest.approx(1 / ratios[1], rel=0.02)
    for here, share in ((WITH_MASKS, with_masks), (WITHOUT_MASKS, without)):
        expected = Expected(4, 4, costs.USUAL_RATE, packs=False, unpacks=False)
        synapses = convolution(256, 256, 32, round(256 * share) / 256)
        times = {
            form: here.nanoseconds(costs.work_of(synapses, form, expected))
            for form in ("sparse", "planes", "dense", "gather")
        }
        whole = min(times["dense"], times["gather"])
        assert min(times["sparse"], times["planes"]) == pytest.approx(whole, rel=0.05)


def test_rows_behind_a_pooling_are_stored_compressed_up_to_more_weights() -> None:
    """Spikes of a pooling are more, and bit planes take the same time for any number."""
    usual, more = costs.USUAL_RATE, costs.pooled_rate(costs.USUAL_RATE, 4)
    between = (storage_format.dense_from(usual) + storage_format.dense_from(more)) / 2
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(16, 16, 3, 3)).astype(np.float32)
    weight[rng.random(weight.shape) >= between] = 0
    shape, pair = (16, 8, 8), (1, 1)
    operator = ConvOperator(weight, None, pair, pair, pair, 1, shape, shape, (8, 8))
    for rate, kind in ((usual, "dense"), (more, "sparse")):
        found, _ = storage_format.represent(operator, None, None, "implicit", rate=rate)
        assert found.rows.kind == kind


def test_poolings_over_poolings_have_a_rate() -> None:
    """However many a file has, and however large their windows."""
    shape, side = (1, 3, 3), (1 << 20) - 1
    layers: list[Layer] = [PopulationLayer("a", "input", shape, NEURON)]
    for k in range(2000):
        window = (side, side), (1, 1), (side // 2, side // 2)
        layers.append(PoolLayer(f"m{k}", layers[-1].name, shape, shape, *window))
    synapses = convolution(1, 1, 3)
    layers.append(SpikingLayer("b", "b.conv", layers[-1].name, "spike", 1, synapses, NEURON))
    readout = ReadoutLayer("out", "b", shape, 1, True, None, None, 1, 1)
    network = EventNetwork("input", shape, 4, tuple(layers), readout)
    (layer,) = network.projected
    assert expected_of(network, layer).rate == 1
    first = replace(network, rates={"a": 0.0})
    assert expected_of(first, layer).rate == 0


def test_who_asks_goes_before_the_file_which_goes_before_the_rule(tmp_path: Path) -> None:
    network = replace(network_of(convolution(4, 4, 5, 0.5), then=True), rates={"a": 0.1, "b": 0.1})
    ruled = forms_of(network, {})
    other: dict[str, str] = {"sparse": "planes", "planes": "sparse"}
    told = replace(network, forms={"b": other[ruled["b"]]})
    path = tmp_path / "net.event"
    save_event_network(path, told)
    loaded = load(path, 1)
    assert loaded.layer_forms == {"b": other[ruled["b"]], "c": ruled["c"]}
    again = load(path, 1, forms={"b.conv": ruled["b"], "c": other[ruled["c"]]})
    assert again.layer_forms == {"b": ruled["b"], "c": other[ruled["c"]]}


def test_where_memory_is_short_a_form_of_the_file_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(costs, "costs_here", lambda: WITH_MASKS)
    wide = network_of(convolution(32, 32, 16, 0.5), then=True)
    network = replace(wide, rates={"a": 0.5, "b": 0.5}, forms={"b": "planes"})
    assert forms_of(network, {}) == {"b": "planes", "c": "planes"}
    mixed: dict[str, Form] = {"b": "planes", "c": "sparse"}
    needed = sum(running_bytes(network, mixed).values())
    assert sum(running_bytes(network, {"b": "planes", "c": "planes"}).values()) > needed
    assert affordable_forms(network, {}, needed) == mixed
    assert affordable_forms(replace(network, forms={}), {}, needed)["b"] == "sparse"


def test_a_form_of_the_file_that_cannot_be_is_refused(tmp_path: Path) -> None:
    network = replace(network_of(convolution(4, 4, 5, 0.5)), forms={"b": "lightning"})
    path = tmp_path / "net.event"
    save_event_network(path, network)
    text = "net.event: the file asks for a form of rows: b: its synapses cannot run as 'lightning'"
    with pytest.raises(FileFormatError, match=text):
        load(path, 1)
    assert load(path, 1, forms={"b": "planes"}).layer_forms == {"b": "planes"}
    with pytest.raises(
        UsageError, match=r"b\.conv: its synapses cannot run as 'gather'; give sparse"
    ):
        load(path, 1, forms={"b.conv": "gather"})
    with pytest.raises(UnknownNameError, match="unknown layer with synapses 'a'"):
        load(path, 1, forms={"a": "sparse"})
