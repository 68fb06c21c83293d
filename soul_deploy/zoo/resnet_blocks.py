"""What the residual families share: stages, convolution with batch norm, initialisation."""

from collections.abc import Iterator
from itertools import pairwise
from typing import Literal

from torch import nn

from soul_deploy.nn.layers import BatchNorm2d, Conv2d

Stem = Literal["soul", "small"]
STAGES: dict[int, tuple[int, int, int, int]] = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
}
PLANES = (64, 128, 256, 512)


def plan_stages(
    depth: int, inputs: int, expansion: int, *, first_stride: int
) -> Iterator[list[tuple[int, int, int]]]:
    """Per stage, per block: (input channels, planes, stride of its first block)."""
    for stage, (planes, count) in enumerate(zip(PLANES, STAGES[depth], strict=True)):
        blocks = []
        for block in range(count):
            stride = (first_stride if stage == 0 else 2) if block == 0 else 1
            blocks.append((inputs, planes, stride))
            inputs = planes * expansion
        yield blocks


def conv_norm(
    inputs: int, outputs: int, kernel: int, stride: int, groups: int = 1
) -> nn.Sequential:
    """A convolution that keeps the size (up to the stride), without bias, and its batch norm."""
    return nn.Sequential(
        Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False),
        BatchNorm2d(outputs),
    )


def block_convolutions(
    channels: tuple[int, ...], stride: int, groups: int, *, bottleneck: bool
) -> Iterator[nn.Sequential]:
    """A block's convolutions from `channels[i]` to `channels[i + 1]`: 3×3, or 1×1, 3×3, 1×1.

    The stride is the first 3×3's; only a bottleneck's 3×3 has groups.
    """
    for i, (inputs, outputs) in enumerate(pairwise(channels)):
        three = not bottleneck or i == 1
        strided = i == (1 if bottleneck else 0)
        yield conv_norm(
            inputs,
            outputs,
            3 if three else 1,
            stride if strided else 1,
            groups if bottleneck and three else 1,
        )


def initialise(network: nn.Module) -> None:
    """Kaiming's normal initialisation of the convolutions, as Soul does."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
