"""The layer of neurons that feed their own spikes back to themselves."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from soul_deploy.base import Array, brief
from soul_deploy.base.errors import require
from soul_deploy.runtime.equations import Equation
from soul_deploy.runtime.format import layers, validate
from soul_deploy.runtime.format.validate import Edge, Shape


@brief
@dataclass(frozen=True)
class RecurrentLayer(layers.OneSource, layers.Firing):
    """Neurons on the analog values of another layer and on their own spikes of the step before.

    feedback  the synapses from the neurons to themselves: a CurrentLayer whose source is this
              layer. At the first step no spike arrives; its bias counts at every step

    The other fields are those of PopulationLayer; there are no constant-pattern channels.
    """

    operation: ClassVar[str] = "recurrent"
    what: ClassVar[str] = "a population with a feedback"
    name: str
    source: str
    in_shape: Shape
    neuron: Equation
    feedback: layers.CurrentLayer = field()
    live: Array | None = None

    def __post_init__(self) -> None:
        validate.require_shape(f"{self.name}: current", self.in_shape)
        self._check_neurons()
        layers.require_kind(self, fixed=False)
        back = self.feedback
        require(not back.synapses.fixed, f"{back.name}: a feedback of integer weights")
        require(not self.neuron.whole, f"{self.name}: a feedback of neurons that mix all steps")
        require(
            back.source == self.name and back.name != self.name,
            f"{back.name}: the feedback of {self.name} reads {back.source!r}",
        )
        shapes = {back.in_shape, back.out_shape}
        require(
            shapes == {self.in_shape},
            f"{back.name}: leads from {back.in_shape} to {back.out_shape}, the neurons of "
            f"{self.name} are {self.in_shape}",
        )
        require(
            (back.edge, back.bound) == self.sends,
            f"{back.name}: takes {back.edge} values up to {back.bound}, but {self.name} sends "
            f"{self.sends[0]} ones up to {self.sends[1]}",
        )
        targets, live = back.live, self.live
        apart = targets is None or live is None
        require(
            targets is live if apart else np.array_equal(targets, live),  # type: ignore[arg-type]
            f"{back.name}: its live targets are not the live neurons of {self.name}",
        )
        back.check_source(self)

    @property
    def current_shape(self) -> Shape:
        return self.in_shape

    def edge_of(self, arriving: Sequence[Edge]) -> Edge:
        kind, bound = arriving[0]
        require(
            kind == "analog" and bound is None,
            f"{self.name}: neurons take a float32 current, but {self.source} is {kind}",
        )
        return self.sends
