"""Comparing two executions, by hand: causes, what JSON holds, logits of another shape."""

import json
from dataclasses import replace

import numpy as np
import torch
from test_compare import IF, ONES, Tampered, two_layers, with_a_pattern
from torch import Tensor, nn

from soul_deploy.equivalence.engines import Comparer, ExecutionRun, ModelExecution, compare
from soul_deploy.equivalence.reference import ReferenceModel
from soul_deploy.frontend.from_torch import trace
from soul_deploy.model.model import Model, ModelInfo, from_module
from soul_deploy.nn import layers
from soul_deploy.nn.graph_module import GraphModule
from soul_deploy.nn.neuron import SpikingNeuron
from soul_deploy.prune.removal.apply import remove
from soul_deploy.prune.removal.planner import plan_removal


def pair_and_one(first: float, second: float) -> Model:
    """1 input, two neurons "1" with these weights, neuron "3" that reads both, 2 classes."""
    network = nn.Sequential(
        nn.Linear(1, 2, bias=False),
        SpikingNeuron(IF, 2),
        nn.Linear(2, 1, bias=False),
        SpikingNeuron(IF, 2),
        layers.RateReadout(1, 2, bias=False),
    )
    module = GraphModule(trace(network, (1,), 2))
    with torch.no_grad():
        module.get_parameter("0.weight").copy_(torch.tensor([[first], [second]]))
        module.get_parameter("2.weight").fill_(0.6)
    return from_module(module, ModelInfo())


def test_of_two_mismatches_at_one_step_the_nearer_to_the_threshold_is_the_cause() -> None:
    """By 0.5 and by 0.25: the second neuron is the nearer one."""
    reference = pair_and_one(1.5, 1.25)

    def change(name: str, spikes: Tensor) -> Tensor:
        return torch.zeros_like(spikes)

    found = Comparer(ReferenceModel(reference)).end_to_end(Tampered(reference, change), ONES)
    first, second = found.layers
    assert [(f.sample, f.neuron, f.step) for f in first.flips] == [
        *((0, (0,), 0), (0, (1,), 0), (1, (0,), 0), (1, (1,), 0))
    ]
    assert [f.cause and (f.cause.sample, f.cause.neuron) for f in second.flips] == [
        *((0, (1,)), (1, (1,)))
    ]


class Wider(ModelExecution):
    """An execution whose readout has a class too many."""

    def run(self, images: Tensor) -> ExecutionRun:
        run = super().run(images)
        return replace(run, logits=torch.cat([run.logits, run.logits[:, :1]], dim=1))


def test_logits_of_another_shape_differ_without_bound() -> None:
    reference = two_layers(first=1.5)
    found = Comparer(ReferenceModel(reference)).end_to_end(Wider(reference), ONES)
    assert found.unexplained == 0 and not found.passed
    assert (found.samples, found.flipped_samples, found.agreeing) == (2, 0, 0)
    data = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert found.logit_difference == found.logit_difference_flipped == float("inf")
    assert data["logit_difference"] is None and data["logit_difference_flipped"] is None


def test_an_infinite_distance_is_null_in_json() -> None:
    """A constant-pattern channel has no membrane that could be near a threshold."""
    reference = with_a_pattern(0, 1, 1)
    found = compare(reference, with_a_pattern(1, 1, 1), ONES)
    data = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    for check in ("forced", "end_to_end"):
        flips = data[check]["layers"][0]["flips"]
        assert [flip["distance"] for flip in flips] == [None, None]
        assert data[check]["unexplained"] == 2
    assert data["verdict"] == "failed"


def test_maps_that_lost_channels_are_compared_on_those_left() -> None:
    network = nn.Sequential(
        layers.Conv2d(1, 3, 1, bias=False),
        SpikingNeuron(IF, 2),
        layers.RateReadout(3, 2, bias=False),
    )
    module = GraphModule(trace(network, (1, 2, 3), 2))
    with torch.no_grad():
        module.get_parameter("0.weight").fill_(1.5)
    keep = {"1": np.array([True, False, True])}
    masked = replace(from_module(module, ModelInfo()), channel_masks=keep)
    plan = plan_removal(masked)
    found = compare(masked, remove(masked, plan), torch.ones(1, 1, 2, 3), plan.kept_channels)
    assert found.passed and found.end_to_end.layers[0].golden_spikes == 2 * 2 * 6
