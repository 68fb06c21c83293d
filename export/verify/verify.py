"""Proof that an exported file is the network it came from: three checks.

1. Static: every stored structure equals what the graph says, exactly. The structure of an ONNX
   file that another tool has written anew is not comparable; then 2 and 3 decide. An event network
   lacks the neurons that no output depends on: it is compared with the model without these
   neurons, and the scores of that model must equal the model's own to the bit.
2. Layer by layer, teacher-forced with the reference's recorded inputs: spikes equal but for
   mismatches that rounding explains, operation counts equal as integers.
3. End to end: every difference traced to a first spike mismatch near the threshold, logits equal
   within the limit on samples without a mismatch.

Checks that find no difference prove nothing about populations that never fired: see
`soul_deploy.equivalence.comparison`.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from soul_deploy.base import brief, errors, file_kinds, files, tables
from soul_deploy.data.given import Images, images_for
from soul_deploy.equivalence.comparison import (
    LOGIT_LIMIT,
    CheckResult,
    Comparison,
    check_lines,
    first_lines,
    passed_text,
    spikes_table,
    verdict_text,
)
from soul_deploy.equivalence.engines import BATCH, Comparer, Execution, ModelExecution
from soul_deploy.equivalence.reference import ReferenceModel
from soul_deploy.equivalence.verdict import Verdict
from soul_deploy.export.nir.read import import_nir, read_nir
from soul_deploy.export.onnx import opsets, reader
from soul_deploy.export.verify import event as event_check
from soul_deploy.export.verify import onnx as onnx_run
from soul_deploy.export.verify import onnx_batch, onnx_static
from soul_deploy.export.verify.event_run import EventExecution
from soul_deploy.lowering.deploy import lower
from soul_deploy.model.model import Model
from soul_deploy.runtime.engine.network import load
from soul_deploy.runtime.io.inspect import is_model_file

SCHEMA = "soul-deploy/verify/3"
Kind = Literal["onnx", "event", "nir"]
CHECKS = {
    "static": "check 1 (static)",
    "forced": "check 2 (layer by layer)",
    "end_to_end": "check 3 (end to end)",
}
KINDS: dict[str, Kind] = {"onnx": "onnx", "event": "event", "nir": "nir"}
SUFFIXES: dict[str, Kind] = {".onnx": "onnx", ".safetensors": "event", ".nir": "nir"}


@brief
@dataclass(frozen=True, kw_only=True)
class VerifyReport(tables.Shown):
    """What the three checks found.

    problems: of check 1, static. comparison: checks 2 and 3; None where they could not run. images:
    what the file was run on. allow_silent: populations may stay silent. Of a file that another tool
    has written: incomparable: why check 1 could not compare its structure, uncut: why check 2 could
    not run its layers, stopped: what ended checks 2 and 3; empty if nothing.
    """

    artifact: str
    kind: Kind
    time_steps: int
    images: str
    problems: tuple[str, ...]
    comparison: Comparison | None
    allow_silent: bool = False
    incomparable: tuple[str, ...] = ()
    uncut: str = ""
    stopped: str = ""

    @property
    def forced(self) -> CheckResult | None:
        ran = self.comparison is not None and self.comparison.forced.samples > 0
        return self.comparison.forced if self.comparison is not None and ran else None

    @property
    def end_to_end(self) -> CheckResult | None:
        return None if self.comparison is None else self.comparison.end_to_end

    @property
    def verdict(self) -> Verdict:
        """Failed where the static check failed, else what checks 2 and 3 prove.

        A structure that cannot be compared is neither passed nor failed: checks 2 and 3 decide.
        """
        if self.problems or self.comparison is None:
            return Verdict.FAILED
        return self.comparison.verdict

    @property
    def carried_by(self) -> tuple[str, ...]:
        """The checks on which the verdict rests: those that failed, else those that compared."""
        static = not (self.incomparable and not self.problems)
        outcomes = {"static": not self.problems} if static else {}
        found = {"forced": self.forced, "end_to_end": self.end_to_end}
        outcomes |= {name: check.passed for name, check in found.items() if check is not None}
        outcomes |= {"end_to_end": False} if self.stopped else {}
        failed = tuple(name for name, passed in outcomes.items() if not passed)
        return failed or tuple(outcomes)

    @property
    def passed(self) -> bool:
        """Whether all checks passed that compared, and proved something: it is the verdict."""
        return self.verdict is Verdict.PASSED

    @property
    def silent(self) -> tuple[str, ...]:
        """Populations in which no neuron of the reference ever spiked: they are untested."""
        return () if self.comparison is None else self.comparison.silent

    def parts(self) -> list[tables.Table | str]:
        """The images, spikes by layer, a line for each check and finding, the verdict."""
        lines = self._static_lines()
        if self.stopped:
            lines.append(f"2 layer by layer, 3 end to end: FAILED, {self.stopped}")
        elif self.comparison is None:
            line = "2 layer by layer, 3 end to end: not run, since the file is of another structure"
            lines.append(line)
        else:
            forced, (whole, *more) = check_lines(self.comparison)
            forced = forced or [f"layer by layer: not run, {self.uncut}"]
            lines += [f"2 {forced[0]}", *forced[1:], f"3 {whole}", *more]
        title = f"{self.artifact} against its model, on {self.images}"
        table = [] if self.comparison is None else [spikes_table(self.comparison)]
        verdict = f"Verified: {verdict_text(self.verdict, self.silent)}"
        if self.incomparable:
            verdict += f"; by {' and '.join(CHECKS[name] for name in self.carried_by)}"
        return [title, *table, *lines, verdict]

    def _static_lines(self) -> list[str]:
        if self.problems or not self.incomparable:
            static = f"1 static: {passed_text(not self.problems)}"
            static += "" if self.problems else ", every stored structure equals the graph"
            return [static, *first_lines(self.problems)]
        static = "1 static: not comparable, since names or structure are not as they were exported"
        return [static, *first_lines(self.incomparable)]

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON data; `schema` says which fields there are."""
        whole = self.end_to_end
        return {
            "schema": SCHEMA,
            "verdict": self.verdict.value,
            "passed": self.passed,
            "artifact": self.artifact,
            "kind": self.kind,
            "time_steps": self.time_steps,
            "images": self.images,
            "logit_limit": LOGIT_LIMIT if whole is None else whole.logit_limit,
            "carried_by": list(self.carried_by),
            "static": self._static(),
            "stopped": self.stopped,
            "forced": None if self.forced is None else self.forced.to_dict(),
            "end_to_end": None if self.end_to_end is None else self.end_to_end.to_dict(),
            "silent_layers": list(self.silent),
            "allow_silent": self.allow_silent,
        }

    def _static(self) -> dict[str, Any]:
        comparable = not self.incomparable
        return {
            "passed": not self.problems if comparable or self.problems else None,
            "comparable": comparable,
            "problems": list(self.problems),
            "incomparable": list(self.incomparable),
        }


