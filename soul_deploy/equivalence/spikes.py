"""Comparing spikes: mismatches, and the distance of the reference's membrane from its threshold.

A sum in another order rounds differently, and one that lands on the other side of the threshold
is another spike. So a difference is *explained* only if the reference's membrane, recomputed in
float64, lies so close to the threshold that rounding can decide. After a neuron's first mismatch
its own membrane differs, so each neuron is compared up to that mismatch.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from soul_deploy.base import brief
from soul_deploy.base.errors import VerificationError
from soul_deploy.equivalence.reference import ReferenceModel
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

    @property
    def near(self) -> bool:
        """Whether the membrane was within the allowance."""
        return abs(self.distance) <= self.allowance

    @property
    def explained(self) -> bool:
        """Near the threshold, or with inputs that already differed."""
        return self.near or self.cause is not None

    def __str__(self) -> str:
        text = (
            f"{self.layer}{list(self.neuron)} sample {self.sample} step {self.step}: "
            f"golden {'fires' if self.fired else 'is silent'}, "
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
    golden_spikes, other_spikes   sums over steps, samples and neurons
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
        return replace(self, flips=_listed((*self.flips, *other.flips)), **sums)


def _listed(mismatches: tuple[SpikeMismatch, ...]) -> tuple[SpikeMismatch, ...]:
    return tuple(sorted(mismatches, key=lambda m: (m.explained, m.sample, m.step))[:LISTED])


@brief
@dataclass(frozen=True)
class FirstDifferences:
    """First mismatches of one population: index (F, 1 + ndim) of (sample, neuron), step (F,)."""

    index: Tensor
    step: Tensor


def first_differences(reference: Tensor, other: Tensor) -> FirstDifferences:
    """Where bool spikes (T, B, ...) first differ, neuron by neuron."""
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
    """Compare one population's spikes; also the first mismatch of every sample that has one.

    values: the reference's, as recorded. other: bool spikes (T, B, C, ...). keep: the reference's
    channels that `other` holds, if not all. offset: number of the batch's first sample. upstream:
    end to end, from when on the inputs differ. Raises VerificationError if shapes differ.
    """
    ours = values[name].tensor.bool()
    ours = ours if keep is None else ours.index_select(2, keep)
    if other.shape != ours.shape or other.dtype != torch.bool:
        raise VerificationError(
            f"{name}: spikes {other.dtype}{tuple(other.shape)}, the golden has "
            f"{ours.dtype}{tuple(ours.shape)} (T, batch, neurons); they are not the same network"
        )
    first = first_differences(ours, other)
    judged = _judge(reference, name, values, keep, first, upstream)
    driven = _driven(reference, name, ours, keep)
    counted = (ours, other, ours[:, :, driven], ours != other)
    golden, theirs, driving, differing = (int(spikes.sum()) for spikes in counted)
    make = _MismatchMaker(name, first, judged, ours, keep, offset, upstream)
    order = np.lexsort((first.step, first.index[:, 0], judged.explained))
    flips, unexplained = tuple(map(make, order[:LISTED])), int((~judged.explained).sum())
    found = (golden, theirs, driving, differing, len(first.step), unexplained, flips)
    return LayerSpikes(name, ours.shape[2:].numel(), ours.shape[1], *found), make.firsts()


def unseen_population(
    reference: ReferenceModel, name: str, values: Mapping[str, Signal]
) -> LayerSpikes:
    """One population's spikes in the reference, where the other execution does not show its own.

    values: the reference's, as recorded.
    """
    ours = values[name].tensor.bool()
    spikes = int(ours.sum()), 0, int(ours[:, :, _driven(reference, name, ours, None)].sum())
    size = ours.shape[2:].numel(), ours.shape[1]
    return LayerSpikes(name, *size, *spikes, 0, 0, 0, (), compared=False)


def _driven(reference: ReferenceModel, name: str, spikes: Tensor, keep: Tensor | None) -> Tensor:
    """Which channels of a population have neurons; the others fire a constant pattern."""
    channels = torch.arange(spikes.shape[2]) if keep is None else keep
    return channels < reference.graph.shapes[reference.graph[name].inputs[0]][0]


@dataclass(frozen=True)
class _Judged:
    """By first mismatch: distance, allowance, whether inputs differed before, whether explained."""

    distance: Tensor
    allowance: Tensor
    traced: Tensor
    explained: Tensor


def _judge(
    reference: ReferenceModel,
    name: str,
    values: Mapping[str, Signal],
    keep: Tensor | None,
    first: FirstDifferences,
    upstream: Upstream | None,
) -> _Judged:
    sample = first.index[:, 0]
    if not len(sample):
        nothing, none = torch.zeros(0, dtype=torch.float64), torch.zeros(0, dtype=torch.bool)
        return _Judged(nothing, nothing, none, none)
    samples = torch.unique(sample)
    distance, allowance = reference.margins(name, values, samples)
    if keep is not None:
        distance, allowance = distance.index_select(2, keep), allowance.index_select(2, keep)
    at = (first.step, torch.searchsorted(samples, sample), *first.index[:, 1:].t())
    here, allowed = distance[at], allowance[at]
    traced = torch.zeros_like(sample, dtype=torch.bool)
    if upstream is not None:
        traced = first.step >= upstream.step[sample]
    return _Judged(here, allowed, traced, traced | (here.abs() <= allowed))


@dataclass(frozen=True)
class _MismatchMaker:
    """Turns rows of the arrays into SpikeMismatch records, as far as they are wanted."""

    name: str
    first: FirstDifferences
    judged: _Judged
    ours: Tensor
    keep: Tensor | None
    offset: int
    upstream: Upstream | None

    def __call__(self, i: int) -> SpikeMismatch:
        row, channel, *place = self.first.index[i].tolist()
        step, sample = int(self.first.step[i]), row + self.offset
        fired = bool(self.ours[(step, row, channel, *place)])
        neuron = (channel if self.keep is None else int(self.keep[channel]), *place)
        cause = None
        if self.upstream is not None and bool(self.judged.traced[i]):
            cause = self.upstream.causes.get(sample)
        distance, allowance = float(self.judged.distance[i]), float(self.judged.allowance[i])
        return SpikeMismatch(self.name, step, sample, neuron, fired, distance, allowance, cause)

    def firsts(self) -> dict[int, SpikeMismatch]:
        """The first mismatch of each sample; of several at one step, the nearest to threshold."""
        sample = self.first.index[:, 0].numpy()
        order = np.lexsort((self.judged.distance.abs(), self.first.step, sample))
        _, begin = np.unique(sample[order], return_index=True)
        return {m.sample: m for m in map(self, order[begin])}
