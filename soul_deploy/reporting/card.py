"""A Hugging Face model card (README.md) of a model file: what it is, its numbers, how to run it.

The YAML block is what https://huggingface.co/docs/hub/model-cards describes. Values of the file are
YAML's own texts there, and Markdown without markup below.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path, PurePath
from shlex import quote
from typing import Any

from soul_deploy.base import brief, errors, files, yaml_text
from soul_deploy.model.model import Model
from soul_deploy.reporting import documents as kinds
from soul_deploy.reporting.files import Contents, Export, ModelFile, read_all
from soul_deploy.reporting.markdown import escaped
from soul_deploy.reporting.networks import Network, networks_of, verifications

TAGS = ("snn", "spiking-neural-network", "neuromorphic", "soul-deploy")
_UNSAFE = re.compile(r"[\x00-\x1f\x7f`]")
LICENCE = re.compile(r"[a-z0-9][a-z0-9.+-]{0,63}")
HUB = {"mnist": "ylecun/mnist", "mnist5k": "ylecun/mnist", "cifar10": "uoft-cs/cifar10",
       "cifar100": "uoft-cs/cifar100", "fashionmnist": "zalando-datasets/fashion_mnist",
       "svhn": "ufldl-stanford/svhn"}  # fmt: skip
"""Our data sets' names on the Hub."""


