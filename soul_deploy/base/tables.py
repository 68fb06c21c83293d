"""Tables as data: what results consist of, until `soul_deploy.cli` draws it or a notebook shows it.

A result is read as parts, tables and lines of text. `text` gives them as plain text, which needs no
library; notebooks show them as HTML.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from soul_deploy.base.terminal import one_line


class Shown:
    """A result that people read as tables and lines."""

    def parts(self) -> Sequence["Table | str"]:
        """Tables and lines of text, from top to bottom."""
        raise NotImplementedError

    def text(self) -> str:
        """All parts as plain text."""
        return "\n".join(
            _plain(part) if isinstance(part, Table) else one_line(part) for part in self.parts()
        )

    def _repr_html_(self) -> str:
        return "\n".join(
            _html(part) if isinstance(part, Table) else f"<p>{escape(one_line(part))}</p>"
            for part in self.parts()
        )


@dataclass(frozen=True)
class Table(Shown):
    """Rows of cells under named columns; cells are numbers, truth values, texts or None."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[object]]

    def __post_init__(self) -> None:
        """Keep tuples. Raises ValueError for a row that has a cell too many or too few."""
        object.__setattr__(self, "columns", tuple(self.columns))
        object.__setattr__(self, "rows", tuple(map(tuple, self.rows)))
        if any(len(row) != len(self.columns) for row in self.rows):
            raise ValueError(f"{self.title}: each row needs {len(self.columns)} cells")

    def __repr__(self) -> str:
        return f"Table({self.title!r}, {len(self.columns)} columns, {len(self.rows)} rows)"

    def __str__(self) -> str:
        return self.text()

    def parts(self) -> Sequence["Table | str"]:
        return (self,)

    def to_dict(self) -> dict[str, Any]:
        """Title, columns and rows as JSON data; a cell of another type as its text."""
        rows = [[_json_cell(cell) for cell in row] for row in self.rows]
        return {"title": self.title, "columns": list(self.columns), "rows": rows}


def format_cell(cell: object) -> str:
    """Integers with thousands separators, floats with four significant digits, the rest as is."""
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if isinstance(cell, int):
        return f"{cell:,}"
    if isinstance(cell, float):
        return f"{cell:.4g}"
    return str(cell)


def _json_cell(cell: object) -> Any:
    return cell if isinstance(cell, bool | int | float | str | None) else str(cell)


def _lines(table: Table) -> list[list[str]]:
    """The columns' names, and each row's cells as text."""
    rows = [table.columns, *table.rows]
    return [[one_line(format_cell(cell)) for cell in row] for row in rows]


def _plain(table: Table) -> str:
    """Columns side by side, two spaces between them; the first is left-aligned."""
    lines = _lines(table)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    aligned = [
        "  ".join(
            cell.rjust(width) if position else cell.ljust(width)
            for position, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    ]
    return "\n".join([one_line(table.title), *(line.rstrip() for line in aligned)])


def _html(table: Table) -> str:
    head, *body = _lines(table)
    rows = "".join(f"<tr>{_html_cells(line, 'td')}</tr>" for line in body)
    title = f"<caption>{escape(one_line(table.title))}</caption>"
    head_row = f"<thead><tr>{_html_cells(head, 'th')}</tr></thead>"
    return f"<table>{title}{head_row}<tbody>{rows}</tbody></table>"


def _html_cells(line: Sequence[str], tag: str) -> str:
    return "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in line)
