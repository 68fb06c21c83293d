"""`soul-deploy demo`: the commands a user would type, each printed and run, and one table."""

import json
import shlex
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from soul_deploy.base import files, lazy, progress, tables, terminal
from soul_deploy.cli import common_options, main, output, parsing
from soul_deploy.runtime.format.validate import MAX_THREADS

COUNTED_IMAGES = 200
STEM = "spikingvgg5_lif_mnist5k_T4_2025"
BRANCHES = ("structured", "unstructured")
ONNX, EVENT, TIMES = "compact.onnx", "compact.event.safetensors", "bench.json"


@dataclass(frozen=True)
class Places:
    """Where the demo's files are."""

    folder: Path

    @property
    def dense(self) -> Path:
        return self.folder / f"best_{STEM}.safetensors"

    @property
    def dense_onnx(self) -> Path:
        return self.folder / "dense.onnx"

    def compact(self, branch: str) -> Path:
        """The compact model of one method."""
        return self.folder / branch / f"pruned_{STEM}_compact.safetensors"

    def made(self, branch: str, name: str) -> Path:
        """What is made of it: ONNX file, event network, timings as JSON."""
        return self.folder / branch / name

    def results(self) -> list[Path]:
        """All files worth looking at, in the order they are made."""
        made = [self.dense, self.dense_onnx]
        for branch in BRANCHES:
            made += [
                self.compact(branch),
                *(self.made(branch, name) for name in (ONNX, EVENT, TIMES)),
            ]
        return made


def commands(places: Places, threads: int) -> list[list[str]]:
    """What to type, in order."""
    shared = [
        *("--dataset_name", "mnist5k", "--batch_size", "64", "--threads", str(threads)),
        *("--log_dir", str(places.folder / "logs")),
    ]
    dense = str(places.dense)
    train = [
        *("train", "--model", "spikingvgg5", "--hidden", "256", "--epochs", "4", *shared),
        *("--learning_rate", "0.002", "--augment", "shift", "--model_dir", str(places.folder)),
    ]
    structured = [
        *("prune", "structured", "--mode", "load", "--model_path", dense, *shared),
        *("--learning_rate", "0.002", "--augment", "shift"),
        *("--prune_ratio", "0.5", "--min_keep", "0.25", "--score", "spike"),
        *("--epochs", "3", "--finetune_epochs", "2"),
        *("--model_dir", str(places.folder / "structured")),
    ]
    unstructured = [
        *("prune", "unstructured", "--model_path", dense, *shared),
        *("--criterion", "CE", "--penalty_coef", "exact", "--target_connectivity", "0.045"),
        *("--epochs", "3", "--prune_lr", "0.01", "--temp_scheduler", "5 200", "--finetune"),
        *("--epoch_finetune", "3", "--finetune_lr", "0.001", "--finetune_lr_scheduler", "cosine"),
        *("--model_dir", str(places.folder / "unstructured")),
    ]
    typed = [train, ["export", "onnx", dense, "--output", str(places.dense_onnx)]]
    for branch, prune in zip(BRANCHES, (structured, unstructured), strict=True):
        typed += [prune, *_deploy(places, branch)]
    return typed


def _deploy(places: Places, branch: str) -> list[list[str]]:
    """Export, verify and time one compact network."""
    compact = places.compact(branch)
    onnx, event, times = (places.made(branch, name) for name in (ONNX, EVENT, TIMES))
    return [
        ["export", "onnx", str(compact), "--output", str(onnx), "--no-check"],
        ["export", "event", str(compact), "--output", str(event), "--no-check"],
        ["verify", str(compact), str(onnx), "--samples", "100"],
        ["verify", str(compact), str(event), "--samples", "100"],
        [
            *("bench", "sparse", "--model", str(places.dense), "--compact", str(compact)),
            *("--onnx", str(places.dense_onnx), "--onnx_compact", str(onnx)),
            *("--event", str(event), "--input", "mnist5k", "--threads", "1"),
            *("--iterations", "300", "--output", str(times)),
        ],
    ]


