"""NIR files that take values from elsewhere, or the same ones again and again: refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import peak
import pytest

from soul_deploy.base.errors import FileFormatError
from soul_deploy.export.nir.package import check_texts
from soul_deploy.export.nir.read import read_nir

h5py = pytest.importorskip("h5py", reason="the extra `nir` brings h5py")
MOST = 64 << 20  # bytes that a refusal may take


def refused(path: Path, message: str, read: Callable[[Path], object] = read_nir) -> None:
    before = peak.reset()
    with pytest.raises(FileFormatError, match=message):
        read(path)
    if peak.RESETTABLE:
        assert peak.peak() - before < MOST


def stored(folder: Path) -> Path:
    """A NIR file of 1 MB of values in a few kB."""
    path = folder / "x.nir"
    with h5py.File(path, "w") as opened:
        opened.create_dataset("node/first/weight", data=np.zeros(1 << 18, "f4"), compression="gzip")
        opened.create_group("node/second")
    return path


def test_one_array_under_many_names(tmp_path: Path) -> None:
    path = stored(tmp_path)
    with h5py.File(path, "r+") as opened:
        for i in range(1500):
            opened[f"node/second/{i}"] = opened["node/first/weight"]
    refused(path, r"announces 1,573,[\d,]+ bytes of arrays in")


@pytest.mark.parametrize(
    "link",
    [lambda: h5py.SoftLink("/node/first/weight"), lambda: h5py.ExternalLink("other.h5", "/x")],
    ids=["soft", "external"],
)
def test_links_to_another_place(tmp_path: Path, link: Any) -> None:
    path = stored(tmp_path)
    with h5py.File(tmp_path / "other.h5", "w") as other:
        other["x"] = np.ones(3)
    with h5py.File(path, "r+") as opened:
        opened["node/second/again"] = link()
    refused(path, "'again' is a link to another place or file")


def test_arrays_that_lie_in_other_files(tmp_path: Path) -> None:
    path, other = stored(tmp_path), tmp_path / "other.bin"
    other.write_bytes(b"secret" * 4)
    with h5py.File(path, "r+") as opened:
        opened.create_dataset("node/x", (24,), "u1", external=[(str(other), 0, 24)])
    refused(path, "'x' takes its values from another place or file")


def test_arrays_that_are_put_together_from_others(tmp_path: Path) -> None:
    path = stored(tmp_path)
    with h5py.File(path, "r+") as opened:
        layout = h5py.VirtualLayout((3,), "f4")
        layout[:] = h5py.VirtualSource(str(path), "node/first/weight", (1 << 18,))[:3]
        opened.create_virtual_dataset("node/x", layout)
    refused(path, "'x' takes its values from another place or file")


@pytest.mark.parametrize("name", ["node", "node/first"])
def test_groups_with_two_names(tmp_path: Path, name: str) -> None:
    """30 of them, two names each, are a billion paths; one inside itself has no end."""
    path = stored(tmp_path)
    with h5py.File(path, "r+") as opened:
        opened["node/second/again"] = opened[name]
    refused(path, "'again' is a group that has another name")


def texts(folder: Path, count: int, **options: Any) -> Path:
    """All of `count` texts are the same 50,000 letters in the file."""
    path = folder / "x.nir"
    with h5py.File(path, "w") as opened:
        told = ["y" * 50_000] + [""] * (count - 1)
        opened.create_dataset("node/edges", data=told, dtype=h5py.string_dtype(), **options)
        place = opened["node/edges"].id.get_offset()
    data = path.read_bytes()
    entry = data[place : place + 16]
    path.write_bytes(data[:place] + entry * count + data[place + 16 * count :])
    return path


def test_one_text_many_times(tmp_path: Path) -> None:
    path = texts(tmp_path, 4000)
    assert path.stat().st_size < 200_000
    refused(path, "FileFormatError: its texts take more than")
    refused(path, "its texts take more than", check_texts)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shape": (3,), "dtype": lambda: h5py.vlen_dtype("f4")}, "neither numbers nor texts"),
        ({"shape": (3,), "dtype": lambda: h5py.ref_dtype}, "neither numbers nor texts"),
        ({"shape": (2, 65), "dtype": lambda: h5py.string_dtype()}, r"in the shape \(2, 65\)"),
        ({"shape": (10**9,), "dtype": lambda: h5py.string_dtype()}, "announces 64,0"),
    ],
)
def test_kinds_of_values_that_nir_has_not(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    path = stored(tmp_path)
    with h5py.File(path, "r+") as opened:
        opened.create_dataset("node/x", **options | {"dtype": options["dtype"](), "chunks": True})
    refused(path, message)
