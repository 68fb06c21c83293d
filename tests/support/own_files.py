"""Small data sets on disk: a folder of PNGs, .npz files, and IDX files as Debian packs them."""

import gzip
import struct
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from soul_deploy.base import Array

NAMES = ("bar", "cross", "dot")
SIDE = 12


def pictures(count: int, seed: int, side: int = SIDE) -> tuple[Array, Array]:
    """uint8 (N, 3, side, side) that are easy to tell apart, class after class, and labels."""
    random = np.random.default_rng(seed)
    labels = np.repeat(np.arange(3), count)
    images = random.integers(0, 60, (len(labels), 3, side, side), dtype=np.uint8)
    half = side // 2
    images[labels < 2, :, half - 1 : half + 1] = 250
    images[labels == 1, :, :, half - 1 : half + 1] = 250
    images[labels == 2, 0, half - 3 : half + 3, half - 3 : half + 3] = 250
    return images, labels


def write_folder(folder: Path, images: Array, labels: Array) -> None:
    """A folder per class of PNGs."""
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        place = folder / NAMES[label]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.moveaxis(image, 0, -1)).save(place / f"{index:04}.png")


def write_photos(folder: Path) -> None:
    """A data set of PNGs in train and test."""
    write_folder(folder / "train", *pictures(20, 0))
    write_folder(folder / "test", *pictures(6, 1))


def write_npz(path: Path) -> None:
    """The same data set in one file."""
    (images, labels), (others, more) = pictures(20, 0), pictures(6, 1)
    arrays: dict[str, Any] = {"train_images": images, "train_labels": labels, "test_images": others}
    np.savez_compressed(path, **arrays, test_labels=more, classes=np.array(NAMES))


def write_frames(path: Path, steps: int) -> None:
    """Sequences of event counts (N, T, 2, 8, 8): a bar that moves right or down."""
    random = np.random.default_rng(0)
    arrays: dict[str, Any] = {}
    for split, count in (("train", 40), ("test", 8)):
        labels = np.arange(count) % 2
        frames = random.poisson(0.05, (count, steps, 2, 8, 8)).astype(np.uint8)
        for t in range(steps):
            frames[labels == 0, t, 0, 2 * t % 8] += 8
            frames[labels == 1, t, 1, :, 2 * t % 8] += 8
        arrays |= {f"{split}_images": frames, f"{split}_labels": labels}
    np.savez_compressed(path, **arrays)


def write_fashion(folder: Path) -> None:
    """Fashion-MNIST's files as Debian's dataset-fashion-mnist installs them, with few images."""
    folder.mkdir(parents=True)
    for part, count, seed in (("train", 40, 0), ("t10k", 6, 1)):
        images, labels = pictures(count, seed, 28)
        for name, array in (("images-idx3", images[:, 0]), ("labels-idx1", labels)):
            header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
            content = gzip.compress(header + array.astype(np.uint8).tobytes())
            (folder / f"{part}-{name}-ubyte.gz").write_bytes(content)
