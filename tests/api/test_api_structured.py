"""Structured pruning from Python: one call, its result, its plan, and how it goes on."""

import json
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from jobs import torchrun
from places import SUPPORT
from searching import few, network, small_graph
from test_api_train import arrays, same_weights, stopped

import soul_deploy
from soul_deploy import (
    Checkpoints,
    DensePhase,
    Model,
    PruneResult,
    PruneSchedule,
    ScaConfig,
    TrainConfig,
)
from soul_deploy.base.errors import UnknownNameError, UsageError
from soul_deploy.cli.main import root
from soul_deploy.data.datasets import READERS
from soul_deploy.model.file import load, save
from soul_deploy.model.model import ModelInfo, from_module
from soul_deploy.prune.structured.selection import Guard
from soul_deploy.training.train import TrainResult

HALF = ScaConfig(PruneSchedule(0.5, 0.1, epochs=3, finetune_epochs=1))
QUICK = TrainConfig(batch_size=16, learning_rate=5e-3)


def pruned(**more: Any) -> PruneResult:
    return soul_deploy.prune_structured(
        small_graph(), arrays(), HALF, QUICK, **{"device": "cpu", **more}
    )


def same_masks(one: Model, other: Model) -> bool:
    names = set(one.channel_masks) == set(other.channel_masks)
    return names and all(
        np.array_equal(keep, other.channel_masks[name]) for name, keep in one.channel_masks.items()
    )


def test_one_call_prunes_and_removes(capfd: pytest.CaptureFixture[str]) -> None:
    seen: list[Any] = []
    batches: list[int] = []
    result = pruned(on_epoch=seen.append, on_batch=lambda *told: batches.append(told[0]))
    assert capfd.readouterr() == ("", "")
    assert tuple(seen) == result.history and len(seen) == 3 and len(batches) == 9
    kept = sum(int(keep.sum()) for keep in result.masked.channel_masks.values())
    assert kept == 6  # of 4 + 3 + 5 channels
    assert result.compact is not None and result.plan is not None and result.plan.removes
    assert (result.masked.info.stage, result.compact.info.stage) == ("masked", "compact")
    assert set(result.accuracies) == {"dense", "masked", "compact"}
    assert result.accuracies["masked"] == result.accuracies["compact"]
    before, after = result.parameters
    assert before > after and f"{before:,} -> {after:,}" in repr(result)
    assert len(repr(result)) < 200
    document = json.loads(json.dumps(result.to_dict()))
    assert document["parameters"] == [before, after] and len(document["history"]) == 3
    html = result._repr_html_()
    assert "<table" in html and f"{before:,}" in html
    with pytest.raises(FrozenInstanceError):
        result.synops = None  # type: ignore[misc]


def test_the_command_gives_the_same_bits_and_the_same_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = few(48)
    monkeypatch.setitem(READERS, "digits", lambda data_dir, download: data)
    monkeypatch.chdir(tmp_path)
    info = ModelInfo("dense", data.normalization, data.classes)
    start = from_module(network(data), info)
    save(start, tmp_path / "start.safetensors")
    words = [
        *("prune", "structured", "--mode", "load", "--model_path", "start.safetensors"),
        *("--dataset_name", "digits", "--threads", "1", "-b", "16", "--format", "json"),
        *("--prune_ratio", "0.4", "--prune_epochs", "2", "--finetune_epochs", "1"),
        *("--pruning_nodes", "0", "1", "--prune_ramp", "constant", "--min_keep", "0"),
    ]
    sca = ScaConfig(PruneSchedule(0.4, 0.1, epochs=2, finetune_epochs=1))
    layers = [node.name for node in start.graph.populations[:2]]
    asked = start, "digits", sca, TrainConfig(batch_size=16)
    shown = CliRunner().invoke(root, [*words, "--dry_run"])
    plan = soul_deploy.plan_structured(*asked, layers=layers)
    document = json.loads(shown.stdout)
    assert document.pop("schema") == "soul-deploy/prune-plan/1" and document == plan.to_dict()
    assert len(repr(plan)) < 100
    done = CliRunner().invoke(root, words)
    assert done.exit_code == 0, done.output
    files = json.loads(done.stdout)["files"]
    result = soul_deploy.prune_structured(*asked, layers=layers)
    masked, compact = (load(Path(files[f"{kind} model"]["path"])) for kind in ("Masked", "Compact"))
    assert result.compact is not None
    assert same_weights(masked, result.masked) and same_weights(compact, result.compact)
    assert same_masks(masked, result.masked) and set(masked.channel_masks) == set(layers)
    assert json.loads(done.stdout)["test_accuracy"] == result.accuracies


