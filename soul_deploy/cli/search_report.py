"""What `soul-deploy prune unstructured` records per epoch, and prints before and after."""

import csv
import io
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from soul_deploy import distributed
from soul_deploy.analysis.connectivity import Connectivity
from soul_deploy.base.brief import brief
from soul_deploy.base.errors import FileFormatError, UsageError
from soul_deploy.base.files import write_text
from soul_deploy.base.terminal import say, show
from soul_deploy.cli.output import folder_flags, print_files, print_result
from soul_deploy.cli.text_table import drawn
from soul_deploy.ir.graph import SpikingGraph
from soul_deploy.model.model import Model
from soul_deploy.prune.removal.apply import parameters
from soul_deploy.prune.unstructured.masks import Masks
from soul_deploy.prune.unstructured.plan import SearchEpoch
from soul_deploy.training.state import Tree, list_of

COLUMNS = (
    *("phase", "epoch", "loss", "learning_rate", "lambda"),
    *("weight_temperature", "neuron_temperature", "connectivity", "synops"),
    *("train_accuracy", "soft_accuracy", "hard_accuracy", "threshold_shift", "seconds"),
)


def row_of(epoch: SearchEpoch) -> dict[str, Any]:
    """An epoch as plain data, in the order of COLUMNS. synops: per image, on a fixed sample."""
    result, searching = epoch.result, epoch.phase == "search"
    values = (
        *(epoch.phase, result.epoch, result.loss, result.learning_rate),
        epoch.lmbda if searching else 0.0,
        *(epoch.temperature if searching else (None, None)),
        *(epoch.connectivity.share, epoch.synops, result.train_accuracy),
        result.validation_accuracy if searching else None,
        epoch.hard_accuracy,
        None if epoch.adjustment is None else epoch.adjustment.offset,
        result.seconds,
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
    if epoch.adjustment is not None:
        change = epoch.adjustment
        note += (
            f"; {change.offset:+.3g} was added to every mask parameter, which takes connectivity "
            f"from {change.before:.2%} to {change.after:.2%}"
        )
    return note


class Recorder:
    """Keeps `path` with suffix .jsonl and .csv; both are rewritten whole after every epoch.

    Of several processes, the main one writes.
    """

    def __init__(self, path: Path, *, tensorboard: bool) -> None:
        self._path = path
        self._rows: list[dict[str, Any]] = []
        self._writes = distributed.current().is_main
        self._writer = _tensorboard_writer(path) if tensorboard and self._writes else None

    def add(self, epoch: SearchEpoch) -> None:
        """Record one epoch."""
        row = row_of(epoch)
        self._rows.append(row)
        if not self._writes:
            return
        lines = [json.dumps(entry) for entry in self._rows]
        write_text(self._path.with_suffix(".jsonl"), "\n".join(lines) + "\n")
        write_text(self._path.with_suffix(".csv"), self._csv())
        if self._writer is not None:
            for name, value in row.items():
                if isinstance(value, int | float) and name != "epoch":
                    self._writer.add_scalar(name, value, len(self._rows))
            self._writer.flush()

    def state(self) -> Tree:
        """The rows so far."""
        return {"rows": list(self._rows)}

    def restore(self, tree: Tree) -> None:
        """Go on after these rows. Raises FileFormatError for rows of another table."""
        rows = list_of(tree, "rows")
        if not all(isinstance(row, dict) and set(row) == set(COLUMNS) for row in rows):
            raise FileFormatError("rows of the table of epochs: other columns than this version's")
        self._rows = rows

    @property
    def csv_path(self) -> Path:
        """The table for plotting."""
        return self._path.with_suffix(".csv")

    def _csv(self) -> str:
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self._rows)
        return text.getvalue()


def check_tensorboard(wanted: bool) -> None:
    """Raise UsageError if it is wanted and not installed."""
    if wanted and find_spec("tensorboard") is None:
        raise UsageError(
            "--tensorboard: the package tensorboard is not installed; "
            "pip install 'soul-deploy[tensorboard]', or use the CSV in --log_dir"
        )


def _tensorboard_writer(path: Path) -> Any:
    return import_module("torch.utils.tensorboard").SummaryWriter(str(path.with_suffix("")))


