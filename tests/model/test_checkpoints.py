"""Checkpoints as people save them, and the way from one to a model file of ours."""

import argparse
import os
import pathlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import Result
from safetensors.numpy import save_file
from test_soul_files import FACTORY, assert_souls_spikes, call, golden, here, written
from torch import Tensor, nn

from soul_deploy import errors, import_zoo
from soul_deploy.base.files import digest
from soul_deploy.ir import NeuronSpec
from soul_deploy.model.file import load, load_weights, save

__all__ = ["here"]  # a fixture
State = dict[str, Tensor]
SHAPE = ("--input_shape", "3,32,32", "--classes", "10")


def souls(neuron: str = "lif") -> State:
    tensors, _ = golden(neuron)
    start = "weights."
    return {k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)}


def under(prefix: str, state: State) -> State:
    return {prefix + name: value for name, value in state.items()}


def lightning(state: State) -> dict[str, Any]:
    """What Lightning's ModelCheckpoint writes, shortened."""
    return {
        "epoch": 9,
        "global_step": 1000,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": under("model.", state),
        "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"current": {"ready": 10}}}},
        "callbacks": {"ModelCheckpoint": {"best_model_score": torch.ones(()), "dirpath": "x"}},
        "optimizer_states": [{"state": {0: {"step": torch.ones(())}}, "param_groups": [{"lr": 1}]}],
        "lr_schedulers": [],
        "hparams_name": "kwargs",
        "hyper_parameters": {"learning_rate": 1e-3, "T": 4},
    }


CONTAINERS: dict[str, tuple[Callable[[State], Any], tuple[str, ...]]] = {
    "net": (lambda s: {"net": s, "acc": 0.9, "epoch": 3}, ("from 'net'; beside them: acc, epoch",)),
    "model": (lambda s: {"model": s, "best": torch.ones(1)}, ("weights taken from 'model'",)),
    "state_dict": (lambda s: {"state_dict": s}, ("weights taken from 'state_dict'",)),
    "deeper": (lambda s: {"model": {"state_dict": s}}, ("taken from 'model.state_dict'",)),
    "module.": (lambda s: under("module.", s), ("'module.' is taken off the names",)),
    "model.": (lambda s: under("model.", s), ("'model.' is taken off the names",)),
    "both": (lambda s: {"net": under("module.model.", s)}, ("'module.model.' is taken off",)),
    "lightning": (lightning, ("from 'state_dict'; beside them: epoch,", "'model.' is taken off")),
    "compiled": (lambda s: under("_orig_mod.", s), ("'_orig_mod.' is taken off",)),
    "arguments": (
        lambda s: {"model": s, "args": argparse.Namespace(T=4, tau=2.0, lr=[1, 2], net=None)},
        ("weights taken from 'model'; beside them: args",),
    ),
    "parameters": (lambda s: {n: nn.Parameter(t, t.is_floating_point()) for n, t in s.items()}, ()),
    "the loss too": (
        lambda s: {"state_dict": under("model.", s) | {"criterion.weight": torch.ones(10)}},
        ("left out: criterion.weight",),
    ),
}


def zoo(path: str | Path, *words: str, name: str = "spikingvgg5", hidden: str = "48") -> Result:
    shape = () if "--dataset_name" in words or "--input_shape" in words else SHAPE
    flags = ("--model_path", str(path), "--hidden", hidden, *shape, "-o", "m.safetensors")
    return call("import", "zoo", name, *flags, *words)


def imported(path: str | Path, *words: str, **more: str) -> tuple[Any, Result]:
    result = zoo(path, *words, **more)
    assert result.exit_code == 0, result.output
    return load(Path("m.safetensors")), result


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("name", CONTAINERS)
def test_weights_are_found_and_what_was_done_is_said(name: str, legacy: bool) -> None:
    build, sentences = CONTAINERS[name]
    state = souls()
    torch.save(build(state), "best.pt", _use_new_zipfile_serialization=not legacy)
    model, result = imported("best.pt")
    assert set(model.state) == set(state)
    assert all(np.array_equal(model.state[key], state[key].numpy()) for key in state)
    told = model.info.provenance["assumptions"]
    for sentence in sentences:
        (found,) = [line for line in told if sentence in line]
        assert found in result.stderr.splitlines()


