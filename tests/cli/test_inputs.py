"""`--input data|random|NAME|PATH`, alike in verify, export, energy and bench; by place in run."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from deployed import NORM, SHAPE, STEPS, Files, make_files, random_pixels
from own_files import write_photos
from PIL import Image
from test_imports import loaded_by

from soul_deploy.base import Array
from soul_deploy.base.pixel_rule import InputRule, normalise
from soul_deploy.cli.main import root
from soul_deploy.runtime.engine.network import load as load_network
from soul_deploy.runtime.io.inputs import DATA_SETS

RULE = InputRule(SHAPE, STEPS, NORM.mean, NORM.std)
CLASSES = ("ant", "bee", "cat", "dog")
PIXELS = random_pixels(8)
LABELS = np.arange(8) // 2


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return make_files(tmp_path_factory.mktemp("files"))


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with the same eight samples in every form."""
    monkeypatch.chdir(tmp_path)
    for index, pixels in enumerate(PIXELS):
        place = Path("photos") / CLASSES[LABELS[index]]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.moveaxis(pixels, 0, -1)).save(place / f"{index}.png")
    np.save("x.npy", PIXELS)
    np.savez("x.npz", images=PIXELS, labels=LABELS)
    names = np.array(CLASSES[::-1])  # in another order than the network's
    np.savez_compressed("named.npz", images=PIXELS, labels=3 - LABELS, classes=names)


def call(*words: object, stdin: bytes | None = None) -> Result:
    return CliRunner().invoke(root, [str(word) for word in words], input=stdin)


def made(*words: object, stdin: bytes | None = None) -> dict[str, Any]:
    result = call(*words, "--format", "json", stdin=stdin)
    assert result.exit_code == 0, (words, result.output)
    document: dict[str, Any] = json.loads(result.stdout)
    return document


def refused(*words: object) -> str:
    result = call(*words)
    assert result.exit_code == 2 and result.stdout == "", (words, result.output)
    return result.stderr


PATHS = ("photos", "x.npy", "x.npz", "named.npz", "./photos/", "photos/ant")


@pytest.mark.parametrize("path", PATHS)
def test_all_commands_read_a_path_alike(files: Files, path: str) -> None:
    on = ("--input", path, "--samples", 8)
    count = 2 if path == "photos/ant" else 8
    event = "net.event.safetensors"
    exported = made("export", "event", files.compact, "-o", event, *on)
    assert exported["verified"]["images"] == f"{count} images of {path}"
    report = made("verify", files.compact, event, *on, "--allow_silent")
    assert report["images"] == f"{count} images of {path}"
    counted = made("energy", files.compact, *on)
    assert counted["dataset"]["name"] == path and counted["dataset"]["split"] == "all"
    timed = made("bench", "sparse", "--event", event, *on[:2], "--iterations", 1, "--no_fresh")
    assert timed["input"] == f"{path}, static, {count} samples, T = {STEPS}"
    found = made("run", event, path, "--top", 4)
    scores = load_network(Path(event)).run(normalise(PIXELS[:count], RULE))
    np.testing.assert_array_equal(table(found), scores)
    right = int((scores.argmax(1) == LABELS[:count]).sum())
    known = path not in ("x.npy", "photos/ant")
    assert counted["dataset"].get("correct") == (right if known else None)


def table(found: dict[str, Any]) -> Array:
    """Scores in the order of classes (all classes shown)."""
    rows = (sorted(row["top"], key=lambda entry: entry["index"]) for row in found["results"])
    return np.array([[entry["score"] for entry in row] for row in rows], np.float32)


