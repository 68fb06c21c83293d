"""The loss of a task: MSE or cross-entropy, of the mean output or of each step's.

TET: Deng et al., "Temporal efficient training of spiking neural network via gradient re-weighting"
(ICLR 2022); as used by Shi et al., ICLR 2024 (published code, utils.py).
"""

from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from soul_deploy.base import reduction
from soul_deploy.base.errors import UsageError, require_known
from soul_deploy.ir import SpikingGraph
from soul_deploy.nn.layers import over_steps

Criterion = Literal["auto", "mse", "ce"]
CRITERIA: tuple[Criterion, ...] = get_args(Criterion)


@dataclass(frozen=True)
class Objective:
    """criterion "mse": against one-hot targets; "ce": cross-entropy; "auto": by the readout, mse
    for a vote that is no sum over time, ce for any other.

    tet: the mean over steps of (1 - tet_lambda) · criterion(output_t) + tet_lambda · MSE(output_t,
    tet_phi), instead of the criterion of the mean output.
    """

    criterion: Criterion = "auto"
    tet: bool = False
    tet_phi: float = 1.0
    tet_lambda: float = 0.0

    def __post_init__(self) -> None:
        require_known("criterion", self.criterion, CRITERIA)
        if not 0 <= self.tet_lambda <= 1:
            raise UsageError(f"TET_lambda {self.tet_lambda} must be from 0 to 1")

    def decided(self, graph: SpikingGraph) -> "Objective":
        """With the criterion that "auto" means for this network.

        Scores of a readout without weights are rates from 0 to 1: their softmax is nearly flat, so
        cross-entropy hardly moves such a network. Their sum over time is not.
        """
        if self.criterion != "auto":
            return self
        return replace(self, criterion="mse" if _gives_rates(graph) else "ce")

    def reason(self, graph: SpikingGraph) -> str:
        """One sentence on what "auto" means for this network; empty for another criterion."""
        if self.criterion != "auto":
            return ""
        if graph.readout.linear:
            return "loss: cross-entropy, since the network's readout is linear"
        if not _gives_rates(graph):
            return "loss: cross-entropy, since the network's scores are counts of spikes"
        return "loss: MSE, since the network votes: its scores are rates from 0 to 1 (Soul: CE)"

    def loss(
        self, outputs: Tensor, labels: Tensor, over_time: reduction.OverTime
    ) -> tuple[Tensor, Tensor]:
        """The batch's loss, and its class scores (B, classes).

        outputs (B, classes), with `tet` those of each step (T, B, classes), of which the readout
        makes the class scores by `over_time`; labels (B,). The criterion must be decided.
        """
        if not self.tet:
            return self.of_scores(outputs, labels), outputs
        return self.of_steps(outputs, labels), over_steps(outputs.detach(), over_time)

    def of_scores(self, scores: Tensor, labels: Tensor) -> Tensor:
        """The criterion of scores (B, classes) against integer labels (B,)."""
        assert self.criterion != "auto", "the network decides it first"
        if self.criterion == "ce":
            return F.cross_entropy(scores, labels)
        return F.mse_loss(scores, F.one_hot(labels, scores.shape[-1]).to(scores.dtype))

    def of_steps(self, steps: Tensor, labels: Tensor) -> Tensor:
        """TET's loss of per-step scores (T, B, classes)."""
        task = torch.stack([self.of_scores(scores, labels) for scores in steps]).mean()
        if self.tet_lambda == 0:
            return task
        calm = F.mse_loss(steps, torch.full_like(steps, self.tet_phi))
        return (1 - self.tet_lambda) * task + self.tet_lambda * calm


def _gives_rates(graph: SpikingGraph) -> bool:
    """Whether the scores are from 0 to 1: spikes without weights, not summed over time."""
    return not graph.readout.linear and graph.readout.over_time != "sum"
