"""Measures the rows of one tool, in an environment in which that tool is installed.

    python tests/networks/measure.py TOOL RESULT.json

Each cell is what happened here and now; nothing is taken from an earlier run.
"""

import json
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import nir_files
import numpy as np
import torch
from row import Own, Row
from torch import Tensor

import soul_deploy
from soul_deploy import FinetuneConfig, PruneSchedule, ScaConfig, SearchConfig, TrainConfig
from soul_deploy.base.errors import SoulDeployError
from soul_deploy.equivalence.engines import Comparer, ExecutionRun, LayerRun
from soul_deploy.equivalence.reference import ReferenceModel, sent_of
from soul_deploy.model.model import Model
from soul_deploy.nn.graph_module import Signal
from soul_deploy.prune.result import PruneResult

TOOLS: Mapping[str, tuple[str, str]] = {
    "spikingjelly_2": ("spikingjelly", "SpikingJelly"),
    "spikingjelly_0": ("spikingjelly", "SpikingJelly"),
    "clock_driven": ("spikingjelly", "SpikingJelly"),
    "snntorch": ("snntorch", "snnTorch"),
    "norse": ("norse", "norse"),
    "sinabs": ("sinabs", "sinabs"),
    "rockpool": ("rockpool", "rockpool"),
    "nir_paper": ("", "Files of the NIR paper"),
    "soul": ("", "Soul"),
}
"""By the name of a definition file, `of_<name>.py`: the package, and how people call the tool."""
COLUMNS = ("traced", "spikes", "pruned", "onnx", "event", "nir")
SCORES = 1e-4  # of the largest score: sums of other orders
TRAINING = TrainConfig(epochs=1, batch_size=8, learning_rate=1e-3)
SCA = ScaConfig(PruneSchedule(ratio=0.3, epochs=2, finetune_epochs=1))
SEARCH = SearchConfig(
    penalty_lmbda=1e-9,
    mask_init_factor=(0, 0, 0.05, 0.05),
    temp_scheduler=(5, 100),
    prune_lr=0.02,
    finetune=FinetuneConfig(epochs=1, learning_rate=1e-3),
)


class RowError(Exception):
    """What is measured is no measurement: a population that does not fire, a wrong spike."""


@dataclass
class Measured:
    """cells: by column. refusals: by column, the whole message. names: of modules, populations."""

    network: str
    neuron: str
    way: str
    cells: dict[str, str] = field(default_factory=dict)
    refusals: dict[str, str] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)
    seconds: float = 0.0


@dataclass(frozen=True)
class Recorded:
    """The tool's own run as an execution: what it sent and its scores, of all samples at once."""

    model: Model
    own: Own

    def run(self, images: Tensor) -> ExecutionRun:
        sent = {n: sent_of(self.model.graph, n, values) for n, values in self.own.sent.items()}
        return ExecutionRun(sent, self.own.scores)

    def run_layer(self, layer: str, values: Mapping[str, Signal]) -> LayerRun:
        raise NotImplementedError("a tool's network is run as a whole")


def measured(row: Row) -> Measured:
    """All cells of a row. What refuses is a cell; whatever else is raised is raised."""
    torch.manual_seed(0)
    np.random.seed(0)
    started = time.perf_counter()
    made, found = row.make(), Measured(row.network, row.neuron, row.way)
    found.names = list(made.names)
    own = None if made.own is None else made.own()
    if own is not None:
        require_firing(own)
    model = tried(found, "traced", made.taken)
    if isinstance(model, Model):
        if own is None:
            raise RowError("it was taken, and there is nothing to compare it with")
        found.names += [node.name for node in model.graph.nodes]
        found.cells["traced"] = row.way
        found.cells["spikes"] = _spikes(row, model, own, made.x)
        with TemporaryDirectory() as folder:
            _rest(found, model, made.x, Path(folder))
    found.names = sorted({name for name in found.names if name})
    found.seconds = round(time.perf_counter() - started, 1)
    return found


def _spikes(row: Row, model: Model, own: Own, x: Tensor) -> str:
    if not row.differs:
        return compared(model, own, x)
    try:
        equal = compared(model, own, x)
    except RowError:
        return f"no: {row.differs}"
    raise RowError(f"spikes are equal ({equal}), though {row.differs}")


def _rest(found: Measured, model: Model, x: Tensor, folder: Path) -> None:
    for column, work in (
        ("pruned", lambda: pruned(found, model, x, folder)),
        ("onnx", lambda: verified(model, x, folder / "net.onnx")),
        ("event", lambda: verified(model, x, folder / "net.event.safetensors")),
        ("nir", lambda: verified(model, x, folder / "net.nir")),
    ):
        cell = tried(found, column, work)
        if cell is not None:
            found.cells[column] = str(cell)


