"""Dead neurons, constant-pattern channels and explicit rows in the event network."""

import math
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import naive
import numpy as np
import numpy.typing as npt
import pytest
import torch
from chains import ChainSpec, build, chains, images, random_neuron_masks
from hypothesis import given, settings
from hypothesis import strategies as st

from soul_deploy import ir
from soul_deploy.analysis.synops import count_model
from soul_deploy.base.errors import FileFormatError, LimitError, ValidityError
from soul_deploy.export.event.build import build_event_network, export_event
from soul_deploy.export.event.storage_format import (
    CHOICES,
    EXPLICIT_BYTES,
    Choice,
    channel_last_mask,
    represent,
)
from soul_deploy.export.verify.event import event_problems, explicit_problems
from soul_deploy.export.verify.verify import verify
from soul_deploy.lowering.deploy import lower
from soul_deploy.lowering.linear_operators import ConvOperator
from soul_deploy.model.model import Model, ModelInfo, arrays_of
from soul_deploy.nn.graph_module import GraphModule
from soul_deploy.runtime.engine.network import Network, load
from soul_deploy.runtime.format import network as eventnet
from soul_deploy.runtime.format.network import MatrixSynapses, SparseRows, SpikingLayer
from soul_deploy.runtime.ops.counted_run import additions, count, count_run
from soul_deploy.runtime.plan.layout import layout_of, masked_out_index

Array = npt.NDArray[Any]
choices = st.sampled_from(CHOICES)


def counted(network: Network, model: Model, x: torch.Tensor) -> None:
    """The event network's counts are PyTorch's, as integers."""
    assert count_run(network, x.numpy()).counts == count_model(lower(model).trimmed.model, x)


@given(chains(dyadic=True), st.integers(0, 2**16), choices, st.booleans())
@settings(max_examples=40)
def test_masked_neurons_neither_run_nor_spike(
    spec: ChainSpec, seed: int, choice: Choice, sequence: bool
) -> None:
    model = build(spec)
    model = replace(model, neuron_masks=random_neuron_masks(model, seed))
    x = images(spec)
    x = torch.stack([x.roll(t, dims=-1) for t in range(spec.time_steps)]) if sequence else x
    network = Network(build_event_network(model, representation=choice))
    found = network.run_recorded(x.numpy())
    golden, live = lower(model).trimmed.model.module().record(x), lower(model).trimmed.live_values
    np.testing.assert_array_equal(found.logits, model.module().record(x).logits.numpy())
    np.testing.assert_array_equal(network.run(x.numpy()), found.logits)
    with network._buffers(spec.time_steps if sequence else 1, 1) as buffers:
        for layer in network.events.spiking_layers:
            spikes, mask = found.spikes[layer.name], live[layer.name]
            np.testing.assert_array_equal(spikes, golden.spikes[layer.name].numpy())
            alive = math.prod(layer.out_shape) if mask is None else int(mask.sum())
            held = math.prod(layer.out_shape) if layout_of(layer) is None else alive
            assert len(buffers.membranes[layer.name]) == held and layer.neurons == alive
            assert mask is None or not spikes[:, :, ~mask].any()
    if not sequence:
        counted(network, model, x)


@given(chains(dyadic=True), st.integers(0, 2**16), choices)
@settings(max_examples=20)
def test_a_stream_with_masked_neurons(spec: ChainSpec, seed: int, choice: Choice) -> None:
    model = build(spec)
    model = replace(model, neuron_masks=random_neuron_masks(model, seed))
    network = Network(build_event_network(model, representation=choice))
    x = images(spec)
    with torch.no_grad():
        expected = model.module().per_step(x).numpy()
    for _ in range(2):
        scores = np.stack([network.step(x.numpy()) for _ in range(spec.time_steps)])
        np.testing.assert_array_equal(scores, expected)
        network.reset()


@given(chains(dyadic=True), st.integers(0, 2**16))
@settings(max_examples=15)
def test_all_neurons_of_a_channel_masked(spec: ChainSpec, seed: int) -> None:
    model = build(spec)
    masks = random_neuron_masks(model, seed)
    for mask in masks.values():
        mask[seed % len(mask)] = False
    model, x = replace(model, neuron_masks=masks), images(spec)
    network = Network(build_event_network(model))
    np.testing.assert_array_equal(network.run(x.numpy()), model.module()(x).detach().numpy())
    counted(network, model, x)


