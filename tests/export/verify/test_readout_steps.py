"""What becomes of the steps (mean, sum, last, maximum), the same in every engine and every file.

The small network sends its input on as spikes, so that every score and every count is one that a
hand can add up (docs/counting.md has the numbers).
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from chains import build, chains, images
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import soul_deploy
from soul_deploy import ir
from soul_deploy.analysis.other_tools import compat_model
from soul_deploy.analysis.synops import count_model
from soul_deploy.base import errors, files
from soul_deploy.base.reduction import LOOPS, OVER_TIME, OverTime
from soul_deploy.equivalence.verdict import Verdict
from soul_deploy.export.onnx.step import export_step
from soul_deploy.export.verify.event_run import verify_counts
from soul_deploy.ir.neurons import SOUL_NEURONS
from soul_deploy.model.model import Model, ModelInfo
from soul_deploy.runtime.bench.scipy_engine import ScipyEngine
from soul_deploy.runtime.format.file import FORMAT, FORMAT_OVER_TIME
from soul_deploy.runtime.ops import counted_run

T = 4
SPIKES = [[1, 0, 1], [1, 1, 0], [0, 1, 0], [1, 0, 0]]
HEAD = [[1.0, 2.0, 4.0], [-1.0, 0.0, 8.0]]
BIAS = [0.5, -3.0]
OF_STEPS = [[5.5, 4.0], [3.5, -4.0], [2.5, -3.0], [1.5, -4.0]]
SCORES: dict[OverTime, list[float]] = {
    "mean": [3.25, -1.75],  # (11, 5) / 4 + bias
    "sum": [13.0, -7.0],  # (11, 5) + 4 · bias
    "last": [1.5, -4.0],
    "max": [5.5, 4.0],
}
NAMES = ("events_in", "spikes_in", "synops_events", "synops", "touched", "bias_adds")
COUNTS: dict[OverTime, tuple[int, ...]] = {
    "mean": (3, 6, 5, 10, 2, 2),  # (3, 2, 1) spikes, of which 2, 1 and 2 synapses leave
    "sum": (3, 6, 5, 10, 2, 2),
    "last": (1, 1, 2, 2, 2, 2),
    "max": (6, 6, 10, 10, 7, 8),
}


def counted(counts: Any) -> tuple[int, ...]:
    return tuple(getattr(counts, name) for name in NAMES)


def small(over_time: OverTime, **fields: Any) -> Model:
    """Spikes as given, T = 4, and a head of two classes, or what the readout's `fields` say."""
    neuron = ir.NeuronSpec("if", v_threshold=1.0, v_reset=0.0, fire="ge")
    readout = ir.Readout("head", ("spikes",), 2, over_time=over_time)
    readout = replace(readout, **fields)
    nodes = (
        ir.Input("input", (), (3,)),
        ir.Linear("link", ("input",), False, None, 3, 3),
        ir.Population("spikes", ("link",), neuron),
        readout,
    )
    state = {"link.weight": np.eye(3, dtype=np.float32)}
    if readout.linear:
        state |= {
            "head.weight": np.array(HEAD, np.float32),
            "head.bias": np.array(BIAS, np.float32),
        }
    return Model(ir.SpikingGraph(nodes, T), state, info=ModelInfo(input_kind="spikes"))


def shown() -> Tensor:
    """(T, 1, 3)."""
    return torch.tensor(SPIKES, dtype=torch.float32)[:, None]


every = pytest.mark.parametrize("over_time", OVER_TIME)


@every
def test_scores_by_hand_in_pytorch(over_time: OverTime) -> None:
    module = small(over_time).module()
    assert module(shown()).tolist() == [SCORES[over_time]]
    assert module.per_step(shown())[:, 0].tolist() == OF_STEPS


@every
def test_scores_by_hand_in_a_model_file(over_time: OverTime, tmp_path: Path) -> None:
    soul_deploy.save(small(over_time), tmp_path / "m.safetensors")
    loaded = soul_deploy.load(tmp_path / "m.safetensors")
    assert loaded.graph.readout.over_time == over_time
    assert loaded.module()(shown()).tolist() == [SCORES[over_time]]