def verify(
    model: Model,
    path: Path | str,
    images: Images,
    *,
    kind: Kind | None = None,
    source_sha256: str | None = None,
    described: str | None = None,
    name: str | None = None,
    batch: int = BATCH,
    allow_silent: bool = False,
) -> VerifyReport:
    """Run the three checks on an ONNX, event or NIR file; the verdict is in the report.

    images: (B, C, H, W) or (T, B, C, H, W), as `images_for` takes them. kind: by name and content
    if None. source_sha256: of the model's file, if the artifact must be made of it. described,
    name: of images and file in the report. allow_silent: populations may never fire. Raises
    MissingFileError, FileFormatError, LimitError for a file, ValidityError, UsageError for images.
    """
    path, (given, axis) = Path(path), images_for(model, images)
    if not given.shape[axis]:
        raise errors.UsageError("no samples to verify on; give at least one")
    with files.OpenFile(path) as source:
        kind = kind or artifact_kind(source)
        reference = ReferenceModel(lower(model).trimmed.model if kind == "event" else model)
        opened = _open(kind, reference, source, source_sha256)
    problems = opened.problems + _changed_outputs(model, reference, given, batch)
    found, stopped = _compared(opened, problems, reference, given, batch, allow_silent)
    return VerifyReport(
        artifact=name or path.name,
        kind=kind,
        time_steps=model.graph.time_steps,
        images=described or f"{given.shape[axis]} samples",
        problems=problems,
        comparison=found,
        allow_silent=allow_silent,
        incomparable=opened.incomparable,
        uncut=opened.uncut,
        stopped=stopped,
    )


