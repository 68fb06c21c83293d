"""Method S: which channels stay, when masks change, what is measured, what a mask does."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from soul_deploy.base.errors import SoulDeployError, UnknownNameError, UsageError
from soul_deploy.data.datasets import Data, load_data
from soul_deploy.data.sampler import share_of
from soul_deploy.distributed import Group
from soul_deploy.ir import NeuronSpec, Projection
from soul_deploy.nn.graph_module import GraphModule
from soul_deploy.prune.structured.config import PruneSchedule, ScaConfig
from soul_deploy.prune.structured.masks import apply, open_masks
from soul_deploy.prune.structured.sca import ChannelPruning, plan_of_weights
from soul_deploy.prune.structured.scores import ChannelStatistics, Score
from soul_deploy.prune.structured.selection import (
    Budget,
    ChannelPlan,
    Guard,
    Values,
    check_budget,
    decide,
    prunable,
)
from soul_deploy.training import trainer as training
from soul_deploy.training.objective import Objective
from soul_deploy.training.trainer import (
    TrainConfig,
    accuracy,
    backward,
    begin_training,
    copied_state,
    make_optimizer,
)
from soul_deploy.zoo.registry import NetworkOptions, create


def values(*numbers: float) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    return np.array(numbers, np.float64)


def kept(plan: ChannelPlan) -> list[list[int]]:
    return [layer.keep.nonzero()[0].tolist() for layer in plan.layers]


def test_highest_scores_anywhere_stay() -> None:
    scores = {"a": values(5, 1, 4), "b": values(3, 2, 6)}
    plan = decide(scores, {"a": values(0, 0, 0), "b": values(0, 0, 0)}, Budget(3, 0), Guard())
    assert kept(plan) == [[0, 2], [2]]
    assert (plan.kept, plan.total) == (3, 6)
    assert plan.rows()[0] == ("a", 3, 2, 0, 4.0, 1.0)


def test_ties_go_to_the_earlier_layer_and_channel() -> None:
    same = {"a": values(1, 1, 1), "b": values(1, 1, 1)}
    assert kept(decide(same, same, Budget(4, 0), Guard())) == [[0, 1, 2], [0]]
    assert kept(decide(same, same, Budget(5, 3), Guard())) == [[0, 1, 2], [0, 1]]


def test_regrowth_takes_the_steepest_of_the_rest() -> None:
    scores = {"a": values(9, 8, 1, 1), "b": values(7, 6, 2, 2)}
    slopes = {"a": values(99, 99, 0, -5), "b": values(99, 1, 3, 0)}
    plan = decide(scores, slopes, Budget(5, 2), Guard())
    assert kept(plan) == [[0, 1, 3], [0, 2]]
    assert [layer.regrown.nonzero()[0].tolist() for layer in plan.layers] == [[3], [2]]


def test_floor_takes_from_the_lowest_score_elsewhere() -> None:
    scores = {"a": values(9, 8, 7, 6), "b": values(1, 3, 2, 0)}
    zero = {"a": values(0, 0, 0, 0), "b": values(0, 0, 0, 0)}
    assert kept(decide(scores, zero, Budget(4, 0), Guard())) == [[0, 1, 2], [1]]
    assert kept(decide(scores, zero, Budget(4, 0), Guard(min_keep=0.26))) == [[0, 1], [1, 2]]
    assert kept(decide(scores, zero, Budget(4, 0), Guard(min_channels=2))) == [[0, 1], [1, 2]]
    assert kept(decide(scores, zero, Budget(5, 0), Guard(round_to=4))) == [[0, 1, 2, 3]] * 2
    assert kept(decide(scores, zero, Budget(4, 0), Guard(round_to=3))) == [[0, 1, 2], [0, 1, 2]]


def test_floors_of_widths() -> None:
    guard = Guard(min_channels=3, min_keep=0.25)
    assert [guard.floor(width) for width in (2, 8, 16, 17, 256)] == [2, 3, 4, 5, 64]
    assert Guard(min_keep=0.1).floor(30) == 3
    with pytest.raises(UsageError, match=r"leaves 3 of 8 channels, but .* keep 4; lower one"):
        check_budget(Budget(3, 0), {"a": 4, "b": 4}, Guard(2))
    for options in ({"min_channels": 0}, {"round_to": 0}, {"min_keep": 1.5}):
        with pytest.raises(UsageError, match="must be"):
            Guard(**options)
    with pytest.raises(SoulDeployError, match="not finite"):
        decide({"a": values(1, math.nan)}, {"a": values(0, 0)}, Budget(1, 0), Guard())


def naive_decision(
    scores: dict[str, list[float]], slopes: dict[str, list[float]], budget: Budget, floor: int
) -> set[tuple[int, int]]:
    """The rule one channel at a time, by scanning for the best."""
    everything = [(i, c) for i, layer in enumerate(scores.values()) for c in range(len(layer))]
    score = {(i, c): list(scores.values())[i][c] for i, c in everything}
    slope = {(i, c): abs(list(slopes.values())[i][c]) for i, c in everything}

    def best(of: dict[tuple[int, int], float], among: list[tuple[int, int]]) -> tuple[int, int]:
        top = among[0]
        for candidate in among:
            if of[candidate] > of[top]:
                top = candidate
        return top

    chosen: set[tuple[int, int]] = set()
    for i in range(len(scores)):
        for _ in range(floor):
            free = [key for key in everything if key[0] == i and key not in chosen]
            if free:
                chosen.add(best(score, free))
    while len(chosen) < budget.kept - budget.regrown:
        chosen.add(best(score, [key for key in everything if key not in chosen]))
    while len(chosen) < budget.kept:
        chosen.add(best(slope, [key for key in everything if key not in chosen]))
    return chosen


@given(st.data())
def test_decision_equals_the_naive_one(data: st.DataObject) -> None:
    few = st.integers(0, 4).map(float)
    widths = data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=4))
    floor = data.draw(st.integers(1, 3))
    scores = {
        str(i): data.draw(st.lists(few, min_size=w, max_size=w)) for i, w in enumerate(widths)
    }
    slopes = {
        str(i): data.draw(st.lists(few, min_size=w, max_size=w)) for i, w in enumerate(widths)
    }
    least = sum(min(floor, width) for width in widths)
    total = data.draw(st.integers(least, sum(widths)))
    budget = Budget(total, data.draw(st.integers(0, total)))
    plan = decide(
        {name: values(*row) for name, row in scores.items()},
        {name: values(*row) for name, row in slopes.items()},
        budget,
        Guard(min_channels=floor),
    )
    found = {(i, c) for i, row in enumerate(kept(plan)) for c in row}
    assert found == naive_decision(scores, slopes, budget, floor)
    assert plan.kept == total


def test_budget_rounds_p_and_q() -> None:
    assert Budget.of(704, 0.5, 0.1) == Budget(352, 70)
    assert Budget.of(10, 0.9, 0.05) == Budget(1, 0)
    assert Budget.of(4224, 0.1, 0.1) == Budget(3802, 422)


def test_schedule_by_hand() -> None:
    default = PruneSchedule(epochs=3)
    assert default.ratio_after == {1: 0.1, 2: 0.1, 3: 0.1} and default.last_update == 3
    linear = PruneSchedule(0.6, 0.1, 10, finetune_epochs=3, interval=2, warmup=1, ramp="linear")
    assert list(linear.ratio_after) == [3, 5, 7]
    assert list(linear.ratio_after.values()) == pytest.approx([0.2, 0.4, 0.6])
    cubic = PruneSchedule(0.8, 0.1, 2, ramp="cubic")
    assert list(cubic.ratio_after.values()) == pytest.approx([0.8 * 7 / 8, 0.8])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratio": 0.5, "regrow_ratio": 0.5}, "sum must be below 1"),
        ({"ratio": -0.1}, "neither may be negative"),
        ({"ratio": math.nan}, "sum must be below 1"),
        ({"epochs": 2, "finetune_epochs": 2}, "no mask update fits into prune_epochs 2"),
        ({"epochs": 2, "interval": 3}, "no mask update fits"),
        ({"interval": 0}, "must be at least 1"),
        ({"ramp": "square"}, "unknown prune_ramp 'square'; valid: constant, linear, cubic"),
    ],
)
def test_wrong_schedules(options: dict[str, float], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        PruneSchedule(**options)  # type: ignore[arg-type]


def test_wrong_names() -> None:
    with pytest.raises(UnknownNameError, match="unknown regrow_weights"):
        ScaConfig(regrow_weights="random")  # type: ignore[arg-type]
    with pytest.raises(UnknownNameError, match="unknown score_window"):
        ScaConfig(score_window="week")  # type: ignore[arg-type]
    with pytest.raises(UnknownNameError, match="unknown score"):
        ChannelStatistics(["a"], "rate", "epoch", "epoch")  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def digits() -> Data:
    whole = load_data("digits", Path("."))
    few = torch.arange(80)
    return Data(
        "digits",
        whole.train.select(few),
        whole.validation.select(few),
        whole.test,
        whole.classes,
        whole.normalization,
    )


def small_network(digits: Data, family: str = "lif", steps: int = 3) -> GraphModule:
    torch.manual_seed(3)
    neuron = NeuronSpec(family, v_threshold=0.5)
    network, graph = create(
        "spikingvgg5", NetworkOptions(digits.input_shape, 10, neuron, steps, hidden=12)
    )
    module = GraphModule(graph)
    module.load_state_dict(network.state_dict())
    return module


def names_of(module: GraphModule) -> tuple[str, ...]:
    return tuple(node.name for node in prunable(module.graph))


def naive_scores(module: GraphModule, name: str, images: Tensor, kind: Score) -> Tensor:
    """Mean over time, batch and space of S + |V|, from recorded steps."""
    seen: list[tuple[Tensor, Tensor]] = []

    def observe(population: str, t: int, spikes: Tensor, v: Tensor) -> None:
        if population == name:
            seen.append((spikes.detach().double(), v.detach().double()))

    with torch.no_grad():
        module.forward_observed(images, observe)
    spikes, membrane = (torch.stack(rows) for rows in zip(*seen, strict=True))
    total = torch.zeros_like(spikes)
    if kind in ("spike_membrane", "spike"):
        total = total + spikes
    if kind in ("spike_membrane", "membrane"):
        total = total + membrane.abs()
    return total.transpose(0, 2).flatten(1).mean(1)


def test_scores_of_uneven_parts_add_up_to_those_of_the_batch(digits: Data) -> None:
    """Of two processes one has 8 samples of 15, the other 7; their sums are added up."""
    batch = digits.train.select(torch.arange(15))

    def scores_of(group: Group) -> dict[str, Values]:
        module = small_network(digits).train()
        for _ in range(30):  # running statistics, so that every layer fires with frozen ones
            module(digits.normalise(batch.images))
        open_masks(module, names_of(module))
        statistics = ChannelStatistics(names_of(module), "spike_membrane", "epoch", "epoch")
        begin_training(module, TrainConfig(freeze_batch_norm=True))
        backward(module, digits, share_of(batch, group), statistics, Objective("ce"))
        return statistics.scores()

    whole, first, second = scores_of(Group()), scores_of(Group(0, 2)), scores_of(Group(1, 2))
    for name, score in whole.items():
        assert score.any()
        np.testing.assert_allclose(first[name] + second[name], score, rtol=1e-5)


@pytest.mark.parametrize("kind", ["spike_membrane", "spike", "membrane"])
@pytest.mark.parametrize("window", ["epoch", "last_batch"])
def test_scores_are_the_mean_over_batches(digits: Data, kind: Score, window: str) -> None:
    module = small_network(digits).train()
    names = names_of(module)
    open_masks(module, names)
    statistics = ChannelStatistics(names, kind, window, "epoch")  # type: ignore[arg-type]
    batches = [digits.normalise(digits.train.images[i : i + 16]) for i in (0, 16, 32)]
    for batch in batches:
        statistics.forward(module, batch)
    for name, found in statistics.scores().items():
        each = torch.stack([naive_scores(module, name, batch, kind) for batch in batches])
        expected = each.mean(0) if window == "epoch" else each[-1]
        np.testing.assert_allclose(found, expected.numpy(), rtol=1e-5)
    statistics.reset()
    statistics.forward(module, batches[1])
    again = naive_scores(module, names[0], batches[1], kind)
    np.testing.assert_allclose(statistics.scores()[names[0]], again.numpy(), rtol=1e-5)


def test_regrow_gradient_is_that_of_an_independent_scale(digits: Data) -> None:
    """Against a module whose norm weight *is* gamma times mask, for live and masked channels."""
    module, twin = small_network(digits).train(), small_network(digits).train()
    names = names_of(module)
    open_masks(module, names)
    masked = {name: torch.arange(0, 12, 3) for name in names}
    for name in names:
        module.channel_masks[name].keep[masked[name]] = 0
        projection = twin.graph[twin.graph[name].inputs[0]]
        assert isinstance(projection, Projection) and projection.norm is not None
        with torch.no_grad():
            for part in ("weight", "bias"):
                twin.get_parameter(f"{projection.norm.name}.{part}")[masked[name]] = 0
    statistics = ChannelStatistics(names, "spike_membrane", "epoch", "epoch")
    sums: dict[str, Tensor] = {}
    for start in (0, 20):
        images = digits.normalise(digits.train.images[start : start + 20])
        labels = digits.train.labels[start : start + 20]
        for network, forward in ((module, statistics.forward), (twin, lambda m, x: m(x))):
            network.zero_grad()
            loss = torch.nn.functional.cross_entropy(forward(network, images), labels)
            loss.backward()  # type: ignore[no-untyped-call]
        statistics.after_backward(module)
        for name in names:
            projection = twin.graph[twin.graph[name].inputs[0]]
            assert isinstance(projection, Projection) and projection.norm is not None
            slope = twin.get_parameter(f"{projection.norm.name}.weight").grad
            assert slope is not None
            sums[name] = sums.get(name, torch.zeros(())) + slope.abs().double() / 2
    for name, found in statistics.gradients().items():
        np.testing.assert_allclose(found, sums[name].numpy(), rtol=1e-4, atol=1e-9)
        assert (found[masked[name].numpy()] > 0).any(), name


def test_a_masked_channel_is_silent_and_keeps_its_weights(digits: Data) -> None:
    module = small_network(digits)
    names = names_of(module)
    open_masks(module, names)
    before = {name: tensor.clone() for name, tensor in module.named_parameters()}
    scores = {name: np.arange(len(module.channel_masks[name].keep), dtype=float) for name in names}
    plan = decide(scores, scores, Budget(100, 10), Guard(min_keep=0.25))
    apply(plan.layers, module, make_optimizer(module, TrainConfig()), "retain")
    images = digits.normalise(digits.train.images[:8])
    module.train()
    for _ in range(30):  # running statistics, for evaluation mode
        module(images)
    for mode in (True, False):
        recording = module.train(mode).record(images)
        for layer in plan.layers:
            spikes = recording.spikes[layer.name].transpose(0, 2).flatten(1).any(1).numpy()
            assert not spikes[~layer.keep].any(), layer.name
            assert spikes[layer.keep].any(), layer.name
    for name, tensor in module.named_parameters():
        assert torch.equal(tensor, before[name]), name


def test_the_optimizer_forgets_masked_channels_and_zero_regrows_from_zero(digits: Data) -> None:
    module = small_network(digits)
    (name,) = names_of(module)[:1]
    open_masks(module, [name])
    optimizer = make_optimizer(module, TrainConfig())
    module.train()
    module(digits.normalise(digits.train.images[:8])).square().sum().backward()
    optimizer.step()
    module.channel_masks[name].keep[:2] = 0
    scores = {name: np.arange(64.0)}
    scores[name][0] = 99  # channel 0 comes back, 1 to 31 go
    plan = decide(scores, scores, Budget(33, 0), Guard())
    apply(plan.layers, module, optimizer, "zero")
    weight = module.get_parameter("features.0.conv.0.weight")
    moments = optimizer.state[weight]["exp_avg"]
    assert plan.layers[0].keep.nonzero()[0].tolist() == [0, *range(32, 64)]
    assert moments[1:32].abs().sum() == 0 and (moments[32:].flatten(1).abs().sum(1) > 0).all()
    assert weight[0].abs().sum() == 0 and (weight[1:].flatten(1).abs().sum(1) > 0).all()


def test_the_loop_ends_with_exact_counts_and_the_best_frozen_epoch(digits: Data) -> None:
    module = small_network(digits, "plif")
    names = names_of(module)
    sca = ScaConfig(
        PruneSchedule(0.5, 0.1, epochs=4, finetune_epochs=2, ramp="linear"), Guard(min_keep=0.25)
    )
    steps, reached = [], []
    recipe = TrainConfig(batch_size=40, learning_rate=5e-3)
    loop = ChannelPruning(module, digits, recipe, sca, names)
    for step in loop.run():
        steps.append(step)
        reached.append(accuracy(loop.module, digits, digits.validation))
    counts = [step.plan.kept if step.plan else None for step in steps]
    assert counts == [162, 108, None, None]  # of 64 + 128 + 12 + 12 = 216
    assert accuracy(module, digits, digits.validation) == max(reached[1:])
    final = steps[1].plan
    assert final is not None
    for layer in final.layers:
        keep = module.channel_masks[layer.name].keep
        assert keep.bool().tolist() == layer.keep.tolist()
        assert layer.keep.sum() >= len(layer.keep) / 4
    assert not module.training


@pytest.mark.parametrize(
    ("accuracies", "best"),
    [
        ((0.9, 0.8, 0.3, 0.5, 0.7, 0.6), 4),
        ((0.9, 0.8, 0.3, 0.5, 0.6, 0.7), 5),
        ((0.9, 0.8, 0.4, 0.2, 0.4, 0.3), 2),  # the first of equals: right after the last masks
        ((0.1, 0.9, 0.2, 0.5, 0.5, 0.3), 3),
    ],
)
def test_it_ends_with_the_best_epoch_of_those_with_the_final_masks(
    accuracies: tuple[float, ...], best: int, digits: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Validation after epochs 1 and 2, after the last masks, and after epochs 3 to 5."""
    told = iter(accuracies)
    monkeypatch.setattr(training, "accuracy", lambda *ignored: next(told))
    module = small_network(digits)
    sca = ScaConfig(PruneSchedule(0.5, 0.1, epochs=5, finetune_epochs=3, ramp="linear"))
    recipe = TrainConfig(batch_size=40, learning_rate=5e-3)
    loop = ChannelPruning(module, digits, recipe, sca, names_of(module))
    states = {step.result.epoch: copied_state(loop.module) for step in loop.run()}
    assert next(told, None) is None and list(states) == [1, 2, 3, 4, 5]
    ended = module if best == 2 else loop.module  # the states after epoch 2 have all channels
    for name, tensor in ended.state_dict().items():
        assert torch.equal(tensor, states[best][name]), name
    others = [epoch for epoch in states if epoch != best]
    weight = next(iter(states[best]))
    assert all(not torch.equal(states[epoch][weight], states[best][weight]) for epoch in others)


