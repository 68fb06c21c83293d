"""Surrogate gradients: the forward pass is the firing rule, the backward pass a smooth stand-in.

Shapes and defaults are Soul's (soul/utils/surrogate): ATan alpha 2, Sigmoid alpha 4,
Rectangle alpha 1.
"""

import math
from typing import Any

import torch
from torch import Tensor

from soul_deploy.ir import SurrogateName
from soul_deploy.runtime.equations import FIRE, FireRule

DEFAULT_ALPHA: dict[SurrogateName, float] = {"atan": 2.0, "sigmoid": 4.0, "rectangle": 1.0}


def surrogate_gradient(name: SurrogateName, distance: Tensor, alpha: float) -> Tensor:
    """d(spike)/d(v) as a function of `distance` = v - v_threshold."""
    if name == "atan":
        return alpha / 2 / (1 + (math.pi / 2 * alpha * distance).square())
    if name == "sigmoid":
        level = (distance * alpha).sigmoid()
        return (1 - level) * level * alpha
    return (distance.abs() < alpha / 2).to(distance) / alpha


class _Fire(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, v: Tensor, threshold: float, fire: FireRule, name: SurrogateName, alpha: float
    ) -> Tensor:
        ctx.save_for_backward(v)
        ctx.threshold, ctx.name, ctx.alpha = threshold, name, alpha
        spike: Tensor = FIRE[fire](v, threshold)
        return spike.to(v.dtype)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (v,) = ctx.saved_tensors
        slope = surrogate_gradient(ctx.name, v - ctx.threshold, ctx.alpha)
        return slope.mul_(grad_outputs[0]), None, None, None, None


def fire_with_surrogate(
    v: Tensor, threshold: float, fire: FireRule, name: SurrogateName, alpha: float
) -> Tensor:
    """Spikes (0/1, the dtype of `v`), differentiable through the surrogate `name`."""
    spike: Tensor = _Fire.apply(v, threshold, fire, name, alpha)
    return spike
