"""Rows of snnTorch: the networks of its tutorials and its neurons, as people write them."""

from collections.abc import Callable
from importlib import import_module
from typing import Any

import nir_files
import torch
import torch.nn.functional as F
from heard import heard, livened
from row import Made, Own, Row
from torch import Tensor, nn

from soul_deploy import from_torch
from soul_deploy.model.model import Model

snn: Any = import_module("snntorch")
utils: Any = import_module("snntorch.utils")
surrogate: Any = import_module("snntorch.surrogate")
T = 6
KINDS = snn._neurons.neurons.SpikingNeuron


class Tutorial5(nn.Module):
    """A fully connected network whose forward loops over the steps; membranes beside spikes."""

    def __init__(self, hidden: Any, last: Any, result: str = "spikes") -> None:
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(40, 50), hidden
        self.fc2, self.lif2 = nn.Linear(50, 10), last
        self.result = result

    def forward(self, x: Tensor) -> Any:
        mem1, mem2 = self.lif1.reset_mem(), self.lif2.reset_mem()
        states1, states2 = _states(mem1), _states(mem2)
        spk_rec, mem_rec = [], []
        for _ in range(T):
            spk1, *states1 = _again(self.lif1, self.lif1(self.fc1(x), *states1))
            spk2, *states2 = _again(self.lif2, self.lif2(self.fc2(spk1), *states2))
            spk_rec.append(spk2)
            mem_rec.append(states2[-1])
        if self.result == "membrane":
            return torch.stack(mem_rec)
        return torch.stack(spk_rec)


def _again(neuron: Any, called: Any) -> Any:
    """Spikes and the states of the next call; of recurrent neurons the spikes are one of these."""
    spikes, *states = called
    return (spikes, spikes, *states) if hasattr(neuron, "all_to_all") else (spikes, *states)


def _states(made: Any) -> list[Any]:
    return list(made) if isinstance(made, tuple | list) else [made]


class Tutorial6(nn.Module):
    """A convolutional network with max pooling in front of its neurons."""

    def __init__(self) -> None:
        super().__init__()
        grad = surrogate.fast_sigmoid(slope=25)
        self.conv1, self.lif1 = nn.Conv2d(1, 6, 5), snn.Leaky(beta=0.5, spike_grad=grad)
        self.conv2, self.lif2 = nn.Conv2d(6, 8, 5), snn.Leaky(beta=0.5, spike_grad=grad)
        self.fc1, self.lif3 = nn.Linear(8 * 4 * 4, 10), snn.Leaky(beta=0.5, spike_grad=grad)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mem1, mem2, mem3 = (lif.reset_mem() for lif in (self.lif1, self.lif2, self.lif3))
        spk_rec, mem_rec = [], []
        for _ in range(T):
            spk1, mem1 = self.lif1(F.max_pool2d(self.conv1(x), 2), mem1)
            spk2, mem2 = self.lif2(F.max_pool2d(self.conv2(spk1), 2), mem2)
            spk3, mem3 = self.lif3(self.fc1(spk2.view(x.size(0), -1)), mem3)
            spk_rec.append(spk3)
            mem_rec.append(mem3)
        return torch.stack(spk_rec), torch.stack(mem_rec)


def hidden(pool: Any, neuron: Callable[..., Any]) -> nn.Sequential:
    """Tutorial 6 again, with the states in the neurons."""
    return nn.Sequential(
        *(nn.Conv2d(1, 6, 5), pool(2), neuron(init_hidden=True)),
        *(nn.Conv2d(6, 8, 5), pool(2), neuron(init_hidden=True)),
        *(nn.Flatten(), nn.Linear(8 * 4 * 4, 10), neuron(init_hidden=True, output=True)),
    )


