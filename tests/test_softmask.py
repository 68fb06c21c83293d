"""Masks of method U: gates, gradients, temperature, coefficients, the faults of Soul's script."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from soul_deploy.connectivity import measure_connectivity
from soul_deploy.graph import (
    Convolution,
    Flatten,
    Input,
    Linear,
    MaxPool,
    NeuronSpec,
    Population,
    Readout,
    SpikingGraph,
)
from soul_deploy.module import GraphModule
from soul_deploy.prune.lambda_control import (
    ConnectivityMeter,
    LambdaControl,
    adjust,
    balanced_lambda,
    check_target,
    within_band,
)
from soul_deploy.prune.objective import Objective
from soul_deploy.prune.penalty import coefficients
from soul_deploy.prune.softmask import (
    Masks,
    MaskStart,
    SoftMask,
    Temperature,
    make_masks,
    maskable_neurons,
)
from soul_deploy.runtime.errors import SoulDeployError, UnknownNameError, UsageError
from soul_deploy.zoo import NetworkOptions, create

LIF = NeuronSpec()


def small_graph() -> SpikingGraph:
    """2×6×6, two 3×3 convolutions with a max pool between them, a linear layer, a head."""
    return SpikingGraph(
        (
            Input("input", (), (2, 6, 6)),
            Convolution("a", ("input",), False, None, 2, 4, (3, 3), padding=(1, 1)),
            Population("sa", ("a",), LIF),
            MaxPool("pool", ("sa",), (2, 2), (2, 2)),
            Convolution("b", ("pool",), False, None, 4, 3, (3, 3), padding=(1, 1)),
            Population("sb", ("b",), LIF),
            Flatten("flat", ("sb",)),
            Linear("c", ("flat",), True, None, 27, 5),
            Population("sc", ("c",), LIF),
            Readout("head", ("sc",), 3, linear=True, bias=True),
        ),
        2,
    )


def small_module(seed: int = 1) -> GraphModule:
    torch.manual_seed(seed)
    module = GraphModule(small_graph())
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(3)
    return module


def masks_of(
    module: GraphModule, start: MaskStart | None = None, neurons: tuple[str, ...] = ("sb",)
) -> Masks:
    names = [node.name for node in module.graph.projections]
    costs = coefficients(module.graph, "exact")
    return make_masks(module, names, neurons, costs, start or MaskStart(0, 0, 0.5, 0.5))


def test_the_gate_is_a_sigmoid_and_the_hard_mask_is_strictly_above_0() -> None:
    mask = SoftMask(nn.Parameter(torch.tensor([-1.0, 0.0, 1e-30, 0.25])), 3.0, temperature=4.0)
    expected = [1 / (1 + np.exp(4)), 0.5, 0.5, 1 / (1 + np.exp(-1))]
    assert mask().tolist() == pytest.approx(expected)
    assert mask.keep().tolist() == [False, False, True, True]


def test_masks_have_the_shape_of_weights_and_populations_and_start_as_told() -> None:
    module = small_module()
    masks = masks_of(module, MaskStart(0.5, -0.25))
    shapes = {name: tuple(mask.alpha.shape) for name, mask in masks.weights.items()}
    assert shapes == {"a": (4, 2, 3, 3), "b": (3, 4, 3, 3), "c": (5, 27)}
    assert {name: tuple(m.alpha.shape) for name, m in masks.neurons.items()} == {"sb": (3, 3, 3)}
    assert all((mask.alpha == 0.5).all() for mask in masks.weights.values())
    assert (masks.neurons["sb"].alpha == -0.25).all()
    spread = masks_of(module, MaskStart(1, -1, 0.5, 0.25, seed=3))
    alphas = torch.cat([mask.alpha.detach().flatten() for mask in spread.weights.values()])
    assert float(alphas.mean()) == pytest.approx(1, abs=0.1)
    assert float(alphas.std()) == pytest.approx(0.5, abs=0.1)
    again = masks_of(module, MaskStart(1, -1, 0.5, 0.25, seed=3))
    assert all(torch.equal(a.alpha, b.alpha) for a, b in zip(spread, again, strict=True))


def test_known_alphas_are_taken_and_others_refused() -> None:
    module = small_module()
    alphas = masks_of(module).alphas()
    taken = masks_of(module, MaskStart(known=alphas)).alphas()
    assert all((taken[name] == alphas[name]).all() for name in alphas)
    with pytest.raises(UsageError, match="masked before in sx, which is not among"):
        masks_of(module, MaskStart(known={"sx": np.zeros(2, np.float32)}))
    with pytest.raises(UsageError, match=r"mask of a: shape \(2,\), needs \(4, 2, 3, 3\)"):
        masks_of(module, MaskStart(known={"a": np.zeros(2, np.float32)}))


def test_soft_gates_multiply_weights_and_spikes() -> None:
    module = small_module()
    x = torch.randn(3, 2, 6, 6)
    plain = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    masks = masks_of(module, MaskStart(0, 0, 1, 1), neurons=("sa", "sb"))
    masks.heat(2.0, 3.0)
    masks.attach(module)
    gated = module(x)
    spikes = module.evaluate({"input": module.as_signal(x)}, ["sb"])["sb"].tensor
    gate = torch.sigmoid(3.0 * masks.neurons["sb"].alpha)
    fired = spikes != 0
    assert torch.equal(spikes, fired * gate)

    twin = GraphModule(module.graph)
    twin.load_state_dict(plain)
    with torch.no_grad():
        for name, mask in masks.weights.items():
            twin.get_parameter(f"{name}.weight").mul_(torch.sigmoid(2.0 * mask.alpha))
    for name, mask in masks.neurons.items():
        factor = torch.sigmoid(3.0 * mask.alpha).detach()
        twin.neuron_gates[name] = lambda factor=factor: factor  # type: ignore[misc]
    assert torch.equal(gated, twin(x))


def test_hard_masks_are_those_of_alpha_above_0() -> None:
    module = small_module()
    masks = masks_of(module)
    masks.attach_hard(module)
    x = torch.randn(3, 2, 6, 6)
    found = module(x)
    twin = small_module()
    with torch.no_grad():
        for name, mask in masks.weights.items():
            twin.get_parameter(f"{name}.weight")[mask.alpha <= 0] = 0
    keep = (masks.neurons["sb"].alpha > 0).float()
    twin.neuron_gates["sb"] = lambda: keep
    assert torch.equal(found, twin(x))


def test_mask_gradients_are_the_analytic_ones() -> None:
    """d/dalpha = beta·s·(1-s)·(dL/dgate + lambda·e), dL/dgate with each gate as a leaf."""
    module = small_module()
    masks = masks_of(module)
    masks.heat(2.5, 1.5)
    masks.attach(module)
    x, labels = torch.randn(4, 2, 6, 6), torch.tensor([0, 1, 2, 1])
    effective: dict[str, Tensor] = {}
    for name, mask in masks.weights.items():
        effective[name] = mask().detach().requires_grad_()
        module.weight_gates[name] = lambda gate=effective[name]: gate  # type: ignore[misc]
    neurons = masks.neurons["sb"]().detach().requires_grad_()
    module.neuron_gates["sb"] = lambda: neurons
    Objective("ce").loss(module, x, labels)[0].backward()  # type: ignore[no-untyped-call]

    masks.attach(module)
    lmbda = 1e-3
    task, _ = Objective("ce").loss(module, x, labels)
    (task + lmbda * masks.penalty()).backward()  # type: ignore[no-untyped-call]
    for gate, mask, beta in [
        *((effective[name], mask, 2.5) for name, mask in masks.weights.items()),
        (neurons, masks.neurons["sb"], 1.5),
    ]:
        s = gate.detach()
        assert gate.grad is not None and mask.alpha.grad is not None and gate.grad.any()
        expected = beta * s * (1 - s) * (gate.grad + lmbda * mask.cost)
        torch.testing.assert_close(mask.alpha.grad, expected)


def test_the_penalty_is_the_weighted_sum_of_the_gates() -> None:
    masks = masks_of(small_module())
    masks.heat(3, 7)
    costs = {"a": 36.0, "b": 9.0, "c": 1.0, "sb": 5.0}
    total = sum(
        costs[name] * (1 / (1 + np.exp(-beta * mask.alpha.detach().numpy().astype(float)))).sum()
        for kind, beta in ((masks.weights, 3), (masks.neurons, 7))
        for name, mask in kind.items()
    )
    assert masks.penalty().item() == pytest.approx(total, rel=1e-5)


# Temperature: beta0 · (betaT / beta0)^((s - T0) / (Tmax - T0)), clamped outside.


@pytest.mark.parametrize(
    ("numbers", "weights", "neurons", "span"),
    [
        ((5, 1000), (5, 1000), (5, 1000), (0, 30)),
        ((5, 1000, 2, 12), (5, 1000), (5, 1000), (2, 12)),
        ((5, 2, 1000, 300, 1, 9), (5, 1000), (2, 300), (1, 9)),
    ],
)
def test_the_temperature_in_its_three_forms(
    numbers: tuple[float, ...],
    weights: tuple[float, float],
    neurons: tuple[float, float],
    span: tuple[float, float],
) -> None:
    heat = Temperature.of(numbers, 30)
    start, end = span
    for epoch in (start, start + 0.25, (start + end) / 2, end):
        share = (epoch - start) / (end - start)
        expected = [low ** (1 - share) * high**share for low, high in (weights, neurons)]
        assert heat.at(epoch) == pytest.approx(expected)
    assert heat.at(start - 1) == (weights[0], neurons[0])
    assert heat.at(end + 5) == pytest.approx((weights[1], neurons[1]))


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ((5, 1000, 3), "takes 2 numbers .* got 3"),
        ((1, 2, 3, 4, 5), "got 5"),
        ((5,), "got 1"),
        ((5, 1000, 4, 4), "T0 = 4 and Tmax = 4 epochs; 0 <= T0 < Tmax"),
        ((5, 1000, 6, 4), "T0 = 6 and Tmax = 4"),
        ((5, 1000, -1, 4), "T0 = -1"),
        ((0, 1000), "must be above 0"),
        ((5, float("inf")), "must be above 0"),
    ],
)
def test_wrong_temperatures_are_refused(numbers: tuple[float, ...], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Temperature.of(numbers, 10)


def test_wrong_starts_are_refused() -> None:
    with pytest.raises(UsageError, match=r"standard deviations .* not negative"):
        MaskStart(0, 0, -1, 0)
    with pytest.raises(UsageError, match=r"means .* must be finite"):
        MaskStart(float("nan"))


# The loss.


def naive_tet(steps: Tensor, labels: Tensor, objective: Objective) -> float:
    """Term by term, in float64."""
    total = 0.0
    for scores in steps.double():
        task = 0.0
        for row, label in zip(scores, labels.tolist(), strict=True):
            if objective.criterion == "ce":
                task += float(torch.logsumexp(row, 0) - row[label]) / len(labels)
            else:
                target = [float(k == label) for k in range(len(row))]
                square = sum((float(v) - t) ** 2 for v, t in zip(row, target, strict=True))
                task += square / len(row) / len(labels)
        calm = float(((scores - objective.tet_phi) ** 2).mean())
        weight = objective.tet_lambda
        total += ((1 - weight) * task + weight * calm) / len(steps)
    return total


@pytest.mark.parametrize("criterion", ["mse", "ce"])
@pytest.mark.parametrize(("phi", "weight"), [(1.0, 0.0), (1.0, 0.05), (0.5, 1.0)])
def test_tet_is_its_formula(criterion: str, phi: float, weight: float) -> None:
    objective = Objective(criterion, True, phi, weight)  # type: ignore[arg-type]
    steps, labels = torch.randn(4, 6, 3), torch.tensor([0, 2, 1, 1, 0, 2])
    expected = naive_tet(steps, labels, objective)
    assert objective.of_steps(steps, labels).item() == pytest.approx(expected, rel=1e-5)


def test_tet_takes_the_steps_of_the_network_and_the_plain_loss_their_mean() -> None:
    module = small_module()
    x, labels = torch.randn(5, 2, 6, 6), torch.tensor([0, 1, 2, 1, 0])
    steps = module.per_step(x)
    assert steps.shape == (2, 5, 3)
    loss, scores = Objective("ce", True).loss(module, x, labels)
    expected = torch.stack([nn.functional.cross_entropy(step, labels) for step in steps]).mean()
    assert loss.item() == pytest.approx(expected.item())
    torch.testing.assert_close(scores, module(x).detach())
    plain, scores = Objective("mse").loss(module, x, labels)
    assert torch.equal(scores, module(x))
    one_hot = torch.eye(3)[labels]
    assert plain.item() == pytest.approx(((scores - one_hot) ** 2).mean().item())


def test_wrong_objectives_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="unknown criterion 'mae'; valid: mse, ce"):
        Objective("mae")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"TET_lambda 1\.5 must be from 0 to 1"):
        Objective(tet_lambda=1.5)


# Coefficients and layers, where Soul's script goes wrong.


def vgg9() -> SpikingGraph:
    _, graph = create("spikingvgg9", NetworkOptions((3, 32, 32), 10, LIF, 4))
    return graph


def test_neuron_coefficients_use_their_own_layer_unlike_souls() -> None:
    """Soul writes them at the global index into the list of masks: 1152, 1152, 2304, ..."""
    graph = vgg9()
    neurons = tuple(node.name for node in graph.populations[1:6])
    with torch.device("meta"):
        module = GraphModule(graph)
    masks = make_masks(module, [], neurons, coefficients(graph, "authors"), MaskStart())
    costs = [masks.neurons[name].cost for name in neurons]
    assert costs == [1152, 2304, 2304, 2304, 2048 * 49]
    some = make_masks(module, [], neurons[3:], coefficients(graph, "authors"), MaskStart())
    assert [mask.cost for mask in some.neurons.values()] == [2304, 2048 * 49]


@pytest.mark.parametrize("rule", ["authors", "exact"])
def test_fc1_coefficient_after_pooling_is_1_unlike_souls_16(rule: str) -> None:
    """The 7×7 convolution has one output position: each weight is one synapse."""
    costs = coefficients(vgg9(), rule)  # type: ignore[arg-type]
    assert costs.weights["pre_logits.fc1.0"] == 1
    assert list(costs.weights.values())[:6] == [1024, 256, 256, 64, 64, 64]


def test_excluding_an_early_convolution_works_unlike_souls() -> None:
    module = small_module()
    masks = make_masks(module, ["c"], ["sb"], coefficients(module.graph, "exact"), MaskStart(1, 1))
    assert list(masks.weights) == ["c"] and masks.weights["c"].cost == 1
    assert masks.neurons["sb"].cost == 5
    masks.attach(module)
    assert module(torch.randn(2, 2, 6, 6)).shape == (2, 3)


def test_output_neurons_are_never_masked() -> None:
    assert maskable_neurons(small_graph()) == ("sa", "sb")
    _, votes = create("cifar10net", NetworkOptions((3, 8, 8), 10, LIF, 4, width=4, hidden=8))
    assert maskable_neurons(votes) == tuple(node.name for node in votes.populations[:-1])


# Steering.


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


@given(
    st.floats(0.01, 0.9),
    st.lists(st.floats(1e-6, 1.0), min_size=2, max_size=40),
)
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
    task, _ = Objective("ce").loss(module, torch.randn(4, 2, 6, 6), torch.tensor([0, 1, 2, 1]))
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