@brief
@dataclass(frozen=True)
class LayerSurvivors:
    """Kept and all weights of a projection, kept and all neurons of the population behind it."""

    projection: str
    weights: tuple[int, int]
    population: str | None
    neurons: tuple[int, int] | None


def survivors(model: Model) -> tuple[LayerSurvivors, ...]:
    """Per layer, what is not masked."""
    rows = []
    for node in model.graph.projections:
        weight = model.state[f"{node.name}.weight"]
        behind = next(
            (name for name in model.graph.consumers[node.name] if name in model.neuron_masks), None
        )
        keep = None if behind is None else model.neuron_masks[behind]
        kept = (int((weight != 0).sum()), int(weight.size))
        rows.append(
            LayerSurvivors(
                node.name, kept, behind, None if keep is None else (int(keep.sum()), int(keep.size))
            )
        )
    return tuple(rows)


@brief
@dataclass(frozen=True)
class Outcome:
    """Everything that is known at the end."""

    masked: Model
    compact: Model | None
    connectivity: Connectivity
    accuracies: Mapping[str, float]
    synops: tuple[float, float]
    """Per image on the fixed sample, before and after."""
    files: Mapping[str, Path]
    data_dir: Path


def print_preview(output_format: str, graph: SpikingGraph, masks: Masks) -> None:
    """What would be masked, and what each entry costs."""
    rows: list[tuple[object, ...]] = []
    weights = {node.name: index for index, node in enumerate(graph.projections)}
    neurons = {node.name: index for index, node in enumerate(graph.populations)}
    for kind, indexes, chosen in (
        ("weights", weights, masks.weights),
        ("neurons", neurons, masks.neurons),
    ):
        for name, index in indexes.items():
            mask = chosen.get(name)
            entries = 0 if mask is None else mask.alpha.numel()
            rows.append((name, kind, index, entries, "" if mask is None else f"{mask.cost:g}"))
    columns = ("layer", "masks", "index", "entries", "cost")
    layers = [dict(zip(columns, row, strict=True)) for row in rows]
    print_result(
        output_format,
        "soul-deploy/mask-plan/1",
        {"layers": layers},
        "Masks, and the penalty's coefficient of each of their entries",
        columns,
        rows,
    )


def print_outcome(output_format: str, outcome: Outcome) -> None:
    """Survivors, connectivity, SynOps, accuracies, files, the next command."""
    layers = survivors(outcome.masked)
    before, after = outcome.synops
    result = {
        "test_accuracy": dict(outcome.accuracies),
        "connectivity": {
            "share": outcome.connectivity.share,
            "live": outcome.connectivity.live,
            "dense": outcome.connectivity.dense,
            "layers": [asdict(layer) for layer in outcome.connectivity.layers],
        },
        "synops_per_image": {"before": before, "after": after},
        "survivors": [asdict(layer) for layer in layers],
        "parameters": {
            "before": parameters(outcome.masked.state),
            "after": None if outcome.compact is None else parameters(outcome.compact.state),
        },
        "files": {
            what: {"path": str(path), "bytes": path.stat().st_size}
            for what, path in outcome.files.items()
        },
    }
    rows: list[tuple[object, ...]] = [
        (layer.projection, *_shares(layer.weights), *_shares(layer.neurons)) for layer in layers
    ]
    columns = ("layer", "weights", "kept", "neurons", "kept")
    schema = "soul-deploy/prune-unstructured/1"
    print_result(output_format, schema, result, "Survivors", columns, rows)
    if output_format == "json":
        return
    show(drawn(outcome.connectivity))
    say(
        f"SynOps per image: {before:,.0f} → {after:,.0f}"
        + (f" ({before / after:.1f}× fewer)" if after else "")
    )
    say(
        "Test accuracy: "
        + ", ".join(f"{kind} {value:.2%}" for kind, value in outcome.accuracies.items())
    )
    kind = "Model" if outcome.compact is None else "Compact model"
    words = ["export", "event", outcome.files[kind], *folder_flags(outcome.data_dir)]
    print_files(output_format, outcome.files, words)


def _shares(pair: tuple[int, int] | None) -> tuple[object, object]:
    if pair is None:
        return "", ""
    kept, total = pair
    return f"{total:,}", f"{kept:,} ({kept / total:.2%})"
