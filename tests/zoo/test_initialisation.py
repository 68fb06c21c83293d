"""How fresh weights are drawn, and what model files say about it."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

import soul_deploy
from soul_deploy.cli.main import root
from soul_deploy.model.file import load
from soul_deploy.model.model import Model

SMALL = [
    "--dataset_name",
    "digits",
    "--epochs",
    "1",
    "--threads",
    "1",
    "-T",
    "2",
    "--hidden",
    "16",
    "--batch_size",
    "512",
]


def call(*words: object) -> Result:
    return CliRunner().invoke(root, [str(word) for word in words])


def deviations(model: Model) -> dict[str, float]:
    """Measured over expected deviation of each convolution's and linear layer's weights.

    Expected: sqrt(2 / fan out), fan out = outputs · kernel area (He et al., 2015).
    """
    found = {}
    for name, weight in model.state.items():
        if weight.ndim > 1:
            fan_out = weight.shape[0] * math.prod(weight.shape[2:])
            found[name] = float(np.std(weight)) / math.sqrt(2 / fan_out)
    return found


def test_6conv2fc_is_drawn_as_its_authors_do() -> None:
    torch.manual_seed(0)
    model = soul_deploy.create("cifar10net", input_shape=(1, 8, 8), classes=10, hidden=64, width=16)
    for name, ratio in deviations(model).items():
        assert ratio == pytest.approx(1, abs=0.15), name


def test_all_layers_of_other_networks_are_where_it_is_asked_for() -> None:
    found = {}
    for kind in ("default", "kaiming_fan_out"):
        torch.manual_seed(0)
        found[kind] = deviations(
            soul_deploy.create(
                "spikingvgg5", input_shape=(1, 8, 8), classes=10, hidden=64, initialisation=kind
            )
        )
    assert found["default"].pop("head.weight") == pytest.approx(0.01 / math.sqrt(0.2), rel=0.1)
    assert found["kaiming_fan_out"].pop("head.weight") == pytest.approx(1, abs=0.1)
    for ratios in found.values():
        assert all(ratio == pytest.approx(1, abs=0.1) for ratio in ratios.values()), ratios


def test_files_say_it_and_pruning_keeps_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["train", "--model", "spikingvgg5", *SMALL, "--initialisation", "Kaiming-fan-out"]
    result = call(*words)
    assert result.exit_code == 0, result.output
    (path,) = Path("saved_models").glob("best_*.safetensors")
    assert load(path).info.provenance["initialisation"] == "kaiming_fan_out"
    prune = ["prune", "structured", "--model_path", path, *SMALL]
    refused = call(*prune, "--initialisation", "default")
    assert refused.exit_code == 2
    assert f"--initialisation given, but the weights come from {path}" in refused.stderr
    assert call(*prune).exit_code == 0
    (pruned,) = Path("saved_models").glob("pruned_*_compact.safetensors")
    assert load(pruned).info.provenance["initialisation"] == "kaiming_fan_out"


def test_an_unknown_one_is_refused() -> None:
    result = call("train", "--initialisation", "xavier", *SMALL)
    assert result.exit_code == 2
    assert "unknown initialisation 'xavier'; valid: default, kaiming_fan_out" in result.stderr
