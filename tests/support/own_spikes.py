"""What a network of SpikingJelly's modules does by itself."""

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def own_spikes(network: nn.Module, x: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """What the network's neurons return, by SpikingJelly alone."""
    package: Any = importlib.import_module("spikingjelly.activation_based")
    heard: dict[str, Tensor] = {}

    def listen(name: str) -> Callable[..., None]:
        return lambda module, inputs, output: heard.update({name: output.bool()})

    hooks = [
        module.register_forward_hook(listen(name))
        for name, module in network.named_modules()
        if isinstance(module, package.neuron.BaseNode)
    ]
    with torch.no_grad():
        scores = network(x)
    package.functional.reset_net(network)
    for hook in hooks:
        hook.remove()
    return heard, scores.mean(0)