def made(build: Callable[[], nn.Module], shape: tuple[int, ...], *, loops: bool = True) -> Made:
    """loops: forward runs all steps; else the network is called once a step."""
    torch.manual_seed(1)
    network: Any = build().eval()
    x = torch.rand(6, *shape)

    def run() -> Any:
        utils.reset(network)
        with torch.no_grad():
            out = network(x) if loops else torch.stack([network(x)[0] for _ in range(T)])
        utils.reset(network)
        return out[0] if isinstance(out, tuple) else out

    livened(network, KINDS, lambda: (run(), None)[1], level=0.9)

    def own() -> Own:
        outs: list[Tensor] = []
        sent = heard(network, KINDS, lambda: outs.append(run()))
        if getattr(network, "result", "") == "membrane":
            del sent["lif2"]  # what it sends goes nowhere
        return Own(sent, outs[0].mean(0))

    def taken() -> Model:
        return from_torch(network, shape, T, example=x)

    return Made(x, own, taken, tuple(name for name, _ in network.named_modules()))


def leaky(**given: Any) -> Callable[[], nn.Module]:
    def one() -> Any:
        return snn.Leaky(**{"beta": 0.9, **given})

    return lambda: Tutorial5(one(), one())


FULLY = "tutorial 5, fully connected"
LEAKY: dict[str, dict[str, Any]] = {
    "Leaky": {"beta": 0.95},
    "Leaky, learned beta and threshold": {"learn_beta": True, "learn_threshold": True},
    "Leaky, reset to zero": {"reset_mechanism": "zero"},
    "Leaky, reset at once": {"reset_delay": False},
}


def rows() -> list[Row]:
    small, image = (40,), (1, 28, 28)

    def row(
        network: str, neuron: str, build: Callable[[], nn.Module], *shape: int, **how: Any
    ) -> Row:
        light = how.pop("light", False)
        return Row(
            network=network, neuron=neuron, make=lambda: made(build, shape, **how), light=light
        )

    def both(neuron: Callable[[int], Any]) -> Callable[[], nn.Module]:
        return lambda: Tutorial5(neuron(50), neuron(10))

    return [
        *(
            row(FULLY, name, leaky(**given), *small, light=name == "Leaky")
            for name, given in LEAKY.items()
        ),
        row(
            FULLY,
            "Leaky, a beta for each neuron",
            both(lambda n: snn.Leaky(beta=torch.rand(n) / 2 + 0.4)),
            *small,
        ),
        row("tutorial 6, convolutional, max pooling", "Leaky", Tutorial6, *image),
        row(
            "tutorial 6, Sequential, init_hidden",
            "Leaky",
            lambda: hidden(nn.MaxPool2d, lambda **more: snn.Leaky(beta=0.5, **more)),
            *image,
            loops=False,
        ),
        row(FULLY, "Synaptic", both(lambda n: snn.Synaptic(alpha=0.9, beta=0.8)), *small),
        row(
            "convolutional, init_hidden",
            "Synaptic",
            lambda: hidden(nn.AvgPool2d, lambda **more: snn.Synaptic(alpha=0.8, beta=0.7, **more)),
            *image,
            loops=False,
        ),
        row(FULLY, "Lapicque", both(lambda n: snn.Lapicque(R=2.0, C=3.0, time_step=1.0)), *small),
        row(
            FULLY,
            "RLeaky, one weight a neuron",
            both(lambda n: RLeaky(n, all_to_all=False)),
            *small,
        ),
        row(FULLY, "RLeaky, all to all", both(lambda n: RLeaky(n)), *small),
        row(FULLY, "RSynaptic, all to all", both(lambda n: RSynaptic(n)), *small),
        row(FULLY, "Alpha", both(lambda n: snn.Alpha(alpha=0.9, beta=0.8)), *small),
        row(
            f"{FULLY}, membrane read-out",
            "Leaky",
            lambda: Tutorial5(
                snn.Leaky(beta=0.9), snn.Leaky(beta=0.8, reset_mechanism="none"), "membrane"
            ),
            *small,
        ),
        *nir_files.rows("snntorch"),
    ]


def RLeaky(n: int, **given: Any) -> Any:
    more = {"V": torch.full((n,), 0.3)} if given else {"linear_features": n}
    return snn.RLeaky(beta=0.9, **given, **more)


def RSynaptic(n: int) -> Any:
    return snn.RSynaptic(alpha=0.8, beta=0.9, linear_features=n)
