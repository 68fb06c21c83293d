"""From data on disk to what runs, by commands alone: train, prune, export, verify, run."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from own_files import (
    NAMES,
    SIDE,
    pictures,
    write_fashion,
    write_folder,
    write_frames,
    write_npz,
    write_photos,
)

from soul_deploy.cli.main import root
from soul_deploy.model.file import load, save

NETWORK: tuple[object, ...] = (
    *("--model", "spikingvgg5", "--hidden", 16, "-T", 2, "--v_threshold", 0.5),
    *("-b", 10, "--learning_rate", 0.005),
)
ONCE = ("--epochs", 1)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def call(*words: object, **more: Any) -> Result:
    return CliRunner().invoke(root, [str(word) for word in words], **more)


def done(*words: object) -> Result:
    result = call(*words)
    assert result.exit_code == 0, (words, result.output)
    return result


def made(*words: object) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(done(*words, "--format", "json").stdout)
    return document


def pruned(data: str, place: str, *more: object) -> tuple[Path, Path]:
    """Trained on a data set, and pruned, both at `place`; the dense and the compact model."""
    dense = made("train", *NETWORK, "--dataset_name", data, "--data_dir", place, *more)["model"]
    words = ("prune", "structured", "--model_path", dense, "--data_dir", place, "-b", 10)
    loop = ("--epochs", 2, "--finetune_epochs", 1, "--prune_ratio", 0.3, "--min_keep", 0.5)
    found = made(*words, *loop, "--learning_rate", 0.005)
    return Path(dense), Path(found["files"]["Compact model"]["path"])


def exported(model: Path, place: str, *more: object) -> None:
    """Written as event network and ONNX, each verified on the data that the model records."""
    for kind, file in (("event", "net.event.safetensors"), ("onnx", "net.onnx")):
        made("export", kind, model, "-o", file, "--data_dir", place, "--no-check")
        report = made("verify", model, file, "--data_dir", place, "--samples", 6, *more)
        assert report["verdict"] == "passed" and report["images"].startswith("6 validation images")


def accuracy(found: dict[str, Any], labels: Any) -> float:
    best = [row["top"][0]["index"] for row in found["results"]]
    return float(np.mean(np.array(best) == labels))


def test_a_folder_of_pngs_goes_the_whole_way() -> None:
    write_photos(Path("photos"))
    dense, compact = pruned("folder", "photos", "--epochs", 4)
    model = load(dense)
    assert model.info.classes == NAMES and model.info.provenance["data"] == "folder"
    assert model.input_shape == (3, SIDE, SIDE)
    exported(compact, "photos")
    found = made("run", "net.event.safetensors", "photos/test")
    assert [Path(row["input"]).parent.name for row in found["results"]] == [
        name for name in NAMES for _ in range(6)
    ]
    assert {entry["class"] for row in found["results"] for entry in row["top"]} <= set(NAMES)
    right = accuracy(found, pictures(6, 1)[1])
    counted = made("energy", compact, "--input", "photos/test")
    assert counted["dataset"]["correct"] == round(18 * right)
    assert counted["dataset"]["n_samples"] == 18 and right > 0.6


def test_fashion_mnist_as_debian_packs_it_goes_the_whole_way() -> None:
    write_fashion(Path("fashion-mnist"))
    _, compact = pruned("fashionmnist", "fashion-mnist", "--epochs", 3, "--size", 12)
    exported(compact, "fashion-mnist")
    words = ("run", "net.event.safetensors", "fashionmnist", "--data_dir", "fashion-mnist")
    found = made(*words, "--samples", 18)
    assert accuracy(found, pictures(6, 1)[1]) > 0.6
    assert found["results"][0]["input"] == "fashionmnist[0]"


def test_arrays_and_a_folder_of_the_same_images_give_the_same_network() -> None:
    write_photos(Path("photos"))
    write_npz(Path("photos.npz"))
    states = []
    for data, place in (("folder", "photos"), ("npz", "photos.npz")):
        words = ("train", *NETWORK, "--dataset_name", data, "--data_dir", place, "--epochs", 1)
        model = load(Path(made(*words)["model"]))
        states.append({name: array.tobytes() for name, array in model.state.items()})
        assert model.info.classes == NAMES
    assert states[0] == states[1]


def test_frame_sequences_go_the_whole_way() -> None:
    write_frames(Path("events.npz"), 2)
    words = ("train", *NETWORK, "--dataset_name", "npz", "--data_dir", "events.npz")
    refused = call(*words)
    assert refused.exit_code == 2 and "give --input_kind" in refused.stderr
    short = call(*words, "--input_kind", "counts", "-T", 3)
    assert short.exit_code == 2 and "give --time_step 2" in short.stderr
    _, compact = pruned("npz", "events.npz", "--input_kind", "counts", "--epochs", 4)
    assert load(compact).info.input_kind == "counts"
    data = ("--data_dir", "events.npz", "--samples", 4)
    made("export", "event", compact, "-o", "net.event.safetensors", *data)
    made("export", "onnx", compact, "-o", "n.onnx", "--input_mode", "sequence", *data)
    assert made("verify", compact, "n.onnx", *data)["verdict"] == "passed"
    made("export", "onnx", compact, "-o", "frames.onnx", *data)  # of frames: sequences
    assert made("verify", compact, "frames.onnx", *data)["verdict"] == "passed"
    words = ("export", "onnx", compact, "-o", "static.onnx", "--input_mode", "static", *data)
    static = call(*words)
    assert static.exit_code == 2 and "sequence" in static.stderr, static.stderr
    with np.load("events.npz") as held:
        np.savez("test.npz", images=held["test_images"], labels=held["test_labels"])
        np.save("test.npy", held["test_images"].swapaxes(0, 1))
        labels = held["test_labels"]
    found, other = (made("run", "net.event.safetensors", f"test.np{end}") for end in "zy")
    assert [row["top"] for row in found["results"]] == [row["top"] for row in other["results"]]
    assert accuracy(found, labels) > 0.6
    counted = made("energy", compact, "--input", "test.npz")
    assert counted["dataset"]["correct"] == round(8 * accuracy(found, labels))
    engines = ("--engines", "event,pytorch-compact", "--iterations", 2, "--no_fresh")
    given = ("--compact", compact, "--event", "net.event.safetensors", "--input", "data")
    timed = made("bench", "sparse", *given, *engines, "--data_dir", "events.npz")
    assert timed["input"] == "npz, sequence, 8 samples, T = 2"
    masks = ("--epochs", 1, "-b", 10, "--finetune", "--epoch_finetune", 1)
    made("prune", "unstructured", "--model_path", compact, "--data_dir", "events.npz", *masks)


def test_a_model_keeps_its_normalisation_and_its_classes() -> None:
    write_photos(Path("photos"))
    dense = made("train", *NETWORK, "--dataset_name", "folder", "--data_dir", "photos", *ONCE)
    images, labels = pictures(20, 3)
    write_folder(Path("darker"), images // 2, labels)
    words = ("prune", "structured", "--model_path", dense["model"], "--data_dir", "darker", *ONCE)
    result = done(*words, "--format", "json")
    assert "has no validation split and test split; a tenth of its 60" in result.stderr
    compact = Path(json.loads(result.stdout)["files"]["Compact model"]["path"])
    norm = load(Path(dense["model"])).info.normalization
    assert load(compact).info.normalization == norm is not None
    Path("darker/bar").rename("darker/line")
    for command in (words, ("energy", compact, "--data_dir", "darker")):
        refused = call(*command)
        assert refused.exit_code == 2, refused.output
        assert "'folder' has other classes than" in refused.stderr
        assert "cross where it has bar" in refused.stderr
    contrary = call(*words[:4], "--data_dir", "photos", "--input_kind", "counts")
    assert contrary.exit_code == 2 and "but the model takes images" in contrary.stderr


def test_a_model_of_unknown_data_asks_for_them() -> None:
    write_photos(Path("photos"))
    words = (*NETWORK, "--dataset_name", "folder", "--data_dir", "photos", *ONCE)
    path = Path(made("train", *words)["model"])
    model = load(path)
    save(replace(model, info=replace(model.info, provenance={})), path)
    for how in ("structured", "unstructured"):
        refused = call("prune", how, "--model_path", path, "--data_dir", "photos", "--dry_run")
        assert refused.exit_code == 2 and "records no data set; give --dataset_name" in (
            refused.stderr
        )
        call_with = ("--dataset_name", "folder", "--data_dir", "photos", "--dry_run")
        done("prune", how, "--model_path", path, *call_with)
