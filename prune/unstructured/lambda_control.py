"""Steering the penalty's weight lambda so that a search ends at a wanted connectivity.

A lambda that suits one data set and one length of training says nothing for another. Here the hard
masks' connectivity follows a falling curve that reaches the target before the masks have set. From
then on, an epoch that ends far off is corrected by one common shift of all thresholds, and so is
the last one if it is more than 10 % off.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from soul_deploy import distributed
from soul_deploy.analysis.connectivity import Connectivity
from soul_deploy.base.errors import TargetError, UsageError
from soul_deploy.prune.unstructured.masks import Masks
from soul_deploy.training.state import Tree, number_of, require

BAND = 0.1
"""How far from the target the network may end, relative to it."""
FAR = 0.5
"""How far off an epoch may end, relative to the target, before the last."""
SETTLED = 0.6
"""The share of the search after which the curve is at the target."""
UPDATES = 100
"""How often lambda is set during a search, whatever its length."""
GAIN, DAMPING, RISE, FALL = 0.3, 4.0, 0.3, 1.0
BALANCE = 0.02
LOWEST, HIGHEST = 0.01 * BALANCE, 3.0
"""Bounds of lambda, as shares of the one whose pull equals the task's."""
BISECTIONS = 30


def check_target(target: float | None) -> None:
    """Raise UsageError unless 0 < target < 1."""
    if target is not None and not 0 < target < 1:
        raise UsageError(
            f"target_connectivity {target:g} must be above 0 and below 1 (0.05 leaves 5 % of the "
            "synapses)"
        )


def within_band(share: float, target: float) -> bool:
    """Whether a connectivity is within 10 % of the target."""
    return abs(share - target) <= BAND * target


class LambdaControl:
    """A damped proportional controller of log lambda.

    The wanted connectivity falls exponentially from the first one measured. Pruned entries hardly
    come back once their masks have closed, so lambda starts low and is mostly raised. It stays
    within bounds that are known from the first batch (`balance`: where its pull equals the task's):
    above them all masks close at the same pace, useful or not; below, it has no effect.
    """

    def __init__(self, target: float, start: float, balance: float) -> None:
        self.target = target
        self._value = start
        self._lowest, self._highest = min(start, LOWEST * balance), max(start, HIGHEST * balance)
        self._first: float | None = None
        self._last = 0.0

    def state(self) -> Tree:
        """Its value, bounds and memory."""
        return {
            "value": self._value,
            "lowest": self._lowest,
            "highest": self._highest,
            "first": self._first,
            "last": self._last,
        }

    @staticmethod
    def restored(target: float, tree: Tree) -> "LambdaControl":
        """The controller whose `state` was `tree`. Raises FileFormatError if it is none."""
        control = LambdaControl(target, number_of(tree, "value"), 0.0)
        control._lowest, control._highest = number_of(tree, "lowest"), number_of(tree, "highest")
        control._first = first = None if tree.get("first") is None else number_of(tree, "first")
        control._last = number_of(tree, "last")
        require(
            0 <= control._lowest <= control._value <= control._highest
            and (first is None or 0 <= first <= 1),
            f"lambda {control._value:g}, from {control._lowest:g} to {control._highest:g}, first "
            f"connectivity {first}: no state of the controller",
        )
        return control

    def wanted(self, progress: float) -> float:
        """The connectivity aimed at after a share of the search (0 to 1)."""
        part = min(1.0, progress / SETTLED)
        first = max(self.target, self._first or self.target)
        return float(self.target**part * first ** (1 - part))

    def update(self, progress: float, share: float) -> float:
        """Set lambda from the measured connectivity; returns it."""
        if self._first is None:
            self._first = share
        error = math.log(max(share, 1e-9) / self.wanted(progress))
        change = GAIN * error + DAMPING * (error - self._last)
        self._last = error
        self._value *= math.exp(min(RISE, max(-FALL, change)))
        self._value = min(self._highest, max(self._lowest, self._value))
        return self._value


def balanced_lambda(task: Tensor, masks: Masks) -> float:
    """The lambda whose penalty pulls at the average mask as hard as the task's loss.

    task: the loss of a batch, its graph still there; of several processes, each gives the loss of
    its part times its weight.
    """
    parameters = masks.parameters()
    found = torch.autograd.grad(task, parameters, retain_graph=True, allow_unused=True)
    pulls = [pull for pull in found if pull is not None]
    distributed.current().add_up(pulls)
    pushes = torch.autograd.grad(masks.penalty(), parameters)
    pull = sum(float(g.abs().sum()) for g in pulls)
    push = sum(float(g.abs().sum()) for g in pushes)
    if pull == 0 or push == 0:
        return 1e-11 / BALANCE
    return pull / push


@dataclass(frozen=True)
class Adjustment:
    """A correction: this was added to every alpha, from one connectivity to another."""

    offset: float
    before: float
    after: float


def adjust(masks: Masks, target: float, exact: Callable[[], Connectivity]) -> Adjustment | None:
    """Shift all alphas by one number until the hard masks are within 10 % of the target.

    None if they are already. Raises TargetError, alphas unchanged, if no shift does it (then
    many alphas are equal).
    """
    before = exact().share
    if within_band(before, target):
        return None
    start = {id(mask): mask.alpha.detach().clone() for mask in masks}

    def set_offset(offset: float) -> float:
        with torch.no_grad():
            for mask in masks:
                mask.alpha.copy_(start[id(mask)] + offset)
        return exact().share

    highest = max(float(mask.alpha.detach().max()) for mask in masks)
    lowest = min(float(mask.alpha.detach().min()) for mask in masks)
    low, high = -highest, -lowest + 1e-6
    aim = target * (1 - BAND / 2 if before < target else 1 + BAND / 2)
    found: list[tuple[float, float]] = []
    nearest = before
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        share = set_offset(middle)
        nearest = min(nearest, share, key=lambda value: abs(value - target))
        if within_band(share, target):
            found.append((abs(middle), middle))
        low, high = (low, middle) if share > aim else (middle, high)
    if found:
        _, offset = min(found)
        return Adjustment(offset, before, set_offset(offset))
    set_offset(0.0)
    raise TargetError(
        f"the search ended at connectivity {before:.4g}, and no common threshold of the masks "
        f"brings it within 10 % of {target:g} (the nearest gave {nearest:.4g}); search longer, "
        "with a higher prune_lr, or with a nonzero standard deviation in mask_init_factor"
    )
