"""Data as a program has it, as the `Data` that training, pruning and checks work on."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from soul_deploy.base import Array, errors, pixel_rule
from soul_deploy.data.datasets import load_data_for, load_data_of, require_kind
from soul_deploy.data.own import READERS as OWN
from soul_deploy.data.samples import SPLITS, Data, Split, filled
from soul_deploy.model.model import Model
from soul_deploy.nn.given_input import shows_image

DataLike: TypeAlias = Data | str | tuple[Any, Any] | Dataset[Any] | Mapping[str, Any]
"""What `as_data` takes."""


def as_data(data: DataLike, *, model: Model | None = None, data_dir: Path | None = None) -> Data:
    """`data` with its three splits, checked against `model`.

    data      a `Data`; the name of a data set of ours, read from `data_dir` ("data" if None); a
              pair (images, labels) of numpy arrays or tensors; a torch Dataset of (image, label),
              which is read into memory; or a mapping with "train" and perhaps "validation" and
              "test", each a pair or a Dataset. Splits that are missing are taken from "train", a
              tenth of it each, class by class, by a permutation with a fixed seed.
    images    (N, C, H, W), or (N, H, W) of one channel, or (N, features), or sequences
              (N, T, C, H, W) of the model's T. uint8 are pixels, which are normalised as `model`
              says, by 1/255 if it says nothing; floating-point numbers are taken as they are.
    labels    (N,) integers from 0.

    Raises DataError for wrong arrays, UsageError for data that does not fit the model, and what
    `load_data` raises.
    """
    folder = Path("data") if data_dir is None else data_dir
    if isinstance(data, str):
        found = load_data_of(model, data, folder) if model else load_data_for((), data, folder)
    else:
        found = data if isinstance(data, Data) else _given(data, model)
    if model is None:
        return found
    check_data("the model", model, found)
    return fitted(model, found)


def check_data(whose: str | Path, model: Model, data: Data) -> None:
    """Raise UsageError unless `whose` network fits the data's images, classes and kind."""
    require_kind(data, model.info.input_kind, str(whose))
    steps = model.graph.time_steps if data.frames else None
    for what, needs, has in (
        ("images of", model.input_shape, data.input_shape),
        ("sequences of T =", steps, data.steps),
        ("classes:", model.graph.readout.classes, len(data.classes)),
    ):
        if needs != has:
            raise errors.UsageError(
                f"{whose} needs {what} {needs}, but data set {data.name!r} has {has}; "
                "give the data set that it was trained on with --dataset_name"
                + ("; leave --size out" if what == "images of" and data.stored_side else "")
            )
    require_classes(data, model, str(whose))


def require_classes(data: Data, model: Model, whose: str) -> None:
    """Raise UsageError where data and `whose` network name their classes, and otherwise."""
    theirs, ours = model.info.classes, data.names
    if data.name in OWN and theirs and ours and theirs != ours:
        wrong = [(has, needs) for has, needs in zip(ours, theirs, strict=False) if has != needs]
        first = f"{wrong[0][0]} where it has {wrong[0][1]}" if wrong else f"{len(ours)} of them"
        raise errors.UsageError(
            f"data set {data.name!r} has other classes than {whose}: {first}; give the data set "
            "that it was trained on with --data_dir"
        )


def _given(data: Any, model: Model | None) -> Data:
    splits = filled(_splits(data))
    most = max(int(split.labels.max()) for split in splits.values())
    count = most + 1 if model is None else model.graph.readout.classes
    if most >= count:
        raise errors.DataError(f"labels up to {most} given; the model has {count} classes, from 0")
    info = None if model is None else model.info
    classes = info.classes if info and info.classes else tuple(map(str, range(count)))
    norm, kind = (info.normalization, info.input_kind) if info else (None, "images")
    train, validation, test = (splits[name] for name in SPLITS)
    frames = train.images.ndim == 5
    return Data("given", train, validation, test, classes, norm, input_kind=kind, frames=frames)


def _splits(data: Any) -> dict[str, Split]:
    """The splits that were given."""
    if not isinstance(data, Mapping):
        return {"train": _split("train", data)}
    if "train" not in data or not set(data) <= set(SPLITS):
        names = ", ".join(map(str, data)) or "none"
        raise errors.UsageError(
            f"data with the splits {names} given; needs train, takes validation, test"
        )
    return {name: _split(name, data[name]) for name in SPLITS if name in data}