def test_a_layer_without_live_neurons_runs() -> None:
    model = small()
    model = replace(model, neuron_masks={"p1": np.zeros((4, 6, 6), np.bool_)})
    x = torch.rand(2, 2, 6, 6)
    for choice in CHOICES:
        network = Network(build_event_network(model, representation=choice))
        assert network.events.spiking_layers[0].neurons == 0
        np.testing.assert_array_equal(network.run(x.numpy()), model.module()(x).detach().numpy())
        counted(network, model, x)


def small(
    *between: ir.Node, generated: int = 0, steps: int = 4, padding: int = 0, channels: int = 3
) -> Model:
    """Convolution, constant-pattern channels behind it, `between`, a convolution, a linear head."""
    wide = 4 + generated
    last = between[-1].name if between else "p1"
    nodes = (
        ir.Input("input", (), (2, 6, 6)),
        ir.Convolution("c1", ("input",), True, None, 2, 4, (3, 3), (1, 1), (1, 1)),
        ir.Population("p1", ("c1",), ir.NeuronSpec(v_reset=None), generated),
        *between,
        ir.Convolution(
            "c2", (last,), True, None, wide, channels, (2, 2), (1, 1), (padding, padding)
        ),
        ir.Population("p2", ("c2",), ir.NeuronSpec(tau=4 / 3)),
        ir.Readout("head", ("p2",), 3),
    )
    return on_a_grid(ir.SpikingGraph(nodes, steps))


def on_a_grid(graph: ir.SpikingGraph) -> Model:
    """Random dyadic weights that let neurons fire, and a pattern that never repeats."""
    rng = np.random.default_rng(4)
    state = {}
    for name, value in arrays_of(GraphModule(graph).state_dict()).items():
        drawn = rng.integers(-32, 96, value.shape) / 128
        if name.endswith("pattern"):
            drawn = np.array([[(t * t + g) % 3 == 0 for g in range(value.shape[1])]
                              for t in range(value.shape[0])])  # fmt: skip
        state[name] = drawn.astype(np.float32)
    return Model(graph, state, info=ModelInfo(provenance={"data": "random"}))


