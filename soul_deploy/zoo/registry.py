"""Networks by name. A new family is one new file and its lines here."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import nn

from soul_deploy.base.errors import UsageError, known
from soul_deploy.frontend import factory, from_torch
from soul_deploy.frontend.from_torch import trace
from soul_deploy.ir import MergeFunction, NeuronSpec, Shape, SpikingGraph
from soul_deploy.zoo import mlp, resnet, vgg
from soul_deploy.zoo.initialisation import Initialisation, kaiming_fan_out


@dataclass(frozen=True)
class NetworkOptions:
    """What every network of the zoo is built from.

    input_shape (C, H, W); hidden: neurons of the fully connected layers, None: the network's own
    (2048; mlp 1024, lenet 512); mlp_ratio: SpikingVGG's first hidden layer has this share of them;
    width: channels of 6Conv2FC's convolutions. Residual networks: connect (SEW), groups and
    width_per_group (bottlenecks), stem ("soul": 7×7, stride 2, max pooling; "small": 3×3 for small
    images).
    initialisation: "default" is that of the network's source, "kaiming_fan_out" the same for all.
    """

    input_shape: Shape
    classes: int
    neuron: NeuronSpec
    time_steps: int
    hidden: int | None = None
    width: int = 256
    connect: MergeFunction = "add"
    groups: int = 1
    width_per_group: int = 64
    stem: resnet.Stem = "soul"
    initialisation: Initialisation = "default"
    mlp_ratio: float = 1.0


def hidden_of(name: str, hidden: int | None) -> int:
    """The neurons of a network's fully connected layers; None: the network's own number."""
    return mlp.HIDDEN.get(name, 2048) if hidden is None else hidden


def _vgg(name: str, options: NetworkOptions) -> nn.Module:
    return vgg.SpikingVGG(name, options, hidden_of(name, options.hidden))


def _sew_resnet(depth: int, options: NetworkOptions) -> nn.Module:
    if depth < 50 and (options.groups, options.width_per_group) != (1, 64):
        raise UsageError(
            f"sewresnet{depth} has basic blocks: groups {options.groups} and width_per_group "
            f"{options.width_per_group} are for sewresnet50; leave them at 1 and 64"
        )
    return resnet.SewResNet(depth, options)


def _ms_resnet(depth: int, options: NetworkOptions) -> nn.Module:
    if depth < 50 and options.groups != 1:
        raise UsageError(
            f"msresnet{depth} has basic blocks: groups {options.groups} are for msresnet50; leave "
            "them at 1"
        )
    return resnet.MsResNet(depth, options)


NETWORKS: dict[str, Callable[[NetworkOptions], nn.Module]] = {
    **{name: partial(_vgg, name) for name in vgg.CONFIGURATIONS},
    "cifar10net": lambda options: vgg.Cifar10Net(options, hidden_of("cifar10net", options.hidden)),
    "mlp": lambda options: mlp.SpikingMLP(options, hidden_of("mlp", options.hidden)),
    "lenet": lambda options: mlp.SpikingLeNet(options, hidden_of("lenet", options.hidden)),
    **{f"sewresnet{depth}": partial(_sew_resnet, depth) for depth in resnet.STAGES},
    **{f"msresnet{depth}": partial(_ms_resnet, depth) for depth in resnet.STAGES},
}


def canonical_name(name: str) -> str:
    """The network's name in our spelling (case-insensitive); `package.module:factory` as it is.

    Nothing is imported. Raises UnknownNameError or UsageError.
    """
    if factory.is_dotted(name):
        factory.check_dotted(name)
        return name
    return known("model", name, NETWORKS)


def create(name: str, options: NetworkOptions) -> tuple[nn.Module, SpikingGraph]:
    """A freshly initialised network and its graph.

    A network of the user's own, `package.module:factory`, is imported and compared with its graph;
    it brings its own neurons and widths. Raises UnknownNameError, UsageError or what
    `fromtorch.from_torch` raises.
    """
    if factory.is_dotted(name):
        network, examined = create_own(name, options)
        return network, examined.traced.graph
    if options.mlp_ratio != 1 and canonical_name(name) not in vgg.CONFIGURATIONS:
        raise UsageError(
            f"mlp_ratio {options.mlp_ratio:g} for {name}; it is of spikingvgg5 to spikingvgg19: "
            "leave it at 1"
        )
    network = NETWORKS[canonical_name(name)](options)
    if options.initialisation == "kaiming_fan_out":
        kaiming_fan_out(network)
    return network, trace(network, options.input_shape, options.time_steps)


def create_own(name: str, options: NetworkOptions) -> tuple[nn.Module, from_torch.Examined]:
    """A network of the user's own, and what its comparison with its graph found."""
    network = factory.build_network(
        name,
        classes=options.classes,
        input_shape=options.input_shape,
        time_steps=options.time_steps,
    )
    examined = from_torch.examine(network, options.input_shape, options.time_steps)
    found = examined.traced.graph.readout.classes
    if found != options.classes:
        raise UsageError(f"model {name!r} gives {found} class scores; {options.classes} are needed")
    return network, examined
