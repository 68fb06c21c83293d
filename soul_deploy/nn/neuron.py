"""Spiking neurons as PyTorch modules; the equations stand in `soul_deploy.runtime.equations`.

The forward pass is the firing rule, the backward pass a smooth stand-in, the surrogate gradient.
Surrogates stand in surrogate.py, neurons with more state than a membrane in dynamics.py.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from soul_deploy.base.errors import UsageError
from soul_deploy.ir import NeuronSpec
from soul_deploy.nn import dynamics, fixed
from soul_deploy.nn.dynamics import Observer
from soul_deploy.nn.surrogate import surrogate_gradient
from soul_deploy.runtime import equations


class SpikingNeuron(nn.Module):
    """A population of neurons of one family.

    `forward` takes an input current of (T, B, C, H, W) or (T, B, N), or a static one without the
    time axis, (B, C, H, W) or (B, N), which is then applied at each of `time_steps` steps. It
    returns spikes (T, B, ...); of neurons that send integers these, times their unit. The membrane
    starts at rest at every call.
    """

    def __init__(
        self, spec: NeuronSpec, time_steps: int, shape: tuple[int, ...] | None = None
    ) -> None:
        """shape: of the neurons, (C, H, W) or (N,); needed where a setting is a tensor with one
        number for each channel or neuron."""
        super().__init__()
        self.spec = spec
        self.time_steps = time_steps
        shapes = spec.tensor_shapes("", () if shape is None else shape, time_steps)
        if spec.parallel:
            self._register_mixing(time_steps)
        if spec.integers:
            for name, sides in shapes.items():
                self.register_buffer(name.removeprefix("."), torch.zeros(sides))
        for name, kind in () if spec.parallel or spec.integers else spec.tensors:
            if shape is None and kind in ("channel", "neuron", "step_channel"):
                raise UsageError(f"{spec.family}: {name} per {kind}, but no shape is given")
            assert spec.dynamics is not None
            low, high = spec.dynamics.initial(spec.named, name, time_steps)
            drawn = torch.full(shapes[f".{name}"], low)
            drawn = drawn if low == high else drawn.uniform_(low, high)
            self.register_parameter(name, nn.Parameter(drawn))
        if spec.learned:
            self.w = nn.Parameter(torch.tensor(spec.first_w))

    def _register_mixing(self, time_steps: int) -> None:
        """A PSN's weight and bias, drawn as Soul and SpikingJelly do."""
        self.weight = nn.Parameter(torch.empty(time_steps, time_steps))
        self.bias = nn.Parameter(torch.full((time_steps, 1), -1.0))
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))

    def forward(self, current: Tensor) -> Tensor:
        sent, unit = self.simulate(current, static=current.dim() in (2, 4)), self.spec.unit
        return sent if unit == 1 else sent * unit

    def simulate(
        self,
        current: Tensor,
        *,
        static: bool,
        observe: Observer | None = None,
        feedback: dynamics.FedBack | None = None,
    ) -> Tensor:
        """Spikes (T, B, ...) for a current (T, B, ...), or (B, ...) if `static`.

        Of neurons that send integers these, not yet multiplied by their unit. feedback: what the
        spikes of a step add to the current of the next one.
        """
        spec = self.spec
        steps = self.time_steps if static else len(current)
        if spec.parallel:
            held = dict(self.named_parameters())
            return dynamics.simulate_parallel(
                spec, held, current, steps, static=static, observe=observe
            )
        if spec.integers:
            numbers = dict(self.named_buffers())
            return fixed.simulate(spec, numbers, current, steps, static=static, observe=observe)
        if spec.dynamics is not None:
            held = dict(self.named_parameters())
            return dynamics.simulate(
                spec, held, current, steps, static=static, observe=observe, feedback=feedback
            )
        differentiated = torch.is_grad_enabled() and current.requires_grad
        if spec.detach_reset and not spec.learned and differentiated and feedback is None:
            spikes_of_all: Tensor = _Unrolled.apply(current, spec, steps, static, observe)
            return spikes_of_all
        how: Any = {"static": static, "observe": observe, "feedback": feedback}
        return self._step_by_step(current, steps, **how)

    def membranes(self, current: Tensor) -> Tensor:
        """The membrane after each step (T, B, ...), for a current (T, B, ...); differentiable."""
        seen: list[Tensor] = []

        def observe(t: int, spikes: Tensor, v: Tensor) -> None:
            seen.append(v)

        if self.spec.dynamics is not None:
            self.simulate(current, static=False, observe=observe)
        else:
            self._step_by_step(current, len(current), static=False, observe=observe)
        return torch.stack(seen)

    def _step_by_step(
        self, current: Tensor, steps: int, *, static: bool, observe: Observer | None,
        feedback: dynamics.FedBack | None = None,
    ) -> Tensor:  # fmt: skip
        """As `simulate`, of neurons whose only state is their membrane."""
        spec = self.spec
        constant, threshold = self._constant(), self._threshold()
        rest, reset = equations.rest_of(spec.v_reset), equations.reset_rule(spec.v_reset)
        charge = equations.CHARGE[spec.charge]
        v = torch.full_like(current if static else current[0], rest)
        spikes: list[Tensor] = []
        for t in range(steps):
            x = dynamics.current_at(t, current, static=static, sent=spikes, feedback=feedback)
            v = charge(v, x, constant, rest, threshold)
            spike = dynamics.fire_with_surrogate(
                v, threshold, spec.fire, spec.surrogate, spec.surrogate_alpha
            )
            reset_spike = spike.detach() if spec.detach_reset else spike
            v = reset(v, reset_spike, spec.reset_target)
            spikes.append(spike)
            if observe is not None:
                observe(t, spike, v)
        return torch.stack(spikes)

    def _constant(self) -> Any:
        if self.spec.family != "plif":
            return self.spec.fixed_constant
        decay = self.w.sigmoid()
        return 1.0 - decay if self.spec.charge == "leak_multiply" else decay

    def _threshold(self) -> Any:
        return self.w.tanh() if self.spec.family == "ltmd" else self.spec.v_threshold

    def equation(self) -> equations.Equation:
        """The neuron as deployed, with its learned number in float32; not for those whose settings
        are tensors (`dynamics.deployed`)."""
        return self.spec.equation(learned_number(self.spec, self.w) if self.spec.learned else None)

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


def learned_number(spec: NeuronSpec, w: Tensor) -> float:
    """What a parameter `w` stands for, as PyTorch computes it in float32: a decay, a threshold."""
    single = w.detach().float().cpu()
    return float(np.float32((single.tanh() if spec.family == "ltmd" else single.sigmoid()).item()))
