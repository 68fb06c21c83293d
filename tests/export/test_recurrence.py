"""Populations that feed their own spikes back: the same in PyTorch, in the event runtime, in ONNX
files and in a naive run; verified, counted, and refused where somebody changed a synapse.
"""

import copy
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import load as load_onnx
from onnx import numpy_helper, save
from recurrent import KINDS, T, feedback_of, images, masked, naive, network

from soul_deploy import ir
from soul_deploy.analysis.connectivity import connectivity
from soul_deploy.analysis.measure import count
from soul_deploy.base import files
from soul_deploy.base.errors import FileFormatError, UnsupportedGraphError, UsageError
from soul_deploy.equivalence.verdict import Verdict
from soul_deploy.export.event.build import build_event_network, export_event
from soul_deploy.export.onnx.model import export_onnx
from soul_deploy.export.onnx.step import export_step
from soul_deploy.export.verify.event_run import verify_counts
from soul_deploy.export.verify.verify import verify
from soul_deploy.lowering.deploy import lower
from soul_deploy.model import file
from soul_deploy.model.model import Model
from soul_deploy.runtime.bench.scipy_engine import ScipyEngine
from soul_deploy.runtime.engine.network import Network, load
from soul_deploy.runtime.io.inspect import describe_file
from soul_deploy.runtime.ops.counted_run import count_run


