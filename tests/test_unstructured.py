"""Method U: the search, its command, and the faults of Soul's script that must not come back."""

import csv
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from torch import nn

from soul_deploy import training
from soul_deploy.cli import root
from soul_deploy.connectivity import measure_connectivity
from soul_deploy.data import READERS, Data, load_data
from soul_deploy.graph import NeuronSpec
from soul_deploy.modelfile import ModelInfo, load_model, save_model
from soul_deploy.module import GraphModule
from soul_deploy.prune.lambda_control import within_band
from soul_deploy.prune.objective import Objective
from soul_deploy.prune.penalty import coefficients
from soul_deploy.prune.search import Finetune, SearchStoppedError, Pruning, Search, SearchEpoch
from soul_deploy.prune.softmask import Masks, MaskStart, Temperature, make_masks, maskable_neurons
from soul_deploy.prune.unstructured_cli import unstructured
from soul_deploy.runtime.errors import FileFormatError, SoulDeployError
from soul_deploy.schedules import Schedule
from soul_deploy.training import Recipe, accuracy
from soul_deploy.zoo import NetworkOptions, create

FIXTURES = Path(__file__).parent / "fixtures"
SMALL = ["--model", "SpikingVGG5", "--hidden", "8", "--dataset_name", "Digits", "-T", "2"]
QUICK = [*SMALL, "--epochs", "2", "-b", "32", "--threads", "1", "--prune_lr", "0.02"]
STEERED = ["--criterion", "ce", "--target_connectivity", "0.3", "--temp_scheduler", "5", "200"]
STEM = "spikingvgg5_lif_digits_T2_2025"
CONSTANT = Schedule("constant")
torch.set_num_threads(1)


def few(count: int) -> Data:
    whole = load_data("digits", Path("."))
    train, test = whole.train.select(torch.arange(count)), whole.test.select(torch.arange(50))
    checks = whole.validation.select(torch.arange(60))
    return Data("digits", train, checks, test, whole.classes, whole.normalization)


@pytest.fixture(scope="module")
def digits() -> Data:
    return few(128)


@pytest.fixture
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, digits: Data) -> Path:
    """Run in an empty folder, on few samples."""
    monkeypatch.setitem(READERS, "digits", lambda data_dir, download: digits)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(*words: str) -> Result:
    return CliRunner().invoke(root, ["prune", "unstructured", *words])


def network(data: Data, hidden: int = 8) -> GraphModule:
    torch.manual_seed(7)
    options = NetworkOptions(data.input_shape, 10, NeuronSpec(), 2, hidden=hidden)
    built, graph = create("spikingvgg5", options)
    module = GraphModule(graph)
    module.load_state_dict(built.state_dict())
    return module


def masks_for(module: GraphModule, mean: float = 0.1) -> Masks:
    graph = module.graph
    names = [node.name for node in graph.projections]
    neurons = maskable_neurons(graph)[1:]
    return make_masks(module, names, neurons, coefficients(graph, "exact"), MaskStart(mean, mean))


def search_of(epochs: int = 2, **changed: object) -> Search:
    plan = Search(
        epochs,
        Temperature.of((5, 200), epochs),
        Recipe(learning_rate=0.01, schedule=CONSTANT),
        1e-8,
        objective=Objective("ce"),
    )
    return replace(plan, **changed)  # type: ignore[arg-type]


def pruning_of(data: Data, search: Search, mean: float = 0.1, **recipe: object) -> Pruning:
    module = network(data)
    learning = Recipe(schedule=CONSTANT, batch_size=32, **recipe)  # type: ignore[arg-type]
    return Pruning(module, data, learning, search, masks_for(module, mean))


# The five faults of Soul's script that make its result worthless.


