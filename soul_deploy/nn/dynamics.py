"""The neuron families of `runtime.dynamics` in PyTorch, differentiable by surrogates."""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from soul_deploy.ir import NeuronSpec, SurrogateName
from soul_deploy.nn.surrogate import surrogate_gradient
from soul_deploy.runtime.dynamics.equation import DynamicsEquation, parts_of
from soul_deploy.runtime.dynamics.form import Operations, SendRule

Observer = Callable[[int, Tensor, Tensor], None]
"""Called after each step with (t, spikes, membrane potential after reset), both (B, ...)."""


class _Compare(torch.autograd.Function):
    """1 where the potential is above (or at) its level; the surrogate's slope backwards."""

    @staticmethod
    def forward(
        ctx: Any, p: Tensor, level: Any, rule: SendRule, name: SurrogateName, alpha: float
    ) -> Tensor:
        ctx.save_for_backward(p, level if isinstance(level, Tensor) else p.new_tensor(level))
        ctx.name, ctx.alpha = name, alpha
        fired: Tensor = p > level if rule == "gt" else p >= level
        return fired.to(p.dtype)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        p, level = ctx.saved_tensors
        slope = surrogate_gradient(ctx.name, p - level, ctx.alpha) * grad_outputs[0]
        by_level = (-slope).sum_to_size(level.shape) if ctx.needs_input_grad[1] else None
        return slope, by_level, None, None, None


def fire_with_surrogate(
    p: Tensor, level: Any, rule: SendRule, name: SurrogateName, alpha: float
) -> Tensor:
    """Spikes (0/1, the dtype of `p`), differentiable through the surrogate `name`."""
    spike: Tensor = _Compare.apply(p, level, rule, name, alpha)
    return spike


class _Round(torch.autograd.Function):
    """The nearest integer between two bounds; backwards 1 within the bounds (Soul's quant)."""

    @staticmethod
    def forward(ctx: Any, p: Tensor, low: float, high: float, upwards: bool) -> Tensor:
        ctx.save_for_backward(p)
        ctx.bounds = low, high
        within: Tensor = p.clamp(low, high)
        return torch.floor(within + 0.5) if upwards else torch.round(within)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (p,), (low, high) = ctx.saved_tensors, ctx.bounds
        inside: Tensor = (p >= low) & (p <= high)
        return grad_outputs[0] * inside, None, None, None


@cache
def torch_operations(name: SurrogateName, alpha: float, detach_reset: bool) -> Operations:
    """PyTorch's operations, with this surrogate."""

    def compare(rule: SendRule) -> Callable[..., Any]:
        return lambda p, level, low, high: fire_with_surrogate(p, level, rule, name, alpha)

    def choose(s: Tensor, a: Any, b: Tensor) -> Tensor:
        reset: Tensor = torch.where(s > 0, a, b) if detach_reset else b - s * b + s * a
        return reset

    return Operations(
        sigmoid=torch.sigmoid,
        exp=torch.exp,
        relu=torch.relu,
        minimum=lambda a, b: torch.minimum(a, torch.as_tensor(b, dtype=a.dtype, device=a.device)),
        choose=choose,
        send={
            "gt": compare("gt"),
            "ge": compare("ge"),
            "round": lambda p, level, low, high: _Round.apply(p, low, high, False),
            "round_up": lambda p, level, low, high: _Round.apply(p, low, high, True),
        },
    )


def simulate(
    spec: NeuronSpec, current: Tensor, steps: int, *, static: bool, observe: Observer | None
) -> Tensor:
    """What the neurons send, integers (T, B, ...), for a current (T, B, ...), or (B, ...) if
    `static`. The observer sees the first state variable after each step.
    """
    equation = spec.equation()
    assert isinstance(equation, DynamicsEquation)
    operations = torch_operations(spec.surrogate, spec.surrogate_alpha, spec.detach_reset)
    parts, send = parts_of(equation.family, operations), operations.send[equation.send]
    first, numbers = current if static else current[0], equation.constants
    state: tuple[Tensor, ...] = tuple(torch.full_like(first, value) for value in equation.start)
    sent: list[Tensor] = []
    for t in range(steps):
        state = parts.charge(current if static else current[t], state, numbers)
        s = send(*parts.decide(state, numbers), equation.low, equation.high)
        state = parts.settle(s.detach() if spec.detach_reset else s, state, numbers)
        sent.append(s)
        if observe is not None:
            observe(t, s, state[0])
    return torch.stack(sent)
