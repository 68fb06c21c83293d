"""What a person sees of long work, on standard error: a bar on a terminal, a line per epoch."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from soul_deploy import distributed
from soul_deploy.data import Data
from soul_deploy.runtime.files import write_text
from soul_deploy.runtime.warned import warnings_said
from soul_deploy.snapshot import Tree, list_of
from soul_deploy.training import EpochResult


class EpochLog:
    """A bar over all batches of `epochs`, and each epoch's result as a line and in a JSONL file."""

    def __init__(self, bar: Progress, label: str, epochs: int, path: Path | None) -> None:
        self._bar, self._label, self._epochs, self._path = bar, label, epochs, path
        self._task = bar.add_task(label, total=None)
        self._lines: list[str] = []

    def tick(self, done: int, batches: int, loss: float) -> None:
        """After each batch."""
        finished = len(self._lines) * batches + done
        self._bar.update(
            self._task,
            total=self._epochs * batches,
            completed=finished,
            description=f"{self._label}, loss {loss:.3f}",
        )

    def epoch(self, result: EpochResult, note: str = "") -> None:
        """After each epoch; the file is rewritten whole, so it is never half a line."""
        self._lines.append(json.dumps(asdict(result) | ({"note": note} if note else {})))
        self._bar.console.print(
            f"{self._label} {result.epoch}/{self._epochs}: loss {result.loss:.4f}, "
            f"train {result.train_accuracy:.2%}, validation {result.validation_accuracy:.2%}, "
            f"rate {result.learning_rate:.2e}, {result.seconds:.1f} s"
            + (f"; {note}" if note else "")
        )
        if self._path is not None:
            write_text(self._path, "\n".join(self._lines) + "\n")

    def state(self) -> Tree:
        """The lines so far."""
        return {"lines": list(self._lines)}

    def restore(self, tree: Tree) -> None:
        """Go on after these lines."""
        self._lines = [str(line) for line in list_of(tree, "lines")]


@contextmanager
def epoch_log(label: str, epochs: int, path: Path | None) -> Iterator[EpochLog]:
    """A running EpochLog; `path`: where its lines are kept as JSON, or None."""
    console = _console()
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn())
    with Progress(
        *columns,
        TimeRemainingColumn(),
        console=console,
        disable=console.quiet or not console.is_terminal,
    ) as bar:
        yield EpochLog(bar, label, epochs, path if distributed.current().is_main else None)


def note(text: str) -> None:
    """Something to know, on standard error."""
    _console().print(text, markup=False)


def warn(text: str) -> None:
    """A warning on standard error."""
    _console().print(f"Warning: {text}", markup=False)


def remark_on(data: Data, advice: str = "") -> Data:
    """`data`; what was done to its images is said, with `advice` behind it."""
    if data.remark:
        note(f"{data.remark}{advice}")
    return data


@contextmanager
def warnings_told(advice: str) -> Iterator[None]:
    """NetworkWarnings as lines of a command's own, ending in `advice` where they end in one."""
    with warnings_said(warn, advice):
        yield


def _console() -> Console:
    """Standard error; of several processes, only the main one speaks."""
    quiet = not distributed.current().is_main
    return Console(stderr=True, highlight=False, soft_wrap=True, quiet=quiet)
