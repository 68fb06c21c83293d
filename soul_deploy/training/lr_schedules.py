"""Learning-rate schedules, as Soul's two pruning scripts spell them.

    cosine | linear | warmup          over all epochs
    Cosine [T0 Tt Tmax]               cosine annealing with period Tmax, active from T0 to Tt
    Step m1 m2 ...                    times 0.1 at each milestone

Both spellings work in every command; names are case-insensitive. Stepped once per epoch.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from torch.optim import Optimizer, lr_scheduler

from soul_deploy.base.errors import UnknownNameError, UsageError

Kind = Literal["constant", "cosine", "linear", "warmup", "step"]
SPELLINGS = ("cosine", "linear", "warmup", "Cosine T0 Tt Tmax", "Step m1 m2 ...", "constant")


@dataclass(frozen=True)
class Schedule:
    """How the learning rate changes: a kind, and epochs where the kind takes them."""

    kind: Kind = "cosine"
    epochs: tuple[int, ...] = ()

    def moves_after(self, epoch: int) -> bool:
        """Whether the rate moves after epoch 0, 1, ...; only `Cosine T0 Tt Tmax` ever pauses."""
        return self.kind != "cosine" or not self.epochs or self.epochs[0] <= epoch < self.epochs[1]

    def __str__(self) -> str:
        return " ".join([self.kind, *map(str, self.epochs)])


def parse_schedule(words: Sequence[str]) -> Schedule:
    """From words such as ["cosine"] or ["Step", "60", "120"]; no words: constant.

    Raises UnknownNameError or UsageError.
    """
    tokens = [token for word in words for token in re.split(r"[\s,\[\]()'\"]+", word) if token]
    if not tokens:
        return Schedule("constant")
    name, *numbers = tokens
    kind = name.lower()
    if kind not in get_args(Kind):
        raise UnknownNameError("scheduler", name, SPELLINGS)
    odd = next((number for number in numbers if not number.isdecimal()), None)
    if odd is not None:
        raise UsageError(f"scheduler {name}: {odd!r} is not a whole number of epochs")
    epochs = tuple(map(int, numbers))
    if kind == "step":
        if not epochs or list(epochs) != sorted(set(epochs)) or epochs[0] < 1:
            raise UsageError("scheduler Step needs rising milestones, such as: Step 60 120")
    elif kind == "cosine" and epochs:
        if len(epochs) != 3 or not (epochs[0] < epochs[1] and epochs[2] >= 1):
            raise UsageError("scheduler Cosine takes none or three numbers T0 Tt Tmax with T0 < Tt")
    elif epochs:
        raise UsageError(f"scheduler {kind} takes no numbers, got {' '.join(map(str, epochs))}")
    return Schedule(kind, epochs)  # type: ignore[arg-type]


def make_scheduler(
    schedule: Schedule, optimizer: Optimizer, epochs: int
) -> lr_scheduler.LRScheduler:
    """The PyTorch scheduler of a run of `epochs`; `step` it after epochs where it `moves_after`.

    linear: times 0.1 every quarter of the epochs; warmup: cosine with warm restarts, the first
    after a tenth of the epochs, each period twice the one before (Soul, soul/utils/parser).
    """
    if schedule.kind == "linear":
        return lr_scheduler.StepLR(optimizer, step_size=max(1, int(epochs * 0.25)), gamma=0.1)
    if schedule.kind == "warmup":
        return lr_scheduler.CosineAnnealingWarmRestarts(
            optimizer, T_0=max(1, int(epochs * 0.1)), T_mult=2
        )
    if schedule.kind == "step":
        return lr_scheduler.MultiStepLR(optimizer, list(schedule.epochs), gamma=0.1)
    if schedule.kind == "cosine":
        period = schedule.epochs[2] if schedule.epochs else epochs
        return lr_scheduler.CosineAnnealingLR(optimizer, T_max=period)
    return lr_scheduler.LambdaLR(optimizer, lambda epoch: 1.0)
