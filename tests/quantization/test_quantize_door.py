"""`quantize` and what takes a fixed-point network, by the doors that users use."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from soul_deploy import TrainConfig, export_event, prune_structured, prune_unstructured, quantize
from soul_deploy.base.errors import SoulDeployError, UsageError
from soul_deploy.cli.main import root
from soul_deploy.model.file import load
from soul_deploy.quantization.quantize import QuantizeConfig

FEW: dict[str, Any] = {"calibration": 32, "samples": 60}


def call(*words: object) -> Result:
    return CliRunner().invoke(root, [str(word) for word in words])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model file of a network that has learned a little of the digits, and fires."""
    folder = tmp_path_factory.mktemp("trained")
    done = call(
        *("train", "--model", "spikingvgg5", "--hidden", 32, "--dataset_name", "digits"),
        *("--epochs", 3, "-T", 2, "--threads", 1, "--batch_size", 32, "--learning_rate", 0.005),
        *("--model_dir", folder),
    )
    assert done.exit_code == 0, done.output
    (path,) = folder.glob("best_*.safetensors")
    return path


@pytest.fixture(scope="module")
def integers(trained: Path) -> Path:
    path = trained.with_name("integers.safetensors")
    done = call("quantize", trained, "-o", path, "--threads", 1, "--format", "json", *SHORT)
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert document["model"] == str(path) and document["bytes"] == path.stat().st_size
    assert path.stat().st_size < trained.stat().st_size / 3
    return path


SHORT = ("--samples", 60, "--calibration", 32)


def test_it_goes_on_to_event_onnx_and_verify(integers: Path, tmp_path: Path) -> None:
    for kind in ("event", "onnx"):
        place = tmp_path / kind
        done = call("export", kind, integers, "-o", place, "--samples", 4, "--threads", 1)
        assert done.exit_code == 0 and "integers: no tolerance" in done.stdout, done.output
        done = call("verify", integers, place, "--samples", 4, "--threads", 1)
        assert done.exit_code == 0 and "Verified: yes" in done.stdout, done.output


def test_what_is_told_is_of_both_networks(trained: Path) -> None:
    model = load(trained)
    found = quantize(model, "digits", QuantizeConfig(**FEW))
    assert found.model.graph.integers and not model.graph.integers
    populations = {node.name for node in found.model.graph.populations}
    assert set(found.distances) == set(found.ranges) == set(found.real.spikes) == populations
    assert all(spikes.any() for spikes in found.real.spikes.values()) and not found.whole.silent
    assert abs(found.real.synops - found.whole.synops) < 0.2 * found.real.synops
    text = found.text()
    assert "60 validation samples of digits" in text and "int16" in text


def test_fine_tuning_keeps_integers_and_is_told(trained: Path) -> None:
    model = load(trained)
    before = {name: array.copy() for name, array in model.state.items()}
    config = QuantizeConfig(**FEW, epochs=1, batch_size=200)
    found = quantize(model, "digits", config)
    assert len(found.history) == 1 and found.model.graph.integers
    assert all((before[name] == array).all() for name, array in model.state.items())


def test_a_fixed_point_network_is_neither_trained_nor_pruned(integers: Path) -> None:
    whole = load(integers)
    for prune in (prune_structured, prune_unstructured):
        with pytest.raises(UsageError, match="a fixed-point network learns nothing more"):
            prune(whole, "digits", training=TrainConfig(epochs=1))
    with pytest.raises(SoulDeployError, match="the model is a fixed-point network already"):
        quantize(whole, "digits")


def test_formats_and_engines_without_integers_say_so(integers: Path, tmp_path: Path) -> None:
    done = call("export", "nir", integers, "-o", tmp_path / "n", "--samples", 2)
    assert done.exit_code == 1 and "a fixed-point neuron; NIR has real numbers only" in done.output
    export_event(load(integers), tmp_path / "e")
    for given in (("--event", tmp_path / "e"), ("--model", integers)):
        done = call("bench", "sparse", *given, "--iterations", 1, "--no_fresh")
        assert done.exit_code == 2, done.output
        assert "a fixed-point network, and all engines are given the same real" in done.output


def test_energy_says_what_its_constants_are_not(trained: Path, integers: Path) -> None:
    words = ("--samples", 4, "--threads", 1)
    assert "A fixed-point network: ops45 int8w-int32acc" in call("energy", integers, *words).stdout
    assert "A fixed-point network" not in call("energy", trained, *words).stdout
    for path, dtype in ((integers, "int8"), (trained, "float32")):
        document = json.loads(call("energy", path, *words, "--format", "json").stdout)
        found = document.get("artifact") or document["reports"][0]["artifact"]
        assert found["weights_dtype"] == dtype
