"""The networks of a report: model files, and what else was given that is about the same network.

An export belongs to the model file whose digest it holds, a count to that of its digest, what a
command wrote to the file of that name and size.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import TypeVar

from soul_deploy.base import brief
from soul_deploy.model.model import Model
from soul_deploy.reporting import documents as kinds
from soul_deploy.reporting.files import Contents, Export, ModelFile

ENGINES = {"pytorch": "PyTorch", "onnxruntime": "ONNX Runtime", "event": "event runtime"}
D = TypeVar("D")


@brief
@dataclass(frozen=True, kw_only=True)
class Network:
    """One row of the comparison.

    accuracy: 0 to 1, `accuracy_of` says of what. times: engine -> median ms of one batch of the
    smallest size on the fewest threads. profile: µs by population.
    """

    label: str
    stage: str
    path: str
    size: int | None
    sha256: str
    model: Model | None = None
    accuracy: float | None = None
    accuracy_of: str = ""
    counted: kinds.Counted | None = None
    times: Mapping[str, float]
    profile: Mapping[str, float]
    exports: tuple[Export, ...] = ()
    verdicts: tuple[str, ...] = ()

    @property
    def weights(self) -> tuple[int, int] | None:
        """(nonzero, all) weights of layers, by the model file or else by the count."""
        if self.model is not None:
            held = [a for name, a in self.model.state.items() if name.endswith("weight")]
            arrays = [array for array in held if array.ndim > 1]
            return sum(int((a != 0).sum()) for a in arrays), sum(a.size for a in arrays)
        if self.counted is not None:
            return self.counted.weights_kept, self.counted.weights
        return None

    @property
    def fastest(self) -> float | None:
        return min(self.times.values(), default=None)


def networks_of(found: Contents) -> tuple[Network, ...]:
    """One for each model file, then one for each count of a file that was not given."""
    counts = _of(found.documents, kinds.Counted)
    known = {file.sha256 for file in found.models}
    made = [_of_file(file, found, counts) for file in found.models]
    made += [_of_count(item) for item in counts if item.sha256 not in known]
    return tuple(_labelled(made))


def _of(found: Iterable[object], kind: type[D]) -> list[D]:
    return [item for item in found if isinstance(item, kind)]


def _of_file(file: ModelFile, found: Contents, counts: Sequence[kinds.Counted]) -> Network:
    counted = next((item for item in counts if item.sha256 == file.sha256), None)
    exports = tuple(export for export in found.exports if export.source_sha256 == file.sha256)
    accuracy, told = _accuracy(file, found, counted)
    timed, profile = _times(file, exports, found)
    verdicts = verifications(exports, found)
    return Network(
        label=file.label,
        stage="int8" if file.model.graph.integers else file.model.info.stage,
        path=str(file.path),
        size=file.size,
        sha256=file.sha256,
        model=file.model,
        accuracy=accuracy,
        accuracy_of=told,
        counted=counted,
        times=timed,
        profile=profile,
        exports=exports,
        verdicts=tuple(f"{v.kind} {v.verdict}" for v in verdicts),
    )


def verifications(exports: Sequence[Export], found: Contents) -> list[kinds.Verified]:
    """Those of one of `exports`: at the path that they name, else the only file so called."""
    mine: list[kinds.Verified] = []
    for item in _of(found.documents, kinds.Verified):
        there = [export for export in found.exports if str(export.path) == item.artifact]
        name = PurePath(item.artifact).name
        meant = there or [export for export in found.exports if export.path.name == name]
        if len(meant) == 1 and meant[0] in exports:
            mine.append(item)
    return mine


def _of_count(item: kinds.Counted) -> Network:
    return Network(
        label="",
        stage="",
        path=item.path,
        size=None,
        sha256=item.sha256,
        accuracy=item.accuracy,
        accuracy_of=_counted_on(item),
        counted=item,
        times={},
        profile={},
    )


def _counted_on(item: kinds.Counted) -> str:
    return f"{item.samples} images, {item.data}" if item.data else f"{item.samples} images"


def _accuracy(
    file: ModelFile, found: Contents, counted: kinds.Counted | None
) -> tuple[float | None, str]:
    """What the file says of its test; else what quantize or a count found."""
    held = file.model.info.provenance.get("accuracy")
    told = held if isinstance(held, dict) else {}
    for kind in ("test", "compact", "masked"):
        value = told.get(kind)
        if isinstance(value, int | float) and math.isfinite(value):
            return float(value), "test images"
    for item in _of(found.documents, kinds.Quantized):
        if is_file(item.written, file) and item.accuracies[1] is not None:
            return item.accuracies[1], f"{item.samples} validation images"
    if counted is not None and counted.accuracy is not None:
        return counted.accuracy, _counted_on(counted)
    return None, ""


def is_file(written: kinds.Written, file: ModelFile) -> bool:
    """Whether a command that wrote a file of this name and size wrote this one."""
    return PurePath(written.path).name == file.path.name and written.size == file.size


def _times(
    file: ModelFile, exports: Sequence[Export], found: Contents
) -> tuple[dict[str, float], Mapping[str, float]]:
    """Of the benches that timed it, the first that has an engine counts."""
    places = {(file.path.name, file.size)} | {(e.path.name, e.size) for e in exports}
    times: dict[str, float] = {}
    profile: Mapping[str, float] = {}
    for bench in _of(found.documents, kinds.Benched):
        mine = [
            timing
            for timing in bench.timings
            if timing.source_sha256 == file.sha256 or (timing.file, timing.size) in places
        ]
        for timing in sorted(mine, key=lambda item: (item.threads, item.batch)):
            times.setdefault(engine_name(timing.engine), timing.p50)
        if any(timing.engine == "event" for timing in mine):
            profile = profile or bench.profile
    return times, profile


def engine_name(engine: str) -> str:
    """`onnxruntime-compact` as people call it."""
    return ENGINES.get(engine.partition("-")[0], engine)


def _labelled(networks: Sequence[Network]) -> list[Network]:
    """Each with a name of its own: as given, by its command and stage, or by its path."""
    labels = [network.label or _usual(network) for network in networks]
    double = {label for label in labels if labels.count(label) > 1}
    named: list[Network] = []
    for network, label in zip(networks, labels, strict=True):
        taken = {other.label for other in named}
        unique = f"{label} ({_short(network.path)})" if label in double else label
        number = 2
        while unique in taken:
            unique, number = f"{label} {number}", number + 1
        named.append(replace(network, label=unique))
    return named


def _usual(network: Network) -> str:
    if network.model is None:
        return Path(network.path).name
    command = str(network.model.info.provenance.get("command") or "")
    pruned = command.removeprefix("prune ") if command.startswith("prune ") else ""
    words = [pruned, network.stage] if pruned else [network.stage]
    return " ".join(words)


def _short(path: str) -> str:
    parts = PurePath(path).parts
    return str(PurePath(*parts[-2:]))
