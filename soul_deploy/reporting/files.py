"""The files that a report is made of: each is read by what it is."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from soul_deploy.base import brief, errors, file_kinds
from soul_deploy.base import files as opened_files
from soul_deploy.model.file import load
from soul_deploy.model.model import Model
from soul_deploy.reporting.documents import Document
from soul_deploy.reporting.readers import read_documents
from soul_deploy.runtime.io.inspect import describe_file

EXPORTS = ("onnx", "event", "nir")
NEEDED = "a model file, an export, or what a command printed with --format json"
MOST = 200  # files


@brief
@dataclass(frozen=True)
class ModelFile:
    """A model file as read; label: the name that it was given, if any."""

    path: Path
    label: str
    size: int
    sha256: str
    model: Model


@dataclass(frozen=True)
class Export:
    """An exported file, and the digest of the model file that it was made of, if it says so."""

    path: Path
    kind: str
    size: int
    source_sha256: str


@brief
@dataclass(frozen=True, kw_only=True)
class Contents:
    """Everything that was read, in the order given."""

    models: tuple[ModelFile, ...]
    exports: tuple[Export, ...]
    documents: tuple[Document, ...]


def read_all(given: Sequence[Path | str]) -> Contents:
    """Read files; NAME=PATH names a model in the report.

    Raises UsageError for none or too many, MissingFileError, FileFormatError, LimitError.
    """
    if not 0 < len(given) <= MOST:
        raise errors.UsageError(f"{len(given)} files given; a report is made of 1 to {MOST}")
    found = [_read(*_named(item)) for item in given]
    whole = [item for group in found for item in group]
    models = tuple(item for item in whole if isinstance(item, ModelFile))
    exports = tuple(item for item in whole if isinstance(item, Export))
    rest = tuple(item for item in whole if not isinstance(item, ModelFile | Export))
    return Contents(models=models, exports=exports, documents=rest)


def _named(given: Path | str) -> tuple[str, Path]:
    """The name and the path of NAME=PATH; a file that has such a name is itself.

    Of several ways to read it, the one with the shortest name whose file is there.
    """
    text = str(given)
    splits = [(text[:i].strip(), Path(text[i + 1 :])) for i, c in enumerate(text) if c == "="]
    ways = [("", Path(given)), *(way for way in splits if all(way))]
    there = next((way for way in ways if _is_there(way[1])), None)
    return there or ways[1 if len(ways) > 1 else 0]


def _is_there(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that is too long
        return False


def _read(label: str, path: Path) -> tuple[ModelFile | Export | Document, ...]:
    with opened_files.opened(path) as source:
        kind = file_kinds.kind_of(source)
        if kind == "model":
            model = load(source)
            return (ModelFile(path, label, source.size, source.sha256(), model),)
        if kind in EXPORTS:
            facts = describe_file(source)
            told = facts.get("metadata")  # an event network's own field, else of its metadata
            held = told if isinstance(told, dict) else facts
            made_of = str(held.get("source_sha256") or "")
            return (Export(path, str(kind), source.size, made_of),)
        if kind == "result" or (kind is None and path.suffix.lower() in (".json", ".jsonl")):
            return read_documents(source)
        if kind is not None:
            raise file_kinds.wrong_kind(path, kind, NEEDED)
    raise errors.FileFormatError(f"{path} is of no kind that a report shows; needed: {NEEDED}")
