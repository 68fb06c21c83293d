"""Comparing operation counts: an execution's against those of the PyTorch golden."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property

import torch
from torch import Tensor

from soul_deploy.counting import (
    Counted,
    CountedPopulation,
    count_layer,
    count_population,
    counted_nodes,
)
from soul_deploy.flips import Golden
from soul_deploy.module import Signal
from soul_deploy.runtime.counters import LayerCounts

COMPARED = tuple(item.name for item in fields(LayerCounts))
MISSING = "entries"


@dataclass(frozen=True)
class CountMismatch:
    """A count that should be equal and is not."""

    layer: str
    count: str
    golden: int
    other: int

    def __str__(self) -> str:
        return f"{self.layer}: {self.count} is {self.golden} in the golden, {self.other} here"


@dataclass(frozen=True)
class CountComparer:
    """Compares counts with what `golden` counts on the same values."""

    golden: Golden

    @cached_property
    def counted(self) -> dict[str, Counted]:
        """What there is to count, by name."""
        return {layer.name: layer for layer in counted_nodes(self.golden.model)}

    def mismatches(
        self,
        counts: Mapping[str, LayerCounts],
        known: dict[str, Signal],
        spikes: Mapping[str, Tensor],
    ) -> list[CountMismatch]:
        """Counts by name against ours.

        known: values of the golden's nodes, to which those that are computed here are added.
        spikes: the execution's own, bool (T, B, ...), of the populations that are counted.
        """
        found = []
        for name, theirs in counts.items():
            if name not in self.counted:
                found.append(CountMismatch(name, MISSING, 0, 1))
                continue
            ours = self._expected(self.counted[name], known, spikes)
            pairs = [(n, getattr(ours, n), getattr(theirs, n)) for n in COMPARED]
            found += [CountMismatch(name, n, a, b) for n, a, b in pairs if a != b]
        return found

    def missing(self, names: set[str]) -> list[CountMismatch]:
        """What was not counted at all."""
        return [CountMismatch(name, MISSING, 1, 0) for name in self.counted if name not in names]

    @torch.no_grad()
    def _expected(
        self, layer: Counted, known: dict[str, Signal], spikes: Mapping[str, Tensor]
    ) -> LayerCounts:
        if isinstance(layer, CountedPopulation):
            return count_population(layer, spikes[layer.name])
        source = layer.composed.source
        known |= self.golden.module.evaluate(known, [source])
        out = None if layer.population is None else spikes[layer.population]
        return count_layer(layer, known[source].tensor, out)
