"""6Conv2FC, the CIFAR-10 network of Shi et al., ICLR 2024 (published code, models/cifar10.py)."""

from torch import Tensor, nn

from soul_deploy.base.errors import UsageError
from soul_deploy.ir import NeuronSpec, Shape
from soul_deploy.nn.layers import Flatten, MaxPool2d, VoteReadout
from soul_deploy.nn.neuron import SpikingNeuron
from soul_deploy.zoo.spiking_vgg import ConvNeuron

VOTES = 10


class Cifar10Net(nn.Module):
    """Six 3×3 convolutions with batch norm, two linear layers without, a neuron behind each.

    The last layer has 10 neurons a class, whose firing rates are averaged. In the paper's code the
    linear layers are 1×1 convolutions. Input (B, C, H, W) or (T, B, C, H, W) of `input_shape`.
    """

    def __init__(
        self,
        *,
        input_shape: Shape,
        classes: int,
        neuron: NeuronSpec,
        time_steps: int,
        width: int = 256,
        hidden: int = 2048,
    ) -> None:
        super().__init__()
        channels, height, width_in = input_shape
        if min(height, width_in) < 4:
            raise UsageError(f"cifar10net: an input of {input_shape} is too small for two poolings")

        def block(inputs: int) -> ConvNeuron:
            return ConvNeuron(neuron, time_steps, (inputs, width))

        self.features = nn.Sequential(
            *(block(channels), block(width), block(width), MaxPool2d(2, 2)),
            *(block(width), block(width), block(width), MaxPool2d(2, 2)),
        )
        self.flatten = Flatten()
        self.fc1 = nn.Linear(width * (height // 4) * (width_in // 4), hidden, bias=False)
        self.sn1 = SpikingNeuron(neuron, time_steps)
        self.fc2 = nn.Linear(hidden, classes * VOTES, bias=False)
        self.sn2 = SpikingNeuron(neuron, time_steps)
        self.vote = VoteReadout(classes, VOTES)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.sn1(self.fc1(self.flatten(self.features(x))))
        scores: Tensor = self.vote(self.sn2(self.fc2(hidden)))
        return scores
