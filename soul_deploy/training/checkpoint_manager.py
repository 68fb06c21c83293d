"""A `CheckpointManager` writes checkpoints while a run trains, and starts the run from one.

A run announces each phase with `loop`, and calls `after_step` and `after_epoch` from inside.
SIGTERM and Ctrl-C wait for the present step, write a checkpoint, and end the run; a second one ends
the run at once.
"""

import hashlib
import json
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from soul_deploy import distributed
from soul_deploy.base import errors, files
from soul_deploy.data.datasets import Data
from soul_deploy.ir import SpikingGraph
from soul_deploy.training import checkpoint as stored
from soul_deploy.training.checkpoint import Checkpoint
from soul_deploy.training.messages import note, warn
from soul_deploy.training.state import Restorable, random_states, restore_random_states, tree_of

KEPT = 2
MISFITS = (
    *(errors.FileFormatError, ArithmeticError, LookupError),
    *(RuntimeError, TypeError, ValueError),
)
"""What `restore` raises for a state of another run."""
SIGNALS = (signal.SIGTERM, signal.SIGINT)


@dataclass(frozen=True)
class Checkpoints:
    """Where a run's checkpoints go, when they are written, and whether the run starts from one.

    every     steps from one checkpoint to the next; None: after epochs only
    resume    True: go on from the newest checkpoint in `folder`, or begin if there is none; a path:
              from that file, or from the newest of that folder
    settings  name -> JSON value: what stands for the start of the run; None: its weights' sha256.
              A run goes on only with the settings it began with.
    """

    folder: Path
    every: int | None = None
    resume: bool | str | Path = False
    settings: Mapping[str, Any] | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        errors.require_least(1, every=self.every)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """When a run has ended and its results are written: end the program at once on signals.

        Inside, SIGTERM and Ctrl-C raise InterruptedRunError, which names the newest checkpoint.
        """

        def receive(number: int, frame: FrameType | None) -> None:
            raise errors.InterruptedRunError(
                _stopped(number, stored.checkpoints_in(self.folder)), number
            )

        with _signals_caught(receive):
            yield


@dataclass(frozen=True)
class Run:
    """A run's phases, in order, and what it was asked for.

    settings     name -> JSON value: all that decides what comes out
    environment  what else decides how sums are rounded
    """

    phases: tuple[str, ...]
    settings: Mapping[str, Any]
    environment: Mapping[str, Any] = field(default_factory=dict)


def plain_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as they come back from JSON, nested ones under dotted names."""
    return _flat("", json.loads(json.dumps(settings, default=str)))


def _flat(prefix: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in settings.items():
        path = f"{prefix}{name}"
        found |= _flat(f"{path}.", value) if isinstance(value, dict) else {path: value}
    return found


def content_of(data: Data) -> dict[str, Any]:
    """What the samples are, so that a run never goes on with others."""
    splits = ("train", "validation", "test")
    names = [(split, kind) for split in splits for kind in ("images", "labels")]
    arrays = {
        f"{split}.{kind}": getattr(getattr(data, split), kind).numpy() for split, kind in names
    }
    return {"name": data.name, "sha256": files.digest(arrays)}


def network_of(graph: SpikingGraph) -> str:
    """What the network is: the same name may stand for another one, if its code has changed."""
    return hashlib.sha256(json.dumps(graph.to_json(), sort_keys=True).encode()).hexdigest()


def environment_of(device: torch.device) -> dict[str, Any]:
    """What else decides how sums are rounded."""
    return {
        "processes": distributed.current().world_size,
        "device": device.type,
        "threads": torch.get_num_threads(),
        "soul-deploy": version("soul-deploy"),
        "torch": version("torch"),
        "numpy": version("numpy"),
    }


def find_checkpoint(folder: Path, resume: bool | str | Path) -> tuple[Path, Checkpoint] | None:
    """What `Checkpoints.resume` names; None to start afresh.

    The newest intact checkpoint of a folder counts; of damaged ones a warning tells.
    Raises MissingFileError, or FileFormatError if there are checkpoints and none is intact.
    """
    if resume is False:
        return None
    if resume is not True:
        folder = Path(resume)
        if not folder.is_dir():
            return folder, stored.read_checkpoint(folder)
    paths = stored.checkpoints_in(folder)
    for path in reversed(paths):
        try:
            return path, stored.read_checkpoint(path)
        except (errors.FileFormatError, errors.LimitError) as error:
            warn(f"{error}; trying the checkpoint before it")
    if paths:
        raise errors.FileFormatError(
            f"none of the {len(paths)} checkpoints in {folder} is intact; leave --resume out to "
            "start from the beginning"
        )
    if resume is not True:
        raise errors.MissingFileError(f"no checkpoint in {folder}; check the path")
    note(f"no checkpoint in {folder} yet: starting from the beginning")
    return None


BEFORE = {
    "recipe.nesterov": False,
    "recipe.objective.criterion": "ce",
    "recipe.objective.tet": False,
    "recipe.objective.tet_phi": 1.0,
    "recipe.objective.tet_lambda": 0.0,
    "search.masks.nesterov": False,
    "sca.kept_count": "round",
    "task.initialisation": "default",
}
"""Settings that checkpoints of 0.1.0 do not hold yet, and what they were then."""


def _completed(found: Mapping[str, Any], asked: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a checkpoint, with those that it does not hold yet."""
    moved = {
        name.replace("search.objective.", "recipe.objective."): value
        for name, value in found.items()
    }
    return {name: value for name, value in BEFORE.items() if name in asked} | moved


