"""The table of epochs: a row for each, in memory, as JSON lines, as CSV, and for tensorboard."""

import csv
import io
import json
from pathlib import Path
from typing import Any

from soul_deploy import distributed
from soul_deploy.base import errors, files
from soul_deploy.prune.unstructured.pruning import SearchEpoch
from soul_deploy.training.state import Tree, list_of
from soul_deploy.training.tensorboard import Scalars, check_tensorboard

COLUMNS = (
    *("phase", "epoch", "loss", "learning_rate", "lambda"),
    *("weight_temperature", "neuron_temperature", "connectivity", "synops"),
    *("train_accuracy", "soft_accuracy", "hard_accuracy", "threshold_shift", "seconds"),
)
Row = dict[str, Any]
"""An epoch as plain data, by column. synops: per image, on a fixed sample."""


def row_of(epoch: SearchEpoch) -> Row:
    """The epoch's row; what only a search has is None in a fine-tuning's, and lambda 0."""
    result, searching = epoch.result, epoch.phase == "search"
    values = (
        *(epoch.phase, result.epoch, result.loss, result.learning_rate),
        *(epoch.lmbda if searching else 0.0, *(epoch.temperature if searching else (None, None))),
        *(epoch.connectivity.share, epoch.synops, result.train_accuracy),
        *(result.validation_accuracy if searching else None, epoch.hard_accuracy),
        *(None if epoch.adjustment is None else epoch.adjustment.offset, result.seconds),
    )
    return dict(zip(COLUMNS, values, strict=True))


def note_of(epoch: SearchEpoch) -> str:
    """What a line on standard error says about an epoch besides its result."""
    note = (
        f"connectivity {epoch.connectivity.share:.2%}, {epoch.synops:,.0f} SynOps, "
        f"hard masks {epoch.hard_accuracy:.2%}"
    )
    if epoch.phase == "search":
        note += f", lambda {epoch.lmbda:.2e}, temperature {max(epoch.temperature):.4g}"
    if epoch.dead is not None:
        soft = f"{epoch.result.validation_accuracy:.2%}"
        note += f"; hard masks leave nothing of {epoch.dead}; the soft network is at {soft}"
    if epoch.adjustment is not None:
        note += f"; {epoch.adjustment}"
    return note


class Recorder:
    """Keeps the rows of all epochs, and `path` with suffix .jsonl and .csv, if there is one.

    Both files are rewritten whole after every epoch. Of several processes, the main one writes.
    """

    def __init__(self, path: Path | None = None, *, tensorboard: bool = False) -> None:
        check_tensorboard(tensorboard)
        if tensorboard and path is None:
            raise errors.UsageError("tensorboard needs log, the path of the table of epochs")
        self.rows: list[Row] = []
        self._path = path if distributed.current().is_main else None
        self._scalars: Scalars | None = None
        if tensorboard and self._path is not None:
            self._scalars = Scalars(self._path.with_suffix(""))

    def add(self, epoch: SearchEpoch) -> None:
        """Record one epoch."""
        row = row_of(epoch)
        self.rows.append(row)
        if self._path is not None:
            lines = [json.dumps(entry) for entry in self.rows]
            files.write_text(self._path.with_suffix(".jsonl"), "\n".join(lines) + "\n")
            text = io.StringIO()
            writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(self.rows)
            files.write_text(self._path.with_suffix(".csv"), text.getvalue())
        if self._scalars is not None:
            self._scalars.add(row, len(self.rows))

    def state(self) -> Tree:
        return {"rows": list(self.rows)}

    def restore(self, tree: Tree) -> None:
        """Go on after these rows. Raises FileFormatError for rows of another table."""
        rows = list_of(tree, "rows")
        fits = all(isinstance(row, dict) and set(row) == set(COLUMNS) for row in rows)
        errors.require(fits, "rows of the table of epochs: other columns than this version's")
        self.rows = rows
