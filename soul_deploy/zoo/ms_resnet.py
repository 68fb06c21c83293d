"""MS-ResNet 18, 34 and 50 with Soul's state-dict names (soul/model/vision/msresnet.py).

Hu et al., Advancing spiking neural networks toward deep residual learning, TNNLS 2024: the branches
meet as currents, *before* the next block's neuron.
"""

from dataclasses import dataclass

from torch import Tensor, nn

from soul_deploy.ir import NeuronSpec, Shape
from soul_deploy.nn.layers import MaxPool2d, Merge, RateReadout
from soul_deploy.nn.neuron import SpikingNeuron
from soul_deploy.zoo.resnet_blocks import STAGES, Stem, block_convolutions, conv_norm, plan_stages


@dataclass(frozen=True)
class MsOptions:
    """What all blocks of one network share. width_per_group: Soul's base_width."""

    neuron: NeuronSpec
    time_steps: int
    groups: int = 1
    width_per_group: int = 64


class MsBlock(nn.Module):
    """Neuron, convolution, batch norm, twice (basic) or three times; plus the current as it came.

    channels: those before, between and after the convolutions.
    """

    def __init__(
        self, options: MsOptions, channels: tuple[int, ...], stride: int, *, bottleneck: bool
    ) -> None:
        super().__init__()
        self.depth = len(channels) - 1
        convolutions = block_convolutions(channels, stride, options.groups, bottleneck=bottleneck)
        for i, conv in enumerate(convolutions, start=1):
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


class MsResNet(nn.Module):
    """Input (B, C, H, W) or (T, B, C, H, W) of `input_shape`; output (B, classes).

    stem: "soul" is 7×7, stride 2 and a max pooling; "small" is 3×3 without pooling.
    """

    def __init__(
        self,
        depth: int,
        options: MsOptions,
        *,
        input_shape: Shape,
        classes: int,
        stem: Stem = "soul",
    ) -> None:
        super().__init__()
        bottleneck = depth >= 50
        expansion = 4 if bottleneck else 1
        large = stem == "soul"
        width = options.width_per_group
        self.conv1 = conv_norm(input_shape[0], width, 7 if large else 3, 2 if large else 1)
        self.maxpool = MaxPool2d(3, 2, 1) if large else nn.Identity()
        for stage, blocks in enumerate(plan_stages(depth, width, expansion, first_stride=2)):
            made = []
            for inputs, planes, stride in blocks:
                inner = planes * width // 64 * options.groups
                sides = (
                    (inputs, inner, inner, planes * 4) if bottleneck else (inputs, planes, planes)
                )
                made.append(MsBlock(options, sides, stride, bottleneck=bottleneck))
            self.add_module(f"conv{stage + 2}_x", nn.Sequential(*made))
        self.sn1 = SpikingNeuron(options.neuron, options.time_steps)
        self.head = RateReadout(512 * expansion, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.conv1(x))
        for stage in range(2, len(STAGES[18]) + 2):
            x = self.get_submodule(f"conv{stage}_x")(x)
        scores: Tensor = self.head(self.sn1(x))
        return scores
