"""Masks of method U: gates, gradients, temperature, coefficients, the faults of Soul's script."""

import numpy as np
import pytest
import torch
from searching import LIF, masks_of, small_graph, small_module
from torch import Tensor, nn

from soul_deploy.base.errors import UnknownNameError, UsageError
from soul_deploy.ir import SpikingGraph
from soul_deploy.nn.graph_module import GraphModule
from soul_deploy.prune.unstructured.loss import coefficients
from soul_deploy.prune.unstructured.masks import (
    MaskStart,
    SoftMask,
    Temperature,
    make_masks,
    maskable_neurons,
)
from soul_deploy.training.objective import Objective
from soul_deploy.zoo.registry import NetworkOptions, create


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
    masks = masks_of(module, MaskStart(1, 1, 0.5, 0.5))
    masks.heat(2.5, 1.5)
    masks.attach(module)
    x, labels = torch.randn(4, 2, 6, 6), torch.tensor([0, 1, 2, 1])
    effective: dict[str, Tensor] = {}
    for name, mask in masks.weights.items():
        effective[name] = mask().detach().requires_grad_()
        module.weight_gates[name] = lambda gate=effective[name]: gate  # type: ignore[misc]
    neurons = masks.neurons["sb"]().detach().requires_grad_()
    module.neuron_gates["sb"] = lambda: neurons
    Objective("ce").loss(module(x), labels, "mean")[0].backward()  # type: ignore[no-untyped-call]

    masks.attach(module)
    lmbda = 1e-3
    task, _ = Objective("ce").loss(module(x), labels, "mean")
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
    loss, scores = Objective("ce", True).loss(module.per_step(x), labels, "mean")
    expected = torch.stack([nn.functional.cross_entropy(step, labels) for step in steps]).mean()
    assert loss.item() == pytest.approx(expected.item())
    torch.testing.assert_close(scores, module(x).detach())
    plain, scores = Objective("mse").loss(module(x), labels, "mean")
    assert torch.equal(scores, module(x))
    one_hot = torch.eye(3)[labels]
    assert plain.item() == pytest.approx(((scores - one_hot) ** 2).mean().item())


def test_wrong_objectives_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="unknown criterion 'mae'; valid: auto, mse, ce"):
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
