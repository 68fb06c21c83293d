"""Notes, warnings and epochs of long work, through `logging`; the main process alone speaks.

The command line prints both. In a program Python's logging prints warnings on standard error, and
notes where asked to: `logging.basicConfig(level=logging.INFO)`.
"""

import json
import logging
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from soul_deploy import distributed
from soul_deploy.base import files, progress
from soul_deploy.training import trainer
from soul_deploy.training.state import Tree, list_of, record_of

LOGGER = logging.getLogger("soul_deploy")


def note(text: str) -> None:
    """Something to know."""
    if distributed.current().is_main:
        LOGGER.info("%s", text)


def warn(text: str) -> None:
    """A warning."""
    if distributed.current().is_main:
        LOGGER.warning("%s", text)


OnEpoch = Callable[[trainer.EpochResult], None]
"""Called after each epoch with its result."""


class EpochLog:
    """Tells of each of `epochs`, and keeps their results as JSON lines in the file `path`, if any.

    Entered, it tells that they begin, and at last that they are done. The main process writes.
    """

    def __init__(
        self,
        label: str,
        epochs: int,
        path: Path | None,
        *,
        on_epoch: OnEpoch | None = None,
        on_batch: trainer.Tick | None = None,
    ) -> None:
        self._label, self._epochs = label, epochs
        self._path = path if distributed.current().is_main else None
        self._on_epoch, self._on_batch = on_epoch, on_batch
        self._lines: list[str] = []

    def __enter__(self) -> "EpochLog":
        progress.status(f"{self._label}: begins")
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            progress.status(f"{self._label}: done, now what comes after it")

    def tick(self, done: int, batches: int, loss: float) -> None:
        """After each batch."""
        epoch = len(self._lines)
        share = (epoch * batches + done) / (self._epochs * batches)
        place = f"epoch {epoch + 1} of {self._epochs}, batch {done} of {batches}"
        progress.status(f"{self._label}: {place}, loss {loss:.3f}", share, self._label)
        if self._on_batch is not None:
            self._on_batch(done, batches, loss)

    def epoch(self, result: trainer.EpochResult, remark: str = "") -> None:
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
            files.write_text(self._path, "\n".join(self._lines) + "\n")
        if self._on_epoch is not None:
            self._on_epoch(result)

    def results(self) -> tuple[trainer.EpochResult, ...]:
        """Of all epochs so far."""
        plain = [json.loads(line) for line in self._lines]
        return tuple(
            record_of(trainer.EpochResult, {k: entry[k] for k in entry if k != "note"})
            for entry in plain
        )

    def state(self) -> Tree:
        """The lines so far."""
        return {"lines": list(self._lines)}

    def restore(self, tree: Tree) -> None:
        """Go on after these lines. Raises ValueError, TypeError or FileFormatError for others."""
        self._lines = [str(line) for line in list_of(tree, "lines")]
        self.results()
