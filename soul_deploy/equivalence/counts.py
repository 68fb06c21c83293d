"""Comparing operation counts: an execution's against those of the PyTorch reference."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from soul_deploy.analysis.synops import count_steps, layer_steps, readout_sums
from soul_deploy.equivalence.reference import ReferenceModel
from soul_deploy.lowering import deploy, fan_out
from soul_deploy.nn.graph_module import Signal
from soul_deploy.runtime.ops.counters import COUNTERS, LayerCounts, StepCounts

MISSING = "entries"


@dataclass(frozen=True)
class CountMismatch:
    """A count that should be equal and is not; place: the first (step, sample), if known."""

    layer: str
    count: str
    golden: int
    other: int
    place: tuple[int, int] | None = None

    def __str__(self) -> str:
        text = f"{self.layer}: {self.count} is {self.golden} in the golden, {self.other} here"
        if self.place is None:
            return text
        return f"{text}, at step {self.place[0]} of sample {self.place[1]}"


@dataclass(frozen=True)
class CountDifference:
    """By how much spike mismatches changed a count: the execution's minus the reference's.

    explained: the summed fan-out of the mismatches; equal to the difference in a correct execution.
    """

    layer: str
    count: str
    difference: int
    explained: int

    def __add__(self, other: "CountDifference") -> "CountDifference":
        """Of another batch."""
        sums = self.difference + other.difference, self.explained + other.explained
        return CountDifference(self.layer, self.count, *sums)

    def __str__(self) -> str:
        return (
            f"{self.layer}: {self.count} differs by {self.difference:+}, the fan-out of the spikes "
            f"that differ is {self.explained:+}"
        )


@dataclass(frozen=True)
class CountComparer:
    """Compares counts with what `reference` counts on the same values."""

    reference: ReferenceModel

    @cached_property
    def counted(self) -> dict[str, fan_out.Counted]:
        """The layers that are counted, by name."""
        return {layer.name: layer for layer in deploy.lower(self.reference.model).counted}

    def mismatches(
        self,
        counts: Mapping[str, LayerCounts] | Mapping[str, StepCounts],
        known: dict[str, Signal],
        spikes: Mapping[str, Tensor],
    ) -> list[CountMismatch]:
        """Counts by name against ours: sums, or step by step and sample by sample.

        known: values of the reference's nodes, to which those that are computed here are added.
        spikes: the execution's own, bool (T, B, ...), of the populations that are counted.
        """
        unequal: list[CountMismatch] = []
        for name, theirs in counts.items():
            if name not in self.counted:
                unequal.append(CountMismatch(name, MISSING, 0, 1))
                continue
            ours = self._expected(self.counted[name], known, spikes)
            if isinstance(theirs, StepCounts):
                unequal += _step_mismatches(name, ours, theirs)
            else:
                pairs = [(n, getattr(ours.total(), n), getattr(theirs, n)) for n in COUNTERS]
                unequal += [CountMismatch(name, n, a, b) for n, a, b in pairs if a != b]
        return unequal

    def missing(self, names: set[str]) -> list[CountMismatch]:
        """One mismatch for each layer that was not counted."""
        return [CountMismatch(name, MISSING, 1, 0) for name in self.counted if name not in names]

    @torch.no_grad()
    def _expected(
        self, layer: fan_out.Counted, known: dict[str, Signal], spikes: Mapping[str, Tensor]
    ) -> StepCounts:
        source, population = layer.source, layer.population
        values = {} if source is None else {source: self._value(source, known)}
        own = {} if population is None else {population: spikes[population]}
        return count_steps(layer, values | own)

    def _value(self, name: str, known: dict[str, Signal]) -> Tensor:
        known |= self.reference.module.evaluate(known, [name])
        return known[name].tensor

    @torch.no_grad()
    def differences(
        self,
        counts: Mapping[str, LayerCounts],
        reference: dict[str, Signal],
        own: dict[str, Signal],
    ) -> list[CountDifference]:
        """Synaptic counts that differ from the reference's, and the part that its spikes explain.

        reference, own: values of the input and all populations, by either.
        """
        changed: list[CountDifference] = []
        for name, theirs in counts.items():
            layer = self.counted[name].layer if name in self.counted else None
            if layer is not None:
                before, after = (self._value(layer.linear.source, v) for v in (reference, own))
                ours = layer_steps(layer, before, None).total()
                changed += _differences(layer, ours, theirs, before, after)
        return changed


def _step_mismatches(name: str, ours: StepCounts, theirs: StepCounts) -> Iterator[CountMismatch]:
    for count in COUNTERS:
        known = next((c.values[count] for c in (ours, theirs) if count in c.values), np.zeros(1))
        a, b = (c.values.get(count, np.zeros_like(known)) for c in (ours, theirs))
        if a.shape != b.shape:
            yield CountMismatch(name, count, int(a.sum()), int(b.sum()))
        elif (a != b).any():
            step, sample = at = tuple(map(int, np.argwhere(a != b)[0]))
            yield CountMismatch(name, count, int(a[at]), int(b[at]), (step, sample))


def _differences(
    layer: fan_out.CountedLayer,
    ours: LayerCounts,
    theirs: LayerCounts,
    before: Tensor,
    after: Tensor,
) -> Iterator[CountDifference]:
    """Counts are linear in what arrives, so a difference is the fan-out of what differs."""
    operator = layer.linear.operator.readout
    if operator is not None:
        before, after = (readout_sums(operator, values) for values in (before, after))
    events = (after != 0).to(torch.int64) - (before != 0).to(torch.int64)
    changes = {"macs_effective": events}
    if layer.edge.kind != "analog":
        spikes = after.to(torch.int64) - before.to(torch.int64)
        changes = {"synops_events": events, "synops": spikes}
    reach = torch.from_numpy(layer.fanout)
    for count, change in changes.items():
        difference = getattr(theirs, count) - getattr(ours, count)
        explained = int((change.reshape(-1, *reach.shape).sum(0) * reach).sum())
        if difference or explained:
            yield CountDifference(layer.name, count, difference, explained)
