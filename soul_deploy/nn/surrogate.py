"""Surrogate gradients: what stands in for the derivative of a spike.

Shapes and defaults are Soul's (soul/utils/surrogate): ATan alpha 2, Sigmoid alpha 4, Rectangle
alpha 1.
"""

import math

from torch import Tensor

from soul_deploy.ir import SurrogateName

DEFAULT_ALPHA: dict[SurrogateName, float] = {"atan": 2.0, "sigmoid": 4.0, "rectangle": 1.0}


def surrogate_gradient(name: SurrogateName, distance: Tensor, alpha: float) -> Tensor:
    """d(spike)/d(v) as a function of `distance` = v - v_threshold."""
    if name == "atan":
        return alpha / 2 / (1 + (math.pi / 2 * alpha * distance).square())
    if name == "sigmoid":
        level = (distance * alpha).sigmoid()
        return (1 - level) * level * alpha
    return (distance.abs() < alpha / 2).to(distance) / alpha