@click.command(cls=parsing.SoulCommand, example="demo --dry_run")
@common_options.output_option(
    "Folder for all files; existing ones are replaced.",
    click.Path(path_type=Path, file_okay=False),
    default=Path("demo"),
)
@common_options.threads_option(None, click.IntRange(1, MAX_THREADS), default=2)
@common_options.dry_run_option("Print the commands, run none.")
def demo(output: Path, threads: int, dry_run: bool) -> None:
    """Train a SpikingVGG on 5,000 real digits, prune it by both methods, export, verify, time.

    About 8 minutes on 2 cores. Each step is a command that you could type.
    """
    if not dry_run:
        lazy.load_object("torch:Tensor", "soul-deploy demo")
    places = Places(output)
    if not dry_run:
        files.require_writable(*places.results())
    begun = time.monotonic()
    for arguments in commands(places, threads):
        terminal.show(f"\n$ soul-deploy {terminal.one_line(shlex.join(arguments))}")
        if not dry_run:
            main.root.main(arguments, prog_name="soul-deploy", standalone_mode=False)
    if not dry_run:
        progress.status("demo: the table of all of it")
        terminal.show("\n" + summary(places))
        terminal.show(f"\nThe whole demo took {(time.monotonic() - begun) / 60:.1f} minutes.")


def summary(places: Places) -> str:
    """Before and after in one table, and the paths of all files."""
    timings = {branch: _latencies(places.made(branch, TIMES)) for branch in BRANCHES}
    first = timings[BRANCHES[0]]
    columns = [_column(places.dense, None, first, "dense")]
    for branch in BRANCHES:
        model, event = places.compact(branch), places.made(branch, EVENT)
        columns.append(_column(model, event, timings[branch], "compact"))
    rows = [[label, *(column[label] for column in columns)] for label in columns[0]]
    title = "Before and after (times: one image, one thread, median)"
    table = tables.Table(title, ["what", "dense", *BRANCHES], rows)
    return output.drawn([table, "", "Files:", *(f"  {path}" for path in places.results())])


def _column(
    path: Path, event: Path | None, times: dict[str, float], kind: str
) -> dict[str, object]:
    """What the table says of one network."""
    from soul_deploy.analysis.synops import count_model
    from soul_deploy.data.datasets import load_data
    from soul_deploy.model.file import load
    from soul_deploy.runtime.ops.counters import LayerCounts
    from soul_deploy.runtime.ops.energy import Activity, ops_energy
    from soul_deploy.training.trainer import accuracy

    data = load_data("mnist5k", Path("data"))
    images = data.normalise(data.test.images[:COUNTED_IMAGES])
    model = load(path)
    total = sum(count_model(model, images).values(), LayerCounts())
    energy = ops_energy({"whole": Activity(total)}).picojoules / len(images)
    parameters = [array for name, array in model.state.items() if name.endswith("weight")]
    onnx, runtime = times[f"onnxruntime-{kind}"], times.get("event")
    return {
        "test accuracy": f"{100 * accuracy(model.module(), data, data.test):.1f} %",
        "weights": sum(array.size for array in parameters),
        "nonzero weights": sum(int((array != 0).sum()) for array in parameters),
        "model file, kB": path.stat().st_size // 1000,
        "event file, kB": event.stat().st_size // 1000 if event else "",
        "SynOps per image": round(total.synops / len(images)),
        "first layer's MACs": round(total.macs_effective / len(images)),
        "energy, nJ (4.6 pJ/MAC, 0.9 pJ/SynOp; estimate)": f"{energy / 1e3:,.0f}",
        "PyTorch, ms": f"{times[f'pytorch-{kind}']:.2f}",
        "ONNX Runtime, ms": f"{onnx:.2f}",
        "event runtime, ms": f"{runtime:.2f}" if event and runtime else "",
        "event against ONNX Runtime": f"{onnx / runtime:.1f} ×" if event and runtime else "",
    }


def _latencies(path: Path) -> dict[str, float]:
    """Median latency in ms by engine, from a report of `bench sparse`."""
    report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return {str(entry["engine"]): float(entry["p50_ms"]) for entry in report["entries"]}
