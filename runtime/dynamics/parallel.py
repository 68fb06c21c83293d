"""PSN: a neuron without reset whose potential at a step is a weighted sum of the inputs of all
steps.

soul/neuron/PSN.py, SpikingJelly's PSN (Fang et al., NeurIPS 2023): h = W x + b over the axis of
time, a spike where h is above 0 (or at it). It knows no steps of its own: a stream cannot run it.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from soul_deploy.base import Array, brief
from soul_deploy.runtime.equations import Equation, FireRule


@brief
@dataclass(frozen=True, eq=False)
class ParallelEquation(Equation):
    """A PSN as deployed: weight float32 (T, T), bias float32 (T,); fire as `NeuronEquation`."""

    whole: ClassVar[bool] = True
    weight: Array
    bias: Array
    fire: FireRule

    def __eq__(self, other: object) -> bool:
        """Whether both compute the same: all numbers are equal."""
        if not isinstance(other, ParallelEquation):
            return NotImplemented
        same = np.array_equal(self.weight, other.weight) and np.array_equal(self.bias, other.bias)
        return same and self.fire == other.fire

    def __hash__(self) -> int:
        return hash((self.fire, len(self.bias)))

    @property
    def state(self) -> tuple[str, ...]:
        return ()

    @property
    def start(self) -> tuple[float, ...]:
        return ()

    @property
    def steps(self) -> int:
        return len(self.bias)

    @property
    def fires_at_rest(self) -> bool:
        """Whether a neuron without input spikes at some step."""
        return bool((self.bias > 0 if self.fire == "gt" else self.bias >= 0).any())
