"""SpikingVGG 5 to 19 with Soul's state-dict names and shapes (soul/model/vision/spikingvgg.py)."""

from torch import Tensor, nn

from soul_deploy.base.errors import UsageError
from soul_deploy.ir import NeuronSpec, Shape
from soul_deploy.nn.layers import AdaptiveAvgPool2d, BatchNorm2d, Conv2d, MaxPool2d, RateReadout
from soul_deploy.nn.neuron import SpikingNeuron

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


class ConvNeuron(nn.Module):
    """3×3 convolution, batch norm, neuron."""

    def __init__(self, neuron: NeuronSpec, time_steps: int, channels: tuple[int, int]) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            Conv2d(*channels, kernel_size=3, padding=1, bias=False), BatchNorm2d(channels[1])
        )
        self.sn = SpikingNeuron(neuron, time_steps)

    def forward(self, x: Tensor) -> Tensor:
        spikes: Tensor = self.sn(self.conv(x))
        return spikes


class ConvMlp(nn.Module):
    """The head's two hidden layers: a 7×7 convolution (valid) and a 1×1 one.

    A map smaller than 7×7 is stretched to it by adaptive average pooling, as Soul does.
    """

    def __init__(
        self, neuron: NeuronSpec, time_steps: int, channels: int, hidden: int, side: tuple[int, int]
    ) -> None:
        super().__init__()
        target = (max(HEAD_KERNEL, side[0]), max(HEAD_KERNEL, side[1]))
        self.resize = AdaptiveAvgPool2d(target) if target != side else nn.Identity()
        self.fc1 = nn.Sequential(
            Conv2d(channels, hidden, HEAD_KERNEL, bias=False), BatchNorm2d(hidden)
        )
        self.sn1 = SpikingNeuron(neuron, time_steps)
        self.fc2 = nn.Sequential(Conv2d(hidden, hidden, 1, bias=False), BatchNorm2d(hidden))
        self.sn2 = SpikingNeuron(neuron, time_steps)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.sn1(self.fc1(self.resize(x)))
        spikes: Tensor = self.sn2(self.fc2(hidden))
        return spikes


class SpikingVGG(nn.Module):
    """Convolution blocks, the convolutional MLP, and the mean over time and space into a head.

    Input (B, C, H, W) or (T, B, C, H, W) of `input_shape`; output (B, classes).
    Raises UsageError if the poolings leave no position.
    """

    def __init__(
        self,
        layers: tuple[Layer, ...],
        *,
        input_shape: Shape,
        classes: int,
        neuron: NeuronSpec,
        time_steps: int,
        hidden: int = 2048,
    ) -> None:
        super().__init__()
        channels, *side = input_shape
        blocks: list[nn.Module] = []
        for layer in layers:
            if isinstance(layer, str):
                blocks.append(MaxPool2d(2, 2))
                side = [length // 2 for length in side]
            else:
                blocks.append(ConvNeuron(neuron, time_steps, (channels, layer)))
                channels = layer
        if min(side) < 1:
            raise UsageError(f"an input of {input_shape} is too small for this many poolings")
        self.features = nn.Sequential(*blocks)
        self.pre_logits = ConvMlp(neuron, time_steps, channels, hidden, (side[0], side[1]))
        self.head = RateReadout(hidden, classes)
        self._initialise()

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(self.pre_logits(self.features(x)))
        return scores

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.normal_(self.head.weight, 0, 0.01)
        nn.init.zeros_(self.head.bias)
