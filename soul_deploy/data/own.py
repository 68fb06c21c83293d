"""The user's own data sets: a folder of images, and arrays in .npz files.

Splits are called train, test and val (or validation), at least train. A missing validation or test
split is a tenth of the training samples each, class by class, by a permutation with a fixed seed.
Pixels are normalised by mean and deviation of the samples that are left for training, channel by
channel, which the model file records; whoever has a model takes what it records.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from soul_deploy.base import Array, errors, pixel_rule, progress
from soul_deploy.base.pixel_rule import InputKind, InputRule
from soul_deploy.data.samples import SPLITS, Data, Split, filled
from soul_deploy.ir import Shape
from soul_deploy.model.model import Normalization
from soul_deploy.runtime.io import folders, images, labelled

FOLDER, NPZ = "folder", "npz"
Raw = Mapping[str, tuple[Array, Array]]
"""Split -> images (N, ...) and labels (N,) int64."""


@dataclass(frozen=True)
class Form:
    """What is asked of the data.

    size   side in pixels to which images are scaled (bilinear)
    shape  (C, H, W) that a network takes; images are scaled to it
    kind   what a network takes, or what the user says the numbers are
    """

    size: int | None = None
    shape: Shape | None = None
    kind: InputKind | None = None


def read_folder(folder: Path, form: Form) -> Data:
    """A folder of images: a folder per class in train, test and val, or classes without splits.

    Grey images alone give one channel, others three. Images of different sizes need form.size.
    Raises MissingFileError, UsageError for a folder that leaves open what is meant, and what
    `read_image` raises.
    """
    if form.kind not in (None, "images"):
        raise errors.UsageError(f"data set 'folder' holds images, but {form.kind} are needed")
    _require_there(FOLDER, folder, folder.is_dir())
    splits = folders.split_folders(folder)
    listed = {name: folders.list_images(path, is_split=True) for name, path in splits.items()}
    listed = listed or {"train": folders.list_images(folder)}
    labels = _labels(folder, listed)
    shape, scaled = _shape_of(folder, listed, form)
    rule = InputRule(shape, 1, resize=scaled)
    raw: dict[str, tuple[Array, Array]] = {}
    for name, found in listed.items():
        progress.status(f"reading {len(found.paths)} images of {found.folder}")
        raw[name] = images.read_images(found.paths, rule), labels[name]
    sides = f"{shape[2]}×{shape[1]}"
    notes = [f"data set folder: its images are scaled to {sides} (bilinear)"] if scaled else []
    return _data(FOLDER, raw, listed["train"].classes, "images", notes)


def _labels(folder: Path, listed: Mapping[str, folders.ImageFiles]) -> dict[str, Array]:
    """Labels by the classes of the training split."""
    classes = listed["train"].classes
    found = {}
    for name, files in listed.items():
        if not files.classes:
            raise errors.UsageError(
                f"{files.folder} holds images without labels; put them into a folder per class"
            )
        unknown = [name for name in files.classes if name not in classes]
        if unknown:
            raise errors.UsageError(
                f"{files.folder} holds the classes {', '.join(unknown[:3])}, which the training "
                f"images of {folder} lack; they have {', '.join(classes[:20])}"
            )
        places = np.array([classes.index(name) for name in files.classes], np.int64)
        found[name] = places[np.array(files.labels)]
    return found


def _shape_of(
    folder: Path, listed: Mapping[str, folders.ImageFiles], form: Form
) -> tuple[Shape, bool]:
    """(C, H, W), and whether any image is scaled to it."""
    sizes: dict[tuple[int, int], Path] = {}
    channels = 1
    for found in listed.values():
        for path in found.paths:
            depth, size = images.measure_image(path)
            channels = max(channels, depth)
            sizes.setdefault(size, path)
    if form.shape is not None and len(form.shape) == 3:
        return form.shape, set(sizes) != {form.shape[1:]}
    if form.size is not None:
        return (channels, form.size, form.size), set(sizes) != {(form.size, form.size)}
    if len(sizes) > 1:
        first, second = (f"{path} {size[1]}×{size[0]}" for size, path in [*sizes.items()][:2])
        raise errors.UsageError(
            f"{folder} holds images of {len(sizes)} sizes ({first}, {second}, …); give --size, the "
            "side in pixels to which all are scaled"
        )
    return (channels, *next(iter(sizes))), False


def read_npz(place: Path, form: Form) -> Data:
    """A .npz file that holds all splits, or train.npz, test.npz and val.npz in a folder.

    Raises MissingFileError, UsageError for what leaves open what is meant, FileFormatError for
    damaged files, DataError for arrays that are no samples.
    """
    _require_there(NPZ, place, place.exists())
    if form.size is not None:
        raise errors.UsageError("size is for images in files; the arrays of a .npz keep their size")
    held = _archives(place) if place.is_dir() else {labelled.ONE: labelled.read_labelled(place)}
    kinds = {labelled.agreed_kind(archive, form.kind, "the network") for archive in held.values()}
    texts = {archive.classes for archive in held.values() if archive.classes}
    if len(kinds) > 1 or len(texts) > 1:
        told = "input kinds" if len(kinds) > 1 else "classes"
        raise errors.DataError(f"the files in {place} record different {told}")
    (kind,) = kinds
    raw: dict[str, tuple[Array, Array]] = {}
    sequences = set()
    for archive, name, samples, labels in _sets(held):
        array, frames = labelled.by_axes(archive.path, samples, kind, form.shape)
        raw[name] = _stored(archive.path, array, kind), labels
        sequences.add(frames)
    if len(sequences) > 1:
        raise errors.DataError(f"{place}: one split holds sequences, another does not")
    return _data(NPZ, raw, next(iter(texts), ()), kind, [], frames=sequences == {True})


def _archives(folder: Path) -> dict[str, labelled.LabelledArrays]:
    """Split -> its file in a folder."""
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() == ".npz")
    splits = {folders.SPLITS.get(path.stem.lower(), ""): path for path in paths}
    if "train" not in splits or "" in splits or len(splits) < len(paths):
        names = ", ".join(path.name for path in paths[:5]) or "no .npz file"
        raise errors.UsageError(
            f"{folder} holds {names}; needed are train.npz, and perhaps test.npz and val.npz, "
            "alone, or give the path of one file that holds all"
        )
    return {name: labelled.read_labelled(path) for name, path in splits.items()}


def _sets(
    held: Mapping[str, labelled.LabelledArrays],
) -> list[tuple[labelled.LabelledArrays, str, Array, Array]]:
    """(archive, split, images, labels) of all splits."""
    found = []
    for place, archive in held.items():
        if place and set(archive.sets) != {labelled.ONE}:
            raise errors.UsageError(
                f"{archive.path} stands for the {place} split and holds splits itself; give it "
                "images and labels alone"
            )
        for split, (samples, labels) in archive.sets.items():
            if labels is None:
                raise errors.DataError(f"{archive.path} holds images without labels")
            found.append((archive, place or split or "train", samples, labels))
    if "train" not in (split for _, split, *_ in found):
        raise errors.DataError(f"{found[0][0].path} holds no training samples")
    return found


def _stored(path: Path, array: Array, kind: InputKind) -> Array:
    """uint8 as they are, other numbers in float32. Raises ValidityError."""
    if array.dtype == np.uint8:
        return np.ascontiguousarray(array)
    rule = InputRule(array.shape[1:], 1, kind=kind)
    numbers = pixel_rule.numbers_of(pixel_rule.input_array(array, rule, str(path)), rule, str(path))
    return np.ascontiguousarray(numbers)


def _data(
    name: str,
    raw: Raw,
    classes: tuple[str, ...],
    kind: InputKind,
    notes: list[str],
    *,
    frames: bool = False,
) -> Data:
    count = len(classes) or 1 + max(int(labels.max()) for _, labels in raw.values())
    for split, (_, labels) in raw.items():
        if labels.max() >= count:
            raise errors.DataError(
                f"data set {name!r}: {split} has a label {labels.max()}, and {count} classes count "
                "from 0"
            )
    _require_classes(name, count, raw, named=bool(classes))
    tensors = {split: Split(*map(torch.from_numpy, pair)) for split, pair in raw.items()}
    train, validation, test = filled(tensors).values()
    return Data(
        name,
        train,
        validation,
        test,
        classes=classes or tuple(map(str, range(count))),
        normalization=_normalization(train.images.numpy()) if kind == "images" else None,
        input_kind=kind,
        frames=frames,
        notes=(*notes, *_taken(name, raw)),
    )


def _require_classes(name: str, count: int, raw: Raw, named: bool) -> None:
    """Raises DataError for one class, and for a class without a name that no sample is of: a head
    is made of as many outputs as the highest label says.
    """
    if count < 2:
        raise errors.DataError(
            f"data set {name!r} has one class, which nothing is told from; give two at least"
        )
    found = len(np.unique(np.concatenate([labels for _, labels in raw.values()])))
    if not named and found < count:
        raise errors.DataError(
            f"data set {name!r}: its labels are {found} numbers from 0 to {count - 1}; number them "
            "without gaps, or name all classes in an array classes"
        )


def _taken(name: str, raw: Raw) -> list[str]:
    """What is said of splits that are missing."""
    missing = [f"{split} split" for split in SPLITS if split not in raw]
    if not missing:
        return []
    return [
        f"data set {name}: it has no {' and '.join(missing)}; a tenth of its "
        f"{len(raw['train'][1])} training samples is taken for each, class by class"
    ]


def _normalization(pixels: Array) -> Normalization | None:
    """Mean and deviation of each channel of uint8 pixels (..., C, H, W), to four digits; None for
    features and for floating-point numbers, which are taken as they are.
    """
    if pixels.dtype != np.uint8 or pixels.ndim < 4:
        return None
    counts = np.zeros((pixels.shape[-3], 256), np.int64)
    for sample in pixels:
        for channel, values in enumerate(np.moveaxis(sample, -3, 0)):
            counts[channel] += np.bincount(values.ravel(), minlength=256)
    levels, total = np.arange(256) / 255, counts.sum(1)
    mean = counts @ levels / total
    deviation = np.sqrt(np.maximum(counts @ levels**2 / total - mean**2, 0))
    return Normalization(
        tuple(round(float(value), 4) for value in mean),
        tuple(round(float(value), 4) or 1.0 for value in deviation),
    )


def _require_there(name: str, place: Path, there: bool) -> None:
    if not there:
        what = "folder of images" if name == FOLDER else ".npz file, or folder of them,"
        raise errors.MissingFileError(
            f"data set {name!r}: no {what} at {place}; give it with --data_dir"
        )


READERS: Mapping[str, Callable[[Path, Form], Data]] = {FOLDER: read_folder, NPZ: read_npz}
