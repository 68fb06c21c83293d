"""What a channel does when nothing live feeds it: its current is a constant, its spikes a pattern.

Decided by running the network's own operations on that constant, so the answer is the network's to
the last bit (batch norm of 0 is beta - gamma · mean / sqrt(var), not beta).
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from soul_deploy.graph import Convolution, Linear, Projection
from soul_deploy.module import GraphModule, Signal
from soul_deploy.runtime.equations import NeuronEquation
from soul_deploy.runtime.files import Array

FOREVER = 4096  # steps within which a membrane that will never fire comes to rest


@dataclass(frozen=True)
class ConstantResponse:
    """Neurons on a constant current, one per channel.

    pattern  bool (T, C): the spikes
    silent   bool (C,): proven never to spike, however long it runs
    always   bool (C,): proven to spike at every step, however long it runs
    """

    pattern: Array
    silent: Array
    always: Array


@torch.no_grad()
def constant_current(module: GraphModule, projection: Projection) -> Array:
    """The current (C,) of a projection whose inputs are all 0: bias, batch norm and mask only."""
    layer = module.get_submodule(projection.name)
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    if isinstance(projection, Linear):
        silence = torch.zeros(1, projection.in_features)
    else:
        assert isinstance(projection, Convolution)
        sides = [1 + projection.dilation[i] * (projection.kernel[i] - 1) for i in (0, 1)]
        silence = torch.zeros(1, projection.in_channels, *sides)
    source = Signal(silence.to(layer.weight.dtype), True)
    current = module.evaluate({projection.inputs[0]: source}, [projection.name])
    everywhere = current[projection.name].tensor.reshape(1, projection.out_channels, -1)
    return np.asarray(everywhere[0, :, 0].numpy())


def respond(equation: NeuronEquation, current: Array, steps: int) -> ConstantResponse:
    """Run neurons on a constant current (C,) for `steps`, and on until nothing moves.

    A membrane that stands still from one step to the next will never move again. A neuron that
    fires and comes back to rest exactly has repeated its first step, and always will.
    """
    v = np.full_like(current, equation.rest)
    fired = np.zeros(len(current), bool)
    pattern = np.zeros((steps, len(current)), bool)
    always = np.zeros(len(current), bool)
    moving = np.ones(len(current), bool)
    for t in range(max(steps, FOREVER)):
        before = v
        spike, v = equation.step(v, current)
        fired |= spike
        if t == 0:
            always = spike & (v == equation.rest)
        if t < steps:
            pattern[t] = spike
        moving = v != before
        if t + 1 >= steps and not (moving & ~fired).any():
            break
    return ConstantResponse(pattern, ~fired & ~moving, always)
