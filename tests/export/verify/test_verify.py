"""The three gates on wrong artifacts: each kind of wrongness is seen, and by the gate it should."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from onnx import ModelProto, helper, numpy_helper
from torch import Tensor, nn

from soul_deploy.base.errors import FileFormatError, MissingFileError, ValidityError
from soul_deploy.cli.main import root
from soul_deploy.equivalence.engines import Comparer, ExecutionRun, LayerRun
from soul_deploy.equivalence.reference import ReferenceModel
from soul_deploy.equivalence.verdict import Verdict
from soul_deploy.export.event.build import build_event_network, export_event
from soul_deploy.export.onnx.model import build_onnx, export_onnx
from soul_deploy.export.verify import event as event_check
from soul_deploy.export.verify.event_run import EventExecution
from soul_deploy.export.verify.onnx import OnnxExecution
from soul_deploy.export.verify.onnx_static import StaticCheck, check_static
from soul_deploy.export.verify.verify import artifact_kind, verify
from soul_deploy.frontend.from_torch import trace
from soul_deploy.ir import NeuronSpec
from soul_deploy.model.file import save
from soul_deploy.model.model import Model, ModelInfo, Normalization, from_module
from soul_deploy.nn import layers
from soul_deploy.nn.graph_module import GraphModule
from soul_deploy.nn.neuron import SpikingNeuron
from soul_deploy.runtime.engine.network import Network
from soul_deploy.runtime.equations import NeuronEquation
from soul_deploy.runtime.format.network import (
    ConvSynapses,
    DenseRows,
    EventNetwork,
    Layer,
    PixelNormalization,
    SpikingLayer,
)
from soul_deploy.runtime.ops.counters import StepCounts

STEPS = 3


def network(time_steps: int = STEPS) -> Model:
    """2×6×6; conv 4, conv 4 (same shape, stride 2, average pooled), linear 5, head 3; all fire."""
    torch.manual_seed(5)
    neuron = NeuronSpec(v_threshold=0.4)
    modules = nn.Sequential(
        layers.Conv2d(4, 4, 3, padding=1),
        SpikingNeuron(neuron, time_steps),
        layers.MaxPool2d(2),
        layers.Conv2d(4, 4, 3, padding=1),
        layers.BatchNorm2d(4),
        SpikingNeuron(neuron, time_steps),
        layers.AvgPool2d(2, 1),
        layers.Flatten(),
        nn.Linear(16, 5),
        SpikingNeuron(neuron, time_steps),
        layers.RateReadout(5, 3),
    )
    module = GraphModule(trace(modules, (4, 6, 6), time_steps))
    module.load_state_dict({name: t * 3 for name, t in modules.state_dict().items()})
    return from_module(module, ModelInfo(classes=("a", "b", "c")))


GOLDEN = network()
X = torch.randn(4, 4, 6, 6, generator=torch.Generator().manual_seed(6))


def comparer() -> Comparer:
    return Comparer(ReferenceModel(GOLDEN))


@pytest.mark.parametrize("kind", ["onnx", "event"])
def test_a_right_artifact_passes_all_gates(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "network"
    (export_onnx if kind == "onnx" else export_event)(GOLDEN, path)
    report = verify(GOLDEN, path, X)
    assert report.passed
    assert report.kind == kind == artifact_kind(path)
    assert report.forced is not None
    assert report.forced.counted is (kind == "event")
    assert report.silent == ()
    text = report.text()
    assert "Verified: yes" in text
    assert "1 static: passed" in text
    wrong = replace(report, problems=("a structure that the graph lacks",))
    assert wrong.verdict is Verdict.FAILED and not wrong.passed
    document = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert document["schema"] == "soul-deploy/verify/3"
    assert document["carried_by"] == ["static", "forced", "end_to_end"]
    assert document["static"] == {
        "passed": True,
        "comparable": True,
        "problems": [],
        "incomparable": [],
    }
    assert document["passed"] is True
    assert [layer["layer"] for layer in document["end_to_end"]["layers"]] == ["1", "5", "9"]


# ONNX: how a file is spoiled, and what the static gate says about it.


def _change_weight(file: ModelProto) -> None:
    tensor = next(t for t in file.graph.initializer if t.name == "3.weight")
    array = numpy_helper.to_array(tensor).copy()
    array[1, 2, 0, 0] += 1
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


def _swap_layers(file: ModelProto) -> None:
    found = {t.name: t for t in file.graph.initializer}
    found["0.weight"].name, found["3.weight"].name = "3.weight", "0.weight"


def _change_threshold(file: ModelProto) -> None:
    tensor = next(t for t in file.graph.initializer if t.name == "5.threshold")
    tensor.CopyFrom(numpy_helper.from_array(np.array([0.5], np.float32), tensor.name))


def _skip_a_step(file: ModelProto) -> None:
    for node in file.graph.node:
        if node.name.startswith("5/1/charge"):
            node.input[:] = ["5.membrane" if n == "5.membrane.0" else n for n in node.input]


def _change_comparison(file: ModelProto) -> None:
    """It differs on ties only, which nothing that runs would show."""
    node = next(n for n in file.graph.node if n.name == "5/1/fire.4")
    node.op_type = "GreaterOrEqual"


def _change_call(file: ModelProto) -> None:
    node = next(n for n in file.graph.node if n.output[0] == "5.spike.1")
    next(a for a in node.attribute if a.name == "threshold").f = 0.5


def _skip_a_call(file: ModelProto) -> None:
    node = next(n for n in file.graph.node if n.output[0] == "5.spike.1")
    node.input[0] = "5.membrane"


def _change_function(file: ModelProto) -> None:
    node = next(n for n in file.functions[0].node if n.op_type == "Greater")
    node.op_type = "GreaterOrEqual"


def _change_stride(file: ModelProto) -> None:
    node = next(n for n in file.graph.node if n.op_type == "AveragePool")
    attribute = next(a for a in node.attribute if a.name == "count_include_pad")
    attribute.i = 0


def _change_steps(file: ModelProto) -> None:
    file.CopyFrom(build_onnx(network(STEPS + 1)))


def _change_metadata(file: ModelProto) -> None:
    next(entry for entry in file.metadata_props if entry.key == "input_mode").value = "sequence"


def _told(key: str, value: str | None) -> Callable[[ModelProto], None]:
    """Another value of a metadata key, or none."""

    def change(file: ModelProto) -> None:
        kept = {e.key: e.value for e in file.metadata_props} | {key: value or ""}
        helper.set_model_props(file, {k: v for k, v in kept.items() if v or k != key})

    change.__name__ = f"{key}_{value}"
    return change


def _declare_another_height(file: ModelProto) -> None:
    value = next(v for v in file.graph.value_info if v.name == "1")
    value.type.tensor_type.shape.dim[2].dim_value += 1


def _declare_another_type(file: ModelProto) -> None:
    value = next(v for v in file.graph.value_info if v.name == "1")
    value.type.tensor_type.elem_type = onnx.TensorProto.DOUBLE


SPOILED: dict[Callable[[ModelProto], None], str] = {
    _change_weight: "3.weight: 1 of 144 values differ from the folded weights",
    _swap_layers: "0.weight: 144 of 144 values differ",
    _change_threshold: "5.threshold is [0.5], the graph says 0.4",
    _skip_a_step: "node '5/1/charge.0' is not what the graph says",
    _change_comparison: "node '5/1/fire.4' is not what the graph says",
    _change_call: "5.spike.1: soul_lif_decay_gt_hard",
    _skip_a_call: "node '5.spike.1' is not what the graph says",
    _change_function: "function 'soul_lif_decay_gt_hard' is not what the graph says",
    _change_stride: "node '6' is not what the graph says",
    _change_steps: "metadata time_steps is '4', the graph says '3'",
    _change_metadata: "metadata input_mode is 'sequence', the file's is 'static'",
    _told("classes", '["b", "a", "c"]'): 'metadata classes is \'["b", "a", "c"]\', the model says',
    _told("classes", None): "metadata classes is None, the model says",
    _told("normalization", '{"mean": [0.5], "std": [0.5]}'): "metadata normalization is",
    _told("validity", '{"reset_per_sample": true, "time_steps": null}'): "metadata validity is",
    _told("input_kind", "counts"): "metadata input_kind is 'counts', the model says 'images'",
    _told("normalization_applied_by", "file"): "the model says 'caller'",
    _told("encoding", "Poisson"): "metadata encoding is 'Poisson', the model says",
    _told("decode", "max"): "metadata decode is 'max', the model says",
    _told("fire", "v >= v_threshold"): "metadata fire is",
    _told("neurons", "{}"): "metadata neurons is '{}'",
    _declare_another_height: "value '1' is declared as float ['time_batch', 4, 7, 6], the graph",
    _declare_another_type: "value '1' is declared as double",
}
CALLS = (_change_call, _skip_a_call, _change_function)


@pytest.mark.parametrize("spoil", SPOILED, ids=lambda spoil: spoil.__name__)
def test_a_wrong_onnx_file_fails_the_static_gate(
    spoil: Callable[[ModelProto], None], tmp_path: Path
) -> None:
    file = build_onnx(GOLDEN, functions=spoil in CALLS)
    assert check_static(GOLDEN, file) == StaticCheck(())
    spoil(file)
    path = tmp_path / "wrong.onnx"
    onnx.save(file, path)
    report = verify(GOLDEN, path, X)
    assert not report.passed
    assert any(SPOILED[spoil] in problem for problem in report.problems), report.problems
    assert report.forced is None
    assert report.carried_by == ("static",)
    assert "1 static: FAILED" in report.text()
    assert "Verified: NO" in report.text()


def test_what_a_file_of_ours_does_not_declare_is_no_difference(tmp_path: Path) -> None:
    """Populations' spikes are compared nonetheless."""
    file = build_onnx(GOLDEN)
    del file.graph.value_info[:]
    onnx.save(file, tmp_path / "net.onnx")
    report = verify(GOLDEN, tmp_path / "net.onnx", X)
    assert report.passed and report.end_to_end is not None and report.end_to_end.spikes_compared


