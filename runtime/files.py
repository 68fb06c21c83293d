"""Reading that validates before it trusts, writing that leaves the old file or the whole new one.

The container is safetensors: a JSON header and raw arrays, no code. The nested metadata travels
as one JSON text under the key `soul_deploy`, since safetensors metadata holds strings only, and its
sha256 under `soul_deploy.sha256`.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from soul_deploy.runtime.errors import (
    FileFormatError,
    FileWriteError,
    MissingFileError,
    PathKindError,
    UsageError,
)

Array = npt.NDArray[Any]

written: list[Path] = []
"""What this process has written, for the command that can print nothing else of its work."""

METADATA_KEY = "soul_deploy"
CHECKSUM_KEY = "soul_deploy.sha256"
DTYPES = {
    "F32": "<f4",
    "F64": "<f8",
    "I64": "<i8",
    "I32": "<i4",
    "U32": "<u4",
    "U16": "<u2",
    "U8": "u1",
    "BOOL": "?",
}


@dataclass(frozen=True)
class TensorFile:
    """A safetensors file as read: arrays (memory-mapped, read-only) and its metadata strings."""

    path: Path
    tensors: Mapping[str, Array]
    metadata: Mapping[str, str]

    def description(self) -> Any:
        """Our JSON metadata, checked against its sha256; None without any.

        Raises FileFormatError.
        """
        text = self.metadata.get(METADATA_KEY)
        if text is None:
            return None
        if self.metadata.get(CHECKSUM_KEY) != _text_sha256(text):
            raise FileFormatError(
                f"{self.path}: its description does not match its checksum; the file is damaged, "
                "or older than this version: make it again"
            )
        return parse_json(text, f"{self.path}: its metadata")

    def document(self, format_name: str) -> dict[str, Any]:
        """The JSON metadata, checked to be of `format_name` (such as "soul-deploy/model/1").

        Raises FileFormatError for a file without our metadata or of another kind or version.
        """
        if METADATA_KEY not in self.metadata:
            raise FileFormatError(
                f"{self.path} is a safetensors file without soul-deploy metadata; expected "
                f"{format_name}. Bare weights are loaded with a model name (--model)"
            )
        document = self.description()
        found = document.get("format") if isinstance(document, dict) else None
        if found != format_name:
            raise FileFormatError(
                f"{self.path} is of format {found!r}; this command reads {format_name!r}"
            )
        assert isinstance(document, dict)
        return document


def require_file(path: Path) -> Path:
    """`path` if it is a file. Raises MissingFileError, PathKindError."""
    try:
        exists, is_file = path.exists(), path.is_file()
    except OSError as error:  # a name that is too long, a folder that may not be entered
        raise MissingFileError(f"{path} cannot be looked up ({error.strerror})") from error
    if not exists:
        raise MissingFileError(f"no file at {path}; check the path")
    if not is_file:
        what = "; it is a folder" if path.is_dir() else ""
        raise PathKindError(f"{path} is not a file{what}; give the path of a file")
    return path


def require_output(path: Path) -> Path:
    """`path` if a file can be there: no folder, and not below a file. Raises PathKindError."""
    if path == Path():
        raise PathKindError("an empty path (or the current folder) given to write to; name a file")
    with suppress(OSError):  # a name that is too long, ...: writing says so
        if path.is_dir():
            raise PathKindError(
                f"{path} is a folder, and what is written is a file; give the name of a file in it"
            )
        if path.exists() and not path.is_file():
            raise PathKindError(f"{path} is no regular file; give another place")
        above = next(folder for folder in path.parents if folder.exists())
        if not above.is_dir():
            raise PathKindError(
                f"{path} cannot be written: {above} is not a folder; give another place"
            )
    return path


def refuse_itself(output: Path, model: Path) -> None:
    """Raise UsageError if `output` is the model that is read: nothing replaces its own source."""
    if output.resolve() == model.resolve():
        raise UsageError(f"{output} is the model itself; give another --output")


def parse_json(text: str, what: str) -> Any:
    """JSON data. Raises FileFormatError, which starts with `what`."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # too many digits are a plain ValueError
        raise FileFormatError(f"{what} is not JSON ({error})") from error


