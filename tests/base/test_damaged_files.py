"""What the fuzzer found, one case each: refused, by name."""

import gzip
import io
import json
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from deployed import small_model
from fuzz_targets import RULE, write_signed
from PIL import Image
from safetensors.numpy import save_file
from test_modelfile import model as model
from test_modelfile import path as path
from test_modelfile import retensored, rewritten

from soul_deploy.base.errors import (
    DataError,
    FileFormatError,
    UnsupportedGraphError,
    UsageError,
    ValidityError,
)
from soul_deploy.base.files import METADATA_KEY, digest, parse_json, read_tensors
from soul_deploy.data.datasets import _read_table
from soul_deploy.export.event.build import build_event_network
from soul_deploy.export.nir import package as nir_trial
from soul_deploy.export.nir.read import read_nir
from soul_deploy.export.onnx.model import export_onnx
from soul_deploy.export.onnx.reader import describe_onnx as describe_onnx
from soul_deploy.ir import NeuronSpec
from soul_deploy.model.file import load, load_state_dict, save
from soul_deploy.runtime.io.images import read_array, read_image
from soul_deploy.training.state import join_tree, optimizer_state, restore_optimizer, split_tree

DESCRIPTIONS: list[tuple[str, Any, str]] = [
    ("graph/nodes/1/groups", 0, "0 groups do not divide the channels"),
    ("graph/nodes/1/groups", 2, "2 groups do not divide the channels"),
    ("graph/nodes/1/bias", 1, "bias 1 is not a truth"),
    ("graph/nodes/1/kernel", 3, "kernel 3 is not a list"),
    ("graph/nodes/1/kernel", [3, 3, 3], "kernel .* must be two numbers from 1"),
    ("graph/nodes/1/inputs", "input", "inputs 'input' are not names"),
    ("graph/nodes/1/inputs", ["input", "input"], "convolution of 2 inputs"),
    ("graph/nodes/0/shape", [1, 12], r"neither \(C, H, W\) nor \(N,\)"),
    ("graph/nodes/0/shape", [1, 0, 12], r"neither \(C, H, W\) nor \(N,\)"),
    ("graph/nodes/1/norm/eps", -1.0, "batch norm with eps -1.0"),
    ("graph/nodes/1/norm/name", "head", "names are in each other's way|cannot be used|lacks"),
    ("graph/nodes/2/neuron/v_threshold", 1e-60, "v_threshold 1e-60 must be above 0"),
    ("graph/nodes/2/neuron/v_threshold", float("inf"), "must be finite in float32"),
    ("graph/nodes/2/neuron/tau", float("nan"), "must be finite in float32"),
    ("info/classes", "abcdefghij", "classes 'abcdefghij' are not names"),
    ("info/classes", ["a"], "1 names for 10 classes"),
    ("info/validity/reset_per_sample", "no", "reset_per_sample 'no'"),
    ("info/validity/time_steps", True, "validity for T = True"),
    ("info/validity/time_steps", 9, "valid for T = 9, but T = 3"),
    ("info/normalization/std", [0.0], "std above 0"),
    ("info/normalization/mean", [float("nan")], "not finite numbers"),
    ("info/normalization/mean", "0", "not finite numbers"),
]


@pytest.mark.parametrize(("key", "value", "message"), DESCRIPTIONS)
def test_descriptions(path: Path, key: str, value: object, message: str) -> None:
    with pytest.raises(FileFormatError, match=message):
        load(rewritten(path, {key: value}))


@pytest.mark.parametrize("name", ["forward", "training", "graph", "a..b", ""])
def test_a_name_that_a_module_has_already(path: Path, name: str) -> None:
    opened = read_tensors(path)
    text = opened.metadata[METADATA_KEY].replace('"head"', json.dumps(name))
    document = json.loads(text)
    tensors = {k.replace("head.", f"{name}."): np.array(v) for k, v in opened.tensors.items()}
    write_signed(path, tensors, json.dumps(document | {"digest": digest(tensors)}))
    with pytest.raises(FileFormatError, match=r"names cannot be used|in each other's way"):
        load(path)


def test_a_changed_description_is_seen(path: Path) -> None:
    """The digest of the arrays does not cover v_threshold; the description's checksum does."""
    data = path.read_bytes()
    assert data.count(b'\\"v_threshold\\": 1.0') > 1
    path.write_bytes(data.replace(b'\\"v_threshold\\": 1.0', b'\\"v_threshold\\": 2.0', 1))
    with pytest.raises(FileFormatError, match="does not match its checksum"):
        load(path)


