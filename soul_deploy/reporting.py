"""How a command ends: clean JSON or a table on standard output, files with size and next step."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from soul_deploy.runtime.tables import text_table


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
        click.echo(json.dumps({"schema": schema, **result}, indent=2))
    else:
        click.echo(text_table(title, columns, rows))


def print_files(output_format: str, files: Mapping[str, Path], next_command: str) -> None:
    """Each file's path and size, and what to try next; silent when JSON was asked for."""
    if output_format == "json":
        return
    for what, path in files.items():
        click.echo(f"{what}: {path} ({path.stat().st_size / 1e6:.2f} MB)")
    click.echo(f"Next: {next_command}")
