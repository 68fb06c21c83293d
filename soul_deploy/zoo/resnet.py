"""SEW-ResNet and MS-ResNet 18, 34 and 50 with Soul's state-dict names (soul/model/vision).

SEW (sewresnet.py; Fang et al., Deep residual learning in spiking neural networks, NeurIPS 2021):
the branches meet *after* their neurons, by a spike-element-wise function. MS (msresnet.py; Hu et
al., Advancing spiking neural networks toward deep residual learning, TNNLS 2024): they meet as
currents, *before* the next block's neuron.
"""

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

from torch import Tensor, nn

from soul_deploy.nn.layers import BatchNorm2d, Conv2d, MaxPool2d, Merge, RateReadout
from soul_deploy.nn.neuron import SpikingNeuron

if TYPE_CHECKING:
    from soul_deploy.zoo.registry import NetworkOptions

Stem = Literal["soul", "small"]
STAGES: dict[int, tuple[int, int, int, int]] = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
}
PLANES = (64, 128, 256, 512)


def conv_norm(
    inputs: int, outputs: int, kernel: int, stride: int, groups: int = 1
) -> nn.Sequential:
    """A convolution that keeps the size (up to the stride), without bias, and its batch norm."""
    return nn.Sequential(
        Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False),
        BatchNorm2d(outputs),
    )


def block_convolutions(
    channels: tuple[int, ...], stride: int, groups: int
) -> Iterator[nn.Sequential]:
    """A block's convolutions from `channels[i]` to `channels[i + 1]`: 3×3, or 1×1, 3×3, 1×1.

    The stride is the first 3×3's; only a bottleneck's 3×3 has groups.
    """
    bottleneck = len(channels) == 4
    for i, sides in enumerate(pairwise(channels)):
        kernel = 3 if not bottleneck or i == 1 else 1
        strided = i == (1 if bottleneck else 0)
        grouped = bottleneck and kernel == 3
        yield conv_norm(*sides, kernel, stride if strided else 1, groups if grouped else 1)


def stem(options: "NetworkOptions", width: int) -> tuple[nn.Module, nn.Module]:
    """The first convolution, to `width` channels, and its pooling.

    "soul" is 7×7, stride 2 and a max pooling; "small" is 3×3 without pooling, for small images.
    """
    large = options.stem == "soul"
    convolution = conv_norm(options.input_shape[0], width, 7 if large else 3, 2 if large else 1)
    return convolution, MaxPool2d(3, 2, 1) if large else nn.Identity()


def stages(
    block: Callable[["NetworkOptions", tuple[int, ...], int], nn.Module],
    depth: int,
    options: "NetworkOptions",
    inputs: int,
    first_stride: int,
) -> Iterator[nn.Sequential]:
    """The four stages: `block` of options, channels and stride; bottlenecks from depth 50 on."""
    for stage, (planes, count) in enumerate(zip(PLANES, STAGES[depth], strict=True)):
        inner = planes * options.width_per_group // 64 * options.groups
        sides = (inner, inner, planes * 4) if depth >= 50 else (planes, planes)
        blocks = []
        for at in range(count):
            stride = (first_stride if stage == 0 else 2) if at == 0 else 1
            blocks.append(block(options, (inputs, *sides), stride))
            inputs = sides[-1]
        yield nn.Sequential(*blocks)


def head(depth: int, classes: int) -> RateReadout:
    """The mean over time and space into a linear head."""
    return RateReadout(PLANES[-1] * (4 if depth >= 50 else 1), classes)


class SewBlock(nn.Module):
    """Convolutions with a neuron behind each, merged with the identity or a strided projection.

    channels: those before, between and after the convolutions.
    """

    def __init__(self, options: "NetworkOptions", channels: tuple[int, ...], stride: int) -> None:
        super().__init__()
        self.depth = len(channels) - 1
        for i, conv in enumerate(block_convolutions(channels, stride, options.groups), start=1):
            self.add_module(f"conv{i}", conv)
            self.add_module(f"sn{i}", SpikingNeuron(options.neuron, options.time_steps))
        self.downsample: nn.Module | None = None
        if stride != 1 or channels[0] != channels[-1]:
            self.downsample = conv_norm(channels[0], channels[-1], 1, stride)
            self.downsample_sn = SpikingNeuron(options.neuron, options.time_steps)
        self.merge = Merge(options.connect)

    def forward(self, x: Tensor) -> Tensor:
        out = x
        for i in range(1, self.depth + 1):
            out = self.get_submodule(f"sn{i}")(self.get_submodule(f"conv{i}")(out))
        identity = x if self.downsample is None else self.downsample_sn(self.downsample(x))
        joined: Tensor = self.merge(identity, out)
        return joined


class SewResNet(nn.Sequential):
    """Input (B, C, H, W) or (T, B, C, H, W); output (B, classes)."""

    def __init__(self, depth: int, options: "NetworkOptions") -> None:
        super().__init__()
        self.conv1, pooling = stem(options, PLANES[0])  # modules run in the order they are made in
        self.sn1 = SpikingNeuron(options.neuron, options.time_steps)
        self.maxpool = pooling
        for i, stage in enumerate(stages(SewBlock, depth, options, PLANES[0], 1), start=1):
            self.add_module(f"layer{i}", stage)
        self.head = head(depth, options.classes)
        for module in self.modules():  # Kaiming's, as Soul does
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


class MsBlock(nn.Module):
    """Neuron, convolution, batch norm, twice (basic) or three times; plus the current as it came.

    channels: those before, between and after the convolutions.
    """

    def __init__(self, options: "NetworkOptions", channels: tuple[int, ...], stride: int) -> None:
        super().__init__()
        self.depth = len(channels) - 1
        for i, conv in enumerate(block_convolutions(channels, stride, options.groups), start=1):
            self.add_module(f"sn{i}", SpikingNeuron(options.neuron, options.time_steps))
            self.add_module(f"conv{i}", conv)
        self.shortcut = nn.Sequential()
        if stride != 1 or channels[0] != channels[-1]:
            self.shortcut = conv_norm(channels[0], channels[-1], 1, stride)
        self.merge = Merge("add")

    def forward(self, x: Tensor) -> Tensor:
        out = x
        for i in range(1, self.depth + 1):
            out = self.get_submodule(f"conv{i}")(self.get_submodule(f"sn{i}")(out))
        joined: Tensor = self.merge(out, self.shortcut(x))
        return joined


class MsResNet(nn.Sequential):
    """Input (B, C, H, W) or (T, B, C, H, W); output (B, classes)."""

    def __init__(self, depth: int, options: "NetworkOptions") -> None:
        super().__init__()
        width = options.width_per_group  # Soul's base_width
        self.conv1, self.maxpool = stem(options, width)
        for i, stage in enumerate(stages(MsBlock, depth, options, width, 2), start=2):
            self.add_module(f"conv{i}_x", stage)
        self.sn1 = SpikingNeuron(options.neuron, options.time_steps)
        self.head = head(depth, options.classes)