@pytest.mark.parametrize("at", [4, 13])  # in the dense epochs, in the loop
def test_a_stopped_run_goes_on_to_the_same_bits(at: int, tmp_path: Path) -> None:
    told: list[TrainResult | None] = []
    dense = DensePhase(3, tmp_path / "dense.jsonl", told.append)
    whole = pruned(dense=dense)
    assert told[0] is not None and told[0].test_accuracy == whole.accuracies["dense"]
    told.clear()
    more = {"dense": dense, "log": tmp_path / "log.jsonl"}
    with pytest.raises(Exception) as stop:
        pruned(checkpoints=Checkpoints(tmp_path, every=1), on_batch=stopped(at), **more)
    assert type(stop.value).__name__ == "_Stop"
    result = pruned(checkpoints=Checkpoints(tmp_path, resume=True), **more)
    assert same_weights(whole.masked, result.masked) and same_masks(whole.masked, result.masked)
    assert result.accuracies == whole.accuracies
    assert [e.loss for e in result.history] == [e.loss for e in whole.history]
    assert [found is None for found in told] == ([False] if at < 9 else [False, True])
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    assert len(lines) == 3 and "channels stay" in json.loads(lines[0])["note"]


def test_layers_are_named() -> None:
    result = pruned(layers=["sb"])
    assert set(result.masked.channel_masks) == {"sb"}
    assert result.masked.info.provenance["layers"] == ["sb"]
    with pytest.raises(UnknownNameError, match="unknown layer 'sx'"):
        pruned(layers=["sx"])
    with pytest.raises(UsageError, match=r"no layer of .*sb, .* to prune by channel"):
        pruned(layers=[])
    with pytest.raises(UsageError, match="lower one of them"):
        soul_deploy.plan_structured(small_graph(), None, replace(HALF, guard=Guard(min_keep=0.9)))


def test_a_plan_without_data_says_how_many() -> None:
    plan = soul_deploy.plan_structured(small_graph(), None, HALF)
    assert plan.measured is None and plan.updates == {1: 6, 2: 6} and plan.channels == 12
    assert [row[-1] for row in plan.layers] == ["", "", ""]


def test_masks_of_single_neurons_stay() -> None:
    start = soul_deploy.train(small_graph(), arrays(), replace(QUICK, epochs=1)).model
    keep = np.ones((3, 3, 3), np.bool_)
    keep[:, 1] = False
    start = replace(start, neuron_masks={"sb": keep})
    result = soul_deploy.prune_structured(start, arrays(), HALF, QUICK, layers=["sa"])
    assert np.array_equal(result.masked.neuron_masks["sb"], keep)
    assert result.compact is not None and "sb" in result.compact.neuron_masks


JOB = """
import os
from pathlib import Path
import torch.distributed
import soul_deploy
from test_api_structured import QUICK, arrays, pruned
from dataclasses import replace
dense, kept = soul_deploy.DensePhase(1), soul_deploy.Checkpoints(Path("kept"), every=1)
result = pruned(dense=dense, checkpoints=kept, log=Path("log.jsonl"))
rank = torch.distributed.get_rank()
soul_deploy.save(result.masked, f"masked{rank}.safetensors")
again = pruned(dense=dense, checkpoints=replace(kept, resume=True))
assert again.accuracies == result.accuracies
soul_deploy.train(result.compact, arrays(), replace(QUICK, epochs=1), device="cpu")
torch.distributed.destroy_process_group()
os._exit(0)  # gloo's threads may abort an interpreter that ends
"""


def test_two_processes_return_the_same(tmp_path: Path) -> None:
    script = tmp_path / "job.py"
    script.write_text(JOB)
    started = torchrun(tmp_path, str(script), more_paths=(Path(__file__).parent, SUPPORT))
    out, said = started.communicate(timeout=300)
    assert started.returncode == 0, said
    assert out == ""
    one, other = (load(tmp_path / f"masked{rank}.safetensors") for rank in (0, 1))
    assert same_weights(one, other) and same_masks(one, other)
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 3
    assert len(list((tmp_path / "kept").iterdir())) == 2
