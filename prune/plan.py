"""The removal plan: which channels can go without changing any output, and why.

masked     its current or all of its spikes are masked to 0
silent     nothing live feeds it, and its neuron does not spike on the constant that is left
unread     every synapse that leaves it is 0
folded     nothing live feeds it and it spikes at every step: a constant in its consumers' bias
generated  nothing live feeds it and it spikes in a fixed pattern: the pattern stays, the synapses
           and the neuron go

A plan is inert; `soul_deploy.prune.planner` makes it, `soul_deploy.prune.remove` applies it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from soul_deploy.modelfile import Validity
from soul_deploy.runtime.files import Array
from soul_deploy.runtime.tables import text_table

Rule = Literal["masked", "silent", "unread", "folded"]
RULES: tuple[Rule, ...] = get_args(Rule)


@dataclass(frozen=True)
class LayerRemoval:
    """What goes from one population: channel -> rule; `tied` says why a layer stays whole.

    generated: channel -> its spikes at steps 1 to T. masked_neurons: single neurons of channels
    that stay whose spikes are masked; a dense network keeps them as a mask, an event network drops
    them.
    """

    population: str
    projection: str
    channels: int
    removed: Mapping[int, Rule]
    tied: str | None = None
    generated: Mapping[int, tuple[bool, ...]] = field(default_factory=dict)
    masked_neurons: int = 0
    synapses: int = 0
    synapses_after: int = 0

    @property
    def kept(self) -> tuple[int, ...]:
        """Channels that keep their neurons, ascending."""
        gone = {*self.removed, *self.generated}
        return tuple(c for c in range(self.channels) if c not in gone)

    @property
    def outputs(self) -> tuple[int, ...]:
        """Channels that are left for consumers, in their new order: kept, then generated."""
        return (*self.kept, *self.generated)


@dataclass(frozen=True)
class RemovalPlan:
    """One entry per population fed by a projection, and what the removal is valid for.

    bias: projection -> (out,) float64, what folded channels add to its output before batch norm.
    """

    layers: tuple[LayerRemoval, ...]
    validity: Validity
    bias: Mapping[str, Array] = field(default_factory=dict)

    def layer(self, population: str) -> LayerRemoval | None:
        """The entry of a population; None for one that the plan leaves alone."""
        return next((layer for layer in self.layers if layer.population == population), None)

    def kept(self, population: str) -> tuple[int, ...] | None:
        """Channels of `population` that keep their neurons; None if the plan leaves it alone."""
        layer = self.layer(population)
        return None if layer is None else layer.kept

    def table(self) -> str:
        """The plan as text, a row per layer."""
        rows: list[list[object]] = []
        for layer in self.layers:
            counts = [sum(r == rule for r in layer.removed.values()) for rule in RULES]
            numbers = [layer.channels, len(layer.kept), *counts, len(layer.generated)]
            numbers += [layer.masked_neurons, layer.synapses, layer.synapses_after]
            rows.append([layer.population, *numbers])
        totals = [sum(int(str(row[i])) for row in rows) for i in range(1, 11)]
        rows.append(["total", *totals])
        columns = ["layer", "channels", "kept", *RULES, "generated", "neurons off"]
        text = text_table("Removal plan", [*columns, "weights", "weights after"], rows)
        for layer in self.layers:
            if layer.tied is not None:
                text += f"\n{layer.population} stays whole: {layer.tied}."
        if self.validity.time_steps is not None:
            text += (
                f"\nValid for T = {self.validity.time_steps} with state reset before each sample: "
                "what some channels do on a constant current was worked out for that."
            )
        return text