def read_tensors(path: Path) -> TensorFile:
    """Open a safetensors file: the library checks the header, the arrays are memory-mapped.

    Raises MissingFileError, or FileFormatError for anything that is not an intact safetensors
    file with dtypes that we use and finite floating-point values.
    """
    require_file(path)
    try:
        with safe_open(path, framework="np") as opened:
            metadata = dict(opened.metadata() or {})
            names = list(opened.keys())
    except (SafetensorError, OSError, ValueError) as error:
        raise FileFormatError(
            f"{path} is not an intact safetensors file ({error}); it may be truncated or of "
            "another format"
        ) from error
    try:
        tensors = _map_arrays(path, names)
    except (ValueError, RuntimeError, OSError, OverflowError) as error:
        raise FileFormatError(f"{path}: an array that cannot be mapped ({error})") from error
    for name, array in tensors.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise FileFormatError(f"{path}: tensor {name!r} holds values that are not finite")
        if array.dtype == np.bool_ and array.size and int(array.view(np.uint8).max()) > 1:
            raise FileFormatError(f"{path}: tensor {name!r} holds bytes other than 0 and 1")
    return TensorFile(path, tensors, metadata)


def _map_arrays(path: Path, names: list[str]) -> dict[str, Array]:
    """Memory-mapped views; offsets and sizes were checked by the safetensors library."""
    with path.open("rb") as stream:
        header_size = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(header_size))
    base = 8 + header_size
    size = path.stat().st_size - base
    data = (
        np.memmap(path, dtype=np.uint8, mode="r", offset=base, shape=(size,))
        if size
        else np.zeros(0, np.uint8)
    )
    tensors: dict[str, Array] = {}
    for name in names:
        entry = header[name]
        if entry["dtype"] not in DTYPES:
            raise FileFormatError(
                f"{path}: tensor {name!r} has dtype {entry['dtype']}; readable: {', '.join(DTYPES)}"
            )
        begin, end = entry["data_offsets"]
        view = np.asarray(data[begin:end]).view(DTYPES[entry["dtype"]])
        tensors[name] = view.reshape(entry["shape"])
    return tensors


def digest(tensors: Mapping[str, Array]) -> str:
    """sha256 over names, dtypes, shapes and bytes, in the order of names."""
    state = hashlib.sha256()
    for name in sorted(tensors):
        array = np.asarray(tensors[name], order="C")
        state.update(f"{name}|{array.dtype.str}|{array.shape}|".encode())
        state.update(array.reshape(-1).view(np.uint8).data)
    return state.hexdigest()


def _text_sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def file_sha256(path: Path) -> str:
    """sha256 of a file's bytes, as hexadecimal text."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_tensors(path: Path, tensors: Mapping[str, Array], document: Mapping[str, Any]) -> None:
    """Write arrays and the JSON metadata `document` atomically to `path`."""
    arrays = {name: np.asarray(array, order="C") for name, array in tensors.items()}
    text = json.dumps(document)
    metadata = {METADATA_KEY: text, CHECKSUM_KEY: _text_sha256(text)}

    def write(temporary: Path) -> None:
        save_file(arrays, temporary, metadata=metadata)
        _put_metadata_in_order(temporary)

    write_atomically(path, write)


def _put_metadata_in_order(path: Path) -> None:
    """Sort the metadata of a file just written: safetensors stores its entries in random order.

    So equal content is equal bytes. The header keeps its length.
    """
    with path.open("r+b") as stream:
        header = stream.read(int.from_bytes(stream.read(8), "little"))
        opening = b'{"__metadata__":'
        if not header.startswith(opening):
            raise AssertionError(f"{path}: safetensors writes headers in another way now")
        text = header.decode("utf-8")
        found, end = json.JSONDecoder().raw_decode(text, len(opening))
        ordered = json.dumps(found, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
        before = len(text[:end].encode("utf-8"))
        if len(opening) + len(ordered.encode("utf-8")) != before:
            raise AssertionError(f"{path}: safetensors writes metadata in another way now")
        stream.seek(8 + len(opening))
        stream.write(ordered.encode("utf-8"))


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Call `write` with a temporary path beside `path`, then fsync and rename it into place.

    Whatever fails, `path` is the old file or the whole new one, and no temporary file is left. A
    symbolic link at `path` is replaced; what it points to stays as it is. Raises FileWriteError,
    PathKindError.
    """
    require_output(path)
    try:
        _write_and_rename(path, write)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise FileWriteError(
            f"{path} cannot be written: {reason}. Free some space or give another place; what was "
            "there is unchanged"
        ) from error
    written.append(path)


def _write_and_rename(path: Path, write: Callable[[Path], None]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        with temporary.open("rb+") as stream:
            os.fsync(stream.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
        _sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """The new name is on the disk too, so that a power cut cannot take it back."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # not every file system can; the file itself is safe
            os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    write_atomically(path, lambda temporary: _write_text(temporary, text))


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
