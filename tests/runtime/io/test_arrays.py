"""Archives of arrays that are refused before they take memory, and nothing that is unpickled."""

import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from soul_deploy.base import memory
from soul_deploy.base.errors import FileFormatError, LimitError
from soul_deploy.base.opening import OpenFile
from soul_deploy.runtime.io import arrays
from soul_deploy.runtime.io.labelled import read_labelled


def entry(array: object, **allow: Any) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.asanyarray(array), **allow)
    return buffer.getvalue()


IMAGES = np.zeros((3, 2, 4, 4), np.uint8)


def written(path: Path, *entries: tuple[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in entries:
            archive.writestr(name, content)
    return path


def test_arrays_come_as_numpy_reads_them(tmp_path: Path) -> None:
    held: dict[str, Any] = {
        "a": np.arange(6.0).reshape(2, 3),
        "b": np.asfortranarray(np.arange(6).reshape(2, 3)),
    }
    for write in (np.savez, np.savez_compressed):
        write(tmp_path / "x.npz", **held)
        with OpenFile(tmp_path / "x.npz") as source:
            assert arrays.npz_names(source) == ("a", "b")
            found = arrays.read_npz(source, ("b", "a"))
        for name, array in held.items():
            np.testing.assert_array_equal(found[name], array)
            assert found[name].dtype == array.dtype


def with_objects(path: Path) -> None:
    written(path, ("images.npy", entry(np.array([{}]), allow_pickle=True)))


def twice(path: Path) -> None:
    with pytest.warns(UserWarning, match="Duplicate name"):
        written(path, ("images.npy", entry(IMAGES)), ("images.npy", entry(IMAGES)))


def crowded(path: Path) -> None:
    written(path, *((f"{i}.npy", b"") for i in range(65)))


def by_bzip2(path: Path) -> None:
    written(path, ("images.npy", entry(IMAGES)), method=zipfile.ZIP_BZIP2)


def no_array(path: Path) -> None:
    written(path, ("images.npy", b"\x80\x04N."))


def other_file(path: Path) -> None:
    written(path, ("images.txt", entry(IMAGES)))


def short(path: Path) -> None:
    written(path, ("images.npy", entry(IMAGES)[:-1]))


def long(path: Path) -> None:
    written(path, ("images.npy", entry(IMAGES) + b"x"))


def torn(path: Path) -> None:
    np.savez(path, images=IMAGES)
    path.write_bytes(path.read_bytes().replace(b"\0" * 96, b"\0" * 95 + b"\1"))


def encrypted(path: Path) -> None:
    np.savez(path, images=IMAGES)
    content = path.read_bytes()
    at = content.index(b"PK\1\2") + 8
    path.write_bytes(content[:at] + bytes([content[at] | 1]) + content[at + 1 :])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (with_objects, "it holds Python objects"),
        (twice, "two entries of one name"),
        (crowded, "65 entries; the limit is 64"),
        (by_bzip2, "is no array that numpy wrote"),
        (encrypted, "is no array that numpy wrote"),
        (other_file, "is no array that numpy wrote"),
        (no_array, "is not a .npz archive of arrays"),
        (short, "96 bytes of values announced, 95 there"),
        (long, "more than the 96 bytes of values that were announced"),
        (torn, "Bad CRC-32"),
        (lambda path: path.write_bytes(b"PK"), "is not a .npz archive of arrays"),
    ],
)
def test_archives_that_are_no_arrays(
    tmp_path: Path, make: Callable[[Path], object], message: str
) -> None:
    make(tmp_path / "x.npz")
    with pytest.raises(FileFormatError, match=message):
        read_labelled(tmp_path / "x.npz")


def test_what_is_announced_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    huge = entry(IMAGES).replace(b"(3, 2, 4, 4), }   ", b"(3, 2, 4, 400000)}")
    path = written(tmp_path / "x.npz", ("images.npy", huge))
    with pytest.raises(FileFormatError, match="9600000 bytes of values announced, 96 there"):
        read_labelled(path)
    monkeypatch.setattr(memory, "WORK_BYTES", 1 << 20)
    with pytest.raises(LimitError, match=r"images needs 9,600,000 bytes of memory; allowed are"):
        read_labelled(path)


def test_what_unpacks_to_more_than_its_size_explains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of two arrays is allowed; both together are not. Stored, their size explains them."""
    held: dict[str, Any] = {
        "images": np.zeros((300, 1, 50, 50), np.uint8),
        "labels": np.zeros(300, np.int64),
    }
    monkeypatch.setattr(memory, "WORK_BYTES", 751_000)
    np.savez_compressed(tmp_path / "x.npz", **held)
    with pytest.raises(LimitError, match=r"labels needs 2,400 bytes of memory; allowed are 1,000"):
        read_labelled(tmp_path / "x.npz")
    np.savez(tmp_path / "x.npz", **held)
    assert read_labelled(tmp_path / "x.npz").sets[""][0].shape == (300, 1, 50, 50)
