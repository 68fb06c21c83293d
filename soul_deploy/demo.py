"""`soul-deploy demo`: the commands a user would type, each printed and run, and one table."""

import json
import shlex
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from soul_deploy.cli import root
from soul_deploy.runtime.tables import text_table

COUNTED_IMAGES = 200
STEM = "spikingvgg5_lif_mnist5k_T4_2025"


@dataclass(frozen=True)
class Places:
    """Where the demo's files are."""

    folder: Path

    @property
    def dense(self) -> Path:
        return self.folder / f"best_{STEM}.safetensors"

    @property
    def compact(self) -> Path:
        return self.folder / f"pruned_{STEM}_compact.safetensors"

    @property
    def dense_onnx(self) -> Path:
        return self.folder / "dense.onnx"

    @property
    def compact_onnx(self) -> Path:
        return self.folder / "compact.onnx"

    @property
    def event(self) -> Path:
        return self.folder / "compact.event.safetensors"

    @property
    def bench(self) -> Path:
        return self.folder / "bench.json"


def commands(places: Places, threads: int) -> list[list[str]]:
    """What to type, in order."""
    shared = [
        *("--dataset_name", "mnist5k", "--batch_size", "64", "--threads", str(threads)),
        *("--learning_rate", "0.002", "--augment", "shift"),
        *("--model_dir", str(places.folder), "--log_dir", str(places.folder / "logs")),
    ]
    dense, compact = str(places.dense), str(places.compact)
    return [
        ["train", "--model", "spikingvgg5", "--hidden", "256", "--epochs", "4", *shared],
        [
            *("prune", "structured", "--mode", "load", "--model_path", dense),
            *("--prune_ratio", "0.5", "--min_keep", "0.25", "--score", "spike"),
            *("--epochs", "3", "--finetune_epochs", "2", *shared),
        ],
        ["export", "onnx", dense, "--output", str(places.dense_onnx)],
        ["export", "onnx", compact, "--output", str(places.compact_onnx)],
        ["export", "event", compact, "--output", str(places.event)],
        ["verify", compact, str(places.compact_onnx), "--samples", "200"],
        ["verify", compact, str(places.event), "--samples", "200"],
        [
            *("bench", "sparse", "--model", dense, "--compact", compact),
            *("--onnx", str(places.dense_onnx), "--onnx_compact", str(places.compact_onnx)),
            *("--event", str(places.event), "--input", "mnist5k", "--threads", "1"),
            *("--iterations", "300", "--output", str(places.bench)),
        ],
    ]


@click.command()
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("demo"),
    show_default=True,
    help="Folder for all files; existing ones are replaced.",
)
@click.option("--threads", type=click.IntRange(min=1), default=2, show_default=True)
@click.option("--dry_run", "--dry-run", is_flag=True, help="Print the commands, run none.")
def demo(output: Path, threads: int, dry_run: bool) -> None:
    """Train, prune, remove, export, verify and time a SpikingVGG on 5,000 real digits.

    About 6 minutes on 2 cores. Each step is a command that you could type.
    """
    places = Places(output)
    begun = time.monotonic()
    for arguments in commands(places, threads):
        click.secho(f"\n$ soul-deploy {shlex.join(arguments)}", bold=True)
        if not dry_run:
            root.main(arguments, prog_name="soul-deploy", standalone_mode=False)
    if not dry_run:
        click.echo("\n" + summary(places))
        click.echo(f"\nThe whole demo took {(time.monotonic() - begun) / 60:.1f} minutes.")


def summary(places: Places) -> str:
    """Before and after in one table, and the paths of all files."""
    from soul_deploy.counting import count_model
    from soul_deploy.data import load_data
    from soul_deploy.modelfile import load_model
    from soul_deploy.runtime.counters import LayerCounts

    data = load_data("mnist5k", Path("data"))
    images = data.normalise(data.test.images[:COUNTED_IMAGES])
    latency = _latencies(json.loads(places.bench.read_text()))
    columns: list[list[object]] = []
    for name, path in (("dense", places.dense), ("compact", places.compact)):
        model = load_model(path)
        total = sum(count_model(model, images).values(), LayerCounts())
        weights = sum(a.size for key, a in model.state.items() if key.endswith("weight"))
        columns.append(
            [
                f"{100 * model.info.provenance['accuracy'][_ACCURACY[name]]:.1f} %",
                weights,
                path.stat().st_size,
                round(total.synops / len(images)),
                round(total.macs_effective / len(images)),
                *(_milliseconds(latency.get(f"{e}-{name}")) for e in ("pytorch", "onnxruntime")),
                _milliseconds(latency.get("event")) if name == "compact" else "",
            ]
        )
    labels = [
        *("test accuracy", "weights", "model file, bytes", f"SynOps per image (of {len(images)})"),
        *("MACs of the first layer", "PyTorch, ms", "ONNX Runtime, ms", "event runtime, ms"),
    ]
    rows = [[label, *values] for label, *values in zip(labels, *columns, strict=True)]
    text = text_table(
        "Before and after (one image at a time, one thread)", ["what", "dense", "compact"], rows
    )
    paths = [places.dense, places.compact, places.dense_onnx, places.compact_onnx, places.event]
    return "\n".join([text, "", "Files:", *(f"  {p}" for p in [*paths, places.bench])])


_ACCURACY = {"dense": "test", "compact": "compact"}


def _latencies(report: dict[str, Any]) -> dict[str, float]:
    """Median latency in ms by engine."""
    return {str(entry["engine"]): float(entry["p50_ms"]) for entry in report["entries"]}


def _milliseconds(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
