"""Model files: what goes in comes out, what is damaged or foreign is refused, nothing runs."""

import json
import os
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from soul_deploy.base.errors import FileFormatError, FileWriteError, MissingFileError, PathKindError
from soul_deploy.base.files import (
    METADATA_KEY,
    digest,
    read_tensors,
    write_atomically,
    write_tensors,
)
from soul_deploy.cli.main import root
from soul_deploy.ir import NeuronSpec
from soul_deploy.model.file import expected_shapes, load, load_state_dict, save
from soul_deploy.model.model import Model, ModelInfo, Normalization, Validity, arrays_of
from soul_deploy.nn.graph_module import GraphModule
from soul_deploy.zoo.registry import NetworkOptions, create


@pytest.fixture
def model() -> Model:
    torch.manual_seed(3)
    spec = NeuronSpec(family="plif", v_reset=-0.25, fire="ge", decay_input=False)
    network, graph = create("spikingvgg5", NetworkOptions((1, 12, 12), 10, spec, 3, hidden=8))
    info = ModelInfo(
        "masked",
        Normalization((0.1307,), (0.3081,)),
        tuple("0123456789"),
        {"seed": 2025, "accuracy": {"test": 0.98}},
        Validity(3, True),
    )
    masks = {"features.0.sn": np.arange(64) % 3 > 0}
    spikes = np.ones((128, 6, 6), bool)
    spikes[:, 0] = False
    return Model(graph, arrays_of(network.state_dict()), masks, info, {"features.2.sn": spikes})


@pytest.fixture
def path(model: Model, tmp_path: Path) -> Path:
    save(model, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def test_everything_comes_back(model: Model, path: Path) -> None:
    loaded = load(path)
    assert loaded.graph == model.graph and loaded.info == model.info
    for mine, theirs in (
        (loaded.state, model.state),
        (loaded.channel_masks, model.channel_masks),
        (loaded.neuron_masks, model.neuron_masks),
    ):
        assert set(mine) == set(theirs)
        for name in mine:
            np.testing.assert_array_equal(mine[name], theirs[name])
    x = torch.rand(2, 1, 12, 12)
    assert torch.equal(loaded.module()(x), model.module()(x))
    assert os.listdir(path.parent) == ["model.safetensors"]


def rewritten(path: Path, change: dict[str, object]) -> Path:
    """The file with some entries of its JSON changed, its tensors intact."""
    opened = read_tensors(path)
    document = json.loads(opened.metadata[METADATA_KEY])
    tensors = {name: array.copy() for name, array in opened.tensors.items()}
    for key, value in change.items():
        target = document
        *parents, last = key.split("/")
        for parent in parents:
            target = target[int(parent) if parent.isdigit() else parent]
        target[last] = value
    write_tensors(path, tensors, document)
    return path


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("format", "soul-deploy/model/9", "is of format 'soul-deploy/model/9'"),
        ("digest", "0" * 64, "do not match their digest"),
        ("graph/nodes/1/channels", 63, "needs \\(64, H, W\\)"),
        ("graph/nodes/1/channels", -1, "not an integer from 0"),
        ("graph/nodes/1/channels", 1 << 60, "not an integer from 0"),
        ("graph/nodes/1/stride", [0, 1], "stride \\(0, 1\\) must be two numbers from 1"),
        ("graph/nodes/1/inputs", ["nowhere"], "its input 'nowhere' comes later"),
        ("graph/nodes/1/op", "attention", "cannot be read"),
        ("graph/nodes/2/neuron/v_threshold", 0.0, "v_threshold 0.0 must be above 0"),
        ("graph/nodes/2/neuron/tau", 0.0, "init_tau 0.0 must be above 1"),
        ("graph/nodes/2/neuron/fire", "eq", "fire 'eq'; valid: gt"),
        ("graph/nodes/2/neuron/surprise", 1, "cannot be read"),
        ("graph/time_steps", 0, "time_steps 0 must be at least 1"),
        ("info/stage", "half", "stage 'half'"),
        ("info/validity", {}, "cannot be read"),
        ("graph", [], "cannot be read"),
    ],
)
def test_a_changed_description_is_refused(
    path: Path, key: str, value: object, message: str
) -> None:
    with pytest.raises(FileFormatError, match=message):
        load(rewritten(path, {key: value}))


