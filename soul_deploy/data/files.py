"""Image data sets as files: MNIST's idx format, and the ones that torchvision reads.

Everything is checked before it is believed; nothing is downloaded unless asked for.
"""

import gzip
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from soul_deploy.base.errors import DataError, MissingFileError

IDX_FILES = {
    part: (f"{part}-images-idx3-ubyte", f"{part}-labels-idx1-ubyte") for part in ("train", "t10k")
}
MAX_IDX_BYTES = 256 << 20
Raw = tuple[Tensor, Tensor]
"""Images (N, C, H, W) uint8 and labels (N,) int64."""


def download(name: str, data_dir: Path) -> None:
    """Let torchvision fetch a data set in MNIST's format into `data_dir`."""
    from torchvision import datasets

    source = {"mnist": datasets.MNIST, "fashionmnist": datasets.FashionMNIST}[name]
    try:
        source(str(data_dir), download=True)
    except (RuntimeError, OSError) as error:
        raise DataError(f"{name} could not be downloaded to {data_dir}: {error}") from error


def find_idx_folder(name: str, data_dir: Path, folders: tuple[str, ...]) -> Path:
    """The first of `folders` under `data_dir` that holds training images, plain or .gz.

    Raises MissingFileError.
    """
    first = IDX_FILES["train"][0]
    for folder in folders:
        if _idx_path(data_dir / folder, first) is not None:
            return data_dir / folder
    tried = ", ".join(str(data_dir / folder) for folder in folders)
    raise MissingFileError(
        f"data set {name!r}: no {first}[.gz] in {tried}; give the folder that holds its four idx "
        "files with --data_dir, or add --download"
    )


def read_idx_pair(folder: Path, part: str) -> Raw:
    """Images and labels of "train" or "t10k". Raises MissingFileError or DataError."""
    images, labels = (_read_idx(folder, name) for name in IDX_FILES[part])
    if images.ndim != 3 or images.shape[1:] != (28, 28) or labels.shape != images.shape[:1]:
        raise DataError(
            f"{folder}: {part} has images {images.shape} and labels {labels.shape}; "
            "expected (N, 28, 28) and (N,)"
        )
    if labels.size == 0 or labels.max() > 9:
        raise DataError(f"{folder}: {part} needs labels from 0 to 9")
    return torch.from_numpy(images).unsqueeze(1), torch.from_numpy(labels.astype(np.int64))


def _idx_path(folder: Path, name: str) -> Path | None:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    return None


def _read_idx(folder: Path, name: str) -> "np.ndarray[Any, np.dtype[np.uint8]]":
    """One idx file: magic 0, 0, 8 (uint8), number of sides; the sides, big-endian; the bytes."""
    path = _idx_path(folder, name)
    if path is None:
        raise MissingFileError(f"no {name}[.gz] in {folder}, where the data set's other files are")
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
            content = stream.read(MAX_IDX_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} is damaged ({error}); get it again") from error
    if len(content) < 4 or content[:3] != b"\0\0\x08" or not 1 <= content[3] <= 3:
        raise DataError(f"{path} is not an idx file of bytes; expected {name}")
    start = 4 + 4 * content[3]
    shape = tuple(int.from_bytes(content[at : at + 4], "big") for at in range(4, start, 4))
    if len(content) - start != math.prod(shape):
        raise DataError(
            f"{path} is damaged: its header says {shape}, but {max(len(content) - start, 0)} bytes "
            "follow; get it again"
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape).copy()


def read_torchvision(
    name: str, data_dir: Path, *, download: bool
) -> tuple[Raw, Raw, tuple[str, ...]]:
    """Training and test images and class names of cifar10, cifar100 or svhn.

    torchvision compares each file's md5 with the published one before it opens it (CIFAR's files
    are pickles, so this check is what makes them safe). Raises MissingFileError or DataError.
    """
    if name == "svhn":
        return _read_svhn(data_dir, download)
    from torchvision import datasets

    source = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    root = data_dir.parent if data_dir.name == source.base_folder else data_dir
    if not download:
        wanted = [entry[0] for entry in [*source.train_list, *source.test_list]]
        _require_files(name, root / source.base_folder, [*wanted, source.meta["filename"]])
    train, test = (_open(source, name, root, train=part, download=download) for part in (1, 0))
    parts = tuple(
        (
            torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous(),
            torch.tensor(part.targets, dtype=torch.int64),
        )
        for part in (train, test)
    )
    return parts[0], parts[1], tuple(str(label) for label in train.classes)


def _read_svhn(data_dir: Path, download: bool) -> tuple[Raw, Raw, tuple[str, ...]]:
    from torchvision import datasets

    if not download:
        files = [datasets.SVHN.split_list[part][1] for part in ("train", "test")]
        _require_files("svhn", data_dir, files)
    parts = []
    for part in ("train", "test"):
        opened = _open(datasets.SVHN, "svhn", data_dir, split=part, download=download)
        images = torch.from_numpy(np.ascontiguousarray(opened.data))
        parts.append((images, torch.from_numpy(opened.labels.astype(np.int64))))
    return parts[0], parts[1], tuple("0123456789")


def _require_files(name: str, folder: Path, files: list[str]) -> None:
    for file in files:
        if not (folder / file).is_file():
            raise MissingFileError(
                f"data set {name!r}: no file {folder / file}; expected {', '.join(files)} in "
                f"{folder}. Give the right folder with --data_dir, or add --download"
            )


def _open(source: Any, name: str, root: Path, **options: Any) -> Any:
    if "train" in options:
        options["train"] = bool(options["train"])
    try:
        return source(str(root), **options)
    except (RuntimeError, OSError) as error:
        raise DataError(
            f"data set {name!r} in {root} cannot be read: a file's checksum is not the published "
            f"one, or the download failed ({error}); get it again"
        ) from error
