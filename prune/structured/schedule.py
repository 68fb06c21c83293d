"""When masks change during the pruning loop, and how far pruning has come by then."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from soul_deploy.base.errors import UnknownNameError, UsageError

Ramp = Literal["constant", "linear", "cubic"]
RAMPS: tuple[Ramp, ...] = ("constant", "linear", "cubic")


@dataclass(frozen=True)
class PruneSchedule:
    """The pruning loop's epochs, counted from 1.

    ratio            p, the pruned fraction of all prunable channels at the end
    regrow_ratio     q, the fraction of channels chosen by gradient at each update; p + q < 1
    epochs           length of the loop, the frozen epochs included
    finetune_epochs  epochs at the end in which the masks stay as they are
    interval         epochs from one mask update to the next
    warmup           epochs before the first interval begins
    ramp             constant: p from the first update on; linear, cubic: rising to p
    """

    ratio: float = 0.1
    regrow_ratio: float = 0.1
    epochs: int = 50
    finetune_epochs: int = 0
    interval: int = 1
    warmup: int = 0
    ramp: Ramp = "constant"

    def __post_init__(self) -> None:
        p, q = self.ratio, self.regrow_ratio
        if not (p >= 0 and q >= 0 and p + q < 1):
            raise UsageError(
                f"prune_ratio {p:g} and regrow_ratio {q:g}: neither may be negative, and their "
                "sum must be below 1"
            )
        if self.ramp not in RAMPS:
            raise UnknownNameError("prune_ramp", self.ramp, RAMPS)
        if self.interval < 1 or self.warmup < 0 or self.finetune_epochs < 0:
            raise UsageError(
                f"prune_interval {self.interval} must be at least 1, prune_warmup {self.warmup} "
                f"and finetune_epochs {self.finetune_epochs} at least 0"
            )
        if not self.ratio_after:
            raise UsageError(
                f"no mask update fits into prune_epochs {self.epochs}: the first comes after "
                f"prune_warmup + prune_interval = {self.warmup + self.interval} epochs, and "
                f"finetune_epochs {self.finetune_epochs} follow the last"
            )

    @cached_property
    def ratio_after(self) -> Mapping[int, float]:
        """Pruned fraction set by the update after each epoch that has one, in order.

        The cubic ramp is that of Zhu and Gupta, "To prune, or not to prune" (2017), from 0 to p.
        """
        last = self.epochs - self.finetune_epochs
        at = range(self.warmup + self.interval, last + 1, self.interval)
        done = {epoch: (k + 1) / len(at) for k, epoch in enumerate(at)}
        power = {"constant": math.inf, "linear": 1, "cubic": 3}[self.ramp]
        return {epoch: self.ratio * (1 - (1 - x) ** power) for epoch, x in done.items()}

    @property
    def last_update(self) -> int:
        """The epoch after which the masks are final."""
        return max(self.ratio_after)