def test_tensors_of_another_kind(path: Path) -> None:
    head = np.ones((10, 8), np.int32)
    with pytest.raises(FileFormatError, match=r"head\.weight is int32, the network needs floating"):
        load(retensored(path, "weight:head.weight", head))


def test_tensors_that_belong_to_nothing(path: Path) -> None:
    with pytest.raises(FileFormatError, match="belong to nothing: stray"):
        load(retensored(path, "stray", np.ones(2, np.float32)))


@pytest.mark.parametrize("shape", [[0, 2**62, 2**62], [1] * 65 + [0]])
def test_shapes_that_no_array_has(tmp_path: Path, shape: list[int]) -> None:
    file = tmp_path / "x.safetensors"
    header = json.dumps({"a": {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]}}).encode()
    file.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(FileFormatError, match=r"cannot be mapped|not an intact safetensors"):
        read_tensors(file)


@pytest.mark.parametrize("text", ["9" * 5000, "[" * 10**5, "{", '"\\ud8'])
def test_json_that_is_none(text: str) -> None:
    with pytest.raises(FileFormatError, match=r"^here is not JSON"):
        parse_json(text, "here")


def test_numbers_that_neurons_cannot_have() -> None:
    for numbers in ({"tau": float("inf")}, {"surrogate_alpha": 1e40}, {"v_reset": float("-inf")}):
        with pytest.raises(UsageError, match="must be finite in float32"):
            NeuronSpec(**numbers)  # type: ignore[arg-type]


def saved(folder: Path, state: Any) -> Path:
    file = folder / "weights.pt"
    torch.save(state, file)
    return file


def test_a_tensor_that_repeats_its_storage(tmp_path: Path) -> None:
    """A file of 1 kB could claim any size this way."""
    with pytest.raises(FileFormatError, match=r"a claims \(1099511627776,\), more values than"):
        load_state_dict(saved(tmp_path, {"a": torch.zeros(1).expand(1 << 40)}))


def test_tensors_that_are_not_plain(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match="a is no plain tensor"):
        load_state_dict(saved(tmp_path, {"a": torch.zeros(2, dtype=torch.complex64)}))


def test_weights_that_are_not_finite(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match="a holds values that are not finite"):
        load_state_dict(saved(tmp_path, {"a": torch.tensor([1.0, float("nan")])}))


def test_half_precision_becomes_float32(tmp_path: Path) -> None:
    found = load_state_dict(saved(tmp_path, {"a": torch.tensor([0.5], dtype=torch.bfloat16)}))
    assert found["a"].dtype == np.float32
    assert found["a"] == 0.5


def test_an_archive_that_unpacks_to_more_is_not_opened(tmp_path: Path) -> None:
    file = saved(tmp_path, {"a": torch.zeros(1 << 20)})
    packed = tmp_path / "packed.pt"
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
    assert packed.stat().st_size < file.stat().st_size / 100
    with pytest.raises(FileFormatError, match="unpacks to more than it holds; it was not opened"):
        load_state_dict(packed)


def image_file(folder: Path, kind: str, size: tuple[int, int]) -> Path:
    file = folder / f"image.{kind.lower()}"
    Image.new("RGB", size).save(file, kind)
    return file


def test_an_image_is_measured_before_it_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = image_file(tmp_path, "PNG", (6000, 6000))
    monkeypatch.setattr(Image.Image, "convert", lambda *_: pytest.fail("decoded"))
    with pytest.raises(FileFormatError, match=r"\(6000, 6000\) is more than 33554432 pixels"):
        read_image(file, RULE)
    strict = type(RULE)(RULE.shape, RULE.time_steps)
    with pytest.raises(ValidityError, match="6000×6000 pixels"):
        read_image(file, strict)


def test_formats_that_run_programs_are_not_opened(tmp_path: Path) -> None:
    file = image_file(tmp_path, "EPS", (10, 8))
    with pytest.raises(FileFormatError, match="readable: PNG, JPEG, BMP"):
        read_image(file, RULE)