def test_a_file_of_ours_that_does_not_open_has_failed(tmp_path: Path) -> None:
    """ONNX Runtime knows no such operators, which no node uses."""
    path, model = tmp_path / "net.onnx", tmp_path / "model.safetensors"
    file = build_onnx(GOLDEN)
    file.opset_import.append(helper.make_opsetid("ai.onnx.ml", 99))
    onnx.save(file, path)
    save(GOLDEN, model)
    report = verify(GOLDEN, path, X)
    assert report.verdict is Verdict.FAILED and report.carried_by == ("end_to_end",)
    result = CliRunner().invoke(root, ["verify", str(model), str(path), "--input", "random"])
    assert result.exit_code == 1 and isinstance(result.exception, SystemExit)
    assert "3 end to end: FAILED, the file does not run as the model" in result.stdout
    assert result.stderr.count("Error:") == 1


RUNNING = (
    _change_weight,
    _swap_layers,
    _change_threshold,
    _skip_a_step,
    _change_call,
    _skip_a_call,
)


@pytest.mark.parametrize("spoil", RUNNING, ids=lambda spoil: spoil.__name__)
def test_a_wrong_onnx_file_fails_when_it_runs(spoil: Callable[[ModelProto], None]) -> None:
    file = build_onnx(GOLDEN, functions=spoil in CALLS)
    spoil(file)
    execution = OnnxExecution(file, GOLDEN)
    forced = comparer().forced(execution, X)
    assert not forced.passed
    assert forced.unexplained > 0
    assert not comparer().end_to_end(execution, X).passed


