"""Tables as text, so that a plan or a report prints the same everywhere."""

import io
import shutil
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table

LEFT = (
    *("name", "layer", "operation", "kind", "engine", "file", "rule", "edge", "what", ""),
    *("network", "against", "from"),
)


def text_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table as plain text; the first column is left-aligned, numbers are right-aligned.

    It is folded to a terminal's width; into a file or a pipe it is as wide as it needs to be.
    """
    table = Table(title=title, title_justify="left", header_style="", title_style="bold")
    for position, column in enumerate(columns):
        left = position == 0 or column.lower() in LEFT
        table.add_column(column, justify="left" if left else "right", overflow="fold")
    for row in rows:
        table.add_row(*(format_cell(cell) for cell in row))
    buffer = io.StringIO()
    width = max(shutil.get_terminal_size((400, 24)).columns, 100)
    Console(file=buffer, width=width, color_system=None).print(table)
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines())


def format_cell(cell: object) -> str:
    """Integers with thousands separators, floats with four significant digits, the rest as is."""
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if isinstance(cell, int):
        return f"{cell:,}"
    if isinstance(cell, float):
        return f"{cell:.4g}"
    return str(cell)