def test_an_array_header_that_is_no_literal(tmp_path: Path) -> None:
    file = tmp_path / "x.npy"
    np.save(file, np.zeros((3, 8, 10), np.float32))
    file.write_bytes(file.read_bytes().replace(b"}", b"(", 1))
    with pytest.raises(FileFormatError, match=r"not a .npy file of numbers"):
        read_array(file, RULE)


def test_tables_that_are_empty_or_unpack_without_end(tmp_path: Path) -> None:
    file = tmp_path / "table.csv.gz"
    for content in (b"", b"\n", b"1," * 10**6):
        file.write_bytes(gzip.compress(content))
        with pytest.raises(DataError, match="it is empty or too long"):
            _read_table(file, (4, 3))


def test_onnx_names_that_are_no_text(tmp_path: Path) -> None:
    file = tmp_path / "net.onnx"
    export_onnx(small_model(), file)
    network = onnx.load(file)
    network.metadata_props.add(key="marker", value="x")
    data = network.SerializeToString()
    assert data.count(b"marker") == 1
    file.write_bytes(data.replace(b"marker", b"m\xffrker"))
    with pytest.raises(FileFormatError, match=r"net.onnx"):
        describe_onnx(file)


def hdf5(folder: Path, **arrays: Any) -> Path:
    h5py = pytest.importorskip("h5py")
    file = folder / "x.nir"
    with h5py.File(file, "w") as opened:
        for name, options in arrays.items():
            opened.create_dataset(name, **options)
    return file


def test_hdf5_arrays_that_were_never_written(tmp_path: Path) -> None:
    file = hdf5(tmp_path, a={"shape": (1 << 40,), "dtype": "f4", "chunks": (1024,)})
    with pytest.raises(FileFormatError, match=r"announces 4,398,046,511,104 bytes of arrays in"):
        read_nir(file)


def test_a_library_that_does_not_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = hdf5(tmp_path, a={"data": np.zeros(3)})
    with pytest.raises(FileFormatError, match=r"did not finish within 0.01 s"):
        nir_trial.try_reading(file, 0.01)
    with pytest.raises(FileFormatError, match="is not an intact NIR file"):
        nir_trial.try_reading(file)
    monkeypatch.setattr("sys.executable", "/bin/false")
    with pytest.raises(FileFormatError, match="it ended with 1"):
        nir_trial.try_reading(file)


def test_bare_weights_are_read_too(tmp_path: Path) -> None:
    file = tmp_path / "bare.safetensors"
    save_file({"a": np.ones(2, np.float32)}, file)
    assert list(load_state_dict(file)) == ["a"]
    buffer = io.BytesIO()
    torch.save({"a": torch.ones(2)}, buffer, _use_new_zipfile_serialization=False)
    file.with_suffix(".pth").write_bytes(buffer.getvalue())
    assert list(load_state_dict(file.with_suffix(".pth"))) == ["a"]


def test_a_model_file_is_still_read(path: Path) -> None:
    save(load(path), path)
    assert load(path).info.classes == tuple("0123456789")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda moments: moments["1"].pop("step"), "parameter 1 has the moments"),
        (
            lambda moments: moments["1"].update(max_exp_avg_sq=moments["1"]["exp_avg"]),
            "parameter 1 has the moments .*max_exp_avg_sq",
        ),
        (lambda moments: [m.pop("exp_avg") for m in moments.values()], "has the moments"),
        (lambda moments: moments["1"].update(exp_avg=np.zeros((), np.float32)), "exp_avg is"),
        (
            lambda moments: moments["1"].update(step=np.float32(-1) * np.ones(())),
            "step -1.0 is below 0",
        ),
    ],
)
def test_an_optimizer_without_some_of_its_moments(change: Any, message: str) -> None:
    module = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(module.parameters())
    module(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    tree = join_tree(*split_tree(optimizer_state(optimizer)))
    restore_optimizer(optimizer, tree)
    change(tree["moments"])
    with pytest.raises(FileFormatError, match=message):
        restore_optimizer(optimizer, tree)


def test_weights_that_leave_float32_when_folded() -> None:
    found = small_model()
    state = {name: array.copy() for name, array in found.state.items()}
    name = found.graph.projections[0].norm
    assert name is not None
    state[f"{name.name}.running_mean"][:] = 3e38
    state[f"{name.name}.weight"][:] = 10
    with pytest.raises(UnsupportedGraphError, match="weights or bias leave float32"):
        build_event_network(replace(found, state=state))
