"""What SCA measures while a network trains: channel activity and the gradients of masked scales."""

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Literal, TypeAlias, get_args

import numpy as np
import torch
from torch import Tensor

from soul_deploy import distributed
from soul_deploy.base.errors import require, require_known
from soul_deploy.nn.graph_module import GraphModule
from soul_deploy.prune.structured.selection import Values
from soul_deploy.training.state import Bundle, Tree, array_of, count_of
from soul_deploy.training.trainer import BatchHooks

Score = Literal["spike_membrane", "spike", "membrane", "random", "l1", "bn_gamma", "synops"]
Window = Literal["epoch", "last_batch"]
SCORES: tuple[Score, ...] = get_args(Score)
ACTIVITY: Mapping[str, tuple[bool, bool]] = MappingProxyType(
    {"spike_membrane": (True, True), "spike": (True, False), "membrane": (False, True)}
)
"""The scores measured while it trains: whether spikes and the membrane potential count. How each
of the others is measured stands in `ranking.MEASURED`."""
WINDOWS: tuple[Window, ...] = ("epoch", "last_batch")
Names: TypeAlias = Iterable[str] | Mapping[str, int]
"""Populations or masks, perhaps with how many channels each has."""


class RunningMean:
    """The mean of arrays (C,) over batches, each batch with the same weight; or the last one."""

    def __init__(self, window: Window, channels: int | None = None) -> None:
        """channels: C, which a state that is restored must have; None: any."""
        require_known("window", window, WINDOWS)
        self.window, self.channels = window, channels
        self.reset()

    def reset(self) -> None:
        self.count = 0
        self.value = torch.zeros(0, dtype=torch.float64)

    def add(self, new: Tensor) -> None:
        new = new.double()
        if self.count == 0 or self.window == "last_batch":
            self.value = new
        else:
            before = self.value.to(new.device)
            self.value = before + (new - before) / (self.count + 1)
        self.count += 1

    def state(self) -> Tree:
        """The mean so far (C,), and over how many batches."""
        return {"count": self.count, "value": self.value}

    def restore(self, tree: Tree) -> None:
        count, value = count_of(tree, "count"), array_of(tree, "value")
        needed = (self.channels if self.channels is not None else value.size,) if count else (0,)
        fits, has = value.shape == needed and value.dtype == np.float64, value.dtype
        told = f"a mean over {count} batches is {has}{value.shape}, needs float64{needed}"
        require(fits, told)
        self.count, self.value = count, torch.from_numpy(np.array(value))


class ChannelStatistics(BatchHooks, Bundle):
    """Scores of the populations `names` and regrowth gradients of masks, over training batches.

    Score of a channel: the mean over time, batch and space of |S| + |V|, what is sent and the
    membrane potential after fire and reset (or of one of the two). S of neurons that send integers
    is these, not the fractions they stand for; V is the first state variable, of PSN, which has
    none, the potential W x + b. A score that is not measured while the
    network trains (see ACTIVITY) has none here. Gradient: the mean of |dL/dg| where g is
    gamma times mask taken as an independent tensor, so it is not zero for a masked channel.
    `masks`: those of `names` unless others are given. Both may say how many channels each has; what
    is restored must then have as many.
    """

    def __init__(
        self,
        names: Names,
        score: Score,
        score_window: Window,
        regrow_window: Window,
        masks: Names | None = None,
    ) -> None:
        require_known("score", score, SCORES)
        self.score = score
        names = _channels(names)
        masks = names if masks is None else _channels(masks)
        seen = names if score in ACTIVITY else {}
        self._scores = {name: RunningMean(score_window, count) for name, count in seen.items()}
        self._gradients = {name: RunningMean(regrow_window, count) for name, count in masks.items()}
        parts = {"scores": Bundle(self._scores), "gradients": Bundle(self._gradients)}
        Bundle.__init__(self, parts)

    def forward(
        self, module: GraphModule, images: Tensor, weight: float = 1.0, *, per_step: bool = False
    ) -> Tensor:
        """Class scores; every step of the populations counts into this batch's score.

        weight: of this process's part of the batch; the score is the whole batch's. per_step: class
        scores of each step, (T, B, classes).
        """
        if not self._scores:
            return module.forward_observed(images, None, per_step=per_step)
        sums: dict[str, Tensor] = {}

        def observe(name: str, t: int, spikes: Tensor, v: Tensor) -> None:
            if name in self._scores:
                step = self._of_step(spikes.detach(), v.detach())
                sums[name] = step if t == 0 else sums[name] + step

        result = module.forward_observed(images, observe, per_step=per_step)
        scores = [total / module.graph.time_steps * weight for total in sums.values()]
        distributed.current().add_up(scores)
        for name, score in zip(sums, scores, strict=True):
            self._scores[name].add(score)
        return result

    def after_backward(self, module: GraphModule) -> None:
        """Collect the gradients that this batch left, in all processes."""
        found: dict[str, Tensor] = {}
        for name in self._gradients:
            gain = module.channel_masks[name].gain
            assert gain is not None and gain.grad is not None, name
            found[name] = gain.grad.detach().clone()
        distributed.current().add_up(found.values())
        for name, gradient in found.items():
            self._gradients[name].add(gradient.abs())

    def _of_step(self, spikes: Tensor, v: Tensor) -> Tensor:
        rest = (0, *range(2, spikes.dim()))
        total = torch.zeros((), dtype=torch.float64, device=spikes.device)
        counts, potential = ACTIVITY[self.score]
        if counts:
            total = total + spikes.abs().mean(rest).double()
        if potential:
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


def _channels(names: Names) -> Mapping[str, int | None]:
    return names if isinstance(names, Mapping) else dict.fromkeys(names)
