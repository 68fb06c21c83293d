"""Networks by name. A new family is one new file and its lines here."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import nn

from soul_deploy.cifar10net import Cifar10Net
from soul_deploy.graph import NeuronSpec, Shape, SpikingGraph
from soul_deploy.runtime.errors import UnknownNameError
from soul_deploy.spikingvgg import CONFIGURATIONS, SpikingVGG
from soul_deploy.trace import trace


@dataclass(frozen=True)
class NetworkOptions:
    """What every network of the zoo is built from.

    input_shape (C, H, W); hidden: neurons of the fully connected layers (2048); width: channels of
    6Conv2FC's convolutions.
    """

    input_shape: Shape
    classes: int
    neuron: NeuronSpec
    time_steps: int
    hidden: int = 2048
    width: int = 256


def _spiking_vgg(name: str, options: NetworkOptions) -> nn.Module:
    return SpikingVGG(
        CONFIGURATIONS[name],
        input_shape=options.input_shape,
        classes=options.classes,
        neuron=options.neuron,
        time_steps=options.time_steps,
        hidden=options.hidden,
    )


def _cifar10net(options: NetworkOptions) -> nn.Module:
    return Cifar10Net(
        input_shape=options.input_shape,
        classes=options.classes,
        neuron=options.neuron,
        time_steps=options.time_steps,
        width=options.width,
        hidden=options.hidden,
    )


NETWORKS: dict[str, Callable[[NetworkOptions], nn.Module]] = {
    **{name: partial(_spiking_vgg, name) for name in CONFIGURATIONS},
    "cifar10net": _cifar10net,
}


def canonical_name(name: str) -> str:
    """The network's name in our spelling (case-insensitive). Raises UnknownNameError."""
    if name.lower() not in NETWORKS:
        raise UnknownNameError("model", name, NETWORKS)
    return name.lower()


def create(name: str, options: NetworkOptions) -> tuple[nn.Module, SpikingGraph]:
    """A freshly initialised network and its graph. Raises UnknownNameError."""
    network = NETWORKS[canonical_name(name)](options)
    return network, trace(network, options.input_shape, options.time_steps)
