"""Soul's MLP and LeNet by name: its weights under its names give its spikes.

The golden file was made by Soul's own networks (fixtures/soul).
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from soul_modules import CLASSES, HIDDEN, STEPS, kept, state_of

from soul_deploy import create, import_zoo
from soul_deploy.base.errors import FileFormatError, UsageError
from soul_deploy.cli.main import root
from soul_deploy.ir import SOUL_NEURONS, NeuronSpec
from soul_deploy.model.file import load

NETWORKS: dict[str, tuple[str, tuple[int, int, int], str]] = {
    "mlp_lif": ("mlp", (2, 3, 4), "lif"),
    "mlp_stbif": ("mlp", (2, 3, 4), "stbif"),
    "mlp_motion": ("mlp", (1, 6, 32), "lif"),
    "lenet": ("lenet", (1, 32, 32), "lif"),
    "lenet_motion": ("lenet", (1, 6, 32), "plif"),
}
"""Of Soul's series (C, W) the zoo's shape is (1, C, W)."""


def call(*words: object) -> Result:
    return CliRunner().invoke(root, [str(word) for word in words])


def as_maps(x: torch.Tensor) -> torch.Tensor:
    """Sequences (T, B, C, W) as sequences of maps of one channel."""
    return x if x.dim() == 5 else x.unsqueeze(2)


@pytest.mark.parametrize("name", NETWORKS)
def test_weights_of_soul_give_its_spikes(name: str, tmp_path: Path) -> None:
    network, shape, neuron = NETWORKS[name]
    found = kept(name)
    path = tmp_path / f"best_{network}_{neuron}_mine_T{STEPS}_2025.pt"
    torch.save(state_of(found), path)
    model = import_zoo(
        path, network, input_shape=shape, classes=CLASSES, hidden=HIDDEN, input_kind="values"
    )
    assert {node.neuron.family for node in model.graph.populations} == {neuron}
    module = model.module()
    names = [node.name for node in model.graph.populations]
    start, readout = model.graph.input.name, model.graph.readout.name
    x = as_maps(found["input"])
    seen = module.evaluate({start: module.as_signal(x)}, [*names, readout])
    assert names == [n.removeprefix("sent.") for n in found if n.startswith("sent.")]
    for at in names:
        assert torch.equal(seen[at].tensor, found[f"sent.{at}"]), at
    torch.testing.assert_close(seen[readout].tensor, found["output"], rtol=0, atol=1e-5)


def test_an_acoustic_lenet_is_that_of_images_of_one_channel() -> None:
    """Soul's acoustic network, with the weights of its vision network: the same class scores."""
    found, weights = kept("lenet_acoustic"), state_of(kept("lenet"))
    model = create("lenet", input_shape=(1, 32, 32), classes=CLASSES, hidden=HIDDEN, time_steps=4)
    module = model.module()
    module.load_state_dict(weights)
    scores = module.eval()(as_maps(found["input"]))
    torch.testing.assert_close(scores, found["output"], rtol=0, atol=1e-5)


def test_widths_are_souls_where_none_are_given() -> None:
    for name, hidden in (("mlp", 1024), ("lenet", 512), ("spikingvgg5", 2048)):
        model = create(name, input_shape=(1, 32, 32), classes=3)
        assert model.state["head.weight"].shape == (3, hidden)


@pytest.mark.parametrize("shape", [(3, 31, 40), (1, 9, 31), (2, 9, 128), (1, 40, 16)])
def test_an_input_of_which_nothing_is_left_is_refused(shape: tuple[int, int, int]) -> None:
    with pytest.raises(UsageError, match=r"lenet: an input of .* 32×32 or more, and series"):
        create("lenet", input_shape=shape, classes=3)


def test_mlp_ratio_is_the_share_of_the_first_hidden_layer() -> None:
    model = create("spikingvgg5", input_shape=(1, 8, 8), classes=3, hidden=10, mlp_ratio=0.5)
    assert model.state["pre_logits.fc1.0.weight"].shape[:2] == (5, 128)
    assert model.state["pre_logits.fc2.0.weight"].shape[:2] == (10, 5)
    with pytest.raises(UsageError, match=r"mlp_ratio 0\.5 for mlp; it is of spikingvgg5"):
        create("mlp", input_shape=(1, 8, 8), classes=3, mlp_ratio=0.5)
    with pytest.raises(UsageError, match=r"mlp_ratio 0\.01 of 10 hidden neurons leaves none"):
        create("spikingvgg5", input_shape=(1, 8, 8), classes=3, hidden=10, mlp_ratio=0.01)


