"""The search, its command, and the faults of Soul's script that must not come back."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from searching import CONSTANT, QUICK, SMALL, call, few, pruning_of, search_of
from torch import nn

from soul_deploy.analysis.connectivity import measure_connectivity
from soul_deploy.data.datasets import READERS, Data, Split
from soul_deploy.data.sampler import DataOrder
from soul_deploy.ir import NeuronSpec
from soul_deploy.model.file import load, save
from soul_deploy.model.model import ModelInfo
from soul_deploy.nn.graph_module import GraphModule
from soul_deploy.prune.target import Target
from soul_deploy.prune.unstructured.budget import Budget
from soul_deploy.prune.unstructured.config import FinetuneConfig
from soul_deploy.prune.unstructured.log import note_of
from soul_deploy.prune.unstructured.loss import coefficients
from soul_deploy.prune.unstructured.masks import MaskStart, make_masks
from soul_deploy.prune.unstructured.pruning import Pruning, SearchEpoch
from soul_deploy.prune.unstructured.search import FinetuneLoop, SearchLoop, SearchStoppedError
from soul_deploy.training import trainer as training
from soul_deploy.training.lr_schedules import Schedule
from soul_deploy.training.objective import Objective
from soul_deploy.training.trainer import TrainConfig, accuracy
from soul_deploy.zoo.registry import NetworkOptions, create

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def digits() -> Data:
    return few(128)


@pytest.fixture
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, digits: Data) -> Path:
    """Run in an empty folder, on few samples."""
    monkeypatch.setitem(READERS, "digits", lambda data_dir, download: digits)
    monkeypatch.chdir(tmp_path)
    return tmp_path


# The five faults of Soul's script that make its result worthless.


def test_mask_gradients_are_cleared_each_step_unlike_souls(
    digits: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without learning, each step's mask gradient is that of its own batch."""
    frozen: dict[str, Any] = {"optimizer": "sgd", "learning_rate": 1e-30, "momentum": 0}
    pruning = pruning_of(digits, search_of(1, prune_optimizer="sgd", prune_lr=1e-30), **frozen)
    name = "features.2.conv.0"
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    inner = pruning._backward

    def watched(batch: Split, group: int, penalised: object) -> tuple[float, int]:
        alpha = pruning.masks.weights[name].alpha
        before = torch.zeros_like(alpha) if alpha.grad is None else alpha.grad.clone()
        found = inner(batch, group, penalised)  # type: ignore[arg-type]
        seen.append((before, alpha.grad.clone()))  # type: ignore[union-attr]
        return found

    monkeypatch.setattr(pruning, "_backward", watched)
    list(SearchLoop(pruning).run())
    assert len(seen) == 4
    assert all(not before.any() for before, _ in seen)
    assert all(after.any() for _, after in seen)


def test_masks_are_saved_unlike_souls(digits: Data, tmp_path: Path) -> None:
    """The file alone gives the pruned network: same scores, same masks, same parameters."""
    pruning = pruning_of(digits, search_of(1))
    list(SearchLoop(pruning).run())
    pruning.masks.attach_hard(pruning.module)
    with torch.no_grad():
        pruning.masks.neurons["features.2.sn"].alpha[:40] = -1
        pruning.masks.weights["pre_logits.fc1.0"].alpha[:, 64:] = -1
    pruning.masks.attach_hard(pruning.module)
    save(pruning.hard_model(ModelInfo("masked")), tmp_path / "m.safetensors")
    loaded = load(tmp_path / "m.safetensors")
    x = digits.normalise(digits.test.images)
    assert torch.equal(loaded.module()(x), pruning.module(x))
    assert not loaded.neuron_masks["features.2.sn"][:40].any()
    assert not loaded.state["pre_logits.fc1.0.weight"][:, 64:].any()
    found = pruning.masks.alphas()
    assert all((loaded.alphas[name] == found[name]).all() for name in found)
    weights = {n.name: loaded.state[f"{n.name}.weight"] for n in loaded.graph.projections}
    counted = measure_connectivity(loaded.graph, weights, loaded.neuron_masks)
    assert counted == pruning.meter.exact()