def tried(found: Measured, column: str, work: Callable[[], Any]) -> Any:
    """What `work` gives; None, and the message kept, where it refuses."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return work()
    except SoulDeployError as error:
        found.refusals[column] = str(error)
        found.cells[column] = "refused"
        return None


def require_firing(own: Own) -> None:
    """Raise RowError unless each population sends something, and not always the same."""
    for name, values in own.sent.items():
        seen = np.unique(values.numpy())
        if len(seen) < 2:
            raise RowError(f"{name} sends {seen.tolist()} alone: it tests nothing")


def compared(model: Model, own: Own, x: Tensor) -> str:
    """yes: every population's numbers are equal to the bit. n explained: by verify's rule."""
    names, told = [node.name for node in model.graph.populations], list(own.sent)
    if model.graph.readout.neuron is not None:  # its neurons' spikes are nobody's
        told = told[: len(names)]
    if sorted(names) != sorted(told):
        raise RowError(f"populations {names}, of the tool {list(own.sent)}")
    reference = ReferenceModel(model)
    values, scores = reference.record(x)
    wrong = 0
    for name in names:
        mine, theirs = values[name].tensor, own.sent[name]
        if mine.shape != theirs.shape:
            raise RowError(f"{name}: {tuple(mine.shape)}, of the tool {tuple(theirs.shape)}")
        wrong += int((mine != theirs).sum())
    largest = max(1.0, float(own.scores.abs().max()))
    far = float((scores - own.scores).abs().max()) / largest
    if not wrong:
        if far > SCORES:
            raise RowError(f"spikes are equal, scores differ by {far:.3g}")
        return "yes"
    check = Comparer(reference).end_to_end(Recorded(model, own), x, batch=1 << 20)
    if check.unexplained:
        first = next(str(flip) for layer in check.layers for flip in layer.flips)
        raise RowError(f"{check.unexplained} of {check.flipped} differences unexplained: {first}")
    return f"{check.flipped} explained"


def verified(model: Model, x: Tensor, path: Path, *, allow_silent: bool = False) -> str:
    """Exported, and verified on the row's input."""
    sequence = x.dim() > len(model.graph.input.shape) + 1
    if path.suffix == ".onnx":
        mode: Any = "sequence" if sequence else "static"
        soul_deploy.export_onnx(model, path, input_mode=mode)
    elif path.suffix == ".nir":
        soul_deploy.export_nir(model, path)
    else:
        soul_deploy.export_event(model, path)
    report = soul_deploy.verify(model, path, x, allow_silent=allow_silent)
    if not report.passed:
        raise RowError(report.text())
    flipped = report.end_to_end.flipped if report.end_to_end is not None else 0
    return f"{flipped} explained" if flipped else "yes"


def pruned(found: Measured, model: Model, x: Tensor, folder: Path) -> str:
    """A short pass by each method; what is left runs, as compact network and as event network.

    Names the method that took the network, where the other refused it.
    """
    sequence = x.dim() > len(model.graph.input.shape) + 1
    images = (x.flatten(0, 1) if sequence else x).numpy()
    images = np.concatenate([images] * max(1, -(-16 // len(images))))[:32]
    labels = np.arange(len(images)) % model.graph.readout.classes

    def one(method: str) -> str:
        prune, config = METHODS[method]
        result: PruneResult = prune(model, (images, labels), config, TRAINING, device="cpu")
        assert result.compact is not None
        verified(result.compact, x, folder / "compact.event.safetensors", allow_silent=True)
        return method

    done = [method for method in METHODS if tried(found, "pruned", partial(one, method))]
    return "yes" if len(done) == len(METHODS) else " and ".join(done) or "refused"


METHODS: Mapping[str, tuple[Callable[..., PruneResult], Any]] = {
    "structured": (soul_deploy.prune_structured, SCA),
    "unstructured": (soul_deploy.prune_unstructured, SEARCH),
}


def rows_of(tool: str) -> Sequence[Row]:
    found: Sequence[Row] = import_module(f"of_{tool}").rows()
    return found


def title_of(tool: str) -> str:
    package, name = TOOLS[tool]
    if tool in ("norse", "sinabs", "rockpool"):  # installed where the files were made
        return f"{name} {nir_files.version_of(tool)}"
    return f"{name} {version(package)}" if package else name


def main(tool: str, path: Path, only: str = "") -> int:
    """Measure, print a line a row, write the results; 1 if a row is no measurement."""
    torch.set_num_threads(1)
    results, wrong = [], 0
    for row in rows_of(tool):
        if only not in f"{row.network}, {row.neuron}":
            continue
        try:
            found = measured(row)
        except Exception as error:
            wrong += 1
            print(f"FAILED {row.network}, {row.neuron}: {type(error).__name__}: {error}")
            if not isinstance(error, RowError):
                traceback.print_exc()
            continue
        results.append(asdict(found))
        cells = " ".join(f"{name}={found.cells.get(name, '-')}" for name in COLUMNS)
        print(f"{row.network}, {row.neuron} ({found.seconds} s): {cells}", flush=True)
        for column, text in found.refusals.items():
            print(f"    {column}: {text}")
    written = {"tool": title_of(tool), "rows": results}
    path.write_text(json.dumps(written, indent=1) + "\n")
    print(f"{len(results)} rows, {wrong} failed")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:]))
