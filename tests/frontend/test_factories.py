"""Networks of the user's own by dotted name: `import torch`, `--model` of train and prune."""

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

import soul_deploy
from soul_deploy.base.errors import NetworkWarning, UsageError
from soul_deploy.cli.main import root
from soul_deploy.data.datasets import READERS, Data, load_data
from soul_deploy.frontend.factory import build_network
from soul_deploy.ir import NeuronSpec
from soul_deploy.model.file import load, save
from soul_deploy.zoo.registry import NetworkOptions, canonical_name, create

SOURCE = '''
"""Somebody's network."""
import torch
from torch import nn
from soul_deploy.ir import NeuronSpec
from soul_deploy.nn.layers import Conv2d, MaxPool2d
from soul_deploy.nn.neuron import SpikingNeuron

class Net(nn.Module):
    def __init__(self, classes=10, time_steps=2, width=8, channels=1):
        super().__init__()
        self.conv = Conv2d(channels, width, 3, padding=1)
        self.fire = SpikingNeuron(NeuronSpec("if", v_threshold=0.5), time_steps)
        self.conv2 = Conv2d(width, width, 3, padding=1)
        self.fire2 = SpikingNeuron(NeuronSpec("if", v_threshold=0.05), time_steps)
        self.pool = MaxPool2d(2)
        self.head = nn.Linear(width, classes)
        self.unused = nn.Linear(2, 2)
        nn.init.normal_(self.conv.weight, 0, 1)

    def forward(self, x):
        x = self.fire2(self.conv2(self.fire(self.conv(x))))
        return self.head(self.pool(x).mean((3, 4))).mean(0)

def make(classes, input_shape, **unknown):
    assert not unknown
    return Net(classes, channels=input_shape[0])

def quiet(classes, time_steps):
    net = Net(classes, time_steps)
    del net.unused
    nn.init.zeros_(net.conv.weight)
    nn.init.zeros_(net.conv.bias)
    nn.init.constant_(net.conv2.bias, -1.0)
    return net

def needs(classes, depth):
    return Net()

def fails():
    raise RuntimeError("no luck")

def wrong():
    return "net"

def few(classes):
    return Net(3)

number = 3
'''


@pytest.fixture(autouse=True)
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A folder with somebody's module, on few samples of digits."""
    whole = load_data("digits", Path("."))

    def few(data_dir: Path, download: bool) -> Data:
        train, test = whole.train.select(torch.arange(64)), whole.test.select(torch.arange(50))
        norm = whole.normalization
        return Data("digits", train, whole.validation, test, whole.classes, norm)

    monkeypatch.setitem(READERS, "digits", few)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "somebody").mkdir()
    (tmp_path / "somebody" / "nets.py").write_text(SOURCE)
    before, path = set(sys.modules), list(sys.path)
    yield
    assert sys.path == path
    for name in set(sys.modules) - before:
        if name.startswith("somebody"):
            del sys.modules[name]


def call(*words: str) -> Result:
    return CliRunner().invoke(root, list(words))


OPTIONS = NetworkOptions((1, 8, 8), 10, NeuronSpec(), 2)


def test_a_factory_gets_the_keywords_that_it_accepts() -> None:
    made = build_network("somebody.nets:make", classes=7, input_shape=(2, 8, 8), time_steps=5)
    assert made.conv.in_channels == 2 and made.head.out_features == 7  # type: ignore[union-attr]
    cls = build_network("somebody.nets:Net", classes=7, input_shape=(1, 8, 8), time_steps=5)
    assert cls.fire.time_steps == 5  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("somebody.nets:", "is named package.module:factory"),
        ("some body:make", "is named package.module:factory"),
        ("a:b:c", "is named package.module:factory"),
        ("nobody.nets:make", "importing 'nobody.nets' failed: ModuleNotFoundError: No module"),
        ("somebody.nets:none", "module 'somebody.nets' has no 'none'"),
        ("somebody.nets:number", "is a int; it must be a function or class"),
        ("somebody.nets:needs", "needs depth; a factory is called with classes, input_shape, time"),
        ("somebody.nets:fails", r"calling it with \(\) failed: RuntimeError: no luck"),
        ("somebody.nets:wrong", "returned str; it must return a torch.nn.Module"),
        ("somebody.nets:few", "gives 3 class scores; 10 are needed"),
    ],
)
def test_what_is_wrong_with_a_factory_is_said(name: str, text: str) -> None:
    with pytest.raises(UsageError, match=text):
        create(name, OPTIONS)


def test_a_name_alone_imports_nothing() -> None:
    assert canonical_name("somebody.nets:make") == "somebody.nets:make"
    assert "somebody.nets" not in sys.modules
    with pytest.raises(UsageError, match=r"is named package\.module:factory"):
        canonical_name("some body:make")