def test_a_mean_is_written_as_before() -> None:
    """Earlier versions know no `over_time`: they read a mean, and refuse the others."""
    told = ir.node_to_json(small("mean").graph.readout)
    assert told == {
        "op": "readout", "name": "head", "inputs": ["spikes"], "classes": 2, "linear": True,
        "bias": True, "votes": 1,
    }  # fmt: skip
    assert ir.node_from_json(told, ir.Readout).over_time == "mean"
    assert ir.node_to_json(small("max").graph.readout)["over_time"] == "max"


def test_another_over_time_is_refused() -> None:
    with pytest.raises(errors.UsageError, match=r"head: over_time 'median'; valid: mean, sum, la"):
        small("median")  # type: ignore[arg-type]
    graph = small("max").graph.to_json()
    graph["nodes"][-1]["over_time"] = 3
    with pytest.raises(errors.FileFormatError, match="over_time 3 is not text"):
        ir.SpikingGraph.from_json(graph)


@every
@pytest.mark.parametrize("opset", [17, 18])
def test_scores_by_hand_in_onnx(over_time: OverTime, opset: int, tmp_path: Path) -> None:
    form: Any = {"input_mode": "sequence", "opset": opset}
    soul_deploy.export_onnx(small(over_time), tmp_path / "m.onnx", **form)
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    (scores,) = session.run(None, {"input": shown().numpy()})
    assert scores.tolist() == [SCORES[over_time]]


@every
@pytest.mark.parametrize("opset", [17, 18])
def test_all_steps_by_hand_in_onnx(over_time: OverTime, opset: int, tmp_path: Path) -> None:
    """A file of all steps that yields the scores of each."""
    form: Any = {"input_mode": "sequence", "opset": opset, "outputs": "steps"}
    path = tmp_path / "m.onnx"
    soul_deploy.export_onnx(small(over_time), path, **form)
    (scores,) = onnxruntime.InferenceSession(path).run(None, {"input": shown().numpy()})
    assert scores[:, 0].tolist() == OF_STEPS
    said = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    assert said["outputs"] == "steps"
    assert said["combine"] == LOOPS[over_time].format(scores="logits")
    report = soul_deploy.verify(small(over_time), path, shown())
    assert report.passed, report.text()


IN_NUMPY = {
    "mean": lambda steps: steps.mean(axis=0),
    "sum": lambda steps: steps.sum(axis=0),
    "last": lambda steps: steps[-1],
    "max": lambda steps: steps.max(axis=0),
}


@every
def test_scores_by_hand_in_a_step_file(over_time: OverTime, tmp_path: Path) -> None:
    """Its caller does what its metadata say."""
    export_step(small(over_time), tmp_path / "m.onnx")
    file = onnx.load(tmp_path / "m.onnx")
    said = {entry.key: entry.value for entry in file.metadata_props}
    assert said["loop"].endswith(LOOPS[over_time].format(scores="logits"))
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    steps, v = [], np.zeros((1, 3), np.float32)
    for frame in shown().numpy():
        logits, v = session.run(None, {"input": frame, "v_0_in": v})
        steps.append(logits)
    assert np.stack(steps)[:, 0].tolist() == OF_STEPS
    assert IN_NUMPY[over_time](np.stack(steps)).tolist() == [SCORES[over_time]]


@every
def test_scores_and_counts_by_hand_in_an_event_network(over_time: OverTime, tmp_path: Path) -> None:
    soul_deploy.export_event(small(over_time), tmp_path / "m.safetensors")
    network = soul_deploy.load_network(tmp_path / "m.safetensors", threads=1)
    assert network.run(shown().numpy()).tolist() == [SCORES[over_time]]
    assert network.run_recorded(shown().numpy()).logits.tolist() == [SCORES[over_time]]
    assert network.run_steps(shown().numpy())[:, 0].tolist() == OF_STEPS
    stream = network.stream()
    assert [stream.step(frame)[0].tolist() for frame in shown().numpy()] == OF_STEPS
    counts = counted_run.count(network, shown().numpy())["head"]
    assert counted(counts) == COUNTS[over_time]
    engine = ScipyEngine(tmp_path / "m.safetensors", 1)
    engine.load()
    assert engine.infer(shown().numpy()).tolist() == [SCORES[over_time]]


