"""Neurons of integers in PyTorch (docs/fixed-point.md), on float64 tensors that hold integers.

Every number stays below 2^53, so that sums, products and the division by a power of two before the
floor are exact. PyTorch has no convolution of integers on the CPU.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from soul_deploy.ir import NeuronSpec
from soul_deploy.nn.dynamics import Observer
from soul_deploy.runtime import equations


def simulate(
    spec: NeuronSpec, tensors: Mapping[str, Tensor], current: Tensor, steps: int, *, static: bool,
    observe: Observer | None,
) -> Tensor:  # fmt: skip
    """Spikes (T, B, ...) for a current (T, B, ...), or (B, ...) if `static`; float64.

    m / 2^k is a float64, and so is its product with a membrane below 2^30.
    """
    first = current if static else current[0]
    rank = first.dim() - 1
    threshold, subtract = (_beside(tensors.get(name), rank) for name in ("threshold", "subtract"))
    number = dict(spec.settings)
    leak, fires = number["multiplier"] / 2.0 ** number["shift"], equations.FIRE[spec.fire]
    reset = equations.FIXED_RESETS[int(number["reset"])]
    u = torch.zeros_like(first)
    spikes: list[Tensor] = []
    for t in range(steps):
        leaked = torch.floor(u * leak)
        if reset == "late":
            leaked = leaked - fires(u, threshold) * subtract
        u = (leaked + (current if static else current[t])).clamp(number["low"], number["high"])
        spike = fires(u, threshold).to(u.dtype)
        if reset == "hard":
            u = u * (1 - spike)
        elif reset == "soft":
            u = u - spike * subtract
        spikes.append(spike)
        if observe is not None:
            observe(t, spike, u)
    return torch.stack(spikes)


def _beside(numbers: Tensor | None, rank: int) -> Tensor | float:
    """Numbers () or (C,) beside neurons (B, C, ...) of a shape of `rank`."""
    if numbers is None:
        return 0.0
    return numbers.reshape(-1, *[1] * (rank - 1)) if numbers.dim() else numbers


def deployed(spec: NeuronSpec, tensors: Mapping[str, Tensor]) -> equations.FixedEquation:
    """The neuron as deployed."""
    number = {name: int(value) for name, value in spec.settings}
    held = {name: np.array(tensor.numpy(), np.int32) for name, tensor in tensors.items()}
    return equations.FixedEquation(
        number["multiplier"],
        number["shift"],
        number["low"],
        number["high"],
        held["threshold"],
        held.get("subtract", np.zeros((), np.int32)),
        spec.fire,
        equations.FIXED_RESETS[number["reset"]],
    )
