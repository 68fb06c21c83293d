"""Every `Next:` line works when it is pasted: folders with spaces, data elsewhere, other T."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from test_data import write_mnist_folder

from soul_deploy.cli.main import root
from soul_deploy.model.file import load

ODD = "it's $HOME [a] & (b); c"
NETS = """
import torch
from torch import nn
from soul_deploy.ir import NeuronSpec
from soul_deploy.nn.layers import Conv2d, Flatten, RateReadout
from soul_deploy.nn.neuron import SpikingNeuron

def make(classes, time_steps):
    torch.manual_seed(0)
    net = nn.Sequential(
        Conv2d(1, 3, 5, 4),
        SpikingNeuron(NeuronSpec("if", v_threshold=0.3), time_steps),
        Flatten(),
        nn.Linear(147, 2 * classes),
        SpikingNeuron(NeuronSpec("if", v_threshold=0.1), time_steps),
        RateReadout(2 * classes, classes),
    )
    nn.init.constant_(net[3].bias, 0.3)
    return net
"""
DATA = ("--dataset_name", "mnist", "--data_dir", f"{ODD}/data sets")
SHORT = ("--epochs", 1, "--batch_size", 16, "-T", 2, "--hidden", 8, "--threads", 1)
TRAIN = ("train", "--model", "spikingvgg5", *SHORT, *DATA, "--model_dir", f"{ODD}/models")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: data in a folder with a name that shells would take apart."""
    write_mnist_folder(tmp_path / ODD / "data sets", "")
    (tmp_path / "somenets.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "somenets", raising=False)
    return Path(ODD)


def run(*words: object) -> Result:
    result = CliRunner().invoke(root, list(map(str, words)))
    assert result.exit_code == 0, result.output
    return result


def following(result: Result) -> list[str]:
    """The words of its only `Next:` line, as a shell reads them."""
    lines = [line for line in result.stdout.splitlines() if line.startswith("Next:")]
    assert len(lines) == 1, result.stdout
    return shlex.split(lines[0].removeprefix("Next: soul-deploy "))


def follow(result: Result, *, most: int = 4) -> list[str]:
    """Run the line, and the one that this prints, and so on; returns the commands."""
    commands: list[str] = []
    while "Next:" in result.stdout and len(commands) < most:
        words = following(result)
        commands.append(" ".join(word for word in words[:2] if "/" not in word))
        result = run(*words)
    return commands


def imported(place: Path, *data: object) -> Path:
    """A model file of a network that NIR can hold."""
    path = place / "own.safetensors"
    run("import", "torch", "somenets:make", "-o", path, "-T", 3, *data)
    return path


WITHOUT_DATA = ("--input_shape", "1 32 32", "--classes", 10)


def test_after_train_and_all_that_follows(place: Path) -> None:
    own = ("--epochs", 1, "-T", 2, "--threads", 1)
    trained = run("train", "--model", "somenets:make", *own, *DATA, "--model_dir", f"{ODD}/m")
    assert follow(trained) == ["prune structured", "export event", "inspect"]


def test_after_prune_structured(place: Path) -> None:
    few = ("--epochs", 1, "--finetune_epochs", 0)
    pruned = run("prune", "structured", "--model", "spikingvgg5", *few, *SHORT[2:], *DATA)
    assert follow(pruned) == ["export event", "inspect"]


def test_after_prune_unstructured_with_masks_and_without(place: Path) -> None:
    places = ("--log_dir", f"{ODD}/logs", "--model_dir", f"{ODD}/models")
    common = ("prune", "unstructured", "--model", "spikingvgg5", *SHORT, *DATA, *places)
    for extra in ((), ("--not_prune_weight", "--not_prune_neuron")):
        assert follow(run(*common, *extra)) == ["export event", "inspect"]


def test_after_prune_compact_with_data_and_without(place: Path) -> None:
    path = imported(place, *WITHOUT_DATA)
    assert follow(run("prune", "compact", path)) == ["export event", "inspect"]
    path = imported(place, *DATA)  # compact is not told where the data are
    result = run("prune", "compact", path)
    assert following(result)[-2:] == ["--input", "random"]
    assert follow(result) == ["export event", "inspect"]
    (place / "data sets").rename("data")
    result = run("prune", "compact", path)
    assert "--input" not in following(result)
    assert follow(result) == ["export event", "inspect"]


@pytest.mark.parametrize("data", [DATA, WITHOUT_DATA], ids=["data", "no data"])
@pytest.mark.parametrize("kind", ["onnx", "event", "nir"])
def test_after_exports_that_were_not_checked(
    place: Path, kind: str, data: tuple[object, ...]
) -> None:
    path = imported(place, *data)
    target = place / f"other {kind}"
    where = DATA[2:] if data is DATA else ()
    for steps in ((), ("-T", 2)):
        result = run("export", kind, path, "-o", target, "--no-check", *steps, *where)
        words = following(result)
        assert words[0] == "verify"
        run(*words)


@pytest.mark.parametrize(
    "options", [(), ("--mode", "step"), ("--mode", "step", "--static_input", "current")]
)
def test_after_onnx_exports_that_were_checked(place: Path, options: tuple[str, ...]) -> None:
    path = imported(place, *DATA)
    result = run("export", "onnx", path, *options, *DATA[2:])
    assert follow(result) == ["inspect"]
    assert ("Currents:" in result.stdout) == ("current" in options)


def test_after_a_checked_nir_export_and_its_import(place: Path) -> None:
    path = imported(place, *WITHOUT_DATA)
    result = run("export", "nir", path, "--input", "random", "--samples", 4)
    assert following(result)[0] == "verify"
    assert follow(result) == ["verify"]
    back = run("import", "nir", path.with_suffix(".nir"), "-o", place / "back.safetensors")
    assert follow(back) == ["export event", "inspect"]


@pytest.mark.parametrize("data", [DATA, WITHOUT_DATA], ids=["data", "no data"])
def test_after_import_torch(place: Path, data: tuple[object, ...]) -> None:
    result = run("import", "torch", "somenets:make", "-o", place / "own.safetensors", *data)
    assert follow(result) == ["export event", "inspect"]


def test_a_shell_takes_the_line_as_it_stands(place: Path) -> None:
    path = imported(place, *DATA)
    result = run("export", "event", path, "-o", place / "net 'x'.event", *DATA[2:])
    line = next(line for line in result.stdout.splitlines() if line.startswith("Next: "))
    line = line.removeprefix("Next: ")
    done = subprocess.run(
        ["sh", "-c", line.replace("soul-deploy", f"'{sys.executable}' -m soul_deploy", 1)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and "event network" in done.stdout, done.stderr


def say_nothing_goes(result: Result, copy: Path, original: Path) -> bool:
    line = (
        f"Nothing to remove: no channel of {original} is masked, silent or unread; {copy} is a "
        "copy of it\n"
    )
    return line in result.stderr


@pytest.mark.parametrize("style", ["table", "json"])
def test_a_removal_of_nothing_is_said(place: Path, style: str) -> None:
    path = imported(place, *WITHOUT_DATA)
    copy = path.with_name("own_compact.safetensors")
    result = run("prune", "compact", path, "--format", style)
    assert say_nothing_goes(result, copy, path)
    first, second = load(path), load(copy)
    assert all((first.state[name] == second.state[name]).all() for name in first.state)
    dry = run("prune", "compact", path, "--dry_run")
    assert "is masked, silent or unread\n" in dry.stderr and "copy" not in dry.stderr


def test_a_removal_of_something_says_nothing_of_it(place: Path) -> None:
    run(*TRAIN)
    (dense,) = (place / "models").glob("best_*.safetensors")
    few = ("--mode", "load", "--model_path", dense, "--epochs", 1, "--finetune_epochs", 0)
    pruned = run("prune", "structured", *few, *DATA, "--prune_ratio", 0.5)
    assert "Nothing to remove" not in pruned.stderr