def test_weights_of_a_network_for_motion_are_named(tmp_path: Path) -> None:
    """Soul's VGG for motion has convolutions along one axis, ours does not have it."""
    weights = {"features.0.conv.0.weight": torch.zeros(3, 3, 3)}
    torch.save(weights, tmp_path / "best_spikingvgg9_lif_ucihar_T4_2025.pt")
    path = tmp_path / "best_spikingvgg9_lif_ucihar_T4_2025.pt"
    with pytest.raises(FileFormatError, match="convolutions along one axis"):
        import_zoo(path, "spikingvgg9", input_shape=(1, 32, 128), classes=6)


def test_they_train_and_are_pruned_and_exported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The LeNet of series, on data of one's own."""
    monkeypatch.chdir(tmp_path)
    drawn = np.random.default_rng(0)
    labels = np.arange(96) % 3
    series = drawn.normal(size=(96, 1, 3, 32)) + labels[:, None, None, None]
    np.savez("series.npz", images=series.astype(np.float32), labels=labels)
    data = ("--dataset_name", "npz", "--data_dir", "series.npz", "--threads", 1)
    small = ("--batch_size", 48, "--hidden_dim", 16, "-T", 2)
    result = call("train", "--model", "lenet", *data, "--epochs", 1, *small)
    assert result.exit_code == 0, result.output
    (path,) = Path("saved_models").glob("best_*.safetensors")
    made = load(path)
    assert (made.info.provenance["model"], made.info.provenance["hidden"]) == ("lenet", 16)
    assert made.state["conv1.weight"].shape == (32, 1, 1, 5)
    result = call("prune", "structured", "--model_path", path, *data, "--prune_epochs", 1)
    assert result.exit_code == 0, result.output
    (pruned,) = Path("saved_models").glob("pruned_*_compact.safetensors")
    result = call("export", "event", pruned, "--input", "random", "--samples", 4)
    assert result.exit_code == 0, result.output


def test_the_command_line_takes_mlp_ratio(tmp_path: Path) -> None:
    sizes: Any = {"input_shape": (1, 8, 8), "classes": 3, "hidden": 10, "mlp_ratio": 0.5}
    model = create("spikingvgg5", **sizes)
    weights = {name: torch.from_numpy(array) for name, array in model.state.items()}
    torch.save(weights, tmp_path / "vgg.pt")
    words = (
        *("import", "zoo", "spikingvgg5", "--model_path", tmp_path / "vgg.pt", "--classes", 3),
        *("--input_shape", "1,8,8", "--hidden", 10),
    )
    assert call(*words).exit_code == 1
    assert call(*words, "--mlp_ratio", 0).exit_code == 2
    result = call(*words, "--mlp_ratio", 0.5)
    assert result.exit_code == 0, result.output
    assert load(tmp_path / "vgg.safetensors").info.provenance["mlp_ratio"] == 0.5


def test_the_name_of_a_file_says_network_and_width(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without --model and --hidden: Soul's 1024, not SpikingVGG's 2048."""
    monkeypatch.chdir(tmp_path)
    model = create(
        "mlp", input_shape=(1, 8, 8), classes=10, time_steps=2, neuron=SOUL_NEURONS["plif"]
    )
    weights = {name: torch.from_numpy(array) for name, array in model.state.items()}
    assert weights["ln1.weight"].shape == (1024, 64)
    torch.save(weights, "best_mlp_plif_digits_T2_2025.pt")
    result = call(
        *("prune", "structured", "--model_path", "best_mlp_plif_digits_T2_2025.pt"),
        *("--prune_epochs", 1, "--batch_size", 512, "--threads", 1),
    )
    assert result.exit_code == 0, result.output
    (pruned,) = Path("saved_models").glob("pruned_*_compact.safetensors")
    assert load(pruned).info.provenance["hidden"] == 1024


def test_the_neuron_is_what_was_asked_for() -> None:
    spec = NeuronSpec("plif", tau=3.0, decay_input=False)
    model = create("mlp", input_shape=(1, 4, 4), classes=3, hidden=8, neuron=spec)
    assert model.state["lif1.w"] == pytest.approx(-math.log(2))