def test_standard_input_is_a_npy_file(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    content = Path("x.npy").read_bytes()
    found = made("run", files.compact_event, "-", "--top", 4, stdin=content)
    assert (
        table(found).tolist()
        == table(made("run", files.compact_event, "x.npy", "--top", 4)).tolist()
    )
    assert found["results"][3]["input"] == "-[3]"
    for damaged, message in (
        (content[:-1], "bytes of values announced"),
        (content + b"x", "more than the 1920 bytes"),
        (b"", "is not a .npy file of numbers"),
        (content.replace(b"(8, 3, 8, 10)", b"(8**9, 3, 8,)"), "is not a .npy file"),
        (content.replace(b"(8, 3, 8, 10), }      ", b"(8, 3, 8, 10000000000)}"), "of memory"),
    ):
        result = call("run", files.compact_event, "-", stdin=damaged)
        assert result.exit_code == 1 and message in result.stderr, result.output
    assert "- is given twice" in refused("run", files.compact_event, "-", "-")
    assert "is for `soul-deploy run`" in refused("energy", files.compact, "--input", "-")


def test_run_takes_several_inputs_of_all_kinds(files: Files) -> None:
    words = ("x.npz", "photos/ant/0.png", "random", "photos", "photos/dog/7.png")
    found = made("run", files.compact_event, *words, "--samples", 3)["results"]
    names = [row["input"] for row in found]
    photos = ["photos/ant/0.png", "photos/bee/2.png", "photos/cat/5.png"]
    npz = [f"x.npz[{index}]" for index in (0, 2, 5)]
    assert names == [words[1], words[4], *npz, *(f"random[{i}]" for i in range(3)), *photos]
    assert found[0]["top"] == found[2]["top"] == found[8]["top"]
    assert len(made("run", files.compact_event, "random")["results"]) == 32
    first, second = (
        made("run", files.compact_event, "random", "--seed", seed)["results"] for seed in (1, 2)
    )
    assert [row["top"] for row in first] != [row["top"] for row in second]


def test_images_of_another_size_are_scaled_only_if_asked(files: Files) -> None:
    write_photos(Path("others"))
    for words in (
        ("run", files.compact_event, "others/test"),
        ("verify", files.compact, files.compact_event, "--input", "others/test"),
        ("energy", files.compact, "--input", "others/test"),
        ("bench", "sparse", "--event", files.compact_event, "--input", "others/test"),
    ):
        assert "12×12 pixels (width × height), the network takes 10×8; give --resize" in refused(
            *words
        )
    result = call("energy", files.compact, "--input", "others/test", "--resize", "--no-check")
    assert result.exit_code == 0, result.output
    assert "others/test: its classes are not the network's, so its labels are not" in result.stderr
    more = ("--resize", "--allow_silent", "--samples", 5)
    report = made("verify", files.compact, files.compact_event, "--input", "others/test", *more)
    assert report["images"] == "5 images of others/test"
    found = made("run", files.compact_event, "others/test", "--resize", "--samples", 4)
    assert len(found["results"]) == 4


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "verify MODEL EVENT",
            "does not say which data it was trained on; give --dataset_name, or",
        ),
        (
            "energy MODEL --input noise",
            "unknown input 'noise'; valid: data, random, mnist5k, digits",
        ),
        ("run EVENT noise", "npz, an existing file or folder"),
        ("run EVENT data", "data stands for the data set that a model file records, and no model"),
        (
            "bench sparse --event EVENT --input data",
            "and no model file is given; name the data set",
        ),
        ("bench sparse --model MODEL --event EVENT --input data", "no model file is given"),
        ("energy MODEL --input gone.npz", "no file at gone.npz"),
        ("run EVENT empty", "empty holds no images (bmp, gif, jpeg"),
        ("run EVENT gone/photo.png", "no file at gone/photo.png"),
        ("energy MODEL --input x.npz --dataset_name digits", "are both given; leave one of them"),
        ("verify MODEL EVENT --input random --dataset_name digits", "are both given; leave one"),
        ("energy MODEL --input x.npz --split train", "--split train belongs to a data set"),
        ("energy MODEL --input digits", "digits has images of (1, 8, 8), this model takes (3, 8"),
        ("run EVENT digits", "digits has images of (1, 8, 8), the networks take (3, 8, 10)"),
        ("run EVENT photos/..", "holds images"),
        ("run EVENT splits.npz", "holds the splits test, train; give it as the data set"),
        ("run EVENT split", "is divided into splits; name the one that is meant, split/train for"),
    ],
)
def test_what_names_nothing_or_two_things(files: Files, words: str, message: str) -> None:
    np.savez("splits.npz", train_images=PIXELS, test_images=PIXELS)
    write_photos(Path("split"))
    Image.new("RGB", (10, 8)).save("beside.png")
    Path("empty").mkdir()
    known = {"MODEL": files.compact, "EVENT": files.compact_event}
    assert message in refused(*(known.get(word, word) for word in words.split()))


@pytest.mark.parametrize("path", ["split", "splits.npz"])
def test_the_advice_on_splits_holds_for_every_command(files: Files, path: str) -> None:
    """The name takes the place of the path; no command has an option that others lack."""
    many, labels = np.concatenate([PIXELS, PIXELS]), np.concatenate([LABELS, LABELS])
    sets: dict[str, Any] = {"train_images": many, "train_labels": labels}
    np.savez("splits.npz", test_images=PIXELS, test_labels=LABELS, **sets)
    for split in ("train", "test"):
        for index, pixels in enumerate(many):
            place = Path("split", split, CLASSES[labels[index]])
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.moveaxis(pixels, 0, -1)).save(place / f"{index}.png")
    count = {"split": 16, "splits.npz": 8}[path]
    for words in (
        ("run", files.compact_event),
        ("energy", files.compact, "--input"),
        ("verify", files.compact, files.compact_event, "--allow_silent", "--input"),
        ("bench", "sparse", "--event", files.compact_event, "--no_fresh", "--input"),
    ):
        (advice,) = re.findall(
            r"the data set called (\w+), with (--data_dir [\w.]+)", refused(*words, path)
        )
        result = call(*words, advice[0], *advice[1].split())
        assert result.exit_code == 0, result.output
    found = made("run", files.compact_event, advice[0], *advice[1].split())
    assert len(found["results"]) == count


def test_labels_that_are_no_classes(files: Files) -> None:
    np.savez("y.npz", images=PIXELS, labels=LABELS + 1)
    result = call("energy", files.compact, "--input", "y.npz")
    assert result.exit_code == 1
    assert "y.npz: a label 4; the network has 4 classes, from 0" in result.stderr


def test_the_names_are_those_of_the_data_sets() -> None:
    from soul_deploy.data.datasets import NAMES

    assert DATA_SETS == NAMES


@pytest.mark.parametrize("path", ["photos", "x.npz"])
def test_reading_files_needs_no_torch(files: Files, path: str) -> None:
    quick = ("--no_fresh", "--iterations", 1)
    for words in (
        ("run", files.compact_event, path),
        ("bench", "sparse", "--event", files.compact_event, "--input", path, *quick),
    ):
        assert not loaded_by(*words) & {"torch", "onnx", "torchvision"}
