"""The size of MNIST's and Fashion-MNIST's images: said, chosen, and taken from the model later."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from test_data import write_mnist_folder

from soul_deploy.base.errors import UsageError
from soul_deploy.cli.main import root
from soul_deploy.data.datasets import load_data
from soul_deploy.model.file import load

SMALL = [
    *("-m", "spikingvgg5", "--hidden", "4", "-dataset", "fashionmnist", "--data_dir", "d"),
    *("-T", "2", "--epochs", "1"),
]
SAID = "data set fashionmnist: its 28×28 images are scaled to {0}×{0} (nearest pixel)"
STEM = "spikingvgg5_lif_fashionmnist_T2_2025"
BEST = f"saved_models/best_{STEM}.safetensors"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """An empty folder with a Fashion-MNIST of 40 images; the images."""
    monkeypatch.chdir(tmp_path)
    return write_mnist_folder(Path("d"), "")


def call(*words: object) -> Result:
    return CliRunner().invoke(root, [str(word) for word in words])


def done(*words: object) -> Result:
    result = call(*words)
    assert result.exit_code == 0, result.output
    return result


def test_a_scaled_data_set_says_so() -> None:
    result = done("train", *SMALL)
    line = SAID.format(32) + "; --size chooses another side"
    assert result.stderr.splitlines().count(line) == 1
    assert load(Path(BEST)).input_shape == (1, 32, 32)


def test_the_images_of_the_files_are_kept_if_asked(folder: np.ndarray) -> None:
    loaded = load_data("FashionMNIST", Path("d"), size=28)
    assert loaded.remark == ""
    assert torch.equal(loaded.test.images[:, 0], torch.from_numpy(folder))
    every_second = load_data("fashionmnist", Path("d"), size=14)
    assert every_second.remark == SAID.format(14)
    assert torch.equal(every_second.test.images[:, 0], torch.from_numpy(folder[:, 1::2, 1::2]))
    result = done("train", *SMALL, "--size", 28)
    assert "scaled" not in result.stderr
    assert load(Path(BEST)).input_shape == (1, 28, 28)


def test_later_commands_take_the_models_size() -> None:
    """Only `train` is told; the network's input says it to all that come after."""
    said = SAID.format(12)
    assert said in done("train", *SMALL, "--size", 12).stderr
    on = ["-dataset", "fashionmnist", "--data_dir", "d", "--epochs", 1]
    start = ["--mode", "load", "--model_path", BEST]
    assert f"{said}\n" in done("prune", "structured", *start, *on).stderr
    compact = Path(f"saved_models/pruned_{STEM}_compact.safetensors")
    assert load(compact).input_shape == (1, 12, 12)
    assert said in done("prune", "unstructured", "--model_path", BEST, *on, "-b", 40).stderr
    few = ["--data_dir", "d", "--samples", 3]
    assert said in done("energy", compact, *few, "--no-check").stderr
    event = "net.event.safetensors"
    assert said in done("export", "event", compact, "-o", event, *few).stderr
    assert said in done("verify", compact, event, "--allow_silent", *few).stderr
    given = ["--event", event, "--input", "fashionmnist", "--data_dir", "d", "--no_fresh"]
    timed = done("bench", "sparse", *given, "--iterations", 1, "--warmup", 0, "--format", "json")
    assert said in timed.stderr and "fashionmnist, static" in json.loads(timed.stdout)["input"]


def test_a_size_that_contradicts_the_model_is_refused() -> None:
    done("train", *SMALL, "--size", 12)
    start = ["--mode", "load", "--model_path", BEST, *SMALL[4:]]
    result = call("prune", "structured", *start, "--size", 28)
    assert result.exit_code == 2
    assert "needs images of (1, 12, 12), but data set 'fashionmnist' has (1, 28, 28)" in (
        result.stderr
    )


def test_weights_alone_need_the_size() -> None:
    done("train", *SMALL, "--size", 12)
    state = {name: torch.tensor(a) for name, a in load(Path(BEST)).state.items()}
    torch.save(state, "best_spikingvgg5_lif_fashionmnist_T2_1.pt")
    start = ["--mode", "load", "--model_path", "best_spikingvgg5_lif_fashionmnist_T2_1.pt"]
    done("prune", "structured", *start, "--hidden", 4, *SMALL[6:], "--size", 12)
    assert load(Path(f"saved_models/pruned_{STEM}.safetensors")).input_shape == (1, 12, 12)


FACTORY = """
from soul_deploy.ir import NeuronSpec
from soul_deploy.zoo.registry import NetworkOptions, create

def make(classes, input_shape, time_steps):
    options = NetworkOptions(input_shape, classes, NeuronSpec(), time_steps, hidden=4)
    return create("spikingvgg5", options)[0]
"""


def test_import_torch_takes_a_size() -> None:
    Path("own_net.py").write_text(FACTORY)
    on = ["-dataset", "fashionmnist", "--data_dir", "d", "-o", "own.safetensors"]
    assert SAID.format(12) in done("import", "torch", "own_net:make", *on, "--size", 12).stderr
    assert load(Path("own.safetensors")).input_shape == (1, 12, 12)
    shapes = ["--input_shape", "1 8 8", "--classes", "3", "--size", 8]
    result = call("import", "torch", "own_net:make", *shapes)
    assert result.exit_code == 2 and "size belongs to a data set" in result.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-dataset", "digits", "--size", "8"], "the images of data set 'digits' keep their size"),
        (["--size", "0"], "size 0 must be from 1 to 1024 pixels"),
        (["--size", "1025"], "size 1025 must be from 1 to 1024 pixels"),
    ],
)
@pytest.mark.parametrize("command", [["train"], ["prune", "structured"]])
def test_wrong_sizes(command: list[str], words: list[str], message: str) -> None:
    result = call(*command, *SMALL, *words)
    assert result.exit_code == 2 and message in result.stderr, result.output
    name = words[1] if words[0] == "-dataset" else "fashionmnist"
    with pytest.raises(UsageError, match=message):
        load_data(name, Path("d"), size=int(words[-1]))
