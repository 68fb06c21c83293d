"""Steering lambda: the meter, the controller, the last correction."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from searching import masks_of, small_module

from soul_deploy.analysis.connectivity import measure_connectivity
from soul_deploy.base.errors import SoulDeployError, UsageError
from soul_deploy.prune.unstructured.lambda_control import (
    ConnectivityMeter,
    LambdaControl,
    adjust,
    balanced_lambda,
    check_target,
    within_band,
)
from soul_deploy.prune.unstructured.masks import MaskStart
from soul_deploy.training.objective import Objective


def test_the_meter_counts_exactly_and_estimates_soft_gates() -> None:
    module = small_module()
    masks = masks_of(module, MaskStart(0.1, 0.1, 0.3, 0.3), neurons=("sa", "sb"))
    meter = ConnectivityMeter(module, masks)
    weights = {
        name: (mask.alpha > 0).numpy().astype(np.float32) for name, mask in masks.weights.items()
    }
    keeps = {name: (mask.alpha > 0).numpy() for name, mask in masks.neurons.items()}
    exact = measure_connectivity(module.graph, weights, keeps)
    assert meter.exact() == exact and 0 < exact.share < 1
    masks.heat(1e6, 1e6)
    assert meter.estimate() == pytest.approx(exact.share, rel=1e-4)
    masks.heat(1e-9, 1e-9)
    assert meter.estimate() != pytest.approx(exact.share, rel=0.05)


def test_the_estimate_of_full_masks_is_1() -> None:
    module = small_module()
    masks = masks_of(module, MaskStart(1, 1))
    masks.heat(100, 100)
    meter = ConnectivityMeter(module, masks)
    assert meter.exact().share == 1 and meter.estimate() == pytest.approx(1)


def test_a_pruned_start_weight_counts_as_pruned() -> None:
    module = small_module()
    with torch.no_grad():
        module.get_parameter("a.weight")[0] = 0
    masks = masks_of(module, MaskStart(1, 1))
    layers = ConnectivityMeter(module, masks).exact().layers
    assert layers[0].live == layers[0].dense * 3 // 4


@given(st.floats(0.01, 0.9), st.lists(st.floats(1e-6, 1.0), min_size=2, max_size=40))
def test_lambda_rises_above_and_falls_below_the_wanted_curve(
    target: float, shares: list[float]
) -> None:
    control = LambdaControl(target, 1e-3, 1.0)
    before = 1e-3
    for index, share in enumerate(shares):
        after = control.update((index + 1) / len(shares), share)
        assert after <= max(3.0, before * np.exp(0.3) * 1.0001) and after >= 2e-4
        before = after
    steady = LambdaControl(target, 0.02, 1.0)
    values = [steady.update(1.0, min(1.0, target * 1.5)) for _ in range(4)]
    assert all(b > a for a, b in itertools.pairwise(values))
    values = [steady.update(1.0, target * 0.5) for _ in range(4)]
    assert all(b < a for a, b in itertools.pairwise(values))


def test_the_wanted_curve_falls_from_the_first_measurement_to_the_target() -> None:
    control = LambdaControl(0.05, 1.0, 1.0)
    control.update(0.01, 0.8)
    assert control.wanted(0.0) == pytest.approx(0.8)
    assert control.wanted(0.3) == pytest.approx((0.8 * 0.05) ** 0.5)
    assert control.wanted(0.6) == control.wanted(1.0) == pytest.approx(0.05)


def test_balanced_lambda_makes_both_pulls_equal() -> None:
    module = small_module()
    masks = masks_of(module)
    masks.attach(module)
    task, _ = Objective("ce").loss(module(torch.randn(4, 2, 6, 6)), torch.tensor([0, 1, 2, 1]))
    lmbda = balanced_lambda(task, masks)
    pull = sum(float(g.abs().sum()) for g in torch.autograd.grad(task, masks.parameters()))
    push = torch.autograd.grad(lmbda * masks.penalty(), masks.parameters())
    assert sum(float(g.abs().sum()) for g in push) == pytest.approx(pull, rel=1e-4)


@pytest.mark.parametrize("target", [0.02, 0.3, 0.9])
def test_the_last_adjustment_lands_within_10_percent(target: float) -> None:
    module = small_module()
    masks = masks_of(module, MaskStart(0, 0, 1, 1), neurons=("sa", "sb"))
    start = masks.alphas()
    meter = ConnectivityMeter(module, masks)
    done = adjust(masks, target, meter.exact)
    assert done is not None and within_band(meter.exact().share, target)
    assert done.after == meter.exact().share
    for name, alpha in masks.alphas().items():
        np.testing.assert_allclose(alpha - start[name], done.offset, atol=1e-6)
    assert adjust(masks, target, meter.exact) is None


def test_an_adjustment_that_cannot_be_made_says_so_and_changes_nothing() -> None:
    module = small_module()
    masks = masks_of(module, MaskStart(0.5, 0.5))
    meter = ConnectivityMeter(module, masks)
    with pytest.raises(SoulDeployError, match=r"no common threshold .* within 10 % of 0.3"):
        adjust(masks, 0.3, meter.exact)
    assert all((alpha == 0.5).all() for alpha in masks.alphas().values())


@pytest.mark.parametrize("target", [0, 1, -0.1, 1.5, float("nan")])
def test_targets_outside_0_and_1_are_refused(target: float) -> None:
    with pytest.raises(UsageError, match="must be above 0 and below 1"):
        check_target(target)


def test_a_search_that_begins_below_its_target_aims_at_the_target() -> None:
    control = LambdaControl(0.5, 1.0, 1.0)
    control.update(0.0, 0.2)
    assert [control.wanted(part) for part in (0.0, 0.3, 1.0)] == pytest.approx([0.5, 0.5, 0.5])
    above = LambdaControl(0.5, 1.0, 1.0)
    above.update(0.0, 0.8)
    assert above.wanted(0.0) == pytest.approx(0.8) and above.wanted(1.0) == pytest.approx(0.5)
