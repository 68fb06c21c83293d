"""Input files as batches: images (PNG, JPEG, …) and .npy arrays, shaped and normalised.

What their numbers mean stands in pixel_rule.py.
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from soul_deploy.base import Array, brief, errors, files, pixel_rule
from soul_deploy.base.pixel_rule import InputRule

if TYPE_CHECKING:
    from PIL.Image import Image

MODES = {1: "L", 3: "RGB"}
IMAGE_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "PPM", "TIFF", "WEBP")
MAX_PIXELS = 1 << 25


@brief
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
        files.require_file(path)
        if path.suffix.lower() == ".npy":
            groups.append(read_array(path, rule))
        else:
            images.append(path)
    if images:
        pixels = np.stack([read_image(path, rule) for path in images])
        groups.insert(0, Samples(tuple(map(str, images)), pixel_rule.normalise(pixels, rule)))
    return groups


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
    try:
        image = _decoded(path, mode, None if rule.resize else (width, height))
    except errors.ValidityError:
        raise
    except Exception as error:  # decoders fail in a dozen ways on foreign bytes
        raise errors.FileFormatError(
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
                raise errors.ValidityError(
                    f"{path} is {opened.size[0]}×{opened.size[1]} pixels (width × height), the "
                    f"network takes {size[0]}×{size[1]}; give --resize to scale it"
                )
            if opened.size[0] * opened.size[1] > MAX_PIXELS:
                raise ValueError(f"{opened.size} is more than {MAX_PIXELS} pixels")
            return opened.convert(mode)


def read_array(path: Path, rule: InputRule) -> Samples:
    """A .npy array of one sample, a batch, or a sequence (T, B, ...).

    For images, floating-point values are taken as they are (already normalised); uint8 are pixels,
    and are normalised. Warns (NetworkWarning) of values that look like pixels and are not uint8.
    Raises MissingFileError, FileFormatError, ValidityError.
    """
    try:
        with files.OpenFile(path) as source:
            array = _mapped(source)
    except errors.SoulDeployError:
        raise
    except Exception as error:  # its header is a Python literal, which fails in a dozen ways
        raise errors.FileFormatError(f"{path} is not a .npy file of numbers ({error})") from error
    batch = _shaped(path, pixel_rule.input_array(array, rule, str(path)), rule)
    values = pixel_rule.numbers_of(batch, rule, str(path))
    text = pixel_rule.looks_like_pixels(values, rule) if batch.dtype.kind == "f" else None
    if text is not None:
        warnings.warn(errors.NetworkWarning(text), stacklevel=2)
    sequence = values.ndim == len(rule.shape) + 2
    count = values.shape[1 if sequence else 0]
    names = tuple(f"{path}[{index}]" for index in range(count))
    return Samples(names, values, sequence)


def _mapped(source: files.OpenFile) -> Array:
    """Mapped, so that a header that announces more than the file holds is refused.

    Raises ValueError and whatever numpy does for what is no .npy file.
    """
    stream = source.stream
    version = np.lib.format.read_magic(stream)
    if version not in ((1, 0), (2, 0), (3, 0)):
        raise ValueError(f"a header of version {version}")
    first = version == (1, 0)
    read = np.lib.format.read_array_header_1_0 if first else np.lib.format.read_array_header_2_0
    shape, by_columns, dtype = read(stream)
    if dtype.hasobject:
        raise ValueError("it holds Python objects")
    begin, needed = stream.tell(), math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or begin + needed > source.size:
        raise ValueError(f"{needed} bytes of values announced, {source.size - begin} there")
    values: Array = source.data[begin : begin + needed].view(dtype)
    return values.reshape(shape, order="F" if by_columns else "C")


def _shaped(path: Path, array: Array, rule: InputRule) -> Array:
    """`array` with a batch axis. Raises ValidityError for a shape that the network can't take."""
    leading = array.ndim - len(rule.shape)
    sides = ", ".join(map(str, rule.shape))
    if leading not in (0, 1, 2) or array.shape[leading:] != rule.shape:
        raise errors.ValidityError(
            f"{path} holds {array.shape}; the network takes ({sides}), (batch, {sides}) or "
            f"({rule.time_steps}, batch, {sides})"
        )
    if leading == 2 and array.shape[0] != rule.time_steps:
        raise errors.ValidityError(
            f"{path} holds a sequence of {array.shape[0]} steps; the network runs T = "
            f"{rule.time_steps}"
        )
    if 0 in array.shape:
        raise errors.ValidityError(f"{path} holds no samples: {array.shape}")
    return array[None] if leading == 0 else array