def test_another_source_is_seen(tmp_path: Path) -> None:
    for kind, export in (("onnx", export_onnx), ("event", export_event)):
        path = tmp_path / kind
        export(GOLDEN, path, source_sha256="aa" * 32)
        assert verify(GOLDEN, path, X, source_sha256="aa" * 32).passed
        report = verify(GOLDEN, path, X, source_sha256="bb" * 32)
        assert not report.passed
        assert "made from a file with sha256 aaaaaaaaaaaaaaaa" in report.problems[0]


def test_a_wrong_head_is_seen_in_the_logits() -> None:
    file = build_onnx(GOLDEN)
    tensor = next(t for t in file.graph.initializer if t.name == "10.bias")
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) + 1e-4, tensor.name))
    execution = OnnxExecution(file, GOLDEN)
    for found in (comparer().forced(execution, X), comparer().end_to_end(execution, X)):
        assert found.unexplained == 0
        assert found.logit_difference == pytest.approx(1e-4, rel=0.01)
        assert not found.passed


# Event networks.


def _event_weight(network: EventNetwork) -> EventNetwork:
    first, *rest = network.layers
    weight = _rows(first).weight.copy()
    weight.reshape(-1)[7] += 1
    return replace(network, layers=(_with_rows(first, DenseRows(weight)), *rest))


def _event_zero(network: EventNetwork) -> EventNetwork:
    """No synapses onto the first neuron of layer 9: the fan-out map and the counts see it too."""
    *rest, last = network.layers
    weight = _rows(last).weight.copy()
    weight[:, 0] = 0
    return replace(network, layers=(*rest, _with_rows(last, DenseRows(weight))))


