"""What a search minimises besides the penalty: MSE or cross-entropy, of the mean or of each step.

TET: Deng et al., ICLR 2022; as used by Shi et al. (published code, utils.py).
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from soul_deploy.base.errors import UnknownNameError, UsageError
from soul_deploy.nn.graph_module import GraphModule

Criterion = Literal["mse", "ce"]
CRITERIA: tuple[Criterion, ...] = ("mse", "ce")


@dataclass(frozen=True)
class Objective:
    """criterion "mse": against one-hot targets; "ce": cross-entropy.

    tet: the mean over steps of (1 - tet_lambda) · criterion(output_t) + tet_lambda · MSE(output_t,
    tet_phi), instead of the criterion of the mean output.
    """

    criterion: Criterion = "mse"
    tet: bool = False
    tet_phi: float = 1.0
    tet_lambda: float = 0.0

    def __post_init__(self) -> None:
        if self.criterion not in CRITERIA:
            raise UnknownNameError("criterion", self.criterion, CRITERIA)
        if not 0 <= self.tet_lambda <= 1:
            raise UsageError(f"TET_lambda {self.tet_lambda} must be from 0 to 1")

    def loss(self, module: GraphModule, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The batch's loss, and its class scores (B, classes)."""
        if not self.tet:
            scores = module(images)
            return self.of_scores(scores, labels), scores
        steps = module.per_step(images)
        return self.of_steps(steps, labels), steps.detach().mean(0)

    def of_scores(self, scores: Tensor, labels: Tensor) -> Tensor:
        """The criterion of scores (B, classes) against integer labels (B,)."""
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