def check_settings(path: Path, found: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    """Raise UsageError, naming what differs, unless a checkpoint is of the same run."""
    found = _completed(found, asked)
    names = sorted(set(found) | set(asked))
    different = [name for name in names if found.get(name) != asked.get(name)]
    if different:
        first = "; ".join(
            f"{name} was {found.get(name)!r}, now {asked.get(name)!r}" for name in different[:3]
        )
        more = f" (and {len(different) - 3} more)" if len(different) > 3 else ""
        raise errors.UsageError(
            f"--resume {path}: {first}{more}. A run goes on with the settings it began with; give "
            "them again, or leave --resume out to start from the beginning"
        )


class CheckpointManager:
    """Writes a run's checkpoints, and starts it from one; without `checkpoints` it does neither.

    With several processes only the main one touches the folder, and all stop at the same step.
    """

    def __init__(self, run: Run, checkpoints: Checkpoints | None) -> None:
        self.run, self._checkpoints = run, checkpoints
        self._good: list[Path] = []
        self._steps = 0
        self._phase: str | None = None
        self._part: Restorable | None = None
        self._signal = 0
        self._found: Checkpoint | None = None
        self._source: Path | None = None
        if checkpoints is not None:
            self._open(checkpoints.folder, find_checkpoint(checkpoints.folder, checkpoints.resume))
        sha256 = "" if self._found is None else self._found.sha256
        distributed.assert_ranks_start_alike(self.run.settings, sha256)
        if checkpoints is not None and distributed.current().is_main:
            for left in checkpoints.folder.glob(".*.safetensors.*.tmp"):
                files.remove_unless_open(left)  # a write that was killed

    def _open(self, folder: Path, found: tuple[Path, Checkpoint] | None) -> None:
        if found is not None:
            path, checkpoint = found
            check_settings(path, checkpoint.settings, self.run.settings)
            known = checkpoint.phase in self.run.phases
            errors.require(known, f"{path}: this command has no phase {checkpoint.phase!r}")
            note(f"resuming from {path}, in phase {checkpoint.phase}")
            before, now = checkpoint.environment, self.run.environment
            odd = [name for name in now if before.get(name) != now[name]]
            if odd:
                changes = ", ".join(f"{n} was {before.get(n)}, now {now[n]}" for n in odd)
                warn(f"the run began elsewhere ({changes}): its end will differ in rounding")
            self._source, self._found = path, checkpoint
        if self._source is not None and self._source.parent.resolve() == folder.resolve():
            self._good = [folder / self._source.name]
        elif distributed.current().is_main and stored.checkpoints_in(folder):
            warn(
                f"{folder} holds checkpoints of an earlier run, which this run will replace; stop "
                "it and give --resume auto to go on with that one"
            )

    def passed(self, phase: str) -> bool:
        """Whether the checkpoint that the run starts from is of a later phase."""
        order = self.run.phases
        return self._found is not None and order.index(phase) < order.index(self._found.phase)

    def starts_in(self, phase: str) -> bool:
        """Whether the checkpoint that the run starts from is of this phase."""
        return self._found is not None and self._found.phase == phase

    @contextmanager
    def loop(self, phase: str, part: Restorable) -> Iterator[None]:
        """A phase whose whole state is `part`, restored first if the checkpoint is of it."""
        assert phase in self.run.phases, phase
        self._phase, self._part = phase, part
        if self._found is not None and self.starts_in(phase):
            try:
                part.restore(tree_of(self._found.state, "run"))
                restore_random_states(tree_of(self._found.state, "random"))
            except MISFITS as error:
                told = f"{self._source} does not fit this run: {error}"
                raise errors.FileFormatError(told) from error
        self._found = None
        try:
            yield
        finally:
            self._phase = self._part = None
        self._stop(self._asked())

    def after_step(self) -> None:
        """After each optimizer step, when the state is that of a whole number of steps."""
        if self._checkpoints is None:
            return
        self._steps += 1
        asked, every = self._asked(), self._checkpoints.every
        if asked or (every is not None and self._steps % every == 0):
            self.save()
        self._stop(asked)

    def after_epoch(self) -> None:
        """After all that belongs to an epoch."""
        if self._checkpoints is None:
            return
        self.save()
        self._stop(self._asked())

    def save(self) -> None:
        """Write a checkpoint now and keep the last two. All processes return when it is there.

        Otherwise torchrun would see one end, and end the one that still writes.
        """
        assert self._phase is not None and self._part is not None, "outside of a loop"
        if self._checkpoints is not None and distributed.current().is_main:
            self._write(self._checkpoints.folder, self._phase, self._part)
        distributed.current().wait()

    def _write(self, folder: Path, phase: str, part: Restorable) -> None:
        state = {"run": part.state(), "random": random_states()}
        found = stored.checkpoints_in(folder)
        path = stored.checkpoint_path(folder, 1 + int(found[-1].stem) if found else 1)
        stored.write_checkpoint(
            path, Checkpoint(self.run.settings, self.run.environment, phase, state)
        )
        self._good = [*self._good, path][-KEPT:]
        if len(self._good) == KEPT:
            for old in set(stored.checkpoints_in(folder)) - set(self._good):
                files.remove_unless_open(old)

    def _asked(self) -> int:
        return distributed.current().largest(self._signal)

    def _stop(self, number: int) -> None:
        if number:
            raise errors.InterruptedRunError(_stopped(number, self._good), number)

    @contextmanager
    def watching(self) -> Iterator["CheckpointManager"]:
        """Catch SIGTERM and Ctrl-C: in a loop after the present step, elsewhere at once.

        A second one stops a single process at once. torchrun passes on what it is sent, so each of
        several processes may get the same signal twice; they always finish the step.

        Without checkpoints signals are left alone.
        """
        if self._checkpoints is None:
            yield self
            return
        with _signals_caught(self._receive):
            yield self

    def _receive(self, number: int, frame: FrameType | None) -> None:
        several = distributed.current().world_size > 1
        if self._phase is None or (self._signal and not several):
            self._stop(number)
        if not self._signal:
            advice = "" if several else "; once more to stop at once"
            note(f"stopping after the present step{advice}")
        self._signal = number


@contextmanager
def _signals_caught(receive: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Outside of the main thread signals are left alone, since Python allows nothing else."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, receive) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stopped(number: int, checkpoints: Sequence[Path]) -> str:
    name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
    if not distributed.current().is_main:
        return f"stopped by {name}"
    if not checkpoints:
        return f"stopped by {name}, before the first checkpoint was written"
    return (
        f"stopped by {name}; {checkpoints[-1]} holds the run: give the same command with "
        "--resume auto to go on"
    )
