"""Networks of snnTorch's neurons whose forward a test writes. snnTorch's classes are untyped."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

snn: Any = pytest.importorskip("snntorch", reason="the extra interop installs it")
T = 6


def settled(network: nn.Module, strength: float = 2.0) -> Any:
    """Weights with which every layer fires, in evaluation mode."""
    torch.manual_seed(1)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                size = module.weight[0].numel()
                module.weight.normal_(0.0, strength / size**0.5)
                assert module.bias is not None
                module.bias.uniform_(0.0, 0.5)
    return network.eval()


class Net(nn.Module):
    """Two layers of snnTorch's, more layers, and a forward of the test's."""

    def __init__(self, run: Callable[..., Any]) -> None:
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(20, 30), snn.Leaky(beta=0.9)
        self.fc2, self.lif2 = nn.Linear(30, 10), snn.Leaky(beta=0.8)
        self.back, self.other, self.norm = nn.Linear(30, 30), nn.Linear(30, 10), nn.BatchNorm1d(30)
        self.run = run
        self.register_buffer("gain", torch.tensor(1.25))
        settled(self)
        with torch.no_grad():
            self.norm.bias.normal_(0.0, 1.0)

    def forward(self, x: Tensor) -> Any:
        return self.run(self, x)

    def rest(self) -> tuple[Any, Any]:
        return self.lif1.init_leaky(), self.lif2.init_leaky()


def loop(step: Callable[..., Any], end: Callable[..., Any] = torch.stack) -> Callable[..., Any]:
    """A forward that keeps what step(net, x, t, state) returns; state: mem1, mem2, spk1 by name."""

    def run(net: Any, x: Tensor) -> Any:
        mem1, mem2 = net.rest()
        state = {"mem1": mem1, "mem2": mem2, "spk1": None}
        return end([step(net, x, t, state) for t in range(T)])

    return run


def first(net: Any, current: Tensor, state: dict[str, Any]) -> Any:
    state["spk1"], state["mem1"] = net.lif1(current, state["mem1"])
    return state["spk1"]


def second(net: Any, current: Tensor, state: dict[str, Any]) -> Any:
    spikes, state["mem2"] = net.lif2(current, state["mem2"])
    return spikes


def plain(net: Any, x: Tensor, t: int, state: dict[str, Any]) -> Any:
    return first(net, net.fc1(x), state)
