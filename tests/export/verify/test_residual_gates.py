"""Masked = ONNX = event on drawn residual networks, by the three gates; dyadic ones to the bit."""

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from residual import ResidualSpec, calibrated, masked, residual_images, residual_model, residuals
from torch import Tensor

from soul_deploy.analysis.synops import count_model
from soul_deploy.base.errors import RemovalError
from soul_deploy.equivalence.comparison import CheckResult
from soul_deploy.equivalence.engines import compare
from soul_deploy.equivalence.verdict import Verdict
from soul_deploy.export.event.build import build_event_network, export_event
from soul_deploy.export.event.storage_format import CHOICES, Choice
from soul_deploy.export.onnx.model import export_onnx
from soul_deploy.export.verify.verify import VerifyReport, verify
from soul_deploy.ir import MergeFunction, NeuronSpec
from soul_deploy.lowering.deploy import lower
from soul_deploy.model.model import Model
from soul_deploy.prune.channel_groups import RESIDUAL, Residual
from soul_deploy.prune.removal.apply import remove
from soul_deploy.prune.removal.planner import plan_removal
from soul_deploy.runtime.engine.network import Network
from soul_deploy.runtime.ops.counted_run import count_run
from soul_deploy.zoo.registry import NetworkOptions, create

seeds = st.integers(0, 2**16)
choices = st.sampled_from(CHOICES)
fewer = settings(max_examples=20)


def report_of(model: Model, x: Tensor, kind: str, choice: Choice = "auto") -> VerifyReport:
    with TemporaryDirectory() as folder:
        if kind == "onnx":
            path = Path(folder) / "network.onnx"
            export_onnx(model, path, input_mode="static" if x.dim() == 4 else "sequence")
        else:
            path = Path(folder) / "network.safetensors"
            export_event(model, path, representation=choice)
        return verify(model, path, x)


def assert_passed(report: VerifyReport, *, exactly: bool) -> None:
    """No difference; what is drawn may leave a layer silent."""
    assert report.verdict is not Verdict.FAILED, report.text()
    for gate in (report.forced, report.end_to_end):
        assert gate is not None
        assert gate.counted == (report.kind == "event")
        if exactly:
            assert_exact(gate)


def assert_exact(comparison: CheckResult) -> None:
    assert comparison.flipped == 0
    assert comparison.logit_difference == 0


def sequence_of(x: Tensor, steps: int) -> Tensor:
    return torch.stack([x.roll(t, dims=-1) for t in range(steps)])


@fewer
@given(residuals(), seeds, st.booleans(), choices, st.booleans())
def test_onnx_and_event(
    spec: ResidualSpec, seed: int, neurons: bool, choice: Choice, sequence: bool
) -> None:
    model, x = masked(residual_model(spec), seed, neurons=neurons), residual_images(spec)
    x = sequence_of(x, spec.time_steps) if sequence else x
    assert_passed(report_of(model, x, "onnx"), exactly=False)
    assert_passed(report_of(model, x, "event", choice), exactly=False)


@fewer
@given(residuals(dyadic=True), seeds, st.booleans(), choices, st.booleans())
def test_onnx_and_event_to_the_bit(
    spec: ResidualSpec, seed: int, neurons: bool, choice: Choice, sequence: bool
) -> None:
    model, x = masked(residual_model(spec), seed, neurons=neurons), residual_images(spec)
    x = sequence_of(x, spec.time_steps) if sequence else x
    assert_passed(report_of(model, x, "onnx"), exactly=True)
    assert_passed(report_of(model, x, "event", choice), exactly=True)


@settings(max_examples=15)
@given(residuals(dyadic=True), seeds, st.sampled_from(RESIDUAL))
def test_masked_compact_onnx_and_event_to_the_bit(
    spec: ResidualSpec, seed: int, residual: Residual
) -> None:
    model, x = masked(residual_model(spec), seed, neurons=False), residual_images(spec)
    try:
        plan = plan_removal(model, residual=residual)
    except RemovalError:
        assume(False)
        raise
    smaller = remove(model, plan)
    names = {node.name for node in model.graph.populations}
    kept = {e.population: np.array(e.outputs) for e in plan.layers if e.population in names}
    agreement = compare(model, smaller, x, kept)
    assert agreement.verdict is not Verdict.FAILED, agreement
    assert_exact(agreement.end_to_end)
    assert_passed(report_of(smaller, x, "onnx"), exactly=True)
    assert_passed(report_of(smaller, x, "event"), exactly=True)


@fewer
@given(residuals(dyadic=True), seeds, st.booleans())
def test_counts_are_equal(spec: ResidualSpec, seed: int, neurons: bool) -> None:
    model, x = masked(residual_model(spec), seed, neurons=neurons), residual_images(spec)
    network = Network(build_event_network(model))
    assert count_run(network, x.numpy()).counts == count_model(lower(model).trimmed.model, x)


@fewer
@given(residuals(dyadic=True), seeds)
def test_a_stream_is_the_run_step_by_step(spec: ResidualSpec, seed: int) -> None:
    model, x = masked(residual_model(spec), seed, neurons=False), residual_images(spec)
    network = Network(build_event_network(model))
    golden = lower(model).trimmed.model.module().per_step(x).detach().numpy()
    steps = np.stack([network.step(x.numpy()) for _ in range(spec.time_steps)])
    np.testing.assert_array_equal(steps, golden)


ZOO = (
    ("sewresnet18", "add", 2, 0.2),
    ("sewresnet18", "and", 3, 0.8),
    ("sewresnet18", "iand", 3, 0.3),
    ("msresnet18", "add", 4, 0.3),
)


@pytest.mark.parametrize(("name", "connect", "steps", "rate"), ZOO)
def test_the_zoos_networks(name: str, connect: MergeFunction, steps: int, rate: float) -> None:
    """Soul's names and shapes, 3×16×16, batch norm statistics from data so that layers spike."""
    options = NetworkOptions(
        input_shape=(3, 16, 16),
        classes=10,
        neuron=NeuronSpec(),
        time_steps=steps,
        connect=connect,
        stem="small",
        width_per_group=16 if name == "msresnet18" else 64,
    )
    _, graph = create(name, options)
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(1, 3, 16, 16)).astype(np.float32))
    model = calibrated(graph, x, seed=1, rate=rate)
    for kind in ("onnx", "event"):
        report = report_of(model, x, kind)
        assert_passed(report, exactly=False)
        assert report.silent == (), report.text()
