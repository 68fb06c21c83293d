"""Pooling: operations that reduce the windows of a map, channel by channel."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from soul_deploy.base.errors import UsageError
from soul_deploy.ir import neurons, node


@dataclass(frozen=True)
class Pool(node.Node):
    """A window sliding over a map; floor division at the far border."""

    keeps_channels: ClassVar[bool] = True
    kernel: node.Pair
    stride: node.Pair
    padding: node.Pair = (0, 0)

    def output_shape(self, inputs: Sequence[node.Shape]) -> node.Shape:
        shape = inputs[0]
        if len(shape) != 3:
            raise UsageError(f"{self.name}: pooling needs a (C, H, W) input, got {shape}")
        if any(2 * self.padding[i] > self.kernel[i] for i in (0, 1)):
            raise UsageError(
                f"{self.name}: padding {self.padding} is more than half the kernel {self.kernel}"
            )
        return (shape[0], *node.slid(self.name, shape, self.kernel, self.stride, self.padding))

    def describe(self) -> str:
        return f"{self.kernel[0]}×{self.kernel[1]}, stride {self.stride[0]}×{self.stride[1]}"


@dataclass(frozen=True)
class MaxPool(Pool):
    """Maximum over a window; of spikes: OR. Padding is left out of it."""

    op: ClassVar[str] = "max_pool"
    keeps_zero: ClassVar[bool] = True


@dataclass(frozen=True)
class AvgPool(Pool):
    """Mean over a window (padding counts as zeros); composed into the next projection."""

    op: ClassVar[str] = "avg_pool"
    composable: ClassVar[bool] = True
    keeps_zero: ClassVar[bool] = True
    gives: ClassVar[neurons.Edge | None] = neurons.ANALOG

    @property
    def integers(self) -> bool | None:
        return False

    @property
    def pads(self) -> bool:
        return self.padding != (0, 0)

    def averages_all(self, in_shape: node.Shape) -> bool:
        return self.kernel == in_shape[1:] and self.padding == (0, 0)

    def denominator(self, in_shape: node.Shape) -> int:
        return math.prod(self.kernel)


@dataclass(frozen=True)
class SumPool(AvgPool):
    """Sum over a window: an average pooling of a fixed-point network, whose division went into the
    weights behind it. Windows tile the map; what is left over at the far border is left out.
    """

    op: ClassVar[str] = "sum_pool"

    @property
    def integers(self) -> bool | None:
        return True

    def output_shape(self, inputs: Sequence[node.Shape]) -> node.Shape:
        if self.stride != self.kernel or self.padding != (0, 0):
            raise UsageError(f"{self.name}: windows of a sum pooling tile the map")
        return super().output_shape(inputs)

    def output_edge(self, inputs: Sequence[neurons.Edge]) -> neurons.Edge:
        (edge,) = inputs
        if edge.kind == "analog" or edge.bound is None:
            return edge
        area = math.prod(self.kernel)
        return neurons.Edge("graded", edge.bound * area, edge.low * area)

    def denominator(self, in_shape: node.Shape) -> int:
        return 1

    def averages_all(self, in_shape: node.Shape) -> bool:
        return False


@dataclass(frozen=True)
class AdaptiveAvgPool(node.Node):
    """Mean over windows that tile the input to a given output size."""

    op: ClassVar[str] = "adaptive_avg_pool"
    composable: ClassVar[bool] = True
    keeps_zero: ClassVar[bool] = True
    keeps_channels: ClassVar[bool] = True
    gives: ClassVar[neurons.Edge | None] = neurons.ANALOG
    size: node.Pair

    @property
    def integers(self) -> bool | None:
        return False

    def output_shape(self, inputs: Sequence[node.Shape]) -> node.Shape:
        if len(inputs[0]) != 3:
            raise UsageError(f"{self.name}: pooling needs a (C, H, W) input, got {inputs[0]}")
        return (inputs[0][0], *node.positive(self.name, self.size, inputs[0]))

    def describe(self) -> str:
        return f"to {self.size[0]}×{self.size[1]}"

    def averages_all(self, in_shape: node.Shape) -> bool:
        return self.size == (1, 1)

    def denominator(self, in_shape: node.Shape) -> int:
        areas = 1
        for side, count in zip(in_shape[1:], self.size, strict=True):
            spans = {-(-(o + 1) * side // count) - o * side // count for o in range(count)}
            areas *= math.lcm(*spans)
        return areas
