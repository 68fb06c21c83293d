"""Comparing spikes: mismatches, and the distance of the reference's membrane from its threshold.

A sum in another order rounds differently, and one that lands on the other side of the threshold
is another spike. So a difference is *explained* only if the reference's membrane, recomputed in
float64, lies so close to the threshold that rounding can decide. After a neuron's first mismatch
its own membrane differs, so each neuron is compared up to that mismatch. End to end, a population
with a feedback gives its mismatches on to all of its neurons, a step later.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from soul_deploy.base import brief
from soul_deploy.base.errors import VerificationError
from soul_deploy.equivalence.reference import ReferenceModel, sent_of
from soul_deploy.nn.graph_module import Signal

LISTED = 100  # mismatches kept per layer; all are counted
SUMMED = (
    *("samples", "golden_spikes", "other_spikes", "driven_spikes"),
    *("differing", "flipped", "unexplained"),
)


@dataclass(frozen=True)
class SpikeMismatch:
    """The first step at which one neuron's spike differs from the reference's.

    layer      the population; neuron: its index (C, H, W) or (N,) in the reference
    fired      whether the reference fired
    distance   the reference's membrane before reset, in float64, minus the threshold
    allowance  the distance up to which rounding explains the mismatch
    sent       the number that the reference sent; 1 where it fired a spike
    cause      end to end: the first mismatch upstream, if the neuron's inputs differed by then
    """

    layer: str
    step: int
    sample: int
    neuron: tuple[int, ...]
    fired: bool
    distance: float
    allowance: float
    cause: "SpikeMismatch | None" = None
    sent: int = 0

    @property
    def near(self) -> bool:
        """Whether the membrane was within the allowance."""
        return abs(self.distance) <= self.allowance

    @property
    def explained(self) -> bool:
        """Near the threshold, or with inputs that already differed."""
        return self.near or self.cause is not None

    @property
    def told(self) -> str:
        """What the reference did, in words."""
        if not self.fired:
            return "is silent"
        return "fires" if self.sent in (0, 1) else f"sends {self.sent}"

    def __str__(self) -> str:
        text = (
            f"{self.layer}{list(self.neuron)} sample {self.sample} step {self.step}: "
            f"golden {self.told}, "
            f"distance {self.distance:+.3g} (allowed {self.allowance:.3g})"
        )
        if self.cause is not None:
            c = self.cause
            return text + f", traced to {c.layer}{list(c.neuron)} step {c.step}"
        return text if self.near else text + " UNEXPLAINED"


@brief
@dataclass(frozen=True)
class LayerSpikes:
    """One population's spikes in two executions, over all samples.

    neurons        per sample
    golden_spikes, other_spikes   sums over steps, samples and neurons; of integers their sizes
    driven_spikes  of golden_spikes, those of neurons; constant-pattern channels fire without one
    differing      (step, sample, neuron) entries that differ, those after a first mismatch included
    flipped        (sample, neuron) pairs with a mismatch
    unexplained    of these, without an explanation
    flips          the first LISTED of them, unexplained ones first
    compared       False: the other execution does not show this population's spikes
    """

    layer: str
    neurons: int
    samples: int
    golden_spikes: int
    other_spikes: int
    driven_spikes: int
    differing: int
    flipped: int
    unexplained: int
    flips: tuple[SpikeMismatch, ...]
    compared: bool = True

    @property
    def passed(self) -> bool:
        return self.unexplained == 0

    @property
    def silent(self) -> bool:
        """No neuron of the reference ever fired: the comparison says nothing about this layer."""
        return self.driven_spikes == 0

    def __add__(self, other: "LayerSpikes") -> "LayerSpikes":
        """Both together: the same layer on two sets of samples."""
        sums: Any = {name: getattr(self, name) + getattr(other, name) for name in SUMMED}
        both = (*self.flips, *other.flips)
        flips = sorted(both, key=lambda flip: (flip.explained, flip.sample, flip.step))[:LISTED]
        return replace(self, flips=tuple(flips), **sums)


@brief
@dataclass(frozen=True)
class FirstDifferences:
    """First mismatches of one population: index (F, 1 + ndim) of (sample, neuron), step (F,)."""

    index: Tensor
    step: Tensor


def first_differences(reference: Tensor, other: Tensor) -> FirstDifferences:
    """Where what is sent (T, B, ...) first differs, neuron by neuron."""
    differs = reference != other
    index = differs.any(dim=0).nonzero()
    first = differs.to(torch.uint8).argmax(dim=0)
    return FirstDifferences(index, first[tuple(index.t())])


@brief
@dataclass(frozen=True)
class Upstream:
    """Per sample of a batch: the first step at which a layer's inputs differ (T if never), and
    the first mismatch behind that, by sample number."""

    step: Tensor
    causes: Mapping[int, SpikeMismatch]


@torch.no_grad()
def compare_population(
    reference: ReferenceModel,
    name: str,
    values: Mapping[str, Signal],
    other: Tensor,
    keep: Tensor | None = None,
    offset: int = 0,
    upstream: Upstream | None = None,
) -> tuple[LayerSpikes, dict[int, SpikeMismatch]]:
    """Compare what one population sends; also the first mismatch of every sample that has one.

    values: the reference's, as recorded. other: (T, B, C, ...), as `sent_of` gives it. keep: the
    reference's channels that `other` holds, if not all. offset: number of the batch's first sample.
    upstream: end to end, from when on the inputs differ; what the population feeds back to itself
    is looked at then too. Raises VerificationError if shapes differ.
    """
    ours = sent_of(reference.graph, name, values[name].tensor)
    ours = ours if keep is None else ours.index_select(2, keep)
    if other.shape != ours.shape or other.dtype != ours.dtype:
        raise VerificationError(
            f"{name}: spikes {other.dtype}{tuple(other.shape)}, the golden has "
            f"{ours.dtype}{tuple(ours.shape)} (T, batch, neurons); they are not the same network"
        )
    first = first_differences(ours, other)
    found = _Mismatches(reference, name, values, ours, first, keep, offset, upstream)
    driven = _driven(reference, name, ours, keep)
    counted = (ours, other, ours[:, :, driven], ours != other)
    golden, theirs, driving, differing = (_size(sent) for sent in counted)
    order = np.lexsort((first.step, first.index[:, 0], found.explained))
    flips, unexplained = tuple(map(found.record, order[:LISTED])), int((~found.explained).sum())
    told = (golden, theirs, driving, differing, len(first.step), unexplained, flips)
    return LayerSpikes(name, ours.shape[2:].numel(), ours.shape[1], *told), found.firsts()


def unseen_population(
    reference: ReferenceModel, name: str, values: Mapping[str, Signal]
) -> LayerSpikes:
    """One population's spikes in the reference, where the other execution does not show its own.

    values: the reference's, as recorded.
    """
    ours = values[name].tensor
    spikes = _size(ours), 0, _size(ours[:, :, _driven(reference, name, ours, None)])
    size = ours.shape[2:].numel(), ours.shape[1]
    return LayerSpikes(name, *size, *spikes, 0, 0, 0, (), compared=False)


def _size(sent: Tensor) -> int:
    """Σ|s| of what was sent, as spikes_out counts."""
    return int(sent.sum() if sent.dtype == torch.bool else sent.abs().sum(dtype=torch.float64))


def _driven(reference: ReferenceModel, name: str, spikes: Tensor, keep: Tensor | None) -> Tensor:
    """Which channels of a population have neurons; the others fire a constant pattern."""
    channels = torch.arange(spikes.shape[2]) if keep is None else keep
    return channels < reference.graph.neurons_shape(name)[0]


@dataclass(frozen=True)
class _Mismatches:
    """The first mismatches of one population, F in all; made to records as far as wanted."""

    reference: ReferenceModel
    name: str
    values: Mapping[str, Signal]
    ours: Tensor
    first: FirstDifferences
    keep: Tensor | None
    offset: int
    upstream: Upstream | None

    @cached_property
    def margins(self) -> tuple[Tensor, Tensor]:
        """Distance to threshold and allowance of each, both (F,) float64."""
        sample = self.first.index[:, 0]
        if not len(sample):
            return torch.zeros(0, dtype=torch.float64), torch.zeros(0, dtype=torch.float64)
        samples = torch.unique(sample)
        both = self.reference.margins(self.name, self.values, samples)
        if self.keep is not None:
            both = both[0].index_select(2, self.keep), both[1].index_select(2, self.keep)
        place = torch.searchsorted(samples, sample)
        at = (self.first.step, place, *self.first.index[:, 1:].t())
        return both[0][at], both[1][at]

    @cached_property
    def traced(self) -> Tensor:
        """bool (F,): the neuron's inputs differed by then."""
        return self.from_upstream | self.from_itself

    @cached_property
    def from_upstream(self) -> Tensor:
        """bool (F,): what comes from other populations differed by then."""
        if self.upstream is None:
            return torch.zeros(len(self.first.step), dtype=torch.bool)
        return self.first.step >= self.upstream.step[self.first.index[:, 0]]

    @cached_property
    def from_itself(self) -> Tensor:
        """bool (F,): what the population feeds back to itself differed by then."""
        if self.upstream is None or self.reference.graph[self.name].feedback is None:
            return torch.zeros(len(self.first.step), dtype=torch.bool)
        sample, steps = self.first.index[:, 0], self.first.step
        begun = torch.full((self.ours.shape[1],), len(self.ours), dtype=steps.dtype)
        begun = begun.scatter_reduce(0, sample, steps, "amin")
        return steps > begun[sample]

    @cached_property
    def explained(self) -> Tensor:
        """bool (F,): traced, or near the threshold."""
        distance, allowance = self.margins
        return self.traced | (distance.abs() <= allowance)

    def record(self, i: int) -> SpikeMismatch:
        """Number `i` of them."""
        row, channel, *place = self.first.index[i].tolist()
        step, sample = int(self.first.step[i]), row + self.offset
        sent = float(self.ours[(step, row, channel, *place)])
        neuron = (channel if self.keep is None else int(self.keep[channel]), *place)
        cause = None
        if self.upstream is not None and bool(self.from_upstream[i]):
            cause = self.upstream.causes.get(sample)
        elif bool(self.from_itself[i]):
            first = self._first_of[sample]
            cause = first.cause or first
        distance, allowance = (float(margin[i]) for margin in self.margins)
        return SpikeMismatch(
            self.name, step, sample, neuron, sent != 0, distance, allowance, cause, int(sent)
        )

    def firsts(self) -> dict[int, SpikeMismatch]:
        """The first mismatch of each sample; of several at one step, the nearest to threshold."""
        return self._first_of

    @cached_property
    def _first_of(self) -> dict[int, SpikeMismatch]:
        sample = self.first.index[:, 0].numpy()
        order = np.lexsort((self.margins[0].abs(), self.first.step, sample))
        _, begin = np.unique(sample[order], return_index=True)
        return {m.sample: m for m in map(self.record, order[begin])}
