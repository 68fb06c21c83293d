"""Weights pruned by size or at random, to the targets of the search."""

from typing import Any

import numpy as np
import pytest
import torch
from searching import CONSTANT, few, network

from soul_deploy import SearchConfig, Target, TrainConfig, prune_unstructured
from soul_deploy.base.errors import UsageError
from soul_deploy.data.datasets import Data
from soul_deploy.model.model import Model, ModelInfo, from_module
from soul_deploy.prune.result import PruneResult
from soul_deploy.prune.unstructured.baselines import WeightRanks
from soul_deploy.prune.unstructured.config import FinetuneConfig

STILL = TrainConfig(epochs=2, batch_size=32, learning_rate=1e-30, schedule=CONSTANT)


@pytest.fixture(scope="module")
def digits() -> Data:
    return few(64)


@pytest.fixture(scope="module")
def model(digits: Data) -> Model:
    module = network(digits)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(4)
    return from_module(module, ModelInfo("dense", digits.normalization, digits.classes))


def pruned(model: Model, data: Data, **asked: Any) -> PruneResult:
    config: dict[str, Any] = {"target": Target("params", 0.2), **asked}
    return prune_unstructured(model, data, SearchConfig(**config), STILL)


def weights_of(model: Model) -> dict[str, Any]:
    return {node.name: model.state[f"{node.name}.weight"] for node in model.graph.projections}


def test_magnitude_keeps_the_largest_weights_of_all_layers(model: Model, digits: Data) -> None:
    result = pruned(model, digits, method="magnitude")
    before, after = weights_of(model), weights_of(result.masked)
    kept = np.concatenate([np.abs(before[n])[after[n] != 0].ravel() for n in before])
    gone = np.concatenate([np.abs(before[n])[after[n] == 0].ravel() for n in before])
    assert kept.min() >= gone.max() - 1e-3 * kept.max()
    assert result.spent is not None and result.spent.reached
    assert result.compact is not None and result.connectivity is not None
    assert [row["phase"] for row in result.history] == ["magnitude", "magnitude"]


def test_random_keeps_the_same_share_of_every_layer(model: Model, digits: Data) -> None:
    result = pruned(model, digits, method="random", target=Target("synops", 0.3))
    shares = [float((w != 0).mean()) for w in weights_of(result.masked).values() if w.size > 500]
    assert len(shares) > 1 and max(shares) < min(shares) + 0.1
    assert result.spent is not None and result.spent.reached


@pytest.mark.parametrize(("ramp", "half"), [("linear", 0.5), ("cubic", 0.125)])
def test_a_ramp_goes_there_epoch_by_epoch(
    model: Model, digits: Data, ramp: str, half: float
) -> None:
    target = Target("connectivity", 0.2)
    result = pruned(model, digits, method="magnitude", prune_ramp=ramp, target=target)
    first, last = (row["connectivity"] for row in result.history)
    assert first == pytest.approx(0.2 + 0.8 * half, rel=0.05)
    assert last == pytest.approx(0.2, rel=0.05)


def test_a_ranking_is_pure() -> None:
    weights = {"a": torch.tensor([[3.0, -4.0, 1.0]])}
    kept = {"a": torch.tensor([[True, False, True]])}
    assert WeightRanks.by_size(weights, kept).ranks["a"].tolist() == [[3, 0, 1]]
    assert weights["a"].tolist() == [[3, -4, 1]]
    once, again = (WeightRanks.at_random(weights, 1).ranks["a"] for _ in range(2))
    assert torch.equal(once, again) and once.min() >= 0 and once.max() < 1


def test_fine_tuning_follows(model: Model, digits: Data) -> None:
    result = pruned(model, digits, method="random", finetune=FinetuneConfig(1, 1e-3))
    assert [row["phase"] for row in result.history] == ["random", "random", "finetune"]
    assert result.spent is not None and result.spent.reached


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"method": "magnitude", "target": None}, "method magnitude needs a target"),
        ({"method": "greedy"}, "unknown method 'greedy'; valid: search, magnitude, random"),
        ({"prune_ramp": "linear"}, "prune_ramp linear is for method magnitude or random"),
        ({"method": "random", "neuron_prune_layers": (1,)}, "prunes weights alone"),
    ],
)
def test_wrong_use_is_refused(asked: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        SearchConfig(**{"target": Target("params", 0.2)} | asked)
