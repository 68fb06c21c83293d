"""The samples that a command hands to a model: of a data set, of files, or random numbers."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from soul_deploy.base import brief, errors
from soul_deploy.data import datasets, event_sets, given
from soul_deploy.model.model import Model
from soul_deploy.runtime.io import images, inputs


@brief
@dataclass(frozen=True, kw_only=True)
class Chosen:
    """Samples as a model takes them.

    images   float32 (N, C, H, W), or (T, N, C, H, W) for sequences
    labels   (N,), where they are known
    name     the data set's name, the path, or "random"; split: of the data set, or "all"
    what     all of that in words; remarks: sentences on what was done to the data
    """

    images: Tensor
    labels: Tensor | None
    name: str
    split: str
    what: str
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What is asked for.

    source    as `inputs.read_input_name` reads it; "data" is the data set that the model records
    dataset   a data set's name that "data" stands for instead
    split     of a data set; the first `count` samples of it are taken
    resize    scale image files of another size; seed: of random numbers
    events    how frames of events are made, where the model's file does not say it
    """

    source: str = inputs.DATA
    dataset: str | None = None
    data_dir: Path = Path("data")
    download: bool = False
    split: str = "test"
    count: int = 32
    seed: int = 2025
    resize: bool = False
    events: datasets.EventOptions = event_sets.DEFAULTS


def choose(model: Model, wish: Wish) -> Chosen:
    """The samples, normalised as the model's file says.

    Raises UsageError where nothing says which data are meant, or two things are said; and what
    `load_data` and `runtime.io.inputs.named_samples` raise.
    """
    name = inputs.read_input_name(wish.source)
    if wish.dataset is not None:
        if name.kind != "data":
            raise errors.UsageError(
                f"--input {wish.source} and --dataset_name {wish.dataset} are both given; leave "
                "one of them out"
            )
        name = inputs.InputName("name", datasets.canonical_data_name(wish.dataset))
    elif name.kind == "data":
        name = inputs.InputName("name", _recorded(model))
    return (
        _of_data_set(model, name.text, wish) if name.kind == "name" else _other(model, name, wish)
    )


def _recorded(model: Model) -> str:
    found = model.info.provenance.get("data")
    if not isinstance(found, str):
        raise errors.UsageError(
            "the model file does not say which data it was trained on; give --dataset_name, or "
            "--input random for random pixels, or --input and a path: .npy, .npz or a folder of "
            "images"
        )
    return found


def _of_data_set(model: Model, name: str, wish: Wish) -> Chosen:
    """The first samples of the split."""
    loaded = datasets.load_data_of(
        model, name, wish.data_dir, download=wish.download, events=wish.events
    )
    data = given.fitted(model, loaded)
    given.require_classes(data, model, "the model")
    split: datasets.Split = getattr(data, wish.split)
    taken = split.images[: wish.count]
    return Chosen(
        images=given.taken(model, data, taken),
        labels=split.labels[: wish.count],
        name=data.name,
        split=wish.split,
        what=f"{len(taken)} {wish.split} images of {name}",
        remarks=data.remarks,
    )


def _other(model: Model, name: inputs.InputName, wish: Wish) -> Chosen:
    """Samples of files, at equal distances, or random ones."""
    rule = replace(model.input_rule, resize=wish.resize)
    found = inputs.named_samples(name, rule, wish.count, data_dir=wish.data_dir, seed=wish.seed)
    count = len(found.names)
    labels, remarks = _labels(model, found, name.text)
    drawn = f"{count} random {rule.kind}, seed {wish.seed}"
    return Chosen(
        images=torch.from_numpy(np.require(found.values, requirements=["C", "W"])),
        labels=labels,
        name=name.text,
        split="all",
        what=drawn if name.kind == "random" else f"{count} images of {name.text}",
        remarks=remarks,
    )


def _labels(
    model: Model, found: images.Samples, name: str
) -> tuple[Tensor | None, tuple[str, ...]]:
    """Labels as the model counts its classes, and a remark where they cannot be told."""
    if found.labels is None:
        return None, ()
    labels, classes = found.labels, model.info.classes
    if found.classes:
        if not set(found.classes) <= set(classes):
            return None, (f"{name}: its classes are not the network's, so its labels are not used",)
        labels = np.array([classes.index(name) for name in found.classes], np.int64)[labels]
    if labels.max() >= model.graph.readout.classes:
        raise errors.DataError(
            f"{name}: a label {labels.max()}; the network has {model.graph.readout.classes} "
            "classes, from 0"
        )
    return torch.from_numpy(labels), ()