def _compared(
    opened: "_Opened",
    problems: tuple[str, ...],
    reference: ReferenceModel,
    images: Tensor,
    batch: int,
    allow_silent: bool,
) -> tuple[Comparison | None, str]:
    """Checks 2 and 3, unless there are problems; or what ended them: an ONNX file that does not
    open or run, and a file of another tool that does something else.
    """
    if opened.ready is None or problems:
        return None, ""
    how: Any = {"allow_silent": allow_silent, "by_layer": not opened.uncut}
    try:
        return Comparer(reference).both(opened.ready, images, batch, **how), ""
    except onnx_run.FAILURES as error:
        return None, _not_run(error)
    except (errors.VerificationError, ValueError) as error:
        if not opened.incomparable:
            raise
        return None, _not_run(error)


def _not_run(error: Exception) -> str:
    return f"the file does not run as the model: {onnx_run.first_line(error)}"


def _changed_outputs(
    model: Model, without: ReferenceModel, images: Tensor, batch: int
) -> tuple[str, ...]:
    """Whether leaving out the neurons that nothing depends on, if any, changed a score."""
    if without.model is model:
        return ()
    reference = ReferenceModel(model)
    axis = reference.module.batch_axis(images)
    for part in torch.split(images, batch, dim=axis):
        scores, fewer = reference.record(part)[1], without.record(part)[1]
        if not torch.equal(scores, fewer):
            largest = float((scores - fewer).abs().max())
            return (f"without neurons that nothing reads the scores differ by up to {largest:g}",)
    return ()


def artifact_kind(artifact: files.File) -> Kind:
    """The kind of the file. Raises MissingFileError, or FileFormatError for a model file."""
    with files.opened(artifact) as source:
        if is_model_file(source):
            raise errors.FileFormatError(
                f"{source} is a model file, as MODEL is; what is verified was exported from it: "
                "ONNX, an event network or NIR (`soul-deploy export onnx`, `event`, `nir`)"
            )
        found, suffix = file_kinds.kind_of(source), source.path.suffix.lower()
        if found is not None and found not in KINDS:
            exported = "an exported file (ONNX, event network or NIR)"
            raise file_kinds.wrong_kind(source.path, found, exported)
        kind = SUFFIXES.get(suffix) if found is None else KINDS[found]
        start = source.start(9)
    return kind or ("event" if start[8:] == b"{" else "onnx")


@dataclass(frozen=True)
class _Opened:
    """The static check's problems, and the file ready to run if there are none.

    incomparable, uncut: as in the report.
    """

    problems: tuple[str, ...]
    ready: Execution | None = None
    incomparable: tuple[str, ...] = ()
    uncut: str = ""


def _open(
    kind: Kind, reference: ReferenceModel, artifact: files.OpenFile, source_sha256: str | None
) -> _Opened:
    if kind == "onnx":
        return _open_onnx(reference.model, artifact, source_sha256)
    if kind == "nir":
        return _open_nir(reference, artifact, source_sha256)
    network = load(artifact)
    problems = event_check.event_problems(reference.model, network, source_sha256)
    return _Opened(problems, None if problems else EventExecution(network, reference))