def _split(name: str, given: Any) -> Split:
    if isinstance(given, tuple | list) and len(given) == 2:
        images, labels = map(_tensor, given)
    elif isinstance(given, Dataset) and not isinstance(given, IterableDataset):
        images, labels = _read(given)
    else:
        raise errors.UsageError(
            f"{name}: {type(given).__name__} given; needs (images, labels) or a torch Dataset with "
            "a length, of (image, label)"
        )
    if images.ndim == 3:
        images = images.unsqueeze(1)
    if images.is_floating_point():
        images = images.float()
    whole = labels.ndim == 1 and not (labels.is_floating_point() or labels.is_complex())
    if images.ndim not in (2, 4, 5) or not whole or len(images) != len(labels) or not len(labels):
        raise errors.DataError(
            f"{name}: images {tuple(images.shape)} and labels {labels.dtype}{tuple(labels.shape)}; "
            "needs images (N, C, H, W), (N, H, W) or (N, features), or sequences (N, T, C, H, W), "
            "and integer labels (N,)"
        )
    if images.dtype not in (torch.uint8, torch.float32) or not images.isfinite().all():
        raise errors.DataError(f"{name}: images of {images.dtype}; needs uint8 or finite numbers")
    if labels.min() < 0:
        raise errors.DataError(f"{name}: label {int(labels.min())}; labels count from 0")
    return Split(images, labels.long())


def _tensor(values: Any) -> Tensor:
    """A tensor of an array, of a tensor on any device, or of numbers in lists."""
    if isinstance(values, Tensor):
        return values.detach().cpu()
    try:
        return torch.from_numpy(np.array(values))
    except (TypeError, ValueError) as error:
        raise errors.DataError(f"no array of numbers: {str(error)[:200]}") from error


def _read(dataset: Any) -> tuple[Tensor, Tensor]:
    """All images and labels of a Dataset; a PIL image becomes (C, H, W)."""
    images, labels = [], []
    for index in range(len(dataset)):
        image, label = dataset[index]
        pixels = _tensor(image)
        if not isinstance(image, Tensor | np.ndarray) and pixels.ndim == 3:
            pixels = pixels.permute(2, 0, 1)
        images.append(pixels)
        labels.append(int(label))
    if len({(image.shape, image.dtype) for image in images}) != 1:
        raise errors.DataError(f"a Dataset of {len(images)} images, not all of one shape and dtype")
    return torch.stack(images), torch.tensor(labels)


Images: TypeAlias = Tensor | Array | Data


def images_for(model: Model, images: Images) -> tuple[Tensor, int]:
    """`images` in float32 (int16 of a fixed-point network), as `model` takes them, and the batch
    axis: 0, or 1 for a sequence.

    images: an array or a tensor (B, C, H, W), or (T, B, C, H, W) for a sequence; uint8 are pixels
    and normalised as the model says, floating-point numbers are taken as they are. Of a data set
    the test images, normalised as the model says, or else as the data set does.
    Raises ValidityError for numbers that mean nothing to the model and for another shape or T,
    UsageError for data that do not fit.
    """
    if isinstance(images, Data):
        data = fitted(model, images)
        return taken(model, data, data.test.images), 1 if data.frames else 0
    rule = model.input_rule
    given = images.detach().cpu() if isinstance(images, Tensor) else images
    numbers = pixel_rule.numbers_of(pixel_rule.input_array(given, rule, "images"), rule, "images")
    found = torch.from_numpy(np.ascontiguousarray(numbers))
    return found, 0 if shows_image(model.graph, found) else 1


def taken(model: Model, data: Data, images: Tensor) -> Tensor:
    """Images of a data set (or of one of its splits) as the model takes them: normalised, or the
    integers of a fixed-point network.
    """
    rule = model.input_rule
    if rule.integers is None and rule.events is None:
        return data.normalise(images)
    array = pixel_rule.input_array(images.numpy(), rule, data.name)
    whole = pixel_rule.numbers_of(array, rule, data.name)
    return data.arranged(torch.from_numpy(whole))


def fitted(model: Model, data: Data) -> Data:
    """`data` with the model's normalisation, if it has one. Raises UsageError if they don't fit."""
    if data.input_shape != model.input_shape:
        raise errors.UsageError(
            f"{data.name} has images of {data.input_shape}, this model takes {model.input_shape}"
        )
    require_kind(data, model.info.input_kind, "the model")
    if data.frames and data.steps != model.graph.time_steps:
        raise errors.UsageError(
            f"{data.name} has sequences of {data.steps} steps, this model runs T = "
            f"{model.graph.time_steps}"
        )
    norm = model.info.normalization
    return data if norm is None else replace(data, normalization=norm)
