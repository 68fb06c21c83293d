"""The scores by name: by hand, and through the command."""

import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from blocks import LIF, conv, model_of
from click.testing import CliRunner, Result
from priced import data_of, known_spikes, two_layers

from soul_deploy import ir
from soul_deploy.analysis.connectivity import connectivity
from soul_deploy.analysis.synops import count_model
from soul_deploy.base.errors import UsageError
from soul_deploy.cli.main import root
from soul_deploy.data.datasets import READERS, Data, load_data
from soul_deploy.model.file import load, save
from soul_deploy.model.model import Model, ModelInfo
from soul_deploy.nn.graph_module import GraphModule
from soul_deploy.prune.result import PruneResult
from soul_deploy.prune.structured.config import PruneSchedule, ScaConfig
from soul_deploy.prune.structured.correction import TargetCorrection
from soul_deploy.prune.structured.measurement import Measurement, check
from soul_deploy.prune.structured.pipeline import plan_structured, prune_structured
from soul_deploy.prune.structured.scores import SCORES, Score
from soul_deploy.prune.structured.selection import Budget, Values
from soul_deploy.prune.target import Quantity, Target
from soul_deploy.training.trainer import TrainConfig
from soul_deploy.zoo.create import create

NAMES = ("sa", "sb")


def scores_by_hand(score: Score, seed: int = 1) -> dict[str, Values]:
    module = known_spikes().module()
    measurement = Measurement.of(
        module, data_of(torch.ones(1, 2)), seed, ScaConfig(score=score), NAMES
    )
    return measurement.scores()


def test_l1_is_the_mean_weight_relative_to_its_layer() -> None:
    found = scores_by_hand("l1")
    assert found["sa"].tolist() == pytest.approx([6 / 5, 3 / 5, 6 / 5])  # 1, 0.5, 1
    assert found["sb"].tolist() == [1, 1]


def test_synops_are_spikes_times_live_fan_out() -> None:
    found = scores_by_hand("synops")
    assert {name: values.tolist() for name, values in found.items()} == {
        "sa": [4, 4, 0],
        "sb": [4, 0],
    }


def test_random_ranks_are_those_of_the_seed() -> None:
    first, again, other = (scores_by_hand("random", seed) for seed in (1, 1, 2))
    ranks = np.concatenate([first["sa"], first["sb"]])
    assert sorted((ranks * 5).round().tolist()) == [0, 1, 2, 3, 4]
    assert all((first[name] == again[name]).all() for name in NAMES)
    assert any((first[name] != other[name]).any() for name in NAMES)


def test_gamma_ranks_units_with_a_norm_only() -> None:
    with pytest.raises(UsageError, match=r"bn_gamma .* and a, b has no batch norm"):
        check(GraphModule(two_layers()), ScaConfig(score="bn_gamma"), NAMES)


def test_the_kept_count_is_rounded_or_floored() -> None:
    assert Budget.of(4224, 0.1, 0.1, "floor") == Budget(3801, 422)
    assert Budget.of(4224, 0.1, 0.1, "round") == Budget(3802, 422)
    assert Budget.of(10, 0.9, 0.0, "floor") == Budget(1, 0)
    assert Budget.of(10, 0.7, 0.0, "floor") == Budget(3, 0)


def call(*words: str) -> Result:
    return CliRunner().invoke(root, [*words, "--threads", "1"])


QUICK = ["--epochs", "2", "-b", "32", "--prune_epochs", "1"]


@pytest.fixture(scope="module")
def digits() -> Data:
    whole, index = load_data("digits", Path(".")), torch.arange(100)
    parts = {n: getattr(whole, n).select(index) for n in ("train", "validation", "test")}
    return replace(whole, **parts)


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, digits: Data) -> Path:
    """The file of a small network that fires; in an empty folder, with few samples."""
    monkeypatch.setitem(READERS, "digits", lambda data_dir, download: digits)
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "start" / "dense.safetensors"
    file.parent.mkdir()
    save(firing(digits), file)
    return file


def firing(data: Data) -> Model:
    """Two convolutions of 16 and 24 channels, a linear layer of 16, a head."""
    norms = [ir.BatchNorm(f"n{i}") for i in range(3)]
    nodes = (
        ir.Input("input", (), (1, 8, 8)),
        conv("a", "input", 1, 16, norm=norms[0]),
        ir.Population("sa", ("a",), LIF),
        ir.MaxPool("pool", ("sa",), (2, 2), (2, 2)),
        conv("b", "pool", 16, 24, norm=norms[1]),
        ir.Population("sb", ("b",), LIF),
        ir.Flatten("flat", ("sb",)),
        ir.Linear("c", ("flat",), True, norms[2], 384, 16),
        ir.Population("sc", ("c",), LIF),
        ir.Readout("head", ("sc",), 10, linear=True, bias=True),
    )
    model = model_of(ir.SpikingGraph(nodes, 2), 1)
    return replace(model, info=ModelInfo("dense", data.normalization, data.classes))


