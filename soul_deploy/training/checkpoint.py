"""Checkpoint files: all that a run needs to go on, in one safetensors file without code.

A checkpoint holds what was asked for (`settings`), where it was made (`environment`), the phase of
the command, and its state. One sha256 covers arrays and description together; it is compared before
anything is believed.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from soul_deploy.base import Array, errors, files
from soul_deploy.base.file_kinds import reads
from soul_deploy.training.state import Tree, join_tree, split_tree, text_of, tree_of

FORMAT = "soul-deploy/checkpoint/1"
NAME = re.compile(r"\d{8}\.safetensors")


@dataclass(frozen=True)
class Checkpoint:
    """A run between two steps.

    settings     what was asked for: name -> JSON value; a run goes on with the same ones only
    environment  versions, threads, device: others give other rounding
    sha256       over all of it, as the file says; "" where it was not read from one
    """

    settings: Mapping[str, Any]
    environment: Mapping[str, Any]
    phase: str
    state: Tree
    sha256: str = field(default="", compare=False)


def write_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write atomically: the file is whole or not there.

    Raises FileWriteError, also for a state that could not be read back.
    """
    arrays, facts = split_tree(checkpoint.state)
    for name, array in arrays.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise errors.FileWriteError(
                f"{path}: {name} holds values that are not finite: the run has diverged, and this "
                "checkpoint was not written. The one before stays; start again with a lower "
                "learning rate"
            )
    described = {
        "format": FORMAT,
        "settings": dict(checkpoint.settings),
        "environment": dict(checkpoint.environment),
        "phase": checkpoint.phase,
        "state": facts,
    }
    document = described | {"sha256": _content(described, arrays)}
    files.write_tensors(path, arrays, document)


@reads("checkpoint")
def read_checkpoint(file: files.File) -> Checkpoint:
    """Read and compare the sha256 over everything.

    Raises MissingFileError, FileFormatError for a file that is damaged or something else, or
    LimitError for a description that takes too much memory.
    """
    opened = files.read_tensors(file)
    path = opened.path
    document = opened.document(FORMAT)
    found = document.pop("sha256", None)
    try:
        if found != _content(document, opened.tensors):
            raise errors.FileFormatError("its content does not match its sha256; it is damaged")
        return Checkpoint(
            tree_of(document, "settings"),
            tree_of(document, "environment"),
            text_of(document, "phase"),
            join_tree(opened.tensors, tree_of(document, "state")),
            found,
        )
    except (errors.FileFormatError, RecursionError) as error:
        raise errors.FileFormatError(f"{path}: {error}") from error


def _content(document: Mapping[str, Any], arrays: Mapping[str, Array]) -> str:
    text = json.dumps(document, sort_keys=True)
    return hashlib.sha256(f"{text}|{files.digest(arrays)}".encode()).hexdigest()


def checkpoints_in(folder: Path) -> list[Path]:
    """The folder's checkpoint files, oldest first; none if there is no such folder."""
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if NAME.fullmatch(p.name) and p.is_file())


def checkpoint_path(folder: Path, number: int = 1) -> Path:
    """Where checkpoint `number` of `folder` is, or would be."""
    return folder / f"{number:08d}.safetensors"