@pytest.mark.parametrize("with_masks", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_every_engine_gives_the_spikes_of_a_naive_run(kind: str, with_masks: bool) -> None:
    model = masked(network(kind)) if with_masks else network(kind)
    x = images(model, 2, steps=T)
    expected = [naive(model, x[:, b]) for b in range(2)]
    spikes = {n: np.stack([run.spikes[n] for run in expected], 1) for n in ("p", "q")}
    assert all(each.any() for each in spikes.values())
    record = model.module().record(torch.from_numpy(x))
    events = Network(build_event_network(model))
    counted = count_run(events, x)
    for name, sent in spikes.items():
        np.testing.assert_array_equal(record.spikes[name].numpy(), sent)
        np.testing.assert_array_equal(counted.recording.spikes[name], sent)
        synops = sum(run.synops[name] for run in expected)
        live = lower(model).trimmed.model.neuron_masks.get(name)
        if live is None or live.sum() == model.neuron_masks.get(name, live).sum():
            assert counted.counts[f"{name}.back"].synops == synops > 0
    engine = ScipyEngine(Path(), 1)
    engine.prepare(events.events)
    np.testing.assert_allclose(engine.infer(x), events.run(x), atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_threads_streams_and_copies_change_nothing(kind: str) -> None:
    model = masked(network(kind))
    events = build_event_network(model)
    shown, moving = images(model), images(model, steps=T)
    for x in (shown, moving):
        ours, several = (Network(events, threads).run(x) for threads in (1, 3))
        np.testing.assert_array_equal(ours, several)
        one = x[:1] if x is shown else x[:, :1]
        np.testing.assert_array_equal(Network(events, 3).run(one), ours[:1])
    stream = Network(events).stream()
    scores = []
    for t, frame in enumerate(moving):
        stream = copy.deepcopy(stream) if t == 3 else stream
        scores.append(stream.step(frame))
    np.testing.assert_allclose(np.mean(scores, 0), Network(events).run(moving), atol=1e-6)
    stream.reset()
    steps = [stream.step(shown if t == 0 else None) for t in range(T)]
    np.testing.assert_allclose(np.mean(steps, 0), Network(events).run(shown), atol=1e-6)


def test_what_is_in_front_of_a_feedback_is_computed_once() -> None:
    """A static image's current is one step; behind the feedback nothing is."""
    events = build_event_network(network("linear"))
    assert events.static == {"input", "first"}
    assert network("linear").graph.static == ("input", "first")


@pytest.mark.parametrize("kind", KINDS)
def test_files_are_verified_layer_by_layer_and_whole(kind: str, tmp_path: Path) -> None:
    model = masked(network(kind)) if kind == "convolution" else network(kind)
    shown = torch.from_numpy(images(model, 6))
    moving = torch.from_numpy(images(model, 6, steps=T))
    path = tmp_path / "network.onnx"
    for functions in (False, True):
        export_onnx(model, path, input_mode="sequence", outputs="spikes", functions=functions)
        assert verify(model, path, moving).verdict is Verdict.PASSED
    export_onnx(model, path, fixed_batch=4)
    assert verify(model, path, shown).verdict is Verdict.PASSED
    for given in ("image", "current"):
        export_step(model, path, static_input=given)
        assert verify(model, path, shown).verdict is Verdict.PASSED
    names = {value.name for value in load_onnx(path).graph.input}
    assert {"spikes_0_in", "spikes_1_in", "v_0_in"} <= names
    for representation in ("implicit", "explicit"):
        event = tmp_path / "network.event"
        export_event(model, event, representation=representation, images=shown)
        assert verify(model, event, shown).verdict is Verdict.PASSED
    check = verify_counts(model, shown)
    assert check.verdict is Verdict.PASSED, check.line()


def rounded(model: Model, seed: int = 3) -> Model:
    """With weights off the grid, so that sums round."""
    random = np.random.default_rng(seed)
    state = {
        n: (a + random.normal(size=a.shape) * 0.01).astype(np.float32)
        for n, a in model.state.items()
    }
    return replace(model, state=state)


def test_sums_that_round_are_explained(tmp_path: Path) -> None:
    model = rounded(network("convolution"))
    x = torch.from_numpy(images(model, 24, steps=T))
    export_event(model, tmp_path / "network.event")
    export_onnx(model, tmp_path / "network.onnx", input_mode="sequence")
    for name in ("network.event", "network.onnx"):
        assert verify(model, tmp_path / name, x).verdict is Verdict.PASSED


def test_a_changed_synapse_of_a_feedback_is_found(tmp_path: Path) -> None:
    """By the static check; where that cannot compare, layer by layer."""
    model = network("linear")
    x = torch.from_numpy(images(model, 8, steps=T))
    export_onnx(model, tmp_path / "right.onnx", input_mode="sequence")
    export_event(model, tmp_path / "right.event")
    weight = model.state["p.back.weight"].copy()
    weight[3] += 1.5
    other = replace(model, state={**model.state, "p.back.weight": weight})
    for name in ("right.onnx", "right.event"):
        report = verify(other, tmp_path / name, x)
        assert report.verdict is Verdict.FAILED
        assert "p.back" in report.text()
    foreign = load_onnx(tmp_path / "right.onnx")
    for tensor in foreign.graph.initializer:
        if tensor.name == "p.back.weight":
            tensor.CopyFrom(numpy_helper.from_array(weight, tensor.name))
    del foreign.metadata_props[:]
    save(foreign, str(tmp_path / "wrong.onnx"))
    report = verify(model, tmp_path / "wrong.onnx", x)
    assert report.comparison is not None
    unexplained = {each.layer: each.unexplained for each in report.comparison.forced.layers}
    assert report.verdict is Verdict.FAILED and unexplained["p"] > 0 == unexplained["q"]


def hand_counted() -> Model:
    """Two inputs, two IF neurons that fire at 1: the first feeds 1 to the second, that 0.5 back."""
    neuron = ir.NeuronSpec("if", fire="ge")
    nodes = (
        ir.Input("input", (), (2,)),
        ir.Linear("first", ("input",), False, None, 2, 2),
        ir.Population(
            "p", ("first",), neuron, feedback=ir.Linear("back", ("p",), False, None, 2, 2)
        ),
        ir.Readout("head", ("p",), 1, bias=False),
    )
    state = {
        "first.weight": np.eye(2, dtype=np.float32),
        "back.weight": np.array([[0, 0.5], [1, 0]], np.float32),
        "head.weight": np.ones((1, 2), np.float32),
    }
    return Model(ir.SpikingGraph(nodes, 4), state)


FRAMES = np.array([[[1, 0]], [[0, 0]], [[0, 0]], [[1, 0]]], np.float32)
"""Step 1 makes the first neuron fire, which makes the second fire in step 2, which leaves 0.5 in
the first in step 3; in step 4 that fires again, and its spike reaches nobody any more."""


def test_a_feedback_counts_what_it_brings_of_the_step_before() -> None:
    """docs/counting.md, integer by integer, on both sides and in the report."""
    model = hand_counted()
    spikes = model.module().record(torch.from_numpy(FRAMES)).spikes["p"][:, 0].tolist()
    assert spikes == [[True, False], [False, True], [False, False], [True, False]]
    ours = {layer.name: layer.counts for layer in count(model, torch.from_numpy(FRAMES)).layers}
    theirs = count_run(Network(build_event_network(model)), FRAMES).counts
    for counts in (ours, theirs):
        assert set(counts) == {"first", "back", "head"}
        back = counts["back"]
        assert (back.events_in, back.spikes_in, back.synops_events, back.synops) == (2, 2, 2, 2)
        assert (back.touched, back.neuron_updates, back.spikes_out, back.bias_adds) == (2, 8, 3, 0)
        assert (counts["first"].macs_effective, counts["first"].neuron_updates) == (2, 0)
        assert counts["head"].synops == 3
    report = count(model, torch.from_numpy(FRAMES))
    (row,) = [layer for layer in report.layers if layer.name == "back"]
    assert (row.synapses, row.synapses_dense, row.weights_nz, row.neurons) == (2, 4, 2, 2)
    rows = {layer.projection: (layer.live, layer.dense) for layer in connectivity(model).layers}
    assert rows == {"first": (2, 4), "back": (2, 4)}


def test_neurons_that_only_feed_nobody_are_left_out() -> None:
    """Of four neurons the head reads the first; the second feeds it, the third feeds the second,
    the fourth only itself.
    """
    nodes = (
        ir.Input("input", (), (4,)),
        ir.Linear("first", ("input",), False, None, 4, 4),
        ir.Population(
            "p",
            ("first",),
            ir.NeuronSpec("if"),
            feedback=ir.Linear("back", ("p",), False, None, 4, 4),
        ),
        ir.Readout("head", ("p",), 1, bias=False),
    )
    weight = np.zeros((4, 4), np.float32)
    weight[0, 1] = weight[1, 2] = weight[3, 3] = 1
    state = {
        "first.weight": np.eye(4, dtype=np.float32) * 2,
        "back.weight": weight,
        "head.weight": np.array([[1, 0, 0, 0]], np.float32),
    }
    model = Model(ir.SpikingGraph(nodes, 3), state)
    assert lower(model).live_neurons["p"].tolist() == [True, True, True, False]
    (_, layer) = build_event_network(model, representation="explicit").layers
    assert layer.feedback is not None and layer.feedback.synapses.rows.synapses == 2


@pytest.mark.parametrize("kind", KINDS)
def test_files_hold_feedbacks(kind: str, tmp_path: Path) -> None:
    model = masked(network(kind))
    file.save(model, tmp_path / "network.safetensors")
    loaded = file.load(tmp_path / "network.safetensors")
    assert loaded.graph == model.graph
    export_event(model, tmp_path / "network.event")
    x = images(model)
    events = load(tmp_path / "network.event", 1)
    np.testing.assert_array_equal(events.run(x), Network(build_event_network(model)).run(x))
    described = describe_file(tmp_path / "network.event")
    (row,) = [row for row in described["layers"] if row["layer"] == "p"]
    assert row["operation"].startswith("recurrent_") and row["projection"] == "p.back"


def test_graphs_without_a_feedback_are_written_as_before() -> None:
    graph = network("linear").graph
    plain = graph.with_nodes({p.name: replace(p, feedback=None) for p in graph.populations})
    text = json.dumps(plain.to_json())
    assert "feedback" not in text and ir.SpikingGraph.from_json(plain.to_json()) == plain


BACK = feedback_of("linear", "p", (10,))
WRONG: list[tuple[ir.Node, str]] = [
    (replace(BACK, inputs=("first",)), "reads .* the population's own spikes"),
    (ir.Linear("back", ("p",), True, None, 10, 9), r"gives \(9,\), but the current"),
    (ir.Linear("back", ("p",), True, None, 9, 10), r"input \(10,\)"),
    (ir.OneToOne("back", ("p",), 0.0), "factor 0.0 must be finite and not 0"),
    (ir.Linear("back", ("p",), True, ir.BatchNorm("norm"), 10, 10), "a batch norm in a feedback"),
]


@pytest.mark.parametrize(("back", "text"), WRONG, ids=[text for _, text in WRONG])
def test_feedbacks_that_do_not_fit_are_refused(back: ir.Node, text: str) -> None:
    graph = network("linear").graph
    population = graph["p"]
    assert isinstance(population, ir.Population)
    with pytest.raises(UsageError, match=text):
        graph.with_nodes({"p": replace(population, feedback=back)})


def test_neurons_that_mix_all_steps_have_no_feedback() -> None:
    with pytest.raises(UsageError, match="p: feedback of neurons that mix all steps"):
        network("linear", neuron=ir.NeuronSpec("psn"))


def test_two_layers_of_one_name_are_refused() -> None:
    graph = network("linear").graph
    population = graph["q"]
    assert isinstance(population, ir.Population)
    with pytest.raises(UnsupportedGraphError, match="two nodes are called 'first'"):
        graph.with_nodes({"q": replace(population, feedback=ir.OneToOne("first", ("q",), 1.0))})


DAMAGE: list[tuple[dict[str, object], str]] = [
    ({"source": "first"}, "p.back: the feedback of p reads 'first'"),
    ({"edge": "graded", "bound": 2}, "takes graded values up to 2, but p sends spike ones up to 1"),
    ({"in_shape": [9]}, "p.back|rows"),
    ({"operation": "matrix"}, "KeyError|feedback by"),
    ({"name": "q"}, "q/"),
]


@pytest.mark.parametrize(("changed", "text"), DAMAGE, ids=[text for _, text in DAMAGE])
def test_event_files_with_a_damaged_feedback_are_refused(
    changed: dict[str, object], text: str, tmp_path: Path
) -> None:
    export_event(network("linear"), tmp_path / "network.event")
    opened = files.read_tensors(tmp_path / "network.event")
    told = opened.document("soul-deploy/event/1")
    (entry,) = [layer for layer in told["layers"] if layer["name"] == "p"]
    entry["feedback"] |= changed
    files.write_tensors(tmp_path / "network.event", opened.tensors, told)
    with pytest.raises(FileFormatError, match=text):
        load(tmp_path / "network.event")
