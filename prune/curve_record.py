"""A curve as it is told and kept: the points, and the JSON file from which a run goes on."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from soul_deploy import distributed
from soul_deploy.base import errors, files, json_text
from soul_deploy.base.tables import Shown, Table
from soul_deploy.prune.target import Quantity

SCHEMA = "soul-deploy/curve/1"
COLUMNS = (
    *("target", "test accuracy", "SynOps per sample", "parameters"),
    *("live synapses", "seconds"),
)


@dataclass(frozen=True)
class DenseNetwork:
    """The network before pruning.

    cost      what shares are of, in the target's unit
    accuracy  on the test split, 0 to 1; None, as `synops`, for a network that was not trained
    """

    cost: float
    parameters: int
    accuracy: float | None
    synops: float | None


@dataclass(frozen=True)
class CurvePoint:
    """A pruned network.

    label         its target, as file names have it
    target        a share of what the dense network has, or a count
    cost          what it has, in the target's unit
    accuracy      on the test split, of the compact network, 0 to 1
    synops        SynOps per sample, the mean over the validation split
    parameters    trained values of the compact network
    connectivity  live synapses, a share of the dense network's
    seconds       of the point's epochs
    files         "masked" and "compact": the file's name
    sha256        of these files
    """

    label: str
    target: float
    cost: float
    accuracy: float
    synops: float
    parameters: int
    connectivity: float
    seconds: float
    files: Mapping[str, str]
    sha256: Mapping[str, str]

    def intact(self, folder: Path) -> bool:
        """Whether its files are there, as they were written."""
        paths = {what: folder / name for what, name in self.files.items()}
        return all(
            path.is_file() and files.file_sha256(path) == self.sha256[what]
            for what, path in paths.items()
        )


@dataclass(frozen=True, kw_only=True)
class Curve(Shown):
    """One network pruned to smaller and smaller targets, each point from the one before it.

    path      the JSON file that holds all this; the models lie beside it
    settings  what decided the points besides their targets
    begun     label -> sha256 of the file that the point began with; "" for the first
    """

    path: Path
    quantity: Quantity
    settings: Mapping[str, Any]
    dense: DenseNetwork | None = None
    points: tuple[CurvePoint, ...] = ()
    begun: Mapping[str, str] = field(default_factory=dict)

    def point(self, label: str) -> CurvePoint | None:
        """The point of this label, if it is there."""
        return next((point for point in self.points if point.label == label), None)

    def with_begun(self, label: str, start: str) -> "Curve":
        """The curve with a point that begins; one with its label, of another run, goes."""
        points = tuple(point for point in self.points if point.label != label)
        return replace(self, points=points, begun={**self.begun, label: start})

    def with_point(self, point: CurvePoint) -> "Curve":
        """The curve with a new point, among the others by its target."""
        points = sorted([*self.points, point], key=lambda held: -held.target)
        return replace(self, points=tuple(points))

    def to_dict(self) -> dict[str, Any]:
        """As JSON data."""
        told = asdict(self)
        del told["path"]
        return told

    def write(self) -> None:
        """Keep it in its file, in the main process. All return when it is there."""
        if distributed.current().is_main:
            text = json.dumps({"schema": SCHEMA, **self.to_dict()}, indent=1)
            files.write_text(self.path, text + "\n")
        distributed.current().wait()

    def parts(self) -> list[Table | str]:
        """The table of the points."""
        return [self.table()]

    def table(self) -> Table:
        """A row for the dense network and for each point."""
        rows: list[tuple[object, ...]] = [
            (
                point.label,
                f"{point.accuracy:.2%}",
                f"{point.synops:,.0f}",
                point.parameters,
                f"{point.connectivity:.2%}",
                f"{point.seconds:.1f}",
            )
            for point in self.points
        ]
        dense = self.dense
        if dense is not None:
            accuracy = "" if dense.accuracy is None else f"{dense.accuracy:.2%}"
            synops = "" if dense.synops is None else f"{dense.synops:,.0f}"
            rows.insert(0, ("dense", accuracy, synops, dense.parameters, "", ""))
        return Table(f"Curve of target_{self.quantity}", COLUMNS, rows)

    def __repr__(self) -> str:
        told = ", ".join(f"{point.label}: {point.accuracy:.2%}" for point in self.points)
        return f"Curve(target_{self.quantity}; test accuracy {told or 'not known yet'})"


def read_curve(path: Path) -> Curve:
    """The curve that a file holds. Raises FileFormatError."""
    held = json_text.parse_json(path.read_bytes(), str(path))
    known = isinstance(held, dict) and held.pop("schema", None) == SCHEMA
    errors.require(known, f"{path} is no {SCHEMA}; leave --resume out, or give another folder")
    try:
        dense = held.pop("dense")
        points = tuple(CurvePoint(**point) for point in held.pop("points"))
        network = None if dense is None else DenseNetwork(**dense)
        return Curve(path=path, dense=network, points=points, **held)
    except (LookupError, TypeError) as error:
        raise errors.FileFormatError(f"{path}: not a curve as this version writes it") from error
