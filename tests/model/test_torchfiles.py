"""State dicts of strangers: refused before they take memory that their size does not explain."""

import io
import pickle
import pickletools
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import peak
import pytest
import torch

from soul_deploy.base.errors import FileFormatError
from soul_deploy.model.file import load_state_dict

MOST = 64 << 20  # bytes that a refusal may take


def refused(path: Path, message: str) -> None:
    before = peak.reset()
    with pytest.raises(FileFormatError, match=message):
        load_state_dict(path)
    if peak.RESETTABLE:
        assert peak.peak() - before < MOST


def entries(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {entry.filename: archive.read(entry) for entry in archive.infolist()}


def archive_of(contents: Mapping[str, bytes], path: Path, kind: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", kind) as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    return path


def legacy(state: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def legacy_parts(state: Any) -> tuple[bytes, list[str], bytes]:
    """A legacy file: its pickles, the keys of its blocks of values, the blocks."""
    data = legacy(state)
    stream, ends = io.BytesIO(data), [0]
    for _ in range(5):
        told = [text for _, text, _ in pickletools.genops(stream)]
        ends.append(stream.tell())
    return data[: ends[4]], [text for text in told if isinstance(text, str)], data[ends[5] :]


def test_many_names_for_one_tensor(tmp_path: Path) -> None:
    """1 MB of values under 1,500 names, whose copies would take 1.5 GB."""
    path, values = tmp_path / "x.pt", torch.ones(1 << 18)
    torch.save({f"layer{i}": values for i in range(1500)}, path)
    refused(path, r"its 1,500 tensors share values and would take 1,572,864,000 bytes; at most")
    torch.save({"a": values, "b": values, "c": values[:5]}, path)
    assert len(load_state_dict(path)) == 3


@pytest.mark.parametrize("numbers", [400_000_000, 2**36, 1001])
def test_a_legacy_file_that_announces_what_it_does_not_hold(tmp_path: Path, numbers: int) -> None:
    start, _, _ = legacy_parts({"a": torch.ones(1000)})
    announced = b"\x8a\x08" + struct.pack("<q", numbers)  # LONG1
    assert start.count(b"M\xe8\x03") == 2  # the block's size, and the tensor's
    path = tmp_path / "x.pt"
    path.write_bytes(start.replace(b"M\xe8\x03", announced) + pickle.dumps([], 2))
    refused(
        path, r"announces .* bytes of values in|holds 0; it|is not a file of weights \(.*allocate"
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda keys: keys[:1], "announces 2 blocks of values and holds 1"),
        (lambda keys: [keys[0], keys[0]], "its list of values is not one of torch.save"),
        (lambda keys: [*keys, "7"], "is not a file of weights"),
        (lambda keys: tuple(keys), "its list of values is not one of torch.save"),
        (lambda keys: keys[0], "its list of values is not one of torch.save"),
    ],
)
def test_blocks_that_a_legacy_file_leaves_out(tmp_path: Path, change: Any, message: str) -> None:
    """They would be whatever the memory held."""
    start, keys, values = legacy_parts({"a": torch.ones(1000), "b": torch.ones(1000)})
    path = tmp_path / "x.pt"
    path.write_bytes(start + pickle.dumps(keys, 2) + values)
    assert sorted(load_state_dict(path)) == ["a", "b"]
    path.write_bytes(start + pickle.dumps(change(keys), 2) + values)
    refused(path, message)


def test_a_list_of_keys_that_ends_in_another(tmp_path: Path) -> None:
    """A pickle's value is what lies on top at its end, not what it mentions."""
    start, keys, values = legacy_parts({"a": torch.ones(1000), "b": torch.ones(1000)})
    first, second = (b"X" + struct.pack("<I", len(key)) + key.encode() for key in keys)
    path = tmp_path / "x.pt"
    path.write_bytes(start + b"\x80\x02](" + second + b"]" + first + b"a." + values)
    refused(path, "its list of values is not one of torch.save")


def test_blocks_that_are_parts_of_others(tmp_path: Path) -> None:
    start, _, values = legacy_parts({"a": torch.ones(1000)})
    assert start.count(b"M\xe8\x03Nt") == 1
    part = b"M\xe8\x03(X\x01\x00\x00\x00vK\x00K\x01tt"  # one value from 0 on, called v
    path = tmp_path / "x.pt"
    path.write_bytes(start.replace(b"M\xe8\x03Nt", part) + pickle.dumps(["v"], 2) + values)
    refused(path, "holds parts of blocks of values")


@pytest.mark.parametrize("behind", [b"PK\x05\x06\0\0\0\0", b"PK\x05\x06" + bytes(18), b"x"])
def test_a_packed_archive_that_hides_its_end(tmp_path: Path, behind: bytes) -> None:
    """Python's zipfile does not see the archive then; PyTorch does."""
    path = tmp_path / "x.pt"
    torch.save({"a": torch.zeros(1 << 26)}, path)
    packed = archive_of(entries(path), path, zipfile.ZIP_DEFLATED)
    packed.write_bytes(packed.read_bytes() + behind)
    assert packed.stat().st_size < 2 << 20
    refused(packed, "is not an intact archive")


def test_an_archive_with_two_directories(tmp_path: Path) -> None:
    """Python takes the record right before the last two, PyTorch the one that they point to."""
    path = tmp_path / "x.pt"
    torch.save({"a": torch.zeros(1 << 20)}, path)
    plain = path.read_bytes()
    assert plain[-42:-38] == b"PK\x06\x07", "torch.save writes archives in another way now"
    (start,) = struct.unpack("<Q", plain[-50:-42])
    directory, record, again = plain[start:-98], plain[-98:-50], struct.pack("<Q", len(plain) - 42)
    path.write_bytes(plain[:-42] + directory + record + again + plain[-42:])
    assert "a" in torch.load(path, weights_only=True)
    refused(path, r"its directory is not at its end|is not an intact archive \(")
    path.write_bytes(plain[:-2] + struct.pack("<H", 3) + b"abc")
    refused(path, "its directory is not at its end")


def test_an_archive_that_other_tools_wrote(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    torch.save({"a": torch.arange(5.0)}, path)
    found = load_state_dict(archive_of(entries(path), path))
    np.testing.assert_array_equal(found["a"], np.arange(5.0))


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (b"cbuiltins\nbytearray\nJ\0\0\0\x40\x85R", "asks for a bytearray"),
        (b"ctorch\nTensor\nJ\0\0\0\x40\x85R", "a has no values in the file"),
    ],
)
def test_a_pickle_that_asks_for_memory(tmp_path: Path, asked: bytes, message: str) -> None:
    path = tmp_path / "x.pt"
    torch.save({"a": torch.arange(5.0)}, path)
    told = b"\x80\x02}X\x01\0\0\0a" + asked + b"s."
    found = {n: told if n.endswith("data.pkl") else c for n, c in entries(path).items()}
    refused(archive_of(found, path), message)
    header: list[Any] = [0x1950A86A20F9469CFC6C, 1001, {}]
    rest = b"".join(pickle.dumps(n, 2) for n in header)
    path.write_bytes(rest + told + pickle.dumps([], 2))
    refused(path, message)
