"""The folder of C files of a model."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from soul_deploy.base import brief, errors
from soul_deploy.base import files as disk
from soul_deploy.data.given import Images, images_for
from soul_deploy.export.c import files, header, self_test
from soul_deploy.export.c.program import Program, make_program
from soul_deploy.export.c.rows import Layout
from soul_deploy.model.model import Model

TEST = "test_model.c"


@brief
@dataclass(frozen=True)
class CProgram:
    """The files by name, and what they take: bytes of constant tables and of the state."""

    program: Program
    texts: Mapping[str, str]
    flash: int

    @property
    def ram(self) -> int:
        return self.program.ram


def build_c(
    model: Model,
    images: Images,
    *,
    layout: Layout = "size",
    prefix: str = "soul",
    as_float: bool = False,
) -> CProgram:
    """The C program of a fixed-point model, its self-test on `images` (as `images_for` takes them).

    as_float: of a float model, for comparison. Raises UsageError for a model of the other kind,
    UnsupportedGraphError for what has no loop in C.
    """
    program = make_program(model, layout=layout, prefix=prefix, as_float=as_float)
    given, _ = images_for(model, images)
    return program_files(program, given)


def program_files(program: Program, images: Tensor) -> CProgram:
    written = files.write_layers(program)
    texts = {
        "model.h": header.model_h(program, written.flash),
        "model.c": files.model_c(program, written),
        "weights.h": files.weights_h(program, written),
        "weights.c": files.weights_c(program, written),
        TEST: self_test.test_c(program, images),
        "Makefile": files.makefile(program),
    }
    return CProgram(program, texts, written.flash)


def export_c(
    model: Model,
    folder: Path | str,
    images: Images,
    *,
    layout: Layout = "size",
    prefix: str = "soul",
    as_float: bool = False,
) -> CProgram:
    """Write the C program of `model` to `folder`, which is made; other files in it stay.

    Raises as `build_c`, PathKindError for a file at `folder`, FileWriteError.
    """
    found = build_c(model, images, layout=layout, prefix=prefix, as_float=as_float)
    write_files(found, Path(folder))
    return found


def write_files(found: CProgram, folder: Path) -> None:
    """Each file is written atomically."""
    if folder.exists() and not folder.is_dir():
        raise errors.PathKindError(f"{folder} is a file; C programs are folders, give one with -o")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise errors.FileWriteError(f"{folder} cannot be made: {error.strerror}") from error
    for name, text in found.texts.items():
        disk.write_atomically(folder / name, lambda path, text=text: path.write_text(text))  # type: ignore[misc]
