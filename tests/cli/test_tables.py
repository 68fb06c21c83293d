"""Tables as data; as text as wide as they need to be, and readable on a narrow terminal."""

import json
import os
import sys
from dataclasses import FrozenInstanceError
from fractions import Fraction

import pytest
from rich.cells import cell_len

from soul_deploy.base.tables import Shown, Table
from soul_deploy.cli.output import drawn, text_table

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


FACT = "neurons        glif (leak 0.639877, gain an array, gamma 0.5, taken 0.2), sends spikes"


def test_a_long_line_is_folded_under_its_value(terminal: pytest.MonkeyPatch) -> None:
    lines = drawn([FACT, "short", "", "x" * 100]).splitlines()
    assert max(map(len, lines[:2])) <= 80 and lines[2:] == ["short", "", "x" * 100]
    assert lines[1].startswith(" " * 15) and lines[1][15] != " "
    assert " ".join(" ".join(lines[:2]).split()) == " ".join(FACT.split())


def test_a_long_line_into_a_pipe_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: False, raising=False)
    assert drawn([FACT]) == FACT


# Data.


class Report(Shown):
    def parts(self) -> list[Table | str]:
        return [
            "of a\x1b[31m <net>",
            Table("Two <b>", ["layer", "n"], [["c&1", 1234], ["x", True]]),
        ]


def test_a_table_is_frozen_and_its_rows_have_all_cells() -> None:
    table = Table("Two", ["layer", "n"], [["conv1", 1]])
    with pytest.raises(FrozenInstanceError):
        table.title = "other"  # type: ignore[misc]
    assert table == Table("Two", ("layer", "n"), (("conv1", 1),))
    assert repr(table) == "Table('Two', 2 columns, 1 rows)"
    with pytest.raises(ValueError, match="Two: each row needs 2 cells"):
        Table("Two", ["layer", "n"], [["conv1"]])


def test_cells_of_a_table_are_json() -> None:
    row = ["a", 1, 0.5, True, None, Fraction(1, 3)]
    found = Table("All", list("abcdef"), [row]).to_dict()
    assert json.loads(json.dumps(found)) == {
        "title": "All",
        "columns": list("abcdef"),
        "rows": [["a", 1, 0.5, True, None, "1/3"]],
    }


def test_a_result_is_plain_text_and_html_and_its_names_are_no_markup() -> None:
    assert Report().text().splitlines() == [
        *("of a\\x1b[31m <net>", "Two <b>", "layer      n", "c&1    1,234", "x        yes")
    ]
    html = Report()._repr_html_()
    assert html.startswith("<p>of a\\x1b[31m &lt;net&gt;</p>\n<table>")
    assert "<caption>Two &lt;b&gt;</caption>" in html and "<th>layer</th>" in html
    assert "<td>c&amp;1</td><td>1,234</td>" in html


def test_what_is_drawn_is_the_table_and_the_lines() -> None:
    line, *rest = drawn(Report()).splitlines()
    assert line == "of a\\x1b[31m <net>"
    assert "\n".join(rest) == text_table("Two <b>", ["layer", "n"], [["c&1", 1234], ["x", True]])
    assert drawn(Report().parts()) == drawn(Report())