@pytest.mark.parametrize("neuron", ["lif", "plif"])
def test_a_soul_file_of_any_data_set_fires_souls_spikes(neuron: str) -> None:
    """imagenet is none that we load; the name still says neuron and T."""
    path = f"best_spikingvgg5_{neuron}_imagenet_T4_2025.pt"
    torch.save(souls(neuron), path)
    hidden = {"lif": "48", "plif": "32"}[neuron]
    model, result = imported(path, hidden=hidden)
    assert_souls_spikes(model, neuron)
    assert "Next: soul-deploy export event m.safetensors --input random" in result.stdout
    constants = {"lif": "tau 2, ", "plif": ""}[neuron]
    decayed = {"lif": "yes", "plif": "no"}[neuron]
    pixels = "no normalisation is given: the network is taken to be trained on pixel / 255"
    taken = [f"{path}: taken from its name: neuron plif"] if neuron == "plif" else []
    assert model.info.provenance["assumptions"] == [
        *taken,
        f"{path} holds weights only; assumed without being told (Soul's {neuron}): {constants}"
        f"v_threshold 1, v_reset 0, decay_input {decayed}, fire gt",
        pixels,
    ]
    assert all(line in result.stderr for line in model.info.provenance["assumptions"])
    shown = call("inspect", "m.safetensors").stdout
    assert f"assumed       {pixels}" in shown


def test_the_data_set_of_the_name_says_input_and_classes(here: list[str]) -> None:
    path = "best_spikingvgg5_lif_svhn_T2_2025.pt"
    torch.save(souls(), path)
    result = call("import", "zoo", "spikingvgg5", "--model_path", path, "--hidden", "48")
    assert result.exit_code == 0, result.output
    model = load(Path(path).with_suffix(".safetensors"))
    assert here == ["svhn"] and model.info.provenance["data"] == "svhn"
    assert (model.graph.time_steps, model.info.classes) == (2, tuple("0123456789"))
    assert model.info.normalization is not None
    refused = zoo(path, "--dataset_name", "cifar10")
    assert refused.exit_code == 2
    assert "its name says data set svhn, but data set cifar10 is asked for" in refused.stderr


def test_event_data_have_no_normalisation() -> None:
    state = souls()
    first = "features.0.conv.0.weight"
    state[first] = state[first][:, :2].clone()
    torch.save(state, "dvs.pt")
    words = ("--input_shape", "2 32 32", "--classes", "10", "--input_kind", "counts")
    model, result = imported("dvs.pt", *words)
    assert model.info.input_kind == "counts" and "pixel / 255" not in result.stderr
    refused = zoo("dvs.pt", *words, "--mean", "0.5", "--std", "0.5")
    assert refused.exit_code == 2 and "mean and std belong to images" in refused.stderr


def test_a_normalisation_can_be_given() -> None:
    torch.save(souls(), "w.pt")
    words = ("--mean", "[0.49, 0.48, 0.45]", "--std", "0.2 0.21 0.22")
    model, result = imported("w.pt", *words)
    assert model.info.normalization.mean == (0.49, 0.48, 0.45)
    assert model.info.normalization.std == (0.2, 0.21, 0.22)
    assert "pixel / 255" not in result.stderr
    for flags, message in (
        (("--mean", "0.5"), "give as many of both"),
        (("--mean", "0.5", "--std", "0"), "std above 0"),
        (("--mean", "1 2", "--std", "1 2"), "mean of 2 channels given, but the input has 3"),
        (("--mean", "1 2 3", "--std", "1 2 3", "--dataset_name", "svhn"), "leave these flags out"),
    ):
        result = zoo("w.pt", *flags)
        assert result.exit_code == 2 and message in result.stderr, result.output


# What arguments saved beside the weights say.


def test_saved_arguments_hold_where_no_flag_is_given() -> None:
    arguments = argparse.Namespace(
        T=8, tau=1.5, v_reset=None, arch="Spiking_VGG5", neuron="LIFNode"
    )
    torch.save({"model": souls(), "args": arguments}, "theirs.pt")
    model, result = imported("theirs.pt")
    assert model.graph.time_steps == 8
    specs = {node.neuron for node in model.graph.populations}
    assert specs == {NeuronSpec("lif", tau=1.5, v_reset=None)}
    for line in (
        "theirs.pt: taken from the arguments saved in it: neuron lif, T 8",
        "theirs.pt: taken from the arguments saved in it: tau 1.5, v_reset none",
        "theirs.pt says no more; assumed without being told (Soul's lif): v_threshold 1, "
        "decay_input yes, fire gt",
    ):
        assert line in result.stderr.splitlines()
        assert line in model.info.provenance["assumptions"]