@pytest.mark.parametrize("spelling", ["spikingvgg5", "SpikingVGG5", "SPIKINGVGG5"])
def test_a_lower_case_model_name_still_has_penalty_unlike_souls(quick: Path, spelling: str) -> None:
    result = call(*SMALL, "--model", spelling, "--dry_run", "--format", "json")
    assert result.exit_code == 0, result.output
    layers = json.loads(result.stdout)["layers"]
    costs = [float(row["cost"]) for row in layers if row["masks"] == "weights"]
    assert costs == [64, 16, 1, 1]
    assert [row["cost"] for row in layers if row["masks"] == "neurons"] == ["", "392", "8", ""]
    assert not list(quick.iterdir())


def test_the_penalty_prunes(digits: Data) -> None:
    """With lambda more goes than without, in every layer that costs."""
    shares = []
    for lmbda in (0.0, 1e-8, 1e-7):
        (last,) = list(
            SearchLoop(pruning_of(digits, search_of(1, penalty_lmbda=lmbda), 0.02)).run()
        )
        shares.append(last.connectivity.share)
    assert shares[2] < 0.6 * shares[1] < 0.36 * shares[0]


def test_neuron_coefficients_of_a_choice_use_their_own_layer_unlike_souls(quick: Path) -> None:
    result = call(*SMALL, "--neuron_prune_layers", "2", "--dry_run", "--format", "json")
    layers = [row for row in json.loads(result.stdout)["layers"] if row["masks"] == "neurons"]
    assert [(row["index"], row["entries"], row["cost"]) for row in layers if row["entries"]] == [
        (2, 8, "8")
    ]


def test_excluding_an_early_convolution_runs_unlike_souls(quick: Path) -> None:
    result = call(*QUICK, "--epochs", "1", "--weight_prune_layers", "2", "3", "--format", "json")
    assert result.exit_code == 0, result.output
    kept = {row["projection"]: row["weights"] for row in json.loads(result.stdout)["survivors"]}
    assert kept["features.0.conv.0"] == [576, 576]
    assert kept["pre_logits.fc1.0"][0] < kept["pre_logits.fc1.0"][1]


# The search.


def test_the_search_reaches_its_target_with_a_lambda_that_hardly_moves(digits: Data) -> None:
    target = Target("connectivity", 0.2)
    plan = search_of(8, penalty_lmbda=None, target=target, prune_lr=0.02)
    pruning = pruning_of(few(320), plan, 0.0)
    epochs = list(SearchLoop(pruning).run())
    shares = [epoch.connectivity.share for epoch in epochs]
    assert target.reached(shares[-1], 1) and epochs[-1].dead is None
    assert 0.15 < min(shares) < max(shares) < 0.3  # the first lambda has done it
    rates = [epoch.lmbda for epoch in epochs]
    assert 0 < max(rates) < 2 * min(rates)
    assert all(epoch.adjustment is None for epoch in epochs[:7])
    assert epochs[-1].temperature == pytest.approx((200, 200))


@pytest.mark.parametrize("target", [Target("synops", 3000), Target("params", 0.2)])
def test_a_target_holds_at_the_end_of_the_fine_tuning(digits: Data, target: Target) -> None:
    plan = search_of(3, penalty_lmbda=None, target=target, prune_lr=0.02)
    pruning = pruning_of(few(320), plan, 0.0)
    list(SearchLoop(pruning).run())
    epochs = list(FinetuneLoop(pruning, FinetuneConfig(2, 3e-3, CONSTANT)).run())
    assert pruning.budget is not None and pruning.budget.spent.reached
    told = [epoch.hard_accuracy for epoch in epochs]
    assert accuracy(pruning.module, digits, digits.validation) in told