@every
def test_the_event_format_rises_only_for_what_is_new(over_time: OverTime, tmp_path: Path) -> None:
    soul_deploy.export_event(small(over_time), tmp_path / "m.safetensors")
    told = files.read_tensors(tmp_path / "m.safetensors").description()
    assert told["format"] == (FORMAT if over_time == "mean" else FORMAT_OVER_TIME)
    assert told["readout"].get("over_time") == (None if over_time == "mean" else over_time)


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("format", FORMAT, "head: over_time 'sum' in a file of soul-deploy/event/1"),
        ("format", "soul-deploy/event/9", r"this command reads '.*event/1'.*'.*event/5'"),
        ("readout", {}, "its description cannot be read"),
        ("over_time", "som", "head: over_time 'som'; known: mean, sum, last, max"),
        ("over_time", 3, "head: over_time 3; known"),
    ],
)
def test_a_damaged_event_file_is_named(key: str, value: Any, text: str, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    soul_deploy.export_event(small("sum"), path)
    found = files.read_tensors(path)
    told = dict(found.description())
    if key == "over_time":
        told["readout"] = {**told["readout"], key: value}
    else:
        told[key] = value
    files.write_tensors(path, {name: a.copy() for name, a in found.tensors.items()}, told)
    with pytest.raises(errors.FileFormatError, match=text):
        soul_deploy.load_network(path)


@every
def test_counts_by_hand_of_the_model(over_time: OverTime) -> None:
    """What the head reads: all steps at once, the last, or one after the other."""
    model = small(over_time)
    counts = count_model(model, shown())["head"]
    assert counted(counts) == COUNTS[over_time]
    assert verify_counts(model, shown()).verdict is Verdict.PASSED


def test_other_tools_count_the_heads_that_run() -> None:
    """NeuroBench: nonzero inputs × nonzero weights of each execution, MACs of counts and ACs of
    single steps' spikes; dense: 6 weights each time.
    """
    found = {how: compat_model(small(how), shown())["head"] for how in OVER_TIME}
    macs = {how: counts.neurobench_macs for how, counts in found.items()}
    assert macs == {"mean": 5, "sum": 5, "last": 0, "max": 0}
    acs = {how: counts.neurobench_acs for how, counts in found.items()}
    assert acs == {"mean": 0, "sum": 0, "last": 2, "max": 10}
    dense = {how: counts.neurobench_dense for how, counts in found.items()}
    assert dense == {"mean": 6, "sum": 6, "last": 6, "max": 24}
    synops = {how: counts.spikingjelly_synops for how, counts in found.items()}
    assert synops == {"mean": 0, "sum": 0, "last": 2, "max": 12}  # zero weights counted


@every
def test_the_report_of_energy_by_hand(over_time: OverTime) -> None:
    """0.9 pJ for each SynOp; dense work of the head for each time that it runs; counts that are
    multiplied cost more, single spikes do not.
    """
    report = soul_deploy.count(small(over_time), shown())
    (head,) = [layer for layer in report.layers if layer.name == "head"]
    assert head.executions == (4 if over_time == "max" else 1)
    assert head.activity.graded == (over_time in ("mean", "sum"))
    assert head.counts.synops == COUNTS[over_time][3]


@every
@pytest.mark.parametrize("kind", ["m.onnx", "step.onnx", "m.safetensors", "m.nir"])
def test_every_file_is_verified(over_time: OverTime, kind: str, tmp_path: Path) -> None:
    model, path = small(over_time), tmp_path / kind
    _write(model, path)
    report = soul_deploy.verify(model, path, shown())
    assert report.passed, report.text()
    assert report.end_to_end is not None and report.end_to_end.logit_difference == 0
    assert report.forced is not None and report.forced.logit_difference == 0


def _write(model: Model, path: Path) -> None:
    if path.name == "step.onnx":
        export_step(model, path)
    elif path.suffix == ".onnx":
        soul_deploy.export_onnx(model, path, input_mode="sequence")
    elif path.suffix == ".nir":
        pytest.importorskip("nir")
        soul_deploy.export_nir(model, path)
    else:
        soul_deploy.export_event(model, path)


@pytest.mark.parametrize("kind", ["m.onnx", "step.onnx", "m.safetensors", "m.nir"])
@pytest.mark.parametrize(("made", "asked"), [("sum", "mean"), ("mean", "max"), ("max", "last")])
def test_a_file_with_another_readout_fails(
    made: OverTime, asked: OverTime, kind: str, tmp_path: Path
) -> None:
    _write(small(made), tmp_path / kind)
    report = soul_deploy.verify(small(asked), tmp_path / kind, shown())
    assert not report.passed
    assert report.problems, report.text()


@every
def test_nir_says_it_in_its_metadata(over_time: OverTime, tmp_path: Path) -> None:
    pytest.importorskip("nir")
    soul_deploy.export_nir(small(over_time), tmp_path / "m.nir")
    again = soul_deploy.import_nir(tmp_path / "m.nir")
    assert again.graph.readout.over_time == over_time
    assert again.module()(shown()).tolist() == [SCORES[over_time]]


@every
def test_votes_by_hand(over_time: OverTime, tmp_path: Path) -> None:
    """Three classes of one neuron each: the spikes themselves."""
    expected = {"mean": [0.75, 0.5, 0.25], "sum": [3, 2, 1], "last": [1, 0, 0], "max": [1, 1, 1]}[
        over_time
    ]
    model = small(over_time, classes=3, linear=False, bias=False)
    assert model.module()(shown()).tolist() == [expected]
    for kind in ("m.onnx", "step.onnx", "m.safetensors", "m.nir"):
        _write(model, tmp_path / kind)
        assert soul_deploy.verify(model, tmp_path / kind, shown()).passed
    network = soul_deploy.load_network(tmp_path / "m.safetensors", threads=1)
    assert network.run(shown().numpy()).tolist() == [expected]


@settings(max_examples=25)
@given(chains(dyadic=True), st.sampled_from(OVER_TIME))
def test_dyadic_networks_agree_to_the_bit(
    tmp_path_factory: pytest.TempPathFactory, spec: Any, over_time: OverTime
) -> None:
    """With maps, poolings, votes and heads; the sum of a power of two of steps' scores is exact."""
    model, folder = build(replace(spec, time_steps=4)), tmp_path_factory.mktemp("files")
    readout = replace(model.graph.readout, over_time=over_time)
    model = replace(model, graph=model.graph.with_nodes({readout.name: readout}))
    x = images(replace(spec, time_steps=4))
    for kind in ("m.onnx", "m.safetensors"):
        if kind == "m.onnx":
            mode: Any = "static" if x.dim() == 4 else "sequence"
            soul_deploy.export_onnx(model, folder / kind, input_mode=mode)
        else:
            soul_deploy.export_event(model, folder / kind)
        report = soul_deploy.verify(model, folder / kind, x, allow_silent=True)
        assert report.passed, report.text()
        assert report.end_to_end is not None and report.end_to_end.logit_difference == 0


@every
@pytest.mark.parametrize("family", ["tlif", "intlif"])
@pytest.mark.parametrize("kind", ["m.onnx", "step.onnx", "m.safetensors", "m.nir"])
def test_signed_and_graded_spikes(
    family: str, over_time: OverTime, kind: str, tmp_path: Path
) -> None:
    """Of neurons that send -1 and 1, and integers: the largest score may be a negative one."""
    model = small(over_time)
    neuron = replace(SOUL_NEURONS[family], v_threshold=0.5)
    (population,) = model.graph.populations
    population = replace(population, neuron=neuron)
    model = replace(model, graph=model.graph.with_nodes({"spikes": population}))
    x = 4 * torch.randn(T, 8, 3, generator=torch.Generator().manual_seed(2))
    model = replace(model, info=ModelInfo(input_kind="values"))
    module = model.module()
    sent = module.evaluate({"input": module.as_signal(x)}, ["spikes"])["spikes"].tensor
    assert sent.max() >= (1 if family == "tlif" else 2)
    assert (sent.min() < 0) == (family == "tlif")
    try:
        _write(model, tmp_path / kind)
    except errors.UnsupportedGraphError as error:
        assert kind == "m.nir" and family in str(error)
        return
    report = soul_deploy.verify(model, tmp_path / kind, x)
    assert report.passed, report.text()
