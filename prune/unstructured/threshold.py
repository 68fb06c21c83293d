"""The last word on a budget: one common shift of all thresholds, measured exactly."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from soul_deploy.base.errors import TargetError
from soul_deploy.nn.graph_module import GraphModule
from soul_deploy.prune.target import TOLERANCE
from soul_deploy.prune.unstructured.budget import Budget
from soul_deploy.prune.unstructured.masks import Masks

NEAR = TOLERANCE / 5
"""How near to the target a search for a threshold ends, and the masks at the end of a search."""
BISECTIONS, ROUNDS = 24, 3
TIE = 1e-4
"""What settles equal alphas adds to one at most, as a share of the largest alpha."""
Dead = Callable[[], str | None]
"""What the output needs and the hard masks leave nothing of, or None."""


@dataclass(frozen=True)
class Adjustment:
    """A correction: `offset` was added to every alpha; told: what that took from where to where."""

    offset: float
    before: float
    after: float
    told: str

    def __str__(self) -> str:
        return f"{self.offset:+.3g} was added to every mask parameter, which takes {self.told}"


def shift(
    module: GraphModule, masks: Masks, budget: Budget, dead: Dead, near: float = TOLERANCE
) -> Adjustment | None:
    """Shift all alphas by one number until the hard masks keep to the budget.

    None if they are `near` it already, relative to it. Of equal alphas those of larger weights, or
    of earlier neurons, stay. A threshold that leaves nothing of a layer is too high. Where no shift
    keeps to the budget the masks stay as they are if they do. Else raises TargetError; it names the
    nearest amount that a shift gives, and that shift is kept. Hard masks are attached then.
    """
    before = budget.spending.exact()
    alive = dead() is None
    if alive and abs(before - budget.wanted) <= near * budget.wanted:
        return None
    found = _Thresholds(module, masks, budget, dead)
    # Of a sample less or more is spent than of all, so what is aimed at on the sample is too.
    scale = 1.0
    for _ in range(ROUNDS):
        found.bisect(budget.wanted * scale)
        sampled, after = budget.spending.sampled(), budget.spending.exact()
        found.note(after)
        if budget.reached(after) and dead() is None:
            told = f"{budget.told(before)} to {budget.told(after)}"
            return Adjustment(found.offset, before, after, told)
        scale = sampled / after if after > 0 else 1.0
    if alive and budget.reached(before):
        found.take_back()
        return None
    nearest = found.take_nearest()
    told = "none leaves all layers alive"
    if nearest is not None:
        told = f"the nearest that can be met is {budget.told(nearest)}"
    raise TargetError(
        f"{budget.target}: the masks leave {budget.told(before)}, and no common threshold of them "
        f"brings that within {TOLERANCE:.0%} of {budget.told(budget.wanted)} with all layers "
        f"alive; {told}. Search longer, or with a higher prune_lr"
    )


class _Thresholds:
    """The masks under one common shift or another."""

    def __init__(self, module: GraphModule, masks: Masks, budget: Budget, dead: Dead) -> None:
        self.masks, self.budget, self.dead = masks, budget, dead
        alphas = {name: mask.alpha.detach().clone() for name, mask in masks.named().items()}
        self.given = [alpha.clone() for alpha in alphas.values()]
        widest = max(float(alpha.abs().max()) for alpha in alphas.values())
        for name, alpha in alphas.items():
            size = -torch.arange(alpha.numel()).reshape(alpha.shape).to(alpha) + alpha.numel()
            if name in masks.weights:
                size = module.get_parameter(f"{name}.weight").detach().abs()
            alpha.add_(TIE * widest * size / size.max().clamp_min(1e-12))
        self.start = list(alphas.values())
        self.offset, self._nearest = 0.0, (float("inf"), 0.0, 0.0)

    def take_back(self) -> None:
        """Put all alphas back to where they were, ties unsettled."""
        with torch.no_grad():
            for mask, alpha in zip(self.masks, self.given, strict=True):
                mask.alpha.copy_(alpha)

    def move(self, offset: float) -> None:
        """Shift all alphas from where they began, ties settled."""
        self.offset = offset
        with torch.no_grad():
            for mask, start in zip(self.masks, self.start, strict=True):
                mask.alpha.copy_(start + offset)

    def bisect(self, aim: float) -> None:
        """Move to where the sample's amount is near `aim`, or as near as the search comes."""
        low = -max(float(alpha.max()) for alpha in self.start)
        high = -min(float(alpha.min()) for alpha in self.start) + 1e-6
        best = (float("inf"), high)
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            self.move(middle)
            if self.dead() is not None:
                low = middle
                continue
            amount = self.budget.spending.sampled()
            best = min(best, (abs(amount - aim), middle))
            if abs(amount - aim) <= NEAR * aim:
                break
            low, high = (low, middle) if amount > aim else (middle, high)
        self.move(best[1])

    def note(self, amount: float) -> None:
        """Remember the present shift if it is the nearest to the budget with all layers alive."""
        if self.dead() is None:
            distance = abs(amount - self.budget.wanted)
            self._nearest = min(self._nearest, (distance, self.offset, amount))

    def take_nearest(self) -> float | None:
        """Go to the nearest shift; its amount, or None, all alphas as at first, without one."""
        distance, offset, amount = self._nearest
        self.move(offset)
        return None if distance == float("inf") else amount
