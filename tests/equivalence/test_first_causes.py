"""Comparing two executions, by hand: causes, what JSON holds, logits of another shape."""

import json
from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest
import torch
from test_compare import IF, ONES, Tampered, two_layers, with_a_pattern
from torch import Tensor, nn

from soul_deploy import ir
from soul_deploy.equivalence.engines import Comparer, ExecutionRun, ModelExecution, compare
from soul_deploy.equivalence.reference import ReferenceModel
from soul_deploy.equivalence.verdict import Verdict
from soul_deploy.frontend.from_torch import trace
from soul_deploy.model.model import Model, ModelInfo, arrays_of, from_module
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


def test_executions_that_agree_have_no_difference_and_every_class() -> None:
    reference = two_layers(first=1.5, second=1.5)
    comparer = Comparer(ReferenceModel(reference))
    sequence = torch.ones(3, 5, 1)  # (T, B, …): split by samples, not by steps
    for images, samples in ((ONES, 2), (sequence, 5)):
        found = comparer.both(ModelExecution(reference), images, batch=2)
        for check in (found.forced, found.end_to_end):
            assert (check.samples, check.agreeing, check.flipped_samples) == (samples, samples, 0)
            assert check.logit_difference == check.logit_difference_flipped == 0.0
        assert found.passed and found.time_steps == 3
    turned = {**reference.state, "4.weight": -reference.state["4.weight"]}
    against = ModelExecution(replace(reference, state=turned))
    assert comparer.end_to_end(against, ONES).agreeing == 0


def test_a_silent_population_is_inconclusive_unless_allowed() -> None:
    silent = two_layers(first=0.1)
    comparer, execution = Comparer(ReferenceModel(silent)), ModelExecution(silent)
    assert comparer.both(execution, ONES).verdict is Verdict.INCONCLUSIVE
    assert comparer.both(execution, ONES, allow_silent=True).passed
    for value, name in ((execution.run(ONES), "logits"), (comparer, "kept")):
        with pytest.raises(FrozenInstanceError):
            setattr(value, name, None)
    run = execution.run_layer("1", comparer.reference.record(ONES)[0])
    with pytest.raises(FrozenInstanceError):
        run.counts = {}  # type: ignore[misc]
    assert "tensor([" not in repr(run)


def branches() -> Model:
    """1 input, neurons "a" (0.6 a step) and "b" (1.2), their sum of spikes, neuron "d" behind."""
    spec = IF
    nodes = (
        ir.Input("input", (), (1,)),
        ir.Linear("wa", ("input",), False, None, 1, 1),
        ir.Population("a", ("wa",), spec),
        ir.Linear("wb", ("input",), False, None, 1, 1),
        ir.Population("b", ("wb",), spec),
        ir.Merge("sum", ("a", "b"), "add"),
        ir.Linear("wd", ("sum",), False, None, 1, 1),
        ir.Population("d", ("wd",), spec),
        ir.Readout("head", ("d",), 2),
    )
    graph = ir.SpikingGraph(nodes, 3)
    state = arrays_of(GraphModule(graph).state_dict())
    for name, value in (("wa", 0.6), ("wb", 1.2), ("wd", 0.7)):
        state[f"{name}.weight"] = np.array([[value]], np.float32)
    return Model(graph, state)


def test_of_two_branches_the_earlier_mismatch_is_the_cause() -> None:
    """What each branch flips first: both ways round, so that their order decides nothing."""
    for early, late in (("a", "b"), ("b", "a")):

        def change(name: str, spikes: Tensor, early: str = early, late: str = late) -> Tensor:
            changed = spikes.clone()
            if name == early:
                changed[0] = ~changed[0]
            elif name == late:
                changed[2] = ~changed[2]
            else:
                changed[:] = ~changed
            return changed

        found = Comparer(ReferenceModel(branches())).end_to_end(Tampered(branches(), change), ONES)
        causes = [flip.cause for flip in found.layers[2].flips]
        assert [cause and (cause.layer, cause.step) for cause in causes] == [(early, 0)] * 2


def test_flips_of_what_lost_channels_are_traced_at_their_steps() -> None:
    """Only from the step on at which a kept channel differs is a later flip explained."""
    kept = {"1": np.array([0])}
    masked = replace(pair_and_one(1.5, 1.25), channel_masks={"1": np.array([True, False])})
    compact = remove(masked, plan_removal(masked))

    def change(name: str, spikes: Tensor) -> Tensor:
        changed = spikes.clone()
        step = 1 if name == "1" else 0
        changed[step] = ~changed[step]
        return changed

    found = Comparer(ReferenceModel(masked), kept).end_to_end(Tampered(compact, change), ONES)
    first, second = found.layers
    assert [flip.step for flip in first.flips] == [1, 1]
    assert [(flip.step, flip.cause) for flip in second.flips] == [(0, None), (0, None)]
    assert not found.passed
