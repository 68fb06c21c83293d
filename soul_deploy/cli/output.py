"""What commands print: tables drawn for a terminal, clean JSON, files with size and next step.

This is the only place that uses rich, and it gives it `Text`, in which nothing is markup.
"""

import io
import json
import re
import shlex
import shutil
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.cells import cell_len
from rich.console import Console, JustifyMethod
from rich.table import Table as RichTable
from rich.text import Text

from soul_deploy.base import tables, terminal
from soul_deploy.cli.common_options import DATA_DIR

LEFT = (
    *("name", "layer", "operation", "kind", "engine", "file", "rule", "edge", "what", ""),
    *("network", "against", "from"),
)
FRAME = 3  # of a column: a line and two spaces
LONGEST_NUMBER = 12  # with its unit
LONGEST_NAME = 20  # of a name that is not broken


def drawn(parts: Iterable[tables.Table | str] | tables.Shown) -> str:
    """Tables and lines as `soul-deploy` prints them; control characters in lines as escapes."""
    return "\n".join(
        text_table(part.title, part.columns, part.rows)
        if isinstance(part, tables.Table)
        else _folded_line(terminal.one_line(part))
        for part in (parts.parts() if isinstance(parts, tables.Shown) else parts)
    )


def _folded_line(line: str) -> str:
    """A line longer than a terminal, folded between words: under its value, where that stands
    two spaces behind a name. Into a file or a pipe as it is.
    """
    width = max(shutil.get_terminal_size((400, 24)).columns, 40)
    if not terminal.is_terminal() or cell_len(line) <= width:
        return line
    name = re.match(r"\S+(?: \S+)* {2,}", line)
    indent = len(name[0]) if name is not None and len(name[0]) < width // 2 else 0
    parts = textwrap.wrap(
        *(line, width),
        subsequent_indent=" " * indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return "\n".join(parts)


def text_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table as plain text; the first column is left-aligned, numbers are right-aligned.

    It is folded to a terminal's width, between words; where that is too narrow, it goes on below
    with the other columns. Into a file or a pipe it is as wide as it needs to be. Control
    characters and ends of lines in cells, columns and title are shown as escapes, what standard
    output cannot encode in ASCII.
    """
    title, columns = terminal.printable(title), [terminal.printable(column) for column in columns]
    cells = [[terminal.printable(tables.format_cell(cell)) for cell in row] for row in rows]
    lines = [list(columns), *cells]
    natural = [max(cell_len(line[i]) for line in lines) for i in range(len(columns))]
    least = [
        _least(columns[i], [line[i] for line in cells], _is_left(columns, i))
        for i in range(len(columns))
    ]
    # A terminal's columns (COLUMNS goes first); 400 into a file or a pipe, at least 100.
    available = shutil.get_terminal_size((400, 24)).columns
    width = max(available, 40 if terminal.is_terminal() else 100)
    parts: list[str] = []
    for group in _groups(least, width):
        room = width - 1 - FRAME * len(group)
        widths = _folded([natural[i] for i in group], [least[i] for i in group], room)
        parts.append(
            _columns("" if parts else title, columns, cells, dict(zip(group, widths, strict=True)))
        )
    return "\n".join(parts)


def _is_left(columns: Sequence[str], position: int) -> bool:
    return position == 0 or columns[position].lower() in LEFT


def _least(heading: str, texts: Sequence[str], is_left: bool) -> int:
    """The longest word; long names and paths may be broken, numbers and their units never."""
    whole = [] if is_left else [text for text in texts if cell_len(text) <= LONGEST_NUMBER]
    words = [word for text in (heading, *texts) for word in text.split()]
    longest = max(map(cell_len, [*words, *whole]), default=1)
    return min(longest, LONGEST_NAME) if is_left else longest


def _groups(least: Sequence[int], width: int) -> list[list[int]]:
    """Columns that go side by side; each group begins with the first one."""
    groups, used = [[0]], 1 + FRAME + least[0]
    for position in range(1, len(least)):
        needed = FRAME + least[position]
        if used + needed > width and len(groups[-1]) > 1:
            groups.append([0])
            used = 1 + FRAME + least[0]
        groups[-1].append(position)
        used += needed
    return groups


def _folded(natural: Sequence[int], least: Sequence[int], room: int) -> list[int]:
    """Widths of columns: the widest give way until they fit, none below its longest word."""
    widths = list(natural)
    while sum(widths) > room:
        able = [i for i in range(len(widths)) if widths[i] > least[i]]
        if not able:
            break
        widths[max(able, key=widths.__getitem__)] -= 1
    return widths


def _columns(
    title: str, columns: Sequence[str], cells: Sequence[Sequence[str]], widths: Mapping[int, int]
) -> str:
    """The columns that have a width."""
    table = RichTable(title=Text(title) if title else None, title_justify="left", header_style="")
    for position, width in widths.items():
        justify: JustifyMethod = "left" if _is_left(columns, position) else "right"
        heading = Text(columns[position])
        table.add_column(heading, justify=justify, overflow="fold", width=width)
    for row in cells:
        table.add_row(*(Text(row[position]) for position in widths))
    buffer = io.StringIO()
    needed = 1 + sum(FRAME + width for width in widths.values())
    Console(file=buffer, width=max(needed, cell_len(title)), color_system=None).print(table)
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines())


def print_result(
    output_format: str,
    schema: str,
    result: Mapping[str, Any],
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[object]],
) -> None:
    """The result as JSON (`schema` first) or as a table."""
    if output_format == "json":
        terminal.show(json.dumps({"schema": schema, **result}, indent=2))
    else:
        terminal.show(text_table(title, columns, rows))


def files_json(files: Mapping[str, Path]) -> dict[str, dict[str, Any]]:
    """Each file's path and size in bytes."""
    return {what: {"path": str(path), "bytes": path.stat().st_size} for what, path in files.items()}


def print_files(
    output_format: str, files: Mapping[str, Path], next_words: Sequence[object]
) -> None:
    """Each file's path and size, and what to try next; silent when JSON was asked for.

    next_words: what follows soul-deploy.
    """
    if output_format == "json":
        return
    for what, path in files.items():
        terminal.say(f"{what}: {path} ({path.stat().st_size / 1e6:.2f} MB)")
    print_next(next_words)


def print_next(words: Sequence[object]) -> None:
    """What to try next, as it can be pasted into a shell."""
    terminal.say(f"Next: {shlex.join(map(str, ('soul-deploy', *words)))}")


def data_flags(name: object, data_dir: Path) -> list[str]:
    """Flags with which a command that checks a file finds the data set; random pixels without one.

    name: the data set's, as a model file's provenance has it.
    """
    if not isinstance(name, str):
        return ["--input", "random"]
    return folder_flags(data_dir)


def folder_flags(data_dir: Path) -> list[str]:
    """--data_dir, unless it is the folder that commands look into anyway."""
    return [] if data_dir == DATA_DIR else ["--data_dir", str(data_dir)]
