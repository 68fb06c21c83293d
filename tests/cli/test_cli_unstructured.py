"""`prune unstructured` as typed: spellings, files, and what wrong input is told."""

import csv
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from places import FIXTURES
from searching import QUICK, SMALL, STEERED, STEM, call, few, pruning_of, search_of

from soul_deploy.base.errors import FileFormatError, SoulDeployError
from soul_deploy.cli.main import root
from soul_deploy.cli.prune_unstructured import unstructured
from soul_deploy.data.datasets import READERS, Data
from soul_deploy.model.file import load, save
from soul_deploy.model.model import ModelInfo
from soul_deploy.prune.unstructured.search import SearchLoop


@pytest.fixture(scope="module")
def digits() -> Data:
    return few(128)


@pytest.fixture
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, digits: Data) -> Path:
    """Run in an empty folder, on few samples."""
    monkeypatch.setitem(READERS, "digits", lambda data_dir, download: digits)
    monkeypatch.chdir(tmp_path)
    return tmp_path


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
    assert document["connectivity"]["share"] == pytest.approx(0.3, rel=0.05)
    spent = document["target"]
    assert spent["quantity"] == "connectivity" and spent["wanted"] == 0.3 * spent["dense"]
    assert spent["cost"] == document["connectivity"]["live"]
    assert document["test_accuracy"]["masked"] == document["test_accuracy"]["compact"]
    masked = load(quick / "saved_models" / f"pruned_{STEM}.safetensors")
    compact = load(quick / "saved_models" / f"pruned_{STEM}_compact.safetensors")
    latest = load(quick / "saved_models" / f"latest_{STEM}.safetensors")
    assert (masked.info.stage, compact.info.stage) == ("masked", "compact")
    assert masked.alphas and not compact.alphas and latest.neuron_masks
    assert masked.info.provenance["recipe"]["objective"]["tet_lambda"] == 0.05
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
    assert set(document["test_accuracy"]) == {"masked", "compact"}


def test_a_refused_removal_leaves_the_masked_network(
    quick: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("soul_deploy.prune.removal.planner.plan_removal", refuse)
    result = call(*QUICK, "--not_prune_neuron")
    assert result.exit_code == 1 and "nothing would be left" in result.output
    masked = load(quick / "saved_models" / f"pruned_{STEM}.safetensors")
    assert masked.alphas and masked.info.provenance["accuracy"]["masked"] > 0


def refuse(*ignored: object, **named: object) -> None:
    raise SoulDeployError("nothing would be left")


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
    before = load(masked)
    still = ["--prune_lr", "1e-30", "-lr", "1e-30", "--model_dir", "again"]
    again = call(*start, "--model_path", str(masked), *still)
    assert again.exit_code == 0, again.output
    after = load(quick / "again" / masked.name)
    for name, keep in before.neuron_masks.items():
        assert (after.neuron_masks[name] == keep).all()
    for name, alpha in before.alphas.items():
        np.testing.assert_array_equal(after.alphas[name], alpha)
    fewer = call(*start, "--model_path", str(masked), "--not_prune_neuron")
    assert fewer.exit_code == 2 and "not among the layers chosen now" in fewer.output
    save(replace(before, alphas={}), quick / "bare.safetensors")
    bare = call(*start, "--model_path", "bare.safetensors")
    assert bare.exit_code == 2 and "bare.safetensors is a masked network" in bare.output


def test_without_both_masks_it_only_trains(quick: Path) -> None:
    result = call(*QUICK, "--not_prune_weight", "--not_prune_neuron", "--format", "json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["connectivity"]["share"] == 1 and list(document["test_accuracy"]) == ["masked"]
    assert load(quick / "saved_models" / f"best_{STEM}.safetensors").info.stage == "dense"
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
    assert load(path).info.stage == "masked"
    first = call(*QUICK, "--penalty_lmbda", "1", "--epochs", "1", "--model_dir", "none")
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
        (["--target_params", "0"], "or a count from 1"),
        (["--target_synops", "0.1"], r"fresh weights .* give a count .* \(--model_path\)"),
        (["--target_params", "9", "--target_synops", "9"], "--target_synops and --target_params g"),
        (["--target_connectivity", "0.1", "--penalty_lmbda", "0"], "cannot be steered"),
        (["--mode", "load"], "unknown mode 'load'; valid: search"),
        (["--criterion", "mae"], "unknown criterion 'mae'; valid: auto, mse, ce"),
        (["--penalty_coef", "soul"], "unknown penalty_coef 'soul'; valid: authors, exact, params"),
        (["--prune_optimizer", "lion"], "unknown prune_optimizer 'lion'; valid: adam"),
        (["--mask_init_factor", "0 0"], "takes 4 numbers .* got 2"),
        (["--mask_init_factor", "0 0 x 0"], "give numbers"),
        (["--mask_init_factor", "0 0 -1 0"], "must be finite and not negative"),
        (["--penalty_lmbda", "-1"], "penalty_lmbda -1.0 must be a finite number from 0"),
        (["--accumulate_step", "0"], "accumulate_step 0 must be at least 1"),
        (["--epoch_finetune", "0"], "epoch_finetune 0 must be at least 1"),
        (["--finetune_lr", "0"], "finetune_lr 0.0 must be above 0"),
        (["--finetune_lr", "inf"], "finetune_lr inf must be above 0 and finite"),
        (["--prune_lr", "nan"], "Error: prune_lr nan must be above 0 and finite"),
        (["--prune_lr", "0"], "Error: prune_lr 0.0 must be above 0 and finite"),
        (["--prune_weight_decay", "nan"], "prune_weight_decay nan must not be negative"),
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


def test_flags_of_a_fine_tuning_that_is_not_asked_for_are_told(quick: Path) -> None:
    words = ["--finetune_lr", "0.1", "--epoch_finetune", "3", "--dry_run"]
    told = "Warning: --epoch_finetune, --finetune_lr given without --finetune"
    result = call(*SMALL, *words)
    assert result.exit_code == 0 and told in result.stderr
    assert "Warning" not in call(*SMALL, *words, "--finetune").stderr
    assert "Warning" not in call(*SMALL, "--dry_run").stderr


def test_tensorboard_is_an_extra(quick: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("soul_deploy.training.tensorboard.find_spec", lambda name: None)
    result = call(*SMALL, "--tensorboard")
    assert result.exit_code == 2 and "pip install tensorboard" in result.output


def test_a_loss_that_is_not_a_number_stops_the_search(digits: Data) -> None:
    with pytest.raises(SoulDeployError, match="diverged"):
        list(SearchLoop(pruning_of(digits, search_of(1, penalty_lmbda=1e38))).run())


def test_alphas_of_another_shape_are_refused_when_read(digits: Data, tmp_path: Path) -> None:
    pruning = pruning_of(digits, search_of(1))
    model = pruning.hard_model(ModelInfo("masked"))
    path = tmp_path / "m.safetensors"
    save(replace(model, alphas={"pre_logits.fc2.0": np.zeros(3, np.float32)}), path)
    with pytest.raises(FileFormatError, match=r"mask parameters of pre_logits\.fc2\.0 are float32"):
        load(path)


def test_costs_that_follow_the_target_are_told() -> None:
    told = "penalty_coef: params, for target_params 0.5 (Soul: authors)"
    for more, shown in (
        (["--target_params", "0.5"], True),
        (["--target_params", "0.5", "--penalty_coef", "authors"], False),
        (["--target_connectivity", "0.5"], False),
    ):
        result = call(*SMALL, "--dry_run", *more)
        assert result.exit_code == 0, result.output
        assert (told in result.stderr) is shown