def prune(path: Path, *words: str) -> Result:
    start = ["--model_path", str(path), "--dataset_name", "digits", *QUICK]
    return call("prune", "structured", *start, *words)


def written(folder: Path) -> list[Path]:
    return [file for file in folder.iterdir() if file.name != "start"]


@pytest.mark.parametrize("score", [name for name in SCORES if name != "spike_membrane"])
def test_every_score_prunes_to_the_same_count(score: Score, path: Path) -> None:
    words = ["--score", score, "--prune_ratio", "0.52", "--format", "json", "--kept_count", "floor"]
    result = prune(path, *words)
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert sum(kept for _, _, kept, _ in document["layers"]) == 26  # of 0.48 · 56 = 26.88
    dense, masked = document["synops"]
    assert 0 < masked < dense and document["target"] is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--target_synops 0.3 --prune_ratio 0.2", "--target_synops and --prune_ratio given"),
        ("--target_synops 0.3 --target_params 0.2", "--target_synops and --target_params given"),
        ("--target_connectivity 2", "target_connectivity 2 must be above 0 and below 1"),
        ("--target_synops 0", "target_synops 0 must be above 0"),
        ("--target_params 0.3 --round_to 8", "round_to 8 with target_params 0.3"),
        ("--target_params 900000000", "parameters before pruning; give less"),
        ("--kept_count ceil", "unknown kept_count 'ceil'; valid: round, floor"),
        ("--budget_rule cost", "unknown budget_rule 'cost'; valid: per_cost, score"),
    ],
)
def test_wrong_targets(words: str, message: str, path: Path, tmp_path: Path) -> None:
    result = prune(path, *words.split())
    assert result.exit_code == 2, result.output
    assert message in " ".join(result.stderr.split())
    assert not written(tmp_path)


@pytest.mark.parametrize("quantity", ["params", "connectivity"])
def test_a_static_target_below_the_floors_ends_before_any_training(
    quantity: Quantity, path: Path, tmp_path: Path
) -> None:
    result = prune(path, f"--target_{quantity}", "0.05", "--min_keep", "0.5")
    assert result.exit_code == 1, result.output
    assert f"target_{quantity} 0.05 cannot be met: the nearest is" in result.stderr
    assert not written(tmp_path)


def pruned(model: Model, data: Data, target: Target) -> PruneResult:
    schedule = PruneSchedule(epochs=4, finetune_epochs=2, ramp="cubic")
    config = ScaConfig(schedule, target=target)
    return prune_structured(model, data, config, TrainConfig(batch_size=25, learning_rate=5e-3))


@pytest.mark.parametrize("quantity", ["synops", "params", "connectivity"])
def test_the_target_is_reached_as_measured_on_the_final_network(
    quantity: Quantity, digits: Data
) -> None:
    result = pruned(firing(digits), digits, Target(quantity, 0.4))
    assert result.spent is not None and result.compact is not None
    images = digits.normalise(digits.validation.images)
    counts = count_model(result.masked, images)
    measured = {
        "synops": sum(layer.synops for layer in counts.values()) / 100,
        "params": result.parameters[1],
        "connectivity": connectivity(result.masked).live,
    }
    assert result.spent.cost == measured[quantity]
    assert result.spent.dense > 0
    assert abs(measured[quantity] / result.spent.dense - 0.4) <= 0.02
    assert result.synops is not None and result.synops[1] == measured["synops"]
    assert result.masked.info.provenance["target"]["cost"] == measured[quantity]
    assert all(kept >= 1 for _, _, kept, _ in result.layers)


def test_a_synops_target_below_the_floors_keeps_the_nearest(path: Path, tmp_path: Path) -> None:
    result = prune(path, "--target_synops", "0.001", "--min_keep", "0.9")
    assert result.exit_code == 1, result.output
    assert "target_synops 0.001 cannot be met: the nearest is" in " ".join(result.stderr.split())
    (masked,) = (tmp_path / "saved_models").glob("pruned_*.safetensors")
    assert load(masked).channel_masks


