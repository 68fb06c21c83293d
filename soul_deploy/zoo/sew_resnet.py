"""SEW-ResNet 18, 34 and 50 with Soul's state-dict names (soul/model/vision/sewresnet.py).

Fang et al., Deep residual learning in spiking neural networks, NeurIPS 2021: the branches meet
*after* their neurons, by a spike-element-wise function.
"""

from dataclasses import dataclass

from torch import Tensor, nn

from soul_deploy.ir import MergeFunction, NeuronSpec, Shape
from soul_deploy.nn.layers import MaxPool2d, Merge, RateReadout
from soul_deploy.nn.neuron import SpikingNeuron
from soul_deploy.zoo import resnet_blocks


@dataclass(frozen=True)
class SewOptions:
    """What all blocks of one network share."""

    neuron: NeuronSpec
    time_steps: int
    connect: MergeFunction
    groups: int = 1
    width_per_group: int = 64


class SewBlock(nn.Module):
    """Convolutions with a neuron behind each, merged with the identity or a strided projection.

    channels: those before, between and after the convolutions.
    """

    def __init__(
        self, options: SewOptions, channels: tuple[int, ...], stride: int, *, bottleneck: bool
    ) -> None:
        super().__init__()
        self.depth = len(channels) - 1
        convolutions = resnet_blocks.block_convolutions(
            channels, stride, options.groups, bottleneck=bottleneck
        )
        for i, conv in enumerate(convolutions, start=1):
            self.add_module(f"conv{i}", conv)
            self.add_module(f"sn{i}", SpikingNeuron(options.neuron, options.time_steps))
        self.downsample: nn.Module | None = None
        if stride != 1 or channels[0] != channels[-1]:
            self.downsample = resnet_blocks.conv_norm(channels[0], channels[-1], 1, stride)
            self.downsample_sn = SpikingNeuron(options.neuron, options.time_steps)
        self.merge = Merge(options.connect)

    def forward(self, x: Tensor) -> Tensor:
        out = x
        for i in range(1, self.depth + 1):
            out = self.get_submodule(f"sn{i}")(self.get_submodule(f"conv{i}")(out))
        identity = x if self.downsample is None else self.downsample_sn(self.downsample(x))
        joined: Tensor = self.merge(identity, out)
        return joined


class SewResNet(nn.Module):
    """Input (B, C, H, W) or (T, B, C, H, W) of `input_shape`; output (B, classes).

    stem: "soul" is 7×7, stride 2 and a max pooling; "small" is 3×3 without pooling, for small
    images.
    """

    def __init__(
        self,
        depth: int,
        options: SewOptions,
        *,
        input_shape: Shape,
        classes: int,
        stem: resnet_blocks.Stem = "soul",
    ) -> None:
        super().__init__()
        bottleneck = depth >= 50
        expansion = 4 if bottleneck else 1
        large = stem == "soul"
        self.conv1 = resnet_blocks.conv_norm(
            input_shape[0], 64, 7 if large else 3, 2 if large else 1
        )
        self.sn1 = SpikingNeuron(options.neuron, options.time_steps)
        self.maxpool = MaxPool2d(3, 2, 1) if large else nn.Identity()
        for stage, blocks in enumerate(
            resnet_blocks.plan_stages(depth, 64, expansion, first_stride=1)
        ):
            made = []
            for inputs, planes, stride in blocks:
                width = planes * options.width_per_group // 64 * options.groups
                sides = (
                    (inputs, width, width, planes * 4) if bottleneck else (inputs, planes, planes)
                )
                made.append(SewBlock(options, sides, stride, bottleneck=bottleneck))
            self.add_module(f"layer{stage + 1}", nn.Sequential(*made))
        self.head = RateReadout(512 * expansion, classes)
        resnet_blocks.initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.sn1(self.conv1(x)))
        for stage in range(1, len(resnet_blocks.STAGES[18]) + 1):
            x = self.get_submodule(f"layer{stage}")(x)
        scores: Tensor = self.head(x)
        return scores
