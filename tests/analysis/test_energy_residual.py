"""Reports of networks whose branches meet, of streams, and of what cannot be an event network."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from deployed import make_files
from hypothesis import given, settings
from hypothesis import strategies as st
from residual import ResidualSpec, masked, residual_images, residual_model, residuals

from soul_deploy.analysis import measure
from soul_deploy.analysis.synops import count_model
from soul_deploy.cli.main import root
from soul_deploy.equivalence.engines import Comparer
from soul_deploy.equivalence.reference import ReferenceModel
from soul_deploy.export.event.build import build_event_network
from soul_deploy.export.onnx.model import build_onnx
from soul_deploy.export.verify.event_run import verify_counts
from soul_deploy.export.verify.onnx import OnnxExecution
from soul_deploy.lowering.deploy import lower
from soul_deploy.runtime.engine.network import Network
from soul_deploy.runtime.ops import counting
from soul_deploy.runtime.ops.counted_run import count

fewer = settings(max_examples=15)


@fewer
@given(residuals(dyadic=True), st.integers(0, 2**16), st.booleans())
def test_reports_are_the_counts_and_the_runtime_agrees(
    spec: ResidualSpec, seed: int, neurons: bool
) -> None:
    model, x = masked(residual_model(spec), seed, neurons=neurons), residual_images(spec)
    check = verify_counts(model, x).to_dict()
    silent = check.pop("silent_layers")
    assert check == {
        "verdict": "inconclusive" if silent else "passed",
        "static": True,
        "forced": True,
        "end_to_end": True,
        "spike_mismatch": 0,
        "counter_diff": {},
    }
    report = measure.count(model, x)
    assert {layer.name: layer.counts for layer in report.layers} == count_model(
        lower(model).trimmed.model, x
    )
    fp32, totals = report.ops[0], report.totals
    assert fp32.value == 46 * totals["macs_effective"] + 9 * totals["synops"]
    assert report.structure()["neurons_live"] <= report.structure()["neurons"]
    executed = sum(layer.executions * layer.dense.valid for layer in report.layers)
    assert totals["macs_effective"] <= totals["macs_dense"] == executed


@fewer
@given(residuals(dyadic=True), st.integers(0, 2**16))
def test_onnx_files_yield_the_same_counts(spec: ResidualSpec, seed: int) -> None:
    model, x = masked(residual_model(spec), seed, neurons=True), residual_images(spec)
    execution = OnnxExecution(build_onnx(model, outputs="spikes"), model)
    assert execution.run(x).counts == count_model(model, x)
    whole = Comparer(ReferenceModel(model)).end_to_end(execution, x)
    assert whole.counted
    assert whole.passed


def test_a_run_that_is_not_counted_counts_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from soul_deploy.model.file import load

    model = load(make_files(tmp_path).masked)
    network, x = Network(build_event_network(model)), np.zeros((1, *model.input_shape), np.float32)

    def refuse(*_: object) -> None:
        raise AssertionError("counted")

    for name in ("projection_steps", "neuron_steps", "readout_steps", "count_additions"):
        monkeypatch.setattr(counting, name, refuse)
    assert network.run(x).shape == (1, 4)
    assert network.step(x).shape == (1, 4)
    with pytest.raises(AssertionError, match="counted"):
        count(network, x)


def test_outputs_on_the_command_line(tmp_path: Path) -> None:
    files = make_files(tmp_path)
    target = tmp_path / "spikes.onnx"
    shared = [
        *("export", "onnx", str(files.compact), "--output", str(target), "--outputs", "spikes"),
        *("--input", "random", "--samples", "4"),
    ]
    result = CliRunner().invoke(root, shared)
    assert result.exit_code == 0, result.output
    assert "no counts differ" in " ".join(result.output.split())
    verified = CliRunner().invoke(
        root, ["verify", str(files.compact), str(target), "--input", "random", "--samples", "4"]
    )
    assert verified.exit_code == 0, verified.output
    refused = CliRunner().invoke(root, [*shared, "--mode", "step"])
    assert refused.exit_code == 2
    assert "--outputs spikes is for --mode sequence" in refused.output


def test_a_sequence_repeats_the_first_layer(tmp_path: Path) -> None:
    """Frames of a sequence are each computed; the same image as one is computed once."""
    from soul_deploy.model.file import load

    model = load(make_files(tmp_path).compact)
    model = replace(model, neuron_masks={})
    x = torch.randn(2, *model.input_shape, generator=torch.Generator().manual_seed(4))
    once = measure.count(model, x)
    frames = x.expand(model.graph.time_steps, *x.shape)
    each = measure.count(model, frames)
    assert once.totals["macs_if_repeated"] == each.totals["macs_effective"]
    assert each.totals["macs_if_repeated"] == each.totals["macs_effective"]
    assert once.totals["synops"] == each.totals["synops"]
    assert once.totals["dense_ops_valid"] == each.totals["dense_ops_valid"]