def test_train_prune_compact_and_export_a_network_of_ones_own(tmp_path: Path) -> None:
    shared = ["--model", "somebody.nets:make", "--dataset_name", "digits", "-T", "2"]
    result = call("train", *shared, "--epochs", "1", "--threads", "1")
    assert result.exit_code == 0, result.output
    path = tmp_path / "saved_models" / "best_somebody.nets.make_digits_T2_2025.safetensors"
    model = load(path)
    assert model.graph.populations[0].neuron.family == "if"
    assert "unused.weight" not in model.state and "conv2.weight" in model.state
    assert model.info.provenance["model"] == "somebody.nets:make"
    pruned = call(
        *("prune", "structured", "--mode", "load", "--model_path", str(path), *shared[2:4]),
        *("--prune_ratio", "0.5", "--epochs", "1", "--threads", "1", "--format", "json"),
    )
    assert pruned.exit_code == 0, pruned.output


@pytest.mark.parametrize("flag", [["--tau", "3"], ["--hidden", "4"], ["-n", "IF"]])
def test_flags_that_would_do_nothing_are_refused(flag: list[str]) -> None:
    result = call("train", "--model", "somebody.nets:make", "--dataset_name", "digits", *flag)
    assert result.exit_code == 2
    assert "'somebody.nets:make' brings its own neurons and sizes; leave the flag" in " ".join(
        result.stderr.split()
    )
    assert "somebody.nets" not in sys.modules


def test_a_model_of_a_factory_holds_what_its_graph_uses(tmp_path: Path) -> None:
    model = soul_deploy.create(
        "somebody.nets:make", input_shape=(1, 8, 8), classes=10, time_steps=2
    )
    assert set(model.module().state_dict()) == set(model.state)
    soul_deploy.save(model, tmp_path / "theirs.safetensors")
    assert soul_deploy.load(tmp_path / "theirs.safetensors").graph == model.graph


def test_a_model_of_a_silent_factory_says_what_was_not_tested() -> None:
    sizes: dict[str, Any] = {"input_shape": (1, 8, 8), "classes": 10, "time_steps": 2}
    with pytest.warns(NetworkWarning, match="did not fire on the example"):
        model = soul_deploy.create("somebody.nets:quiet", **sizes)
    assert model.info.provenance["untested"] == ["fire", "fire2"]
    fires = soul_deploy.create("somebody.nets:make", **sizes)
    assert "untested" not in fires.info.provenance


def test_commands_keep_what_was_not_tested(tmp_path: Path) -> None:
    """Of training, and of what is pruned from its file or from weights."""
    quiet = ("--dataset_name", "digits", "--model", "somebody.nets:quiet", "-T", "2")
    short = ("--epochs", "1", "--threads", "1", "--format", "json")
    trained = call("train", *quiet, *short)
    assert trained.exit_code == 0, trained.output
    path = json.loads(trained.stdout)["model"]
    assert load(Path(path)).info.provenance["untested"] == ["fire", "fire2"]
    torch.save(load(Path(path)).module().state_dict(), "w.pt")
    prune = ("prune", "structured", "--mode", "load", "--prune_ratio", "0", "--model_path")
    for words in (("w.pt", *quiet), (path,)):
        pruned = call(*prune, *words, *short)
        assert pruned.exit_code == 0, pruned.output
        for made in tmp_path.glob("saved_models/pruned_*.safetensors"):
            assert load(made).info.provenance["untested"] == ["fire", "fire2"]
            made.unlink()


def test_a_state_dict_is_pruned_with_the_factory(tmp_path: Path) -> None:
    network, _ = create("somebody.nets:make", OPTIONS)
    used = {k: v for k, v in network.state_dict().items() if "unused" not in k}
    torch.save(used, tmp_path / "weights.pt")
    words = ["--model_path", "weights.pt", "--dataset_name", "digits", "-T", "2", "--dry_run"]
    result = call(
        *("prune", "structured", "--mode", "load", "--model", "somebody.nets:make", *words),
        *("--epochs", "1"),
    )
    assert result.exit_code == 0, result.output


def test_a_name_in_a_file_is_not_imported(tmp_path: Path) -> None:
    result = call("import", "torch", "somebody.nets:make", "-T", "2", "--dataset_name", "digits")
    assert result.exit_code == 0, result.output
    model = load(tmp_path / "make.safetensors")
    made = {**model.info.provenance, "model": "trap.door:open"}
    (tmp_path / "trap").mkdir()
    (tmp_path / "trap" / "door.py").write_text("raise SystemExit('imported')")
    info = replace(model.info, provenance=made)
    save(replace(model, info=info), tmp_path / "trap.safetensors")
    for words in (
        ["export", "event", "trap.safetensors", "--samples", "2", "--batch", "2"],
        ["prune", "structured", "--mode", "load", "--model_path", "trap.safetensors",
         "--dataset_name", "digits", "--epochs", "1", "--dry_run"],
    ):  # fmt: skip
        result = call(*words)
        assert result.exit_code == 0, result.output
    assert "trap.door" not in sys.modules


