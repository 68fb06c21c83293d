"""`soul-deploy demo`: the commands a user would type, each printed and run, and one table."""

import json
import shlex
import time
from collections.abc import Mapping
from pathlib import Path

import click

from soul_deploy.base import files, lazy, progress, tables, terminal
from soul_deploy.cli import common_options, main, output, parsing
from soul_deploy.runtime.format.validate import MAX_THREADS

COUNTED_IMAGES = 200
STEM = "spikingvgg5_lif_mnist5k_T4_2025"
BRANCHES = ("structured", "unstructured")
ONNX, EVENT, TIMES = "compact.onnx", "compact.event.safetensors", "bench.json"
DENSE_ONNX = "dense.onnx"
REPORT = "report.html"


def demo_files(folder: Path) -> dict[str, Path]:
    """Where the demo's files are, in the order they are made; a method's begin with its name."""
    found = {"dense": folder / f"best_{STEM}.safetensors", DENSE_ONNX: folder / DENSE_ONNX}
    for branch in BRANCHES:
        found[branch] = folder / branch / f"pruned_{STEM}_compact.safetensors"
        found |= {f"{branch}/{name}": folder / branch / name for name in (ONNX, EVENT, TIMES)}
    return found


def commands(folder: Path, threads: int) -> list[list[str]]:
    """What to type, in order."""
    found = {name: str(path) for name, path in demo_files(folder).items()}
    dense = found["dense"]
    shared = [
        *("--dataset_name", "mnist5k", "--batch_size", "64", "--threads", str(threads)),
        *("--log_dir", str(folder / "logs")),
    ]
    train = [
        *("train", "--model", "spikingvgg5", "--hidden", "256", "--epochs", "4", *shared),
        *("--learning_rate", "0.002", "--augment", "shift", "--model_dir", str(folder)),
    ]
    structured = [
        *("prune", "structured", "--mode", "load", "--model_path", dense, *shared),
        *("--learning_rate", "0.002", "--augment", "shift"),
        *("--target_synops", "0.235", "--score", "spike"),
        *("--epochs", "4", "--finetune_epochs", "2"),
        *("--model_dir", str(folder / "structured")),
    ]
    unstructured = [
        *("prune", "unstructured", "--model_path", dense, *shared),
        *("--criterion", "CE", "--penalty_coef", "exact", "--target_synops", "0.047"),
        *("--epochs", "3", "--prune_lr", "0.01", "--temp_scheduler", "5 200", "--finetune"),
        *("--epoch_finetune", "3", "--finetune_lr", "0.001", "--finetune_lr_scheduler", "cosine"),
        *("--model_dir", str(folder / "unstructured")),
    ]
    typed = [train, ["export", "onnx", dense, "--output", found[DENSE_ONNX]]]
    for branch, prune in zip(BRANCHES, (structured, unstructured), strict=True):
        typed += [prune, *_deploy(found, branch)]
    return [*typed, _report(folder, found)]


def _deploy(found: Mapping[str, str], branch: str) -> list[list[str]]:
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
            *("--input", "mnist5k", "--threads", "1", "--iterations", "300", "--output", times),
        ],
    ]


def _report(folder: Path, found: Mapping[str, str]) -> list[str]:
    """All of it on one page."""
    networks = [f"{name}={found[name]}" for name in ("dense", *BRANCHES)]
    made = [found[f"{branch}/{name}"] for branch in BRANCHES for name in (ONNX, EVENT, TIMES)]
    logs = [f"{kind}_{STEM}.jsonl" for kind in ("train", "prune", "unstructured")]
    files = [*networks, found[DENSE_ONNX], *made, *(str(folder / "logs" / log) for log in logs)]
    title = "A SpikingVGG on 5,000 digits"
    return ["report", *files, "--input", "data", "--title", title, "-o", str(folder / REPORT)]


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

    About 12 minutes on 2 cores. Each step is a command that you could type.
    """
    if not dry_run:
        lazy.load_object("torch:Tensor", "soul-deploy demo")
        lazy.load_object("soul_deploy.reporting.report:require_libraries", "soul-deploy demo")()
        files.require_writable(*demo_files(output).values(), output / REPORT)
    begun = time.monotonic()
    for arguments in commands(output, threads):
        terminal.show(f"\n$ soul-deploy {terminal.one_line(shlex.join(arguments))}")
        if not dry_run:
            main.root.main(arguments, prog_name="soul-deploy", standalone_mode=False)
    if not dry_run:
        progress.status("demo: the table of all of it")
        terminal.show("\n" + summary(demo_files(output)))
        terminal.show(f"\nThe whole demo took {(time.monotonic() - begun) / 60:.1f} minutes.")
        terminal.show(f"Everything on one page, for a browser: {output / REPORT}")


def summary(found: Mapping[str, Path]) -> str:
    """Before and after in one table, and the paths of all files."""
    columns: list[dict[str, object]] = []
    for branch in BRANCHES:
        report = json.loads(found[f"{branch}/{TIMES}"].read_text(encoding="utf-8"))
        times = {str(entry["engine"]): float(entry["p50_ms"]) for entry in report["entries"]}
        if not columns:
            columns.append(_column(found["dense"], None, times, "dense"))
        columns.append(_column(found[branch], found[f"{branch}/{EVENT}"], times, "compact"))
    rows = [[label, *(column[label] for column in columns)] for label in columns[0]]
    title = "Before and after (times: one image, one thread, median)"
    table = tables.Table(title, ["what", "dense", *BRANCHES], rows)
    return output.drawn([table, "", "Files:", *(f"  {path}" for path in found.values())])


def _column(
    path: Path, event: Path | None, times: dict[str, float], kind: str
) -> dict[str, object]:
    """What the table says of one network; times: median latency in ms by engine."""
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
