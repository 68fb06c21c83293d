"""How a command ends: clean JSON or a table on standard output, files with size and next step."""

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from soul_deploy.base.terminal import say, show
from soul_deploy.cli.common_options import DATA_DIR
from soul_deploy.cli.text_table import text_table
from soul_deploy.model.model import Model


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
        show(json.dumps({"schema": schema, **result}, indent=2))
    else:
        show(text_table(title, columns, rows))


def print_files(
    output_format: str, files: Mapping[str, Path], next_words: Sequence[object]
) -> None:
    """Each file's path and size, and what to try next; silent when JSON was asked for.

    next_words: what follows soul-deploy.
    """
    if output_format == "json":
        return
    for what, path in files.items():
        say(f"{what}: {path} ({path.stat().st_size / 1e6:.2f} MB)")
    print_next(next_words)


def print_import(
    output_format: str, model: Model, target: Path, data: list[str], remark: str, **more: list[str]
) -> None:
    """What another tool's network became. data, remark: end the next step's words and the title."""
    graph = model.graph
    nodes = [(node.name, node.op, node.describe()) for node in graph.nodes]
    result = {
        "path": str(target),
        "time_steps": graph.time_steps,
        "nodes": [{"name": name, "op": op, "description": text} for name, op, text in nodes],
        **more,
    }
    title = f"{len(nodes)} nodes, T = {graph.time_steps}{remark}"
    print_result(
        output_format, "soul-deploy/import/1", result, title, ["node", "op", "what"], nodes
    )
    print_files(output_format, {"Model": target}, ["export", "event", target, *data])


def print_next(words: Sequence[object]) -> None:
    """What to try next, as it can be pasted into a shell."""
    say(f"Next: {shlex.join(map(str, ('soul-deploy', *words)))}")


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
