"""Networks by name. A new family is one new file and its lines here."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import nn

from soul_deploy.base.errors import UnknownNameError, UsageError
from soul_deploy.frontend import factory, from_torch
from soul_deploy.frontend.from_torch import trace
from soul_deploy.ir import MergeFunction, NeuronSpec, Shape, SpikingGraph
from soul_deploy.zoo import conv6fc2, ms_resnet, resnet_blocks, sew_resnet, spiking_vgg


@dataclass(frozen=True)
class NetworkOptions:
    """What every network of the zoo is built from.

    input_shape (C, H, W); hidden: neurons of the fully connected layers (2048); width: channels of
    6Conv2FC's convolutions. Residual networks: connect (SEW), groups and width_per_group
    (bottlenecks), stem ("soul": 7×7, stride 2, max pooling; "small": 3×3 for small images).
    """

    input_shape: Shape
    classes: int
    neuron: NeuronSpec
    time_steps: int
    hidden: int = 2048
    width: int = 256
    connect: MergeFunction = "add"
    groups: int = 1
    width_per_group: int = 64
    stem: resnet_blocks.Stem = "soul"


def _spiking_vgg(name: str, options: NetworkOptions) -> nn.Module:
    try:
        return spiking_vgg.SpikingVGG(
            spiking_vgg.CONFIGURATIONS[name],
            input_shape=options.input_shape,
            classes=options.classes,
            neuron=options.neuron,
            time_steps=options.time_steps,
            hidden=options.hidden,
        )
    except UsageError as error:
        raise UsageError(f"{name}: {error}; give a network with fewer with --model") from error


def _cifar10net(options: NetworkOptions) -> nn.Module:
    return conv6fc2.Cifar10Net(
        input_shape=options.input_shape,
        classes=options.classes,
        neuron=options.neuron,
        time_steps=options.time_steps,
        width=options.width,
        hidden=options.hidden,
    )


def _sew_resnet(depth: int, options: NetworkOptions) -> nn.Module:
    if depth < 50 and (options.groups, options.width_per_group) != (1, 64):
        raise UsageError(
            f"sewresnet{depth} has basic blocks: groups {options.groups} and width_per_group "
            f"{options.width_per_group} are for sewresnet50; leave them at 1 and 64"
        )
    shared = sew_resnet.SewOptions(
        options.neuron, options.time_steps, options.connect, options.groups, options.width_per_group
    )
    return sew_resnet.SewResNet(
        depth, shared, input_shape=options.input_shape, classes=options.classes, stem=options.stem
    )


def _ms_resnet(depth: int, options: NetworkOptions) -> nn.Module:
    if depth < 50 and options.groups != 1:
        raise UsageError(
            f"msresnet{depth} has basic blocks: groups {options.groups} are for msresnet50; leave "
            "them at 1"
        )
    shared = ms_resnet.MsOptions(
        options.neuron, options.time_steps, options.groups, options.width_per_group
    )
    return ms_resnet.MsResNet(
        depth, shared, input_shape=options.input_shape, classes=options.classes, stem=options.stem
    )


NETWORKS: dict[str, Callable[[NetworkOptions], nn.Module]] = {
    **{name: partial(_spiking_vgg, name) for name in spiking_vgg.CONFIGURATIONS},
    "cifar10net": _cifar10net,
    **{f"sewresnet{depth}": partial(_sew_resnet, depth) for depth in resnet_blocks.STAGES},
    **{f"msresnet{depth}": partial(_ms_resnet, depth) for depth in resnet_blocks.STAGES},
}


def canonical_name(name: str) -> str:
    """The network's name in our spelling (case-insensitive); `package.module:factory` as it is.

    Nothing is imported. Raises UnknownNameError or UsageError.
    """
    if factory.is_dotted(name):
        factory.check_dotted(name)
        return name
    if name.lower() not in NETWORKS:
        raise UnknownNameError("model", name, NETWORKS)
    return name.lower()


def create(name: str, options: NetworkOptions) -> tuple[nn.Module, SpikingGraph]:
    """A freshly initialised network and its graph.

    A network of the user's own, `package.module:factory`, is imported and compared with its graph;
    it brings its own neurons and widths. Raises UnknownNameError, UsageError or what
    `fromtorch.from_torch` raises.
    """
    if factory.is_dotted(name):
        return _create_own(name, options)
    network = NETWORKS[canonical_name(name)](options)
    return network, trace(network, options.input_shape, options.time_steps)


def _create_own(name: str, options: NetworkOptions) -> tuple[nn.Module, SpikingGraph]:
    network = factory.build_network(
        name,
        classes=options.classes,
        input_shape=options.input_shape,
        time_steps=options.time_steps,
    )
    traced = from_torch.examine(network, options.input_shape, options.time_steps).traced
    found = traced.graph.readout.classes
    if found != options.classes:
        raise UsageError(f"model {name!r} gives {found} class scores; {options.classes} are needed")
    return network, traced.graph
