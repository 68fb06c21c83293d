"""The removal plan: which channels can go without changing any output, and why.

masked     its current or all of its spikes are masked to 0
silent     nothing live feeds it, and its neuron does not spike on the constant that is left
unread     every synapse that leaves it is 0
folded     nothing live feeds it and it spikes at every step: a constant in its consumers' bias
scattered  it never spikes, but the residual stream that it joins keeps the channel: its synapses
           and neurons go, and the stream gets the branch's other channels where they belong
generated  nothing live feeds it and it spikes in a fixed pattern: the pattern stays, the synapses
           and the neuron go

A plan is inert: `planner` makes it, `apply` applies it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from soul_deploy.base import Array, brief, tables
from soul_deploy.model.model import Validity

Rule = Literal["masked", "silent", "unread", "folded", "scattered"]
RULES: tuple[Rule, ...] = get_args(Rule)


@brief
@dataclass(frozen=True)
class LayerRemoval:
    """What goes from one population: channel -> rule; `tied` says why a layer stays whole.

    population: its name, or that of a projection whose current meets others before any neuron.
    projection: what feeds it; None for the neurons of a stream of currents, fed by a merge.
    stream: the channel group of a residual stream that it belongs to, all members of which lose
    the same channels (but for the scattered ones).
    generated: channel -> its spikes at steps 1 to T. masked_neurons: single neurons of channels
    that stay whose spikes are masked; a dense network keeps them as a mask, an event network drops
    them.
    """

    population: str
    projection: str | None
    channels: int
    removed: Mapping[int, Rule]
    tied: str | None = None
    generated: Mapping[int, tuple[bool, ...]] = field(default_factory=dict)
    masked_neurons: int = 0
    synapses: int = 0
    synapses_after: int = 0
    stream: str | None = None

    @property
    def kept(self) -> tuple[int, ...]:
        """Channels that keep their neurons, ascending."""
        gone = {*self.removed, *self.generated}
        return tuple(c for c in range(self.channels) if c not in gone)

    @property
    def outputs(self) -> tuple[int, ...]:
        """Channels that it gives, in their new order: kept, then generated."""
        return (*self.kept, *self.generated)

    @property
    def scattered(self) -> tuple[int, ...]:
        """Channels that its stream keeps without it, ascending."""
        return tuple(sorted(c for c, rule in self.removed.items() if rule == "scattered"))

    @property
    def columns(self) -> tuple[int, ...]:
        """Channels that are left for whoever reads it, or the stream that it joins."""
        return (*sorted((*self.kept, *self.scattered)), *self.generated)


@brief
@dataclass(frozen=True)
class RemovalPlan(tables.Shown):
    """One entry per population and per current of a stream, and what the removal is valid for.

    bias: projection -> (out,) float64, what folded channels add to its output before batch norm.
    """

    layers: tuple[LayerRemoval, ...]
    validity: Validity
    bias: Mapping[str, Array] = field(default_factory=dict)

    def layer(self, name: str) -> LayerRemoval | None:
        """The entry of a population or projection; None for one that the plan leaves alone."""
        by_population = (layer for layer in self.layers if layer.population == name)
        by_projection = (layer for layer in self.layers if layer.projection == name)
        return next(by_population, next(by_projection, None))

    @property
    def kept_channels(self) -> dict[str, Array]:
        """Population -> the channels that it still gives, in their order: `kept` of `compare`."""
        return {layer.population: np.array(layer.outputs, np.int64) for layer in self.layers}

    @property
    def removes(self) -> bool:
        """Whether any channel goes."""
        return any(layer.removed or layer.generated for layer in self.layers)

    def whole_note(self, copy: Path | None, original: Path) -> str:
        """What to say where nothing goes; copy: where the network is written all the same."""
        text = f"Nothing to remove: no channel of {original} is masked, silent or unread"
        return text if copy is None else f"{text}; {copy} is a copy of it"

    def parts(self) -> list[tables.Table | str]:
        """A row per layer, and notes; what nothing was removed by has no column."""
        always = ("channels", "kept", "weights", "weights after")
        rows = {layer.population: _numbers(layer) for layer in self.layers}
        names = [*_numbers(self.layers[0])] if self.layers else [*always]
        totals = {name: sum(row[name] for row in rows.values()) for name in names}
        shown = [name for name in names if name in always or totals[name]]
        lines: list[list[object]] = [
            [layer, *(row[name] for name in shown)]
            for layer, row in [*rows.items(), ("total", totals)]
        ]
        return [tables.Table("Removal plan", ["layer", *shown], lines), *self._notes()]

    def _notes(self) -> list[str]:
        notes = [
            f"{layer.population} stays whole: {layer.tied}."
            for layer in self.layers
            if layer.tied is not None
        ]
        streams: dict[str, list[str]] = {}
        for layer in self.layers:
            if layer.stream is not None and layer.tied is None:
                streams.setdefault(layer.stream, []).append(layer.population)
        notes += [f"{', '.join(names)} share their channels." for names in streams.values()]
        if self.validity.time_steps is not None:
            notes.append(
                f"Valid for T = {self.validity.time_steps} with state reset before each sample: "
                "what some channels do on a constant current was worked out for that."
            )
        return notes


def _numbers(layer: LayerRemoval) -> dict[str, int]:
    """A row of the table, in the order of its columns."""
    removed = list(layer.removed.values())
    by_rule: dict[str, int] = {rule: removed.count(rule) for rule in RULES}
    return {
        "channels": layer.channels,
        "kept": len(layer.kept),
        **by_rule,
        "generated": len(layer.generated),
        "neurons off": layer.masked_neurons,
        "weights": layer.synapses,
        "weights after": layer.synapses_after,
    }