@pytest.mark.parametrize(
    ("arguments", "name", "words", "message"),
    [
        (
            {"T": 8},
            "w.pt",
            ["-T", "4"],
            "the arguments saved in it say T 8, but T 4 is asked for (--time_step); give "
            "--time_step 8. If they are not those of this training, save the weights alone",
        ),
        (
            {"tau": 1.5},
            "w.pt",
            ["--tau", "2"],
            "the arguments saved in it say tau 1.5, but tau 2 is asked for (--tau)",
        ),
        (
            {"arch": "spikingvgg9"},
            "w.pt",
            [],
            "the arguments saved in it say model spikingvgg9, but model spikingvgg5 is asked for",
        ),
        (
            {"neuron_type": "CLIF"},
            "w.pt",
            ["-n", "lif"],
            "say neuron clif, but neuron lif is asked for (--neuron_type); give --neuron_type clif",
        ),
        (
            {"time_step": 8},
            "best_spikingvgg5_lif_svhn_T4_1.pt",
            [],
            "the arguments saved in it say T 8, but its name says T 4",
        ),
        ({}, "best_spikingvgg9_lif_svhn_T4_1.pt", [], "its name says model spikingvgg9, but model"),
    ],
)
def test_contradictions_are_refused_naming_both(
    arguments: Mapping[str, Any], name: str, words: list[str], message: str
) -> None:
    torch.save({"model": souls(), "args": dict(arguments)}, name)
    result = zoo(name, *words)
    assert result.exit_code == 2, result.output
    assert message in result.stderr and not Path("m.safetensors").exists()


def test_saved_arguments_that_are_the_defaults_are_named_too() -> None:
    """Those that a flag gives are not: they were asked for."""
    arguments = argparse.Namespace(T=4, tau=2.0, v_threshold=1.0, v_reset=0.0, decay_input=True)
    torch.save({"model": souls(), "args": arguments}, "theirs.pt")
    model, result = imported("theirs.pt", "--v_threshold", "1")
    for line in (
        "theirs.pt: taken from the arguments saved in it: T 4",
        "theirs.pt: taken from the arguments saved in it: tau 2, v_reset 0, decay_input yes",
        "theirs.pt says no more; assumed without being told (Soul's lif): neuron lif, fire gt",
    ):
        assert line in result.stderr.splitlines()
        assert line in model.info.provenance["assumptions"]


def counted(state: State, value: float, dtype: torch.dtype) -> State:
    """The state with other counts of batches."""
    count = torch.tensor(value, dtype=dtype)
    return {n: count if n.endswith("num_batches_tracked") else t for n, t in state.items()}


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64, torch.bfloat16])
def test_counts_in_floating_point_are_integers(dtype: torch.dtype) -> None:
    """As averages of models have them, and what was cast as a whole."""
    state = counted(souls(), 96, dtype)
    torch.save(state, "w.pt")
    model, result = imported("w.pt")
    counts = [a for n, a in model.state.items() if n.endswith("num_batches_tracked")]
    assert len(counts) == 4 and all(a.dtype == np.int64 and a == 96 for a in counts)
    (line,) = [line for line in result.stderr.splitlines() if "counts of batches" in line]
    assert line.startswith("w.pt: 4 counts") and line in model.info.provenance["assumptions"]
    if dtype in (torch.float32, torch.float64):  # the others are no weights of safetensors
        save_file({n: t.numpy() for n, t in state.items()}, "w.safetensors")
        same, _ = imported("w.safetensors")
        assert digest(same.state) == digest(model.state)


@pytest.mark.parametrize("value", [12.5, -1, 1e30])
def test_what_counts_no_batches_is_refused(value: float) -> None:
    torch.save(counted(souls(), value, torch.float32), "w.pt")
    result = zoo("w.pt")
    assert result.exit_code == 1 and "the network needs an integer" in result.stderr


def test_words_that_mean_something_else_are_not_believed() -> None:
    facts = {"T": 4.5, "tau": "auto", "arch": "resnet18", "neuron": 3, "dataset": "theirs"}
    torch.save({"model": souls(), "config": facts}, "w.pt")
    model, result = imported("w.pt")
    assert "taken from the arguments" not in result.stderr and model.graph.time_steps == 4


# Other commands.


