"""From recordings of an event camera to what runs, by commands alone."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import event_archives
import numpy as np
import pytest
from click.testing import CliRunner, Result

from soul_deploy.cli.main import root
from soul_deploy.ir import Input
from soul_deploy.model.file import load, save

SIDE, KINDS = 34, ("counts", "spikes")
NETWORK: tuple[object, ...] = (
    *("--model", "lenet", "--hidden", 12, "-T", 2, "--v_threshold", 0.2, "--split_by", "time"),
    *("--epochs", 2, "-b", 8, "--learning_rate", 0.01, "--augment", "shift"),
)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    event_archives.nmnist(Path("data"), each=3)
    for path in Path("data").rglob("*.bin"):  # a digit is where its events are
        label = int(path.parent.name)
        found = event_archives.recording(int(path.stem) + label, 300, 9, 14)
        found.events["x"] += 5 * (label % 5)
        found.events["y"] += 17 * (label // 5)
        event_archives.atis(path, found)


def call(*words: object) -> Result:
    return CliRunner().invoke(root, [str(word) for word in words])


def made(*words: object) -> dict[str, Any]:
    result = call(*words, "--format", "json")
    assert result.exit_code == 0, (words, result.output)
    document: dict[str, Any] = json.loads(result.stdout)
    return document


@pytest.mark.parametrize("kind", KINDS)
def test_recordings_go_the_whole_way(kind: str) -> None:
    """Counts through channels that are removed and integers, spikes through single weights."""
    dense = Path(made("train", *NETWORK, "--dataset_name", "nmnist", "--input_kind", kind)["model"])
    model = load(dense)
    assert model.info.input_kind == kind and model.input_shape == (2, SIDE, SIDE)
    assert model.info.provenance["frames"] == {
        "split_by": "time",
        "duration": None,
        "scaling": "nearest",
    }
    way = {"counts": "structured", "spikes": "unstructured"}[kind]
    pruning = ["prune", way, "--model_path", dense, "-b", 8, "--epochs", 1]
    if kind == "counts":
        pruning += ["--prune_ratio", 0.3, "--min_keep", 0.5]
    else:  # from a file of before, whose input is of real numbers
        inlet = Input(model.graph.input.name, (), model.input_shape)
        save(replace(model, graph=model.graph.with_nodes({inlet.name: inlet})), dense)
        pruning += ["--target_synops", 0.7]
    compact = Path(made(*pruning)["files"]["Compact model"]["path"])
    assert load(compact).info.provenance["frames"] == model.info.provenance["frames"]
    for form, file in (("event", "net.event.safetensors"), ("onnx", "net.onnx")):
        made("export", form, compact, "-o", file, "--no-check")
        report = made("verify", compact, file)
        assert report["verdict"] == "passed" and report["images"] == "3 validation images of nmnist"
    if kind == "counts":
        whole = made("quantize", compact, "--epochs", 1, "-o", "whole.safetensors")["model"]
        made("export", "event", whole, "-o", "whole.event.safetensors", "--no-check")
        assert made("verify", whole, "whole.event.safetensors")["verdict"] == "passed"
    counted = made("energy", compact)
    assert counted["dataset"]["n_samples"] == 10 and counted["check"]["verdict"] == "passed"
    said = made("run", "net.event.safetensors", "nmnist")["results"]
    assert len(said) == 10 and np.isfinite([row["top"][0]["score"] for row in said]).all()
    assert len(list(Path("data/soul_deploy_frames").glob("*.npy"))) == 2  # by time, and for run


def test_a_flag_goes_before_what_the_model_records() -> None:
    words = ("train", *NETWORK, "--dataset_name", "nmnist")
    dense = made(*words, "--no_cache", "--epochs", 1)["model"]
    assert not Path("data/soul_deploy_frames").exists()
    told = call("energy", dense, "--duration", 900, "--cache_dir", "c", "--no-check").stderr
    assert "data set nmnist: 2 frames of 900 µs each, the rest left out" in told
    assert len(list(Path("c").glob("*.npy"))) == 1
    refused = call(*words, "--duration", 900)
    assert refused.exit_code == 2 and "leave one out" in refused.stderr
