"""Networks step by step, in ONNX Runtime and in the event runtime: the run of all steps, cut up."""

import json
import pickle
import re
import runpy
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from chains import ChainSpec, build, chains, images, pruned, random_neuron_masks
from click.testing import CliRunner
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import numpy_helper
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument
from places import ROOT
from residual import ResidualSpec, masked, residual_images, residual_model, residuals
from test_onnx import CHARGES, LIF, model_of
from torch import Tensor, nn

from soul_deploy.base import Array
from soul_deploy.base.errors import RemovalError, UsageError, ValidityError
from soul_deploy.cli.main import root
from soul_deploy.equivalence.verdict import Verdict
from soul_deploy.export.event.build import build_event_network, export_event
from soul_deploy.export.onnx.step import (
    build_currents,
    build_step,
    currents_of,
    export_step,
    states_of,
)
from soul_deploy.export.verify.onnx_static import check_static
from soul_deploy.export.verify.onnx_step import StepExecution
from soul_deploy.export.verify.verify import verify
from soul_deploy.ir import NeuronSpec
from soul_deploy.model.file import save
from soul_deploy.model.model import Model, ModelInfo, Validity
from soul_deploy.nn import layers
from soul_deploy.nn.neuron import SpikingNeuron
from soul_deploy.prune.removal.apply import remove
from soul_deploy.prune.removal.planner import plan_removal
from soul_deploy.runtime.engine.network import Network


def session_of(built: onnx.ModelProto) -> Any:
    return onnxruntime.InferenceSession(built.SerializeToString())


class Loop:
    """What a caller does by the file's metadata alone."""

    def __init__(self, built: onnx.ModelProto, batch: int) -> None:
        self.session = session_of(built)
        found = {entry.key: entry.value for entry in built.metadata_props}
        states, counter = json.loads(found["states"]), json.loads(found["counter"])
        self.pairs = {state["output"]: state["input"] for state in states}
        self.held: dict[str, Array] = {
            state["input"]: np.full((batch, *state["shape"]), state["initial"], np.float32)
            for state in states
        }
        if counter is not None:
            self.pairs[counter["output"]] = counter["input"]
            self.held[counter["input"]] = np.full(1, counter["initial"], np.int64)

    def step(self, **given: Array) -> Array:
        scores, *states = self.session.run(["logits", *self.pairs], given | self.held)
        self.held = dict(zip(self.pairs.values(), states, strict=True))
        found: Array = scores
        return found


def looped(built: onnx.ModelProto, x: Tensor) -> Array:
    """Scores (T, batch, classes) for a sequence (T, batch, ...)."""
    loop = Loop(built, x.shape[1])
    return np.stack([loop.step(input=frame.numpy()) for frame in x])


def sequence_of(spec: ChainSpec) -> Tensor:
    x = images(spec)
    return torch.stack([x.roll(t, dims=-1) for t in range(spec.time_steps)])


def per_step(model: Model, x: Tensor) -> Array:
    with torch.no_grad():
        found: Array = model.module().per_step(x).numpy()
    return found


def compacted(spec: ChainSpec, *, exact: bool) -> Model:
    """Channels masked and removed; some stay as generated ones. exact: without folded biases,
    which are rounded to float32."""
    thinned = pruned(build(spec), spec.seed)
    try:
        plan = plan_removal(thinned)
    except RemovalError:
        assume(False)
    assume(not (exact and plan.bias))
    return remove(thinned, plan)


def event_stream(model: Model, x: Tensor) -> Array:
    network = Network(build_event_network(model))
    return np.stack([network.step(frame.numpy()) for frame in x])


@given(chains(dyadic=True))
def test_a_step_file_in_a_loop_is_the_sequence(spec: ChainSpec) -> None:
    model, x = build(spec), sequence_of(spec)
    np.testing.assert_array_equal(looped(build_step(model), x), per_step(model, x))


@given(chains(dyadic=True))
def test_masked_neurons_step_by_step(spec: ChainSpec) -> None:
    model, x = build(spec), sequence_of(spec)
    model = replace(model, neuron_masks=random_neuron_masks(model, spec.seed))
    expected = per_step(model, x)
    np.testing.assert_array_equal(looped(build_step(model), x), expected)
    np.testing.assert_array_equal(event_stream(model, x), expected)


