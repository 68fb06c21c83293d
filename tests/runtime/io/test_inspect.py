"""`inspect`: what it shows of each kind of file, and what it refuses."""

import json
import pickle
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner, Result
from deployed import NORM, SHAPE, STEPS, Files, damage, make_files, small_model

from soul_deploy.base.files import file_sha256, write_tensors
from soul_deploy.cli.main import root
from soul_deploy.cli.output import drawn
from soul_deploy.export.event.build import export_event
from soul_deploy.ir import Input, Linear, NeuronSpec, Population, Readout, SpikingGraph
from soul_deploy.model.file import expected_shapes, load, save
from soul_deploy.model.model import Model
from soul_deploy.prune.removal.apply import parameters
from soul_deploy.runtime.equations import CHARGE, NeuronEquation
from soul_deploy.runtime.io.inspect import describe_file
from soul_deploy.runtime.io.inspect_tables import FORMS, inspect_report, neuron_text


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return make_files(tmp_path_factory.mktemp("inspected"))


def soul_deploy(*words: object) -> Result:
    return CliRunner().invoke(root, [str(word) for word in words])


def printed(*words: object) -> str:
    result = soul_deploy(*words)
    assert result.exit_code == 0, result.output
    return result.stdout


def as_json(*words: object) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(printed(*words, "--format", "json"))
    return document


def test_a_model_file_shows_its_graph(files: Files) -> None:
    found = as_json("inspect", files.masked)
    model = load(files.masked)
    module = model.module()
    assert (found["schema"], found["kind"]) == ("soul-deploy/inspect/1", "model")
    assert found["sha256"] == file_sha256(files.masked)
    assert found["parameters"] == sum(p.numel() for p in module.parameters())
    assert found["nonzeros"] == sum(int((p != 0).sum()) for p in module.parameters())
    assert (found["time_steps"], tuple(found["input_shape"])) == (STEPS, SHAPE)
    assert found["normalization"]["mean"] == list(NORM.mean)
    rows = {row["layer"]: row for row in found["layers"]}
    for node in model.graph.nodes:
        row = rows[node.name]
        assert tuple(row["shape"]) == model.graph.shapes[node.name]
        if isinstance(node, Population):
            assert row["channels_kept"] == model.channel_masks[node.name].sum()
    assert sum(row["parameters"] for row in rows.values()) == found["parameters"]


def test_a_model_file_as_a_table(files: Files) -> None:
    text = printed("inspect", files.masked)
    assert "3→6, 3×3, batch norm" in text and "3×8×10" in text and "kept" in text
    assert "(pixel / 255 - 0.5, 0.25, 0.4) / 0.2, 0.5, 0.3" in text
    assert "valid for     any T" in text and "ant, bee, cat, dog" in text
    assert "kept" not in printed("inspect", files.compact)


def test_an_event_network_shows_its_layers(files: Files) -> None:
    found = as_json("inspect", files.compact_event)
    model = load(files.compact)
    assert found["kind"] == "event"
    assert found["source_sha256"] == file_sha256(files.compact)
    assert found["neurons"] == sum(
        int(np.prod(model.graph.shapes[node.name])) for node in model.graph.populations
    )
    weights = [array for name, array in model.state.items() if name.endswith("weight")]
    synapses = sum(np.count_nonzero(array) for array in weights if array.ndim > 1)
    assert found["synapses"] == synapses
    first, pool, second, readout = found["layers"]
    assert (first["operation"], first["representation"]) == ("convolution", "dense")
    assert (first["rows"], first["edge"]) == (3 * 3 * 3, "analog")
    assert (pool["operation"], pool["rows"]) == ("max_pool", 0)
    assert (second["operation"], second["rows"]) == ("matrix", int(np.prod(pool["shape"])))
    assert (readout["operation"], readout["shape"]) == ("readout", [4])
    text = printed("inspect", files.compact_event)
    assert "v ← v + (-v + x) / 2; spike if v > 1; then v ← 0" in text
    assert "then v ← v - 1" in text
    assert found["digest"] in text


def test_live_neurons_and_generated_channels_are_shown(tmp_path: Path) -> None:
    model = small_model()
    name = model.graph.populations[0].name
    keep = np.ones(model.graph.shapes[name], np.bool_)
    keep[0, :2] = False
    path = tmp_path / "net.safetensors"
    export_event(replace(model, neuron_masks={name: keep}), path, representation="explicit")
    found = as_json("inspect", path)
    row = found["layers"][0]
    assert 0 < row["neurons"] <= keep.sum()
    assert row["representation"] == "explicit"
    dense, explicit = row["alternatives"]
    assert explicit["chosen"] and explicit["additions"] == row["synapses"]
    assert found["neurons"] == sum(item["neurons"] for item in found["layers"])
    text = printed("inspect", path)
    assert f"{row['neurons']:,}" in text and f"{dense['additions']:,}" in text
    shown = {**row, "generated": 2}
    assert f"2 channels of {row['layer']}" in drawn(
        inspect_report({**found, "layers": [shown, *found["layers"][1:]]})
    )


def test_a_pattern_is_no_parameter(tmp_path: Path) -> None:
    """Nobody trains the spikes of a constant-pattern channel."""
    nodes = (
        Input("input", (), (2,)),
        Linear("l", ("input",), True, None, 2, 3),
        Population("p", ("l",), NeuronSpec(), 2),
        Readout("head", ("p",), 4, linear=True, bias=False),
    )
    graph = SpikingGraph(nodes, 3)
    state = {key: np.ones(shape, np.float32) for key, shape in expected_shapes(graph).items()}
    save(Model(graph, state), tmp_path / "net.safetensors")
    found = as_json("inspect", tmp_path / "net.safetensors")
    assert found["parameters"] == found["nonzeros"] == parameters(state) == 9 + 4 * 5
    assert {row["layer"]: row["parameters"] for row in found["layers"]}["p"] == 0


