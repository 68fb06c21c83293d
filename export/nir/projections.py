"""Synapses of NIR: Linear, Affine and Conv2d as projections of ours, with their weights."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from soul_deploy import ir
from soul_deploy.base import Array
from soul_deploy.base.errors import UnsupportedGraphError

Read = tuple[ir.Node, Array, Array | None]
"""A projection, its weight in float64, its bias in float32 or None."""


def _linear(key: str, name: str, source: str, node: Any) -> Read:
    weight = np.asarray(node.weight, np.float64)
    if weight.ndim != 2:
        text = f"{key}: weight of shape {weight.shape}; supported: (out, in)"
        raise UnsupportedGraphError(text)
    bias = _bias(getattr(node, "bias", None))
    features, width = weight.shape
    return ir.Linear(name, (source,), bias is not None, None, width, features), weight, bias


def _bias(bias: Any) -> Array | None:
    """float32; None where all are 0, which NIR's convolution cannot leave out."""
    array = None if bias is None else np.asarray(bias, np.float32)
    return array if array is not None and array.any() else None


def _convolution(key: str, name: str, source: str, node: Any) -> Read:
    weight, groups = np.asarray(node.weight, np.float64), int(node.groups)
    kernel, dilation = pair(weight.shape[2:]), pair(node.dilation)
    stride, bias = pair(node.stride), _bias(node.bias)
    padding = _padding(key, node.padding, kernel, stride, dilation)
    channels = weight.shape[1] * groups, weight.shape[0]
    geometry = (*channels, kernel, stride, padding, dilation, groups)
    return ir.Convolution(name, (source,), bias is not None, None, *geometry), weight, bias


PROJECTIONS: Mapping[str, Callable[[str, str, str, Any], Read]] = {
    "Affine": _linear,
    "Linear": _linear,
    "Conv2d": _convolution,
}
"""(key, our name, our source's name, NIR node) -> the projection; UnsupportedGraphError."""


def _padding(
    key: str, padding: Any, kernel: ir.Pair, stride: ir.Pair, dilation: ir.Pair
) -> ir.Pair:
    text = padding.decode() if isinstance(padding, bytes) else padding
    if not isinstance(text, str):
        return pair(text)
    if text == "valid":
        return 0, 0
    if stride != (1, 1) or any(d * (k - 1) % 2 for k, d in zip(kernel, dilation, strict=True)):
        raise UnsupportedGraphError(
            f"{key}: padding 'same' with stride {stride} and kernel {kernel} is not the same on "
            "both sides; supported is symmetric padding"
        )
    return dilation[0] * (kernel[0] - 1) // 2, dilation[1] * (kernel[1] - 1) // 2


def integers(values: Any) -> tuple[int, ...]:
    return tuple(int(value) for value in np.ravel(values))


def pair(value: Any) -> ir.Pair:
    sides = integers(value)
    return (sides[0], sides[0]) if len(sides) == 1 else (sides[0], sides[1])
