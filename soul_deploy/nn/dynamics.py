"""The neuron families of `runtime.dynamics` in PyTorch, differentiable by surrogates."""

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from soul_deploy.ir import NeuronSpec, SurrogateName
from soul_deploy.nn.surrogate import surrogate_gradient
from soul_deploy.runtime.dynamics.equation import Number, parts_of
from soul_deploy.runtime.dynamics.form import Granularity, Operations, SendRule
from soul_deploy.runtime.dynamics.parallel import ParallelEquation
from soul_deploy.runtime.equations import Equation

Observer = Callable[[int, Tensor, Tensor], None]
"""Called after each step with (t, spikes, membrane potential after reset), both (B, ...)."""


FedBack = Callable[[Tensor], Tensor]
"""What spikes (B, ...) of the step before add to the current of their own population."""


def current_at(
    t: int, current: Tensor, *, static: bool, sent: list[Tensor], feedback: FedBack | None
) -> Tensor:
    """The current (B, ...) of step t: what arrives, then what is fed back of what was sent at the
    step before, of which there is none at the first.
    """
    x = current if static else current[t]
    if feedback is None:
        return x
    return x + feedback(sent[-1] if sent else torch.zeros_like(x))


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
    """The nearest integer between two bounds. Backwards 1 within the bounds, at which Soul's quant
    passes gradients too, and its IELIF, which rounds upwards, does not."""

    @staticmethod
    def forward(ctx: Any, p: Tensor, low: float, high: float, upwards: bool) -> Tensor:
        ctx.save_for_backward(p)
        ctx.low, ctx.high, ctx.open = low, high, upwards
        within: Tensor = p.clamp(low, high)
        return torch.floor(within + 0.5) if upwards else torch.round(within)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (p,) = ctx.saved_tensors
        closed: Tensor = (p >= ctx.low) & (p <= ctx.high)
        inside = (p > ctx.low) & (p < ctx.high) if ctx.open else closed
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
        held=torch.Tensor.detach if detach_reset else lambda s: s,
        above=lambda a, b: (a > b).to(a.dtype),
        send={
            "gt": compare("gt"),
            "ge": compare("ge"),
            "round": lambda p, level, low, high: _Round.apply(p, low, high, False),
            "round_up": lambda p, level, low, high: _Round.apply(p, low, high, True),
        },
    )


def shaped(tensor: Tensor, kind: Granularity, rank: int) -> Tensor:
    """A setting of the state dict as (T or 1, C or 1, ...) for neurons of a shape of `rank`."""
    if kind == "step":
        return tensor.reshape(-1, *[1] * rank)
    if kind == "step_channel":
        return tensor.reshape(*tensor.shape, *[1] * (rank - 1))
    if kind == "channel":
        return tensor.reshape(1, -1, *[1] * (rank - 1))
    return tensor.reshape(1, *(tensor.shape if kind == "neuron" else [1] * rank))


def numbers_of(spec: NeuronSpec, tensors: Mapping[str, Tensor], rank: int) -> tuple[Any, ...]:
    """The constants: floats, and tensors (T or 1, C or 1, ...) that follow from `tensors`."""
    assert spec.dynamics is not None
    held = {name: shaped(tensors[name], kind, rank) for name, kind in spec.tensors}
    operations = torch_operations(spec.surrogate, spec.surrogate_alpha, spec.detach_reset)
    return spec.dynamics.numbers(spec.named | held, operations)


def simulate_parallel(
    spec: NeuronSpec, tensors: Mapping[str, Tensor], current: Tensor, steps: int, *, static: bool,
    observe: Observer | None,
) -> Tensor:  # fmt: skip
    """As `simulate`, of neurons that mix the steps; the observer sees their potentials."""
    x = current.expand(steps, *current.shape) if static else current
    potential = torch.addmm(tensors["bias"], tensors["weight"], x.flatten(1)).view(x.shape)
    spikes = fire_with_surrogate(potential, 0.0, spec.fire, spec.surrogate, spec.surrogate_alpha)
    for t in range(steps if observe is not None else 0):
        assert observe is not None
        observe(t, spikes[t], potential[t])
    return spikes


@torch.no_grad()
def deployed(spec: NeuronSpec, tensors: Mapping[str, Tensor], rank: int) -> Equation:
    """The neuron as deployed: its numbers in float32, as PyTorch computes them."""
    single = {name: tensors[name].detach().float().cpu() for name, _ in spec.tensors}
    if spec.parallel:
        weight, bias = (np.ascontiguousarray(single[n].numpy()) for n in ("weight", "bias"))
        return ParallelEquation(weight, bias.reshape(-1), spec.fire)
    found: list[Number] = []
    for number in numbers_of(spec, single, rank):
        one = not isinstance(number, Tensor) or number.numel() == 1
        found.append(float(number) if one else np.ascontiguousarray(number.numpy()))
    return spec.equation(numbers=tuple(found))


def simulate(
    spec: NeuronSpec, tensors: Mapping[str, Tensor], current: Tensor, steps: int, *, static: bool,
    observe: Observer | None, feedback: FedBack | None = None,
) -> Tensor:  # fmt: skip
    """What the neurons send, integers (T, B, ...), for a current (T, B, ...), or (B, ...) if
    `static`. The observer sees the first state variable after each step.
    """
    first = current if static else current[0]
    constants, family = numbers_of(spec, tensors, first.dim() - 1), spec.dynamics
    assert family is not None
    operations = torch_operations(spec.surrogate, spec.surrogate_alpha, spec.detach_reset)
    parts, send = parts_of(family.name, operations), operations.send[spec.send]
    named = dict(zip(family.constants, constants, strict=True))
    starts = (named[s] if isinstance(s, str) else s for s in family.start)
    state: tuple[Tensor, ...] = tuple(torch.full_like(first, float(value)) for value in starts)
    sent: list[Tensor] = []
    for t in range(steps):
        numbers = tuple(c[min(t, len(c) - 1)] if isinstance(c, Tensor) else c for c in constants)
        x = current_at(t, current, static=static, sent=sent, feedback=feedback)
        state = parts.charge(x, state, numbers)
        s = send(*parts.decide(state, numbers), float(spec.edge.low), float(spec.edge.bound or 1))
        state = parts.settle(s, state, numbers)
        sent.append(s)
        if observe is not None:
            observe(t, s, state[0])
    return torch.stack(sent)
