"""What SCA measures while a network trains: channel activity and the gradients of masked scales."""

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor

from soul_deploy.module import GraphModule
from soul_deploy.prune.channels import Values
from soul_deploy.runtime.errors import UnknownNameError
from soul_deploy.training import BatchHooks

Score = Literal["spike_membrane", "spike", "membrane"]
Window = Literal["epoch", "last_batch"]
SCORES: tuple[Score, ...] = ("spike_membrane", "spike", "membrane")
WINDOWS: tuple[Window, ...] = ("epoch", "last_batch")


class RunningMean:
    """The mean of arrays (C,) over batches, each batch with the same weight; or the last one."""

    def __init__(self, window: Window) -> None:
        if window not in WINDOWS:
            raise UnknownNameError("window", window, WINDOWS)
        self.window = window
        self.reset()

    def reset(self) -> None:
        self.count = 0
        self.value = torch.zeros(0, dtype=torch.float64)

    def add(self, new: Tensor) -> None:
        new = new.double()
        if self.count == 0 or self.window == "last_batch":
            self.value = new
        else:
            self.value = self.value + (new - self.value) / (self.count + 1)
        self.count += 1


class ChannelStatistics(BatchHooks):
    """Scores of the populations `names` and regrowth gradients of masks, over training batches.

    Score of a channel: the mean over time, batch and space of S + |V|, spikes and the membrane
    potential after fire and reset (or of one of the two). Gradient: the mean of |dL/dg| where g is
    gamma times mask taken as an independent tensor, so it is not zero for a masked channel.
    `masks`: those of `names` unless others are given.
    """

    def __init__(
        self,
        names: Iterable[str],
        score: Score,
        score_window: Window,
        regrow_window: Window,
        masks: Iterable[str] | None = None,
    ) -> None:
        if score not in SCORES:
            raise UnknownNameError("score", score, SCORES)
        self.score = score
        self._scores = {name: RunningMean(score_window) for name in names}
        masked = self._scores if masks is None else masks
        self._gradients = {name: RunningMean(regrow_window) for name in masked}

    def forward(self, module: GraphModule, images: Tensor) -> Tensor:
        """Class scores; every step of the populations counts into this batch's score."""
        sums: dict[str, Tensor] = {}

        def observe(name: str, t: int, spikes: Tensor, v: Tensor) -> None:
            if name in self._scores:
                step = self._of_step(spikes.detach(), v.detach())
                sums[name] = step if t == 0 else sums[name] + step

        result = module.forward_observed(images, observe)
        for name, total in sums.items():
            self._scores[name].add(total / module.graph.time_steps)
        return result

    def after_backward(self, module: GraphModule) -> None:
        """Collect the gradients that this batch left."""
        for name, mean in self._gradients.items():
            gain = module.channel_masks[name].gain
            assert gain is not None and gain.grad is not None, name
            mean.add(gain.grad.detach().abs())

    def _of_step(self, spikes: Tensor, v: Tensor) -> Tensor:
        rest = (0, *range(2, spikes.dim()))
        total = torch.zeros((), dtype=torch.float64, device=spikes.device)
        if self.score != "membrane":
            total = total + spikes.mean(rest).double()
        if self.score != "spike":
            total = total + v.abs().mean(rest).double()
        return total

    def scores(self) -> dict[str, Values]:
        """Scores (C,) by population."""
        return {name: mean.value.cpu().numpy() for name, mean in self._scores.items()}

    def gradients(self) -> dict[str, Values]:
        """Mean |gradient| (C,) by mask."""
        return {name: mean.value.cpu().numpy() for name, mean in self._gradients.items()}

    def reset(self) -> None:
        """Begin a new window, after a mask update."""
        for mean in (*self._scores.values(), *self._gradients.values()):
            mean.reset()