def retensored(path: Path, name: str, array: np.ndarray | None) -> Path:
    """The file with one tensor replaced or dropped, its digest made to fit."""
    opened = read_tensors(path)
    tensors = {key: value.copy() for key, value in opened.tensors.items()}
    if array is None:
        del tensors[name]
    else:
        tensors[name] = array
    document = json.loads(opened.metadata[METADATA_KEY]) | {"digest": digest(tensors)}
    write_tensors(path, tensors, document)
    return path


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("weight:head.weight", np.full((10, 8), np.nan, np.float32), "not finite"),
        ("weight:head.weight", np.ones((10, 9), np.float32), "has shape"),
        ("weight:head.weight", None, "lacks weights head.weight"),
        ("weight:tail.weight", np.ones(3, np.float32), "has unknown weights tail.weight"),
        ("weight:head.weight", np.ones((10, 8), np.int16), "needs floating point"),
        ("weight:features.0.conv.1.running_var", -np.ones(64, np.float32), "negative variance"),
        ("channel_mask:features.0.sn", np.ones(63, bool), r"needs bool\(64,\)"),
        ("channel_mask:features.0.sn", np.ones(64, np.uint8), "is uint8"),
        ("channel_mask:features.1", np.ones(64, bool), "no layer of its graph"),
        ("neuron_mask:features.2.sn", np.ones((128, 6, 5), bool), r"needs bool\(128, 6, 6\)"),
    ],
)
def test_a_changed_tensor_is_refused(
    path: Path, name: str, array: np.ndarray | None, message: str
) -> None:
    with pytest.raises(FileFormatError, match=message):
        load(retensored(path, name, array))


