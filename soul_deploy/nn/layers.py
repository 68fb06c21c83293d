"""Stateless layers that take one image batch or a sequence of them, and the readouts.

Each is the PyTorch layer of the same name (same parameters, same state-dict names) that also
accepts a leading time axis: (T, B, C, H, W) is treated as T·B images. A network written with them
runs in plain PyTorch and traces to a SpikingGraph.
"""

from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import ClassVar

import torch
from torch import Tensor, nn

from soul_deploy.base import errors, reduction
from soul_deploy.ir import MergeFunction


def split_time(merged: Tensor, sequence: Tensor) -> Tensor:
    """(T·B, ...) back to (T, B, ...), with T and B of `sequence`."""
    return merged.reshape(*sequence.shape[:2], *merged.shape[1:])


class _OverTime(nn.Module):
    """A layer of PyTorch that also takes its input, of one axis more, at all steps."""

    with_time: ClassVar[int] = 5

    def forward(self, input: Tensor) -> Tensor:
        sequence = input.dim() == self.with_time
        output: Tensor = super().forward(input.flatten(0, 1) if sequence else input)
        return split_time(output, input) if sequence else output


class Conv2d(_OverTime, nn.Conv2d):
    """(B, C, H, W) or (T, B, C, H, W)."""


class BatchNorm2d(_OverTime, nn.BatchNorm2d):
    """(B, C, H, W) or (T, B, C, H, W); statistics over time, batch and space."""


class BatchNorm1d(_OverTime, nn.BatchNorm1d):
    """(B, N) or (T, B, N); statistics over time and batch."""

    with_time: ClassVar[int] = 3


class MaxPool2d(_OverTime, nn.MaxPool2d):
    """(B, C, H, W) or (T, B, C, H, W)."""


class AvgPool2d(_OverTime, nn.AvgPool2d):
    """(B, C, H, W) or (T, B, C, H, W)."""


class AdaptiveAvgPool2d(_OverTime, nn.AdaptiveAvgPool2d):
    """(B, C, H, W) or (T, B, C, H, W)."""


class Flatten(nn.Module):
    """(..., C, H, W) to (..., C·H·W)."""

    def forward(self, input: Tensor) -> Tensor:
        return input.flatten(-3)


class Merge(nn.Module):
    """Two branches, element by element: "add", "and" or "iand" (see `soul_deploy.ir.Merge`).

    A static branch, (B, ...), is the same at every step of a sequence (T, B, ...).
    """

    def __init__(self, function: MergeFunction) -> None:
        super().__init__()
        self.function: MergeFunction = function

    def forward(self, identity: Tensor, branch: Tensor) -> Tensor:
        return merged(self.function, [identity, branch])


def merged(function: MergeFunction, branches: Sequence[Tensor]) -> Tensor:
    """The element-wise function of two or more branches, left to right."""
    result = branches[0]
    for branch in branches[1:]:
        if function == "add":
            result = result + branch
        elif function == "and":
            result = result * branch
        else:
            result = result * (1 - branch)
    return result


def spike_counts(spikes: Tensor, *, per_step: bool = False) -> Tensor:
    """Sums over time and space: (T, B, C, H, W) or (T, B, C) to (B, C); `per_step` keeps T."""
    if spikes.dim() == 5:
        spikes = spikes.sum(dim=(3, 4))
    return spikes if per_step else spikes.sum(dim=0)


def over_steps(scores: Tensor, over_time: reduction.OverTime) -> Tensor:
    """Class scores (B, classes) of the scores of each step (T, B, classes)."""
    if over_time == "last":
        return scores[-1]
    if over_time == "max":
        return scores.amax(dim=0)
    return scores.sum(dim=0) if over_time == "sum" else scores.mean(dim=0)


def membrane_scores(membranes: Tensor, over_time: reduction.OverTime) -> Tensor:
    """Class scores (B, classes) of the membranes after each step (T, B, classes), added in order,
    as soul_deploy/base/reduction.py says.
    """
    if over_time in ("last", "max"):
        return over_steps(membranes, over_time)
    total = reduce(torch.add, membranes.unbind(0))
    return total if over_time == "sum" else total * (1.0 / len(membranes))


def class_scores(
    spikes: Tensor, over_time: reduction.OverTime, weigh: Callable[[Tensor, int], Tensor]
) -> Tensor:
    """Class scores (B, classes) of spikes (T, B, C, ...), as soul_deploy/base/reduction.py says.

    weigh: the scores (..., classes) of counts (..., C) of so many steps.
    """
    if over_time == "max":
        return weigh(spike_counts(spikes, per_step=True), 1).amax(dim=0)
    read = spikes[-1:] if over_time == "last" else spikes
    return weigh(spike_counts(read), len(read))


def _space(spikes: Tensor) -> int:
    """H · W of maps (T, B, C, H, W), 1 of vectors."""
    return spikes.shape[3] * spikes.shape[4] if spikes.dim() == 5 else 1


def _known(over_time: reduction.OverTime) -> reduction.OverTime:
    errors.require_known("over_time", over_time, reduction.OVER_TIME)
    return over_time


class RateReadout(nn.Linear):
    """Soul's head: the mean over time and space, then linear; computed sum first, scale last.

    (T, B, C, H, W) or (T, B, C) to class scores (B, classes). over_time: "sum", "last" or "max"
    instead of the mean over time (soul_deploy/base/reduction.py).
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        over_time: reduction.OverTime = "mean",
    ) -> None:
        super().__init__(in_features, out_features, bias)
        self.over_time = _known(over_time)

    def forward(self, input: Tensor) -> Tensor:
        return class_scores(input, self.over_time, partial(self._weigh, _space(input)))

    def _weigh(self, space: int, counts: Tensor, steps: int) -> Tensor:
        divisor = reduction.divisor(self.over_time, steps) * space
        scores = counts @ self.weight.t() * (1.0 / divisor)
        times = reduction.biases(self.over_time, steps)
        return scores if self.bias is None else scores + times * self.bias


class VoteReadout(nn.Module):
    """Mean firing rate of `votes` output neurons a class: (T, B, classes·votes) to (B, classes).

    The readout of 6Conv2FC (Shi et al., ICLR 2024, published code, models/cifar10.py). over_time:
    "sum", "last" or "max" instead of the mean over time.
    """

    def __init__(self, classes: int, votes: int, *, over_time: reduction.OverTime = "mean") -> None:
        super().__init__()
        self.classes, self.votes = classes, votes
        self.over_time = _known(over_time)

    def forward(self, input: Tensor) -> Tensor:
        return class_scores(input, self.over_time, self._weigh)

    def _weigh(self, counts: Tensor, steps: int) -> Tensor:
        divisor = reduction.divisor(self.over_time, steps) * self.votes
        return vote_counts(counts, self.votes) * (1.0 / divisor)


def vote_counts(counts: Tensor, votes: int) -> Tensor:
    """Sum neighbouring groups of `votes` along the last axis."""
    return counts.reshape(*counts.shape[:-1], -1, votes).sum(dim=-1)