@given(chains(dyadic=True, max_groups=1))
@settings(max_examples=30)
def test_generated_channels_and_removals_of_one_t_step_by_step(spec: ChainSpec) -> None:
    model, x = compacted(spec, exact=True), sequence_of(spec)
    expected = per_step(model, x)
    np.testing.assert_array_equal(looped(build_step(model), x), expected)
    np.testing.assert_array_equal(event_stream(model, x), expected)


@pytest.mark.parametrize("neuron", CHARGES, ids=str)
def test_every_neuron_is_equal_to_the_bit(neuron: NeuronSpec) -> None:
    """One product per current: nothing but the neuron can differ. Membranes are compared too."""
    torch.manual_seed(3)
    network = nn.Sequential(
        layers.Conv2d(1, 5, 1, bias=False), SpikingNeuron(neuron, 6), layers.RateReadout(5, 2)
    )
    model, x = model_of(network, (1, 4, 4), 6), torch.randn(6, 3, 1, 4, 4) * 2
    membranes: list[Tensor] = []
    with torch.no_grad():
        model.module().forward_observed(x, lambda _n, _t, _s, v: membranes.append(v.clone()))
    loop = Loop(build_step(model), 3)
    for frame, v in zip(x, membranes, strict=True):
        loop.step(input=frame.numpy())
        np.testing.assert_array_equal(loop.held["v_0_in"], v.numpy())
    assert len(set(membranes[-1].flatten().tolist())) > 3


@given(chains(dyadic=True))
def test_a_static_image_needs_its_currents_once(spec: ChainSpec) -> None:
    model, x = build(spec), images(spec)
    (name,) = currents_of(model.graph)
    (current,) = session_of(build_currents(model)).run([name], {"input": x.numpy()})
    built = build_step(model, static_input="current")
    assert "input" not in {value.name for value in built.graph.input}
    first = model.graph.populations[0].inputs[0]
    assert not any(tensor.name == f"{first}.weight" for tensor in built.graph.initializer)
    loop = Loop(built, len(x))
    found = np.stack([loop.step(**{name: current}) for _ in range(spec.time_steps)])
    np.testing.assert_array_equal(found, per_step(model, x))


def small(time_steps: int = 4, **info: Any) -> Model:
    torch.manual_seed(1)
    network = nn.Sequential(
        layers.Conv2d(2, 4, 3, padding=1),
        layers.BatchNorm2d(4),
        SpikingNeuron(LIF, time_steps),
        layers.MaxPool2d(2),
        layers.Flatten(),
        nn.Linear(16, 6),
        SpikingNeuron(replace(LIF, v_reset=None), time_steps),
        layers.RateReadout(6, 3),
    )
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(3)
    return model_of(network, (2, 5, 5), time_steps, **info)


def frames(time_steps: int, batch: int = 3) -> Tensor:
    seeded = torch.Generator().manual_seed(5)
    return torch.rand((time_steps, batch, 2, 5, 5), generator=seeded)


def test_a_step_beyond_t_is_an_error_where_t_was_proven() -> None:
    model = small(validity=Validity(4, True))
    loop, x = Loop(build_step(model), 3), frames(4)
    assert loop.held["t_in"] == 0
    found = np.stack([loop.step(input=frame.numpy()) for frame in x])
    np.testing.assert_allclose(found, per_step(model, x), atol=1e-6)
    assert loop.held["t_in"] == 4
    with pytest.raises(InvalidArgument, match="out of data bounds"):
        loop.step(input=x[0].numpy())


def test_without_a_proven_t_there_is_no_counter_and_no_end() -> None:
    built = build_step(small())
    names = [value.name for value in built.graph.input]
    assert names == ["input", "v_0_in", "v_1_in"]
    assert [value.name for value in built.graph.output] == ["logits", "v_0_out", "v_1_out"]
    loop, x = Loop(built, 3), frames(9)
    found = np.stack([loop.step(input=frame.numpy()) for frame in x])
    np.testing.assert_allclose(found, per_step(small(9), x), atol=1e-6)


def test_the_same_input_gives_the_same_bytes() -> None:
    first, second = (build_step(small()).SerializeToString(deterministic=True) for _ in range(2))
    assert first == second


@given(chains(max_groups=1))
@settings(max_examples=25)
def test_the_gates_hold_for_step_files(spec: ChainSpec) -> None:
    model, x = compacted(spec, exact=False), images(spec)
    for given_input, shown in (("image", sequence_of(spec)), ("current", x)):
        report = gates(model, shown, static_input=given_input)
        assert report.verdict is not Verdict.FAILED, report.text()


