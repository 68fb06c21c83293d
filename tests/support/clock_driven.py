"""Stand-ins for SpikingJelly up to 0.0.0.0.12: its names and places, and what its modules compute.

Where that package itself is installed, `SJ` is it, and tests/frontend/test_clock_driven.py compares
with its own code; elsewhere these, which the golden files in tests/fixtures hold to its numbers.
"""

import copy
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

ROOT = "spikingjelly.clock_driven"


class MemoryModule(nn.Module):
    """State in `_memories`, which a reset sets to `_memories_rv`."""

    __module__ = f"{ROOT}.base"

    def __init__(self) -> None:
        super().__init__()
        self._memories: dict[str, Any] = {}
        self._memories_rv: dict[str, Any] = {}

    def register_memory(self, name: str, value: Any) -> None:
        self._memories[name] = value
        self._memories_rv[name] = value

    def reset(self) -> None:
        for name in self._memories:
            self._memories[name] = copy.deepcopy(self._memories_rv[name])

    def __getattr__(self, name: str) -> Any:
        memories = self.__dict__.get("_memories", {})
        return memories[name] if name in memories else super().__getattr__(name)

    def __setattr__(self, name: str, value: Any) -> None:
        memories = self.__dict__.get("_memories", {})
        memories.__setitem__(name, value) if name in memories else super().__setattr__(name, value)


class ATan(nn.Module):
    __module__ = f"{ROOT}.surrogate"

    def __init__(self, alpha: float = 2.0) -> None:
        super().__init__()
        self.alpha, self.spiking = alpha, True

    def forward(self, x: Tensor) -> Tensor:
        return (x >= 0).to(x)


class Sigmoid(ATan):
    __module__ = f"{ROOT}.surrogate"


class BaseNode(MemoryModule):
    """One step; the numbers that are not its own are those of all its kinds together."""

    v: Any

    __module__ = f"{ROOT}.neuron"

    def __init__(
        self, *, v_threshold: float = 1.0, v_reset: float | None = 0.0, tau: float = 2.0,
        init_tau: float = 2.0, decay_input: bool = True, v_rest: float = 0.0, v_c: float = 0.8,
        a0: float = 1.0, delta_T: float = 1.0, theta_rh: float = 0.8,
        surrogate_function: Any = None, detach_reset: bool = False, backend: str = "torch",
    ) -> None:  # fmt: skip
        super().__init__()
        self.register_memory("v", 0.0 if v_reset is None else v_reset)
        self.register_memory("v_threshold", v_threshold)
        self.register_memory("v_reset", v_reset)
        self.surrogate_function = surrogate_function or Sigmoid(4.0)
        self.detach_reset, self.tau, self.decay_input = detach_reset, tau, decay_input
        self.v_rest, self.v_c, self.a0 = v_rest, v_c, a0
        self.delta_T, self.theta_rh, self.backend = delta_T, theta_rh, backend
        if "Parametric" in type(self).__name__:
            self.w = nn.Parameter(-torch.as_tensor(init_tau - 1.0).log())

    def charged(self, v: Any, x: Tensor) -> Any:
        raise NotImplementedError

    def step(self, x: Tensor) -> Tensor:
        v = self.charged(self.v, x)
        spike: Tensor = self.surrogate_function(v - self.v_threshold)
        soft = self.v_reset is None
        self.v = v - spike * self.v_threshold if soft else (1 - spike) * v + spike * self.v_reset
        return spike

    def forward(self, x: Tensor) -> Tensor:
        return self.step(x)


class IFNode(BaseNode):
    __module__ = f"{ROOT}.neuron"

    def charged(self, v: Any, x: Tensor) -> Any:
        return v + x


class LIFNode(BaseNode):
    __module__ = f"{ROOT}.neuron"

    def charged(self, v: Any, x: Tensor) -> Any:
        above = v - (self.v_reset or 0.0)
        if self.decay_input:
            return v + (x - above) / self.tau
        return v - above / self.tau + x if self.v_reset else v * (1 - 1 / self.tau) + x


class ParametricLIFNode(BaseNode):
    __module__ = f"{ROOT}.neuron"

    def charged(self, v: Any, x: Tensor) -> Any:
        above, factor = v - (self.v_reset or 0.0), self.w.sigmoid()
        if self.decay_input:
            return v + (x - above) * factor
        return v - above * factor + x if self.v_reset else v * (1 - factor) + x


class QIFNode(BaseNode):
    __module__ = f"{ROOT}.neuron"

    def charged(self, v: Any, x: Tensor) -> Any:
        return v + (x + self.a0 * (v - self.v_rest) * (v - self.v_c)) / self.tau


