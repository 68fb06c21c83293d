"""A pickle read as data is what Python's unpickler makes of it, and nothing in it runs."""

import io
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from soul_deploy.base.errors import FileFormatError, LimitError
from soul_deploy.base.pickle_data import Made, read_pickle

ENOUGH = 1 << 20
LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()


def nested(leaves: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.recursive(
        leaves,
        lambda inner: (
            st.lists(inner)
            | st.lists(inner, max_size=5).map(tuple)
            | st.dictionaries(st.text(), inner)
        ),
    )


def read(content: bytes, most: int = ENOUGH) -> Any:
    return read_pickle(io.BytesIO(content), "x", most).root


def made_again(value: Any) -> Any:
    """Plain data of the records."""
    if not isinstance(value, Made):
        return value
    if value.name == "dict":
        return {made_again(key): made_again(item) for key, item in value.items}
    values = [made_again(item) for item in value.values]
    return tuple(values) if value.name == "tuple" else values


@given(nested(LEAVES), st.integers(0, 5))
def test_plain_data_is_what_pickle_makes_of_it(value: Any, protocol: int) -> None:
    content = pickle.dumps(value, protocol)
    assert made_again(read(content)) == pickle.loads(content)


@given(nested(LEAVES | st.binary()), st.integers(3, 5))
def test_bytes_are_what_pickle_makes_of_them(value: Any, protocol: int) -> None:
    content = pickle.dumps(value, protocol)
    assert made_again(read(content)) == pickle.loads(content)


@given(nested(LEAVES | st.binary()))
def test_what_stands_behind_a_pickle_is_left(value: Any) -> None:
    stream = io.BytesIO(pickle.dumps(value) + b"behind")
    read_pickle(stream, "x", ENOUGH)
    assert stream.read() == b"behind"


class Bomb:
    """Unpickled, it would leave a folder behind."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.target),)


class Kept:
    """An object with a state."""

    def __init__(self) -> None:
        self.kept = 3


@pytest.mark.parametrize("protocol", range(6))
def test_calls_are_recorded_and_not_made(tmp_path: Path, protocol: int) -> None:
    found = read(pickle.dumps([Bomb(tmp_path / "ran")], protocol)).values[0]
    assert (found.name, found.values) == ("posix.mkdir", [str(tmp_path / "ran")])
    assert not (tmp_path / "ran").exists()
    if protocol >= 2:  # before, copyreg is called with the class
        made = read(pickle.dumps(Kept(), protocol))
        assert made.name.endswith("Kept") and made.state.items == [("kept", 3)]


def test_names_are_told(tmp_path: Path) -> None:
    content = pickle.dumps({"a": Bomb(tmp_path), "b": Kept()}, 4)
    names = read_pickle(io.BytesIO(content), "x", ENOUGH).names
    assert names == ("posix.mkdir", f"{Kept.__module__}.Kept")


def test_memory_is_bounded() -> None:
    with pytest.raises(LimitError, match=r"x has more than 4 opcodes.*--max_memory"):
        read(pickle.dumps(list(range(10))), 1024)


@given(st.binary(max_size=60))
def test_other_bytes_are_refused(content: bytes) -> None:
    try:
        read(content + b".")
    except FileFormatError as error:
        assert "x is no intact pickle" in str(error)
