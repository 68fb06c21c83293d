"""A population's own spikes of the step before, as a part of its current.

I[t] = x[t] + r[t], where x is what feeds the population and r what its feedback makes of its spikes
of step t - 1, which are 0 at the first step; a bias of the feedback counts at every step. r is
summed by itself and added last, in every engine.

The feedback is a projection from the population to its own current, or `OneToOne`. It belongs to
the population and is no node in execution order, which stays without circles; a graph knows its
name, shape and edge all the same (`SpikingGraph.feedbacks`).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from soul_deploy.base.errors import UsageError
from soul_deploy.ir import neurons, node


@dataclass(frozen=True)
class OneToOne(node.Node):
    """Each neuron's own spike, times one number for all of them."""

    op: ClassVar[str] = "one_to_one"
    gives: ClassVar[neurons.Edge | None] = neurons.ANALOG
    keeps_channels: ClassVar[bool] = True
    factor: float

    def output_shape(self, inputs: Sequence[node.Shape]) -> node.Shape:
        if not (self.factor and abs(self.factor) <= neurons.LARGEST and math.isfinite(self.factor)):
            raise UsageError(f"{self.name}: factor {self.factor} must be finite and not 0")
        return inputs[0]

    def magnitude(self) -> node.Node:
        return replace(self, factor=abs(self.factor))

    def describe(self) -> str:
        return f"each neuron's own spike times {self.factor:g}"


def check(
    feedback: node.Node, population: str, neuron: neurons.NeuronSpec, current: node.Shape,
    out: node.Shape,
) -> None:  # fmt: skip
    """Raise UsageError unless `feedback` leads from a population's spikes to its current.

    current, out: shapes of the current and of what the population gives.
    """
    if neuron.parallel:
        raise UsageError(
            f"{population}: feedback of neurons that mix all steps; a step cannot wait for the "
            "spikes of the one before"
        )
    if out != current:
        raise UsageError(f"{population}: feedback of constant-pattern channels")
    if feedback.inputs != (population,):
        raise UsageError(
            f"{feedback.name}: feedback of {population!r} reads {feedback.inputs}; it reads the "
            "population's own spikes"
        )
    if getattr(feedback, "norm", None) is not None:
        raise UsageError(f"{feedback.name}: a batch norm in a feedback; fold it into its weights")
    made = feedback.output_shape([out])
    if made != current:
        raise UsageError(
            f"{feedback.name}: gives {made}, but the current of {population!r} is {current}"
        )