def gates(model: Model, x: Tensor, **options: Any) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "step.onnx"
        export_step(model, path, **options)
        return verify(model, path, x)


@given(residuals(dyadic=True), st.integers(0, 2**16), st.booleans())
@settings(max_examples=25)
def test_residual_networks_step_by_step(spec: ResidualSpec, seed: int, neurons: bool) -> None:
    model, x = masked(residual_model(spec), seed, neurons=neurons), residual_images(spec)
    x = torch.stack([x.roll(t, dims=-1) for t in range(spec.time_steps)])
    expected = per_step(model, x)
    np.testing.assert_array_equal(looped(build_step(model), x), expected)
    np.testing.assert_array_equal(event_stream(model, x), expected)


@given(residuals(), st.sampled_from(("image", "current")))
@settings(max_examples=15)
def test_the_gates_hold_for_residual_step_files(spec: ResidualSpec, given_input: str) -> None:
    model, x = residual_model(spec), residual_images(spec)
    report = gates(model, x, static_input=given_input)
    assert report.verdict is not Verdict.FAILED, report.text()


@given(residuals(dyadic=True))
@settings(max_examples=20)
def test_the_event_runtime_computes_what_a_still_image_determines_once(spec: ResidualSpec) -> None:
    """Also a new image in the middle of a stream: nothing of the old one stays."""
    model, x = residual_model(spec), residual_images(spec)
    network, other = Network(build_event_network(model)), x.flip(0).roll(1, dims=-1)
    shown = [x] * spec.time_steps + [other] * spec.time_steps
    longer = replace(model, graph=model.graph.with_time_steps(len(shown)))
    found = [
        network.step(None if t % spec.time_steps else image.numpy())
        for t, image in enumerate(shown)
    ]
    np.testing.assert_array_equal(np.stack(found), per_step(longer, torch.stack(shown)))


def test_a_stream_starts_with_an_input() -> None:
    network = Network(build_event_network(small()))
    with pytest.raises(ValidityError, match="the first step of a stream needs an input"):
        network.step()
    network.step(frames(1)[0].numpy())
    network.reset()
    with pytest.raises(ValidityError, match="the first step of a stream needs an input"):
        network.step()


def test_streams_of_a_network_are_apart() -> None:
    network, x = Network(build_event_network(small())), frames(3).numpy()
    want = [network.step(frame) for frame in x]
    held = [network.step(x[2]), network.step()]
    stream, other = network.stream(), network.stream()
    for frame, scores in zip(x, want, strict=True):
        other.step(x[0])
        np.testing.assert_array_equal(stream.step(frame), scores)
    copied = pickle.loads(pickle.dumps(stream))
    for going in (stream, copied):
        np.testing.assert_array_equal([going.step(), going.step()], held)
        assert going.steps == 5
        going.reset()
        np.testing.assert_array_equal(going.step(x[0]), want[0])
    assert (other.steps, network.stream().steps) == (3, 0)


def test_a_stream_without_an_input_is_refused() -> None:
    stream = Network(build_event_network(small())).stream()
    with pytest.raises(ValidityError, match="the first step of a stream needs an input"):
        stream.step()
    stream.step(frames(1)[0].numpy())
    with pytest.raises(ValidityError, match="a batch of 2 given, but the stream runs 3"):
        stream.step(frames(1, batch=2)[0].numpy())
    assert stream.steps == 1


def test_a_repeated_step_does_not_run_the_first_layer() -> None:
    network = Network(build_event_network(small()))
    network.step(frames(1)[0].numpy())
    stream = network._stream
    assert stream is not None
    for buffers in stream.samples:
        assert [len(calls) for region in buffers.static_regions for calls in region] == [2]
        buffers.values["input"][...] = np.nan  # nothing may read it
    assert np.isfinite(network.step()).all()


