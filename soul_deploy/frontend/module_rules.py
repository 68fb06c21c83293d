"""From one PyTorch module to one graph node."""

from collections.abc import Callable
from typing import Any

from soul_deploy import ir
from soul_deploy.base.errors import UnsupportedGraphError
from soul_deploy.frontend.module_kinds import NEURONS, module_neuron_spec


def pair(value: Any) -> tuple[int, int]:
    """A side given once or twice."""
    return (int(value), int(value)) if isinstance(value, int) else (int(value[0]), int(value[1]))


def _convolution(path: str, inputs: tuple[str, ...], module: Any) -> ir.Node:
    if module.padding_mode != "zeros" or isinstance(module.padding, str):
        raise UnsupportedGraphError(
            f"{path}: padding {module.padding!r} ({module.padding_mode}); only numeric zero padding"
        )
    return ir.Convolution(
        path,
        inputs,
        module.bias is not None,
        None,
        module.in_channels,
        module.out_channels,
        pair(module.kernel_size),
        pair(module.stride),
        pair(module.padding),
        pair(module.dilation),
        module.groups,
    )


def _linear(path: str, inputs: tuple[str, ...], module: Any) -> ir.Node:
    return ir.Linear(
        path, inputs, module.bias is not None, None, module.in_features, module.out_features
    )


def _population(path: str, inputs: tuple[str, ...], module: Any) -> ir.Node:
    return ir.Population(path, inputs, module_neuron_spec(path, module))


def _max_pool(path: str, inputs: tuple[str, ...], module: Any) -> ir.Node:
    if module.ceil_mode or pair(module.dilation) != (1, 1) or module.return_indices:
        raise UnsupportedGraphError(
            f"{path}: max pooling with ceil_mode, dilation or return_indices"
        )
    sides = pair(module.kernel_size), pair(module.stride), pair(module.padding)
    return ir.MaxPool(path, inputs, *sides)


def _avg_pool(path: str, inputs: tuple[str, ...], module: Any) -> ir.Node:
    padded = pair(module.padding) != (0, 0)
    if module.ceil_mode or module.divisor_override or (padded and not module.count_include_pad):
        raise UnsupportedGraphError(
            f"{path}: average pooling with ceil_mode, divisor_override or count_include_pad=False"
        )
    sides = pair(module.kernel_size), pair(module.stride), pair(module.padding)
    return ir.AvgPool(path, inputs, *sides)


def adaptive_pool(path: str, inputs: tuple[str, ...], size: Any) -> ir.Node:
    """The pooling to `size`, a side or two. Raises UnsupportedGraphError for an open side."""
    if size is None or (not isinstance(size, int) and None in size):
        raise UnsupportedGraphError(f"{path}: adaptive pooling to {size}; both sides are needed")
    return ir.AdaptiveAvgPool(path, inputs, pair(size))


def _adaptive(path: str, inputs: tuple[str, ...], module: Any) -> ir.Node:
    return adaptive_pool(path, inputs, module.output_size)


def _rate_readout(path: str, inputs: tuple[str, ...], module: Any) -> ir.Node:
    return ir.Readout(path, inputs, module.out_features, True, module.bias is not None)


def _vote_readout(path: str, inputs: tuple[str, ...], module: Any) -> ir.Node:
    return ir.Readout(path, inputs, module.classes, False, False, module.votes)


CONVERTERS: dict[str, Callable[[str, tuple[str, ...], Any], ir.Node]] = {
    "RateReadout": _rate_readout,
    "VoteReadout": _vote_readout,
    "SpikingNeuron": _population,
    **dict.fromkeys(NEURONS, _population),
    "Conv2d": _convolution,
    "Linear": _linear,
    "MaxPool2d": _max_pool,
    "AvgPool2d": _avg_pool,
    "AdaptiveAvgPool2d": _adaptive,
}
