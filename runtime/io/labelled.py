"""Images and labels in a .npz archive: which of its arrays they are, and what their axes mean.

An archive holds one set of samples, `images` and perhaps `labels` (or `x`, `y`), or the splits of a
data set: `train_images`, `train_labels`, `test_…`, `val_…` (or `x_train`, `y_train`, …, as Keras
writes them). `classes`, names, and `input_kind`, a word of pixel_rule.py, may stand beside them.
The first axis counts samples. Frame sequences are (N, T, C, H, W).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from soul_deploy.base import Array, brief, errors, pixel_rule
from soul_deploy.base.opening import OpenFile
from soul_deploy.runtime.io import arrays
from soul_deploy.runtime.io.folders import SPLITS

ONE = ""
"""The name of a set that is no split."""
PAIRS = {(ONE, "images", "labels"), (ONE, "x", "y")} | {
    (split, *pair)
    for word, split in SPLITS.items()
    for pair in ((f"{word}_images", f"{word}_labels"), (f"x_{word}", f"y_{word}"))
}
"""(split, name of the images, name of the labels)."""
CLASSES, KIND = "classes", "input_kind"
CHANNELS = 4  # of images, at most


@brief
@dataclass(frozen=True)
class LabelledArrays:
    """What an archive holds: split (or ONE) -> (images as stored, labels (N,) int64 or None)."""

    path: Path
    sets: Mapping[str, tuple[Array, Array | None]]
    classes: tuple[str, ...] = ()
    input_kind: pixel_rule.InputKind | None = None


def read_labelled(path: Path) -> LabelledArrays:
    """The samples of a .npz archive. Raises MissingFileError, FileFormatError, LimitError, and
    DataError for arrays that are no images and labels.
    """
    with OpenFile(path) as source:
        names = arrays.npz_names(source)
        pairs = [pair for pair in sorted(PAIRS) if pair[1] in names]
        splits = [split for split, *_ in pairs]
        if not pairs or len(set(splits)) < len(splits) or (ONE in splits and len(splits) > 1):
            raise errors.DataError(
                f"{path} holds {', '.join(names) or 'nothing'}; needed are images and labels, or "
                "train_images, train_labels, test_images, test_labels (perhaps val_…), once each"
            )
        wanted = {name for _, *pair in pairs for name in pair} | {CLASSES, KIND}
        held = arrays.read_npz(source, [name for name in names if name in wanted])
    sets = {
        split: _labelled(path, images, held[images], held.get(labels))
        for split, images, labels in pairs
    }
    return LabelledArrays(path, sets, _texts(path, held.get(CLASSES)), _kind(path, held.get(KIND)))


def _labelled(
    path: Path, name: str, images: Array, labels: Array | None
) -> tuple[Array, Array | None]:
    if images.ndim < 2 or not len(images):
        raise errors.DataError(f"{path}: {name} is {images.shape}; needed are samples (N, …)")
    if labels is None:
        return images, None
    column = labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels
    if column.shape != images.shape[:1] or column.dtype.kind not in "iu":
        raise errors.DataError(
            f"{path}: the labels of {name} {images.shape} are {labels.dtype} {labels.shape}; "
            "needed are integers (N,), one per sample"
        )
    if column.min() < 0 or column.max() >= 1 << 31:
        raise errors.DataError(f"{path}: labels of {name} count from 0; {column.min()} is there")
    return images, column.astype(np.int64)


def _texts(path: Path, classes: Array | None) -> tuple[str, ...]:
    if classes is None:
        return ()
    if classes.ndim != 1 or classes.dtype.kind != "U" or len(set(classes)) < len(classes):
        raise errors.DataError(f"{path}: classes are to be different names, in one row")
    return tuple(map(str, classes))


def _kind(path: Path, kind: Array | None) -> pixel_rule.InputKind | None:
    if kind is None:
        return None
    word = str(kind) if kind.ndim == 0 and kind.dtype.kind == "U" else repr(kind)[:40]
    if not pixel_rule.is_input_kind(word):
        valid = ", ".join(pixel_rule.INPUT_KINDS)
        raise errors.DataError(f"{path}: its input_kind is {word}; valid: {valid}")
    return word


def agreed_kind(
    held: LabelledArrays, given: pixel_rule.InputKind | None, whose: str
) -> pixel_rule.InputKind:
    """What the numbers are: as the archive records, else as `given`, else images.

    given: from the network's file or a flag; whose: says which. Raises UsageError where the two
    differ, and for frame sequences of which neither says it: uint8 may be pixels or counts.
    """
    recorded = held.input_kind
    if recorded is not None and given is not None and recorded != given:
        raise errors.UsageError(
            f"{held.path} records input_kind {recorded}, but {whose} takes {given}; give data of "
            "that kind"
        )
    known = recorded or given
    if known is None and any(images.ndim == 5 for images, _ in held.sets.values()):
        raise errors.UsageError(
            f"{held.path} holds frame sequences, and nothing says whether their numbers are "
            "pixels; give --input_kind, or an array input_kind in the archive: "
            f"{', '.join(pixel_rule.INPUT_KINDS)}"
        )
    return known or pixel_rule.KIND_OF_OLD_FILES


def by_axes(
    path: Path, images: Array, kind: pixel_rule.InputKind, shape: tuple[int, ...] | None = None
) -> tuple[Array, bool]:
    """(images, whether they are sequences): (N, *shape), or (N, T, *shape).

    shape: what the network takes; None: not known, and the number of axes alone decides. One axis
    is never taken for another: raises DataError for what could be read in two ways.
    """
    grey = kind == "images" and images.ndim == 3 and (shape is None or len(shape) == 3)
    array = images[:, None] if grey else images
    if shape is not None:
        leading = array.ndim - len(shape)
        if leading in (1, 2) and array.shape[leading:] == shape:
            return array, leading == 2
        sides = ", ".join(map(str, shape))
        raise errors.ValidityError(
            f"{path} holds {images.shape}; the network takes (N, {sides}), or (N, T, {sides}) for "
            "sequences, samples first"
        )
    if array.ndim not in (2, 4, 5):
        raise errors.DataError(
            f"{path} holds {kind} of {images.shape}; needed are (N, C, H, W), (N, features) or "
            "frame sequences (N, T, C, H, W); images of one channel may be (N, H, W)"
        )
    if kind == "images" and array.ndim > 2 and array.shape[-3] > CHANNELS >= array.shape[-1]:
        raise errors.DataError(
            f"{path} holds images of {images.shape}, whose channels stand last, it seems; needed "
            "are (N, C, H, W): np.moveaxis(images, -1, -3)"
        )
    return array, array.ndim == 5
