"""What numbers given to a network mean: one rule, at every door, by the kind that files record."""

import copy
import json
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from deployed import NORM, SHAPE, STEPS, make_files, random_pixels, small_model
from PIL import Image
from torch import nn

from soul_deploy import GraphModule, from_torch, load, save
from soul_deploy.base import Array
from soul_deploy.base.errors import (
    FileFormatError,
    NetworkWarning,
    UnknownNameError,
    UsageError,
    ValidityError,
)
from soul_deploy.base.files import read_tensors, write_tensors
from soul_deploy.base.pixel_rule import INPUT_KINDS, InputKind
from soul_deploy.cli.main import root
from soul_deploy.data.datasets import load_data
from soul_deploy.export.event.build import build_event_network, export_event
from soul_deploy.export.nir.read import import_nir, read_nir
from soul_deploy.export.nir.write import build_nir, export_nir
from soul_deploy.export.onnx.model import export_onnx
from soul_deploy.export.onnx.step import export_step
from soul_deploy.ir import NeuronSpec
from soul_deploy.model.model import Model, ModelInfo, Normalization
from soul_deploy.nn import layers
from soul_deploy.nn.neuron import SpikingNeuron
from soul_deploy.runtime.bench.inputs import common_rule, facts_of
from soul_deploy.runtime.bench.scipy_engine import ScipyEngine
from soul_deploy.runtime.engine.network import Network
from soul_deploy.runtime.engine.network import load as load_network
from soul_deploy.runtime.format.file import load_event_network
from soul_deploy.runtime.io.inputs import dataset_samples
from soul_deploy.runtime.ops.counted_run import count, count_layer, count_recorded, count_run

Made = dict[str, Path]
OTHERS: tuple[InputKind, ...] = ("counts", "spikes", "values")


def of_kind(kind: InputKind) -> Model:
    model = small_model()
    norm = model.info.normalization if kind == "images" else None
    return replace(model, info=replace(model.info, input_kind=kind, normalization=norm))


