"""From a PyTorch module to a SpikingGraph, by torch.fx, neurons as leaves.

Nothing is guessed from module order: who feeds whom is what `forward` does. What the graph cannot
represent is refused with the module's dotted name and the place in the code.
"""

import operator
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import fx, nn

from soul_deploy import layers
from soul_deploy.graph import (
    AdaptiveAvgPool,
    AvgPool,
    BatchNorm,
    Convolution,
    Flatten,
    Input,
    Linear,
    MaxPool,
    Node,
    Population,
    Projection,
    Readout,
    Shape,
    SpikingGraph,
)
from soul_deploy.graph import Merge as GraphMerge
from soul_deploy.neurons import SpikingNeuron
from soul_deploy.runtime.errors import UnsupportedGraphError

SUPPORTED = (
    "Conv2d, Linear, BatchNorm1d/2d right after them, SpikingNeuron, MaxPool2d, AvgPool2d, "
    "AdaptiveAvgPool2d, Flatten, Merge and +, Dropout, Identity, RateReadout, VoteReadout"
)


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return type(m) in CONVERTERS or isinstance(m, (layers.Merge, *NORMS, *TRANSPARENT))


def trace(network: nn.Module, input_shape: Shape, time_steps: int) -> SpikingGraph:
    """The graph of `network` for inputs of `input_shape` (C, H, W) shown for `time_steps`.

    Raises UnsupportedGraphError naming the module, the code line and what is supported.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            traced = _Tracer().trace(network)
    except (fx.proxy.TraceError, TypeError, ValueError, AttributeError) as error:
        raise UnsupportedGraphError(
            f"{type(network).__name__}: its forward cannot be traced ({error}); control flow that "
            "depends on data, and operations outside layers, are not supported"
        ) from error
    return _Builder(network, input_shape, time_steps).build(traced)


class _Builder:
    """Walks the traced operations once and collects graph nodes."""

    def __init__(self, network: nn.Module, input_shape: Shape, time_steps: int) -> None:
        self.modules = dict(network.named_modules())
        self.input_shape = input_shape
        self.time_steps = time_steps
        self.nodes: dict[str, Node] = {}
        self.names: dict[fx.Node, str] = {}  # fx node -> graph node that holds its value
        self.used: set[str] = set()

    def build(self, traced: fx.Graph) -> SpikingGraph:
        for node in traced.nodes:
            if node.op == "placeholder":
                self._add(node, Input("input", (), self.input_shape))
            elif node.op == "call_module":
                self._call(node)
            elif node.op == "call_function" and node.target in ADDITIONS:
                name = f"add_{len(self.nodes)}"
                self._add(node, GraphMerge(name, self._inputs(node, "an addition"), "add"))
            elif node.op != "output":
                raise self._unsupported(node, f"operation {node.target}")
        return SpikingGraph(tuple(self.nodes.values()), self.time_steps)

    def _call(self, node: fx.Node) -> None:
        path = str(node.target)
        module = self.modules[path]
        if path in self.used:
            raise self._unsupported(node, f"module {path!r} is called twice")
        self.used.add(path)
        if isinstance(module, layers.Merge):
            inputs = self._inputs(node, f"module {path!r}")
            self._add(node, GraphMerge(path, inputs, module.function))
            return
        if len(node.args) != 1 or not isinstance(node.args[0], fx.Node):
            raise self._unsupported(node, f"module {path!r} with more than one input")
        source = node.args[0]
        if isinstance(module, TRANSPARENT):
            self.names[node] = self.names[source]
        elif isinstance(module, NORMS):
            self._attach_norm(node, source, path, module)
        else:
            self._add(node, CONVERTERS[type(module)](path, (self.names[source],), module))

    def _inputs(self, node: fx.Node, what: str) -> tuple[str, ...]:
        """Names of the graph nodes behind all arguments; constants are refused."""
        if not all(isinstance(argument, fx.Node) for argument in node.args):
            raise self._unsupported(node, f"{what} with a constant")
        return tuple(self.names[a] for a in node.args if isinstance(a, fx.Node))

    def _attach_norm(
        self, node: fx.Node, source: fx.Node, path: str, module: nn.BatchNorm1d | nn.BatchNorm2d
    ) -> None:
        projection = self.nodes[self.names[source]]
        if not isinstance(projection, Projection) or projection.norm or len(source.users) != 1:
            raise self._unsupported(
                node, f"batch norm {path!r} that does not directly follow one convolution or linear"
            )
        if not module.affine or module.running_mean is None or module.momentum is None:
            raise self._unsupported(
                node, f"batch norm {path!r} without affine parameters or running statistics"
            )
        norm = BatchNorm(path, module.eps, module.momentum)
        self.nodes[projection.name] = replace(projection, norm=norm)
        self.names[node] = projection.name

    def _add(self, node: fx.Node, made: Node) -> None:
        self.nodes[made.name] = made
        self.names[node] = made.name

    def _unsupported(self, node: fx.Node, what: str) -> UnsupportedGraphError:
        place = (node.stack_trace or "").strip().splitlines()
        where = f" (at: {place[-1].strip()})" if place else ""
        return UnsupportedGraphError(f"{what} is not supported{where}; supported: {SUPPORTED}")


def _pair(value: Any) -> tuple[int, int]:
    return (int(value), int(value)) if isinstance(value, int) else (int(value[0]), int(value[1]))


def _convolution(path: str, inputs: tuple[str, ...], module: Any) -> Node:
    if module.padding_mode != "zeros" or isinstance(module.padding, str):
        raise UnsupportedGraphError(
            f"{path}: padding {module.padding!r} ({module.padding_mode}); only numeric zero padding"
        )
    return Convolution(
        path,
        inputs,
        module.bias is not None,
        None,
        module.in_channels,
        module.out_channels,
        _pair(module.kernel_size),
        _pair(module.stride),
        _pair(module.padding),
        _pair(module.dilation),
        module.groups,
    )


def _linear(path: str, inputs: tuple[str, ...], module: Any) -> Node:
    return Linear(
        path, inputs, module.bias is not None, None, module.in_features, module.out_features
    )


def _population(path: str, inputs: tuple[str, ...], module: Any) -> Node:
    return Population(path, inputs, module.spec)


def _max_pool(path: str, inputs: tuple[str, ...], module: Any) -> Node:
    if module.ceil_mode or _pair(module.dilation) != (1, 1):
        raise UnsupportedGraphError(f"{path}: max pooling with ceil_mode or dilation")
    sides = _pair(module.kernel_size), _pair(module.stride), _pair(module.padding)
    return MaxPool(path, inputs, *sides)


def _avg_pool(path: str, inputs: tuple[str, ...], module: Any) -> Node:
    padded = _pair(module.padding) != (0, 0)
    if module.ceil_mode or module.divisor_override or (padded and not module.count_include_pad):
        raise UnsupportedGraphError(
            f"{path}: average pooling with ceil_mode, divisor_override or count_include_pad=False"
        )
    sides = _pair(module.kernel_size), _pair(module.stride), _pair(module.padding)
    return AvgPool(path, inputs, *sides)


def _adaptive(path: str, inputs: tuple[str, ...], module: Any) -> Node:
    return AdaptiveAvgPool(path, inputs, _pair(module.output_size))


def _flatten(path: str, inputs: tuple[str, ...], module: Any) -> Node:
    return Flatten(path, inputs)


def _rate_readout(path: str, inputs: tuple[str, ...], module: Any) -> Node:
    return Readout(path, inputs, module.out_features, True, module.bias is not None)


def _vote_readout(path: str, inputs: tuple[str, ...], module: Any) -> Node:
    return Readout(path, inputs, module.classes, False, False, module.votes)


ADDITIONS = (operator.add, operator.iadd, torch.add)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
TRANSPARENT = (nn.Identity, nn.Dropout, nn.Dropout2d)  # in evaluation they change nothing

# By exact class: a subclass may compute something else, and then it is traced into or refused.
CONVERTERS: dict[type[nn.Module], Callable[[str, tuple[str, ...], Any], Node]] = {
    layers.RateReadout: _rate_readout,
    layers.VoteReadout: _vote_readout,
    SpikingNeuron: _population,
    layers.Flatten: _flatten,
    nn.Conv2d: _convolution,
    layers.Conv2d: _convolution,
    nn.Linear: _linear,
    nn.MaxPool2d: _max_pool,
    layers.MaxPool2d: _max_pool,
    nn.AvgPool2d: _avg_pool,
    layers.AvgPool2d: _avg_pool,
    nn.AdaptiveAvgPool2d: _adaptive,
    layers.AdaptiveAvgPool2d: _adaptive,
}
