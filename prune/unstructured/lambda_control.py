"""The penalty's weight lambda, by which a search ends at the budget it was given.

A lambda that suits one data set and one length of training says nothing for another, but one that
suits is best left alone: the masks then settle as they do in a search without a target. So it is
computed from the first batch, and corrected slowly. What is left to do at the end, and before if an
epoch ends far off, does one common shift of all thresholds (`shift`).
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from soul_deploy import distributed
from soul_deploy.base.errors import require
from soul_deploy.prune.unstructured.budget import Budget
from soul_deploy.prune.unstructured.masks import Masks
from soul_deploy.training.state import Tree, number_of

UPDATES = 100
"""How often lambda is set during a search, whatever its length."""
GAIN, FASTEST = 0.03, 0.1
"""Of the correction of log lambda per update: per unit of log excess, and at most."""
SETTLED = 0.3
"""The share of the search that masks are given to fall to the budget by themselves."""
UNKNOWN = 1e-11
"""Lambda where nothing pulls at the masks, or nothing is to be paid for them."""
BALANCE = 0.1
"""Where what is spent cannot be estimated yet, the penalty's pull as a share of the task's."""
SPAN = 1e4
"""How far lambda may go from where it began, either way, as a factor."""
BISECTIONS = 24


class LambdaControl:
    """A slow integral controller of log lambda.

    Masks that begin undecided keep half of all; in the first part of the search they may be
    anywhere between that and the budget. An excess above what is allowed raises lambda.
    """

    def __init__(self, start: float) -> None:
        self.start = self.value = start

    def state(self) -> Tree:
        """Where it began and is."""
        return {"start": self.start, "value": self.value}

    @staticmethod
    def restored(tree: Tree) -> "LambdaControl":
        """The controller whose `state` was `tree`. Raises FileFormatError if it is none."""
        control = LambdaControl(number_of(tree, "start"))
        control.value = number_of(tree, "value")
        require(
            0 < control.start < math.inf and 1 / SPAN <= control.value / control.start <= SPAN,
            f"lambda {control.value:g}, begun at {control.start:g}: no state of the controller",
        )
        return control

    @staticmethod
    def allowed(progress: float, dense: float) -> float:
        """The highest excess (1: the budget) after a share of the search; dense: without masks."""
        return max(1.0, math.pow(dense, max(0.0, 1 - progress / SETTLED)))

    def update(self, progress: float, excess: float, dense: float) -> float:
        """Set lambda from what is spent, relative to the budget; returns it."""
        most = self.allowed(progress, dense)
        error = math.log(max(excess, 1e-9) / min(max(excess, 1.0), most))
        change = min(FASTEST, max(-FASTEST, GAIN * error))
        self.set(self.value * math.exp(change))
        return self.value

    def set(self, value: float) -> None:
        """Set lambda, within bounds."""
        self.value = min(self.start * SPAN, max(self.start / SPAN, value))


def suited_lambda(task: Tensor, masks: Masks, budget: Budget) -> float:
    """The lambda at which a first small step of all alphas from 0 would leave the budget.

    An alpha rises if the task's loss pulls at it harder than lambda times the penalty pushes.

    task: the loss of a batch, its graph still there; of several processes, each gives the loss of
    its part times its weight.
    """
    parameters = masks.parameters()
    found = torch.autograd.grad(task, parameters, retain_graph=True, allow_unused=True)
    pulls = [
        torch.zeros_like(p) if g is None else -g for g, p in zip(found, parameters, strict=True)
    ]
    distributed.current().add_up(pulls)
    pushes = torch.autograd.grad(masks.penalty(), parameters)
    pull, push = (sum(float(g.abs().sum()) for g in found) for found in (pulls, pushes))
    if pull == 0 or push == 0:
        return UNKNOWN
    if not budget.spending.known:
        return BALANCE * pull / push
    low, high = math.log(pull / push / SPAN), math.log(pull / push * SPAN)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        step = [g - math.exp(middle) * e for g, e in zip(pulls, pushes, strict=True)]
        with _instead(parameters, step):
            low, high = (middle, high) if budget.excess() > 1 else (low, middle)
    return math.exp(high)


@contextmanager
def _instead(parameters: Sequence[Tensor], values: Sequence[Tensor]) -> Iterator[None]:
    """Other values for a while; the graph of a loss that is still there does not see them."""
    held = [parameter.data for parameter in parameters]
    try:
        for parameter, value in zip(parameters, values, strict=True):
            parameter.data = value
        yield
    finally:
        for parameter, value in zip(parameters, held, strict=True):
            parameter.data = value