MAX = ir.MaxPool("pool", ("p1",), (2, 2), (2, 2))
AVERAGE = ir.AvgPool("pool", ("p1",), (2, 2), (2, 2))


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("pool", [MAX, AVERAGE, None], ids=["max", "average", "none"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("steps", [1, 3, 8])
def test_generated_channels(
    tmp_path: Path, choice: Choice, pool: ir.Node | None, masked: bool, steps: int
) -> None:
    """Their events are delivered and counted; they are not updated, and a mask holds for them."""
    model = small(*([pool] if pool else []), generated=2, steps=steps, padding=1)
    if masked:
        keep = np.random.default_rng(1).random((6, 6, 6)) < 0.6
        keep[5, :, 2] = False
        model = replace(model, neuron_masks={"p1": keep})
    x = torch.randint(-32, 33, (3, 2, 6, 6)) / 32
    path = tmp_path / "net.safetensors"
    export_event(model, path, representation=choice)
    report = verify(model, path, x)
    assert report.passed, report.text()
    network = load(path)
    found = network.run_recorded(x.numpy())
    first = network.events.spiking_layers[0]
    mask = model.neuron_masks.get("p1", np.ones((6, 6, 6), np.bool_))
    pattern = model.state["p1.pattern"]
    np.testing.assert_array_equal(
        found.spikes["p1"][:, 1, 4:], pattern[:, :, None, None] * mask[4:] != 0
    )
    assert (first.generated, first.out_shape, first.current_shape) == (2, (6, 6, 6), (4, 6, 6))
    assert network.events.fixed_steps
    counts = count(network, x.numpy())
    assert counts["c1"].neuron_updates == 3 * steps * int(mask[:4].sum())
    assert counts["c1"].spikes_out == found.spikes["p1"][:, :, :4].sum()
    if pool is not MAX:
        assert counts["c2"].spikes_in == found.spikes["p1"].sum()
    assert counts["c2"].synops > 0
    counted(network, model, x)


def test_generated_channels_in_a_vector() -> None:
    """Behind a linear layer, whose population has a single position."""
    nodes = (
        ir.Input("input", (), (5,)),
        ir.Linear("l1", ("input",), True, None, 5, 4),
        ir.Population("p1", ("l1",), ir.NeuronSpec(), 3),
        ir.Linear("l2", ("p1",), True, None, 7, 6),
        ir.Population("p2", ("l2",), ir.NeuronSpec()),
        ir.Readout("head", ("p2",), 2),
    )
    model = on_a_grid(ir.SpikingGraph(nodes, 5))
    keep = np.array([1, 0, 1, 1, 1, 0, 1], np.bool_)
    x = torch.randint(-32, 33, (4, 5)) / 32
    for masks in ({}, {"p1": keep}):
        masked = replace(model, neuron_masks=masks)
        for choice in CHOICES:
            network = Network(build_event_network(masked, representation=choice))
            expected = masked.module()(x).detach().numpy()
            np.testing.assert_array_equal(network.run(x.numpy()), expected)
            counted(network, masked, x)


def test_streams_follow_the_pattern_and_end_with_it() -> None:
    model = small(MAX, generated=2, padding=1)
    network = Network(build_event_network(model))
    x = torch.randint(-32, 33, (3, 2, 6, 6)) / 32
    with torch.no_grad():
        expected = model.module().per_step(x).numpy()
    for _ in range(2):
        scores = np.stack([network.step(x.numpy()) for _ in range(4)])
        np.testing.assert_array_equal(scores, expected)
        with pytest.raises(ValidityError, match="step 5 asked, but this network is valid for T"):
            network.step(x.numpy())
        network.reset()


def test_spikes_of_dead_neurons_are_refused_as_input() -> None:
    keep = np.ones((4, 6, 6), np.bool_)
    keep[1, 2, 3] = False
    model = replace(small(), neuron_masks={"p1": keep})
    network = Network(build_event_network(model))
    with pytest.raises(ValidityError, match="p2: spikes given of neurons of p1 that are not live"):
        network.run_layer("p2", np.ones((4, 1, 4, 6, 6), np.uint8))


@st.composite
def operators(draw: st.DrawFn) -> tuple[ConvOperator, Array, Array]:
    """A convolution and masks of its source and its targets, channel-major."""
    rng = np.random.default_rng(draw(st.integers(0, 2**20)))
    groups, stride, dilation = (draw(st.integers(1, 2)) for _ in range(3))
    kernel, padding = draw(st.integers(1, 3)), draw(st.integers(0, 2))
    span = dilation * (kernel - 1) + 1
    size = draw(st.integers(max(1, span - 2 * padding), 5))
    sides = (size, size + 1)
    inner, out = (groups * draw(st.integers(1, 2)) for _ in range(2))
    weight = rng.integers(-8, 9, (out, inner // groups, kernel, kernel)) * (
        rng.random((out, inner // groups, kernel, kernel)) < 0.6
    )
    outputs = tuple((side + 2 * padding - span) // stride + 1 for side in sides)
    reach = (draw(st.integers(size - 1, size)), size + 1)
    operator = ConvOperator(
        weight.astype(np.float32), None, (stride, stride), (padding, padding),
        (dilation, dilation), groups, (inner, *sides), (out, *outputs), reach,
    )  # fmt: skip
    masks = (rng.random(operator.in_shape) < 0.7, rng.random(operator.out_shape) < 0.7)
    return operator, *masks


@given(operators())
def test_explicit_rows_are_the_definition(drawn: tuple[ConvOperator, Array, Array]) -> None:
    operator, before, live = drawn
    found, weighed = represent(operator, before, live, "explicit")
    assert isinstance(found, MatrixSynapses)
    rows = found.rows
    assert isinstance(rows, SparseRows)
    sources, targets = naive.channel_last(operator.in_shape), naive.channel_last(operator.out_shape)
    geometry: dict[str, Any] = {
        "stride": operator.stride, "padding": operator.padding, "dilation": operator.dilation,
        "groups": operator.groups, "out_shape": operator.out_shape, "reach": operator.reach,
    }  # fmt: skip
    executed = 0
    for j, i in enumerate(sources):
        place = np.unravel_index(i, operator.in_shape)
        c, y, x = map(int, place)
        listed = naive.targets_of(c, y, x, operator.weight, **geometry)
        kept = {
            targets.index(int(np.ravel_multi_index((o, oy, ox), operator.out_shape))): w
            for o, oy, ox, w in listed
            if w != 0 and live[o, oy, ox] and before[place]
        }
        at = slice(int(rows.starts[j]), int(rows.starts[j + 1]))
        assert dict(zip(rows.targets[at].tolist(), rows.weight[at], strict=True)) == kept
        executed += before[place] * len(listed)
    shared, explicit = weighed
    assert explicit.additions == rows.synapses
    assert shared.kind == "sparse" or shared.additions == executed
    assert not list(explicit_problems("p", found, operator, before, live))


@given(operators(), st.integers(0, 2**16))
def test_a_wrong_explicit_row_is_seen(drawn: tuple[ConvOperator, Array, Array], seed: int) -> None:
    operator, before, live = drawn
    found, _ = represent(operator, before, live, "explicit")
    assert isinstance(found, MatrixSynapses)
    rows = found.rows
    assert isinstance(rows, SparseRows)
    if not rows.synapses:
        return
    at = seed % rows.synapses
    weight = rows.weight.copy()
    weight[at] += 1
    wrong = replace(found, rows=replace(rows, weight=weight)) if weight[at] else None
    if wrong is not None:
        problems = list(explicit_problems("p", wrong, operator, before, live))
        assert problems == [f"p: 1 of {rows.synapses} synapses differ from the graph's"]
    starts = rows.starts.copy()
    starts[1:] -= (
        np.arange(1, len(starts)) > np.searchsorted(rows.starts, at, "right") - 1
    ).astype(np.uint32)
    fewer = SparseRows(starts, np.delete(rows.targets, at), np.delete(rows.weight, at))
    problems = list(explicit_problems("p", replace(found, rows=fewer), operator, before, live))
    assert problems == ["p: 1 rows have another number of synapses than the graph says"]


def test_explicit_rows_are_built_without_a_dense_matrix() -> None:
    """32 channels of 32 × 32: dense rows would take 4 GiB, this little more than the result."""
    rng = np.random.default_rng(0)
    shape, out_shape = (32, 32, 32), (32, 32, 32)
    weight = rng.random((32, 32, 3, 3), np.float32) * (rng.random((32, 32, 3, 3)) < 0.02)
    operator = ConvOperator(weight, None, (1, 1), (1, 1), (1, 1), 1, shape, out_shape, (32, 32))
    before, live = rng.random(shape) < 0.5, rng.random(out_shape) < 0.5
    represent(operator, before, live, "explicit")  # compiles
    tracemalloc.start()
    found, (_, explicit) = represent(operator, before, live, "explicit")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    rows = found.rows
    assert isinstance(rows, SparseRows)
    size = sum(array.nbytes for array in rows.arrays)
    assert explicit.bytes == size == 4 * (32**3 + 1) + 8 * rows.synapses
    assert peak < size + 64 * 32**3
    expected = 0.02 * 0.25 * 32 * 32 * (3 * 32 - 2) ** 2
    assert abs(rows.synapses / expected - 1) < 0.15


@pytest.mark.parametrize(("share", "kept"), [(0.5, True), (0.3, False)])
def test_shared_rows_stay_where_bit_planes_are_faster(share: float, kept: bool) -> None:
    """A quarter of the synapses join live neurons, or a tenth."""
    rng = np.random.default_rng(0)
    shape = (8, 16, 16)
    weight = rng.random((8, 8, 3, 3), np.float32) * (rng.random((8, 8, 3, 3)) < 0.1)
    operator = ConvOperator(weight, None, (1, 1), (1, 1), (1, 1), 1, shape, shape, (16, 16))
    before, live = rng.random(shape) < share, rng.random(shape) < share
    given = operator, before, live, "auto", None
    assert isinstance(represent(*given)[0], MatrixSynapses)
    assert represent(*given, lambda shared: False)[0].shared is False
    found, (shared, explicit) = represent(*given, lambda shared: True)
    assert (found.shared, shared.chosen, explicit.chosen) == (kept, kept, not kept)


@pytest.mark.parametrize(("stride", "explicit"), [(1, False), (2, True)])
def test_a_layer_that_cannot_run_on_bit_planes_becomes_explicit(
    stride: int, explicit: bool
) -> None:
    """Half of the sources and two fifths of the targets live, few weights are kept."""
    side = 12 // stride
    nodes = (
        ir.Input("input", (), (2, 12, 12)),
        ir.Convolution("c1", ("input",), True, None, 2, 32, (3, 3), (1, 1), (1, 1)),
        ir.Population("p1", ("c1",), ir.NeuronSpec(v_reset=None)),
        ir.Convolution("c2", ("p1",), True, None, 32, 32, (3, 3), (stride, stride), (1, 1)),
        ir.Population("p2", ("c2",), ir.NeuronSpec(tau=4 / 3)),
        ir.Readout("head", ("p2",), 2),
    )
    model, rng = on_a_grid(ir.SpikingGraph(nodes, 4)), np.random.default_rng(0)
    weight = model.state["c2.weight"]
    few = {"c2.weight": weight * (rng.random(weight.shape) < 0.1)}
    size = 32 * side * side
    some = rng.permutation(size).reshape(32, side, side) < 0.42 * size
    keep = {"p1": rng.random((32, 12, 12)) < 0.5, "p2": some}
    model = replace(model, state={**model.state, **few}, neuron_masks=keep)
    layer = build_event_network(model).spiking_layers[1]
    assert isinstance(layer.synapses, MatrixSynapses) == explicit


def masked_small(rate: float) -> Model:
    keep = {"p1": np.random.default_rng(0).random((4, 6, 6)) < rate}
    keep["p2"] = np.random.default_rng(1).random((3, 5, 5)) < rate
    return replace(small(), neuron_masks=keep)


def one_target() -> Model:
    """A single neuron of the second layer is live."""
    keep = np.zeros((6, 5, 5), np.bool_)
    keep[1, 2, 2] = True
    return replace(small(channels=6), neuron_masks={"p2": keep})


def representation(model: Model, choice: Choice = "auto") -> str:
    layer = build_event_network(model, representation=choice).spiking_layers[1]
    return next(item.kind for item in layer.alternatives if item.chosen)


def test_the_rule_weighs_additions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Contiguous rows win unless nearly all of their additions are for nothing."""
    full, few = masked_small(0.7), one_target()
    assert representation(full) == "dense"
    assert representation(few) == "explicit"
    assert representation(few, "implicit") == "dense"
    assert representation(full, "explicit") == "explicit"
    monkeypatch.setattr("soul_deploy.export.event.storage_format.EXPLICIT_BYTES", 100)
    assert representation(few) == "dense"
    assert EXPLICIT_BYTES == 1 << 29


def test_both_representations_are_described(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    export_event(one_target(), path)
    layer = load(path).events.spiking_layers[1]
    dense, explicit = layer.alternatives
    rows = layer.synapses.rows
    assert isinstance(rows, SparseRows)
    arrays = [*rows.arrays, layer.synapses.bias]
    assert explicit.bytes == sum(a.nbytes for a in arrays if a is not None)
    assert (explicit.additions, explicit.chosen) == (rows.synapses, True)
    assert (dense.kind, dense.chosen) == ("dense", False)
    assert dense.additions > explicit.additions


def test_executed_additions_are_told_apart() -> None:
    model, x = masked_small(0.5), torch.randint(-32, 33, (2, 2, 6, 6)) / 32
    made = {}
    for choice in ("implicit", "explicit"):
        network = Network(build_event_network(model, representation=choice))
        counted = count_run(network, x.numpy())
        counts, executed = counted.counts, counted.executed
        assert counts == count_model(lower(model).trimmed.model, x)
        assert executed["c1"] == 0  # analog
        made[choice] = executed["c2"]
        spikes = network.run_recorded(x.numpy()).spikes["p1"]
        expected = (spikes.sum(axis=(0, 1)) * additions(network, "c2")).sum()
        assert executed["c2"] == expected
    assert made["explicit"] == counts["c2"].synops
    assert made["implicit"] > made["explicit"]


@pytest.mark.parametrize("choice", CHOICES)
def test_gate_1_sees_a_wrong_mask_or_pattern(choice: Choice) -> None:
    model = small(generated=1, padding=1)
    keep = np.ones((5, 6, 6), np.bool_)
    keep[0, 0, 0] = False
    model = replace(model, neuron_masks={"p1": keep})
    events = build_event_network(model, representation=choice)
    assert event_problems(model, Network(events)) == ()
    layer = events.spiking_layers[0]
    assert layer.live is not None
    assert layer.pattern is not None
    live, pattern = layer.live.copy(), layer.pattern.copy()
    pattern[0, 0] ^= 1
    assert isinstance(layer.synapses, eventnet.ConvSynapses) or choice == "explicit"
    spoiled = {"p1: live neurons: missing": replace(layer, live=None)}
    spoiled["p1: generated spikes: 1 of 4 entries differ"] = replace(layer, pattern=pattern)
    if choice != "explicit":
        live[layer.out_shape[0]] = False
        spoiled["p1: live neurons: 1 of 180 entries differ"] = replace(layer, live=live)
    for text, wrong in spoiled.items():
        changed = replace(events, layers=(wrong, *events.layers[1:]))
        if text.endswith("missing") or choice != "explicit":
            problems = event_problems(model, Network(changed))
            assert text in problems


def test_verify_says_when_leaving_neurons_out_changes_a_score(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = masked_small(0.9), torch.randint(-32, 33, (2, 2, 6, 6)) / 32
    path = tmp_path / "net.safetensors"
    export_event(model, path)
    assert verify(model, path, x).passed

    too_few = {"p1": np.zeros((4, 6, 6), np.bool_), "p2": model.neuron_masks["p2"]}
    monkeypatch.setattr("soul_deploy.lowering.deploy.live_neurons", lambda *_: too_few)
    report = verify(replace(model), path, x)
    assert not report.passed
    assert any("that nothing reads the scores differ by" in text for text in report.problems)


def test_more_explicit_synapses_than_rows_can_count_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("soul_deploy.export.event.storage_format.MAX_SYNAPSES", 10)
    with pytest.raises(LimitError, match="explicit synapses; the limit is 10"):
        build_event_network(small(), representation="explicit")


def test_packing_numbers_live_neurons_in_channel_last_order() -> None:
    model = small(generated=1)
    keep = np.ones((5, 6, 6), np.bool_)
    keep[2, 0, 0] = keep[4, 1, 1] = False
    layer = build_event_network(replace(model, neuron_masks={"p1": keep})).spiking_layers[0]
    layout = layout_of(layer)
    assert layout is not None
    assert layout.gather_index[:5].tolist() == [0, 1, 3, 4, 5]
    assert layout.scatter_index[:5].tolist() == [0, 1, 3, 5, 6]
    assert len(layout.gather_index) == layer.neurons == 143
    mask = channel_last_mask(keep)
    np.testing.assert_array_equal(layer.live, mask)
    assert layout_of(build_event_network(small()).spiking_layers[1]) is None


@pytest.mark.parametrize("choice", ["implicit", "explicit"])
def test_few_dead_neurons_behind_shared_rows_are_updated_and_masked_out(choice: Choice) -> None:
    """The dead ones fire by their currents, and nobody sees it; many dead ones are left out."""
    x = 8 * np.random.default_rng(0).random((2, 2, 6, 6)).astype(np.float32)
    free = Network(build_event_network(small()), 1).run_recorded(x).spikes["p2"]
    for rate in (0.9, 0.1):
        model = masked_small(rate)
        model = replace(model, neuron_masks={"p2": model.neuron_masks["p2"]})
        network = Network(build_event_network(model, representation=choice), 1)
        layer = network.events.spiking_layers[1]
        on_map = rate == 0.9 and choice == "implicit"
        assert (layout_of(layer) is None) == (masked_out_index(layer) is not None) == on_map
        spikes = network.run_recorded(x).spikes["p2"]
        assert free[:, :, ~model.neuron_masks["p2"]].any()
        np.testing.assert_array_equal(spikes, free * model.neuron_masks["p2"])
        updates = count(network, x)["c2"].neuron_updates
        assert updates == 2 * 4 * model.neuron_masks["p2"].sum()
    layer = build_event_network(masked_small(0.9), representation="implicit").spiking_layers[1]
    masked_out = masked_out_index(layer)
    assert masked_out is not None and layer.live is not None
    assert masked_out.tolist() == [i for i, lives in enumerate(layer.live) if not lives]


def test_a_mask_of_another_length_is_refused() -> None:
    layer = build_event_network(small()).spiking_layers[0]
    with pytest.raises(FileFormatError, match=r"p1: live is bool\(3,\), expected bool\(144,\)"):
        replace(layer, live=np.ones(3, np.bool_))
    assert isinstance(layer, SpikingLayer)
