"""Recipes: one table for code and document, options that follow it, and what is said of it."""

import re
from pathlib import Path

import click
import pytest
import torch
from click.testing import CliRunner, Result
from places import ROOT

from soul_deploy.cli.main import root
from soul_deploy.cli.parsing import SoulCommand
from soul_deploy.data.datasets import READERS, Data, Split, load_data
from soul_deploy.model.file import load
from soul_deploy.model.model import Model, Normalization
from soul_deploy.training import recipes
from soul_deploy.training.recipes import Command, Recipe

COMMANDS: tuple[Command, ...] = ("train", "prune structured", "prune unstructured")
QUICK = ["--epochs", "1", "--threads", "1", "-T", "2", "--hidden", "8", "--width", "4"]
SMALL = [*QUICK, "--dataset_name", "digits"]


@pytest.fixture(autouse=True)
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run in an empty folder, on few samples of digits, and on noise for cifar10."""
    whole = load_data("digits", Path("."))
    train, test = whole.train.select(torch.arange(64)), whole.test.select(torch.arange(50))
    few = Data("digits", train, whole.validation, test, whole.classes, whole.normalization)
    pixels = torch.randint(0, 256, (40, 3, 8, 8), dtype=torch.uint8)
    noise = Split(pixels, torch.arange(40) % 10)
    norm = Normalization((0.5,) * 3, (0.5,) * 3)
    colours = Data("cifar10", noise, noise, noise, tuple("0123456789"), norm)
    monkeypatch.setitem(READERS, "digits", lambda *_: few)
    monkeypatch.setitem(READERS, "cifar10", lambda *_: colours)
    monkeypatch.chdir(tmp_path)


def call(*words: str) -> Result:
    result = CliRunner().invoke(root, list(words))
    assert result.exit_code == 0, result.output
    return result


def trained(*words: str) -> tuple[Model, str]:
    """The network that `train` wrote, and what the command said."""
    said = call("train", *words).stderr
    (path,) = Path("saved_models").glob("best_*.safetensors")
    return load(path), said


def parsed(name: Command, *words: str) -> dict[str, object]:
    """What the command takes for each of its options."""
    group, *rest = name.split()
    with click.Context(root) as context:
        command = root.get_command(context, group)
        for word in rest:
            assert isinstance(command, click.Group)
            command = command.get_command(context, word)
    assert isinstance(command, SoulCommand)
    params: dict[str, object] = command.make_context(name, list(words)).params
    return params


def test_the_document_has_the_table_of_the_code() -> None:
    text = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    for name in COMMANDS:
        section = text.split(f"\n## {name}\n")[1].split("\n## ")[0]
        lines = [line for line in section.splitlines() if line.startswith("| ")]
        shown = [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in lines[1:]]
        rows = [row for row in recipes.ROWS if row.command == name]
        assert shown == [
            (row.option, *map(recipes.spelt, (row.soul, row.authors, row.ours)), row.reason)
            for row in rows
        ]
    section = text.split("\n## augment, by data set\n")[1].split("\n## ")[0]
    shown = re.findall(r"^\| (\w+) \| (\w+) \| (\w+) \| (\w+) \|$", section, re.MULTILINE)
    orders: tuple[Recipe, ...] = ("soul", "authors", "ours")
    assert {name: tuple(columns) for name, *columns in shown} == {
        name: tuple(recipes.augment_of(recipe, name) for recipe in orders)
        for table in recipes.AUGMENT.values()
        for name in table
    }


@pytest.mark.parametrize("recipe", recipes.RECIPES)
@pytest.mark.parametrize("name", COMMANDS)
def test_options_take_the_values_of_the_recipe(name: Command, recipe: Recipe) -> None:
    found = parsed(name, "--recipe", recipe.upper())
    wanted = recipes.values(name, recipe)
    assert found["recipe"] == recipe
    assert {option: found[option] for option in wanted} == wanted
    assert parsed(name) == parsed(name, "--recipe", "ours")


@pytest.mark.parametrize("words", ["--recipe authors --epochs 7", "--epochs 7 --recipe authors"])
def test_an_option_counts_before_the_recipe(words: str) -> None:
    found = parsed("prune unstructured", *words.split(), "--no-finetune")
    assert (found["epochs"], found["finetune"], found["learning_rate"]) == (7, False, 1e-4)


def test_what_is_not_souls_is_said() -> None:
    said = call("prune", "unstructured", "--recipe", "authors", *SMALL, "--dry_run").stderr
    (line,) = [line for line in said.splitlines() if line.startswith("recipe")]
    assert line == (
        "recipe authors: batch_size 16 (Soul: 128), learning_rate 0.0001 (Soul: 0.001), "
        "weight_prune_layers all (Soul: 0 1 2 3 4 5 6 7), finetune yes (Soul: no)"
    )
    said = call("prune", "unstructured", "--recipe", "soul", *SMALL, "--dry_run").stderr
    assert "recipe" not in said


def test_the_authors_recipe_trains_and_is_recorded() -> None:
    model, said = trained("--model", "spikingvgg5", "--recipe", "authors", *SMALL)
    how = model.info.provenance["recipe"]
    assert (how["optimizer"], how["learning_rate"], how["l1"]) == ("sgd", 0.01, 3e-5)
    assert how["schedule"] == {"kind": "step", "epochs": [100, 200]}
    assert "optimizer sgd (Soul: adam)" in said and "epochs 300" not in said


@pytest.mark.parametrize(
    ("words", "criterion", "told"),
    [
        ("--model cifar10net", "mse", "loss: MSE, since the network votes"),
        ("--model spikingvgg5", "ce", "loss: cross-entropy, since the network's readout is linear"),
        ("--model cifar10net --criterion CE", "ce", ""),
        ("--model cifar10net --recipe soul", "ce", ""),
        ("--model spikingvgg5 --criterion mse", "mse", ""),
    ],
)
def test_the_loss_follows_the_readout(words: str, criterion: str, told: str) -> None:
    model, said = trained(*words.split(), *SMALL)
    assert model.info.provenance["recipe"]["objective"]["criterion"] == criterion
    assert told in said
    assert told or "loss: " not in said.split("train: begins")[0]


@pytest.mark.parametrize(
    ("words", "augment", "told"),
    [
        ("--dataset_name cifar10", "crop_flip", "augment: crop_flip, for data set cifar10"),
        ("--dataset_name cifar10 --augment none", "none", ""),
        ("--dataset_name cifar10 --augment shift", "shift", ""),
        ("--dataset_name digits", "none", ""),
    ],
)
def test_the_augmentation_follows_the_data_set(words: str, augment: str, told: str) -> None:
    model, said = trained("--model", "spikingvgg5", *QUICK, *words.split())
    assert model.info.provenance["recipe"]["augment"] == augment
    assert told in said
    assert told or "augment:" not in said


def test_a_recipe_that_is_unknown_is_refused() -> None:
    result = CliRunner().invoke(root, ["train", "--recipe", "best"])
    assert result.exit_code == 2
    assert "'best' is not one of 'ours', 'soul', 'authors'" in result.stderr
