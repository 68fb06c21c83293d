"""What operations are in PyTorch: modules that hold tensors, and functions without any."""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from soul_deploy import ir
from soul_deploy.base import dispatch, errors
from soul_deploy.nn.neuron import SpikingNeuron


@dispatch.operation_table(ir.Node)
def modules_of(node: ir.Node, graph: ir.SpikingGraph) -> Iterable[tuple[str, nn.Module]]:
    """The PyTorch modules that hold a node's tensors, and their paths."""
    raise ir.no_entry(node, "GraphModule")


modules_of.on(
    *(ir.Input, ir.Pool, ir.AdaptiveAvgPool, ir.Flatten, ir.Merge, ir.Scatter, ir.OneToOne)
)(lambda node, graph: ())


class ChannelScale(nn.Module):
    """Holds the constants (C,) that a map's channels are multiplied by."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(channels))


@modules_of.on(ir.Scale)
def _scale(node: ir.Scale, graph: ir.SpikingGraph) -> Iterable[tuple[str, nn.Module]]:
    if node.factor is None:
        yield node.name, ChannelScale(graph.shapes[node.name][0])


@modules_of.on(ir.ChannelNorm)
def _channel_norm(node: ir.ChannelNorm, graph: ir.SpikingGraph) -> Iterable[tuple[str, nn.Module]]:
    shape, norm = graph.shapes[node.name], node.norm
    kind = nn.BatchNorm2d if len(shape) == 3 else nn.BatchNorm1d
    yield node.name, kind(shape[0], norm.eps, norm.momentum)


def by_channel(values: Tensor, x: Tensor) -> Tensor:
    """Values (C,) beside the channels of (N, C, ...)."""
    return values.reshape(-1, *([1] * (x.dim() - 2)))


@modules_of.on(ir.Convolution)
def _convolution(node: ir.Convolution, graph: ir.SpikingGraph) -> Iterable[tuple[str, nn.Module]]:
    sides = node.kernel, node.stride, node.padding, node.dilation
    yield node.name, nn.Conv2d(node.in_channels, node.channels, *sides, node.groups, node.bias)
    yield from _norm(node, nn.BatchNorm2d)


@modules_of.on(ir.Linear)
def _linear(node: ir.Linear, graph: ir.SpikingGraph) -> Iterable[tuple[str, nn.Module]]:
    yield node.name, nn.Linear(node.in_features, node.features, node.bias)
    yield from _norm(node, nn.BatchNorm1d)


def _norm(node: ir.Projection, kind: type[nn.Module]) -> Iterable[tuple[str, nn.Module]]:
    if node.norm is not None:
        yield node.norm.name, kind(node.out_channels, node.norm.eps, node.norm.momentum)


@modules_of.on(ir.Population)
def _neurons(node: ir.Population, graph: ir.SpikingGraph) -> Iterable[tuple[str, nn.Module]]:
    neuron = SpikingNeuron(node.neuron, graph.time_steps, graph.shapes[node.inputs[0]])
    if node.generated:
        neuron.register_buffer("pattern", torch.zeros(graph.time_steps, node.generated))
    yield node.name, neuron
    if node.feedback is not None:
        yield from modules_of(node.feedback, graph)


@modules_of.on(ir.Readout)
def _head(node: ir.Readout, graph: ir.SpikingGraph) -> Iterable[tuple[str, nn.Module]]:
    if node.linear:
        inputs = graph.shapes[node.inputs[0]][0]
        yield node.name, nn.Linear(inputs, node.classes, bias=node.bias)
    if node.neuron is not None:
        made = SpikingNeuron(node.neuron, graph.time_steps, (node.classes,))
        yield node.neurons_name, made


@dispatch.operation_table(ir.Node)
def unweighed(node: ir.Node, x: Tensor) -> Tensor:
    """The output (N, ...) of a node without weights or state, of one input (N, ...)."""
    raise ir.no_entry(node, "GraphModule")


unweighed.refuse(
    *(ir.Input, ir.Projection, ir.Population, ir.Merge, ir.Readout, ir.ChannelNorm),
    error=lambda node: errors.UsageError(
        f"{node.name}: {node.op} is more than a function of one input"
    ),
)


unweighed.on(ir.Flatten)(lambda node, x: x.flatten(1))
unweighed.on(ir.MaxPool)(lambda node, x: F.max_pool2d(x, node.kernel, node.stride, node.padding))
unweighed.on(ir.AvgPool)(lambda node, x: F.avg_pool2d(x, node.kernel, node.stride, node.padding))


@unweighed.on(ir.SumPool)
def _sum_pool(node: ir.SumPool, x: Tensor) -> Tensor:
    """Of sums that are whole, not of a mean that is multiplied again."""
    return F.avg_pool2d(x, node.kernel, node.stride, divisor_override=1)


unweighed.on(ir.AdaptiveAvgPool)(lambda node, x: F.adaptive_avg_pool2d(x, node.size))


@unweighed.on(ir.Scale)
def _scaled(node: ir.Scale, x: Tensor) -> Tensor:
    if node.factor is None:
        raise errors.UsageError(f"{node.name}: its constants stand in the state dict")
    return x * node.factor


unweighed.on(ir.OneToOne)(lambda node, x: x * node.factor)


@unweighed.on(ir.Scatter)
def _scatter(node: ir.Scatter, x: Tensor) -> Tensor:
    wide = x.new_zeros(len(x), node.channels, *x.shape[2:])
    return wide.index_copy(1, torch.tensor(node.index, device=x.device), x)