def test_mask_gradients_are_cleared_each_step_unlike_souls(
    digits: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without learning, each step's mask gradient is that of its own batch."""
    frozen = Recipe(optimizer="sgd", learning_rate=1e-30, momentum=0, schedule=CONSTANT)
    pruning = pruning_of(digits, search_of(1, masks=frozen), optimizer="sgd", learning_rate=1e-30)
    name = "features.2.conv.0"
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    inner = pruning._backward

    def watched(index: torch.Tensor, group: int, penalised: object) -> tuple[float, int]:
        alpha = pruning.masks.weights[name].alpha
        before = torch.zeros_like(alpha) if alpha.grad is None else alpha.grad.clone()
        found = inner(index, group, penalised)  # type: ignore[arg-type]
        seen.append((before, alpha.grad.clone()))  # type: ignore[union-attr]
        return found

    monkeypatch.setattr(pruning, "_backward", watched)
    list(pruning.search())
    assert len(seen) == 4
    assert all(not before.any() for before, _ in seen)
    assert all(after.any() for _, after in seen)


def test_masks_are_saved_unlike_souls(digits: Data, tmp_path: Path) -> None:
    """The file alone gives the pruned network: same scores, same masks, same parameters."""
    pruning = pruning_of(digits, search_of(1))
    list(pruning.search())
    pruning.masks.attach_hard(pruning.module)
    with torch.no_grad():
        pruning.masks.neurons["features.2.sn"].alpha[:40] = -1
        pruning.masks.weights["pre_logits.fc1.0"].alpha[:, 64:] = -1
    pruning.masks.attach_hard(pruning.module)
    save_model(tmp_path / "m.safetensors", pruning.hard_model(ModelInfo("masked")))
    loaded = load_model(tmp_path / "m.safetensors")
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
        (last,) = list(pruning_of(digits, search_of(1, lmbda=lmbda), 0.02).search())
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


def test_the_search_reaches_its_target_within_10_percent(digits: Data) -> None:
    module = network(digits, 16)
    plan, recipe = search_of(8, lmbda=None, target=0.2), Recipe(schedule=CONSTANT, batch_size=32)
    pruning = Pruning(module, few(320), recipe, plan, masks_for(module))
    epochs = list(pruning.search())
    shares = [epoch.connectivity.share for epoch in epochs]
    assert within_band(shares[-1], 0.2)
    assert shares[0] > shares[1] > shares[2] > shares[3]
    assert all(epoch.adjustment is None for epoch in epochs[:4])  # 4 of 8 is before the curve's end
    assert 0.1 < shares[3] < 0.3  # lambda has done most of it
    rates = [epoch.lmbda for epoch in epochs]
    assert max(rates) > 2 * rates[0] > 0 and rates[-1] < max(rates)
    assert epochs[-1].temperature == pytest.approx((200, 200))


def test_two_searches_give_the_same_bits(digits: Data) -> None:
    results = []
    for _ in range(2):
        pruning = pruning_of(digits, search_of(1, target=0.4, lmbda=None), augment="shift")
        list(pruning.search())
        list(pruning.finetune(Finetune(1, 1e-3, CONSTANT)))
        results.append(pruning.hard_model(ModelInfo()))
    first, second = results
    assert all((first.state[name] == second.state[name]).all() for name in first.state)
    assert all((first.alphas[name] == second.alphas[name]).all() for name in first.alphas)


def test_the_temperature_starts_before_the_first_step_and_moves_with_each(
    digits: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = search_of(2, temperature=Temperature.of((5, 3, 500, 30, 0, 2), 2))
    pruning = pruning_of(digits, plan)
    seen: list[tuple[float, float]] = []
    inner = pruning._backward

    def watched(index: torch.Tensor, group: int, penalised: object) -> tuple[float, int]:
        masks = pruning.masks
        weights, neurons = (next(iter(kind.values())) for kind in (masks.weights, masks.neurons))
        seen.append((weights.temperature, neurons.temperature))
        return inner(index, group, penalised)  # type: ignore[arg-type]

    monkeypatch.setattr(pruning, "_backward", watched)
    list(pruning.search())
    expected = [(5 * 100 ** (step / 8), 3 * 10 ** (step / 8)) for step in range(8)]
    assert seen == [pytest.approx(pair) for pair in expected]


def test_the_last_partial_group_of_batches_is_a_step_too(digits: Data) -> None:
    data = replace(digits, train=digits.train.select(torch.arange(100)))
    pruning = pruning_of(data, search_of(1, accumulate=3))
    assert pruning.steps_per_epoch() == 2
    steps: list[int] = []
    pruning.optimizer.register_step_post_hook(lambda *ignored: steps.append(1))
    list(pruning.search())
    assert len(steps) == 2


def test_accumulated_batches_give_the_gradient_of_their_mean(digits: Data) -> None:
    """Four batches of 32 to a step: the mean of their losses, the penalty once."""
    one = pruning_of(digits, search_of(1, accumulate=4))
    grads: list[torch.Tensor] = []
    assert one.mask_optimizer is not None

    def keep(*ignored: object) -> None:
        grad = one.masks.weights["pre_logits.fc2.0"].alpha.grad
        assert grad is not None
        grads.append(grad.clone())

    one.mask_optimizer.register_step_pre_hook(keep)
    list(one.search())
    other = pruning_of(digits, search_of(1))
    other.masks.heat(5, 5)
    other.masks.attach(other.module)
    other.module.train()
    order = torch.randperm(128, generator=torch.Generator().manual_seed(2025))
    total = torch.zeros(())
    for index in torch.split(order, 32):
        batch = digits.train.select(index)
        images = digits.normalise(batch.images)
        total = total + Objective("ce").loss(other.module, images, batch.labels)[0] / 4
    (total + 1e-8 * other.masks.penalty()).backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(grads[0], other.masks.weights["pre_logits.fc2.0"].alpha.grad)


def test_finetuning_freezes_masks_drops_the_penalty_and_keeps_moments(digits: Data) -> None:
    pruning = pruning_of(digits, search_of(1, lmbda=1e-6))
    list(pruning.search())
    alphas = pruning.masks.alphas()
    conv = pruning.module.get_submodule("features.2.conv.0").weight
    assert isinstance(conv, nn.Parameter)
    steps = int(pruning.optimizer.state[conv]["step"])
    epochs = list(pruning.finetune(Finetune(2, 3e-3, Schedule("step", (1,)))))
    assert [epoch.result.learning_rate for epoch in epochs] == pytest.approx([3e-3, 3e-4])
    assert int(pruning.optimizer.state[conv]["step"]) == steps + 8
    assert all((alphas[name] == alpha).all() for name, alpha in pruning.masks.alphas().items())
    best = max(epoch.result.validation_accuracy for epoch in epochs)
    assert accuracy(pruning.module, digits, digits.validation) == best
    list(pruning.finetune(Finetune(1, 3e-3, CONSTANT, reset_optimizer=True)))
    again = pruning.module.get_submodule("features.2.conv.0").weight
    assert int(pruning.optimizer.state[again]["step"]) == 4  # type: ignore[index]


def test_finetuning_ends_with_its_best_epoch(digits: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    pruning = pruning_of(digits, search_of(1))
    pruning.masks.attach(pruning.module)
    scores = iter((0.5, 0.75, 0.75))
    monkeypatch.setattr("soul_deploy.prune.search.accuracy", lambda *ignored: next(scores))
    states = [
        training.copied_state(pruning.module) for _ in pruning.finetune(Finetune(3, 1e-3, CONSTANT))
    ]
    final = pruning.module.state_dict()
    assert all(torch.equal(final[name], tensor) for name, tensor in states[1].items())
    assert not torch.equal(states[1]["head.weight"], states[2]["head.weight"])


def test_a_layer_that_dies_stops_the_search_and_keeps_the_last_good_model(digits: Data) -> None:
    pruning = pruning_of(digits, search_of(3, lmbda=1.0), 0.05)
    epochs: list[SearchEpoch] = []
    with pytest.raises(
        SearchStoppedError, match=r"no synapse of features\.0\.conv\.0 is left"
    ) as stop:
        for epoch in pruning.search():
            epochs.append(epoch)
    good = stop.value.last_good
    assert len(epochs) == 1 and good is not None
    weights = {n.name: good.state[f"{n.name}.weight"] for n in good.graph.projections}
    counted = measure_connectivity(good.graph, weights, good.neuron_masks)
    assert all(layer.live for layer in counted.layers)


def test_a_target_that_cannot_be_met_stops_and_keeps_the_last_good_model(digits: Data) -> None:
    """Masks that never move are all kept or all pruned."""
    still = Recipe(optimizer="sgd", learning_rate=1e-30, schedule=CONSTANT)
    pruning = pruning_of(digits, search_of(2, lmbda=1e-8, target=0.3, masks=still))
    with pytest.raises(SearchStoppedError, match="no common threshold") as stop:
        list(pruning.search())
    assert stop.value.last_good is not None


def test_a_class_without_voting_neurons_is_seen(digits: Data) -> None:
    options = NetworkOptions(digits.input_shape, 10, NeuronSpec(), 2, hidden=8, width=4)
    _, graph = create("cifar10net", options)
    module = GraphModule(graph)
    masks = make_masks(module, ["fc2"], [], coefficients(graph, "exact"), MaskStart(1))
    pruning = Pruning(module, digits, Recipe(), search_of(1), masks)
    assert pruning.meter.empty_class() is None
    with torch.no_grad():
        masks.weights["fc2"].alpha[30:40] = -1
    assert pruning.meter.empty_class() == 3
    result = training.EpochResult(1, 0, 0, 0, 0, 0)
    assert pruning._measure("search", result, 0).dead == "class 3"


# The command.


def test_souls_unstructured_command_is_taken_as_printed(quick: Path) -> None:
    (line,) = [
        text
        for text in (FIXTURES / "soul_commands.txt").read_text().splitlines()
        if "unstructured_prune.py" in text
    ]
    words = line.split()[2:]
    context = unstructured.make_context("unstructured", list(words))
    assert context.params["weight_prune_layers"] == "[0,1,2,3,4,5,6,7]"
    assert context.params["mask_init_factor"] == "[0, 0, 0, 0]"
    assert context.params["epochs"] == 150
    small = ["--dataset_name", "digits", "--hidden", "8", "--dry_run", "--format", "json"]
    result = call(*words, *small)
    assert result.exit_code == 0, result.output
    layers = json.loads(result.stdout)["layers"]
    masked = [row["index"] for row in layers if row["masks"] == "neurons" and row["entries"]]
    assert masked == [1, 2, 3, 4, 5]
    assert sum(row["masks"] == "weights" and row["entries"] > 0 for row in layers) == 8


def test_souls_unstructured_command_runs(quick: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tail = ["--neuron_prune_layers", "[1,2,3,4,5]", "--weight_prune_layers", "[0,1,2,3,4,5,6,7]"]
    tail += ["--mask_init_factor", "[0,", "0,", "0,", "0]", "--criterion", "MSE"]
    general = ["--workers", "4", "--optimizer", "adam", "--scheduler", "cosine", "-lr", "0.0001"]
    result = call(*SMALL, *general, *tail, "--epochs", "1", "--finetune", "--epoch_finetune", "1")
    assert result.exit_code == 2  # five layers asked for, but the fourth is the output here
    assert "pre_logits.sn2 cannot be masked" in result.output and "valid: 0, 1, 2" in result.output
    tail[1] = "[1,2,7]"
    result = call(*SMALL, *general, *tail, "--epochs", "1", "-b", "32")
    assert result.exit_code == 0, result.output
    assert "neuron_prune_layers: 7 ignored; this network has 4 spiking layers" in result.stderr
    assert "weight_prune_layers: 4, 5, 6, 7 ignored" in result.stderr
    assert "running statistics belong to the soft masks" in result.stderr


def test_the_command_writes_models_logs_and_says_what_is_left(quick: Path) -> None:
    more = ["--finetune", "--epoch_finetune", "1", "--finetune_lr_scheduler", "Step", "1"]
    more += ["--save_latest", "--format", "json", "--TET", "--TET_phi", "0.5"]
    result = call(*QUICK, *STEERED, *more, "--TET_lambda", "0.05", "--penalty-coef", "Exact")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["schema"] == "soul-deploy/prune-unstructured/1"
    assert within_band(document["connectivity"]["share"], 0.3)
    assert document["test_accuracy"]["masked"] == document["test_accuracy"]["compact"]
    masked = load_model(quick / "saved_models" / f"pruned_{STEM}.safetensors")
    compact = load_model(quick / "saved_models" / f"pruned_{STEM}_compact.safetensors")
    latest = load_model(quick / "saved_models" / f"latest_{STEM}.safetensors")
    assert (masked.info.stage, compact.info.stage) == ("masked", "compact")
    assert masked.alphas and not compact.alphas and latest.neuron_masks
    assert masked.info.provenance["search"]["objective"]["tet_lambda"] == 0.05
    for node in masked.graph.projections:
        gone = masked.alphas[node.name] <= 0
        assert not masked.state[f"{node.name}.weight"][gone].any()
    assert list(masked.neuron_masks) == ["features.2.sn", "pre_logits.sn1"]
    text = (quick / "logs" / f"unstructured_{STEM}.csv").read_text()
    table = list(csv.DictReader(text.splitlines()))
    assert [row["phase"] for row in table] == ["search", "search", "finetune"]
    assert float(table[1]["weight_temperature"]) == pytest.approx(200)
    assert float(table[0]["lambda"]) > 0 and table[2]["soft_accuracy"] == ""
    lines = (quick / "logs" / f"unstructured_{STEM}.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2, 1]
    assert "connectivity" in result.stderr and "lambda" in result.stderr


def test_the_table_shows_what_is_left(quick: Path) -> None:
    result = call(*QUICK, "--epochs", "1")
    assert result.exit_code == 0, result.output
    for text in ("Survivors", "Connectivity", "SynOps per image:", "Masked model:", "Next: soul-d"):
        assert text in result.stdout


def test_a_search_starts_from_a_model_file_and_from_its_own_result(quick: Path) -> None:
    trained = CliRunner().invoke(root, ["train", *SMALL, "--epochs", "1", "-b", "32"])
    assert trained.exit_code == 0, trained.output
    dense = quick / "saved_models" / f"best_{STEM}.safetensors"
    start = ["--model_path", str(dense), "--dataset_name", "digits", "-b", "32", "--epochs", "1"]
    result = call(*start, "--format", "json", *STEERED, "--prune_lr", "0.02")
    assert result.exit_code == 0, result.output
    assert set(json.loads(result.stdout)["test_accuracy"]) == {"start", "masked", "compact"}
    masked = quick / "saved_models" / f"pruned_{STEM}.safetensors"
    before = load_model(masked)
    still = ["--prune_lr", "1e-30", "-lr", "1e-30", "--model_dir", "again"]
    again = call(*start, "--model_path", str(masked), *still)
    assert again.exit_code == 0, again.output
    after = load_model(quick / "again" / masked.name)
    for name, keep in before.neuron_masks.items():
        assert (after.neuron_masks[name] == keep).all()
    for name, alpha in before.alphas.items():
        np.testing.assert_array_equal(after.alphas[name], alpha)
    fewer = call(*start, "--model_path", str(masked), "--not_prune_neuron")
    assert fewer.exit_code == 2 and "not among the layers chosen now" in fewer.output
    save_model(quick / "bare.safetensors", replace(before, alphas={}))
    bare = call(*start, "--model_path", "bare.safetensors")
    assert bare.exit_code == 2 and "bare.safetensors is a masked network" in bare.output


def test_without_both_masks_it_only_trains(quick: Path) -> None:
    result = call(*QUICK, "--not_prune_weight", "--not_prune_neuron", "--format", "json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["connectivity"]["share"] == 1 and list(document["test_accuracy"]) == ["masked"]
    assert load_model(quick / "saved_models" / f"best_{STEM}.safetensors").info.stage == "dense"
    assert "running statistics" not in result.stderr


@pytest.mark.parametrize(
    ("flag", "weights", "neurons"), [("weight", False, True), ("neuron", True, False)]
)
def test_one_kind_of_masks_can_be_left_out(
    quick: Path, flag: str, weights: bool, neurons: bool
) -> None:
    result = call(*SMALL, f"--not_prune_{flag}", "--dry_run", "--format", "json")
    layers = json.loads(result.stdout)["layers"]
    for kind, there in (("weights", weights), ("neurons", neurons)):
        assert any(row["entries"] for row in layers if row["masks"] == kind) == there


def test_a_dead_layer_ends_with_exit_code_1_and_the_last_good_model(quick: Path) -> None:
    result = call(
        *QUICK, "--penalty_lmbda", "1", "--mask_init_factor", "0.1 0.1 0 0", "-epochs", "5"
    )
    assert result.exit_code == 1
    assert "no synapse of features.0.conv.0 is left" in result.output
    assert "lower penalty_lmbda" in result.output
    path = quick / "saved_models" / f"pruned_{STEM}.safetensors"
    assert f"kept in {path.relative_to(quick)}" in result.output
    assert load_model(path).info.stage == "masked"
    first = call(*QUICK, "--penalty_lmbda", "1", "--model_dir", "none")
    assert first.exit_code == 1 and "no model was written" in first.output
    assert not (quick / "none").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--temp_scheduler", "5 1000 3 3"], "T0 = 3 and Tmax = 3 epochs"),
        (["--temp_scheduler", "[5, 1000, 3]"], "temp_scheduler takes 2 numbers"),
        (["--temp_scheduler", "1 2 3 4 5"], "got 5"),
        (["--scheduler", "Cosine", "5", "5", "9"], "with T0 < Tt"),
        (["--finetune_lr_scheduler", "Cosine", "5", "2", "9"], "with T0 < Tt"),
        (["--weight_prune_layers", "9 10"], "weight_prune_layers: none of 9, 10 exists"),
        (["--neuron_prune_layers", "[9]"], "this network has 4 spiking layers, 0 to 3"),
        (["--neuron_prune_layers", "-1"], "'-1' is not an index"),
        (["--weight_prune_layers", "1.5"], "'1.5' is not an index"),
        (["--neuron_prune_layers", "3"], "its spikes are the network's output; valid: 0, 1, 2"),
        (["--target_connectivity", "1"], "must be above 0 and below 1"),
        (["--target_connectivity", "0"], "must be above 0 and below 1"),
        (["--target_connectivity", "0.1", "--not_prune_weight"], "needs weight masks"),
        (["--target_connectivity", "0.1", "--penalty_lmbda", "0"], "cannot be steered"),
        (["--mode", "load"], "unknown mode 'load'; valid: search"),
        (["--criterion", "mae"], "unknown criterion 'mae'; valid: mse, ce"),
        (["--penalty_coef", "soul"], "unknown penalty_coef 'soul'; valid: authors, exact"),
        (["--prune_optimizer", "lion"], "unknown prune_optimizer 'lion'; valid: adam"),
        (["--mask_init_factor", "0 0"], "takes 4 numbers .* got 2"),
        (["--mask_init_factor", "0 0 x 0"], "give numbers"),
        (["--mask_init_factor", "0 0 -1 0"], "must be finite and not negative"),
        (["--penalty_lmbda", "-1"], "penalty_lmbda -1.0 must be a finite number from 0"),
        (["--accumulate_step", "0"], "accumulate_step 0 must be at least 1"),
        (["--epoch_finetune", "0"], "epoch_finetune 0 must be at least 1"),
        (["--finetune_lr", "0"], "finetune_lr 0.0 must be above 0"),
        (["--TET_lambda", "2"], "TET_lambda 2.0 must be from 0 to 1"),
        (["--round_to", "0"], "round_to 0 must be at least 1"),
        (["--model_path", "nowhere.safetensors"], "no file at nowhere.safetensors"),
    ],
)
def test_wrong_use_is_refused_before_anything_is_written(
    quick: Path, words: list[str], message: str
) -> None:
    result = call(*SMALL, *words)
    assert result.exit_code == 2, result.output
    assert re.search(message, result.output.replace("\n", " ")), result.output
    assert not list(quick.iterdir())


def test_tensorboard_is_an_extra(quick: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("soul_deploy.prune.unstructured_report.find_spec", lambda name: None)
    result = call(*SMALL, "--tensorboard")
    assert result.exit_code == 2 and "soul-deploy[tensorboard]" in result.output


def test_a_loss_that_is_not_a_number_stops_the_search(digits: Data) -> None:
    with pytest.raises(SoulDeployError, match="diverged"):
        list(pruning_of(digits, search_of(1, lmbda=1e38)).search())


def test_alphas_of_another_shape_are_refused_when_read(digits: Data, tmp_path: Path) -> None:
    pruning = pruning_of(digits, search_of(1))
    model = pruning.hard_model(ModelInfo("masked"))
    path = tmp_path / "m.safetensors"
    save_model(path, replace(model, alphas={"pre_logits.fc2.0": np.zeros(3, np.float32)}))
    with pytest.raises(FileFormatError, match=r"mask parameters of pre_logits\.fc2\.0 are float32"):
        load_model(path)
