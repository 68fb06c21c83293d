"""Tables as text: as wide as they need to be, and readable on a narrow terminal."""

import os
import sys

import pytest
from rich.cells import cell_len

from soul_deploy.base.tables import text_table

COLUMNS = ["layer", "kind", "rate", *(f"measured value {i}" for i in range(9))]
ROWS = [
    ["conv1", "convolution, analog", "19.66 %", *range(1_000_000, 1_000_009)],
    ["a/very/long/path/to/a/layer.with.a.name", "readout", "7.00 %", *range(9)],
]


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Standard output is a terminal of 80 columns."""
    monkeypatch.delenv("COLUMNS")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("shutil.get_terminal_size", lambda fallback: os.terminal_size((80, 24)))
    return monkeypatch


def test_a_wide_table_goes_on_below_and_no_number_is_broken(terminal: pytest.MonkeyPatch) -> None:
    text = text_table("Wide", COLUMNS, ROWS)
    lines = text.splitlines()
    assert lines[0] == "Wide" and max(map(cell_len, lines)) <= 80
    for number in ("19.66 %", "7.00 %", *(f"{value:,}" for value in range(10**6, 10**6 + 9))):
        assert number in text
    tops = [line for line in lines if line.startswith("┏")]
    assert len(tops) > 1 and text.count("conv1") == len(tops)


def test_a_table_that_fits_is_one_table(terminal: pytest.MonkeyPatch) -> None:
    text = text_table("Two", ["layer", "kind"], [["conv1", "words " * 30]])
    assert text.count("┏") == 1 and max(map(cell_len, text.splitlines())) <= 80
    assert text.count("words") == 30


@pytest.mark.parametrize(("columns", "most"), [(30, 40), (60, 60), (120, 120)])
def test_a_terminal_is_as_wide_as_it_is(
    terminal: pytest.MonkeyPatch, columns: int, most: int
) -> None:
    size = os.terminal_size((columns, 24))
    terminal.setattr("shutil.get_terminal_size", lambda fallback: size)
    lines = text_table("Wide", COLUMNS, ROWS).splitlines()
    assert most - 20 <= max(map(cell_len, lines)) <= most


def test_a_file_or_a_pipe_gets_one_wide_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: False, raising=False)
    monkeypatch.setattr("shutil.get_terminal_size", lambda fallback: os.terminal_size(fallback))
    text = text_table("Wide", COLUMNS, ROWS)
    assert text.count("┏") == 1 and str(ROWS[1][0]) in text
    assert max(map(cell_len, text.splitlines())) > 200
