"""What operations are in PyTorch: modules that hold tensors, and functions without any."""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from soul_deploy.base.dispatch import operation_table
from soul_deploy.base.errors import UsageError
from soul_deploy.ir.graph import (
    AdaptiveAvgPool,
    AvgPool,
    Convolution,
    Flatten,
    Input,
    Linear,
    MaxPool,
    Merge,
    Node,
    Pool,
    Population,
    Projection,
    Readout,
    Scatter,
    SpikingGraph,
)
from soul_deploy.ir.node import no_entry
from soul_deploy.nn.neuron import SpikingNeuron


@operation_table(Node)
def modules_of(node: Node, graph: SpikingGraph) -> Iterable[tuple[str, nn.Module]]:
    """The PyTorch modules that hold a node's tensors, and their paths."""
    raise no_entry(node, "GraphModule")


@modules_of.on(Input, Pool, AdaptiveAvgPool, Flatten, Merge, Scatter)
def _no_modules(node: Node, graph: SpikingGraph) -> Iterable[tuple[str, nn.Module]]:
    return ()


@modules_of.on(Convolution)
def _convolution(node: Convolution, graph: SpikingGraph) -> Iterable[tuple[str, nn.Module]]:
    sides = node.kernel, node.stride, node.padding, node.dilation
    yield node.name, nn.Conv2d(node.in_channels, node.channels, *sides, node.groups, node.bias)
    if node.norm is not None:
        yield node.norm.name, nn.BatchNorm2d(node.channels, node.norm.eps, node.norm.momentum)


@modules_of.on(Linear)
def _linear(node: Linear, graph: SpikingGraph) -> Iterable[tuple[str, nn.Module]]:
    yield node.name, nn.Linear(node.in_features, node.features, node.bias)
    if node.norm is not None:
        yield node.norm.name, nn.BatchNorm1d(node.features, node.norm.eps, node.norm.momentum)


@modules_of.on(Population)
def _neurons(node: Population, graph: SpikingGraph) -> Iterable[tuple[str, nn.Module]]:
    neuron = SpikingNeuron(node.neuron, graph.time_steps)
    if node.generated:
        neuron.register_buffer("pattern", torch.zeros(graph.time_steps, node.generated))
    yield node.name, neuron


@modules_of.on(Readout)
def _head(node: Readout, graph: SpikingGraph) -> Iterable[tuple[str, nn.Module]]:
    if node.linear:
        inputs = graph.shapes[node.inputs[0]][0]
        yield node.name, nn.Linear(inputs, node.classes, bias=node.bias)


@operation_table(Node)
def unweighed(node: Node, x: Tensor) -> Tensor:
    """The output (N, ...) of a node without weights or state, of one input (N, ...)."""
    raise no_entry(node, "GraphModule")


unweighed.refuse(
    *(Input, Projection, Population, Merge, Readout),
    error=lambda node: UsageError(f"{node.name}: {node.op} is more than a function of one input"),
)


@unweighed.on(MaxPool)
def _max_pool(node: MaxPool, x: Tensor) -> Tensor:
    return F.max_pool2d(x, node.kernel, node.stride, node.padding)


@unweighed.on(AvgPool)
def _avg_pool(node: AvgPool, x: Tensor) -> Tensor:
    return F.avg_pool2d(x, node.kernel, node.stride, node.padding)


@unweighed.on(AdaptiveAvgPool)
def _adaptive_avg_pool(node: AdaptiveAvgPool, x: Tensor) -> Tensor:
    return F.adaptive_avg_pool2d(x, node.size)


@unweighed.on(Scatter)
def _scatter(node: Scatter, x: Tensor) -> Tensor:
    wide = x.new_zeros(len(x), node.channels, *x.shape[2:])
    return wide.index_copy(1, torch.tensor(node.index, device=x.device), x)


@unweighed.on(Flatten)
def _flatten(node: Flatten, x: Tensor) -> Tensor:
    return x.flatten(1)
