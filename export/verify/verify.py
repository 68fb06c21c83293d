"""Proof that an exported file is the network it came from: three gates.

1. Static: every stored structure equals what the graph says, exactly. An event network lacks the
   neurons that no output depends on; that the model without them gives the same scores to the bit
   is checked here too, and it is what the event network is compared with.
2. Layer by layer, each fed with the golden's recorded inputs: spikes equal but for flips that
   rounding explains, operation counts equal as integers.
3. End to end: every difference traced to a first flipped neuron near its threshold, logits equal
   within the limit on samples without a flip.

Gates that find no difference prove nothing about populations that never fired; what follows, says
`soul_deploy.equivalence.verdict`.
"""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from soul_deploy.base.brief import brief
from soul_deploy.base.errors import FileFormatError, UsageError
from soul_deploy.base.files import File, OpenFile, opened
from soul_deploy.base.tables import text_table
from soul_deploy.base.terminal import one_line
from soul_deploy.equivalence.engines import (
    BATCH,
    LOGIT_LIMIT,
    Agreement,
    Comparer,
    Comparison,
    Execution,
)
from soul_deploy.equivalence.golden import Golden
from soul_deploy.equivalence.spikes import Flip, LayerSpikes
from soul_deploy.equivalence.verdict import Verdict, untested
from soul_deploy.export.onnx.opsets import require_opened
from soul_deploy.export.onnx.reader import read_onnx
from soul_deploy.export.verify import event as event_check
from soul_deploy.export.verify import nir as nir_check
from soul_deploy.export.verify import onnx as onnx_check
from soul_deploy.export.verify.onnx_step import execution
from soul_deploy.lowering.deploy import lower
from soul_deploy.model.model import Model
from soul_deploy.runtime.engine.network import load
from soul_deploy.runtime.io.inspect import is_model_file

SCHEMA = "soul-deploy/verify/2"
PRINTED = 10  # flips and problems in the text; the JSON has more
Kind = Literal["onnx", "event", "nir"]
SUFFIXES: dict[str, Kind] = {".onnx": "onnx", ".safetensors": "event", ".nir": "nir"}


@brief
@dataclass(frozen=True)
class VerifyReport:
    """What the three gates found; gates 2 and 3 are None where gate 1 failed.

    problems: of the static gate. images: what it was run on. allow_silent: populations may stay
    silent.
    """

    artifact: str
    kind: Kind
    time_steps: int
    images: str
    problems: tuple[str, ...]
    forced: Comparison | None
    end_to_end: Comparison | None
    allow_silent: bool = False

    @property
    def verdict(self) -> Verdict:
        """Failed where the static gate failed, else what gates 2 and 3 prove."""
        return Verdict.FAILED if self._run is None else self._run.verdict

    @property
    def passed(self) -> bool:
        """Whether all three gates passed, and proved something: the verdict is `passed`."""
        return self.verdict is Verdict.PASSED

    @property
    def silent(self) -> tuple[str, ...]:
        """Populations in which no neuron of the golden ever spiked: they are untested."""
        return () if self._run is None else self._run.silent

    @property
    def _run(self) -> Agreement | None:
        """Gates 2 and 3, if gate 1 let them begin."""
        if self.problems or self.forced is None or self.end_to_end is None:
            return None
        return Agreement(self.forced, self.end_to_end, self.allow_silent)

    def table(self) -> str:
        """The report as text."""
        lines = [*map(one_line, _gate_lines(self))]
        if self.forced is not None and self.end_to_end is not None:
            columns = ["layer", "neurons", "firing rate", "spikes", "flips forced"]
            rows = _rows(self.forced, self.end_to_end, self.time_steps)
            columns += ["flips end to end", "spikes differing", "unexplained"]
            lines = [text_table("Spikes", columns, rows), *lines]
        heading = one_line(f"{self.artifact} against its model, on {self.images}")
        return "\n".join([heading, *lines, f"Verified: {_verified(self)}"])

    def to_json(self) -> dict[str, Any]:
        """The report as JSON data; `schema` says which fields there are."""
        return {
            "schema": SCHEMA,
            "verdict": self.verdict.value,
            "passed": self.passed,
            "artifact": self.artifact,
            "kind": self.kind,
            "time_steps": self.time_steps,
            "images": self.images,
            "logit_limit": LOGIT_LIMIT,
            "static": {"passed": not self.problems, "problems": list(self.problems)},
            "forced": _comparison_json(self.forced),
            "end_to_end": _comparison_json(self.end_to_end),
            "silent_layers": list(self.silent),
            "allow_silent": self.allow_silent,
        }


