"""Files that 0.1.0 wrote (commit 88029a9) load, compute what they did, and are gone on from."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from places import FIXTURES

from soul_deploy.base import Array
from soul_deploy.cli.main import root
from soul_deploy.export.verify.verify import verify
from soul_deploy.model.file import load
from soul_deploy.prune.removal.apply import remove
from soul_deploy.prune.removal.planner import plan_removal
from soul_deploy.runtime.engine.network import load as load_network

OLD = FIXTURES / "v0_1_0"


@pytest.fixture(scope="module")
def images() -> Array:
    """(4, 3, 8, 10) float32, normalised; both populations fire on them."""
    found: Array = np.load(OLD / "images.npy", allow_pickle=False)
    return found


@pytest.fixture(scope="module")
def scores() -> Array:
    """(4, 4): what 0.1.0 gave for them; model file and event file to the bit."""
    found: Array = np.load(OLD / "scores.npy", allow_pickle=False)
    return found


@pytest.mark.parametrize("name", ["masked", "compact"])
def test_model_files_load(name: str, images: Array, scores: Array) -> None:
    model = load(OLD / f"{name}.safetensors")
    with torch.no_grad():
        found = model.module()(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(found, scores, rtol=0, atol=1e-6)
    assert model.info.classes == ("ant", "bee", "cat", "dog")
    assert model.info.input_kind == "images" and model.info.normalization is not None


def test_a_masked_model_is_removed(images: Array, scores: Array) -> None:
    masked = load(OLD / "masked.safetensors")
    smaller = remove(masked, plan_removal(masked))
    assert remove(masked).graph == smaller.graph
    with torch.no_grad():
        found = smaller.module()(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(found, scores, rtol=0, atol=1e-6)
    assert sum(a.size for a in smaller.state.values()) < sum(a.size for a in masked.state.values())


def test_an_event_file_runs(images: Array, scores: Array) -> None:
    network = load_network(OLD / "compact.event.safetensors", 1)
    np.testing.assert_allclose(network.run(images), scores, rtol=0, atol=1e-6)
    assert network.events.input_kind == "images"


@pytest.mark.parametrize("name", ["compact.event.safetensors", "compact.onnx"])
def test_exports_are_verified(name: str, images: Array) -> None:
    model = load(OLD / "compact.safetensors")
    report = verify(model, OLD / name, torch.from_numpy(images))
    assert report.passed, report.text()
    assert report.carried_by == ("static", "forced", "end_to_end")


def test_a_run_goes_on_from_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two epochs of `train` the first was trained by 0.1.0, which knew cross-entropy alone."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "m" / "checkpoints" / "train_cifar10net_lif_digits_T2_2025"
    folder.mkdir(parents=True)
    shutil.copy(OLD / "train_checkpoint.safetensors", folder / "00000001.safetensors")
    words = (
        "train --model Cifar10Net --width 4 --hidden 8 -T 2 --dataset_name digits --augment none"
    )
    words += " --batch_size 256 --threads 1 --learning_rate 0.01 --epochs 2"
    words += " --model_dir m --criterion ce"
    result = CliRunner().invoke(root, [*words.split(), "--resume", "auto", "--format", "json"])
    assert result.exit_code == 0, result.output
    assert "resuming from" in result.stderr
    assert [epoch["epoch"] for epoch in json.loads(result.stdout)["epochs"]] == [1, 2]
