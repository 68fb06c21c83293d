"""A user's own data: folders of images and .npz files, their splits, and what is ambiguous."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from own_files import NAMES, SIDE, pictures, write_folder, write_frames, write_npz, write_photos
from PIL import Image

from soul_deploy import as_data
from soul_deploy.base.errors import DataError, MissingFileError, UsageError, ValidityError
from soul_deploy.cli.main import root
from soul_deploy.data.datasets import Data, load_data, load_data_for
from soul_deploy.data.sampler import moved
from soul_deploy.model.model import Normalization


def sizes(data: Data) -> tuple[int, int, int]:
    return len(data.train), len(data.validation), len(data.test)


def test_a_folder_is_read_as_torchvision_reads_it(tmp_path: Path) -> None:
    from torchvision.datasets import ImageFolder

    write_photos(tmp_path)
    data = load_data("folder", tmp_path)
    theirs = ImageFolder(str(tmp_path / "test"))
    assert data.classes == NAMES == tuple(theirs.classes)
    assert torch.equal(data.test.labels, torch.tensor(theirs.targets))
    for pixels, (image, _) in zip(data.test.images, theirs, strict=True):
        assert torch.equal(pixels, torch.from_numpy(np.array(image)).permute(2, 0, 1))
    assert sizes(data) == (54, 6, 18) and data.validation.labels.bincount().tolist() == [2, 2, 2]
    norm, pixels = data.normalization, data.train.images.numpy() / 255
    assert norm is not None
    np.testing.assert_allclose(norm.mean, pixels.mean((0, 2, 3)), atol=6e-5)
    np.testing.assert_allclose(norm.std, pixels.std((0, 2, 3)), atol=6e-5)
    assert len(data.notes) == 1 and "no validation split" in data.notes[0]
    assert as_data("folder", data_dir=tmp_path).classes == NAMES


def test_samples_that_are_held_out_do_not_count_for_the_normalisation(tmp_path: Path) -> None:
    """Those left are black; a white one among them would show."""
    images, labels = np.zeros((40, 1, 4, 4), np.uint8), np.arange(40) % 2
    np.savez(tmp_path / "black.npz", images=images, labels=labels)
    held = load_data("npz", tmp_path / "black.npz")
    first = np.arange(40, dtype=np.uint8)[:, None, None, None] + images
    np.savez(tmp_path / "numbered.npz", images=first, labels=labels)
    numbered = load_data("npz", tmp_path / "numbered.npz")
    outside = torch.cat([numbered.validation.images, numbered.test.images])[:, 0, 0, 0].numpy()
    images[outside] = 255
    np.savez(tmp_path / "white.npz", images=images, labels=labels)
    data = load_data("npz", tmp_path / "white.npz")
    assert sizes(data) == (32, 4, 4) and data.validation.images.min() == 255
    assert data.normalization == held.normalization == Normalization((0.0,), (1.0,))


@pytest.mark.parametrize(
    ("splits", "expected"),
    [
        (("train", "test", "val"), (60, 18, 18)),
        (("train", "Validation"), (54, 18, 6)),
        (("train",), (48, 6, 6)),
        ((".",), (48, 6, 6)),
    ],
)
def test_splits_of_folders(
    tmp_path: Path, splits: tuple[str, ...], expected: tuple[int, int, int]
) -> None:
    for split in splits:
        write_folder(tmp_path / split, *pictures(20 if split in ("train", ".") else 6, 0))
    (tmp_path / ".cache").mkdir()
    (tmp_path / "notes.txt").write_text("passed over")
    data = load_data("folder", tmp_path)
    assert sizes(data) == expected
    assert len(data.notes) == (0 if len(splits) == 3 else 1)
    together = torch.cat([data.train.labels, data.validation.labels, data.test.labels])
    assert together.bincount().tolist() == [sum(expected) // 3] * 3


def test_labels_count_the_classes_of_the_training_split(tmp_path: Path) -> None:
    write_photos(tmp_path)
    for image in (tmp_path / "test" / "bar").iterdir():
        image.unlink()
    (tmp_path / "test" / "bar").rmdir()
    data = load_data("folder", tmp_path)
    assert data.test.labels.tolist() == [1] * 6 + [2] * 6 and len(data.classes) == 3


def grey(path: Path, size: tuple[int, int] = (9, 7), mode: str = "L") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, 200 if mode in ("L", "I;16") else None).save(path)


def test_images_have_one_channel_if_all_are_grey(tmp_path: Path) -> None:
    for name in "ab":
        for index in range(10):
            grey(tmp_path / name / f"{index}.png")
    data = load_data("folder", tmp_path)
    assert data.input_shape == (1, 7, 9)
    assert data.normalization is not None and data.normalization.std == (1.0,)
    grey(tmp_path / "a" / "more" / "colour.jpg", mode="RGB")
    assert load_data("folder", tmp_path).input_shape == (3, 7, 9)
    scaled = load_data_for((1, 4, 5), "folder", tmp_path)
    assert scaled.input_shape == (1, 4, 5)
    assert scaled.notes[0] == "data set folder: its images are scaled to 5×4 (bilinear)"


def test_images_of_different_sizes_need_a_size(tmp_path: Path) -> None:
    write_folder(tmp_path, *pictures(10, 0))
    grey(tmp_path / "bar" / "other.png", (40, 30), "RGB")
    with pytest.raises(UsageError, match=r"holds images of 2 sizes \(.*12×12, .*40×30, …\)"):
        load_data("folder", tmp_path)
    assert load_data("folder", tmp_path, size=8).input_shape == (3, 8, 8)


def test_folders_that_leave_open_what_is_meant(tmp_path: Path) -> None:
    def refused(message: str, kind: type[Exception] = UsageError) -> None:
        with pytest.raises(kind, match=message):
            load_data("folder", tmp_path / "d")

    refused("no folder of images at .*; give it with --data_dir", MissingFileError)
    (tmp_path / "d").mkdir()
    refused("d holds no images")
    grey(tmp_path / "d" / "0.png")
    refused("holds images without labels; put them into a folder per class")
    grey(tmp_path / "d" / "cat" / "0.png")
    refused(r"holds images \(0.png, …\) beside folders of images \(cat, …\)")
    (tmp_path / "d" / "0.png").unlink()
    grey(tmp_path / "d" / "train" / "0.png")
    refused("holds train beside cat. Splits are the folders train, test and val")
    (tmp_path / "d" / "cat").rename(tmp_path / "d" / "test")
    refused("test holds images without labels")
    (tmp_path / "d" / "train" / "0.png").unlink()
    for index in range(10):
        grey(tmp_path / "d" / "train" / "train" / f"{index}.png")  # trains, a class
    grey(tmp_path / "d" / "test" / "bus" / "0.png")
    (tmp_path / "d" / "test" / "0.png").unlink()
    refused("test holds the classes bus, which the training images of .* lack; they have train")
    (tmp_path / "d" / "test" / "bus").rename(tmp_path / "d" / "test" / "train")
    refused("has one class, which nothing is told from; give two at least", DataError)
    for index in range(10):
        grey(tmp_path / "d" / "train" / "bus" / f"{index}.png")
    assert load_data("folder", tmp_path / "d").classes == ("bus", "train")
    (tmp_path / "d" / "train" / "empty").mkdir()
    refused("empty holds no images")
    (tmp_path / "d" / "train").rename(tmp_path / "d" / "val")
    refused("holds test, val. Splits are the folders train")


def test_pixels_of_16_bits_are_not_cut_off(tmp_path: Path) -> None:
    for index in range(10):
        grey(tmp_path / "a" / f"{index}.png", mode="I;16")
    with pytest.raises(ValidityError, match="pixels of more than 8 bits"):
        load_data("folder", tmp_path)


def arrays(**changed: Any) -> dict[str, Any]:
    images, labels = pictures(10, 0)
    held = {"train_images": images, "train_labels": labels}
    return {name: array for name, array in (held | changed).items() if array is not None}


IMAGES, LABELS = pictures(10, 0)


@pytest.mark.parametrize(
    ("held", "expected", "shape"),
    [
        (arrays(test_images=IMAGES[:4], test_labels=LABELS[:4]), (27, 3, 4), (3, SIDE, SIDE)),
        (arrays(val_images=IMAGES[:4], val_labels=LABELS[:4, None]), (27, 4, 3), (3, SIDE, SIDE)),
        ({"images": IMAGES[:, 0], "labels": LABELS.astype("u1")}, (24, 3, 3), (1, SIDE, SIDE)),
        ({"x": IMAGES.reshape(30, -1), "y": LABELS}, (24, 3, 3), (3 * SIDE * SIDE,)),
        (
            {f"{a}_{s}": v for s in ("train", "test") for a, v in (("x", IMAGES), ("y", LABELS))},
            (27, 3, 30),
            (3, SIDE, SIDE),
        ),
    ],
    ids=["two splits", "validation", "one set, grey", "vectors", "as Keras"],
)
def test_splits_of_archives(
    tmp_path: Path, held: Any, expected: tuple[int, int, int], shape: tuple[int, ...]
) -> None:
    np.savez(tmp_path / "d.npz", **held)
    data = load_data("npz", tmp_path / "d.npz")
    assert sizes(data) == expected and data.input_shape == shape
    assert data.names == () and len(data.classes) == 3
    assert (data.normalization is None) == (len(shape) == 1)


def test_a_file_per_split(tmp_path: Path) -> None:
    for name, count in (("train", 10), ("test", 2)):
        images, labels = pictures(count, 0)
        np.savez(tmp_path / f"{name}.npz", images=images, labels=labels)
    assert sizes(load_data("npz", tmp_path)) == (27, 3, 6)
    np.savez(tmp_path / "more.npz", images=IMAGES)
    with pytest.raises(UsageError, match=r"holds more.npz, test.npz, train.npz; needed are train"):
        load_data("npz", tmp_path)
    (tmp_path / "more.npz").unlink()
    np.savez(tmp_path / "test.npz", **arrays())
    with pytest.raises(UsageError, match="stands for the test split and holds splits itself"):
        load_data("npz", tmp_path)


@pytest.mark.parametrize(
    ("held", "message"),
    [
        ({"a": IMAGES}, "holds a; needed are images and labels, or train_images"),
        (arrays(images=IMAGES), "holds train_images, train_labels, images; needed are"),
        (arrays(x_train=IMAGES), "needed are images and labels"),
        (arrays(train_labels=None), "holds images without labels"),
        (arrays(train_labels=LABELS[:3]), r"the labels of train_images .* are int64 \(3,\)"),
        (arrays(train_labels=np.eye(3)[LABELS]), r"float64 \(30, 3\); needed are integers"),
        (arrays(train_labels=LABELS - 1), "labels of train_images count from 0; -1 is there"),
        (arrays(train_labels=LABELS * 0), "has one class, which nothing is told from"),
        (arrays(train_labels=LABELS * 10**5), "its labels are 3 numbers from 0 to 200000; number"),
        (arrays(train_images=np.moveaxis(IMAGES, 1, -1)), "whose channels stand last, it seems"),
        (arrays(train_images=IMAGES.astype(int)), "holds int64; needed: floating-point values"),
        (arrays(train_images=IMAGES / np.nan), "not finite"),
        (arrays(classes=np.array(["a", "b"])), "a label 2, and 2 classes count from 0"),
        (arrays(classes=np.array(["a", "a"])), "classes are to be different names"),
        (arrays(input_kind=np.array("dots")), "its input_kind is dots; valid: images, counts"),
        (arrays(test_images=IMAGES[:, :1], test_labels=LABELS), "images of different forms"),
        (arrays(train_images=IMAGES[:0], train_labels=LABELS[:0]), r"train_images is \(0, 3, 12"),
        ({"test_images": IMAGES, "test_labels": LABELS}, "holds no training samples"),
    ],
)
def test_archives_that_are_refused(tmp_path: Path, held: Any, message: str) -> None:
    with np.errstate(all="ignore"):
        np.savez(tmp_path / "d.npz", **held)
    with pytest.raises((UsageError, DataError), match=message):
        load_data("npz", tmp_path / "d.npz")


def test_the_kind_tells_sequences_from_pixels(tmp_path: Path) -> None:
    path = tmp_path / "events.npz"
    write_frames(path, 3)
    with pytest.raises(UsageError, match="nothing says whether their numbers are pixels"):
        load_data("npz", path)
    counts = load_data("npz", path, input_kind="counts")
    assert (counts.steps, counts.input_shape, counts.normalization) == (3, (2, 8, 8), None)
    shown = counts.normalise(counts.test.images[:4])
    assert shown.shape == (3, 4, 2, 8, 8)
    assert torch.equal(shown[1, 2], counts.test.images[2, 1].float())
    assert load_data_for((2, 8, 8), "npz", path, input_kind="counts").steps == 3
    with pytest.raises(ValidityError, match=r"the network takes \(N, 2, 9, 9\), or \(N, T, 2, 9"):
        load_data_for((2, 9, 9), "npz", path, input_kind="counts")
    with np.load(path) as held:
        np.savez(path, **held, input_kind=np.array("images"))
    assert load_data("npz", path).normalization is not None
    with pytest.raises(UsageError, match="records input_kind images, but the network takes counts"):
        load_data("npz", path, input_kind="counts")


def test_the_frames_of_a_sequence_are_moved_alike() -> None:
    frames = torch.from_numpy(pictures(2, 0)[0]).reshape(3, 2, 3, SIDE, SIDE)
    moves = torch.tensor([[0, 4, 0], [2, 2, 1], [5, 8, 1]])
    found = moved(frames, moves, "crop_flip")
    for step in range(2):
        assert torch.equal(found[:, step], moved(frames[:, step], moves, "crop_flip"))


def test_three_axes_are_never_guessed(tmp_path: Path) -> None:
    """(N, H, W) of grey pixels; of counts it could be (N, T, features)."""
    path = tmp_path / "d.npz"
    np.savez(path, images=IMAGES[:, 0], labels=LABELS, input_kind=np.array("counts"))
    with pytest.raises(DataError, match=r"holds counts of \(30, 12, 12\); needed are"):
        load_data("npz", path)
    vectors = load_data_for((12,), "npz", path, input_kind="counts")
    assert (vectors.steps, vectors.input_shape) == (12, (12,))


def test_what_belongs_to_images_or_arrays_only(tmp_path: Path) -> None:
    write_photos(tmp_path / "photos")
    write_npz(tmp_path / "photos.npz")
    with pytest.raises(UsageError, match="the images of data set 'npz' keep their size"):
        load_data("npz", tmp_path / "photos.npz", size=8)
    with pytest.raises(UsageError, match="'folder' holds images, but counts are needed"):
        load_data("folder", tmp_path / "photos", input_kind="counts")
    with pytest.raises(UsageError, match="download given, but data set 'folder' is your own"):
        load_data("folder", tmp_path / "photos", download=True)
    with pytest.raises(MissingFileError, match=r"no \.npz file, or folder of them, at"):
        load_data("npz", tmp_path / "none.npz")


@pytest.mark.parametrize("missing", [("validation",), ("validation", "test")])
def test_too_few_training_samples_are_a_matter_of_use(
    missing: tuple[str, ...], tmp_path: Path
) -> None:
    """The advice holds: with ten, or with the splits themselves, it can be read."""
    images, labels = np.zeros((10, 1, 4, 4), np.uint8), np.arange(10) % 2
    splits = {"validation": "val", "test": "test"}
    beside: dict[str, Any] = {}
    for split in splits.keys() - set(missing):
        beside |= {f"{splits[split]}_images": images[:2], f"{splits[split]}_labels": labels[:2]}
    path = tmp_path / "few.npz"
    np.savez(path, train_images=images[:9], train_labels=labels[:9], **beside)
    words = ["train", "--model", "spikingvgg5", "--dataset_name", "npz", "--data_dir", str(path)]
    result = CliRunner().invoke(root, [*words, "--epochs", "1", "--model_dir", str(tmp_path)])
    names = " and ".join(missing)
    assert result.exit_code == 2, result.output
    assert result.stderr == (
        f"Error: 9 training samples are given, and no {names} samples; a tenth of the training "
        "samples is taken for a split that is missing, which needs 10 of them: give 10 training "
        f"samples at least, or {names} samples too\n"
    )
    np.savez(path, train_images=images, train_labels=labels, **beside)
    assert sizes(load_data("npz", path))[0] == 10 - len(missing)
    for split in missing:
        beside |= {f"{splits[split]}_images": images[:2], f"{splits[split]}_labels": labels[:2]}
    np.savez(path, train_images=images[:9], train_labels=labels[:9], **beside)
    assert sizes(load_data("npz", path)) == (9, 2, 2)
