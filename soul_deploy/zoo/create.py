"""A network of the zoo as a Model."""

import warnings
from typing import Any, overload

from torch import nn
from typing_extensions import deprecated

from soul_deploy.frontend.factory import is_dotted
from soul_deploy.ir import MergeFunction, NeuronSpec, Shape, SpikingGraph
from soul_deploy.model.model import Model, ModelInfo, arrays_of
from soul_deploy.zoo import registry, resnet
from soul_deploy.zoo.initialisation import Initialisation

OLD = "soul_deploy.create(name, options) is soul_deploy.create(name, input_shape=, classes=, …) now"


@overload
def create(
    name: str,
    *,
    input_shape: Shape,
    classes: int,
    time_steps: int = 4,
    neuron: NeuronSpec = ...,
    hidden: int | None = None,
    width: int = 256,
    connect: MergeFunction = "add",
    groups: int = 1,
    width_per_group: int = 64,
    stem: resnet.Stem = "soul",
    initialisation: Initialisation = "default",
    mlp_ratio: float = 1.0,
) -> Model: ...
@overload
@deprecated(OLD)
def create(name: str, options: registry.NetworkOptions) -> tuple[nn.Module, SpikingGraph]: ...
def create(
    name: str, options: registry.NetworkOptions | None = None, **fields: Any
) -> Model | tuple[nn.Module, SpikingGraph]:
    """A Model of a known network, or of `package.module:factory`, with freshly drawn weights.

    input_shape  (C, H, W) of one image
    classes      number of class scores
    time_steps   T that it runs for
    neuron       the neuron model of every population; NeuronSpec() is Soul's LIF
    hidden       neurons of each fully connected layer, None: 2048, of mlp 1024, of lenet 512;
                 width: channels of cifar10net's convolutions
    mlp_ratio    of spikingvgg: the share of `hidden` that its first hidden layer has
    initialisation   "default": as the network's own source has it; "kaiming_fan_out": all layers
    connect, groups, width_per_group, stem   of residual networks, as in `registry.NetworkOptions`

    Weights come from PyTorch's generator: `torch.manual_seed` makes them repeatable. A network of
    the user's own is imported, compared with its graph, and brings its own neurons and widths;
    populations that never fired then are named in `info.provenance["untested"]`, as of from_torch.
    Raises UnknownNameError, UsageError or what `from_torch` raises.
    """
    if options is not None:
        warnings.warn(OLD, DeprecationWarning, stacklevel=2)
        return registry.create(name, options)
    fields.setdefault("neuron", NeuronSpec())
    fields.setdefault("time_steps", 4)
    wanted = registry.NetworkOptions(**fields)
    if is_dotted(name):
        return registry.create_own(name, wanted)[1].model(ModelInfo(), {})
    network, graph = registry.create(name, wanted)
    return Model(graph, arrays_of(network.state_dict()))
