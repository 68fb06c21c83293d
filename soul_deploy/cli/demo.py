"""`soul-deploy demo`: the commands a user would type, each printed and run, and one table."""

import json
import shlex
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from soul_deploy.base import files, lazy, progress, tables, terminal
from soul_deploy.cli import common_options, main, output, parsing
from soul_deploy.runtime.format.validate import MAX_THREADS

if TYPE_CHECKING:
    from soul_deploy.data.datasets import Data

COUNTED_IMAGES = 200
BRANCHES = ("structured", "unstructured")
ONNX, EVENT, TIMES = "compact.onnx", "compact.event.safetensors", "bench.json"
DENSE_ONNX = "dense.onnx"
REPORT = "report.html"
RECORDING, RECORDED = "digit.events", "4"
"""A camera's events of the first test digit, and what it shows."""


@dataclass(frozen=True)
class Demo:
    """What is trained on what, and how far each method prunes it; the words are options.

    stem: how files of the network are called; title: of the page at the end. window: of time, by
    which a recording is shown to the network at last, if there is one
    """

    title: str
    stem: str
    data: str
    batch: str
    train: tuple[str, ...]
    structured: tuple[str, ...]
    unstructured: tuple[str, ...]
    window: str | None = None


SEARCH = (
    *("--criterion", "CE", "--penalty_coef", "exact", "--epochs", "3", "--prune_lr", "0.01"),
    *("--temp_scheduler", "5 200", "--finetune", "--epoch_finetune", "3"),
    *("--finetune_lr", "0.001", "--finetune_lr_scheduler", "cosine"),
)
MOVED = ("--learning_rate", "0.002", "--augment", "shift")
CHANNELS = (*("--score", "spike", "--epochs", "4", "--finetune_epochs", "2"), *MOVED)
DIGITS = Demo(
    title="A SpikingVGG on 5,000 digits",
    stem="spikingvgg5_lif_mnist5k_T4_2025",
    data="mnist5k",
    batch="64",
    train=("--model", "spikingvgg5", "--hidden", "256", "--epochs", "4", *MOVED),
    structured=("--target_synops", "0.235", *CHANNELS),
    unstructured=("--target_synops", "0.047", *SEARCH),
)
EVENTS = Demo(
    title="A LeNet on events of 5,000 digits",
    stem="lenet_lif_events5k_T4_2025",
    data="events5k",
    batch="32",
    train=("--model", "lenet", "--epochs", "6", *MOVED),
    structured=("--target_synops", "0.3", *CHANNELS),
    unstructured=("--target_synops", "0.2", *SEARCH),
    window="75ms",  # a quarter of the camera's movements: T = 4
)


def demo_files(folder: Path, shown: Demo = DIGITS) -> dict[str, Path]:
    """Where the demo's files are, in the order they are made; a method's begin with its name."""
    stem = shown.stem
    found = {"dense": folder / f"best_{stem}.safetensors", DENSE_ONNX: folder / DENSE_ONNX}
    for branch in BRANCHES:
        found[branch] = folder / branch / f"pruned_{stem}_compact.safetensors"
        found |= {f"{branch}/{name}": folder / branch / name for name in (ONNX, EVENT, TIMES)}
    return found


def commands(folder: Path, threads: int, shown: Demo = DIGITS) -> list[list[str]]:
    """What to type, in order."""
    found = {name: str(path) for name, path in demo_files(folder, shown).items()}
    dense = found["dense"]
    shared = [
        *("--dataset_name", shown.data, "--batch_size", shown.batch, "--threads", str(threads)),
        *("--log_dir", str(folder / "logs")),
    ]
    start = ["--model_path", dense, *shared]
    prunings = (
        ["prune", "structured", "--mode", "load", *start, *shown.structured],
        ["prune", "unstructured", *start, *shown.unstructured],
    )
    typed = [["train", *shown.train, *shared, "--model_dir", str(folder)]]
    typed += [["export", "onnx", dense, "--output", found[DENSE_ONNX]]]
    for branch, prune in zip(BRANCHES, prunings, strict=True):
        typed += [[*prune, "--model_dir", str(folder / branch)], *_deploy(found, branch, shown)]
    if shown.window:
        network, recording = found[f"unstructured/{EVENT}"], str(folder / RECORDING)
        typed += [["run", network, recording, "--window", shown.window, "--label", RECORDED]]
    return [*typed, _report(folder, found, shown)]


def _deploy(found: Mapping[str, str], branch: str, shown: Demo) -> list[list[str]]:
    """Export, verify and time one compact network."""
    compact = found[branch]
    onnx, event, times = (found[f"{branch}/{name}"] for name in (ONNX, EVENT, TIMES))
    return [
        ["export", "onnx", compact, "--output", onnx, "--no-check"],
        ["export", "event", compact, "--output", event, "--no-check"],
        ["verify", compact, onnx, "--samples", "100"],
        ["verify", compact, event, "--samples", "100"],
        [
            *("bench", "sparse", "--model", found["dense"], "--compact", compact),
            *("--onnx", found[DENSE_ONNX], "--onnx_compact", onnx, "--event", event),
            *("--input", shown.data, "--threads", "1", "--iterations", "300", "--output", times),
        ],
    ]


def _report(folder: Path, found: Mapping[str, str], shown: Demo) -> list[str]:
    """All of it on one page."""
    networks = [f"{name}={found[name]}" for name in ("dense", *BRANCHES)]
    made = [found[f"{branch}/{name}"] for branch in BRANCHES for name in (ONNX, EVENT, TIMES)]
    logs = [f"{kind}_{shown.stem}.jsonl" for kind in ("train", "prune", "unstructured")]
    files = [*networks, found[DENSE_ONNX], *made, *(str(folder / "logs" / log) for log in logs)]
    return ["report", *files, "--input", "data", "--title", shown.title, "-o", str(folder / REPORT)]