def network_of(kind: InputKind = "images", threads: int = 1) -> Network:
    return Network(build_event_network(of_kind(kind)), threads)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A model, an event and an ONNX file of each kind, as KIND.model, KIND.event, KIND.onnx."""
    folder, paths = tmp_path_factory.mktemp("kinds"), {}
    for kind in INPUT_KINDS:
        paths[f"{kind}.model"] = folder / f"{kind}.safetensors"
        paths[f"{kind}.event"] = folder / f"{kind}.event.safetensors"
        paths[f"{kind}.onnx"] = folder / f"{kind}.onnx"
        save(of_kind(kind), paths[f"{kind}.model"])
        export_event(of_kind(kind), paths[f"{kind}.event"])
        export_onnx(of_kind(kind), paths[f"{kind}.onnx"])
    return paths


def soul_deploy(*words: object) -> Result:
    return CliRunner().invoke(root, [str(word) for word in words])


def printed(*words: object) -> str:
    result = soul_deploy(*words)
    assert result.exit_code == 0, result.output
    return result.stdout


def by_hand(pixels: Array) -> Array:
    """(pixel / 255 - mean) / std, from the definition."""
    mean, std = (np.array(v, np.float32).reshape(3, 1, 1) for v in (NORM.mean, NORM.std))
    found: Array = (pixels.astype(np.float32) / np.float32(255) - mean) / std
    return found


def saved(folder: Path, array: Array, name: str = "x.npy") -> Path:
    np.save(folder / name, array)
    return folder / name


def scores(*words: object) -> Array:
    found = json.loads(printed("run", *words, "--top", 4, "--format", "json"))
    rows = [sorted(row["top"], key=lambda entry: entry["index"]) for row in found["results"]]
    return np.array([[entry["score"] for entry in row] for row in rows], np.float32)


RUNS: dict[str, Callable[[Network, Array], Any]] = {
    "run": lambda net, x: net.run(x),
    "recorded": lambda net, x: net.run_recorded(x).logits,
    "spikes": lambda net, x: next(iter(net.run_recorded(x).spikes.values())),
    "count": lambda net, x: count(net, x),
    "executed": lambda net, x: count_recorded(net, x)[1],
    "counted": lambda net, x: count_recorded(net, x)[:2],
    "count_run": lambda net, x: count_run(net, x).counts,
    "step": lambda net, x: net.step(x),
    "steps": lambda net, x: [net.step(x), net.step(x), net.step()][-1],
    "run_layer": lambda net, x: net.run_layer(net.events.layers[0].name, x),
    "count_layer": lambda net, x: count_layer(net, net.events.layers[0].name, x),
    "values": lambda net, x: net.input_values(x),
    "one": lambda net, x: net.run(x[:1]),
}


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
@pytest.mark.parametrize("threads", [1, 2])
def test_uint8_images_are_pixels_everywhere(
    run: Callable[[Network, Array], Any], threads: int
) -> None:
    pixels = random_pixels(3)
    found, want = (run(network_of(threads=threads), x) for x in (pixels, by_hand(pixels)))
    as_numbers = run(network_of("values"), pixels)
    if isinstance(want, np.ndarray):
        np.testing.assert_array_equal(found, want)
        assert not np.array_equal(found, as_numbers)
    else:
        assert found == want != as_numbers


def test_sequences_of_pixels_are_normalised_too() -> None:
    pixels = np.stack([random_pixels(2, seed) for seed in range(STEPS)])
    network = network_of()
    np.testing.assert_array_equal(network.run(pixels), network.run(by_hand(pixels)))
    np.testing.assert_array_equal(network.normalise(pixels), by_hand(pixels))
    counted = count_run(network, pixels)
    assert counted.counts == count_run(network, by_hand(pixels)).counts


def test_a_pooling_of_the_input_counts_what_it_is_given() -> None:
    """A black pixel is 0, but no 0 when normalised."""
    network = nn.Sequential(
        nn.MaxPool2d(2), layers.Conv2d(3, 4, 3), SpikingNeuron(NeuronSpec(), STEPS),
        layers.Flatten(), layers.RateReadout(4 * 2 * 3, 2),
    )  # fmt: skip
    model = from_torch(network, SHAPE, STEPS, example=3 * torch.randn(2, *SHAPE))
    model = replace(model, info=ModelInfo(normalization=NORM))
    events, pixels = build_event_network(model), random_pixels(2)
    pixels[pixels < 99] = 0
    found = count_run(Network(events, 1), pixels)
    assert found.counts == count_run(Network(events, 1), by_hand(pixels)).counts
    pool_ops = found.counts[events.layers[0].name].pool_ops
    assert pool_ops == np.count_nonzero(by_hand(pixels)) > np.count_nonzero(pixels)


def test_the_function_and_the_command_agree_on_pixels(made: Made, tmp_path: Path) -> None:
    pixels = random_pixels(4)
    images = []
    for index, image in enumerate(pixels):
        images.append(tmp_path / f"{index}.png")
        Image.fromarray(np.moveaxis(image, 0, -1)).save(images[-1])
    network = load_network(made["images.event"])
    want = network.run(pixels)
    for given in ([saved(tmp_path, pixels)], images, [saved(tmp_path, by_hand(pixels), "f.npy")]):
        np.testing.assert_array_equal(scores(made["images.event"], *given), want)
    with torch.no_grad():
        golden = load(made["images.model"]).module()(torch.from_numpy(by_hand(pixels)))
    np.testing.assert_allclose(want, golden.numpy(), atol=1e-5)
    engine = ScipyEngine(made["images.event"], 1)
    engine.load()
    np.testing.assert_allclose(engine.infer(pixels), want, atol=1e-5)


def test_without_a_normalisation_pixels_are_scaled_to_one() -> None:
    model = small_model()
    model = replace(model, info=replace(model.info, normalization=None))
    network, pixels = Network(build_event_network(model), 1), random_pixels(2)
    np.testing.assert_array_equal(
        network.run(pixels), network.run(pixels.astype(np.float32) / np.float32(255))
    )


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floating_point_images_are_taken_as_they_are(dtype: Any) -> None:
    x = by_hand(random_pixels(2)).astype(dtype)
    network = network_of()
    np.testing.assert_array_equal(network.input_values(x), x.astype(np.float32))
    np.testing.assert_array_equal(network.run(x), network.run(x.astype(np.float32)))


@pytest.mark.parametrize(
    "dtype", [np.bool_, np.int8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64]
)
def test_other_integers_are_no_images(made: Made, tmp_path: Path, dtype: Any) -> None:
    x = np.ones((2, *SHAPE), dtype)
    text = f"holds {np.dtype(dtype)}; needed: floating-point values (normalised) or uint8 pixels"
    network = network_of()
    for run in RUNS.values():
        with pytest.raises(ValidityError) as caught:
            run(network, x)
        assert text in str(caught.value)
    result = soul_deploy("run", made["images.event"], saved(tmp_path, x))
    assert result.exit_code == 2 and text in result.stderr and result.stdout == ""
    with pytest.raises(ValidityError, match=r"needed: floating-point values"):
        network.run(x.astype(int).tolist())


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.bool_, np.int8, np.float64])
def test_other_kinds_take_numbers_as_they_are(
    made: Made, tmp_path: Path, kind: InputKind, dtype: Any
) -> None:
    drawn = np.random.default_rng(1).integers(0, 2 if kind == "spikes" else 9, (2, *SHAPE))
    x = drawn.astype(dtype)
    network, want = network_of(kind), network_of("values").run(x.astype(np.float32))
    np.testing.assert_array_equal(network.run(x), want)
    np.testing.assert_array_equal(count_recorded(network, x)[2].logits, want)
    np.testing.assert_array_equal(scores(made[f"{kind}.event"], saved(tmp_path, x)), want)


@pytest.mark.parametrize("kind", OTHERS)
def test_only_images_are_normalised(made: Made, tmp_path: Path, kind: InputKind) -> None:
    with pytest.raises(UsageError, match=f"takes {kind}, which are not normalised"):
        network_of(kind).normalise(random_pixels(1))
    Image.fromarray(np.moveaxis(random_pixels(1)[0], 0, -1)).save(tmp_path / "x.png")
    result = soul_deploy("run", made[f"{kind}.event"], tmp_path / "x.png")
    assert result.exit_code == 2 and f"takes {kind}, not images" in result.stderr


def test_what_normalise_takes() -> None:
    network = network_of()
    (one,) = random_pixels(1)
    np.testing.assert_array_equal(network.normalise(one), by_hand(one))
    with pytest.raises(ValidityError, match="float32 given to normalise; pixels are uint8"):
        network.normalise(by_hand(one))
    with pytest.raises(ValidityError, match=r"pixels of \(8, 10, 3\) given; this network takes"):
        network.normalise(np.moveaxis(one, 0, -1))


def heard(network: Network, *given: Array) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for x in given:
            network.run(x)
    assert all(isinstance(item.message, NetworkWarning) for item in caught)
    assert all(item.filename == __file__ for item in caught)
    return [str(item.message) for item in caught]


def test_floats_that_look_like_pixels_are_warned_about_once() -> None:
    pixels = random_pixels(4).astype(np.float32)
    network = network_of()
    (text,) = heard(network, pixels, pixels, pixels / 2)
    assert "look like pixels that nobody normalised" in text
    assert "pixels reach from -2.5 to 2.5" in text
    assert heard(network, pixels) == []
    assert len(heard(network_of(), pixels / 40)) == 1
    assert len(heard(copy.deepcopy(network_of()), pixels.astype(np.float16))) == 1
    with pytest.warns(NetworkWarning, match="look like pixels"):
        network_of().step(pixels)
    with pytest.warns(NetworkWarning, match="look like pixels"):
        count(network_of(), pixels)


def with_norm(mean: tuple[float, ...], std: tuple[float, ...]) -> Network:
    model = small_model()
    info = replace(model.info, normalization=Normalization(mean, std))
    return Network(build_event_network(replace(model, info=info)), 1)


def test_nothing_else_is_warned_about() -> None:
    pixels = random_pixels(4)
    floats = pixels.astype(np.float32)
    assert heard(network_of(), pixels, by_hand(pixels), by_hand(pixels).astype(np.float64)) == []
    assert heard(network_of(), np.zeros((1, *SHAPE), np.float32), -floats) == []
    white = np.full((1, *SHAPE), 255, np.uint8)
    assert heard(network_of(), by_hand(white), by_hand(white).astype(np.float64) + 1e-6) == []
    assert heard(network_of(), floats / 255, 10 * floats) == []  # may be bright; no pixels
    assert heard(network_of("values"), floats) == []
    assert heard(with_norm((0.0,), (1 / 255,)), floats) == []  # it takes 0 to 255 indeed
    assert heard(with_norm((0.0,), (1.0,)), floats / 255) == []  # and this one 0 to 1
    plain = small_model()
    plain = replace(plain, info=replace(plain.info, normalization=None))
    assert heard(Network(build_event_network(plain), 1), floats) == []
    network = network_of()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        network.warm_up(stream=True)


def test_commands_say_so_in_one_line(made: Made, tmp_path: Path) -> None:
    floats = random_pixels(4).astype(np.float32)
    paths = [saved(tmp_path, floats, "a.npy"), saved(tmp_path, floats, "b.npy")]
    for words in (
        ("run", made["images.event"], *paths),
        ("run", made["images.event"], paths[0], "--stream"),
        ("run", made["images.event"], paths[0], "--counts"),
        (
            *("bench", "sparse", "--event", made["images.event"], "--onnx", made["images.onnx"]),
            *("--input", paths[0], "--iterations", 1, "--warmup", 0, "--no_fresh"),
        ),
    ):
        result = soul_deploy(*words)
        assert result.exit_code == 0, result.output
        lines = [line for line in result.stderr.splitlines() if "look like pixels" in line]
        assert len(lines) == 1 and lines[0].startswith("Warning: floating-point values were given")
    assert "look like" not in soul_deploy("run", made["values.event"], *paths).output


@pytest.mark.parametrize("kind", INPUT_KINDS)
def test_every_file_records_the_kind(made: Made, tmp_path: Path, kind: InputKind) -> None:
    model = load(made[f"{kind}.model"])
    assert model.info == of_kind(kind).info and model.info.input_kind == kind
    assert load_event_network(made[f"{kind}.event"]).input_kind == kind
    export_step(of_kind(kind), tmp_path / "step.onnx")
    for path in (made[f"{kind}.onnx"], tmp_path / "step.onnx"):
        found = json.loads(printed("inspect", path, "--format", "json"))
        assert found["metadata"]["input_kind"] == kind
        assert any(
            line.split() == ["input_kind", kind] for line in printed("inspect", path).splitlines()
        )
    for path in (made[f"{kind}.model"], made[f"{kind}.event"]):
        assert json.loads(printed("inspect", path, "--format", "json"))["input_kind"] == kind
        shown = "images, normalised: (pixel" if kind == "images" else f"{kind}, as they are"
        assert f"3×8×10, {shown}" in printed("inspect", path)


@pytest.mark.parametrize("kind", INPUT_KINDS)
def test_what_is_exported_is_verified_on_numbers_of_its_kind(
    made: Made, tmp_path: Path, kind: InputKind
) -> None:
    words = ("--input", "random", "--samples", 4)
    for file in ("event", "onnx"):
        text = printed("verify", made[f"{kind}.model"], made[f"{kind}.{file}"], *words)
        assert f"4 random {kind}, seed 2025" in text
        printed("export", file, made[f"{kind}.model"], "-o", tmp_path / "out", *words)
    other = made["values.event" if kind != "values" else "counts.event"]
    result = soul_deploy("verify", made[f"{kind}.model"], other, *words)
    assert (
        result.exit_code == 1
        and f"the kind of input is {load_network(other).events.input_kind}" in (result.output)
    )
    result = soul_deploy(
        "verify",
        made[f"{kind}.model"],
        other.parent / ("values.onnx" if kind != "values" else "counts.onnx"),
        *words,
    )
    assert result.exit_code == 1 and "metadata input_kind is" in result.output


def without_kind(path: Path, target: Path, kind: object = None) -> Path:
    """The file as it was written before kinds were recorded, or with another kind."""
    opened = read_tensors(path)
    document = json.loads(json.dumps(opened.description()))
    owner = document.get("info", document)
    del owner["input_kind"]
    if kind is not None:
        owner["input_kind"] = kind
    write_tensors(target, dict(opened.tensors), document)
    return target


def test_older_files_are_images(made: Made, tmp_path: Path) -> None:
    model = without_kind(made["images.model"], tmp_path / "old.safetensors")
    event = without_kind(made["images.event"], tmp_path / "old.event.safetensors")
    assert load(model).info == of_kind("images").info
    network, pixels = load_network(event), random_pixels(2)
    assert network.events.input_kind == "images"
    np.testing.assert_array_equal(
        network.run(pixels), load_network(made["images.event"]).run(pixels)
    )
    words = ("--input", "random", "--samples", 2)
    assert "Verified: yes" in printed("verify", model, event, *words)
    for path in (model, event):
        assert "images, normalised" in printed("inspect", path)
    assert printed("bench", "sparse", "--event", event, "--iterations", 1, "--no_fresh")


def test_a_kind_that_is_none_is_refused(made: Made, tmp_path: Path) -> None:
    target = tmp_path / "bad.safetensors"
    for kind in ("pictures", 3, ["images"]):
        with pytest.raises(FileFormatError, match="input_kind"):
            load(without_kind(made["images.model"], target, kind))
        with pytest.raises(FileFormatError, match="input kind"):
            load_event_network(without_kind(made["images.event"], target, kind))
    with pytest.raises(FileFormatError, match="a normalization of pixels for an input of counts"):
        load(without_kind(made["images.model"], target, "counts"))
    with pytest.raises(FileFormatError, match="a normalisation of pixels for an input of counts"):
        load_event_network(without_kind(made["images.event"], target, "counts"))


def test_a_normalisation_has_the_inputs_channels() -> None:
    events = build_event_network(small_model())
    norm = replace(events.normalization, mean=(0.1, 0.2), std=(1.0, 1.0))  # type: ignore[type-var]
    with pytest.raises(FileFormatError, match="normalisation of 2 channels for"):
        replace(events, normalization=norm)


def plain_network(time_steps: int = 2) -> nn.Module:
    torch.manual_seed(0)
    network = nn.Sequential(
        layers.Conv2d(1, 4, 3, padding=1),
        SpikingNeuron(NeuronSpec(), time_steps),
        layers.Flatten(),
        layers.RateReadout(4 * 16, 3),
    )
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(3)
    return network


@pytest.mark.parametrize("kind", INPUT_KINDS)
def test_from_torch_is_told_the_kind(kind: InputKind) -> None:
    x = torch.rand(2, 1, 4, 4) * 8
    model = from_torch(plain_network(), (1, 4, 4), 2, example=x, input_kind=kind)
    assert model.info.input_kind == kind
    network = Network(build_event_network(model), 1)
    most = 1 if kind == "spikes" else 8
    counts = np.random.default_rng(0).integers(0, most + 1, (2, 1, 4, 4)).astype(np.uint8)
    divisor = np.float32(255 if kind == "images" else 1)
    want = network.run(counts.astype(np.float32) / divisor)
    np.testing.assert_array_equal(network.run(counts), want)


def test_pytorch_gets_floating_point_numbers_only() -> None:
    pixels = torch.zeros(2, 1, 4, 4, dtype=torch.uint8)
    with pytest.raises(
        ValidityError, match=r"an input of torch\.uint8 given; PyTorch modules take"
    ):
        from_torch(plain_network(), (1, 4, 4), 2, example=pixels)
    module = from_torch(plain_network(), (1, 4, 4), 2, example=torch.rand(2, 1, 4, 4) * 8)
    for dtype in (torch.uint8, torch.int64, torch.bool):
        for run in (GraphModule.forward, GraphModule.record, GraphModule.per_step):
            with pytest.raises(ValidityError, match="normalise pixels first"):
                run(module.module(), pixels.to(dtype))
    with pytest.raises(UnknownNameError, match="unknown input kind 'pictures'; valid: images"):
        from_torch(plain_network(), (1, 4, 4), 2, input_kind="pictures")  # type: ignore[arg-type]


def test_import_torch_records_the_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    source = (
        "import torch\nfrom torch import nn\nfrom soul_deploy import layers\n"
        "from soul_deploy.ir import NeuronSpec\n"
        "from soul_deploy.nn.neuron import SpikingNeuron\n\n\n"
        "def make(classes, input_shape, time_steps):\n    torch.manual_seed(0)\n"
        "    c, h, w = input_shape\n"
        "    return nn.Sequential(layers.Conv2d(c, 4, 3, padding=1),\n"
        "        SpikingNeuron(NeuronSpec(), time_steps), layers.Flatten(),\n"
        "        layers.RateReadout(4 * h * w, classes))\n"
    )
    (tmp_path / "kindnets.py").write_text(source)
    start = ("import", "torch", "kindnets:make", "-T", 2, "-o", "net.safetensors")
    sized = (*start, "--input_shape", "1 8 8", "--classes", 10)
    for words, kind in (
        (sized, "images"),
        ((*sized, "--input_kind", "counts"), "counts"),
        ((*start, "--dataset_name", "digits"), "images"),
        ((*start, "--dataset_name", "digits", "--input_kind", "images"), "images"),
    ):
        printed(*words)
        assert load(tmp_path / "net.safetensors").info.input_kind == kind
    result = soul_deploy(*start, "--dataset_name", "digits", "--input_kind", "counts")
    assert result.exit_code == 2
    assert "takes counts, but data set 'digits' holds images" in result.stderr
    assert soul_deploy(*sized, "--input_kind", "pictures").exit_code == 2
    printed(*sized, "--input_kind", "counts")
    for command in ("energy net.safetensors", "verify net.safetensors net.event.safetensors"):
        if command.startswith("verify"):
            printed("export", "event", "net.safetensors", "--input", "random")
        result = soul_deploy(*command.split(), "--dataset_name", "digits")
        assert result.exit_code == 2
        assert "the model takes counts, but data set 'digits' holds images" in result.stderr
    result = soul_deploy(
        *("bench", "sparse", "--event", "net.event.safetensors", "--input", "digits")
    )
    assert result.exit_code == 2 and "holds images, the networks take counts" in result.stderr
    counts = np.random.default_rng(0).integers(0, 9, (2, 1, 8, 8))
    found = scores("net.event.safetensors", saved(tmp_path, counts))
    assert found.shape[0] == 2


def test_import_nir_records_the_kind(tmp_path: Path) -> None:
    spec = replace(NeuronSpec(), decay_input=True)
    network = nn.Sequential(
        layers.Conv2d(1, 4, 3, padding=1), SpikingNeuron(spec, 2), layers.Flatten(),
        layers.RateReadout(4 * 16, 3),
    )  # fmt: skip
    example = torch.rand(2, 1, 4, 4) * 8
    model = from_torch(network, (1, 4, 4), 2, example=example, input_kind="counts")
    path = tmp_path / "net.nir"
    export_nir(model, path)
    assert import_nir(read_nir(path)).info.input_kind == "counts"
    for words, kind in (((), "counts"), (("--input_kind", "values"), "values")):
        printed("import", "nir", path, "-o", tmp_path / "back.safetensors", *words)
        assert load(tmp_path / "back.safetensors").info.input_kind == kind
    foreign = build_nir(model)
    foreign.metadata = {}
    assert import_nir(foreign, time_steps=2).info.input_kind == "images"
    assert import_nir(foreign, time_steps=2, input_kind="spikes").info.input_kind == "spikes"
    normed = replace(model, info=ModelInfo(normalization=Normalization((0.5,), (0.5,))))
    export_nir(normed, path)
    result = soul_deploy("import", "nir", path, "--input_kind", "counts")
    assert result.exit_code == 2 and "a normalisation of pixels is stored" in result.stderr


def test_train_takes_the_data_sets_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = ("train", "--dataset_name", "digits", "--model", "spikingvgg5", "-T", 1)
    small = (*words, "--hidden", 8, "--epochs", 1, "--batch_size", 512, "--model_dir", tmp_path)
    result = soul_deploy(*small, "--input_kind", "counts")
    assert result.exit_code == 2 and "data set 'digits' holds images" in result.stderr
    printed(*small, "--input_kind", "images")
    (path,) = tmp_path.glob("best_*.safetensors")
    assert load(path).info.input_kind == "images"


@pytest.mark.parametrize("kind", INPUT_KINDS)
def test_bench_makes_numbers_of_the_kind(made: Made, kind: InputKind) -> None:
    files = ("--event", made[f"{kind}.event"], "--onnx_compact", made[f"{kind}.onnx"])
    found = json.loads(
        printed("bench", "sparse", *files, "--iterations", 1, "--no_fresh", "--format", "json")
    )
    assert {entry["engine"] for entry in found["entries"]} >= {"event", "onnxruntime-compact"}


def test_bench_refuses_networks_of_different_kinds(made: Made) -> None:
    files = ("--event", made["counts.event"], "--onnx_compact", made["images.onnx"])
    result = soul_deploy("bench", "sparse", *files, "--iterations", 1, "--no_fresh")
    assert result.exit_code == 2
    assert "only networks of the same kind of input can be compared" in result.stderr


def test_bench_normalises_a_data_set_as_the_files_say(tmp_path: Path) -> None:
    files = make_files(tmp_path)
    rule = common_rule([facts_of(files.compact_event)])
    assert rule.mean == NORM.mean and rule.kind == "images"
    rule, data = (
        replace(rule, shape=(1, 8, 8), mean=(0.25,), std=(0.5,)),
        load_data("digits", tmp_path),
    )
    found = dataset_samples("digits", tmp_path, rule, 3).values
    pixels = data.test.images[:3].numpy().astype(np.float32) / np.float32(255)
    np.testing.assert_array_equal(found, (pixels - np.float32(0.25)) / np.float32(0.5))
    own = dataset_samples("digits", tmp_path, replace(rule, mean=(), std=()), 3).values
    np.testing.assert_array_equal(own, data.normalise(data.test.images[:3]).numpy())