@brief
@dataclass(frozen=True, kw_only=True)
class Card:
    """What a card says. licence: as the Hub spells it ("apache-2.0"), None: not said."""

    file: ModelFile
    network: Network
    exports: tuple[Export, ...]
    verified: tuple[kinds.Verified, ...]
    licence: str | None = None

    @property
    def model(self) -> Model:
        return self.file.model

    @property
    def name(self) -> str:
        made = self.model.info.provenance
        parts = [made.get("model"), made.get("data"), self.network.stage]
        return "-".join(str(part) for part in parts if isinstance(part, str) and part)

    def metadata(self) -> dict[str, Any]:
        """The YAML block as data."""
        found: dict[str, Any] = {}
        if self.licence is not None:
            found["license"] = self.licence
        if self.model.info.input_kind == "images":
            found["pipeline_tag"] = "image-classification"
        found["tags"] = [*TAGS, *self._more_tags()]
        data = self.model.info.provenance.get("data")
        if isinstance(data, str) and data in HUB:
            found["datasets"] = [HUB[data]]
        if self.network.accuracy is not None:
            found["metrics"] = ["accuracy"]
        found["model-index"] = [{"name": self.name, "results": self._results()}]
        return found if self._results() else {k: v for k, v in found.items() if k != "model-index"}

    def _more_tags(self) -> Iterator[str]:
        weights = self.network.weights
        pruned = self.network.stage in ("masked", "compact")
        if pruned or (weights is not None and weights[0] < weights[1]):
            yield "sparse"
        if self.network.stage == "int8":
            yield "int8"
        yield from sorted({export.kind for export in self.exports if export.kind != "event"})

    def _results(self) -> list[dict[str, Any]]:
        """Accuracy, and SynOps per sample if they were counted."""
        data = str(self.model.info.provenance.get("data") or "unknown")
        metrics: list[dict[str, Any]] = []
        if self.network.accuracy is not None:
            told = f"accuracy, {self.network.accuracy_of}"
            metrics.append({"type": "accuracy", "value": self.network.accuracy, "name": told})
        if self.network.counted is not None:
            count = round(self.network.counted.synops)
            metrics.append({"type": "synops", "value": count, "name": "SynOps per sample"})
        if not metrics:
            return []
        task = {"type": "image-classification"}
        return [{"task": task, "dataset": {"name": data, "type": data}, "metrics": metrics}]

    def text(self) -> str:
        """The README.md. Of file names, bytes that are no UTF-8 are escaped."""
        block = "\n".join(yaml_text.lines(self.metadata()))
        text = f"---\n{block}\n---\n\n" + "\n\n".join(self._sections()) + "\n"
        return text.encode("utf-8", "backslashreplace").decode("utf-8")

    def _sections(self) -> Iterator[str]:
        yield f"# {escaped(self.name)}"
        yield (
            "A spiking neural network, written by soul-deploy "
            f"{escaped(version('soul-deploy'))}. Weights and graph are in one safetensors file, "
            "whose header describes them; nothing in it is executed."
        )
        rows = "\n".join(f"| {name} | {escaped(value)} |" for name, value in self._facts())
        yield f"| | |\n| --- | --- |\n{rows}"
        yield "## How to run"
        yield from self._running()
        yield "## What was verified"
        yield self._verification()

    def _facts(self) -> Iterator[tuple[str, object]]:
        graph, info = self.model.graph, self.model.info
        made: Mapping[str, Any] = info.provenance
        for label, key in (("network", "model"), ("data", "data"), ("made by", "command")):
            if isinstance(made.get(key), str):
                yield label, made[key]
        yield "input", f"{info.input_kind}, {'×'.join(map(str, graph.input.shape))}"
        if info.normalization is not None:
            yield "normalisation", f"mean {info.normalization.mean}, std {info.normalization.std}"
        yield "time steps", graph.time_steps
        yield "neurons", ", ".join(sorted({node.neuron.family for node in graph.populations}))
        if info.classes:
            yield "classes", ", ".join(info.classes)
        network = self.network
        if network.accuracy is not None:
            yield "accuracy", f"{network.accuracy:.2%}, {network.accuracy_of}"
        if network.weights is not None:
            kept, weights = network.weights
            yield "weights", f"{weights:,}, of which {kept:,} are not 0"
        if network.counted is not None:
            yield "SynOps per sample", f"{network.counted.synops:,.0f}"
        for engine, ms in network.times.items():
            yield f"{engine}, ms", f"{ms:.3g}"
        yield "file", f"{self.file.path.name}, {self.file.size:,} bytes, sha256 {self.file.sha256}"

    def _running(self) -> Iterator[str]:
        name = _quoted(self.file.path.name)
        event = next((e.path.name for e in self.exports if e.kind == "event"), None)
        if event is None:
            yield "The runtime needs numpy and numba, not PyTorch; it takes an event network:"
            event = f"{self.file.path.stem}.event.safetensors"
            yield f"```\nsoul-deploy export event {name} -o {_quoted(event)}\n```"
        else:
            yield "The runtime needs numpy and numba, not PyTorch:"
        yield f"```\nsoul-deploy run {_quoted(event)} image.png\n```"
        lines = (
            "from soul_deploy import load_network\n",
            f"network = load_network({_UNSAFE.sub('?', event)!r})",
            "scores = network.run(pixels)  # uint8 (B, C, H, W)",
        )
        yield "\n".join(("```python", *lines, "```"))

    def _verification(self) -> str:
        if not self.verified:
            return (
                "Nothing was given here. `soul-deploy verify MODEL EXPORT` compares an export with "
                "this file, spike by spike."
            )
        lines = []
        for report in self.verified:
            checks = "; ".join(f"{name}: {told}" for name, told in report.checks.items())
            name = PurePath(report.artifact).name
            told = f"{name} on {report.images}: {report.verdict}. {checks}"
            lines.append(f"- {escaped(told)}")
        return "\n".join(lines)

    def save(self, path: Path | str) -> None:
        """Write it atomically."""
        files.write_text(Path(path), self.text())


def _quoted(name: str) -> str:
    """A file's name in a block of code: as a shell takes it, in one line, without a fence."""
    return quote(_UNSAFE.sub("?", name))


def card(given: list[str], licence: str | None = None) -> Card:
    """The card of the first model file among `given`; the others are exports of it and results.

    Raises UsageError without a model file or for a licence that is no name of the Hub, and what
    reading the files raises.
    """
    if licence is not None and not LICENCE.fullmatch(licence):
        raise errors.UsageError(
            f"licence {licence!r} is no name as the Hub spells them, such as apache-2.0 or mit"
        )
    found = read_all(given)
    return _card(found, licence)


def _card(found: Contents, licence: str | None) -> Card:
    if len(found.models) != 1:
        raise errors.UsageError(
            f"{len(found.models)} model files given; a card is of one, its exports and results"
        )
    (file,), network = found.models, networks_of(found)[0]
    return Card(
        file=file,
        network=network,
        exports=network.exports,
        verified=tuple(verifications(network.exports, found)),
        licence=licence,
    )
