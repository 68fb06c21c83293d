"""What kind of file a file is, by its content, and which command takes that kind.

A reader that is handed another kind says both. Only first bytes and the header are looked at.
"""

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any, TypeVar, cast

from soul_deploy.base import container, errors, files, opening, torch_container

Reader = TypeVar("Reader", bound=Callable[..., Any])


@dataclass(frozen=True)
class FileKind:
    """what: with its article. taken: who takes FILE, as a sentence."""

    what: str
    taken: str


_IMPORTED = (
    "`soul-deploy import zoo NETWORK --model_path FILE`, or `import torch MODULE:FACTORY "
    "--model_path FILE` for a network of yours, makes a model file of it"
)
KINDS = {
    "model": FileKind(
        "a model file",
        "`soul-deploy export event FILE` makes an event network of it, `export onnx` and `export "
        "nir` the other files; `verify`, `energy`, `prune` and `bench sparse --model` take it too",
    ),
    "event": FileKind(
        "an event network",
        "`soul-deploy run FILE INPUT`, `verify MODEL FILE` and `bench sparse --event FILE` take it",
    ),
    "checkpoint": FileKind(
        "a checkpoint of a run of soul-deploy",
        "`soul-deploy train` and `prune` go on from it with --resume FILE; the model files that "
        "the run wrote are in its --model_dir",
    ),
    "onnx": FileKind(
        "an ONNX file", "`soul-deploy verify MODEL FILE` and `bench sparse --onnx FILE` take it"
    ),
    "nir": FileKind(
        "a NIR graph",
        "`soul-deploy import nir FILE` makes a model file of it, `verify MODEL FILE` compares it",
    ),
    "weights": FileKind("a file of weights", _IMPORTED),
    "array": FileKind("a NumPy array", "`soul-deploy run NETWORK FILE` takes it"),
    "arrays": FileKind("an archive of NumPy arrays", "`soul-deploy inspect FILE` describes it"),
    "image": FileKind("an image", "`soul-deploy run NETWORK FILE` takes it"),
    "result": FileKind(
        "a result that soul-deploy printed as JSON",
        "`soul-deploy bench sparse --compare FILE` takes one that `bench sparse` wrote",
    ),
}
MODEL_FORMATS = ("soul-deploy/model/1", "soul-deploy/model/2", "soul-deploy/model/3")
"""The second is of fixed-point networks, the third of networks whose input are events, which the
versions before cannot compute."""
FORMATS = {
    **dict.fromkeys(MODEL_FORMATS, "model"),
    "soul-deploy/event/1": "event",
    "soul-deploy/event/2": "event",
    "soul-deploy/event/3": "event",
    "soul-deploy/event/4": "event",
    "soul-deploy/event/5": "event",
    "soul-deploy/checkpoint/1": "checkpoint",
}
SUFFIXES = {
    ".onnx": "onnx",
    ".nir": "nir",
    ".npy": "array",
    ".npz": "arrays",
    **dict.fromkeys((".pt", ".pth", ".ckpt"), "weights"),
}
BEGINNINGS = (
    (b"\x89HDF", "nir"),  # NIR is stored as HDF5
    (b"\x93NUMPY", "array"),
    *((start, "image") for start in (b"\x89PNG\r\n", b"\xff\xd8\xff", b"GIF8")),
)
ONNX = re.compile(rb'\x08[\x01-\x3f][\x12\x1a"(2:Br]')  # its version, then another known field
RESULT = re.compile(rb'\s*\{\s*"schema":\s*"soul-deploy/')
LOOKED_AT = 256  # bytes


def kind_of(file: opening.File) -> str | None:
    """A key of KINDS, or None for what is of no kind that we know, or damaged.

    Raises MissingFileError, PathKindError, and FileFormatError for a file that cannot be read.
    """
    with opening.opened(file) as source:
        start = source.start(LOOKED_AT)
        for beginning, kind in BEGINNINGS:
            if start.startswith(beginning):
                return kind
        if start[8:9] == b"{":
            return _quietly(_kind_of_tensors, source)
        if start.startswith(torch_container.ARCHIVE):
            return _quietly(_kind_of_archive, source)
        if torch_container.LEGACY in start[:16]:
            return "weights"
        if ONNX.match(start):
            return "onnx"
        return "result" if RESULT.match(start) else None


def _quietly(look: Callable[[opening.OpenFile], str | None], file: opening.OpenFile) -> str | None:
    """None for a damaged file: whoever reads it says what is wrong."""
    try:
        return look(file)
    except errors.SoulDeployError:
        return None


def _kind_of_tensors(file: opening.OpenFile) -> str | None:
    text = container.read_header(file).metadata.get(files.METADATA_KEY)
    if text is None:
        return "weights"
    document = files.parse_json(text, "its metadata")
    return FORMATS.get(str(document.get("format"))) if isinstance(document, dict) else None


def _kind_of_archive(file: opening.OpenFile) -> str | None:
    names = torch_container.entry_names(file)
    if any(name.rpartition("/")[2] == torch_container.OBJECT for name in names):
        return "weights"
    return "arrays" if names and all(name.endswith(".npy") for name in names) else None


def wrong_kind(path: Path, found: str, needed: str) -> errors.FileFormatError:
    """What to say of a file of the kind `found`, a key of KINDS, where `needed` is read: what it
    is, with its article.
    """
    kind = KINDS[found]
    taken = kind.taken.replace("FILE", quote(str(path)))
    return errors.FileFormatError(f"{path} is {kind.what}, and {needed} is needed here; {taken}")


def reads(*kinds: str) -> Callable[[Reader], Reader]:
    """Decorate a reader of files of `kinds`, the first of which it is mainly for.

    It gets the file open. What it refuses is looked at again: if it is of another kind, the error
    says of which, and who takes that.
    """

    def decorate(read: Reader) -> Reader:
        @functools.wraps(read)
        def reader(file: opening.File, *arguments: Any, **named: Any) -> Any:
            with opening.opened(file) as source:
                try:
                    return read(source, *arguments, **named)
                except errors.FileFormatError as error:
                    found = kind_of(source)
                    if found is None or found in kinds:
                        raise
                    raise wrong_kind(source.path, found, KINDS[kinds[0]].what) from error

        return cast(Reader, reader)

    return decorate