def _open_onnx(model: Model, artifact: files.OpenFile, source_sha256: str | None) -> _Opened:
    file = reader.read_onnx(artifact)
    static = onnx_static.check_static(model, file, source_sha256)
    if static.problems:
        return _Opened(static.problems, incomparable=static.incomparable)
    opsets.require_opened(file, artifact.path)
    runs = onnx_batch.execution(file, model, foreign=bool(static.incomparable))
    return _Opened((), runs.execution, static.incomparable, runs.uncut)


def _open_nir(reference: ReferenceModel, file: files.File, source_sha256: str | None) -> _Opened:
    """Ready is the network read back from the file.

    Raises what `read_nir` and `import_nir` raise.
    """
    graph = read_nir(file)
    stored = str(graph.metadata.get("source_sha256", ""))
    problems = list(event_check.source_problems(stored, source_sha256))
    if "time_steps" in graph.metadata:
        imported = import_nir(graph)
        problems += _told_problems(reference.model, imported)
    else:  # of another tool: read as the model was, if it came from there
        read_with = reference.model.info.provenance.get("nir")
        said = read_with if isinstance(read_with, dict) else {}
        rules = {name: said.get(name) for name in ("dt", "fire", "reset", "read")}
        info, readout = reference.model.info, reference.graph.readout  # in no file of another tool
        rules |= {"over_time": readout.over_time, "input_kind": info.input_kind}
        imported = import_nir(graph, time_steps=reference.graph.time_steps, **rules)
    problems += nir_problems(reference.model, imported)
    return _Opened(tuple(problems), None if problems else ModelExecution(imported))


def _told_problems(reference: Model, imported: Model) -> Iterator[str]:
    """What callers read in the metadata of a NIR file of ours, beside what `nir_problems` sees."""
    ours, theirs = reference.info, imported.info
    for what, mine, stored in (
        ("class names", ours.classes, theirs.classes),
        ("normalization", ours.normalization, theirs.normalization),
        ("validity", ours.validity, theirs.validity),
    ):
        if mine != stored:
            yield f"{what}: {stored} in the file, the model says {mine}"


def nir_problems(reference: Model, imported: Model) -> Iterator[str]:
    """The static check: T, shapes, every folded weight and every neuron's numbers, exactly."""
    ours, theirs = reference.graph, imported.graph
    for what, mine, imported_value in (
        ("time_steps", ours.time_steps, theirs.time_steps),
        ("input", ours.input.shape, theirs.input.shape),
        ("input_kind", reference.info.input_kind, imported.info.input_kind),
        ("classes", ours.readout.classes, theirs.readout.classes),
        ("scores over time", ours.readout.over_time, theirs.readout.over_time),
    ):
        if mine != imported_value:
            yield f"{what}: {imported_value} in the file, the model says {mine}"
    expected, found_neurons = lower(reference).equations, lower(imported).equations
    yield from _unpaired(expected, found_neurons)
    for name in sorted(set(expected) & set(found_neurons)):
        if ours.shapes.get(name) != theirs.shapes.get(name):
            yield f"{name}: shape {theirs.shapes[name]}, the model says {ours.shapes[name]}"
        if expected[name] != found_neurons[name]:
            yield f"{name}: {found_neurons[name]}, the model says {expected[name]}"
    yield from _weight_problems(reference, imported)


def _unpaired(expected: Collection[str], found: Collection[str]) -> Iterator[str]:
    for name in sorted(set(expected) ^ set(found)):
        yield f"{name}: {'missing' if name in expected else 'not in the model'}"


def _weight_problems(reference: Model, imported: Model) -> Iterator[str]:
    expected, folded = lower(reference).synapses, lower(imported).synapses
    yield from _unpaired(expected, folded)
    for name in sorted(set(expected) & set(folded)):
        for part in ("weight", "bias"):
            mine, theirs = getattr(expected[name], part), getattr(folded[name], part)
            mine = None if part == "bias" and mine is not None and not mine.any() else mine
            if not event_check.same_arrays(mine, theirs):
                yield f"{name}.{part}: not the folded numbers of the model"
