"""Masked = compact = ONNX = event on drawn chains, by the three gates; dyadic ones to the bit."""

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from chains import ChainSpec, build, chains, images, pruned, random_neuron_masks
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from soul_deploy.base.errors import RemovalError
from soul_deploy.equivalence.comparison import CheckResult
from soul_deploy.equivalence.engines import compare
from soul_deploy.equivalence.verdict import Verdict
from soul_deploy.export.event.build import export_event
from soul_deploy.export.event.storage_format import CHOICES, Choice
from soul_deploy.export.onnx.model import export_onnx
from soul_deploy.export.verify.verify import VerifyReport, verify
from soul_deploy.model.model import Model
from soul_deploy.prune.removal.apply import remove
from soul_deploy.prune.removal.plan import RemovalPlan
from soul_deploy.prune.removal.planner import plan_removal

seeds = st.integers(0, 2**16)
fewer = settings(max_examples=30)


def compact(masked: Model) -> tuple[Model, RemovalPlan]:
    """The removal; examples in which a layer would lose its last channel are not used."""
    try:
        plan = plan_removal(masked)
    except RemovalError:
        assume(False)
        raise
    return remove(masked, plan), plan


def kept_channels(plan: RemovalPlan) -> dict[str, np.ndarray]:
    return {layer.population: np.array(layer.outputs) for layer in plan.layers}


def onnx_report(model: Model, x: Tensor, batch: int = 16) -> VerifyReport:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        export_onnx(model, path)
        return verify(model, path, x, batch=batch)


def event_report(model: Model, x: Tensor, choice: Choice = "auto") -> VerifyReport:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "network.safetensors"
        export_event(model, path, representation=choice)
        return verify(model, path, x)


def assert_passed(report: VerifyReport, *, exactly: bool) -> None:
    """No difference; what is drawn may leave a layer silent."""
    assert report.verdict is not Verdict.FAILED, report.text()
    if exactly:
        assert report.forced is not None
        assert report.end_to_end is not None
        assert_exact(report.forced)
        assert_exact(report.end_to_end)


def assert_exact(comparison: CheckResult) -> None:
    assert comparison.flipped == 0
    assert comparison.logit_difference == 0


def assert_same_after_removal(spec: ChainSpec, seed: int) -> Model:
    masked, x = pruned(build(spec), seed), images(spec)
    smaller, plan = compact(masked)
    agreement = compare(masked, smaller, x, kept_channels(plan))
    assert agreement.verdict is not Verdict.FAILED, agreement
    if spec.dyadic:
        assert_exact(agreement.forced)
        assert_exact(agreement.end_to_end)
    return smaller


@fewer
@given(chains(), seeds)
def test_masked_compact_and_onnx(spec: ChainSpec, seed: int) -> None:
    smaller = assert_same_after_removal(spec, seed)
    masked = pruned(build(spec), seed)
    for model in (masked, smaller):
        assert_passed(onnx_report(model, images(spec)), exactly=False)


@fewer
@given(chains(dyadic=True), seeds)
def test_masked_compact_and_onnx_to_the_bit(spec: ChainSpec, seed: int) -> None:
    smaller = assert_same_after_removal(spec, seed)
    masked = pruned(build(spec), seed)
    for model in (masked, smaller):
        assert_passed(onnx_report(model, images(spec)), exactly=True)


def masked_everywhere(spec: ChainSpec, seed: int, *, neurons: bool) -> Model:
    """Masked channels, constant channels, and if `neurons` also single masked neurons."""
    masked = pruned(build(spec), seed)
    return replace(masked, neuron_masks=random_neuron_masks(masked, seed)) if neurons else masked


choices = st.sampled_from(CHOICES)


@fewer
@given(chains(), seeds, st.booleans(), choices)
def test_masked_compact_and_event(
    spec: ChainSpec, seed: int, neurons: bool, choice: Choice
) -> None:
    masked = masked_everywhere(spec, seed, neurons=neurons)
    for model in (masked, compact(masked)[0]):
        assert_passed(event_report(model, images(spec), choice), exactly=False)


@fewer
@given(chains(dyadic=True), seeds, st.booleans(), choices)
def test_masked_compact_and_event_to_the_bit(
    spec: ChainSpec, seed: int, neurons: bool, choice: Choice
) -> None:
    masked = masked_everywhere(spec, seed, neurons=neurons)
    for model in (masked, compact(masked)[0]):
        assert_passed(event_report(model, images(spec), choice), exactly=True)


@fewer
@given(chains(dyadic=True), seeds)
def test_masked_neurons_in_onnx(spec: ChainSpec, seed: int) -> None:
    model = build(spec)
    masked = replace(model, neuron_masks=random_neuron_masks(model, seed))
    assert_passed(onnx_report(masked, images(spec)), exactly=True)


@fewer
@given(chains(), st.integers(1, 3))
def test_the_batch_size_of_the_check_changes_nothing(spec: ChainSpec, batch: int) -> None:
    model, x = build(spec), images(spec)
    whole, parts = onnx_report(model, x), onnx_report(model, x, batch)
    assert whole.end_to_end is not None
    assert parts.end_to_end is not None
    for a, b in zip(whole.end_to_end.layers, parts.end_to_end.layers, strict=True):
        assert (a.golden_spikes, a.samples) == (b.golden_spikes, b.samples)


@fewer
@given(chains(), seeds)
def test_masked_and_compact_agree_in_float64(spec: ChainSpec, seed: int) -> None:
    """Only the order of the sums differs, so in float64 logits agree to 1e-12."""
    masked = pruned(build(spec), seed)
    smaller, plan = compact(masked)
    assume(not plan.bias)  # a folded bias is stored in float32
    x = images(spec).double()
    with torch.no_grad():
        difference = masked.module().double()(x) - smaller.module().double()(x)
    assert difference.abs().max() <= 1e-12