def test_import_torch_takes_weights_and_says_what_it_read(tmp_path: Path) -> None:
    network, _ = create("somebody.nets:make", OPTIONS)
    torch.save({"state_dict": network.state_dict()}, tmp_path / "weights.pth")
    words = ["--model_path", "weights.pth", "-o", "net.safetensors", "-T", "2"]
    shape = ["--input_shape", "1", "8", "8", "--classes", "10", "--format", "json"]
    result = call("import", "torch", "somebody.nets:make", *words, *shape)
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["schema"] == "soul-deploy/import/1" and document["nodes"][-1]["op"] == "readout"
    model = load(tmp_path / "net.safetensors")
    weight = network.state_dict()["conv.weight"].numpy()
    assert np.array_equal(model.state["conv.weight"], weight)
    assert model.info.provenance["model"] == "somebody.nets:make"


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ([], "give --dataset_name, or --input_shape and --classes"),
        (["--input_shape", "1", "8", "--classes", "3"], "give channels, height and width"),
        (["--input_shape", "1 x 8", "--classes", "3"], "give channels, height and width"),
        (["--dataset_name", "digits", "--classes", "3"], "leave these flags out"),
        (
            ["--dataset_name", "digits", "--model_path", "other.pt"],
            "other.pt does not fit the network: conv.bias is",
        ),
    ],
)
def test_import_torch_refuses(words: list[str], text: str, tmp_path: Path) -> None:
    torch.save({"conv.weight": torch.zeros(1)}, tmp_path / "other.pt")
    result = call("import", "torch", "somebody.nets:make", "-T", "2", *words)
    assert result.exit_code in (1, 2) and text in " ".join(result.stderr.split())
    assert not list(tmp_path.glob("*.safetensors"))


SILENT = "Warning: fire, fire2 did not fire on the example, so what follows was compared on zeros; "


@pytest.mark.parametrize(
    ("words", "advice"),
    [
        ("import torch NET --input_shape 1 8 8 --classes 10", "give --dataset_name to compare on"),
        ("import torch NET --dataset_name digits", "give trained weights with --model_path"),
        (
            "import torch NET --dataset_name digits --model_path w.pth",
            "these weights may not be those of a trained network",
        ),
        (
            "prune structured --dry_run --mode load --model NET --model_path w.pth "
            "--dataset_name digits",
            "`soul-deploy import torch somebody.nets:quiet --dataset_name digits` compares on",
        ),
    ],
)
def test_a_silent_network_is_warned_about_in_one_line(
    words: str, advice: str, tmp_path: Path
) -> None:
    sizes: dict[str, Any] = {"classes": 10, "input_shape": (1, 8, 8), "time_steps": 4}
    network = build_network("somebody.nets:quiet", **sizes)
    torch.save(network.state_dict(), tmp_path / "w.pth")
    result = call(*words.replace("NET", "somebody.nets:quiet").split())
    assert result.exit_code == 0, result.output
    line = next(line for line in result.stderr.splitlines() if "Warning" in line)
    assert line.startswith(SILENT + advice) and "example=" not in result.stderr


def test_a_whole_network_is_not_opened_for_its_weights(tmp_path: Path) -> None:
    network, _ = create("somebody.nets:make", OPTIONS)
    torch.save(network, tmp_path / "whole.pth")
    words = ["--model_path", "whole.pth", "--dataset_name", "digits"]
    result = call("import", "torch", "somebody.nets:make", *words)
    assert result.exit_code == 1
    assert "whole.pth is not a file of weights alone: it holds objects whose code" in result.stderr
    assert "Save the weights with torch.save(network.state_dict(), path)" in result.stderr
    assert "torch.load" not in result.stderr


def test_weights_that_do_not_fit_are_named(tmp_path: Path) -> None:
    network, _ = create("somebody.nets:make", OPTIONS)
    state = network.state_dict() | {"surplus": torch.zeros(2)}
    state["conv.weight"] = torch.zeros(8, 1, 5, 5)
    del state["conv.bias"]
    torch.save(state, tmp_path / "other.pth")
    words = ["--model_path", "other.pth", "--dataset_name", "digits"]
    result = call("import", "torch", "somebody.nets:make", *words)
    assert result.exit_code == 1
    assert "conv.bias is missing; surplus belongs to nothing; conv.weight is " in result.stderr
    assert "(8, 1, 5, 5), the network has (8, 1, 3, 3)" in result.stderr


def test_a_network_too_deep_for_the_images_is_named() -> None:
    result = call("train", "--model", "spikingvgg16", "--dataset_name", "digits")
    assert result.exit_code == 2
    assert "spikingvgg16: an input of (1, 8, 8) is too small for this many" in result.stderr
    assert "give a network with fewer with --model" in result.stderr