def _rows(layer: Layer) -> DenseRows:
    assert isinstance(layer, SpikingLayer)
    assert isinstance(layer.synapses.rows, DenseRows)
    return layer.synapses.rows


def _with_rows(layer: Layer, rows: DenseRows) -> SpikingLayer:
    assert isinstance(layer, SpikingLayer)
    return replace(layer, synapses=replace(layer.synapses, rows=rows))


def _event_swap(network: EventNetwork) -> EventNetwork:
    """Layers 1 and 5 have weights of one shape."""
    first, pool, second, last = network.layers
    rows = _rows(first), _rows(second)
    swapped = _with_rows(first, rows[1]), pool, _with_rows(second, rows[0]), last
    return replace(network, layers=swapped)


def _event_neuron(network: EventNetwork) -> EventNetwork:
    first, *rest = network.layers
    assert isinstance(first, SpikingLayer)
    assert isinstance(first.neuron, NeuronEquation)
    neuron = replace(first.neuron, fire="ge")
    return replace(network, layers=(replace(first, neuron=neuron), *rest))


def _event_steps(network: EventNetwork) -> EventNetwork:
    return replace(network, time_steps=STEPS + 1)


def _event_bias(network: EventNetwork) -> EventNetwork:
    assert network.readout.bias is not None
    return replace(network, readout=replace(network.readout, bias=network.readout.bias + 1))


def _event_classes(network: EventNetwork) -> EventNetwork:
    return replace(network, classes=("a", "b", "d"))


def _event_normalization(network: EventNetwork) -> EventNetwork:
    return replace(network, normalization=PixelNormalization((0.5,), (0.5,)))


def _event_kind(network: EventNetwork) -> EventNetwork:
    return replace(network, input_kind="counts")


WRONG_EVENTS: dict[Callable[[EventNetwork], EventNetwork], str] = {
    _event_weight: "1: weights: 1 of 144 entries differ",
    _event_zero: "9: weights: 36 of",
    _event_swap: "1: weights: 144 of 144 entries differ",
    _event_neuron: "1: neuron is",
    _event_steps: "T is 4, the graph says 3",
    _event_bias: "readout: bias: 3 of 3 entries differ",
    _event_classes: "class names is",
    _event_normalization: "normalisation is ((0.5,), (0.5,)), the graph says None",
    _event_kind: "the kind of input is counts, the graph says images",
}


@pytest.mark.parametrize("spoil", WRONG_EVENTS, ids=lambda spoil: spoil.__name__)
def test_a_wrong_event_network_fails_the_static_gate(
    spoil: Callable[[EventNetwork], EventNetwork],
) -> None:
    events = build_event_network(GOLDEN)
    assert event_check.event_problems(GOLDEN, Network(events)) == ()
    problems = event_check.event_problems(GOLDEN, Network(spoil(events)))
    assert any(WRONG_EVENTS[spoil] in problem for problem in problems), problems


@pytest.mark.parametrize("spoil", [_event_weight, _event_swap])
def test_a_wrong_event_network_fails_when_it_runs(
    spoil: Callable[[EventNetwork], EventNetwork],
) -> None:
    execution = EventExecution(Network(spoil(build_event_network(GOLDEN))), ReferenceModel(GOLDEN))
    assert comparer().forced(execution, X).unexplained > 0
    assert not comparer().end_to_end(execution, X).passed


def test_a_synapse_less_is_seen_in_the_counts() -> None:
    execution = EventExecution(
        Network(_event_zero(build_event_network(GOLDEN))), ReferenceModel(GOLDEN)
    )
    found = comparer().forced(execution, X)
    assert {"synops", "synops_events"} <= {m.count for m in found.mismatches if m.layer == "8"}
    assert "8: synops is" in str(next(m for m in found.mismatches if m.count == "synops"))
    assert not found.passed


def one_more(counts: StepCounts) -> StepCounts:
    """One spike too many, at the last step of the last sample."""
    spikes = counts.values.get("spikes_out", np.zeros((GOLDEN.graph.time_steps, len(X)), np.int64))
    spikes = spikes.copy()
    spikes[-1, -1] += 1
    return StepCounts({**counts.values, "spikes_out": spikes})