@click.command(cls=parsing.SoulCommand, example="demo --dry_run")
@common_options.output_option(
    "Folder for all files; existing ones are replaced.",
    click.Path(path_type=Path, file_okay=False),
    default=Path("demo"),
)
@common_options.threads_option(None, click.IntRange(1, MAX_THREADS), default=2)
@common_options.option(
    "--events",
    is_flag=True,
    help="Events of a camera before which the digits move, instead of images.",
    heading="Data",
)
@common_options.dry_run_option("Print the commands, run none.")
def demo(output: Path, threads: int, events: bool, dry_run: bool) -> None:
    """Train a SpikingVGG on 5,000 real digits, prune it by both methods, export, verify, time.

    About 12 minutes on 2 cores. Each step is a command that you could type. On events of a
    camera it is a LeNet (docs/event-cameras.md).
    """
    shown = EVENTS if events else DIGITS
    if not dry_run:
        lazy.load_object("torch:Tensor", "soul-deploy demo")
        lazy.load_object("soul_deploy.reporting.report:require_libraries", "soul-deploy demo")()
        others = [output / REPORT, *([output / RECORDING] if shown.window else [])]
        files.require_writable(*demo_files(output, shown).values(), *others)
        if shown.window:
            _record(output / RECORDING)
    begun = time.monotonic()
    for arguments in commands(output, threads, shown):
        terminal.show(f"\n$ soul-deploy {terminal.one_line(shlex.join(arguments))}")
        if not dry_run:
            main.root.main(arguments, prog_name="soul-deploy", standalone_mode=False)
    if not dry_run:
        progress.status("demo: the table of all of it")
        terminal.show("\n" + summary(demo_files(output, shown), shown.data))
        terminal.show(f"\nThe whole demo took {(time.monotonic() - begun) / 60:.1f} minutes.")
        terminal.show(f"Everything on one page, for a browser: {output / REPORT}")


def _record(path: Path) -> None:
    """Write the first test digit of mnist5k as a camera sees it, 16 bytes an event."""
    from soul_deploy.data import saccade
    from soul_deploy.data.datasets import load_data
    from soul_deploy.runtime.io.recordings import write_records

    digit = load_data("mnist5k", Path("data")).test.images[:1, 0]
    (recording,) = saccade.recordings(digit.numpy())
    written = write_records(recording.events)
    files.write_atomically(path, lambda temporary: temporary.write_bytes(written))


def summary(found: Mapping[str, Path], name: str = DIGITS.data) -> str:
    """Before and after in one table, and the paths of all files; name: of the data set."""
    from soul_deploy.data.datasets import load_data_of
    from soul_deploy.model.file import load

    columns: list[dict[str, object]] = []
    data = load_data_of(load(found["dense"]), name, Path("data"))
    for branch in BRANCHES:
        report = json.loads(found[f"{branch}/{TIMES}"].read_text(encoding="utf-8"))
        times = {str(entry["engine"]): float(entry["p50_ms"]) for entry in report["entries"]}
        if not columns:
            columns.append(_column(data, found["dense"], None, times, "dense"))
        event = found[f"{branch}/{EVENT}"]
        columns.append(_column(data, found[branch], event, times, "compact"))
    rows = [[label, *(column[label] for column in columns)] for label in columns[0]]
    title = "Before and after (times: one image, one thread, median)"
    table = tables.Table(title, ["what", "dense", *BRANCHES], rows)
    return output.drawn([table, "", "Files:", *(f"  {path}" for path in found.values())])


def _column(
    data: "Data", path: Path, event: Path | None, times: dict[str, float], kind: str
) -> dict[str, object]:
    """What the table says of one network; times: median latency in ms by engine."""
    from soul_deploy.analysis.synops import count_model
    from soul_deploy.model.file import load
    from soul_deploy.runtime.ops.counters import LayerCounts
    from soul_deploy.runtime.ops.energy import Activity, ops_energy
    from soul_deploy.training.trainer import accuracy

    images = data.normalise(data.test.images[:COUNTED_IMAGES])
    model = load(path)
    total = sum(count_model(model, images).values(), LayerCounts())
    energy = ops_energy({"whole": Activity(total)}).picojoules / COUNTED_IMAGES
    parameters = [array for name, array in model.state.items() if name.endswith("weight")]
    onnx, runtime = times[f"onnxruntime-{kind}"], times.get("event")
    return {
        "test accuracy": f"{100 * accuracy(model.module(), data, data.test):.1f} %",
        "weights": sum(array.size for array in parameters),
        "nonzero weights": sum(int((array != 0).sum()) for array in parameters),
        "model file, kB": path.stat().st_size // 1000,
        "event file, kB": event.stat().st_size // 1000 if event else "",
        "SynOps per image": round(total.synops / COUNTED_IMAGES),
        "first layer's MACs": round(total.macs_effective / COUNTED_IMAGES),
        "energy, nJ (4.6 pJ/MAC, 0.9 pJ/SynOp; estimate)": f"{energy / 1e3:,.0f}",
        "PyTorch, ms": f"{times[f'pytorch-{kind}']:.2f}",
        "ONNX Runtime, ms": f"{onnx:.2f}",
        "event runtime, ms": f"{runtime:.2f}" if event and runtime else "",
        "event against ONNX Runtime": f"{onnx / runtime:.1f} ×" if event and runtime else "",
    }
