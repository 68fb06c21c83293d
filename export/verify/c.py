"""Proof that a folder of C is the network it came from.

1. Static: the program is written anew from the model and must equal the folder's files, byte for
   byte. Nothing of the folder is ever compiled.
2. Run: what was just written is built with the machine's compiler, with warnings as errors and
   sanitizers, in a temporary folder; spikes of every step, membranes, scores and SynOps equal the
   model's, without tolerance. Of float32 they are those of its order of sums (export/c/ordered.py),
   and end to end they are compared with the model in PyTorch, as other engines that round are.
"""

import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from soul_deploy.base import Array, brief, errors, tables
from soul_deploy.data.given import Images, images_for
from soul_deploy.equivalence.comparison import (
    CheckResult,
    Comparison,
    check_lines,
    first_lines,
    passed_text,
    verdict_text,
)
from soul_deploy.equivalence.engines import Comparer, ExecutionRun, LayerRun
from soul_deploy.equivalence.reference import ReferenceModel
from soul_deploy.equivalence.verdict import Verdict, verdict_of
from soul_deploy.export.c import harness, header, self_test
from soul_deploy.export.c.golden import Golden, frames_of, golden
from soul_deploy.export.c.program import Program, make_program
from soul_deploy.export.c.rows import channel_last
from soul_deploy.export.c.write import TEST, CProgram, program_files
from soul_deploy.model.model import Model
from soul_deploy.nn.graph_module import Signal

SCHEMA = "soul-deploy/verify-c/1"
BATCH = 16
NO_COMPILER = "no C compiler (cc, gcc, clang, or $CC) is here, so the program was not run"
HEAD = re.compile(
    re.escape(f"/* {header.FORMAT}")
    + r" layout=([a-z]{1,8}) prefix=([a-z0-9_]{1,31}) T=(\d{1,6})( float32)?\n"
)


@brief
@dataclass(frozen=True, kw_only=True)
class PopulationCheck:
    """Of one population: spikes of the model, and where the program's differ."""

    name: str
    spikes: int = 0
    differing_spikes: int = 0
    differing_membranes: int = 0

    def __add__(self, other: "PopulationCheck") -> "PopulationCheck":
        return PopulationCheck(
            name=self.name,
            spikes=self.spikes + other.spikes,
            differing_spikes=self.differing_spikes + other.differing_spikes,
            differing_membranes=self.differing_membranes + other.differing_membranes,
        )