def test_an_onnx_file_shows_what_a_caller_needs(files: Files) -> None:
    found = as_json("inspect", files.compact_onnx)
    read = onnx.load(files.compact_onnx)
    assert found["kind"] == "onnx"
    assert found["nodes"] == len(read.graph.node) == sum(found["operators"].values())
    assert found["opsets"]["ai.onnx"] == 18
    assert found["inputs"] == [{"name": "input", "dtype": "float32", "shape": ["batch", *SHAPE]}]
    assert found["outputs"][0]["shape"] == ["batch", 4]
    assert found["metadata"]["time_steps"] == str(STEPS)
    assert found["metadata"]["classes"] == ["ant", "bee", "cat", "dog"]
    text = printed("inspect", files.compact_onnx)
    assert "batch×3×8×10" in text and "ai.onnx 18" in text and "source_sha256" in text


def test_a_foreign_onnx_file_is_shown_too(tmp_path: Path) -> None:
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", kind, ["n", None, 3])],
        [helper.make_tensor_value_info("y", kind, ["n", None, 3])],
    )
    path = tmp_path / "foreign"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), str(path))
    found = describe_file(path)
    assert found["inputs"][0]["shape"] == ["n", None, 3]
    assert (found["operators"], found["parameters"]) == ({"Relu": 1}, 0)
    assert "1: Relu 1" in printed("inspect", path)


def wrong_file(kind: str, folder: Path, files: Files) -> Path:
    path = folder / kind
    if kind == "text":
        path.write_text("this is no model")
    elif kind == "empty":
        path.touch()
    elif kind == "pickle":
        path.write_bytes(pickle.dumps({"a": 1}))
    elif kind == "archive.pt":
        torch.save({"a": torch.zeros(1)}, path)
        path.write_bytes(path.read_bytes()[:-9])
    elif kind == "other archive":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("notes.txt", "this is no model")
    elif kind == "binary":
        path.write_bytes(bytes(range(1, 200)))
    elif kind == "text.onnx":
        path.write_text("this is no model")
    elif kind == "folder":
        path.mkdir()
    elif kind == "future.safetensors":
        write_tensors(path, {"a": np.zeros(2, np.float32)}, {"format": "soul-deploy/event/99"})
    elif kind == "changed.safetensors":
        content = bytearray(files.compact.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
    else:
        source = {"model": files.compact, "event": files.compact_event, "onnx": files.compact_onnx}
        return damage(folder, source[kind], f"half{source[kind].suffix}")
    return path


@pytest.mark.parametrize(
    ("kind", "code", "message"),
    [
        ("missing", 2, "no file at"),
        ("folder", 2, "is not a file; it is a folder; give the path of a file"),
        ("text", 1, "is a text file; readable: soul-deploy model files and event networks"),
        ("empty", 1, "is empty; readable"),
        ("pickle", 1, "is a pickle or an archive (it was not opened); readable"),
        ("archive.pt", 1, "is not an intact archive"),
        ("other archive", 1, "is a pickle or an archive (it was not opened); readable"),
        ("binary", 1, "is of an unknown format; readable"),
        ("text.onnx", 1, "is not an intact ONNX file"),
        ("future.safetensors", 1, "is a safetensors file of format 'soul-deploy/event/99'"),
        ("changed.safetensors", 1, "do not match their digest; the file is damaged"),
        ("model", 1, "is not an intact safetensors file"),
        ("event", 1, "is not an intact safetensors file"),
        ("onnx", 1, "is not an intact ONNX file"),
    ],
)
def test_other_files_are_refused(
    files: Files, tmp_path: Path, kind: str, code: int, message: str
) -> None:
    path = tmp_path / kind if kind == "missing" else wrong_file(kind, tmp_path, files)
    result = soul_deploy("inspect", path)
    assert message in result.output
    assert result.exit_code == code
    assert result.stdout == "" and "Traceback" not in result.output


NEURON = {"constant": 3.0, "v_threshold": 0.5, "v_reset": -0.25, "fire": "ge"}


@pytest.mark.parametrize(
    ("charge", "text"),
    [
        ("integrate", "v ← v + x; "),
        ("soul_lif_decay", "v ← v + (r - v + x) / 3, r = -0.25; "),
        ("soul_lif", "v ← v + (r - v) / 3 + x, r = -0.25; "),
        ("decay_divide", "v ← v + (x - (v - r)) / 3, r = -0.25; "),
        ("decay_multiply", "v ← v + (x - (v - r)) · 3, r = -0.25; "),
        ("leak_multiply", "v ← v · 3 + x; "),
        ("leak_multiply_late", "v ← v · 3 + x - (v > 0.5) · 0.5; "),
        ("leak_subtract_divide", "v ← v - (v - r) / 3 + x, r = -0.25; "),
        ("leak_subtract_multiply", "v ← v - (v - r) · 3 + x, r = -0.25; "),
    ],
)
def test_a_neuron_is_one_line(charge: str, text: str) -> None:
    ending = "spike if v ≥ 0.5; then v ← -0.25"
    assert neuron_text({"charge": charge, **NEURON}) == text + ending


def test_every_form_of_the_charge_has_its_text() -> None:
    assert FORMS.keys() == CHARGE.keys()
    soft = NeuronEquation("decay_divide", 2.0, 1.0, None, "gt")
    assert neuron_text(vars(soft)) == "v ← v + (x - v) / 2; spike if v > 1; then v ← v - 1"
    none = NeuronEquation("leak_multiply", 0.5, 1.0, None, "gt", 0.0)
    assert neuron_text(vars(none)) == "v ← v · 0.5 + x; spike if v > 1"
