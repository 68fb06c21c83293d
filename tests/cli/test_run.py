"""`run`: scores, streams, counts, and the input that it refuses."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from deployed import NORM, SHAPE, STEPS, Files, damage, make_files, random_pixels
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from soul_deploy.base import Array
from soul_deploy.base.errors import FileFormatError, ValidityError
from soul_deploy.base.pixel_rule import InputRule, normalise
from soul_deploy.cli.main import root
from soul_deploy.model.file import load
from soul_deploy.runtime.engine.network import load as load_network
from soul_deploy.runtime.io.images import read_array
from soul_deploy.runtime.io.results import best, count_table
from soul_deploy.runtime.ops.counted_run import count_run

RULE = InputRule(SHAPE, STEPS, NORM.mean, NORM.std)


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


def golden(files: Files, x: Array) -> Array:
    with torch.no_grad():
        scores: Array = load(files.compact).module()(torch.from_numpy(x)).numpy()
    return scores


def save_images(folder: Path, pixels: Array) -> list[Path]:
    paths = [folder / f"{index}.png" for index in range(len(pixels))]
    for path, image in zip(paths, pixels, strict=True):
        Image.fromarray(np.moveaxis(image, 0, -1)).save(path)
    return paths


def scores(document: dict[str, Any]) -> list[list[float]]:
    """Scores in the order of classes (all classes shown)."""
    return [
        [entry["score"] for entry in sorted(row["top"], key=lambda entry: entry["index"])]
        for row in document["results"]
    ]


def test_images_and_arrays_of_the_same_pixels_give_the_scores_of_pytorch(
    files: Files, tmp_path: Path
) -> None:
    pixels = random_pixels(3)
    images = save_images(tmp_path, pixels)
    arrays = {"pixels": pixels, "floats": normalise(pixels, RULE)}
    for name, array in arrays.items():
        np.save(tmp_path / f"{name}.npy", array)
    found = as_json("run", files.compact_event, *images, "--top", 4)
    expected = golden(files, arrays["floats"])
    np.testing.assert_allclose(scores(found), expected, atol=1e-5)
    assert [row["input"] for row in found["results"]] == list(map(str, images))
    for name in arrays:
        path = tmp_path / f"{name}.npy"
        other = as_json("run", files.compact_event, path, "--top", 4, "--threads", 2)
        assert scores(other) == scores(found)
        assert [row["input"] for row in other["results"]] == [f"{path}[{i}]" for i in range(3)]


def test_the_best_classes_come_first(files: Files, tmp_path: Path) -> None:
    (image,) = save_images(tmp_path, random_pixels(1, seed=5))
    expected = golden(files, normalise(random_pixels(1, seed=5), RULE))[0]
    names = load(files.compact).info.classes
    order = np.argsort(-expected)
    (row,) = as_json("run", files.compact_event, image, "--top", 2)["results"]
    assert [entry["class"] for entry in row["top"]] == [names[i] for i in order[:2]]
    text = printed("run", files.compact_event, image)
    assert names[order[0]] in text and f"{expected[order[0]]:.4f}" in text


def test_equal_scores_are_listed_by_index(files: Files) -> None:
    network = load_network(files.compact_event).events
    found = best(network, np.array([0, 2, 2, 1], np.float32), 3)
    assert [entry["index"] for entry in found] == [1, 2, 3]


def test_streaming_gives_each_steps_scores(files: Files, tmp_path: Path) -> None:
    steps = np.random.default_rng(2).normal(size=(STEPS, 2, *SHAPE)).astype(np.float32)
    path = tmp_path / "steps.npy"
    np.save(path, steps)
    found = as_json("run", files.compact_event, path, "--stream", "--top", 4)
    with torch.no_grad():
        expected = load(files.compact).module().per_step(torch.from_numpy(steps)).numpy()
    for b, row in enumerate(found["results"]):
        np.testing.assert_allclose(row["steps"], expected[:, b], atol=1e-5)
    np.testing.assert_allclose(scores(found), golden(files, steps), atol=1e-5)
    text = printed("run", files.compact_event, path, *save_images(tmp_path, random_pixels(1)))
    assert "class so far" not in text
    words = (path, *save_images(tmp_path, random_pixels(1)), "--stream")
    text = printed("run", files.compact_event, *words)  # batches of 1 and 2: a reset between
    assert "class so far" in text and "mean so far" in text
    assert soul_deploy("run", files.compact_event, path, "--stream", "--threads", 2).exit_code == 2


def test_forms_of_rows_are_shown_and_chosen_for_a_run(files: Files, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", random_pixels(3))
    shown = [files.compact_event, tmp_path / "x.npy", "--top", 10]
    layers = [
        row for row in as_json("inspect", files.compact_event)["layers"] if row["representation"]
    ]
    assert layers and all(row["runs_as"] for row in layers)
    assert "runs as" in printed("inspect", files.compact_event)
    first = layers[0]
    as_it_is = ("--rows", f"{first['projection']}={first['runs_as'].upper()}")
    assert as_json("run", *shown, *as_it_is) == as_json("run", *shown)
    for words, told in (
        (("--rows", "nowhere=sparse"), "unknown layer with synapses 'nowhere'; valid: "),
        (("--rows", "sparse"), "--rows sparse: give LAYER=FORM, where FORM is sparse, dense"),
        (("--rows", f"{first['layer']}=planes"), "its synapses cannot run as 'planes'; give "),
    ):
        refused = soul_deploy("run", *shown, *words)
        assert (refused.exit_code, told in refused.stderr) == (2, True), refused.stderr


def test_operations_are_counted_over_all_files(files: Files, tmp_path: Path) -> None:
    images = save_images(tmp_path, random_pixels(3))
    path = tmp_path / "more.npy"
    np.save(path, random_pixels(2, seed=9))
    found = as_json("run", files.compact_event, *images, path, "--counts")
    pixels = np.concatenate([random_pixels(3), random_pixels(2, seed=9)])
    expected = count_run(load_network(files.compact_event), normalise(pixels, RULE)).counts
    assert found["samples"] == 5
    for name, counts in expected.items():
        executed = found["counts"][name].pop("synops_executed")
        assert executed >= counts.synops
        assert found["counts"][name] == vars(counts)
    synops, macs = (
        sum(getattr(c, n) for c in expected.values()) for n in ("synops", "macs_effective")
    )
    (energy,) = found["energy"]
    assert (energy["estimate"], energy["value_int"]) == (True, 9 * synops + 46 * macs)
    text = printed("run", files.compact_event, *images, "--counts")
    assert "SynOps" in text
    assert "Energy, estimated (ops45_fp32: 4.6 pJ/MAC, 0.9 pJ/SynOp)" in text


def test_counts_are_shown_per_inference_with_a_total() -> None:
    counts = dict.fromkeys(
        (
            *("events_in", "synops", "synops_executed"),
            *("macs_effective", "neuron_updates", "spikes_out"),
        ),
        0,
    )
    table = count_table({"a": {**counts, "synops": 3}, "b": {**counts, "synops": 4000}}, 2)
    columns, rows = table.columns, table.rows
    assert columns[2] == "SynOps"
    assert [(row[0], row[2]) for row in rows] == [("a", "1.5"), ("b", "2,000"), ("total", "2,002")]


def test_images_are_converted_and_scaled_only_when_asked(files: Files, tmp_path: Path) -> None:
    grey = tmp_path / "grey.png"
    Image.fromarray(random_pixels(1)[0, 0]).save(grey)
    assert soul_deploy("run", files.compact_event, grey).exit_code == 0
    large = tmp_path / "large.jpg"
    Image.new("RGB", (20, 16), (200, 10, 10)).save(large)
    result = soul_deploy("run", files.compact_event, large)
    assert result.exit_code == 2
    assert "is 20×16 pixels (width × height), the network takes 10×8; give --resize" in (
        result.output
    )
    assert soul_deploy("run", files.compact_event, large, "--resize").exit_code == 0


def npy(folder: Path, array: Array) -> Path:
    path = folder / "given.npy"
    np.save(path, array, allow_pickle=True)
    return path


@pytest.mark.parametrize(
    ("array", "code", "message"),
    [
        (np.zeros((8, 10)), 2, "holds (8, 10); the network takes (3, 8, 10), (batch, 3, 8, 10)"),
        (np.zeros((2, 3, 8, 9)), 2, "or (3, batch, 3, 8, 10)"),
        (np.zeros((4, 2, *SHAPE)), 2, "a sequence of 4 steps; the network runs T = 3"),
        (np.zeros((0, *SHAPE)), 2, "holds no samples"),
        (np.zeros(SHAPE, np.int64), 2, "given.npy holds int64; needed: floating-point values"),
        (np.zeros(SHAPE, np.bool_), 2, "given.npy holds bool; needed: floating-point values"),
        (np.full(SHAPE, np.nan), 2, "given.npy holds values that are not finite"),
        (np.full(SHAPE, 1e300), 2, "given.npy holds float64 values beyond float32, in which"),
        (np.array([{}]), 1, "is not a .npy file of numbers"),
    ],
)
def test_wrong_arrays_are_refused(
    files: Files, tmp_path: Path, array: Array, code: int, message: str
) -> None:
    result = soul_deploy("run", files.compact_event, npy(tmp_path, array))
    assert message in result.output
    assert result.exit_code == code
    assert "Traceback" not in result.output


def test_wrong_files_are_refused(files: Files, tmp_path: Path) -> None:
    image = save_images(tmp_path, random_pixels(1))[0]
    text = tmp_path / "text.png"
    text.write_text("no picture")
    archive = tmp_path / "archive.npy"
    with archive.open("wb") as stream:
        np.savez(stream, a=np.zeros(SHAPE))
    for words, code, message in (
        ((files.compact_event, text), 1, "is not an image that can be read"),
        ((files.compact_event, damage(tmp_path, image, "half.png")), 1, "is not an image"),
        ((files.compact_event, archive), 1, "is not a .npy file of numbers"),
        ((files.compact_event, tmp_path / "none.png"), 2, "no file at"),
        ((files.compact, image), 1, f"`soul-deploy export event {files.compact}` makes an event"),
        ((text, image), 1, "is not an intact safetensors file"),
        ((tmp_path / "none.safetensors", image), 2, "no file at"),
        ((files.compact_event,), 2, "Missing argument 'INPUT...'"),
        ((files.compact_event, image, "--top", "0"), 2, "--top"),
    ):
        result = soul_deploy("run", *words)
        assert message in result.output, (words, result.output)
        assert result.exit_code == code
        assert result.stdout == "" and "Traceback" not in result.output


@given(st.integers(0, 2**32 - 1))
def test_normalisation_is_that_of_the_data_sets_to_the_bit(seed: int) -> None:
    from soul_deploy.data.datasets import Data, Split

    pixels = random_pixels(2, seed)
    split = Split(torch.from_numpy(pixels), torch.zeros(2, dtype=torch.int64))
    expected = Data("x", split, split, split, (), NORM).normalise(split.images).numpy()
    np.testing.assert_array_equal(normalise(pixels, RULE), expected)
    np.testing.assert_array_equal(
        normalise(pixels, InputRule(SHAPE, STEPS)), (pixels / 255).astype(np.float32)
    )


@given(leading=st.lists(st.integers(1, 4), max_size=3))
def test_an_array_has_one_meaning_or_is_refused(
    tmp_path_factory: pytest.TempPathFactory, leading: list[int]
) -> None:
    path = npy(tmp_path_factory.getbasetemp(), np.ones((*leading, *SHAPE), np.float64))
    if len(leading) == 3 or (len(leading) == 2 and leading[0] != STEPS):
        with pytest.raises(ValidityError):
            read_array(path, RULE)
        return
    samples = read_array(path, RULE)
    assert samples.values.dtype == np.float32
    assert samples.sequence == (len(leading) == 2)
    assert len(samples.names) == (leading[-1] if leading else 1)
    assert samples.values.shape == (tuple(leading) or (1,)) + SHAPE


def test_a_network_of_vectors_takes_no_images(tmp_path: Path) -> None:
    from soul_deploy.runtime.io.images import read_image

    (image,) = save_images(tmp_path, random_pixels(1))
    with pytest.raises(ValidityError, match=r"takes \(7,\), which is no grey or RGB image"):
        read_image(image, InputRule((7,), STEPS))


def test_a_header_that_announces_too_much_is_refused(tmp_path: Path) -> None:
    path = npy(tmp_path, np.zeros(SHAPE, np.float32))
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(FileFormatError, match=r"is not a \.npy file of numbers"):
        read_array(path, RULE)


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    path = tmp_path / "evil.npy"
    path.write_bytes(pickle.dumps([1, 2]))
    with pytest.raises(FileFormatError, match=r"is not a \.npy file of numbers"):
        read_array(path, RULE)
