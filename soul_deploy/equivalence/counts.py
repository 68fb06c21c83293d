"""Comparing operation counts: an execution's against those of the PyTorch reference."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from soul_deploy.analysis.synops import count_steps, layer_steps, readout_sums
from soul_deploy.base import Array, brief
from soul_deploy.equivalence.reference import ROUNDING, ReferenceModel, sources
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

    explained: the summed fan-out of the mismatches; equal to the difference in a correct execution,
    but for the synapses of values that rounding makes 0 or not: `fewer` or `more` than ours.
    """

    layer: str
    count: str
    difference: int
    explained: int
    fewer: int = 0
    more: int = 0

    @property
    def is_explained(self) -> bool:
        return -self.fewer <= self.difference - self.explained <= self.more

    def __add__(self, other: "CountDifference") -> "CountDifference":
        """Of another batch."""
        names = ("difference", "explained", "fewer", "more")
        sums = {name: getattr(self, name) + getattr(other, name) for name in names}
        return CountDifference(self.layer, self.count, **sums)

    def __str__(self) -> str:
        text = (
            f"{self.layer}: {self.count} differs by {self.difference:+}, the fan-out of the spikes "
            f"that differ is {self.explained:+}"
        )
        if not self.fewer and not self.more:
            return text
        return f"{text}; of values that are 0 but for rounding {-self.fewer:+} to {self.more:+}"


@brief
@dataclass(frozen=True)
class Doubt:
    """Nonzero analog inputs that a sum's rounding decides: their synapses, int64 (steps, B).

    A computed value may be exactly 0 in one order of its sum and almost 0 in another. Both are
    right, and both are counted for what they are.

    fewer, more: by how much a correct count may be below ours and above it
    """

    fewer: Array
    more: Array

    def of(self, found: CountDifference) -> CountDifference:
        """A difference of the same layer, with what may be fewer or more."""
        return replace(found, fewer=int(self.fewer.sum()), more=int(self.more.sum()))

    def allows(self, ours: Array, theirs: Array) -> Array:
        """Where `theirs` is a correct count, bool."""
        return (theirs >= ours - self.fewer) & (theirs <= ours + self.more)


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
            doubt = self._doubt(self.counted[name], known)
            if isinstance(theirs, StepCounts):
                unequal += _step_mismatches(name, ours, theirs, doubt)
            else:
                unequal += _sum_mismatches(name, ours.total(), theirs, doubt)
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

    @torch.no_grad()
    def _doubt(self, layer: fan_out.Counted, known: dict[str, Signal]) -> Doubt | None:
        """Of a layer that reads an analog value which sums make; None: its counts are exact."""
        counted, graph = layer.layer, self.reference.graph
        if counted is None or counted.edge.kind != "analog" or layer.source is None:
            return None
        if not graph[layer.source].inputs:
            return None
        value = self._value(layer.source, known)
        feeding = {name: known[name] for name in sources(graph, layer.source)}
        sizes = {n: Signal(of.tensor.double().abs(), of.static) for n, of in feeding.items()}
        size = self.reference.absolute.evaluate(sizes, [layer.source])[layer.source].tensor
        decided_by_rounding = (value.double().abs() <= ROUNDING * size) & (size > 0)
        reach = torch.from_numpy(counted.fanout).reshape(-1)
        shape = counted.linear.operator.in_shape
        batch = value.shape[-len(shape) - 1]

        def synapses(values: Tensor) -> Array:
            events = values.reshape(-1, len(reach)).to(torch.int64)
            return np.asarray((events @ reach).reshape(-1, batch).numpy())

        nonzero = value != 0
        return Doubt(
            synapses(decided_by_rounding & nonzero), synapses(decided_by_rounding & ~nonzero)
        )

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
                source = layer.linear.source
                before, after = (layer.arriving(self._value(source, v)) for v in (reference, own))
                ours = layer_steps(layer, before, None).total()
                doubt = self._doubt(self.counted[name], own)
                for found in _differences(layer, ours, theirs, before, after):
                    changed.append(found if doubt is None else doubt.of(found))
        return changed


def _sum_mismatches(
    name: str, ours: LayerCounts, theirs: LayerCounts, doubt: Doubt | None
) -> Iterator[CountMismatch]:
    for count in COUNTERS:
        a, b = getattr(ours, count), getattr(theirs, count)
        allowed = a == b
        if doubt is not None and count == "macs_effective":
            allowed = a - doubt.fewer.sum() <= b <= a + doubt.more.sum()
        if not allowed:
            yield CountMismatch(name, count, a, b)


def _step_mismatches(
    name: str, ours: StepCounts, theirs: StepCounts, doubt: Doubt | None
) -> Iterator[CountMismatch]:
    for count in COUNTERS:
        known = next((c.values[count] for c in (ours, theirs) if count in c.values), np.zeros(1))
        a, b = (c.values.get(count, np.zeros_like(known)) for c in (ours, theirs))
        if a.shape != b.shape:
            yield CountMismatch(name, count, int(a.sum()), int(b.sum()))
            continue
        wrong = a != b
        if doubt is not None and count == "macs_effective":
            wrong = ~doubt.allows(a, b)
        if wrong.any():
            step, sample = at = tuple(map(int, np.argwhere(wrong)[0]))
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
