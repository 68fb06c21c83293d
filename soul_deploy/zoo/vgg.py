"""SpikingVGG 5 to 19 with Soul's state-dict names and shapes (soul/model/vision/spikingvgg.py).

And 6Conv2FC, the CIFAR-10 network of Shi et al., ICLR 2024 (published code, models/cifar10.py).
"""

from typing import TYPE_CHECKING

from torch import nn

from soul_deploy.base.errors import UsageError
from soul_deploy.ir import NeuronSpec
from soul_deploy.nn import layers
from soul_deploy.nn.neuron import SpikingNeuron
from soul_deploy.zoo.initialisation import kaiming_fan_out
from soul_deploy.zoo.resnet import conv_norm

if TYPE_CHECKING:
    from soul_deploy.zoo.registry import NetworkOptions

Layer = int | str

CONFIGURATIONS: dict[str, tuple[Layer, ...]] = {
    "spikingvgg5": (64, "M", 128, "M"),
    "spikingvgg9": (64, "M", 128, 128, "M", 256, 256, 256, "M"),
    "spikingvgg11": (64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M"),
    "spikingvgg13": (64, 64, "M", 128, 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M"),
    "spikingvgg16": (
        *(64, 64, "M", 128, 128, "M", 256, 256, 256, "M"),
        *(512, 512, 512, "M", 512, 512, 512, "M"),
    ),
    "spikingvgg19": (
        *(64, 64, "M", 128, 128, "M", 256, 256, 256, 256, "M"),
        *(512, 512, 512, 512, "M", 512, 512, 512, 512, "M"),
    ),
}
HEAD_KERNEL = 7
VOTES = 10


class ConvNeuron(nn.Sequential):
    """3×3 convolution, batch norm, neuron."""

    def __init__(self, neuron: NeuronSpec, time_steps: int, channels: tuple[int, int]) -> None:
        super().__init__()
        self.conv = conv_norm(*channels, 3, 1)
        self.sn = SpikingNeuron(neuron, time_steps)


class ConvMlp(nn.Sequential):
    """The head's two hidden layers: a 7×7 convolution (valid) and a 1×1 one.

    A map smaller than 7×7 is stretched to it by adaptive average pooling, as Soul does. widths:
    channels before, between and behind.
    """

    def __init__(
        self, neuron: NeuronSpec, time_steps: int, widths: tuple[int, int, int],
        side: tuple[int, int],
    ) -> None:  # fmt: skip
        super().__init__()
        channels, middle, hidden = widths
        target = (max(HEAD_KERNEL, side[0]), max(HEAD_KERNEL, side[1]))
        self.resize = layers.AdaptiveAvgPool2d(target) if target != side else nn.Identity()
        self.fc1 = nn.Sequential(
            layers.Conv2d(channels, middle, HEAD_KERNEL, bias=False), layers.BatchNorm2d(middle)
        )
        self.sn1 = SpikingNeuron(neuron, time_steps)
        self.fc2 = conv_norm(middle, hidden, 1, 1)
        self.sn2 = SpikingNeuron(neuron, time_steps)


class SpikingVGG(nn.Sequential):
    """Convolution blocks, the convolutional MLP, and the mean over time and space into a head.

    Input (B, C, H, W) or (T, B, C, H, W); output (B, classes).
    Raises UsageError if the poolings leave no position, or mlp_ratio no neuron.
    """

    def __init__(self, name: str, options: "NetworkOptions", hidden: int) -> None:
        super().__init__()
        neuron, steps = options.neuron, options.time_steps
        channels, *side = options.input_shape
        blocks: list[nn.Module] = []
        for layer in CONFIGURATIONS[name]:
            if isinstance(layer, str):
                blocks.append(layers.MaxPool2d(2, 2))
                side = [length // 2 for length in side]
            else:
                blocks.append(ConvNeuron(neuron, steps, (channels, layer)))
                channels = layer
        if min(side) < 1:
            raise UsageError(
                f"{name}: an input of {options.input_shape} is too small for this many poolings; "
                "give a network with fewer with --model"
            )
        self.features = nn.Sequential(*blocks)
        middle = int(hidden * options.mlp_ratio)
        if middle < 1:
            raise UsageError(
                f"{name}: mlp_ratio {options.mlp_ratio:g} of {hidden} hidden neurons leaves none"
            )
        self.pre_logits = ConvMlp(neuron, steps, (channels, middle, hidden), (side[0], side[1]))
        self.head = layers.RateReadout(hidden, options.classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.normal_(self.head.weight, 0, 0.01)
        nn.init.zeros_(self.head.bias)


class Cifar10Net(nn.Sequential):
    """Six 3×3 convolutions with batch norm, two linear layers without, a neuron behind each.

    The last layer has 10 neurons a class, whose firing rates are averaged. In the paper's code the
    linear layers are 1×1 convolutions. All weights are Kaiming's, as there. Input (B, C, H, W) or
    (T, B, C, H, W).
    """

    def __init__(self, options: "NetworkOptions", hidden: int) -> None:
        super().__init__()
        neuron, steps, width = options.neuron, options.time_steps, options.width
        channels, height, width_in = options.input_shape
        if min(height, width_in) < 4:
            raise UsageError(
                f"cifar10net: an input of {options.input_shape} is too small for two poolings"
            )

        def block(inputs: int) -> ConvNeuron:
            return ConvNeuron(neuron, steps, (inputs, width))

        self.features = nn.Sequential(
            *(block(channels), block(width), block(width), layers.MaxPool2d(2, 2)),
            *(block(width), block(width), block(width), layers.MaxPool2d(2, 2)),
        )
        self.flatten = layers.Flatten()
        self.fc1 = nn.Linear(width * (height // 4) * (width_in // 4), hidden, bias=False)
        self.sn1 = SpikingNeuron(neuron, steps)
        self.fc2 = nn.Linear(hidden, options.classes * VOTES, bias=False)
        self.sn2 = SpikingNeuron(neuron, steps)
        self.vote = layers.VoteReadout(options.classes, VOTES)
        kaiming_fan_out(self)
