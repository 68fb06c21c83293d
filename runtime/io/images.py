"""Files as batches: images (PNG, JPEG, …), .npy and .npz arrays, shaped and normalised.

What their numbers mean stands in pixel_rule.py.
"""

import math
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from soul_deploy.base import Array, brief, errors, file_kinds, files, memory, pixel_rule
from soul_deploy.base.pixel_rule import InputRule
from soul_deploy.runtime.io import arrays, folders, labelled

if TYPE_CHECKING:
    from PIL.Image import Image

MODES = {1: "L", 3: "RGB"}
GREY = ("1", "L", "LA", "La")
IMAGE_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "PPM", "TIFF", "WEBP")
MAX_PIXELS = 1 << 25


@brief
@dataclass(frozen=True)
class Samples:
    """Named samples: (B, C, H, W), or (T, B, C, H, W) if `sequence`; float32.

    labels: (B,) int64, where the files say them: indexes into `classes`, or, where that is empty,
    into the network's classes.
    """

    names: tuple[str, ...]
    values: Array
    sequence: bool = False
    labels: Array | None = None
    classes: tuple[str, ...] = ()

    @property
    def axis(self) -> int:
        """The batch axis of `values`."""
        return 1 if self.sequence else 0


def read_path(path: Path, rule: InputRule, count: int | None = None) -> Samples:
    """The samples of an image, a folder of images, a .npy or a .npz file.

    count: at most so many of them, at equal distances; None: all.
    Raises MissingFileError, FileFormatError for damaged files, ValidityError for another shape,
    and what `list_images` and `read_labelled` raise.
    """
    suffix = path.suffix.lower()
    if suffix == ".npz":
        return read_archive(path, rule, count)
    if suffix == ".npy":
        return first_samples(read_array(path, rule), count)
    if os.path.isdir(path):  # no error for a name that cannot be looked up
        return read_folder(path, rule, count)
    return Samples((str(path),), pixel_rule.normalise(read_images([path], rule), rule))


def first_samples(samples: Samples, count: int | None) -> Samples:
    """At most `count` of the samples, at equal distances."""
    total = len(samples.names)
    if count is None or total <= count:
        return samples
    chosen = list(folders.spread(total, count))
    labels = samples.labels if samples.labels is None else samples.labels[chosen]
    names = tuple(samples.names[i] for i in chosen)
    values = samples.values.take(chosen, samples.axis)
    return Samples(names, values, samples.sequence, labels, samples.classes)


def read_folder(path: Path, rule: InputRule, count: int | None = None) -> Samples:
    """Images in a folder, or in a folder per class, as `list_images` finds them."""
    found = folders.list_images(path)
    found = found if count is None else found.spread(count)
    values = pixel_rule.normalise(read_images(found.paths, rule), rule)
    labels = np.array(found.labels, np.int64) if found.classes else None
    return Samples(tuple(map(str, found.paths)), values, labels=labels, classes=found.classes)


def read_archive(path: Path, rule: InputRule, count: int | None = None) -> Samples:
    """The one set of samples of a .npz file; frames (N, T, ...) become (T, N, ...)."""
    held = labelled.read_labelled(path)
    if labelled.ONE not in held.sets:
        raise errors.UsageError(
            f"{path} holds the splits {', '.join(held.sets)}; give it as the data "
            f"set called npz, with --data_dir {path}, or give an archive of images and labels alone"
        )
    labelled.agreed_kind(held, rule.kind, "the network")
    images, labels = held.sets[labelled.ONE]
    array, frames = labelled.by_axes(path, images, rule.kind, rule.shape)
    chosen = list(folders.spread(len(array), len(array) if count is None else count))
    if count is not None:
        array, labels = array[chosen], None if labels is None else labels[chosen]
    found = _samples(str(path), array.swapaxes(0, 1) if frames else array, rule)
    names = tuple(f"{path}[{index}]" for index in chosen)
    return Samples(names, found.values, frames, labels, held.classes)


def read_images(paths: Sequence[Path], rule: InputRule) -> Array:
    """Pixels (N, C, H, W) of uint8, as `read_image` gives them.

    Raises LimitError, before the first is decoded, if they take more than the machine has.
    """
    needed = 5 * len(paths) * math.prod(rule.shape)  # as pixels, and normalised in float32
    memory.require_memory(f"{len(paths)} images", needed, None, arrays.INSTEAD)
    pixels = np.empty((len(paths), *rule.shape), np.uint8)
    for index, path in enumerate(paths):
        pixels[index] = read_image(path, rule)
    return pixels


def measure_image(path: Path) -> tuple[int, tuple[int, int]]:
    """(channels, 1 for grey or 3, (height, width)) of an image, of which no pixel is decoded.

    Raises MissingFileError, FileFormatError, ValidityError for pixels of more than 8 bits.
    """
    from PIL.Image import open as opening

    files.require_file(path)
    with _decoding(path), opening(path, formats=IMAGE_FORMATS) as opened:
        _require_bytes(path, opened)
        return (1 if opened.mode in GREY else 3), (opened.height, opened.width)


