"""Numbers of epochs for tensorboard, which is an extra."""

from collections.abc import Mapping
from dataclasses import asdict
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from soul_deploy import distributed
from soul_deploy.base import errors
from soul_deploy.training.messages import OnEpoch
from soul_deploy.training.trainer import EpochResult


def check_tensorboard(wanted: bool) -> None:
    """Raise UsageError if it is wanted and not installed."""
    if wanted and find_spec("tensorboard") is None:
        raise errors.UsageError(
            "--tensorboard: the package tensorboard is not installed; pip install tensorboard, or "
            "use the table of epochs in --log_dir"
        )


class Scalars:
    """Writes numbers into a folder of event files; of several processes the main one writes.

    As `on_epoch` it takes the results of one training after the other. Raises UsageError without
    tensorboard.
    """

    def __init__(self, folder: Path) -> None:
        check_tensorboard(True)
        self._writer: Any = None
        self._before, self._last = 0, 0
        if distributed.current().is_main:
            writers = import_module("torch.utils.tensorboard")
            self._writer = writers.SummaryWriter(str(folder))

    def __call__(self, result: EpochResult) -> None:
        """An epoch's result; where epochs begin anew, steps go on."""
        if result.epoch <= self._last:
            self._before += self._last
        self._last = result.epoch
        self.add(asdict(result), self._before + result.epoch)

    def add(self, row: Mapping[str, object], step: int) -> None:
        """The numbers of a row, by name."""
        if self._writer is not None:
            for name, value in row.items():
                if isinstance(value, int | float) and name != "epoch":
                    self._writer.add_scalar(name, value, step)
            self._writer.flush()


def scalars_of(log: Path, *, wanted: bool) -> OnEpoch | None:
    """What writes into the folder named as `log` without its suffix; None unless wanted."""
    return Scalars(log.with_suffix("")) if wanted else None
