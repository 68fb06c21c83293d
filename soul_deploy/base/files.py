"""Reading that validates before it trusts, writing that leaves the old file or the whole new one.

The container is safetensors: a JSON header and raw arrays, no code. The nested metadata travels
as one JSON text under the key `soul_deploy`, since safetensors metadata holds strings only, and its
sha256 under `soul_deploy.sha256`.
"""

import errno
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from soul_deploy.base import Array, brief, container, errors
from soul_deploy.base.json_text import parse_json
from soul_deploy.base.opening import File, OpenFile, opened, path_of, require_file

written: list[Path] = []
"""What this process has written, for the command that can print nothing else of its work."""

METADATA_KEY = "soul_deploy"
CHECKSUM_KEY = "soul_deploy.sha256"


@brief
@dataclass(frozen=True)
class TensorFile:
    """A safetensors file as read: arrays (memory-mapped, read-only) and its metadata strings.

    max_memory: bytes that its description may take as data; None: DESCRIPTION_BYTES.
    """

    path: Path
    tensors: Mapping[str, Array]
    metadata: Mapping[str, str]
    max_memory: int | None = None

    def description(self) -> Any:
        """Our JSON metadata, checked against its sha256; None without any.

        Raises FileFormatError, LimitError.
        """
        text = self.metadata.get(METADATA_KEY)
        if text is None:
            return None
        if self.metadata.get(CHECKSUM_KEY) != _text_sha256(text):
            raise errors.FileFormatError(
                f"{self.path}: its description does not match its checksum; the file is damaged, "
                "or older than this version: make it again"
            )
        return parse_json(text, f"{self.path}: its metadata", max_memory=self.max_memory)

    def document(self, *format_names: str) -> dict[str, Any]:
        """The JSON metadata, checked to be of one of the formats (such as "soul-deploy/model/1").

        Raises FileFormatError for a file without our metadata or of another kind or version.
        """
        if METADATA_KEY not in self.metadata:
            raise errors.FileFormatError(
                f"{self.path} is a safetensors file without soul-deploy metadata; expected "
                f"{format_names[0]}. Bare weights are loaded with a model name (--model)"
            )
        document = self.description()
        found = document.get("format") if isinstance(document, dict) else None
        if found not in format_names:
            known = " and ".join(map(repr, format_names))
            raise errors.FileFormatError(
                f"{self.path} is of format {found!r}; this command reads {known}"
            )
        assert isinstance(document, dict)
        return document


def require_output(path: Path) -> Path:
    """`path` if a file can be there: no folder, and not below a file. Raises PathKindError."""
    if path == Path():
        raise errors.PathKindError(
            "an empty path (or the current folder) given to write to; name a file"
        )
    with suppress(OSError):  # a name that is too long, ...: writing says so
        if path.is_dir():
            raise errors.PathKindError(
                f"{path} is a folder, and what is written is a file; give the name of a file in it"
            )
        if path.exists() and not path.is_file():
            raise errors.PathKindError(f"{path} is no regular file; give another place")
        above = next(folder for folder in path.parents if folder.exists())
        if not above.is_dir():
            raise errors.PathKindError(
                f"{path} cannot be written: {above} is not a folder; give another place"
            )
    return path


def require_writable(*paths: Path) -> None:
    """Find out now whether a file can be written at each of `paths`, before any work is done.

    A temporary file is made where the writing will make its own, in folders that are made for it,
    and all of them are removed again. Raises PathKindError, or FileWriteError for a place where
    nothing can be made (no permission, a read-only file system, a name that is too long).
    """
    for path in paths:
        require_output(path)
        made: list[Path] = []
        try:
            _make_folders(path.parent, made)
            handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
            os.close(handle)
            Path(name).unlink()
        except OSError as error:
            raise errors.FileWriteError(
                f"{path} cannot be written: {error.strerror or error}. Nothing was begun; give "
                "another place, or make this one writable"
            ) from error
        finally:
            for folder in reversed(made):
                with suppress(OSError):  # somebody else's file came into it
                    folder.rmdir()


def _make_folders(folder: Path, made: list[Path]) -> None:
    """Make what is missing of `folder`, one by one; `made` gets each, outermost first."""
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    for place in reversed(missing):
        place.mkdir(exist_ok=True)
        made.append(place)


def refuse_itself(output: Path, model: Path) -> None:
    """Raise UsageError if `output` is the model that is read: nothing replaces its own source."""
    if output.resolve() == model.resolve():
        raise errors.UsageError(f"{output} is the model itself; give another --output")