def read_image(path: Path, rule: InputRule) -> Array:
    """Pixels (C, H, W) of uint8, converted to grey or RGB as the network has 1 or 3 channels.

    Raises MissingFileError, FileFormatError, ValidityError if the network takes none.
    """
    if rule.kind != "images":
        raise errors.ValidityError(
            f"{path}: the network takes {rule.kind}, not images; give a .npy array of them"
        )
    mode = MODES.get(rule.shape[0]) if len(rule.shape) == 3 else None
    if mode is None:
        raise errors.ValidityError(
            f"{path}: the network takes {rule.shape}, which is no grey or RGB image; give a .npy "
            "array"
        )
    height, width = rule.shape[1:]
    files.require_file(path)
    with _decoding(path):
        image = _decoded(path, mode, None if rule.resize else (width, height))
    if image.size != (width, height):
        from PIL.Image import Resampling  # arrays alone need no Pillow

        image = image.resize((width, height), Resampling.BILINEAR)
    pixels = np.asarray(image, np.uint8)
    return pixels[None] if pixels.ndim == 2 else np.moveaxis(pixels, -1, 0)


@contextmanager
def _decoding(path: Path) -> Iterator[None]:
    """Whatever a decoder raises as a FileFormatError; errors of ours stay. Its warnings, of
    metadata that is not used, are passed over.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except errors.SoulDeployError:
        raise
    except Exception as error:  # decoders fail in a dozen ways on foreign bytes
        found = file_kinds.kind_of(path)
        if found in ("array", "arrays"):
            suffix = {"array": ".npy", "arrays": ".npz"}[found]
            text = f"{path} is {file_kinds.KINDS[found].what}, not an image; let its name end in"
            raise errors.FileFormatError(f"{text} {suffix}") from error
        if found not in (None, "image"):
            raise file_kinds.wrong_kind(path, found, "an image or an array") from error
        raise errors.FileFormatError(
            f"{path} is not an image that can be read ({error}); readable: "
            f"{', '.join(IMAGE_FORMATS)}, and .npy arrays"
        ) from error


def _decoded(path: Path, mode: str, size: tuple[int, int] | None) -> "Image":
    """The image; its size is looked at before its pixels are decoded.

    Only these formats: others run programs (PostScript), or have several images. Raises
    ValidityError for another size, and whatever Pillow raises.
    """
    from PIL.Image import open as opening

    with opening(path, formats=IMAGE_FORMATS) as opened:
        if size is not None and size != opened.size:
            raise errors.ValidityError(
                f"{path} is {opened.size[0]}×{opened.size[1]} pixels (width × height), the "
                f"network takes {size[0]}×{size[1]}; give --resize to scale it"
            )
        if opened.size[0] * opened.size[1] > MAX_PIXELS:
            raise ValueError(f"{opened.size} is more than {MAX_PIXELS} pixels")
        _require_bytes(path, opened)
        return opened.convert(mode)


def _require_bytes(path: Path, image: "Image") -> None:
    if image.mode[0] in "IF":  # converting would cut them off at 255
        raise errors.ValidityError(
            f"{path} has pixels of more than 8 bits (mode {image.mode}), which nothing says how to "
            "scale; make an 8-bit image of it"
        )


def read_array(path: Path, rule: InputRule) -> Samples:
    """A .npy array of one sample, a batch, or a sequence (T, B, ...).

    For images, floating-point values are taken as they are (already normalised); uint8 are pixels,
    and are normalised. Warns (NetworkWarning) of values that look like pixels and are not uint8.
    Raises MissingFileError, FileFormatError, ValidityError.
    """
    with files.OpenFile(path) as source:
        return array_samples(str(path), arrays.read_npy(source), rule)


def array_samples(name: str, array: Array, rule: InputRule) -> Samples:
    """The same of an array that came from elsewhere; name: of the source, for messages."""
    return _samples(name, _shaped(name, pixel_rule.input_array(array, rule, name), rule), rule)


def _samples(name: str, batch: Array, rule: InputRule) -> Samples:
    """Of an array with a batch axis, (B, ...) or (T, B, ...)."""
    values = pixel_rule.numbers_of(pixel_rule.input_array(batch, rule, name), rule, name)
    text = pixel_rule.looks_like_pixels(values, rule) if batch.dtype.kind == "f" else None
    if text is not None:
        warnings.warn(errors.NetworkWarning(text), stacklevel=2)
    sequence = values.ndim == len(rule.shape) + 2
    if sequence and len(values) != rule.time_steps:
        raise errors.ValidityError(
            f"{name} holds a sequence of {len(values)} steps; the network runs T = "
            f"{rule.time_steps}"
        )
    count = values.shape[1 if sequence else 0]
    return Samples(tuple(f"{name}[{index}]" for index in range(count)), values, sequence)


def _shaped(path: str, array: Array, rule: InputRule) -> Array:
    """`array` with a batch axis. Raises ValidityError for a shape that the network can't take."""
    leading = array.ndim - len(rule.shape)
    sides = ", ".join(map(str, rule.shape))
    if leading not in (0, 1, 2) or array.shape[leading:] != rule.shape:
        raise errors.ValidityError(
            f"{path} holds {array.shape}; the network takes ({sides}), (batch, {sides}) or "
            f"({rule.time_steps}, batch, {sides})"
        )
    if 0 in array.shape:
        raise errors.ValidityError(f"{path} holds no samples: {array.shape}")
    return array[None] if leading == 0 else array