def test_prune_takes_checkpoints_too() -> None:
    torch.save(lightning(souls()), "theirs.ckpt")
    words = ("--model_path", "theirs.ckpt", "-m", "spikingvgg5", "--hidden", "48", "-T", "4")
    still = ("--learning_rate", "1e-38", "--freeze_batch_norm", "--epochs", "1")
    ratios = ("--prune_ratio", "0", "--regrow_ratio", "0")
    result = call("prune", "structured", "--mode", "load", *words, *still, *ratios)
    assert result.exit_code == 0, result.output
    model = written("structured", "spikingvgg5_lif_cifar10_T4_2025")
    assert_souls_spikes(model, "lif")
    told = model.info.provenance["assumptions"]
    assert any("weights taken from 'state_dict'" in line for line in told)
    assert "theirs.ckpt: 'model.' is taken off the names of its weights" in told
    assert all(line in result.stderr for line in told)


def test_import_torch_takes_checkpoints_too() -> None:
    Path("theirs.py").write_text(FACTORY)
    torch.save({"net": under("module.", souls()), "args": argparse.Namespace(T=8)}, "w.pt")
    words = ("import", "torch", "theirs:make", *SHAPE, "--model_path", "w.pt", "-o", "m.st")
    result = call(*words)
    assert result.exit_code == 0, result.output
    model = load(Path("m.st"))
    assert model.graph.time_steps == 8
    told = model.info.provenance["assumptions"]
    assert "w.pt: taken from the arguments saved in it: T 8" in told
    assert "w.pt: 'module.' is taken off the names of its weights" in told
    assert all(line in result.stderr for line in told)
    refused = call(*words, "-T", "4")
    assert refused.exit_code == 2 and "say T 8, but T 4 is asked for" in refused.stderr


def test_names_that_the_network_has_itself_are_kept(tmp_path: Path) -> None:
    torch.save({"module.0.weight": torch.ones(2), "module.0.bias": torch.ones(2)}, "w.pt")
    weights = load_weights(Path("w.pt"))
    assert weights.fitted(["module.0.weight", "other"]) is weights
    assert set(weights.fitted(["0.weight", "0.bias"]).state) == {"0.weight", "0.bias"}
    assert weights.fitted(["conv.weight"]) is weights


# What cannot be loaded, and why.


class Theirs(nn.Module):
    """A network of a class that is nowhere else."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3)


class Bomb:
    """Unpickled, it would leave a folder behind."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("ran",)


MODULE = "is not a file of weights alone: it holds objects whose code would run, a whole pickled"
SAVED = "Save the weights with torch.save(network.state_dict(), path), or as safetensors"
REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "module": (Theirs, f"{MODULE} network of class {Theirs.__module__}.Theirs. {SAVED}"),
    "module inside": (
        lambda: {"net": Theirs(), "epoch": 3},
        f"{MODULE} network of class {Theirs.__module__}.Theirs under 'net'. {SAVED}",
    ),
    "objects": (
        lambda: {"net": souls(), "where": pathlib.PurePosixPath("x"), "acc": np.float64(3)},
        "is not a file of weights alone: it holds objects whose code would run, pathlib.",
    ),
    "arguments": (
        lambda: {"net": souls(), "args": argparse.Namespace(hook=Bomb())},
        f"it holds objects whose code would run, posix.mkdir. {SAVED}",
    ),
    "several": (
        lambda: {"model": souls(), "net": souls()},
        "holds several state dicts, 'model', 'net'; save alone the one that is meant",
    ),
    "another name": (
        lambda: {"ema": souls(), "epoch": 3},
        "does not hold a state dict (a dict of name to tensor), nor one under state_dict",
    ),
    "texts": (lambda: {"net": {**souls(), "made": "today"}}, "under 'net': 'made' is no plain"),
    "nothing": (dict, "does not hold a state dict"),
}


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_loaded_says_why_in_a_sentence(name: str, legacy: bool) -> None:
    build, message = REFUSED[name]
    torch.save(build(), "x.pt", _use_new_zipfile_serialization=not legacy)
    result = zoo("x.pt")
    assert result.exit_code == 1, result.output
    assert f"x.pt {message}" in result.stderr or message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not Path("m.safetensors").exists() and not Path("ran").exists()


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")
@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_a_program_of_torchscript_says_so() -> None:
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), "x.pt")
    result = zoo("x.pt")
    assert result.exit_code == 1 and "is a TorchScript program, not a file of" in result.stderr


