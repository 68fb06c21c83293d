"""The loss that training and structured pruning report, against formulas written out in numpy."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import soul_deploy
from soul_deploy.base import Array
from soul_deploy.data.datasets import Data, load_data
from soul_deploy.model.model import Model
from soul_deploy.training.objective import Objective
from soul_deploy.training.trainer import TrainConfig, make_optimizer

TET = Objective("ce", True, 0.5, 0.1)
STILL = TrainConfig(epochs=1, batch_size=10_000, learning_rate=1e-12, optimizer="sgd")


@pytest.fixture(scope="module")
def digits() -> Data:
    whole, few = load_data("digits", Path(".")), torch.arange(96)
    train, rest = whole.train.select(few), whole.test.select(few)
    return Data("digits", train, rest, rest, whole.classes, whole.normalization)


def network(name: str, data: Data) -> Model:
    torch.manual_seed(3)
    shape = data.input_shape
    return soul_deploy.create(name, input_shape=shape, classes=10, time_steps=2, hidden=8, width=4)


def naive_loss(model: Model, data: Data, objective: Objective) -> float:
    """The loss of the whole training split as one batch."""
    module = model.module().train()
    steps: Array = module.per_step(data.normalise(data.train.images)).detach().numpy()
    labels = data.train.labels.numpy()
    hot = np.eye(10)[labels]

    def criterion(scores: Array) -> float:
        if objective.criterion == "mse":
            return float(((scores - hot) ** 2).mean())
        high = scores.max(1, keepdims=True)
        logs = scores - high - np.log(np.exp(scores - high).sum(1, keepdims=True))
        return float(-(logs * hot).sum(1).mean())

    if not objective.tet:
        return criterion(steps.mean(0))
    task = sum(map(criterion, steps)) / len(steps)
    calm = float(((steps - objective.tet_phi) ** 2).mean())
    return (1 - objective.tet_lambda) * task + objective.tet_lambda * calm


@pytest.mark.parametrize("name", ["spikingvgg5", "cifar10net"])
@pytest.mark.parametrize(
    "objective",
    [Objective("mse"), Objective("ce"), Objective("mse", True), TET, replace(TET, criterion="mse")],
)
def test_training_minimises_the_loss_asked_for(
    name: str, objective: Objective, digits: Data
) -> None:
    model = network(name, digits)
    training = replace(STILL, objective=objective)
    expected = naive_loss(model, digits, objective)
    found = soul_deploy.train(model, digits, training, device="cpu")
    assert found.history[0].loss == pytest.approx(expected, rel=1e-4)
    assert found.model.info.provenance["recipe"]["objective"]["tet"] is objective.tet


@pytest.mark.parametrize("objective", [TET, Objective("mse")])
def test_structured_pruning_minimises_the_loss_asked_for(
    objective: Objective, digits: Data
) -> None:
    model = network("spikingvgg5", digits)
    config = soul_deploy.ScaConfig(schedule=soul_deploy.PruneSchedule(epochs=1))
    training = replace(STILL, objective=objective)
    found = soul_deploy.prune_structured(model, digits, config, training, device="cpu")
    assert found.history[0].loss == pytest.approx(naive_loss(model, digits, objective), rel=1e-4)


@pytest.mark.parametrize(("name", "criterion"), [("spikingvgg5", "ce"), ("cifar10net", "mse")])
def test_an_open_criterion_follows_the_readout(name: str, criterion: str, digits: Data) -> None:
    model = network(name, digits)
    decided = Objective("auto").decided(model.graph)
    assert decided == Objective(criterion)  # type: ignore[arg-type]
    expected = naive_loss(model, digits, decided)
    found = soul_deploy.train(model, digits, STILL, device="cpu")
    assert found.history[0].loss == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("nesterov", "momentum", "expected"),
    [(True, 0.9, -(1 + 0.9) - (1 + 0.9 * 1.9)), (False, 0.9, -1 - 1.9), (True, 0.0, -2.0)],
)
def test_nesterov_looks_ahead(nesterov: bool, momentum: float, expected: float) -> None:
    """Two steps with gradient 1 and rate 1: v = momentum · v + 1; w -= 1 + momentum · v, or v."""
    layer = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(layer.weight)
    config = TrainConfig(optimizer="sgd", learning_rate=1.0, momentum=momentum, nesterov=nesterov)
    optimizer = make_optimizer(layer, config)
    for _ in range(2):
        layer.weight.grad = torch.ones(1, 1)
        optimizer.step()
    assert layer.weight.item() == pytest.approx(expected)
