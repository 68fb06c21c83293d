"""Spiking neurons as PyTorch modules; the equations stand in `soul_deploy.runtime.equations`."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from soul_deploy.graph import NeuronSpec
from soul_deploy.runtime.equations import CHARGE, NeuronEquation, reset_hard, reset_soft
from soul_deploy.surrogate import fire_with_surrogate

Observer = Callable[[int, Tensor, Tensor], None]
"""Called after each step with (t, spikes, membrane potential after reset), both (B, ...)."""


class SpikingNeuron(nn.Module):
    """A population of IF, LIF or PLIF neurons.

    `forward` takes an input current of (T, B, C, H, W) or (T, B, N), or a static one without the
    time axis, (B, C, H, W) or (B, N), which is then applied at each of `time_steps` steps. It
    returns spikes (T, B, ...). The membrane starts at rest at every call.
    """

    def __init__(self, spec: NeuronSpec, time_steps: int) -> None:
        super().__init__()
        self.spec = spec
        self.time_steps = time_steps
        if spec.learned:
            self.w = nn.Parameter(torch.tensor(-math.log(spec.tau - 1.0)))

    def forward(self, current: Tensor) -> Tensor:
        static = current.dim() in (2, 4)
        return self.simulate(current, static=static)

    def simulate(self, current: Tensor, *, static: bool, observe: Observer | None = None) -> Tensor:
        """Spikes (T, B, ...) for a current (T, B, ...), or (B, ...) if `static`."""
        spec = self.spec
        steps = self.time_steps if static else len(current)
        constant = self._constant()
        rest = 0.0 if spec.v_reset is None else spec.v_reset
        charge = CHARGE[spec.charge]
        v = torch.full_like(current if static else current[0], rest)
        spikes: list[Tensor] = []
        for t in range(steps):
            v = charge(v, current if static else current[t], constant, rest)
            spike = fire_with_surrogate(
                v, spec.v_threshold, spec.fire, spec.surrogate, spec.surrogate_alpha
            )
            gate = spike.detach() if spec.detach_reset else spike
            if spec.v_reset is None:
                v = reset_soft(v, gate, spec.v_threshold)
            else:
                v = reset_hard(v, gate, spec.v_reset)
            spikes.append(spike)
            if observe is not None:
                observe(t, spike, v)
        return torch.stack(spikes)

    def _constant(self) -> Any:
        if not self.spec.learned:
            return self.spec.tau
        decay = self.w.sigmoid()
        return 1.0 - decay if self.spec.charge == "leak_multiply" else decay

    def equation(self) -> NeuronEquation:
        """The neuron as deployed, with its learned decay in float32."""
        if not self.spec.learned:
            return self.spec.equation()
        return self.spec.equation(learned_decay(self.w))

    def extra_repr(self) -> str:
        return f"{self.spec}, time_steps={self.time_steps}"


def learned_decay(w: Tensor) -> float:
    """sigmoid(w) as PyTorch computes it in float32."""
    return float(np.float32(w.detach().float().cpu().sigmoid().item()))