def changed(built: onnx.ModelProto) -> Iterator[tuple[str, str]]:
    """Damages, each with what the static gate says of it; `built` is the damaged file."""
    weight = next(t for t in built.graph.initializer if t.name == "5.weight")
    kept = onnx.TensorProto()
    kept.CopyFrom(weight)
    array = numpy_helper.to_array(weight).copy()
    array[0, 0] += 1
    weight.CopyFrom(numpy_helper.from_array(array, "5.weight"))
    yield "a weight", "5.weight: 1 of 96 values differ"
    weight.CopyFrom(kept)
    threshold = next(t for t in built.graph.initializer if t.name == "6.threshold")
    kept.CopyFrom(threshold)
    threshold.CopyFrom(numpy_helper.from_array(np.array([0.5], np.float32), threshold.name))
    yield "a threshold", "6.threshold is [0.5], the graph says 1.0"
    threshold.CopyFrom(kept)
    one, two = built.graph.output[1], built.graph.output[2]
    one.name, two.name = two.name, one.name
    yield "states swapped", "and yield [('logits'"
    one.name, two.name = two.name, one.name
    entry = next(p for p in built.metadata_props if p.key == "time_steps")
    entry.value = "7"
    yield "another T", "metadata time_steps is '7', the graph says '4'"
    entry.value = "4"


def test_the_static_gate_sees_a_changed_step_file() -> None:
    model = small()
    built = build_step(model)
    assert check_static(model, built).problems == ()
    for what, text in changed(built):
        problems = check_static(model, built).problems
        assert any(text in problem for problem in problems), (what, problems)
    assert check_static(model, built).problems == ()


def test_a_file_of_currents_runs_no_sequences() -> None:
    model = small()
    execution = StepExecution(build_step(model, static_input="current"), model)
    with pytest.raises(ValidityError, match="takes the currents of a static image"):
        execution.run(frames(4))


def test_wrong_use() -> None:
    with pytest.raises(UsageError, match="static input 'both'; valid: image, current"):
        build_step(small(), static_input="both")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="opset 12 given"):
        build_step(small(), opset=12)
    direct = nn.Sequential(
        SpikingNeuron(LIF, 2), layers.Conv2d(2, 4, 1), SpikingNeuron(LIF, 2),
        layers.RateReadout(4, 3),
    )  # fmt: skip
    model = model_of(direct, (2, 5, 5), 2)
    with pytest.raises(UsageError, match="read the image itself"):
        build_step(model, static_input="current")
    with pytest.raises(UsageError, match="read the image itself"):
        build_currents(model)
    x = frames(2)
    np.testing.assert_allclose(looped(build_step(model), x), per_step(model, x), atol=1e-6)


def test_initial_states_are_at_rest() -> None:
    model = small()
    first = model.graph["2"]
    lifted = replace(first, neuron=replace(LIF, v_reset=-0.25))  # type: ignore[call-arg]
    states = states_of(replace(model, graph=model.graph.with_nodes({"2": lifted})))
    assert [(s.population, s.initial) for s in states] == [("2", -0.25), ("6", 0.0)]


def test_the_page_runs_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = small(validity=Validity(4, True)), frames(4)
    export_step(model, tmp_path / "net.onnx")
    export_event(model, tmp_path / "net.event.safetensors")
    page = ROOT / "docs" / "streams.md"
    expected = per_step(model, x)
    monkeypatch.chdir(tmp_path)
    for number, code in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)):
        script = tmp_path / f"{number}.py"
        script.write_text(code)
        left = runpy.run_path(str(script), {"frames": list(x.numpy())})
        np.testing.assert_allclose(np.stack(left["scores"]), expected, atol=1e-6)
    assert number == 1


def invoke(*words: object) -> Any:
    return CliRunner().invoke(root, [str(word) for word in words])


def test_the_command_writes_and_verifies_step_files(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save(replace(small(), info=ModelInfo()), path)
    random = ("--input", "random", "--samples", 4)
    result = invoke("export", "onnx", path, "--mode", "step", *random)
    assert result.exit_code == 0, result.output
    assert "a sequence of different frames each" in result.stdout
    assert "Verified: yes" in result.stdout
    result = invoke("verify", path, tmp_path / "m.onnx", *random)
    assert result.exit_code == 0, result.output
    result = invoke("export", "onnx", path, "--mode", "step", "--static_input", "current", *random)
    assert result.exit_code == 0, result.output
    assert {p.name for p in tmp_path.iterdir()} == {path.name, "m.onnx", "m.currents.onnx"}
    for words, text in (
        (("--static_input", "current"), "--static_input current is for --mode step"),
        (("--mode", "step", "--input_mode", "sequence"), "--input_mode is for --mode sequence"),
    ):
        result = invoke("export", "onnx", path, *words, *random)
        assert result.exit_code == 2
        assert text in result.stderr
