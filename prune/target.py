"""What a pruned network may cost: a target of synapses, synaptic operations or parameters."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, get_args

from soul_deploy.base import errors

Quantity = Literal["connectivity", "synops", "params"]
QUANTITIES: tuple[Quantity, ...] = get_args(Quantity)
UNITS: Mapping[Quantity, str] = MappingProxyType(
    {"connectivity": "synapses", "synops": "SynOps per sample", "params": "parameters"}
)
TOLERANCE = 0.05
"""How far from the target a network may end, relative to it."""


def within(measured: float, wanted: float) -> bool:
    """Whether an amount is within 5 % of the wanted one."""
    return abs(measured - wanted) <= TOLERANCE * wanted


@dataclass(frozen=True)
class Target:
    """A cost that the pruned network is to have.

    quantity  connectivity: live synapses; synops: SynOps per sample, the mean over the validation
              split; params: trained values of the compact network
    value     below 1: a share of what the dense network has; from 1: a count (not of connectivity)
    dense     what a share is of; None: what the network has that is pruned
    """

    quantity: Quantity
    value: float
    dense: float | None = None

    def __post_init__(self) -> None:
        errors.require_known("target", self.quantity, QUANTITIES)
        share = 0 < self.value < 1
        count = self.quantity != "connectivity" and 1 <= self.value < math.inf
        if not (share or count):
            rule = "must be above 0 and below 1 (0.05 leaves 5 %)"
            if self.quantity != "connectivity":
                rule = f"{rule}, or a count from 1"
            raise errors.UsageError(f"target_{self.quantity} {self.value:g} {rule}")

    @property
    def is_share(self) -> bool:
        """Whether the value is a share of the dense network's."""
        return self.value < 1

    def whole(self, start: float) -> float:
        """What a share is of, where the network that is pruned has `start`."""
        return start if self.dense is None else self.dense

    def amount(self, start: float) -> float:
        """What the pruned network is to have where it has `start` before."""
        return self.value * self.whole(start) if self.is_share else self.value

    def reached(self, measured: float, start: float) -> bool:
        """Whether `measured` is within 5 % of the wanted amount."""
        return within(measured, self.amount(start))

    def __str__(self) -> str:
        return f"target_{self.quantity} {self.value:g}"


@dataclass(frozen=True)
class Spent:
    """A target, what the network costs before pruning, and after it."""

    target: Target
    start: float
    cost: float

    @property
    def dense(self) -> float:
        """What shares are of."""
        return self.target.whole(self.start)

    @property
    def wanted(self) -> float:
        return self.target.amount(self.start)

    @property
    def reached(self) -> bool:
        """Whether the cost is within 5 % of what is wanted."""
        return self.target.reached(self.cost, self.start)

    def to_dict(self) -> dict[str, Any]:
        """As JSON data."""
        return {
            "quantity": self.target.quantity,
            "value": self.target.value,
            "dense": self.dense,
            "wanted": self.wanted,
            "cost": self.cost,
        }

    def __str__(self) -> str:
        """2,310 of 24,012 SynOps per sample, 9.6 %; wanted 2,401"""
        share = f", {self.cost / self.dense:.2%}" if self.dense else ""
        what = f"{self.cost:,.0f} of {self.dense:,.0f} {UNITS[self.target.quantity]}"
        return f"{what}{share}; wanted {self.wanted:,.0f}"
