"""The descriptions of other_files.py, and of NIR graphs, as facts and tables for people."""

from collections.abc import Mapping
from typing import Any, TypeAlias

from soul_deploy.base.tables import Table

Facts: TypeAlias = list[tuple[str, object]]
Shown: TypeAlias = tuple[Facts, list[Table]]


def weights(described: Mapping[str, Any]) -> Shown:
    """A state dict, and what stands beside it."""
    rows = [
        [row["name"], row["dtype"], _sides(row["shape"]), row["values"]]
        for row in described["tensors"]
    ]
    place = described.get("weights_at")
    stored = f"{described['path']}, {described['stored_as']}"
    facts: Facts = [
        ("weights", f"{stored}, in {place!r}" if place else stored),
        ("tensors", f"{len(rows)} of {described['values']:,} values" if rows else ""),
        *((f"beside: {name}", text) for name, text in described["beside"].items()),
        ("does not load", described["why"]),
        ("sha256", described["sha256"]),
    ]
    return facts, [Table("Tensors", ["name", "dtype", "shape", "values"], rows)] if rows else []


def checkpoint(described: Mapping[str, Any]) -> Shown:
    """A run between two steps."""
    stored = f"{described['arrays']} arrays of {described['values']:,} values"
    facts: Facts = [
        ("checkpoint", f"{described['path']}, {stored}"),
        ("phase", described["phase"]),
        *((name, str(value)) for name, value in described["environment"].items()),
        ("sha256", described["sha256"]),
    ]
    rows = [[name, str(value)] for name, value in described["settings"].items()]
    return facts, [Table("Settings", ["name", "value"], rows)]


def nir(described: Mapping[str, Any]) -> Shown:
    """A NIR graph."""
    rows = [
        [row["node"], row["operation"], row["what"], ", ".join(row["inputs"]), row["parameters"]]
        for row in described["nodes"]
    ]
    facts: Facts = [
        ("NIR graph", described["path"]),
        ("nodes", f"{len(rows)}, {described['edges']} edges"),
        ("parameters", f"{described['parameters']:,}, {described['nonzeros']:,} of them not 0"),
        *((name, str(value)) for name, value in described["metadata"].items()),
        ("sha256", described["sha256"]),
    ]
    return facts, [Table("Graph", ["node", "operation", "what", "from", "parameters"], rows)]


def arrays(described: Mapping[str, Any]) -> Shown:
    """NumPy arrays."""
    rows = [[row["name"], row["dtype"], _sides(row["shape"])] for row in described["arrays"]]
    facts: Facts = [("NumPy arrays", described["path"])]
    return facts, [Table("Arrays", ["name", "dtype", "shape"], rows)]


def image(described: Mapping[str, Any]) -> Shown:
    """An image."""
    width, height = described["size"]
    form = f"{described['format']}, {width}×{height} pixels (width × height)"
    return [("image", f"{described['path']}, {form}, {described['mode']}")], []


def result(described: Mapping[str, Any]) -> Shown:
    """What a command printed."""
    rows = [[name, text] for name, text in described["fields"].items()]
    facts: Facts = [("result", f"{described['path']}, {described['of']}")]
    return facts, [Table("Contents", ["name", "value"], rows)]


def _sides(shape: list[int]) -> str:
    return "×".join(map(str, shape)) or "one number"