def read_tensors(file: File, *, max_memory: int | None = None) -> TensorFile:
    """A safetensors file: its header is checked, its arrays are views of the mapped file.

    max_memory: bytes that its header, and then its description, may take as data; None:
    DESCRIPTION_BYTES. Raises MissingFileError, LimitError, or FileFormatError for anything that is
    not an intact safetensors file with dtypes that we use and finite floating-point values.
    """
    with opened(file) as source:
        header = container.read_header(source, max_memory)
        tensors = container.map_arrays(source, header)
    path = source.path
    for name, array in tensors.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise errors.FileFormatError(
                f"{path}: tensor {name!r} holds values that are not finite"
            )
        if array.dtype == np.bool_ and array.size and int(array.view(np.uint8).max()) > 1:
            raise errors.FileFormatError(f"{path}: tensor {name!r} holds bytes other than 0 and 1")
    return TensorFile(path, tensors, header.metadata, max_memory)


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


def file_sha256(file: File) -> str:
    """sha256 of a file's bytes, as hexadecimal text.

    Who also reads the file opens it once, and gives the open file to both.
    """
    with opened(file) as source:
        return source.sha256()


def write_tensors(
    path: Path | str, tensors: Mapping[str, Array], document: Mapping[str, Any]
) -> None:
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


def write_atomically(path: Path | str, write: Callable[[Path], object]) -> None:
    """Call `write` with a temporary path beside `path`, then fsync and rename it into place.

    Whatever fails, `path` is the old file or the whole new one, and no temporary file is left. A
    symbolic link at `path` is replaced; what it points to stays as it is. Raises PathKindError,
    FileWriteError (the old file is as it was), or UnconfirmedWriteError (the new file is in place,
    but the system did not confirm that its name would survive a power cut).
    """
    path = require_output(Path(path))
    try:
        _write_and_rename(path, write)
    except (OSError, SafetensorError) as error:
        left = "".join(f"; {note}" for note in getattr(error, "__notes__", ()))
        held = WINDOWS and isinstance(error, PermissionError) and path.exists()
        advice = "Close what has it open, this program too," if held else "Free some space"
        raise errors.FileWriteError(
            f"{path} cannot be written: {_reason(error)}. {advice} or give another place; what was "
            f"there is unchanged{left}"
        ) from error
    written.append(path)
    try:
        _sync_folder(path.parent)
    except OSError as error:
        raise _unconfirmed(path, error) from error


def _reason(error: Exception) -> object:
    return getattr(error, "strerror", None) or error


def _unconfirmed(path: Path, error: OSError) -> errors.UnconfirmedWriteError:
    return errors.UnconfirmedWriteError(
        f"{path} is written and in place, but the system did not confirm that a power cut cannot "
        f"take it back ({_reason(error)}, for the folder {path.parent}). Check the disk, and that "
        "the folder may be read; then write again"
    )


def _write_and_rename(path: Path, write: Callable[[Path], object]) -> None:
    """Nothing of this is visible at `path` before the rename, which is the last step.

    Raises OSError, SafetensorError before it, and UnconfirmedWriteError after it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    temporary = Path(name)
    try:
        os.close(handle)
        write(temporary)
        with temporary.open("rb+") as stream:
            os.fsync(stream.fileno())
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)
        _rename(temporary, path)
    except BaseException as error:
        _remove(temporary, error)
        raise


WINDOWS = os.name == "nt"  # it replaces and removes no file that somebody has open or mapped
PAUSES = 0.02, 0.05, 0.1, 0.2, 0.4
"""Seconds between attempts there, since virus scanners and indexes open new files for moments."""


def _rename(temporary: Path, path: Path) -> None:
    """As `os.replace`; a network's file system may do it and report an error all the same."""
    pauses = iter(PAUSES if WINDOWS else ())
    while True:
        try:
            temporary.replace(path)
            return
        except OSError as error:
            if not os.path.lexists(temporary):
                raise _unconfirmed(path, error) from error
            pause = next(pauses, None) if isinstance(error, PermissionError) else None
            if pause is None:
                raise
            time.sleep(pause)


def remove_unless_open(path: Path) -> None:
    """Remove a file, if it is there; where Windows keeps it, since somebody has it open, it stays.

    Raises OSError.
    """
    try:
        path.unlink(missing_ok=True)
    except PermissionError:
        if not WINDOWS:
            raise


def _remove(temporary: Path, error: BaseException) -> None:
    """Remove what was begun; what stays is noted in the error that led here."""
    try:
        temporary.unlink(missing_ok=True)
    except OSError as left:
        error.add_note(f"the unfinished {temporary} could not be removed ({_reason(left)})")


FOLDERS_CAN_BE_SYNCED = not WINDOWS  # it opens no folder, and keeps names by itself
NOT_OFFERED = {errno.EBADF, errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
"""How a file system says that it has no fsync of folders; anything else is a failure."""


def _sync_folder(folder: Path) -> None:
    """The new name is on the disk too, so that a power cut cannot take it back. Raises OSError."""
    if not FOLDERS_CAN_BE_SYNCED:
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in NOT_OFFERED:
            raise
    finally:
        os.close(handle)


def temporary_folder() -> "tempfile.TemporaryDirectory[str]":
    """A folder for a `with` block. Of its files Windows keeps those that are still mapped then."""
    return tempfile.TemporaryDirectory(prefix="soul-deploy-", ignore_cleanup_errors=WINDOWS)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