def test_each_update_is_decided_by_the_epochs_since_the_last(digits: Data) -> None:
    """What was masked for a whole window has no activity in it, whatever it did before."""
    module = small_network(digits)
    sca = ScaConfig(PruneSchedule(0.4, 0.0, epochs=2), budget_rule="score")
    first, second = [
        step.plan
        for step in ChannelPruning(module, digits, TrainConfig(), sca, names_of(module)).run()
    ]
    assert first is not None and second is not None
    for before, after in zip(first.layers, second.layers, strict=True):
        assert (after.score[~before.keep] == 0).all() and (before.score[~before.keep] > 0).any()


def test_the_loop_repeats_to_the_bit(digits: Data) -> None:
    def run() -> tuple[list[list[int]], dict[str, Tensor]]:
        module = small_network(digits)
        recipe, sca = TrainConfig(batch_size=40), ScaConfig(PruneSchedule(0.3, 0.1, epochs=2))
        steps = list(ChannelPruning(module, digits, recipe, sca, names_of(module)).run())
        assert steps[-1].plan is not None
        return kept(steps[-1].plan), module.state_dict()

    (first, state), (second, again) = run(), run()
    assert first == second
    for name, tensor in state.items():
        assert torch.equal(tensor, again[name]), name


def test_a_plan_of_the_present_weights_changes_none(digits: Data) -> None:
    module = small_network(digits)
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    plan = plan_of_weights(
        module, digits, TrainConfig(batch_size=40), ScaConfig(), names_of(module)
    )
    assert plan.kept == Budget.of(216, 0.1, 0.1).kept
    for name, parameter in module.named_parameters():
        assert torch.equal(parameter, before[name])


def test_every_layer_of_the_vgg_can_be_pruned(digits: Data) -> None:
    module = small_network(digits)
    assert names_of(module) == tuple(node.name for node in module.graph.populations)