def verify(
    golden: Model,
    artifact: Path,
    images: Tensor,
    *,
    kind: Kind | None = None,
    source_sha256: str | None = None,
    described: str | None = None,
    name: str | None = None,
    batch: int = BATCH,
    allow_silent: bool = False,
) -> VerifyReport:
    """Run the three gates on an ONNX, event or NIR file; the verdict is in the report.

    images: normalised, (B, C, H, W), or (T, B, C, H, W) for a sequence. kind: by the file's name
    and content if not given. source_sha256: digest of the golden's file, if the artifact must be
    made from it. described, name: how the report calls the images and the file. allow_silent: pass
    also where a population never fires on the images; without, such a report is inconclusive.
    Raises MissingFileError, FileFormatError or LimitError for a file that cannot be read,
    ValidityError for images that do not fit, UsageError for none.
    """
    reference = Golden(golden)
    static = reference.module.as_signal(images).static
    count = images.shape[0] if static else images.shape[1]
    if not count:
        raise UsageError("no samples to verify on; give at least one")
    with OpenFile(artifact) as source:
        kind = kind or kind_of(source)
        if kind == "event":
            reference = Golden(lower(golden).trimmed.model)
        problems, ready = _open(kind, reference, source, source_sha256)
    if kind == "event":
        problems += _changed_outputs(Golden(golden), reference, images, batch)
        ready = None if problems else ready
    forced = end_to_end = None
    if ready is not None:
        comparer = Comparer(reference)
        forced = comparer.forced(ready, images, batch)
        end_to_end = comparer.end_to_end(ready, images, batch)
    label = described or f"{count} samples"
    title = name or artifact.name
    steps = golden.graph.time_steps
    return VerifyReport(title, kind, steps, label, problems, forced, end_to_end, allow_silent)


def _changed_outputs(
    golden: Golden, without: Golden, images: Tensor, batch: int
) -> tuple[str, ...]:
    """Whether leaving out the neurons that nothing depends on changed a score."""
    axis = 0 if golden.module.as_signal(images).static else 1
    for part in torch.split(images, batch, dim=axis):
        scores, fewer = golden.record(part)[1], without.record(part)[1]
        if not torch.equal(scores, fewer):
            largest = float((scores - fewer).abs().max())
            return (f"without neurons that nothing reads the scores differ by up to {largest:g}",)
    return ()


def kind_of(artifact: File) -> Kind:
    """What kind of file it is. Raises MissingFileError, or FileFormatError for a model file."""
    with opened(artifact) as source:
        if is_model_file(source):
            raise FileFormatError(
                f"{source} is a model file, as MODEL is; what is verified was exported from it: "
                "ONNX, an event network or NIR (`soul-deploy export onnx`, `event`, `nir`)"
            )
        suffix = source.path.suffix.lower()
        if suffix in SUFFIXES:
            return SUFFIXES[suffix]
        start = source.start(9)
    if start[:4] == b"\x89HDF":  # NIR is stored as HDF5
        return "nir"
    return "event" if start[8:] == b"{" else "onnx"


