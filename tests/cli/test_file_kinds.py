"""Every kind of file: `inspect` describes it, and a command that takes another kind says which."""

import argparse
import io
import json
import os
import pickle
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from safetensors.numpy import save_file
from test_help import digits_model

from soul_deploy.base.file_kinds import KINDS, kind_of
from soul_deploy.cli.main import root
from soul_deploy.export.event.build import export_event
from soul_deploy.export.nir.write import export_nir
from soul_deploy.export.onnx.model import export_onnx
from soul_deploy.model.file import save
from soul_deploy.training.checkpoint import Checkpoint, write_checkpoint

STATE = {"0.weight": torch.ones(3, 1, 2, 2), "0.bias": torch.zeros(3)}


class Bomb:
    """Unpickled, it would leave a folder behind."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.target),)


def make_files(folder: Path) -> dict[str, Path]:
    """One file of each kind; names that say nothing, so that the content has to."""
    paths = {name: folder / f"a {name}" for name in (*KINDS, "legacy", "bare")}
    model = digits_model()
    save(model, paths["model"])
    export_event(model, paths["event"])
    export_onnx(model, paths["onnx"])
    export_nir(model, paths["nir"])
    write_checkpoint(
        paths["checkpoint"],
        Checkpoint({"task.model": "spikingvgg5"}, {"torch": "2"}, "train", {"x": np.ones(7)}),
    )
    arguments = argparse.Namespace(T=6, tau=2.0)
    torch.save({"net": STATE, "epoch": 17, "args": arguments}, paths["weights"])
    torch.save(STATE, paths["legacy"], _use_new_zipfile_serialization=False)
    save_file({name: tensor.numpy() for name, tensor in STATE.items()}, paths["bare"])
    pixels = np.zeros((8, 8), np.uint8)
    with paths["array"].open("wb") as stream:
        np.save(stream, pixels)
    with paths["arrays"].open("wb") as stream:
        np.savez(stream, images=pixels[None], labels=np.arange(1))
    Image.fromarray(pixels).save(paths["image"], "PNG")
    paths["result"].write_text(json.dumps({"schema": "soul-deploy/bench/1", "entries": []}))
    return paths


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    return make_files(tmp_path_factory.mktemp("kinds"))


def soul_deploy(*words: object) -> Result:
    return CliRunner().invoke(root, [str(word) for word in words])


def shown(path: Path) -> tuple[dict[str, Any], str]:
    """What `inspect` says, as JSON and as text."""
    results = [soul_deploy("inspect", path, *more) for more in (("--format", "json"), ())]
    for result in results:
        assert result.exit_code == 0, result.output
    return json.loads(results[0].stdout), results[1].stdout


EXPECTED: dict[str, tuple[str, dict[str, object], str]] = {
    "model": ("model", {"time_steps": 2}, "model file"),
    "event": ("event", {"time_steps": 2}, "event network"),
    "onnx": ("onnx", {"external_data": False}, "ONNX file"),
    "nir": ("nir", {"edges": 7}, "NIR graph"),
    "checkpoint": ("checkpoint", {"phase": "train", "arrays": 1, "values": 7}, "spikingvgg5"),
    "weights": ("weights", {"weights_at": "net", "values": 15, "why": None}, "in 'net'"),
    "legacy": ("weights", {"weights_at": "", "values": 15, "why": None}, "a legacy file"),
    "bare": ("weights", {"stored_as": "safetensors", "values": 15}, "3×1×2×2"),
    "array": ("array", {}, "uint8"),
    "arrays": ("arrays", {}, "images"),
    "image": ("image", {"format": "PNG", "size": [8, 8], "mode": "L"}, "8×8 pixels"),
    "result": ("result", {"of": "soul-deploy/bench/1"}, "entries"),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_inspect_describes_every_kind(files: Mapping[str, Path], name: str) -> None:
    kind, facts, text = EXPECTED[name]
    document, table = shown(files[name])
    assert (document["kind"], kind_of(files[name])) == (kind, kind)
    assert {key: document[key] for key in facts} == facts
    assert text in table and str(files[name]) in table


def test_what_stands_beside_weights_is_told(files: Mapping[str, Path]) -> None:
    document, table = shown(files["weights"])
    assert document["beside"] == {"epoch": "17", "args": "Namespace: T 6, tau 2.0"}
    assert document["tensors"][0] == {
        "name": "0.weight",
        "dtype": "float32",
        "shape": [3, 1, 2, 2],
        "values": 12,
    }
    assert "beside: args" in table and "Namespace: T 6, tau 2.0" in table


def test_a_nir_graph_of_another_tool(tmp_path: Path) -> None:
    nir = pytest.importorskip("nir")
    weight = np.ones((3, 4), np.float32)
    nodes = {
        "in": nir.Input({"input": np.array([4])}),
        "fc": nir.Linear(weight),
        "lif": nir.LIF(*(np.full(3, x, np.float32) for x in (0.02, 1, 0, 1.5))),
        "out": nir.Output({"output": np.array([3])}),
    }
    edges = [("in", "fc"), ("fc", "lif"), ("lif", "out")]
    nir.write(tmp_path / "theirs", nir.NIRGraph(nodes, edges))
    document, table = shown(tmp_path / "theirs")
    rows = {row["node"]: row for row in document["nodes"]}
    assert rows["fc"] == {
        "node": "fc",
        "operation": "Linear",
        "what": "weight 1",
        "inputs": ["in"],
        "parameters": 12,
        "nonzeros": 12,
    }
    assert "tau 0.02" in rows["lif"]["what"] and "v_threshold 1.5" in table


def test_an_onnx_file_of_another_tool_with_values_that_are_no_tensors(tmp_path: Path) -> None:
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    pieces = helper.make_sequence_type_proto(helper.make_tensor_type_proto(kind, ["n", 3]))
    graph = helper.make_graph(
        [helper.make_node("SequenceConstruct", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", kind, ["n", 3])],
        [helper.make_value_info("y", pieces)],
    )
    path = tmp_path / "theirs.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), str(path))
    document, _ = shown(path)
    assert document["outputs"] == [{"name": "y", "dtype": "sequence", "shape": []}]


def test_a_file_that_does_not_load_is_described_with_the_reason(tmp_path: Path) -> None:
    target = tmp_path / "ran"
    torch.save({"state_dict": STATE, "made by": Bomb(target)}, tmp_path / "x.pt")
    document, table = shown(tmp_path / "x.pt")
    assert document["foreign_names"] == ["posix.mkdir"]
    assert "does not load" in table and "objects whose code would run, posix.mkdir" in table
    torch.save(torch.nn.Sequential(torch.nn.Linear(2, 2)), tmp_path / "whole.pt")
    document, table = shown(tmp_path / "whole.pt")
    assert "a whole pickled network of class torch.nn.modules.container.Sequential" in table
    assert document["tensors"] == [] and not target.exists()


def test_without_the_package_one_line_says_so(
    files: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "nir", None)
    for words in (("inspect",), ("import", "nir")):
        result = soul_deploy(*words, files["nir"])
        assert result.exit_code == 2 and len(result.stderr.splitlines()) == 1, result.output
        assert "pip install nir" in result.stderr


WEIGHTS = ("weights", "model")
TAKING: dict[str, tuple[str, ...]] = {
    "export event FILE": ("model",),
    "export onnx FILE": ("model",),
    "export nir FILE": ("model",),
    "prune compact FILE": ("model",),
    "energy FILE --dataset_name digits": ("model",),
    "verify FILE EVENT --input random": ("model",),
    "verify MODEL FILE --input random": ("model", "event", "onnx", "nir"),
    "run FILE ARRAY": ("event", "model"),
    "run EVENT FILE": ("image", "array", "arrays"),
    "bench sparse --onnx FILE --input random --iterations 1 --no_fresh": ("onnx",),
    "import nir FILE -o FILE": ("nir",),
    "import nir FILE -o OUT": ("nir",),
    "import zoo spikingvgg5 --model_path FILE --input_shape 1,8,8 --classes 10 -o OUT": (
        "weights",
    ),
    "import torch torch.nn:Flatten --model_path FILE --input_shape 1,8,8 --classes 64 -o OUT": (
        WEIGHTS
    ),
    "prune structured --mode load --model_path FILE --dataset_name digits": WEIGHTS,
    "prune unstructured --model_path FILE --dataset_name digits": WEIGHTS,
    "train --resume FILE --dataset_name digits --model spikingvgg5 --hidden 2 -T 1": (
        "checkpoint",
    ),
    "bench sparse --model FILE --iterations 1 --no_fresh --engines pytorch-dense": (
        *("model", "event", "onnx"),
    ),
    "bench sparse --event EVENT --compare FILE": ("result",),
}


@pytest.mark.parametrize("line", TAKING)
def test_a_file_of_the_wrong_kind_is_named_and_who_takes_it(
    files: Mapping[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    monkeypatch.chdir(tmp_path)
    known = {"EVENT": files["event"], "MODEL": files["model"], "ARRAY": files["array"]}
    for kind in set(KINDS) - set(TAKING[line]):
        words = {**known, "OUT": tmp_path / "out", "FILE": files[kind]}
        result = soul_deploy(*(words.get(word, word) for word in line.split()))
        assert result.exit_code == 1, (kind, result.output)
        said = f"{files[kind]} is {KINDS[kind].what}, and "
        assert f"Error: {said}" in result.stderr and "is needed here; " in result.stderr, kind
        taken = KINDS[kind].taken.partition(" FILE")[0]
        assert taken in result.stderr and result.stdout == ""
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_model_file_says_what_makes_what_is_needed_of_it(files: Mapping[str, Path]) -> None:
    words = ("--model_path", files["model"], "--input_shape", "1 8 8", "--classes", 10, "-o", "x")
    result = soul_deploy("import", "zoo", "spikingvgg5", *words)
    assert "`soul-deploy export event '" in result.stderr


def test_kinds_are_told_by_content_alone(tmp_path: Path) -> None:
    for name, content in {
        "empty": b"",
        "text": b"these are words",
        "json": b'{"schema": "somebody/else/1"}',
        "pickle": pickle.dumps({"a": 1}),
        "header": (10).to_bytes(8, "little") + b'{"a": 1}  ',
        "archive": b"PK\x03\x04" + bytes(40),
        "numbers": bytes(range(256)),
    }.items():
        (tmp_path / name).write_bytes(content)
        assert kind_of(tmp_path / name) is None, name


def test_a_file_that_was_mistaken_for_another_by_its_suffix(
    files: Mapping[str, Path], tmp_path: Path
) -> None:
    path = tmp_path / "really an event network.onnx"
    path.write_bytes(files["event"].read_bytes())
    assert shown(path)[0]["kind"] == "event"
    result = soul_deploy("verify", files["model"], path, "--input", "random", "--samples", 2)
    assert result.exit_code == 0, result.output


def test_arrays_that_are_called_images_are_told_how_to_be_called(
    files: Mapping[str, Path], tmp_path: Path
) -> None:
    for kind, suffix in (("array", ".npy"), ("arrays", ".npz")):
        path = tmp_path / f"{kind}.png"
        path.write_bytes(files[kind].read_bytes())
        result = soul_deploy("run", files["event"], path)
        assert result.exit_code == 1
        said = f"{path} is {KINDS[kind].what}, not an image; let its name end in {suffix}"
        assert result.stderr == f"Error: {said}\n"


def npy(shape: tuple[int, ...], values: bytes) -> bytes:
    """A .npy file whose header says float32 of `shape`, whatever follows."""
    stream = io.BytesIO()
    header = {"descr": "<f4", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, header)
    return stream.getvalue() + values


@pytest.mark.parametrize(
    ("shape", "there", "declared"),
    [((3, 4), 47, "48"), ((2,), 0, "8"), ((10**6,) * 6, 8, f"{4 * 10**36:,}")],
)
@pytest.mark.parametrize("method", [None, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_an_array_that_is_cut_off_is_no_intact_one(
    shape: tuple[int, ...], there: int, declared: str, method: int | None, tmp_path: Path
) -> None:
    path, content = tmp_path / "x.npy", npy(shape, bytes(there))
    if method is None:
        path.write_bytes(content)
    else:
        with zipfile.ZipFile(path, "w", method) as archive:
            archive.writestr("frames.npy", content)
    result = soul_deploy("inspect", path)
    assert result.exit_code == 1 and result.stdout == ""
    place = str(path) if method is None else f"frames in {path}"
    assert f"{place} is cut off: its header declares {declared} bytes" in result.stderr
    assert f"and {there} are there" in result.stderr


@pytest.mark.parametrize("shape", [(), (0, 5), (3, 4)])
def test_a_whole_array_is_described(shape: tuple[int, ...], tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    path.write_bytes(npy(shape, bytes(4 * int(np.prod(shape)))))
    assert shown(path)[0]["arrays"] == [{"name": "", "dtype": "float32", "shape": list(shape)}]


def test_an_array_of_objects_is_described_though_its_bytes_cannot_be_counted(
    tmp_path: Path,
) -> None:
    path = tmp_path / "x.npy"
    np.save(path, np.array([None] * 100), allow_pickle=True)
    assert shown(path)[0]["arrays"][0]["dtype"] == "object"


def test_an_array_of_a_negative_shape_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.npy").write_bytes(npy((-1,), b""))
    result = soul_deploy("inspect", tmp_path / "x.npy")
    assert result.exit_code == 1 and "a shape of (-1,)" in result.stderr
