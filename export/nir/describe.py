"""The contents of a NIR file as JSON data; `soul-deploy inspect` imports this by dotted name."""

import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import numpy as np

from soul_deploy.base import files
from soul_deploy.export.nir.package import read_graph

LONGEST = 200  # letters of a text of the metadata
ENDS = ("input_type", "output_type")  # of a node: shapes, not parameters


def describe_nir(file: files.File, *, max_memory: int | None = None) -> dict[str, Any]:
    """Nodes, edges, parameters and metadata of a NIR graph from any tool.

    Raises as `read_graph`; `max_memory` is not asked, since the file's size bounds its arrays.
    """
    graph = read_graph(file)
    feeders: dict[str, list[str]] = {name: [] for name in graph.nodes}
    for source, target in graph.edges:
        feeders.setdefault(target, []).append(source)
    rows = [_row(name, node, feeders[name]) for name, node in graph.nodes.items()]
    return {
        "nodes": rows,
        "edges": len(graph.edges),
        "parameters": sum(row["parameters"] for row in rows),
        "nonzeros": sum(row["nonzeros"] for row in rows),
        "metadata": {str(key): _plain(value) for key, value in graph.metadata.items()},
    }


def _row(name: str, node: Any, inputs: list[str]) -> dict[str, Any]:
    held = {item.name: getattr(node, item.name) for item in fields(node)}
    arrays = {
        key: np.asarray(value)
        for key, value in held.items()
        if key not in ENDS and isinstance(value, np.ndarray | int | float)
    }
    weights = [array for array in arrays.values() if array.dtype.kind == "f"]
    parts = [_told(key, array) for key, array in arrays.items()]
    inner = getattr(node, "nodes", None)
    return {
        "node": name,
        "operation": type(node).__name__,
        "what": f"{len(inner)} nodes" if isinstance(inner, Mapping) else ", ".join(parts),
        "inputs": inputs,
        "parameters": sum(array.size for array in weights),
        "nonzeros": sum(int(np.count_nonzero(array)) for array in weights),
    }


def _told(name: str, array: Any) -> str:
    """A parameter's one value, its few values, or its shape."""
    values = np.unique(array) if array.size else array
    if array.dtype.kind not in "fiu":
        return f"{name} {_plain(array)}"
    if values.size == 1:
        return f"{name} {values[0]:g}"
    if array.size <= 4:
        return f"{name} {tuple(array.ravel().tolist())}"
    return f"{name} {'×'.join(map(str, array.shape))}"


def _plain(value: Any) -> Any:
    """JSON data of a value of the metadata."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    text = str(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"