def _open(
    kind: Kind, golden: Golden, artifact: OpenFile, source_sha256: str | None
) -> tuple[tuple[str, ...], Execution | None]:
    """The static gate's problems, and the file ready to run if there are none."""
    if kind == "onnx":
        file = read_onnx(artifact)
        problems = onnx_check.static_problems(golden.model, file, source_sha256)
        if problems:
            return problems, None
        require_opened(file, artifact.path)
        return (), execution(file, golden.model)
    if kind == "nir":
        return nir_check.opened(golden, artifact, source_sha256)
    network = load(artifact)
    problems = event_check.static_problems(golden.model, network, source_sha256)
    return problems, None if problems else event_check.EventExecution(network, golden)


def _rows(
    forced: Comparison, end_to_end: Comparison, time_steps: int
) -> Iterator[tuple[object, ...]]:
    for alone, chained in zip(forced.layers, end_to_end.layers, strict=True):
        slots = chained.neurons * chained.samples * time_steps
        yield (
            alone.layer,
            alone.neurons,
            f"{chained.golden_spikes / slots:.2%}",
            chained.golden_spikes,
            alone.flipped,
            chained.flipped,
            chained.differing,
            alone.unexplained + chained.unexplained,
        )


def _gate_lines(report: VerifyReport) -> Iterator[str]:
    yield f"1 static: {_word(not report.problems)}" + (
        "" if report.problems else ", every stored structure equals the graph"
    )
    yield from _shortened(report.problems)
    forced, whole = report.forced, report.end_to_end
    if forced is None or whole is None:
        yield "2 layer by layer, 3 end to end: not run, since the file is of another structure"
        return
    counts = "not counted by this engine"
    if forced.counted:
        counts = f"{len(forced.mismatches) or 'no'} counts differ"
    yield (
        f"2 layer by layer: {_word(forced.passed)}, {forced.flipped} flips, "
        f"{forced.unexplained} unexplained, {counts}, logits within {forced.logit_difference:.2g}"
    )
    yield from _shortened(forced.mismatches)
    yield from _shortened(_flips(forced.layers))
    yield (
        f"3 end to end: {_word(whole.passed)}, same class on {whole.agreeing} of {whole.samples} "
        f"samples, {whole.flipped} flips on {whole.flipped_samples} samples, {whole.unexplained} "
        f"unexplained, {_counts_line(whole)}, logits within {whole.logit_difference:.2g} on "
        "samples without a flip"
    )
    yield from _shortened(whole.mismatches)
    yield from _shortened(whole.differences)
    yield from _shortened(_flips(whole.layers))
    if report.silent:
        yield f"Never spiked on these images: {', '.join(report.silent)}"


def _verified(report: VerifyReport) -> str:
    """The last line's words."""
    if report.verdict is Verdict.FAILED:
        return "NO"
    word = "yes;" if report.passed else "inconclusive:"
    return f"{word} {untested(report.silent)}" if report.silent else word.rstrip(";:")


def _counts_line(whole: Comparison) -> str:
    """Counts of an execution against those of its own spikes, and against the golden's."""
    if not whole.counted:
        return "not counted by this engine"
    wrong = len(whole.mismatches) + sum(d.difference != d.explained for d in whole.differences)
    if wrong:
        return f"{wrong} counts differ"
    if whole.differences:
        return "counts differ by the fan-out of what flipped, exactly"
    return "no counts differ"


def _word(passed: bool) -> str:
    return "passed" if passed else "FAILED"


def _flips(layers: tuple[LayerSpikes, ...]) -> list[Flip]:
    flips = [flip for layer in layers for flip in layer.flips]
    return sorted(flips, key=lambda flip: (flip.explained, flip.cause is not None))


def _shortened(items: Any) -> Iterator[str]:
    listed = [f"  {item}" for item in items]
    yield from listed[:PRINTED]
    if len(listed) > PRINTED:
        yield f"  and {len(listed) - PRINTED} more"


def _comparison_json(comparison: Comparison | None) -> dict[str, Any] | None:
    if comparison is None:
        return None
    data = asdict(comparison) | {"passed": comparison.passed, "flipped": comparison.flipped}
    data["unexplained"] = comparison.unexplained
    finite: dict[str, Any] = _finite(data)
    return finite


def _finite(value: Any) -> Any:
    """JSON has no infinities: they become null."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
