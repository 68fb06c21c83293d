"""Input files as batches: images (PNG, JPEG, …) and .npy arrays, shaped and normalised."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from soul_deploy.runtime.errors import FileFormatError, ValidityError
from soul_deploy.runtime.files import Array, require_file

if TYPE_CHECKING:
    from PIL.Image import Image

MODES = {1: "L", 3: "RGB"}
IMAGE_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "PPM", "TIFF", "WEBP")
MAX_PIXELS = 1 << 25


@dataclass(frozen=True)
class InputRule:
    """What a network takes.

    shape       (C, H, W), or (N,)
    time_steps  T of a sequence
    mean, std   per channel, of pixels in [0, 1]; empty: pixels / 255 as they are
    resize      scale images of another size (bilinear) instead of refusing them
    """

    shape: tuple[int, ...]
    time_steps: int
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    resize: bool = False


@dataclass(frozen=True)
class Samples:
    """Named samples: (B, C, H, W), or (T, B, C, H, W) if `sequence`; float32."""

    names: tuple[str, ...]
    values: Array
    sequence: bool = False


def read_samples(paths: Sequence[Path], rule: InputRule) -> list[Samples]:
    """Every file's samples: one group per .npy file and one for all images, in that order given.

    Raises MissingFileError, FileFormatError for damaged files, ValidityError for another shape.
    """
    groups: list[Samples] = []
    images: list[Path] = []
    for path in paths:
        require_file(path)
        if path.suffix.lower() == ".npy":
            groups.append(read_array(path, rule))
        else:
            images.append(path)
    if images:
        pixels = np.stack([read_image(path, rule) for path in images])
        names = tuple(map(str, images))
        groups.insert(0, Samples(names, normalise(pixels, rule)))
    return groups


def read_image(path: Path, rule: InputRule) -> Array:
    """Pixels (C, H, W) of uint8, converted to grey or RGB as the network has 1 or 3 channels."""
    mode = MODES.get(rule.shape[0]) if len(rule.shape) == 3 else None
    if mode is None:
        raise ValidityError(
            f"{path}: the network takes {rule.shape}, which is no grey or RGB image; give a .npy "
            "array"
        )
    height, width = rule.shape[1:]
    try:
        image = _decoded(path, mode, None if rule.resize else (width, height))
    except ValidityError:
        raise
    except Exception as error:  # decoders fail in a dozen ways on foreign bytes
        raise FileFormatError(
            f"{path} is not an image that can be read ({error}); readable: "
            f"{', '.join(IMAGE_FORMATS)}, and .npy arrays"
        ) from error
    if image.size != (width, height):
        from PIL.Image import Resampling  # arrays alone need no Pillow

        image = image.resize((width, height), Resampling.BILINEAR)
    pixels = np.asarray(image, np.uint8)
    return pixels[None] if pixels.ndim == 2 else np.moveaxis(pixels, -1, 0)


def _decoded(path: Path, mode: str, size: tuple[int, int] | None) -> "Image":
    """The image; its size is looked at before its pixels are decoded.

    Only these formats: others run programs (PostScript), or have several images. Raises
    ValidityError for another size, and whatever Pillow raises.
    """
    from PIL.Image import open as opening

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of metadata that is not used
        with opening(path, formats=IMAGE_FORMATS) as opened:
            if size is not None and size != opened.size:
                raise ValidityError(
                    f"{path} is {opened.size[0]}×{opened.size[1]} pixels (width × height), the "
                    f"network takes {size[0]}×{size[1]}; give --resize to scale it"
                )
            if opened.size[0] * opened.size[1] > MAX_PIXELS:
                raise ValueError(f"{opened.size} is more than {MAX_PIXELS} pixels")
            return opened.convert(mode)


def normalise(pixels: Array, rule: InputRule) -> Array:
    """(pixel / 255 - mean) / std per channel in float32, for uint8 (..., C, H, W)."""
    scaled = pixels.astype(np.float32) / np.float32(255)
    if not rule.mean:
        return scaled
    channels = (-1, *([1] * (len(rule.shape) - 1)))
    mean, std = (np.array(v, np.float32).reshape(channels) for v in (rule.mean, rule.std))
    result: Array = (scaled - mean) / std
    return result


def read_array(path: Path, rule: InputRule) -> Samples:
    """A .npy array of one sample, a batch, or a sequence (T, B, ...).

    Floating-point values are taken as they are (already normalised); uint8 are pixels, and are
    normalised. Raises MissingFileError, FileFormatError, ValidityError.
    """
    require_file(path)
    try:
        # Mapped, so that a header that announces more than the file holds is refused.
        array: Array = np.lib.format.open_memmap(path, mode="r")
    except Exception as error:  # its header is a Python literal, which fails in a dozen ways
        raise FileFormatError(f"{path} is not a .npy file of numbers ({error})") from error
    if not (array.dtype.kind == "f" or array.dtype == np.uint8):
        raise ValidityError(
            f"{path} holds {array.dtype}; needed: floating-point values (normalised) or uint8 "
            "pixels"
        )
    values = _shaped(path, array, rule)
    sequence = values.ndim == len(rule.shape) + 2
    values = normalise(values, rule) if values.dtype == np.uint8 else _as_float32(path, values)
    count = values.shape[1 if sequence else 0]
    names = tuple(f"{path}[{index}]" for index in range(count))
    return Samples(names, values, sequence)


def _as_float32(path: Path, array: Array) -> Array:
    """Raises ValidityError for values that are not finite, in float32 at the latest."""
    if not np.isfinite(array).all():
        raise ValidityError(f"{path} holds values that are not finite; give real numbers")
    with np.errstate(over="ignore"):
        values: Array = array.astype(np.float32)
    if not np.isfinite(values).all():
        raise ValidityError(
            f"{path} holds {array.dtype} values beyond float32, in which networks run (3.4e38); "
            "check its scaling"
        )
    return values


def _shaped(path: Path, array: Array, rule: InputRule) -> Array:
    """`array` with a batch axis. Raises ValidityError for a shape that the network can't take."""
    leading = array.ndim - len(rule.shape)
    sides = ", ".join(map(str, rule.shape))
    if leading not in (0, 1, 2) or array.shape[leading:] != rule.shape:
        raise ValidityError(
            f"{path} holds {array.shape}; the network takes ({sides}), (batch, {sides}) or "
            f"({rule.time_steps}, batch, {sides})"
        )
    if leading == 2 and array.shape[0] != rule.time_steps:
        raise ValidityError(
            f"{path} holds a sequence of {array.shape[0]} steps; the network runs T = "
            f"{rule.time_steps}"
        )
    if 0 in array.shape:
        raise ValidityError(f"{path} holds no samples: {array.shape}")
    return array[None] if leading == 0 else array
