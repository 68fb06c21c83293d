"""`bench pruning` as typed: tables, JSON, a rerun that does nothing, what wrong input is told."""

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

from soul_deploy.cli.main import root
from soul_deploy.data.datasets import READERS, Data, load_data
from soul_deploy.model.file import load

SMALL = ["--model", "SpikingVGG5", "--hidden", "8", "--dataset_name", "digits", "-T", "1"]
QUICK = ["--epochs", "2", "--seeds", "2", "--threads", "1", "-o", "runs"]
METHODS = ["--methods", "spike_membrane,Structured:Membrane", "--prune_ratio", "0.5"]


def call(*words: str) -> Result:
    return CliRunner().invoke(root, ["bench", "pruning", *words])


@pytest.fixture(autouse=True)
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run in an empty folder, on few samples."""
    whole = load_data("digits", Path("."))

    def few(data_dir: Path, download: bool) -> Data:
        train, test = whole.train.select(torch.arange(64)), whole.test.select(torch.arange(40))
        held = whole.validation.select(torch.arange(20))
        return Data("digits", train, held, test, whole.classes, whole.normalization)

    monkeypatch.setitem(READERS, "digits", few)
    monkeypatch.chdir(tmp_path)


def test_it_trains_prunes_compares_and_goes_on() -> None:
    first = call(*SMALL, *METHODS, *QUICK)
    assert first.exit_code == 0, first.output
    for text in ("structured:spike_membrane", "structured:membrane", "dense", "±", "Less "):
        assert text in first.stdout, text
    names = ("dense", "structured_spike_membrane", "structured_membrane")
    made = sorted(path.name for path in Path("runs").iterdir())
    kinds = ("json", "safetensors")
    assert made == sorted(f"{n}_{s}.{k}" for n in names for s in (2025, 2026) for k in kinds)
    dense = [load(Path("runs") / f"dense_{seed}.safetensors") for seed in (2025, 2026)]
    assert [model.info.provenance["recipe"]["seed"] for model in dense] == [2025, 2026]
    pruned = load(Path("runs/structured_membrane_2026.safetensors")).info.provenance["sca"]
    assert (pruned["score"], pruned["schedule"]["ratio"]) == ("membrane", 0.5)
    assert (pruned["schedule"]["epochs"], pruned["schedule"]["finetune_epochs"]) == (2, 0)

    stamps = {path: path.stat().st_mtime_ns for path in Path("runs").iterdir()}
    again = call(*SMALL, *METHODS, *QUICK, "--format", "json")
    assert again.exit_code == 0, again.output
    assert again.stderr.count("not run again") == 6 and "begins" not in again.stderr
    assert {path: path.stat().st_mtime_ns for path in Path("runs").iterdir()} == stamps
    document = json.loads(again.stdout)
    assert document["schema"] == "soul-deploy/bench-pruning/1"
    assert document["seeds"] == [2025, 2026] and document["folder"] == "runs"
    assert [run["entry"] for run in document["runs"][:3]] == ["dense", *document_entries(document)]
    accuracies = {run["seed"]: run["accuracy"] for run in document["runs"][::3]}
    summary = document["entries"][0]["accuracy"]
    assert summary["mean"] == pytest.approx(sum(accuracies.values()) / 2)

    changed = call(*SMALL, *METHODS, *QUICK[2:], "--epochs", "1")
    assert changed.exit_code == 2 and "was made with other settings" in changed.output
    changed = call(*SMALL, *METHODS, *QUICK, "--min_keep", "0.1", "--methods", "spike")
    assert changed.exit_code == 2 and "common options.min_keep 0.15, now 0.1" in changed.output


def document_entries(document: dict[str, list[dict[str, str]]]) -> list[str]:
    return [entry["entry"] for entry in document["entries"][1:]]


def test_a_model_file_is_pruned_with_each_seed_and_failures_are_rows() -> None:
    words = ["--epochs", "1", "--threads", "1"]
    trained = CliRunner().invoke(root, ["train", *SMALL, *words])
    assert trained.exit_code == 0, trained.output
    (path,) = Path("saved_models").glob("*.safetensors")
    start = ["--model_path", str(path), *QUICK, "--prune_ratio", "0.5"]
    found = call(*start, "--methods", "spike")
    assert found.exit_code == 0, found.output
    assert Path("runs/dense.safetensors").exists() and not Path("runs/dense_2025.json").exists()
    refused = call(*start, "--dense_epochs", "1")
    assert refused.exit_code == 2 and "is trained already" in refused.output

    failed = call(*start, "-o", "greedy", "--min_keep", "1", "--format", "json")
    assert failed.exit_code == 1 and "no run succeeded" in failed.stderr
    assert "min_keep 1 keep" in json.loads(failed.stdout)["runs"][1]["error"]
    told = call(*start, "-o", "greedy", "--min_keep", "1")
    assert "failed" in told.stdout and "0 of 2" in told.stdout and "min_keep 1" in told.stdout


def test_baselines_rank_alone_and_our_scores_pay_for_costs() -> None:
    words = ["--methods", "spike_membrane,sca,random", "--target_params", "0.6", "--epochs", "2"]
    found = call(*SMALL, *QUICK, *words, "--seeds", "1", "--frozen_epochs", "1")
    assert found.exit_code == 0, found.output
    held = {}
    for name in ("spike_membrane", "sca", "random"):
        record = json.loads(Path(f"runs/structured_{name}_2025.json").read_text())
        names = ("score", "budget_rule", "schedule.regrow_ratio")
        held[name] = tuple(record["asked"][f"config.{field}"] for field in names)
        assert record["asked"]["config.schedule.finetune_epochs"] == 1
    assert held == {
        "spike_membrane": ("spike_membrane", "per_cost", 0.1),
        "sca": ("spike_membrane", "score", 0.1),
        "random": ("random", "score", 0.0),
    }


def test_wrong_use_is_told() -> None:
    for words, text in (
        (["--methods", "spike"], "0 budgets given; needs one of --prune_ratio"),
        ([*METHODS, "--target_connectivity", "0.5"], "2 budgets given"),
        (["--methods", "spikes", "--prune_ratio", "0.5"], "unknown structured method 'spikes'"),
        (["--methods", "snip:spike", "--prune_ratio", "0.5"], "unknown kind of method 'snip'"),
        (["--methods", " , ", "--prune_ratio", "0.5"], "the list is empty"),
        (["--methods", "unstructured:search", "--prune_ratio", "0.5"], "no share of the channels"),
        ([*METHODS, "--methods", "spike,spike"], "each must be there once"),
        ([*METHODS, "--frozen_epochs", "2"], "leaves nothing of --epochs 2 to prune in"),
        ([*METHODS, "--seeds", "0"], "seeds 0 must be at least 1"),
    ):
        result = call(*SMALL, *QUICK, *words)
        assert result.exit_code == 2 and text in result.output, (words, result.output)
    assert not Path("runs").exists()


def test_unstructured_methods_are_compared_too() -> None:
    budget = ["--target_connectivity", "0.5", "--seeds", "1"]
    words = ["--methods", "unstructured:search", "--prune_lr", "0.05", "-b", "16"]
    found = call(*SMALL, *QUICK, *budget, *words, "--format", "json")
    document = json.loads(found.stdout)
    (run,) = document["runs"][1:]
    assert run["entry"] == "unstructured:search"
    if not run["error"]:
        model = load(Path("runs/unstructured_search_2025.safetensors"))
        assert model.info.provenance["search"]["target"]["value"] == 0.5


def test_scores_share_a_target() -> None:
    budget = ["--target_params", "0.5", "--methods", "l1,random", "--seeds", "1"]
    found = call(*SMALL, *QUICK, *budget, "--format", "json")
    assert found.exit_code == 0, found.output
    dense, *runs = json.loads(found.stdout)["runs"]
    assert [run["entry"] for run in runs] == ["structured:l1", "structured:random"]
    for run in runs:
        assert 0.45 < run["parameters"] / dense["parameters"] < 0.55
