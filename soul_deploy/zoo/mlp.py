"""SpikingMLP and SpikingLeNet with Soul's state-dict names and shapes (soul/model/*/general.py).

Soul has them for four kinds of input. An acoustic one of (H, W) is an image of one channel here,
and the network is the one for vision; so is a wireless one of (C, H, W). Series (C, W) of motion
sensors are (1, C, W): the MLP is the same, the LeNet has kernels along the last axis alone.
"""

from typing import TYPE_CHECKING

from torch import nn

from soul_deploy.base.errors import UsageError
from soul_deploy.nn import layers
from soul_deploy.nn.neuron import SpikingNeuron

if TYPE_CHECKING:
    from soul_deploy.zoo.registry import NetworkOptions

HIDDEN = {"mlp": 1024, "lenet": 512}
"""Soul's `hidden_dim` of each (soul/config/model)."""
WIDTHS = (32, 64, 96)
KERNEL = 5
SMALLEST = 32  # a side of which two poolings and three convolutions leave something


class SpikingMLP(nn.Sequential):
    """Two hidden layers, and the mean over time into a head.

    Input (B, C, H, W) or (T, B, C, H, W); output (B, classes).
    """

    def __init__(self, options: "NetworkOptions", hidden: int) -> None:
        super().__init__()
        neuron, steps = options.neuron, options.time_steps
        channels, height, width = options.input_shape
        self.flatten = layers.Flatten()
        self.ln1 = nn.Linear(channels * height * width, hidden)
        self.lif1 = SpikingNeuron(neuron, steps)
        self.ln2 = nn.Linear(hidden, hidden)
        self.lif2 = SpikingNeuron(neuron, steps)
        self.head = layers.RateReadout(hidden, options.classes)


class SpikingLeNet(nn.Sequential):
    """Three 5×5 convolutions without padding, two poolings, a hidden layer and a head.

    On maps of one channel that are less than 32 high, such as series of 9 sensors, (1, 9, 128), it
    is Soul's network for motion: kernels and poolings of 1×5 and 1×2. Raises UsageError for inputs
    of which nothing is left.
    """

    def __init__(self, options: "NetworkOptions", hidden: int) -> None:
        super().__init__()
        neuron, steps = options.neuron, options.time_steps
        channels, *sides = options.input_shape
        series = channels == 1 and sides[0] < SMALLEST <= sides[1]
        if not series and min(sides) < SMALLEST:
            raise UsageError(
                f"lenet: an input of {options.input_shape} is too small for its convolutions; it "
                f"takes maps of {SMALLEST}×{SMALLEST} or more, and series of sensors, (1, C, W), "
                f"of {SMALLEST} steps or more"
            )
        kernel, pooling = ((1, KERNEL), (1, 2)) if series else ((KERNEL, KERNEL), (2, 2))
        for n, width in enumerate(WIDTHS, 1):
            self.add_module(f"conv{n}", layers.Conv2d(channels, width, kernel))
            self.add_module(f"bn{n}", layers.BatchNorm2d(width))
            self.add_module(f"lif{n}", SpikingNeuron(neuron, steps))
            sides = [side - k + 1 for side, k in zip(sides, kernel, strict=True)]
            channels = width
            if n < len(WIDTHS):
                self.add_module(f"pool{n}", layers.MaxPool2d(pooling, pooling))
                sides = [side // p for side, p in zip(sides, pooling, strict=True)]
        self.flatten = layers.Flatten()
        self.ln1 = nn.Linear(channels * sides[0] * sides[1], hidden)
        self.lif4 = SpikingNeuron(neuron, steps)
        self.head = layers.RateReadout(hidden, options.classes)
