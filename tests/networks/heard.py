"""What a network's neurons send while its own tool runs it, and weights with which all fire."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
Kinds = type[nn.Module] | tuple[type[nn.Module], ...]


def neurons_of(network: nn.Module, kinds: Kinds) -> dict[str, nn.Module]:
    return {name: m for name, m in network.named_modules() if isinstance(m, kinds)}


def first_of(output: Any) -> Tensor:
    """Spikes, of a neuron that returns its states beside them."""
    found: Tensor = output[0] if isinstance(output, tuple) else output
    return found


def heard(network: nn.Module, kinds: Kinds, run: Callable[[], None]) -> dict[str, Tensor]:
    """What each neuron returned in `run`: at one call (T, B, ...), or stacked, call by call."""
    sent: dict[str, list[Tensor]] = {}

    def listen(name: str) -> Callable[..., None]:
        def hear(module: nn.Module, inputs: Any, output: Any) -> None:
            sent.setdefault(name, []).append(first_of(output).detach().clone())

        return hear

    hooks = [m.register_forward_hook(listen(n)) for n, m in neurons_of(network, kinds).items()]
    try:
        with torch.no_grad():
            run()
    finally:
        for hook in hooks:
            hook.remove()
    return {name: torch.stack(v) if len(v) > 1 else v[0] for name, v in sent.items()}


def livened(network: nn.Module, kinds: Kinds, run: Callable[[], None], level: float = 0.6) -> None:
    """Weights and batch norms with which all neurons fire on what `run` shows.

    Batch norms get random factors and the statistics of a run. Where no batch norm stands in front
    of a neuron, the weights there are scaled until its current has the spread `level`.
    """
    _normed(network, run)
    for name, weighs in _order(network, kinds, run):
        if not isinstance(weighs, nn.Linear | nn.Conv2d):
            continue
        with torch.no_grad():
            current = _current(network, name, run)
            factor = level / max(float(current.std()), 1e-6)
            weighs.weight.mul_(factor)
            if weighs.bias is not None:
                weighs.bias.mul_(factor).add_(level / 2 - float(current.mean()) * factor)


def _normed(network: nn.Module, run: Callable[[], None]) -> None:
    norms = [m for m in network.modules() if isinstance(m, NORMS)]
    if not norms:
        return
    with torch.no_grad():
        for norm in norms:
            norm.momentum = None  # the mean over all that it is given
            norm.reset_running_stats()
            norm.weight.uniform_(0.8, 1.6)
            norm.bias.uniform_(0.0, 0.8)
        network.train()
        run()
    network.eval()


def _order(network: nn.Module, kinds: Kinds, run: Callable[[], None]) -> list[tuple[str, Any]]:
    """Neurons in order of their first call, with the weights that ran last before each."""
    order: list[tuple[str, Any]] = []
    last: list[Any] = [None]

    def watch(name: str, module: nn.Module) -> Callable[..., None]:
        def before(*_: Any) -> None:
            if isinstance(module, kinds) and name not in dict(order):
                order.append((name, last[0]))
                last[0] = None
            elif isinstance(module, (nn.Linear, nn.Conv2d, *NORMS)):
                last[0] = module

        return before

    hooks = [m.register_forward_pre_hook(watch(n, m)) for n, m in network.named_modules()]
    with torch.no_grad():
        run()
    for hook in hooks:
        hook.remove()
    return order


def _current(network: nn.Module, name: str, run: Callable[[], None]) -> Tensor:
    seen: list[Tensor] = []
    hook = network.get_submodule(name).register_forward_pre_hook(
        lambda module, inputs: seen.append(inputs[0].detach())
    )
    run()
    hook.remove()
    return torch.cat([part.flatten() for part in seen])
