"""`compare_pruning`: what the tables say, what is run again, which folders are refused."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from searching import small_graph

from soul_deploy.base import errors
from soul_deploy.data.datasets import Data, Split
from soul_deploy.model.file import load
from soul_deploy.model.model import Model, ModelInfo, from_module
from soul_deploy.nn.graph_module import GraphModule
from soul_deploy.prune.comparison import Entry, compare_pruning
from soul_deploy.prune.comparison_table import Comparison, Run
from soul_deploy.prune.result import PruneResult
from soul_deploy.prune.structured.config import PruneSchedule, ScaConfig
from soul_deploy.prune.structured.pipeline import prune_structured
from soul_deploy.prune.structured.selection import Guard
from soul_deploy.prune.unstructured.config import SearchConfig
from soul_deploy.prune.unstructured.pipeline import prune_unstructured
from soul_deploy.training.trainer import TrainConfig

TRAINING = TrainConfig(epochs=1, batch_size=16, learning_rate=1e-3)


def run_of(entry: str, seed: int, accuracy: float, synops: float) -> Run:
    return Run(entry, seed, accuracy, synops, 10, 8, 2.0)


BY_HAND = Comparison(
    ("a", "b", "c"),
    (1, 2, 3),
    (
        *(run_of("dense", 1, 0.9, 100), run_of("dense", 2, 0.8, 300), run_of("dense", 3, 0.7, 200)),
        *(run_of("a", 1, 0.5, 40), run_of("a", 2, 0.6, 50), run_of("a", 3, 0.7, 60)),
        *(run_of("b", 1, 0.6, 20), run_of("b", 2, 0.6, 50), Run("b", 3, error="too little")),
        *(Run("c", seed, error="nothing") for seed in (1, 2, 3)),
    ),
)


def test_means_deviations_and_differences_by_hand() -> None:
    spread = BY_HAND.spread("a", "accuracy")
    assert spread is not None and spread.count == 3
    assert spread.mean == pytest.approx(0.6)
    assert spread.deviation == pytest.approx(0.1)  # sqrt((0.01 + 0 + 0.01) / 2)
    assert BY_HAND.spread("c", "accuracy") is None
    (apart,) = BY_HAND.differences()
    assert (apart.entry, apart.accuracy.count) == ("b", 2)
    assert apart.accuracy.mean == pytest.approx(0.05)
    assert apart.accuracy.error == pytest.approx(0.05)  # sqrt(2 · 0.05²) / sqrt(2)
    assert apart.synops is not None and apart.synops.mean == pytest.approx((0.5 + 1) / 2)
    (other,) = BY_HAND.differences("b")
    assert other.entry == "a" and other.accuracy.mean == pytest.approx(-0.05)


def test_tables_say_what_was_found() -> None:
    rows = {row[0]: row[1:] for row in BY_HAND.table().rows}
    assert list(rows) == ["dense", "a", "b", "c"]
    assert rows["dense"][:3] == ("80.00 ± 10.00 %", 200, "100.0 %")
    assert rows["a"] == ("60.00 ± 10.00 %", 50, "25.0 %", 10, 8, "2.0", "3")
    assert rows["b"][0] == "60.00 ± 0.00 %" and rows["b"][-1] == "2 of 3"
    assert rows["c"] == ("failed", "", "", "", "", "", "0 of 3")
    assert BY_HAND.differences_table().rows == (("b", "+5.00 ± 5.00", "0.75", 2),)
    assert BY_HAND.failures()[0] == "b, seed 3 failed: too little"
    document = BY_HAND.to_dict()
    assert [entry["entry"] for entry in document["entries"]] == ["dense", "a", "b", "c"]
    assert document["entries"][1]["accuracy"] == {
        "mean": pytest.approx(0.6),
        "deviation": pytest.approx(0.1),
        "count": 3,
    }
    assert document["entries"][3]["accuracy"] is None and len(document["runs"]) == 12


def test_one_seed_has_no_deviation() -> None:
    one = Comparison(("a", "b"), (1,), (run_of("a", 1, 0.5, 0), run_of("b", 1, 0.25, 3)))
    (apart,) = one.differences()
    assert apart.accuracy.deviation is None and apart.synops is None
    assert one.differences_table().rows == (("b", "-25.00", "", 1),)
    rows = {row[0]: row[1:] for row in one.table().rows}
    assert rows["a"][:3] == ("50.00 %", 0, "") and rows["dense"][0] == "failed"


# Runs.


@pytest.fixture(scope="module")
def data() -> Data:
    """Random images with two channels."""
    random = torch.Generator().manual_seed(0)

    def split(count: int) -> Split:
        images = torch.rand(count, 2, 6, 6, generator=random)
        return Split(images, torch.arange(count) % 3)

    return Data("noise", split(32), split(12), split(24), ("0", "1", "2"), None)


def fresh(seed: int) -> Model:
    torch.manual_seed(seed)
    module = GraphModule(small_graph())
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(6)
    return from_module(module, ModelInfo())


def structured(name: str = "half", *, ratio: float = 0.5, min_keep: float = 0.0) -> Entry:
    schedule = PruneSchedule(ratio, 0.1, epochs=1)
    return Entry(name, prune_structured, ScaConfig(schedule, Guard(1, min_keep)), TRAINING)


def searched() -> Entry:
    config = SearchConfig(penalty_lmbda=0.0, mask_init_factor=(1, 1, 0, 0))
    return Entry("search", prune_unstructured, config, TRAINING)


def test_runs_are_kept_and_not_repeated(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = [structured(), searched()]
    first = compare_pruning(fresh, data, entries, (1, 2), tmp_path, dense=TRAINING)
    names = [f"{name}_{seed}" for name in ("dense", "half", "search") for seed in (1, 2)]
    for name in names:
        record = json.loads((tmp_path / f"{name}.json").read_text())
        model = load(tmp_path / f"{name}.safetensors")
        assert record["schema"] == "soul-deploy/pruning-run/1"
        assert record["run"]["nonzero"] == sum(
            int((value != 0).sum()) for key, value in model.state.items() if "weight" in key
        )
        assert model.info.provenance["recipe"]["seed"] == record["seed"]
    assert not first.failed and {run.seed for run in first.runs} == {1, 2}
    compact = load(tmp_path / "half_1.safetensors")
    assert compact.info.stage == "compact" and not compact.channel_masks

    def never(*_: object, **__: object) -> PruneResult:
        raise AssertionError("nothing is run again")

    monkeypatch.setattr("soul_deploy.training.train.train", never)
    never.__name__ = "prune_structured"
    again = compare_pruning(
        fresh, data, [replace(entries[0], method=never)], (1, 2), tmp_path, dense=TRAINING
    )
    assert again.runs == tuple(run for run in first.runs if run.entry != "search")


def test_a_removed_model_file_is_made_again(data: Data, tmp_path: Path) -> None:
    start = fresh(3)
    first = compare_pruning(start, data, [structured()], (1, 2), tmp_path)
    assert [run.seed for run in first.runs] == [None, 1, 2]
    (tmp_path / "half_2.safetensors").unlink()
    again = compare_pruning(start, data, [structured()], (1, 2), tmp_path)
    assert (tmp_path / "half_2.safetensors").exists()
    assert [run.accuracy for run in again.runs] == [run.accuracy for run in first.runs]


def test_other_settings_are_refused(data: Data, tmp_path: Path) -> None:
    start = fresh(3)
    compare_pruning(start, data, [structured()], (1,), tmp_path, shared={"budget": 0.5})

    def refused(text: str, *entries: Entry, seed: int = 1, **changed: object) -> None:
        how = {"shared": {"budget": 0.5}, **changed}
        with pytest.raises(errors.UsageError, match=text):
            compare_pruning(start, data, entries, (seed,), tmp_path, **how)  # type: ignore[arg-type]

    refused("asked config.schedule.ratio 0.5, now 0.3; give another folder", structured(ratio=0.3))
    refused("schedule.ratio", structured(ratio=0.3), seed=2)
    refused("common budget 0.5, now 0.3", searched(), shared={"budget": 0.3})
    refused("common dense", searched(), dense=TRAINING)
    changed = replace(data, test=data.train)
    with pytest.raises(errors.UsageError, match=r"common data\.sha256"):
        compare_pruning(start, changed, [searched()], (1,), tmp_path, shared={"budget": 0.5})
    with pytest.raises(errors.UsageError, match="start sha256"):
        compare_pruning(fresh(4), data, [structured()], (1,), tmp_path, shared={"budget": 0.5})
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(errors.FileFormatError, match=r"other\.json is no soul-deploy/pruning-run"):
        compare_pruning(start, data, [searched()], (1,), tmp_path, shared={"budget": 0.5})


def test_a_run_that_fails_is_told_and_not_repeated(
    data: Data, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    entries = [structured(), structured("greedy", ratio=0.5, min_keep=1.0)]
    found = compare_pruning(fresh(3), data, entries, (1,), tmp_path)
    (failed,) = found.failed
    assert failed.entry == "greedy" and "min_keep 1 keep" in failed.error
    assert not (tmp_path / "greedy_1.safetensors").exists()
    with caplog.at_level("WARNING", logger="soul_deploy"):
        again = compare_pruning(fresh(3), data, entries, (1,), tmp_path)
    assert again.runs == found.runs
    assert "greedy, seed 1: failed before" in caplog.text and "to try again" in caplog.text


def test_names_that_no_folder_can_hold_are_refused(data: Data, tmp_path: Path) -> None:
    for entries, seeds, text in (
        ([structured(), structured()], (1,), "each must be there once"),
        ([structured("dense")], (1,), "none is dense"),
        ([structured("../up")], (1,), "becomes part of a file's name"),
        ([structured()], (1, 1), "seeds 1, 1: each must be there once"),
        ([structured()], (-1,), "seed -1"),
    ):
        with pytest.raises(errors.UsageError, match=text):
            compare_pruning(fresh(3), data, entries, seeds, tmp_path)
    assert not list(tmp_path.iterdir())