def test_masks_of_torch_prune_say_how_to_make_them_permanent() -> None:
    state = souls()
    kept = state.pop("features.0.conv.0.weight")
    state |= {"features.0.conv.0.weight_orig": kept, "features.0.conv.0.weight_mask": kept}
    torch.save(state, "x.pt")
    result = zoo("x.pt")
    assert result.exit_code == 1 and "with torch.nn.utils.prune.remove" in result.stderr


@pytest.mark.parametrize(
    ("name", "beside"),
    [
        ("up_search_sparsified_spikingvgg5_lif_cifar10_1.pth", {}),
        ("up_finetune_lastest_spikingvgg5_lif_cifar10_1.pth", {}),
        ("renamed.pth", {"optimizer_prune": {"state": {}, "param_groups": []}}),
    ],
)
def test_masks_that_soul_never_saved_are_warned_about(name: str, beside: dict[str, Any]) -> None:
    torch.save({"model": souls(), "epoch": 3, **beside}, name)
    sentence = (
        f"{name}: Soul's unstructured pruning saves no masks with the weights; the network is "
        "loaded as a dense one"
    )
    model, result = imported(name)
    assert f"Warning: {sentence}" in result.stderr.splitlines()
    assert sentence in model.info.provenance["assumptions"]
    assert sentence not in result.stderr.splitlines()
    assert model.info.stage == "dense"


def test_loading_leaves_torch_as_it_was() -> None:
    before = set(torch.serialization.get_safe_globals())
    torch.save({"net": souls(), "args": argparse.Namespace(x=1)}, "w.pt")
    load_weights(Path("w.pt"))
    assert set(torch.serialization.get_safe_globals()) == before
    with pytest.raises(Exception, match="Namespace"):
        torch.load("w.pt", weights_only=True)


# From Python.


def test_the_python_door_gives_what_the_command_writes() -> None:
    torch.save({"net": souls("plif"), "args": {"T": 6}}, "my_plif_net.pt")
    command, _ = imported("my_plif_net.pt", "--v_threshold", "0.5", hidden="32")
    model = import_zoo(
        "my_plif_net.pt",
        "SpikingVGG5",
        input_shape=(3, 32, 32),
        classes=10,
        neuron={"v_threshold": 0.5},
        hidden=32,
    )
    assert model.graph == command.graph and model.info == command.info
    assert digest(model.state) == digest(command.state)
    save(model, "again.safetensors")
    assert load("again.safetensors").info == model.info


def test_the_python_door_names_its_arguments() -> None:
    torch.save(souls(), "best_spikingvgg5_lif_svhn_T8_1.pt")

    def read(name: str = "spikingvgg5", **more: Any) -> Any:
        known: dict[str, Any] = {"input_shape": (3, 32, 32), "classes": 10, "hidden": 48}
        return import_zoo("best_spikingvgg5_lif_svhn_T8_1.pt", name, **known | more)

    model = read(classes=list("abcdefghij"), mean=[0.5], std=[0.25])
    assert model.info.classes == tuple("abcdefghij") and model.info.normalization.mean == (0.5,)
    assert model.graph.time_steps == 8
    for more, message in (
        ({"time_steps": 4}, r"T 8, but T 4 is asked for \(time_steps\); give time_steps 8"),
        ({"neuron": NeuronSpec("plif")}, r"neuron lif, but neuron plif is asked for \(neuron\)"),
        ({"name": "spikingvgg9"}, r"but model spikingvgg9 is asked for \(name\); give name"),
        ({"neuron": {"familly": "lif"}}, "unknown field of a neuron 'familly'"),
        ({"neuron": {"family": "newlif"}}, "unknown neuron 'newlif'"),
        ({"name": "mine:make"}, "`soul-deploy import torch mine:make` or from_torch"),
        ({"classes": 0}, "classes 0"),
        ({"input_shape": (32, 32)}, r"input_shape \(32, 32\)"),
        ({"time_steps": 0}, "0"),
    ):
        with pytest.raises(errors.UsageError, match=message):
            read(**more)
    with pytest.raises(errors.FileFormatError, match=r"read as spikingvgg5 .* hidden 2048"):
        read(hidden=2048)
    spec = replace(NeuronSpec("lif"), tau=3.0)
    told = read(neuron=spec).info.provenance["assumptions"]
    assert not [line for line in told if "assumed without being told" in line]
