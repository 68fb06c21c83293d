"""What training says, on standard error: how far it is, a line per epoch, notes and warnings."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from soul_deploy import distributed
from soul_deploy.base.files import write_text
from soul_deploy.base.progress import status
from soul_deploy.base.warned import warnings_said
from soul_deploy.data.datasets import Data
from soul_deploy.training.messages import note, warn
from soul_deploy.training.state import Tree, list_of
from soul_deploy.training.trainer import EpochResult


class EpochLog:
    """How far `epochs` are, and each epoch's result as a line and in a JSONL file."""

    def __init__(self, label: str, epochs: int, path: Path | None) -> None:
        self._label, self._epochs, self._path = label, epochs, path
        self._lines: list[str] = []

    def tick(self, done: int, batches: int, loss: float) -> None:
        """After each batch."""
        epoch = len(self._lines)
        share = (epoch * batches + done) / (self._epochs * batches)
        place = f"epoch {epoch + 1} of {self._epochs}, batch {done} of {batches}"
        status(f"{self._label}: {place}, loss {loss:.3f}", share, self._label)

    def epoch(self, result: EpochResult, remark: str = "") -> None:
        """After each epoch; the file is rewritten whole, so it is never half a line."""
        entry = asdict(result) | ({"note": remark} if remark else {})
        self._lines.append(json.dumps(entry))
        note(
            f"{self._label} {result.epoch}/{self._epochs}: loss {result.loss:.4f}, "
            f"train {result.train_accuracy:.2%}, validation {result.validation_accuracy:.2%}, "
            f"learning rate {result.learning_rate:.2e}, {result.seconds:.1f} s"
            + (f"; {remark}" if remark else "")
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
    status(f"{label}: begins")
    yield EpochLog(label, epochs, path if distributed.current().is_main else None)
    status(f"{label}: done, now what comes after it")


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
