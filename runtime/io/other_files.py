"""What `inspect` says of files that are no networks of ours: weights, checkpoints, input, results.

Nothing here needs PyTorch, and no array of values is read.
"""

import json
import math
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from soul_deploy.base import errors, files, json_text, torch_container, torch_file
from soul_deploy.base.file_kinds import FORMATS
from soul_deploy.base.pickle_data import Made

CHECKPOINT = next(name for name, kind in FORMATS.items() if kind == "checkpoint")
LONGEST = 100  # letters of a value shown


def describe_weights(file: files.OpenFile, max_memory: int | None) -> dict[str, Any]:
    """Weights as people save them: a state dict, or a checkpoint with one in it.

    Nothing is unpickled; a file whose weights cannot be loaded is described with the reason.
    """
    if file.start(9)[8:] == b"{" or file.path.suffix == ".safetensors":
        found = files.read_tensors(file, max_memory=max_memory)
        shapes = {n: (array.dtype.name, array.shape) for n, array in found.tensors.items()}
        beside = {key: _shortened(text) for key, text in found.metadata.items()}
        return {"stored_as": "safetensors", **_weights(shapes), "beside": beside, "why": None}
    told = torch_file.read_torch_file(file, max_memory=max_memory)
    form = "an archive" if torch_container.is_archive(file) else "a legacy file"
    place = None if told.key is None else ".".join(told.key)
    return {
        "stored_as": f"{form} of PyTorch",
        "weights_at": place,
        **_weights({n: (facts.dtype, facts.shape) for n, facts in told.tensors.items()}),
        "beside": _beside(told),
        "foreign_names": told.foreign,
        "why": told.why or _would_run(told.foreign) or None,
    }


def _weights(tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> dict[str, Any]:
    rows = [
        {"name": name, "dtype": dtype, "shape": list(shape), "values": int(np.prod(shape))}
        for name, (dtype, shape) in tensors.items()
    ]
    return {"tensors": rows, "values": sum(row["values"] for row in rows)}


def _would_run(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if names[3:] else ""
    return f"it holds objects whose code would run, {', '.join(names[:3])}{more}" if names else ""


def _beside(told: torch_file.TorchFile) -> dict[str, str]:
    """What stands beside the weights, by its path, in a few words."""
    found: dict[str, str] = {}
    place, before = told.root, ""
    for depth, key in enumerate((*(told.key or ()), None)):
        inside = torch_file.entries_in(place)
        whole = told.key is not None and depth == len(told.key)
        for name, value in {} if whole else inside.items():
            if name != key:
                found[before + name] = _words(value)
        if key is not None:
            place, before = inside[key], f"{before}{key}."
    return found


def _words(value: Any) -> str:
    if not isinstance(value, Made):
        return _shortened(str(value)) if torch_file.is_plain(value) else type(value).__name__
    tensors, inside = torch_file.tensors_of(value), torch_file.entries_in(value)
    if torch_file.tensor_facts(value) is not None:
        return "a tensor"
    if tensors:
        return f"{len(tensors)} tensors"
    plain = ", ".join(f"{k} {v}" for k, v in inside.items() if torch_file.is_plain(v))
    kind = value.name.rpartition(".")[2] if value.name == torch_file.NAMESPACE else value.name
    held = plain or ", ".join(inside)
    return _shortened(f"{kind}: {held}" if held else f"{kind} of {len(value.values)}")


def _shortened(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def describe_checkpoint(file: files.OpenFile, max_memory: int | None) -> dict[str, Any]:
    """A run between two steps, as `train` and `prune` write it."""
    found = files.read_tensors(file, max_memory=max_memory)
    document = found.document(CHECKPOINT)
    parts = {key: document.get(key) for key in ("phase", "settings", "environment")}
    plain = isinstance(parts["settings"], dict) and isinstance(parts["environment"], dict)
    errors.require(plain, f"{file}: its settings and its environment are no JSON objects")
    values = sum(array.size for array in found.tensors.values())
    return {**parts, "arrays": len(found.tensors), "values": values}


def describe_arrays(file: files.OpenFile, max_memory: int | None) -> dict[str, Any]:
    """The arrays of a .npy or .npz file; only their headers are read.

    Raises FileFormatError for what is no array, and for one that is cut off.
    """
    try:
        if not torch_container.is_archive(file):
            file.stream.seek(0)
            return {"arrays": [_array("", str(file), file.stream, file.size)]}
        rows = []
        with zipfile.ZipFile(file.stream) as archive:
            for entry in archive.infolist():
                name = entry.filename.removesuffix(".npy")
                with archive.open(entry) as stream:
                    rows.append(_array(name, f"{name} in {file}", stream, entry.file_size))
        return {"arrays": rows}
    except errors.FileFormatError:
        raise
    except Exception as error:  # zipfile, zlib and numpy's literals fail in a dozen ways
        text = f"{file} is not an intact file of NumPy arrays ({error!s:.100})"
        raise errors.FileFormatError(text) from error


def _array(name: str, place: str, stream: Any, size: int) -> dict[str, Any]:
    """What the header at the begin of `stream` says of an array; size: bytes that there are."""
    version = np.lib.format.read_magic(stream)
    first = version == (1, 0)
    read = np.lib.format.read_array_header_1_0 if first else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(stream)
    if min(shape, default=0) < 0:
        raise ValueError(f"a shape of {shape}")
    declared, there = math.prod(shape) * dtype.itemsize, size - stream.tell()
    if declared > there and not dtype.hasobject:  # a pickle is of any length
        raise errors.FileFormatError(
            f"{place} is cut off: its header declares {declared:,} bytes of values ({dtype} "
            f"{tuple(shape)}), and {there:,} are there; copy or write the file again"
        )
    return {"name": name, "dtype": str(dtype), "shape": list(shape)}


def describe_image(file: files.OpenFile, max_memory: int | None) -> dict[str, Any]:
    """An image's format, its pixels and their mode; they are not decoded."""
    from PIL.Image import open as opening  # arrays alone need no Pillow

    from soul_deploy.runtime.io.images import IMAGE_FORMATS

    try:
        file.stream.seek(0)
        with opening(file.stream, formats=IMAGE_FORMATS) as image:
            return {"format": image.format, "size": list(image.size), "mode": image.mode}
    except Exception as error:  # decoders fail in a dozen ways on foreign bytes
        text = f"{file} is not an image that can be read ({error})"
        raise errors.FileFormatError(text) from error


def describe_result(file: files.OpenFile, max_memory: int | None) -> dict[str, Any]:
    """What a command printed with --format json, by its schema."""
    json_text.require_length(str(file), file.size, max_memory)
    document = json_text.parse_json(file.start(file.size), str(file), max_memory=max_memory)
    errors.require(isinstance(document, dict), f"{file} is no JSON object")
    short = {
        key: _shortened(json.dumps(value)) for key, value in document.items() if key != "schema"
    }
    return {"of": document.get("schema"), "fields": short}
