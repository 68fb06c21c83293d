"""`export onnx`, `export event` and `verify` as typed: what they print, write, refuse."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner, Result
from torch import nn

from soul_deploy.base.files import file_sha256
from soul_deploy.cli.main import root
from soul_deploy.frontend.from_torch import trace
from soul_deploy.ir import NeuronSpec
from soul_deploy.model.file import save
from soul_deploy.model.model import Model, ModelInfo, Normalization, from_module
from soul_deploy.nn import layers
from soul_deploy.nn.graph_module import GraphModule
from soul_deploy.nn.neuron import SpikingNeuron
from soul_deploy.runtime.engine.network import load


def digits_model() -> Model:
    """A small network for the 8×8 digits of scikit-learn; it fires."""
    torch.manual_seed(1)
    modules = nn.Sequential(
        layers.Conv2d(1, 6, 3),
        SpikingNeuron(NeuronSpec(v_threshold=0.3), 3),
        layers.MaxPool2d(2),
        layers.Flatten(),
        nn.Linear(54, 8),
        SpikingNeuron(NeuronSpec(v_threshold=0.1), 3),
        layers.RateReadout(8, 10),
    )
    module = GraphModule(trace(modules, (1, 8, 8), 3))
    module.load_state_dict(modules.state_dict())
    info = ModelInfo(
        normalization=Normalization((0.3,), (0.35,)), provenance={"data": "digits", "seed": 1}
    )
    return from_module(module, info)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "net.safetensors"
    save(digits_model(), path)
    return path


def invoke(*words: object) -> Result:
    return CliRunner().invoke(root, [str(word) for word in words])


def names(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir()}


@pytest.mark.parametrize(("kind", "suffix"), [("onnx", ".onnx"), ("event", ".event.safetensors")])
def test_export_writes_verifies_and_says_so(kind: str, suffix: str, model: Path) -> None:
    result = invoke("export", kind, model, "--samples", 5)
    assert result.exit_code == 0, result.output
    target = model.with_suffix(suffix)
    assert "5 validation images of digits" in result.stdout
    assert "3 end to end: passed, same class on 5 of 5 samples" in result.stdout
    assert f"{target} (" in result.stdout
    assert f"Next: soul-deploy inspect {target}" in result.stdout
    assert names(model.parent) == {model.name, target.name}


@pytest.mark.parametrize("kind", ["onnx", "event"])
def test_json_is_clean(kind: str, model: Path, tmp_path: Path) -> None:
    target = tmp_path / "out" / "network.file"
    result = invoke("export", kind, model, "-o", target, "--samples", 3, "--format", "json")
    document = json.loads(result.stdout)
    assert document["schema"] == "soul-deploy/export/2"
    assert document["bytes"] == target.stat().st_size
    assert document["source_sha256"] == file_sha256(model)
    assert document["verified"]["passed"] is True
    assert result.stderr == ""
    verified = json.loads(invoke("verify", model, target, "--format", "json").stdout)
    assert verified["schema"] == "soul-deploy/verify/3"
    assert verified["kind"] == kind
    assert verified["end_to_end"]["samples"] == 32


def test_without_check_nothing_is_run(model: Path) -> None:
    result = invoke("export", "onnx", model, "--no-check", "--data_dir", "/nowhere")
    assert result.exit_code == 0
    assert "static" not in result.stdout
    target = model.with_suffix(".onnx")
    assert f"Next: soul-deploy verify {model} {target}" in result.stdout


def test_opset_steps_and_input_mode(model: Path) -> None:
    target = model.with_suffix(".onnx")
    words = ("--opset", 21, "-T", 5, "--input-mode", "sequence", "--input", "random")
    result = invoke("export", "onnx", model, *words, "--samples", 4, "--seed", 7, "--batch", 3)
    assert result.exit_code == 0, result.output
    assert "4 random images, seed 7, a sequence of different frames each" in result.stdout
    file = onnx.load(target)
    assert {o.domain: o.version for o in file.opset_import}[""] == 21
    assert file.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 5
    assert invoke("verify", model, target).exit_code == 1
    assert invoke("verify", model, target, "-T", 5).exit_code == 0


def test_event_steps(model: Path, tmp_path: Path) -> None:
    target = tmp_path / "five"
    assert invoke("export", "event", model, "--time-step", 5, "-o", target).exit_code == 0
    assert load(target).time_steps == 5


def test_the_representation_is_printed_and_can_be_chosen(model: Path) -> None:
    keep = np.random.default_rng(0).random((6, 6, 6)) < 0.5
    save(replace(digits_model(), neuron_masks={"1": keep}), model)
    words = ("export", "event", model, "--samples", 5, "--representation", "Explicit")
    result = invoke(*words)
    assert result.exit_code == 0, result.output
    assert "Representation of the synapses" in result.stdout
    assert "explicit rows" in result.stdout and "additions if all spike" in result.stdout
    document = json.loads(invoke(*words, "--format", "json").stdout)
    first = document["layers"][0]
    assert (first["operation"], first["representation"]) == ("matrix", "explicit")
    assert [item["kind"] for item in first["alternatives"]] == ["dense", "explicit"]
    assert first["alternatives"][1]["bytes"] == first["bytes"]
    assert invoke("export", "event", model, "--representation", "csr").exit_code == 2


@pytest.mark.parametrize("first", ["dense", "sparse", "explicit"])
@pytest.mark.parametrize("second", ["dense", "explicit"])
def test_the_rows_of_a_layer_can_be_chosen_and_verify(model: Path, first: str, second: str) -> None:
    words = ("--rows", f"0={first}", "--rows", f"5={second.upper()}", "--samples", 5)
    result = invoke("export", "event", model, *words, "--format", "json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    chosen = [
        next(item["kind"] for item in layer["alternatives"] if item["chosen"])
        for layer in document["layers"]
    ]
    assert chosen == [layer["representation"] for layer in document["layers"]] == [first, second]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (("6=dense",), r"unknown layer of --rows '6'; valid: 0, 4, 1, 5"),
        (("4=sparse",), "--rows 4=sparse: 4 is a matrix; choose dense or explicit"),
        (("5=sparse",), "--rows 4=sparse: 4 is a matrix; choose dense or explicit"),
        (("0=csr",), "--rows 0=csr: give LAYER=FORM, where FORM is dense, sparse, explicit"),
        (("dense",), "--rows dense: give LAYER=FORM"),
        (("0=dense", "0=sparse"), "--rows 0=sparse: 0 was given as dense too"),
        (("0=dense", "1=sparse"), "--rows 1=sparse: 0 was given as another form too"),
    ],
)
def test_rows_that_cannot_be_name_the_choices(
    model: Path, rows: tuple[str, ...], message: str
) -> None:
    before = names(model.parent)
    words = [word for row in rows for word in ("--rows", row)]
    result = invoke("export", "event", model, *words, "--no-check")
    assert result.exit_code == 2
    assert message in str(result.exception) + result.output
    assert names(model.parent) == before


def test_verify_fails_for_another_model(model: Path, tmp_path: Path) -> None:
    invoke("export", "event", model, "--no-check")
    other = tmp_path / "other.safetensors"
    golden = digits_model()
    save(replace(golden, state={n: a * 1.01 for n, a in golden.state.items()}), other)
    result = invoke("verify", other, model.with_suffix(".event.safetensors"))
    assert result.exit_code == 1
    assert "1 static: FAILED" in result.stdout
    assert "made from a file with sha256" in result.stdout
    assert "Error:" in result.stderr
    assert "is not what" in result.stderr


def test_an_export_that_fails_its_check_is_not_kept(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from soul_deploy.export.onnx import model as onnx_graph

    right = onnx_graph.export_onnx

    def wrong(model: Model, path: Path, **options: object) -> None:
        state = {n: a * 2 for n, a in model.state.items()}
        right(replace(model, state=state), path)

    target = model.with_suffix(".onnx")
    target.write_text("what was there before")
    monkeypatch.setattr(onnx_graph, "export_onnx", wrong)
    result = invoke("export", "onnx", model)
    assert result.exit_code == 1
    assert "it was not kept" in result.stderr
    assert "0.weight: 54 of 54 values differ" in result.stderr
    assert result.stdout == ""
    assert names(model.parent) == {model.name, target.name}
    assert target.read_text() == "what was there before"


WRONG_USE = {
    ("--opset", "12"): "opset 12 given; supported: 17 to 24",
    ("--samples", "0"): "samples 0 must be at least 1",
    ("--batch", "0"): "batch 0 must be at least 1",
    ("--input", "random", "--seed", "-1"): "seed -1 must be from 0 to 2^63 - 1",
    ("--threads", "0"): "threads 0 must be at least 1",
    ("--dataset_name", "imagenet"): "unknown data set 'imagenet'; valid: ",
    ("--dataset_name", "mnist5k"): "mnist5k has images of (1, 28, 28), this model takes (1, 8, 8)",
    ("--dataset_name", "cifar10", "--data_dir", "/nowhere"): "/nowhere",
    ("--time_step", "0"): "time_step 0 must be at least 1",
    ("--input", "noise"): "unknown input 'noise'; valid: data, random, mnist5k",
    ("--input_mode", "stream"): "'stream' is not one of",
}


@pytest.mark.parametrize("words", WRONG_USE, ids=" ".join)
def test_wrong_use_is_told_and_leaves_nothing(words: tuple[str, ...], model: Path) -> None:
    result = invoke("export", "onnx", model, *words)
    assert result.exit_code == 2, result.output
    assert WRONG_USE[words] in result.stderr
    assert result.stdout == ""
    assert names(model.parent) == {model.name}


def test_missing_and_damaged_models(model: Path, tmp_path: Path) -> None:
    for kind in ("onnx", "event"):
        result = invoke("export", kind, tmp_path / "none.safetensors")
        assert (result.exit_code, "no file at" in result.stderr) == (2, True)
        bad = tmp_path / "bad.safetensors"
        bad.write_bytes(model.read_bytes()[:-10])
        result = invoke("export", kind, bad)
        assert (result.exit_code, "not an intact safetensors" in result.stderr) == (1, True)
    assert names(tmp_path) == {model.name, "bad.safetensors"}


def test_verify_refuses_what_is_no_artifact(model: Path, tmp_path: Path) -> None:
    result = invoke("verify", model, model)
    assert result.exit_code == 1
    assert f"{model} is a model file, as MODEL is; what is verified was exported" in result.stderr
    assert invoke("verify", model, tmp_path / "none.onnx").exit_code == 2
    (tmp_path / "text.onnx").write_text("hello")
    result = invoke("verify", model, tmp_path / "text.onnx")
    assert result.exit_code == 1
    assert "not an intact ONNX file" in result.stderr


def test_a_model_that_does_not_say_its_data(tmp_path: Path) -> None:
    golden = digits_model()
    path = tmp_path / "foreign.safetensors"
    save(replace(golden, info=ModelInfo()), path)
    result = invoke("export", "onnx", path)
    assert result.exit_code == 2
    assert "give --dataset_name, or --input random" in result.stderr
    assert invoke("export", "onnx", path, "--input", "random").exit_code == 0
    assert invoke("export", "onnx", path, "--dataset", "digits").exit_code == 0


@pytest.mark.parametrize("kind", ["onnx", "event"])
def test_the_model_itself_is_never_overwritten(kind: str, model: Path) -> None:
    before = model.read_bytes()
    result = invoke("export", kind, model, "-o", model)
    assert result.exit_code == 2
    assert "is the model itself" in result.stderr
    assert model.read_bytes() == before