class Miscounting(EventExecution):
    """Runs rightly, counts wrongly."""

    def run(self, images: Tensor) -> ExecutionRun:
        run = super().run(images)
        assert run.counts is not None
        wrong = {name: replace(c, touched=c.touched + 1) for name, c in run.counts.items()}
        return replace(run, counts=wrong)

    def run_layer(self, layer: str, values: object) -> LayerRun:
        run = super().run_layer(layer, values)  # type: ignore[arg-type]
        assert run.counts is not None
        return replace(run, counts={name: one_more(c) for name, c in run.counts.items()})


def test_wrong_counts_fail_by_themselves() -> None:
    execution = Miscounting(Network(build_event_network(GOLDEN)), ReferenceModel(GOLDEN))
    forced, whole = comparer().forced(execution, X), comparer().end_to_end(execution, X)
    assert {m.count for m in forced.mismatches} == {"spikes_out"}
    assert {m.place for m in forced.mismatches} == {(GOLDEN.graph.time_steps - 1, len(X) - 1)}
    assert {m.count for m in whole.mismatches} == {"touched"}
    assert not forced.passed
    assert not whole.passed


# What is refused, and what is said.


def test_layers_that_never_spike_are_named_and_leave_it_open(tmp_path: Path) -> None:
    state = {n: a * 0 if n.startswith("0.") else a for n, a in GOLDEN.state.items()}
    quiet = replace(GOLDEN, state=state)
    export_onnx(quiet, tmp_path / "q.onnx")
    report = verify(quiet, tmp_path / "q.onnx", X)
    assert not report.passed
    assert report.verdict is Verdict.INCONCLUSIVE
    assert report.silent[0] == "1"
    assert "Never spiked on these images: 1" in report.text()
    allowed = verify(quiet, tmp_path / "q.onnx", X, allow_silent=True)
    assert allowed.passed
    assert allowed.silent == report.silent
    assert "Never spiked on these images: 1" in allowed.text()


def test_what_is_no_artifact_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="no file at"):
        verify(GOLDEN, tmp_path / "none.onnx", X)
    for name in ("text.onnx", "text.safetensors", "text"):
        (tmp_path / name).write_text("I am a text file")
        with pytest.raises(FileFormatError, match=name):
            verify(GOLDEN, tmp_path / name, X)
    newer = build_onnx(GOLDEN)
    next(e for e in newer.metadata_props if e.key == "format").value = "soul-deploy/onnx/3"
    onnx.save(newer, tmp_path / "newer.onnx")
    with pytest.raises(FileFormatError, match=r"onnx/3'; this version of soul-deploy knows"):
        verify(GOLDEN, tmp_path / "newer.onnx", X)


def test_images_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    export_onnx(GOLDEN, tmp_path / "m.onnx")
    with pytest.raises(ValidityError, match="this network takes"):
        verify(GOLDEN, tmp_path / "m.onnx", X[:, :, :5])


def test_sequences_are_verified(tmp_path: Path) -> None:
    frames = torch.stack([X, X.flip(0), X.roll(1, 3)])
    export_event(GOLDEN, tmp_path / "event")
    export_onnx(GOLDEN, tmp_path / "m.onnx", input_mode="sequence")
    for name in ("event", "m.onnx"):
        report = verify(GOLDEN, tmp_path / name, frames, batch=2)
        assert report.passed, report.text()
        assert report.images == "4 samples"


def test_stored_rows_are_spelled_out_as_they_were() -> None:
    """Sparse and grouped rows too: event_check's dense weights are the composed operator's."""
    torch.manual_seed(8)
    weight = torch.randn(6, 2, 3, 2) * (torch.rand(6, 2, 3, 2) < 0.1)
    modules = nn.Sequential(
        layers.Conv2d(4, 6, (3, 2), groups=2, bias=False),
        SpikingNeuron(NeuronSpec(), 2),
        layers.RateReadout(6, 2),
    )
    modules.load_state_dict(modules.state_dict() | {"0.weight": weight})
    module = GraphModule(trace(modules, (4, 5, 5), 2))
    module.load_state_dict(modules.state_dict())
    info = ModelInfo(normalization=Normalization((0.5,) * 4, (0.1,) * 4))
    events = build_event_network(from_module(module, info))
    (layer,) = events.spiking_layers
    assert isinstance(layer.synapses, ConvSynapses)
    assert not isinstance(layer.synapses.rows, DenseRows)
    np.testing.assert_array_equal(event_check.convolution_weight(layer.synapses), weight.numpy())