def test_a_target_that_no_epoch_of_the_fine_tuning_keeps(
    digits: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = search_of(2, penalty_lmbda=None, target=Target("params", 0.2), prune_lr=0.02)
    pruning = pruning_of(digits, plan, 0.0)
    list(SearchLoop(pruning).run())
    monkeypatch.setattr(Budget, "reached", lambda *ignored: False)
    with pytest.raises(SearchStoppedError, match="no epoch of the fine-tuning ended") as stop:
        list(FinetuneLoop(pruning, FinetuneConfig(1, 1e-3, CONSTANT)).run())
    assert stop.value.last_good is not None


def test_two_searches_give_the_same_bits(digits: Data) -> None:
    results = []
    for _ in range(2):
        pruning = pruning_of(
            digits,
            search_of(1, target=Target("connectivity", 0.4), penalty_lmbda=None),
            augment="shift",
        )
        list(SearchLoop(pruning).run())
        list(FinetuneLoop(pruning, FinetuneConfig(1, 1e-3, CONSTANT)).run())
        results.append(pruning.hard_model(ModelInfo()))
    first, second = results
    assert all((first.state[name] == second.state[name]).all() for name in first.state)
    assert all((first.alphas[name] == second.alphas[name]).all() for name in first.alphas)


def test_the_temperature_starts_before_the_first_step_and_moves_with_each(
    digits: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = search_of(2, temp_scheduler=(5, 3, 500, 30, 0, 2))
    pruning = pruning_of(digits, plan)
    seen: list[tuple[float, float]] = []
    inner = pruning._backward

    def watched(batch: Split, group: int, penalised: object) -> tuple[float, int]:
        masks = pruning.masks
        weights, neurons = (next(iter(kind.values())) for kind in (masks.weights, masks.neurons))
        seen.append((weights.temperature, neurons.temperature))
        return inner(batch, group, penalised)  # type: ignore[arg-type]

    monkeypatch.setattr(pruning, "_backward", watched)
    list(SearchLoop(pruning).run())
    expected = [(5 * 100 ** (step / 8), 3 * 10 ** (step / 8)) for step in range(8)]
    assert seen == [pytest.approx(pair) for pair in expected]


def test_the_last_partial_group_of_batches_is_a_step_too(digits: Data) -> None:
    data = replace(digits, train=digits.train.select(torch.arange(100)))
    pruning = pruning_of(data, search_of(1, accumulate_step=3))
    assert pruning.steps_per_epoch() == 2
    steps: list[int] = []
    pruning.optimizer.register_step_post_hook(lambda *ignored: steps.append(1))
    list(SearchLoop(pruning).run())
    assert len(steps) == 2


def test_accumulated_batches_give_the_gradient_of_their_mean(digits: Data) -> None:
    """Four batches of 32 to a step: the mean of their losses, the penalty once."""
    one = pruning_of(digits, search_of(1, accumulate_step=4))
    grads: list[torch.Tensor] = []
    assert one.mask_optimizer is not None

    def keep(*ignored: object) -> None:
        grad = one.masks.weights["pre_logits.fc2.0"].alpha.grad
        assert grad is not None
        grads.append(grad.clone())

    one.mask_optimizer.register_step_pre_hook(keep)
    list(SearchLoop(one).run())
    other = pruning_of(digits, search_of(1))
    other.masks.heat(5, 5)
    other.masks.attach(other.module)
    other.module.train()
    total = torch.zeros(())
    for index in DataOrder(128, 32, 2025).batches(0):
        batch = digits.train.select(index)
        images = digits.normalise(batch.images)
        total = total + Objective("ce").loss(other.module(images), batch.labels, "mean")[0] / 4
    (total + 1e-8 * other.masks.penalty()).backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(grads[0], other.masks.weights["pre_logits.fc2.0"].alpha.grad)


def test_finetuning_freezes_masks_drops_the_penalty_and_keeps_moments(digits: Data) -> None:
    pruning = pruning_of(digits, search_of(1, penalty_lmbda=1e-6))
    list(SearchLoop(pruning).run())
    alphas = pruning.masks.alphas()
    conv = pruning.module.get_submodule("features.2.conv.0").weight
    assert isinstance(conv, nn.Parameter)
    steps = int(pruning.optimizer.state[conv]["step"])
    epochs = list(FinetuneLoop(pruning, FinetuneConfig(2, 3e-3, Schedule("step", (1,)))).run())
    assert [epoch.result.learning_rate for epoch in epochs] == pytest.approx([3e-3, 3e-4])
    assert int(pruning.optimizer.state[conv]["step"]) == steps + 8
    assert all((alphas[name] == alpha).all() for name, alpha in pruning.masks.alphas().items())
    best = max(epoch.result.validation_accuracy for epoch in epochs)
    assert accuracy(pruning.module, digits, digits.validation) == best
    list(FinetuneLoop(pruning, FinetuneConfig(1, 3e-3, CONSTANT, reset_optimizer=True)).run())
    again = pruning.module.get_submodule("features.2.conv.0").weight
    assert int(pruning.optimizer.state[again]["step"]) == 4  # type: ignore[index]


def test_finetuning_ends_with_its_best_epoch(digits: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    pruning = pruning_of(digits, search_of(1))
    pruning.masks.attach(pruning.module)
    scores = iter((0.5, 0.75, 0.75))
    measured = "soul_deploy.training.trainer.accuracy"
    monkeypatch.setattr(measured, lambda *ignored: next(scores))
    states = [
        training.copied_state(pruning.module)
        for _ in FinetuneLoop(pruning, FinetuneConfig(3, 1e-3, CONSTANT)).run()
    ]
    final = pruning.module.state_dict()
    assert all(torch.equal(final[name], tensor) for name, tensor in states[1].items())
    assert not torch.equal(states[1]["head.weight"], states[2]["head.weight"])


def loud(pruning: Pruning) -> Pruning:
    """Its fresh weights are silent; now they are large enough for its scores to answer."""
    with torch.no_grad():
        for parameter in pruning.module.parameters():
            parameter.mul_(6)
    return pruning


def test_a_layer_that_dies_stops_the_search_and_keeps_the_last_good_model(digits: Data) -> None:
    pruning = loud(pruning_of(digits, search_of(9, penalty_lmbda=1.0), 0.05))
    epochs: list[SearchEpoch] = []
    with pytest.raises(
        SearchStoppedError, match=r"no synapse of features\.0\.conv\.0 is left"
    ) as stop:
        for epoch in SearchLoop(pruning).run():
            epochs.append(epoch)
    good = stop.value.last_good
    assert len(epochs) < 7 and good is not None  # long before the end
    assert epochs[0].dead is None and epochs[-1].dead == "features.0.conv.0"
    weights = {n.name: good.state[f"{n.name}.weight"] for n in good.graph.projections}
    counted = measure_connectivity(good.graph, weights, good.neuron_masks)
    assert all(layer.live for layer in counted.layers)


def test_a_search_goes_on_while_the_soft_network_works(digits: Data) -> None:
    """All alphas begin below 0; most come back in the last epoch."""
    plan = search_of(4, penalty_lmbda=0.0, temp_scheduler=(5, 5), prune_lr=0.01)
    epochs = list(SearchLoop(pruning_of(digits, plan, -0.1)).run())
    assert [epoch.dead is None for epoch in epochs] == [False, False, False, True]
    soft = epochs[1].result.validation_accuracy
    told = f"hard masks leave nothing of features.0.conv.0; the soft network is at {soft:.2%}"
    assert told in note_of(epochs[1]) and "leave nothing" not in note_of(epochs[3])
    assert epochs[1].connectivity.live == 0 and epochs[3].connectivity.live > 0


def test_the_last_epoch_needs_hard_masks(digits: Data) -> None:
    plan = search_of(2, penalty_lmbda=0.0, temp_scheduler=(5, 5), prune_lr=0.01)
    epochs: list[SearchEpoch] = []
    with pytest.raises(SearchStoppedError, match="search epoch 2: no synapse of") as stop:
        for epoch in SearchLoop(pruning_of(digits, plan, -0.1)).run():
            epochs.append(epoch)
    assert len(epochs) == 1 and stop.value.last_good is None


def test_a_network_responds_when_its_scores_depend_on_the_image(digits: Data) -> None:
    silent, pruning = pruning_of(digits, search_of(1)), loud(pruning_of(digits, search_of(1)))
    assert pruning.responds() and not silent.responds()
    with torch.no_grad():
        pruning.module.get_parameter("head.weight").zero_()
    assert not pruning.responds()


def test_a_target_that_cannot_be_met_stops_with_the_nearest_model(digits: Data) -> None:
    """Every layer keeps something, which is more than one parameter."""
    plan = search_of(2, penalty_lmbda=None, target=Target("params", 1), prune_lr=0.02)
    pruning = pruning_of(digits, plan, 0.0)
    with pytest.raises(SearchStoppedError, match="the nearest that can be met is") as stop:
        list(SearchLoop(pruning).run())
    good = stop.value.last_good
    assert good is not None and pruning.dead() is None
    assert all((good.alphas[name] == a).all() for name, a in pruning.masks.alphas().items())


def test_a_class_without_voting_neurons_is_seen(digits: Data) -> None:
    options = NetworkOptions(digits.input_shape, 10, NeuronSpec(), 2, hidden=8, width=4)
    _, graph = create("cifar10net", options)
    module = GraphModule(graph)
    masks = make_masks(module, ["fc2"], [], coefficients(graph, "exact"), MaskStart(1))
    pruning = Pruning(module, digits, TrainConfig(), search_of(1).config, masks)
    assert pruning.meter.empty_class() is None
    with torch.no_grad():
        masks.weights["fc2"].alpha[30:40] = -1
    assert pruning.meter.empty_class() == 3
    result = training.EpochResult(1, 0, 0, 0, 0, 0)
    assert pruning.measure("search", result).dead == "class 3"
