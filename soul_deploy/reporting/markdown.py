"""A report as Markdown: its tables and lines, every character of a file as it is."""

import re
from typing import TYPE_CHECKING

from soul_deploy.base.tables import Table, format_cell
from soul_deploy.base.terminal import one_line
from soul_deploy.reporting.content import wordy

if TYPE_CHECKING:
    from soul_deploy.reporting.report import Report

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~])")


def markdown(report: "Report") -> str:
    """GitHub's Markdown; no value of a file becomes markup."""
    parts = [f"# {escaped(report.title)}"]
    parts += [_table(p) if isinstance(p, Table) else escaped(p) for p in report.parts()]
    return "\n\n".join(parts) + "\n"


def escaped(text: object) -> str:
    """One line in which nothing is markup."""
    return _SPECIAL.sub(r"\\\1", one_line(str(text))).replace("@", "@\u200b")


def _table(table: Table) -> str:
    left = {0} | wordy(table)
    lines = [[escaped(name) for name in table.columns]]
    lines.append([":---" if i in left else "---:" for i in range(len(table.columns))])
    lines += [[escaped(format_cell(cell)) for cell in row] for row in table.rows]
    shown = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"**{escaped(table.title)}**\n\n{shown}"