def test_rules_keep_other_channels_at_the_same_cost(path: Path, tmp_path: Path) -> None:
    """And what is left is told after each update of the masks, not only after the last."""
    kept, length = {}, ["--prune_epochs", "3", "--finetune_epochs", "1"]
    for rule in ("per_cost", "score"):
        words = ["--target_synops", "0.4", "--budget_rule", rule, "--model_dir", rule]
        result = prune(path, *words, *length)
        assert result.exit_code == 0, result.output
        told = re.findall(r"channels stay, ([\d,]+) SynOps per sample", result.stderr)
        costs = [float(cost.replace(",", "")) for cost in told]
        assert len(costs) >= 2 and costs[0] > costs[1] > 0, result.stderr
        found = masked(tmp_path / rule).channel_masks
        kept[rule] = {n: keep.tolist() for n, keep in found.items()}
    assert kept["per_cost"] != kept["score"]


def test_a_share_of_the_channels_is_chosen_by_what_they_cost_but_in_the_sources_recipes(
    path: Path, tmp_path: Path
) -> None:
    """As many stay by either rule; by cost they cause fewer SynOps."""
    synops, kept = {}, {}
    for name, words in {
        "ours": [],
        "score": ["--budget_rule", "score"],
        "soul": ["--recipe", "soul"],
        "authors": ["--recipe", "authors"],
    }.items():
        asked = ["--prune_ratio", "0.52", "--model_dir", name, "--format", "json", *words]
        result = prune(path, *asked)
        assert result.exit_code == 0, result.output
        document = json.loads(result.stdout)
        assert sum(left for _, _, left, _ in document["layers"]) == 26, name
        synops[name], kept[name] = document["synops"][1], masked(tmp_path / name)
        held = kept[name].info.provenance["sca"]["budget_rule"]
        assert held == ("per_cost" if name == "ours" else "score")
        assert ("budget_rule per_cost (Soul: score)" in result.stderr) == (name == "ours")
    assert 0 < synops["ours"] < synops["score"]
    assert any(
        (keep != kept["score"].channel_masks[name]).any()
        for name, keep in kept["ours"].channel_masks.items()
    )


def masked(folder: Path) -> Model:
    (file,) = (file for file in folder.glob("pruned_*.safetensors") if "compact" not in file.name)
    return load(file)


def test_multiples_are_kept_by_either_rule(path: Path) -> None:
    for rule in ("per_cost", "score"):
        words = ["--prune_ratio", "0.52", "--round_to", "8", "--budget_rule", rule]
        result = prune(path, *words, "--format", "json", "--model_dir", rule)
        assert result.exit_code == 0, result.output
        left = [count for _, _, count, _ in json.loads(result.stdout)["layers"]]
        assert sum(left) >= 26 and all(count in (8, 16, 24) for count in left)


def test_a_silent_network_has_no_target_of_synops(digits: Data) -> None:
    model = create("spikingvgg5", input_shape=(1, 8, 8), classes=10, time_steps=2, hidden=8)
    with pytest.raises(UsageError, match=r"has 0 SynOps per sample .* train it"):
        pruned(model, digits, Target("synops", 0.5))


def test_a_dry_run_tells_the_budget(path: Path, tmp_path: Path) -> None:
    result = prune(path, "--dry_run", "--target_synops", "0.3", "--format", "json")
    assert result.exit_code == 0, result.output
    budget = json.loads(result.stdout)["target"]
    assert sum(row["share"] for row in budget["layers"]) == pytest.approx(1)
    assert budget["planned"] == pytest.approx(sum(row["planned"] for row in budget["layers"]))
    assert 0.2 < budget["planned"] / sum(row["dense"] for row in budget["layers"]) < 0.4
    table = prune(path, "--dry_run", "--target_params", "0.3")
    assert table.exit_code == 0 and "Budget, parameters" in table.stdout, table.output
    assert not written(tmp_path)


def test_a_plan_with_a_target_needs_no_data() -> None:
    plan = plan_structured(
        two_layers(), None, ScaConfig(PruneSchedule(epochs=2), target=Target("params", 0.7))
    )
    assert plan.measured is None and [*plan.updates] == [1, 2]


def test_an_epoch_off_its_target_is_worth_less_than_any_within_tolerance() -> None:
    """100 SynOps are wanted, so 95 to 105 are within; the nearer of those off it comes first."""

    def worth(cost: float) -> float:
        target, dense = Target("synops", 0.5), SimpleNamespace(values={"synops": 200.0})
        whole: Any = SimpleNamespace(sca=SimpleNamespace(target=target), dense=dense, cost=cost)
        return TargetCorrection(whole).worth(0.9)

    assert [worth(cost) for cost in (95.0, 100.0, 105.0)] == [0.9] * 3
    assert 0 > worth(106) > worth(90) > worth(300) > -1