@brief
@dataclass(frozen=True, kw_only=True)
class CReport(tables.Shown):
    """What was found. problems: of the files; None: a program that is not written yet. stopped:
    what ended the run, or why there was none.

    samples: how many were run; differing_scores: integers; differing_synops: batches whose counts
    differ. whole: of float32, against the model in PyTorch.
    """

    artifact: str
    time_steps: int
    images: str
    problems: tuple[str, ...] | None
    populations: tuple[PopulationCheck, ...] = ()
    samples: int = 0
    differing_scores: int = 0
    differing_synops: int = 0
    whole: CheckResult = field(default_factory=CheckResult)
    stopped: str = ""
    no_compiler: bool = False
    allow_silent: bool = False
    incomparable: tuple[str, ...] = field(default=(), repr=False)

    @property
    def silent(self) -> tuple[str, ...]:
        return tuple(p.name for p in self.populations if not p.spikes)

    @property
    def agree(self) -> bool:
        apart = sum(p.differing_spikes + p.differing_membranes for p in self.populations)
        apart += self.differing_scores + self.differing_synops
        return self.whole.passed and not (self.problems or self.stopped or apart)

    @property
    def verdict(self) -> Verdict:
        return verdict_of(self.agree, self.samples, self.silent, allow_silent=self.allow_silent)

    def parts(self) -> list[tables.Table | str]:
        lines: list[str] = []
        if self.problems is not None:
            lines = [f"1 files: {passed_text(not self.problems)}", *first_lines(self.problems)]
        if self.problems == ():
            lines = [f"{lines[0]}, written anew from the model they are the same bytes"]
        if self.no_compiler:
            lines.append(f"2 run: not run, {NO_COMPILER}")
        elif self.stopped:
            lines.append(f"2 run: FAILED, {self.stopped}")
        elif self.samples:
            lines.append(
                f"2 run: {passed_text(self.agree)}, {self.samples} samples: "
                f"{self.differing_scores} scores differ, SynOps "
                f"{'differ' if self.differing_synops else 'are equal'}"
            )
            lines += self._against_pytorch()
        title = f"{self.artifact} against its model, on {self.images}"
        return [title, *self._table(), *lines, self._verdict()]

    def _against_pytorch(self) -> list[str]:
        if not self.whole.samples:
            return []
        order = "  of float32, in the program's order of sums; against PyTorch:"
        check = Comparison(forced=CheckResult(), end_to_end=self.whole, time_steps=self.time_steps)
        return [order, *(f"  {line}" for line in check_lines(check)[1])]

    def _verdict(self) -> str:
        if self.no_compiler and not self.problems:
            compared = "nothing was" if self.problems is None else "the files alone were"
            return f"Verified: inconclusive, {compared} compared"
        return f"Verified: {verdict_text(self.verdict, self.silent)}"

    def _table(self) -> list[tables.Table]:
        columns = ("layer", "spikes", "spikes that differ", "membranes that differ")
        rows = [
            (p.name, p.spikes, p.differing_spikes, p.differing_membranes) for p in self.populations
        ]
        return [tables.Table("Spikes", columns, rows)] if rows else []

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON data; `schema` says which fields there are."""
        return {
            "schema": SCHEMA,
            "verdict": self.verdict.value,
            "passed": self.verdict is Verdict.PASSED,
            "artifact": self.artifact,
            "kind": "c",
            "time_steps": self.time_steps,
            "images": self.images,
            "problems": None if self.problems is None else list(self.problems),
            "stopped": self.stopped,
            "no_compiler": self.no_compiler,
            "samples": self.samples,
            "populations": [vars(population) for population in self.populations],
            "differing_scores": self.differing_scores,
            "synops_equal": not self.differing_synops,
            "against_pytorch": self.whole.to_dict() if self.whole.samples else None,
            "silent_layers": list(self.silent),
            "allow_silent": self.allow_silent,
        }


def verify_c(
    model: Model,
    folder: Path | str,
    images: Images,
    *,
    described: str | None = None,
    name: str | None = None,
    batch: int = BATCH,
    allow_silent: bool = False,
) -> CReport:
    """Whether a folder of C is `model`, fixed-point or float; images: as `images_for` takes them.

    Raises FileFormatError for a folder without such a program, UsageError and
    UnsupportedGraphError as `make_program`.
    """
    folder = Path(folder)
    given, axis = images_for(model, images)
    expected, problems = _regenerated(model, folder)
    report = CReport(
        artifact=name or folder.name,
        time_steps=model.graph.time_steps,
        images=described or f"{given.shape[axis]} samples",
        problems=problems,
        allow_silent=allow_silent,
    )
    return report if problems else run_checked(report, expected, given, axis, batch)


def _regenerated(model: Model, folder: Path) -> tuple[CProgram, tuple[str, ...]]:
    """The program that the folder's head describes, and where the folder's bytes are others."""
    head, test = _text(folder, "model.h"), _text(folder, TEST)
    found = HEAD.match(head)
    if found is None:
        raise errors.FileFormatError(
            f"{folder / 'model.h'} does not begin as a C program of this version "
            f"({header.FORMAT}); export it again"
        )
    steps = int(found[3])
    if steps != model.graph.time_steps:
        model = model.with_time_steps(steps)
    layout: Any = found[1]
    program = make_program(model, layout=layout, prefix=found[2], as_float=found[4] is not None)
    expected = program_files(program, self_test.samples_in(program, test))
    return expected, tuple(_differences(expected, folder))


def _text(folder: Path, name: str) -> str:
    path = folder / name
    if not path.is_file():
        raise errors.FileFormatError(
            f"{folder} holds no {name}: it is no C program of `soul-deploy export c`"
        )
    return path.read_bytes().decode("utf-8", errors="replace")


def _differences(expected: CProgram, folder: Path) -> Iterator[str]:
    for name, text in expected.texts.items():
        path = folder / name
        if not path.is_file():
            yield f"{name}: missing"
            continue
        stored, made = path.read_bytes(), text.encode()
        if stored != made:
            lines = zip(stored.split(b"\n"), made.split(b"\n"), strict=False)
            at = next((i for i, (a, b) in enumerate(lines, 1) if a != b), "the last")
            yield f"{name}: not what the model gives, from line {at} on"


def run_checked(
    report: CReport, expected: CProgram, images: Tensor, axis: int, batch: int
) -> CReport:
    """The report with what the built program does on the images."""
    cc = harness.compiler()
    if cc is None:
        return replace(report, no_compiler=True)
    try:
        with tempfile.TemporaryDirectory() as folder:
            executable = harness.build([expected], Path(folder), cc)
            for part in torch.split(images, batch, dim=axis):
                report = _batch(report, expected, executable, part)
    except errors.VerificationError as error:
        return replace(report, stopped=str(error))
    return report


def _batch(report: CReport, expected: CProgram, executable: Path, images: Tensor) -> CReport:
    program = expected.program
    model = golden(program, images)
    (shown,) = harness.run(executable, [(program, frames_of(program, images))])
    checks = tuple(_population(name, model, shown) for name in model.spikes)
    whole = report.whole
    if program.floats:
        whole += against_pytorch(program, shown, images)
    before = report.populations or tuple(PopulationCheck(name=name) for name in model.spikes)
    return replace(
        report,
        populations=tuple(old + new for old, new in zip(before, checks, strict=True)),
        samples=report.samples + len(model.scores),
        differing_scores=report.differing_scores + _apart(model.scores, shown.scores),
        differing_synops=report.differing_synops + (model.synops != shown.synops),
        whole=whole,
    )


def against_pytorch(program: Program, shown: harness.Shown, images: Tensor) -> CheckResult:
    """What a float32 program gave on a batch: spikes may differ where rounding explains it."""
    return Comparer(ReferenceModel(program.model)).end_to_end(_Shown(program, shown), images)


@dataclass(frozen=True)
class _Shown:
    """What the program gave on a batch, as an execution."""

    program: Program
    shown: harness.Shown

    def run(self, images: Tensor) -> ExecutionRun:
        spikes = {
            node.name: torch.from_numpy(self._back(self.shown.spikes[node.name], node.name))
            for node in self.program.graph.populations
        }
        return ExecutionRun(spikes, torch.from_numpy(self.shown.scores.copy()))

    def _back(self, spikes: Array, name: str) -> Array:
        """(T, N, ...) of what is in the program's order."""
        shape = self.program.graph.shapes[name]
        ordered = spikes[..., np.argsort(channel_last(shape))]
        return np.ascontiguousarray(ordered.reshape(*spikes.shape[:2], *shape))

    def run_layer(self, layer: str, values: Mapping[str, Signal]) -> LayerRun:
        raise errors.UsageError("a C program runs as a whole")


def _population(name: str, model: Golden, shown: harness.Shown) -> PopulationCheck:
    return PopulationCheck(
        name=name,
        spikes=int(model.spikes[name].sum()),
        differing_spikes=_apart(model.spikes[name], shown.spikes[name]),
        differing_membranes=_apart(model.membranes[name], shown.membranes[name]),
    )


def _apart(ours: Array, theirs: Array) -> int:
    return int(np.count_nonzero(ours != theirs))