def test_a_flipped_byte_is_found_by_the_digest(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    with pytest.raises(FileFormatError, match="do not match their digest"):
        load(path)


@pytest.mark.parametrize("size", [0, 4, 8, 100, 5000, -1])
def test_a_truncated_file_is_refused(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(FileFormatError, match="not an intact safetensors file"):
        load(path)


def test_an_absurd_header_is_refused_without_allocating(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[:8] = (1 << 60).to_bytes(8, "little")
    path.write_bytes(data)
    with pytest.raises(FileFormatError, match="not an intact safetensors file"):
        load(path)


def test_a_text_a_folder_and_nothing_are_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.safetensors").write_text("a text, not a model\n" * 50)
    with pytest.raises(FileFormatError, match="not an intact safetensors file"):
        load(tmp_path / "notes.safetensors")
    with pytest.raises(PathKindError, match="is not a file; it is a folder"):
        load(tmp_path)
    with pytest.raises(MissingFileError, match="no file at"):
        load(tmp_path / "nothing.safetensors")


class Bomb:
    """Unpickled, it would leave a file behind."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.target}",)

    def __init__(self, target: Path) -> None:
        self.target = target


@pytest.mark.parametrize("name", ["bomb.pt", "bomb.pth", "bomb.safetensors"])
def test_a_pickle_with_code_in_it_is_refused_and_does_not_run(tmp_path: Path, name: str) -> None:
    target = tmp_path / "ran"
    (tmp_path / name).write_bytes(pickle.dumps(Bomb(target)))
    with pytest.raises(FileFormatError):
        load_state_dict(tmp_path / name)
    torch.save({"model": Bomb(target)}, tmp_path / name)
    with pytest.raises(FileFormatError):
        load_state_dict(tmp_path / name)
    assert not target.exists()


def test_state_dicts_of_others_are_read(model: Model, path: Path, tmp_path: Path) -> None:
    state = {name: torch.from_numpy(np.array(a)) for name, a in model.state.items()}
    for content in (state, {"model": state, "epoch": 3}, {"state_dict": state}):
        torch.save(content, tmp_path / "theirs.pth")
        loaded = load_state_dict(tmp_path / "theirs.pth")
        assert set(loaded) == set(state)
    assert set(load_state_dict(path)) == set(state)
    torch.save([1, 2], tmp_path / "theirs.pth")
    with pytest.raises(FileFormatError, match="does not hold a state dict"):
        load_state_dict(tmp_path / "theirs.pth")


def test_a_failed_write_leaves_the_old_file_and_nothing_else(path: Path) -> None:
    before = path.read_bytes()

    def fail(temporary: Path) -> None:
        temporary.write_bytes(b"half")
        raise OSError("disk full")

    with pytest.raises(FileWriteError, match="cannot be written: disk full"):
        write_atomically(path, fail)
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == ["model.safetensors"]


def test_prune_compact_plans_removes_and_reports(model: Model, tmp_path: Path) -> None:
    source = tmp_path / "masked.safetensors"
    save(replace(model, neuron_masks={}), source)
    runner = CliRunner()
    planned = runner.invoke(root, ["prune", "compact", str(source), "--dry-run"])
    assert planned.exit_code == 0, planned.output
    assert "Removal plan" in planned.output and os.listdir(tmp_path) == ["masked.safetensors"]
    done = runner.invoke(root, ["prune", "compact", str(source), "--format", "json"])
    report = json.loads(done.stdout)
    assert report["schema"] == "soul-deploy/removal/1"
    assert len(report["layers"][0]["kept"]) == 42
    compact = load(Path(report["path"]))
    assert compact.graph.shapes["features.0.sn"][0] == 42
    assert len(str(compact.info.provenance["compacted_from_sha256"])) == 64
    x = torch.rand(2, 1, 12, 12)
    torch.testing.assert_close(compact.module()(x), load(source).module()(x), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("content", "code", "message"),
    [
        (None, 2, "no file at"),
        (b"a text", 1, "not an intact safetensors file"),
        (pickle.dumps({"a": 1}), 1, "not an intact safetensors file"),
    ],
)
def test_prune_compact_refuses_what_is_no_model(
    content: bytes | None, code: int, message: str, tmp_path: Path
) -> None:
    target = tmp_path / "given.safetensors"
    if content is not None:
        target.write_bytes(content)
    before = os.listdir(tmp_path)
    result = CliRunner().invoke(root, ["prune", "compact", str(target)])
    assert result.exit_code == code
    assert message in result.output
    assert os.listdir(tmp_path) == before


def test_bare_safetensors_are_told_from_model_files(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    save_file({"a": np.ones(3, np.float32)}, tmp_path / "bare.safetensors")
    with pytest.raises(FileFormatError, match="is a file of weights, and a model file is needed"):
        load(tmp_path / "bare.safetensors")


@pytest.mark.parametrize("name", ["spikingvgg5", "cifar10net", "sewresnet50", "msresnet18"])
def test_shapes_that_are_expected_are_those_of_the_module(name: str) -> None:
    options = NetworkOptions((1, 32, 32), 10, NeuronSpec("plif"), 2, hidden=8, width=4, groups=1)
    graph = create(name, options)[1]
    with torch.device("meta"):
        state = GraphModule(graph).state_dict()
    assert expected_shapes(graph) == {key: tuple(value.shape) for key, value in state.items()}


def test_equal_content_is_equal_bytes(tmp_path: Path) -> None:
    """safetensors stores metadata in random order; ours is put in order."""
    written = set()
    for i in range(12):
        write_tensors(tmp_path / f"{i}", {"a": np.arange(3, dtype=np.float32)}, {"name": "Straße"})
        assert read_tensors(tmp_path / f"{i}").description() == {"name": "Straße"}
        written.add((tmp_path / f"{i}").read_bytes())
    assert len(written) == 1


def test_mask_parameters_of_another_kind_are_refused(model: Model, tmp_path: Path) -> None:
    projection = model.graph.projections[0]
    shape = projection.weight_shape
    good, path = np.full(shape, 0.5, np.float32), tmp_path / "net.safetensors"
    save(replace(model, alphas={projection.name: good}), path)
    np.testing.assert_array_equal(load(path).alphas[projection.name], good)
    for alpha in (good.astype(np.float64), good[..., 0]):
        has, needed = f"{alpha.dtype}{alpha.shape}", f"float32{shape}"
        save(replace(model, alphas={projection.name: alpha}), path)
        with pytest.raises(FileFormatError) as caught:
            load(path)
        told = f"mask parameters of {projection.name} are {has}, need {needed}"
        assert str(caught.value) == f"{path}: {told}"
