"""Operations on whole channels in ONNX: constants, batch norm of its own, scattering."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from soul_deploy import ir
from soul_deploy.base import Array
from soul_deploy.lowering.fold_batch_norm import ChannelConstants

if TYPE_CHECKING:
    from soul_deploy.export.onnx.nodes import OnnxBuilder


def scale_name(node: str) -> str:
    """The initializer that holds what a node multiplies by."""
    return f"{node}.scale"


def shift_name(node: str) -> str:
    """The initializer that holds what a node adds."""
    return f"{node}.shift"


def stored(
    node: ir.Node, constants: ChannelConstants, graph: ir.SpikingGraph
) -> Iterator[tuple[str, Array]]:
    """The initializers that hold a node's constants: names and float32 values."""
    single = isinstance(node, ir.Scale) and node.factor is not None
    sides = [1] * (len(graph.shapes[node.name]) - 1)
    scale = constants.scale[:1] if single else constants.scale.reshape(-1, *sides)
    yield scale_name(node.name), scale.astype(np.float32)
    if constants.shift is not None:
        yield shift_name(node.name), constants.shift.astype(np.float32).reshape(-1, *sides)


def append_scale(node: ir.Scale, b: "OnnxBuilder") -> None:
    """One number is an array of one: ONNX Runtime moves a scalar into matrix products."""
    (factor,) = _constants(node, b)
    b.op("Mul", [b.source(node), factor], b.value(node.name))


def append_channel_norm(node: ir.ChannelNorm, b: "OnnxBuilder") -> None:
    """Times and plus what statistics and weights make, in float64 and rounded once."""
    scale, shift = _constants(node, b)
    scaled = b.op("Mul", [b.source(node), scale], f"{node.name}.scaled")
    b.op("Add", [scaled, shift], b.value(node.name))


def _constants(node: ir.Node, b: "OnnxBuilder") -> list[str]:
    values = stored(node, b.lowered.constants[node.name], b.graph)
    return [b.constant(name, value) for name, value in values]


def append_scatter(node: ir.Scatter, b: "OnnxBuilder") -> None:
    """A channel of zeros behind the others, and each wide channel picked from among these."""
    name, rank = node.name, 1 + len(b.graph.shapes[node.name])
    behind = [int(axis == 1) for axis in range(rank)]
    pads = b.integers(f"{name}.pads", *[0] * rank, *behind)
    padded = b.op("Pad", [b.source(node), pads], f"{name}.padded")
    picked = np.full(node.channels, len(node.index), np.int64)
    picked[list(node.index)] = np.arange(len(node.index))
    b.op("Gather", [padded, b.constant(f"{name}.index", picked)], b.value(name), axis=1)