class EIFNode(BaseNode):
    __module__ = f"{ROOT}.neuron"

    def charged(self, v: Any, x: Tensor) -> Any:
        v = torch.as_tensor(v)
        upwards = self.delta_T * torch.exp((v - self.theta_rh) / self.delta_T)
        return v + (x + self.v_rest - v + upwards) / self.tau


def multi_step(cls: type) -> type:
    """The class of whole sequences."""

    def __init__(self: Any, **given: Any) -> None:
        cls.__init__(self, **given)  # type: ignore[misc]
        self.register_memory("v_seq", None)

    def forward(self: Any, x: Tensor) -> Tensor:
        spikes, membranes = [], []
        for now in x:
            spikes.append(self.step(now))
            membranes.append(self.v)
        self.v_seq = torch.stack(membranes)
        return torch.stack(spikes)

    own = {"__module__": f"{ROOT}.neuron", "__init__": __init__, "forward": forward}
    return type(f"MultiStep{cls.__name__}", (cls,), own)


def seq_to_ann_forward(x: Tensor, module: Any) -> Tensor:
    lead = [x.shape[0], x.shape[1]]
    y = x.flatten(0, 1)
    for one in module if isinstance(module, list | nn.Sequential) else [module]:
        y = one(y)
    return y.view([*lead, *y.shape[1:]])


class SeqToANNContainer(nn.Sequential):
    __module__ = f"{ROOT}.layer"

    def forward(self, x: Tensor) -> Tensor:
        return seq_to_ann_forward(x, self)


class MultiStepContainer(nn.Sequential):
    __module__ = f"{ROOT}.layer"

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([nn.Sequential.forward(self, step) for step in x])  # type: ignore[no-untyped-call]


class Dropout(MemoryModule):
    __module__ = f"{ROOT}.layer"

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        self.register_memory("mask", None)

    def forward(self, x: Tensor) -> Tensor:
        assert not self.training
        return x


class MultiStepDropout(Dropout):
    __module__ = f"{ROOT}.layer"


class MultiStepThresholdDependentBatchNorm2d(nn.BatchNorm2d):
    __module__ = f"{ROOT}.layer"

    def __init__(self, alpha: float, v_th: float, channels: int) -> None:
        super().__init__(channels)
        nn.init.constant_(self.weight, alpha * v_th)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flatten(0, 1)).view(x.shape)


class ConvBatchNorm2d(nn.Module):
    __module__ = f"{ROOT}.layer"

    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, bias=False)
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Any:
        return self.bn(self.conv(x))


class VotingLayer(nn.Module):
    __module__ = f"{ROOT}.model.parametric_lif_net"

    def __init__(self, voting_size: int) -> None:
        super().__init__()
        self.voting_size = voting_size

    def forward(self, x: Tensor) -> Tensor:
        return x.view(len(x), -1, self.voting_size).mean(2)


class VoltageScaler(nn.Module):
    __module__ = f"{ROOT}.ann2snn.modules"

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale: Tensor
        self.register_buffer("scale", torch.tensor(scale))

    def forward(self, x: Tensor) -> Any:
        return x * self.scale


def reset_net(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, MemoryModule):
            module.reset()


PLAIN = (IFNode, LIFNode, ParametricLIFNode, QIFNode, EIFNode)
STAND_INS = SimpleNamespace(
    neuron=SimpleNamespace(
        BaseNode=BaseNode,
        **{cls.__name__: cls for cls in PLAIN},
        **{f"MultiStep{cls.__name__}": multi_step(cls) for cls in PLAIN},
    ),
    layer=SimpleNamespace(
        SeqToANNContainer=SeqToANNContainer, MultiStepContainer=MultiStepContainer,
        Dropout=Dropout, MultiStepDropout=MultiStepDropout, ConvBatchNorm2d=ConvBatchNorm2d,
        MultiStepThresholdDependentBatchNorm2d=MultiStepThresholdDependentBatchNorm2d,
    ),
    functional=SimpleNamespace(seq_to_ann_forward=seq_to_ann_forward, reset_net=reset_net),
    surrogate=SimpleNamespace(ATan=ATan, Sigmoid=Sigmoid),
    VotingLayer=VotingLayer,
    VoltageScaler=VoltageScaler,
)  # fmt: skip


def _installed() -> SimpleNamespace | None:
    try:
        from spikingjelly.clock_driven import ann2snn, functional, layer, neuron, surrogate
        from spikingjelly.clock_driven.model import parametric_lif_net
    except ImportError:
        return None
    return SimpleNamespace(
        neuron=neuron, layer=layer, functional=functional, surrogate=surrogate,
        VotingLayer=parametric_lif_net.VotingLayer,
        VoltageScaler=ann2snn.modules.VoltageScaler,
    )  # fmt: skip


SJ = _installed() or STAND_INS
