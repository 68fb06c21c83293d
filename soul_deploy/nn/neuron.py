"""Spiking neurons as PyTorch modules; the equations stand in `soul_deploy.runtime.equations`.

The forward pass is the firing rule, the backward pass a smooth stand-in, the surrogate gradient.
Shapes and defaults of surrogates are Soul's (soul/utils/surrogate): ATan alpha 2, Sigmoid alpha 4,
Rectangle alpha 1.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from soul_deploy.ir import NeuronSpec, SurrogateName
from soul_deploy.runtime import equations

Observer = Callable[[int, Tensor, Tensor], None]
"""Called after each step with (t, spikes, membrane potential after reset), both (B, ...)."""


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
        ctx: Any,
        v: Tensor,
        threshold: float,
        fire: equations.FireRule,
        name: SurrogateName,
        alpha: float,
    ) -> Tensor:
        ctx.save_for_backward(v)
        ctx.threshold, ctx.name, ctx.alpha = threshold, name, alpha
        spike: Tensor = equations.FIRE[fire](v, threshold)
        return spike.to(v.dtype)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (v,) = ctx.saved_tensors
        slope = surrogate_gradient(ctx.name, v - ctx.threshold, ctx.alpha)
        return slope.mul_(grad_outputs[0]), None, None, None, None


def fire_with_surrogate(
    v: Tensor, threshold: float, fire: equations.FireRule, name: SurrogateName, alpha: float
) -> Tensor:
    """Spikes (0/1, the dtype of `v`), differentiable through the surrogate `name`."""
    spike: Tensor = _Fire.apply(v, threshold, fire, name, alpha)
    return spike


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
        return self.simulate(current, static=current.dim() in (2, 4))

    def simulate(self, current: Tensor, *, static: bool, observe: Observer | None = None) -> Tensor:
        """Spikes (T, B, ...) for a current (T, B, ...), or (B, ...) if `static`."""
        spec = self.spec
        steps = self.time_steps if static else len(current)
        differentiated = torch.is_grad_enabled() and current.requires_grad
        if spec.detach_reset and not spec.learned and differentiated:
            spikes_of_all: Tensor = _Unrolled.apply(current, spec, steps, static, observe)
            return spikes_of_all
        constant = self._constant()
        rest, reset = equations.rest_of(spec.v_reset), equations.reset_rule(spec.v_reset)
        charge = equations.CHARGE[spec.charge]
        v = torch.full_like(current if static else current[0], rest)
        spikes: list[Tensor] = []
        for t in range(steps):
            v = charge(v, current if static else current[t], constant, rest, spec.v_threshold)
            spike = fire_with_surrogate(
                v, spec.v_threshold, spec.fire, spec.surrogate, spec.surrogate_alpha
            )
            reset_spike = spike.detach() if spec.detach_reset else spike
            v = reset(v, reset_spike, spec.reset_target)
            spikes.append(spike)
            if observe is not None:
                observe(t, spike, v)
        return torch.stack(spikes)

    def _constant(self) -> Any:
        if not self.spec.learned:
            return self.spec.fixed_constant
        decay = self.w.sigmoid()
        return 1.0 - decay if self.spec.charge == "leak_multiply" else decay

    def equation(self) -> equations.NeuronEquation:
        """The neuron as deployed, with its learned decay in float32."""
        return self.spec.equation(learned_decay(self.w) if self.spec.learned else None)

    def extra_repr(self) -> str:
        return f"{self.spec}, time_steps={self.time_steps}"


SLOPES: dict[equations.ChargeForm, Callable[[float], tuple[float, float]]] = {
    "integrate": lambda a: (1.0, 1.0),
    "soul_lif_decay": lambda a: (1.0 - 1.0 / a, 1.0 / a),
    "soul_lif": lambda a: (1.0 - 1.0 / a, 1.0),
    "decay_divide": lambda a: (1.0 - 1.0 / a, 1.0 / a),
    "leak_subtract_divide": lambda a: (1.0 - 1.0 / a, 1.0),
    "leak_multiply": lambda a: (a, 1.0),
    "leak_multiply_late": lambda a: (a, 1.0),
}
"""For each form with a fixed constant a: the derivatives of the charge by v and by x."""


class _Unrolled(torch.autograd.Function):
    """All time steps of a population as one operation: what `simulate` does, with less memory.

    Forward, the same operations in the same order. Backward, the recurrence written out: with g
    the gradient of the membrane after reset, h the charged membrane and s the spike, the gradient
    of h is surrogate(h - threshold) · grad(s) + g · (1 - s), without (1 - s) for soft reset.
    """

    @staticmethod
    def forward(
        ctx: Any, current: Tensor, spec: NeuronSpec, steps: int, static: bool,
        observe: Observer | None,
    ) -> Tensor:  # fmt: skip
        rest, reset = equations.rest_of(spec.v_reset), equations.reset_rule(spec.v_reset)
        charge, fire = equations.CHARGE[spec.charge], equations.FIRE[spec.fire]
        constant = spec.fixed_constant
        first = current if static else current[0]
        charged = current.new_empty((steps, *first.shape))
        spikes = torch.empty_like(charged)
        v = torch.full_like(first, rest)
        for t in range(steps):
            h = charge(v, current if static else current[t], constant, rest, spec.v_threshold)
            charged[t], spikes[t] = h, fire(h, spec.v_threshold)
            v = reset(h, spikes[t], spec.reset_target)
            if observe is not None:
                observe(t, spikes[t], v)
        ctx.save_for_backward(charged, spikes)
        ctx.spec, ctx.static = spec, static
        return spikes

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        charged, spikes = ctx.saved_tensors
        spec: NeuronSpec = ctx.spec
        by_v, by_x = SLOPES[spec.charge](spec.fixed_constant)
        (wanted,) = grad_outputs
        grad = torch.zeros_like(charged[0]) if ctx.static else torch.empty_like(charged)
        after_reset: Tensor | None = None
        for t in reversed(range(len(charged))):
            distance = charged[t] - spec.v_threshold
            slope = surrogate_gradient(spec.surrogate, distance, spec.surrogate_alpha)
            grad_h = slope.mul_(wanted[t])
            if after_reset is not None:
                kept = 1 if spec.v_reset is None else 1 - spikes[t]
                grad_h.add_(after_reset.mul_(kept))
            if ctx.static:
                grad.add_(grad_h, alpha=by_x)
            else:
                torch.mul(grad_h, by_x, out=grad[t])
            after_reset = grad_h.mul_(by_v)
        return grad, None, None, None, None


def learned_decay(w: Tensor) -> float:
    """sigmoid(w) as PyTorch computes it in float32."""
    return float(np.float32(w.detach().float().cpu().sigmoid().item()))
