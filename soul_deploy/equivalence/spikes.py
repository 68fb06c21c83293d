"""Comparing spikes: flips, and how far the golden's membrane was from its threshold there.

A sum in another order rounds differently, and one that lands on the other side of the threshold
is another spike. So a difference is *explained* only if the golden's membrane, recomputed in
float64, lies so close to the threshold that rounding can decide. After a neuron's first flip its
own membrane differs, so each neuron is compared up to that flip.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from soul_deploy.base.brief import brief
from soul_deploy.base.errors import VerificationError
from soul_deploy.equivalence.golden import Golden
from soul_deploy.nn.graph_module import Signal

LISTED = 100  # flips kept per layer; all are counted


@dataclass(frozen=True)
class Flip:
    """The first step at which one neuron's spike differs from the golden's.

    layer      the population; neuron: its index (C, H, W) or (N,) in the golden
    fired      whether the golden fired
    distance   the golden's membrane before reset, in float64, minus the threshold
    allowance  the distance up to which rounding explains the flip
    cause      end to end: the first flip upstream, if the neuron's inputs differed by then
    """

    layer: str
    step: int
    sample: int
    neuron: tuple[int, ...]
    fired: bool
    distance: float
    allowance: float
    cause: "Flip | None" = None

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
    driven_spikes  of golden_spikes, those of neurons; generated channels fire without one
    differing      (step, sample, neuron) entries that differ, those after a first flip included
    flipped        (sample, neuron) pairs with a flip
    unexplained    of these, without an explanation
    flips          the first LISTED of them, unexplained ones first
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
    flips: tuple[Flip, ...]

    @property
    def passed(self) -> bool:
        return self.unexplained == 0

    @property
    def silent(self) -> bool:
        """No neuron of the golden ever fired: the comparison says nothing about this layer."""
        return self.driven_spikes == 0

    def __add__(self, other: "LayerSpikes") -> "LayerSpikes":
        """Both together: the same layer on two sets of samples."""
        return LayerSpikes(
            self.layer,
            self.neurons,
            self.samples + other.samples,
            self.golden_spikes + other.golden_spikes,
            self.other_spikes + other.other_spikes,
            self.driven_spikes + other.driven_spikes,
            self.differing + other.differing,
            self.flipped + other.flipped,
            self.unexplained + other.unexplained,
            _listed((*self.flips, *other.flips)),
        )


def _listed(flips: tuple[Flip, ...]) -> tuple[Flip, ...]:
    return tuple(sorted(flips, key=lambda flip: (flip.explained, flip.sample, flip.step))[:LISTED])


@brief
@dataclass(frozen=True)
class Differences:
    """First flips of one population: index (F, 1 + ndim) of (sample, neuron), step (F,)."""

    index: Tensor
    step: Tensor


def first_differences(golden: Tensor, other: Tensor) -> Differences:
    """Where bool spikes (T, B, ...) first differ, neuron by neuron."""
    differs = golden != other
    index = differs.any(dim=0).nonzero()
    first = differs.to(torch.uint8).argmax(dim=0)
    return Differences(index, first[tuple(index.t())])


@brief
@dataclass(frozen=True)
class Upstream:
    """Per sample of a batch: the first step at which a layer's inputs differ (T if never), and
    the first flip behind that, by sample number."""

    step: Tensor
    causes: Mapping[int, Flip]


@torch.no_grad()
def compare_population(
    golden: Golden,
    name: str,
    values: Mapping[str, Signal],
    other: Tensor,
    keep: Tensor | None = None,
    offset: int = 0,
    upstream: Upstream | None = None,
) -> tuple[LayerSpikes, dict[int, Flip]]:
    """Compare one population's spikes; also the first flip of every sample that has one.

    values: the golden's, as recorded. other: bool spikes (T, B, C, ...). keep: the golden's
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
    found = first_differences(ours, other)
    judged = _judge(golden, name, values, keep, found, upstream)
    steps, channels = len(ours), torch.arange(ours.shape[2]) if keep is None else keep
    driven = channels < golden.graph.shapes[golden.graph[name].inputs[0]][0]
    summary = LayerSpikes(
        name,
        ours.numel() // (steps * ours.shape[1]),
        ours.shape[1],
        int(ours.sum()),
        int(other.sum()),
        int(ours[:, :, driven].sum()),
        int((ours != other).sum()),
        len(found.step),
        int((~judged.explained).sum()),
        (),
    )
    make = _FlipMaker(name, found, judged, ours, keep, offset, upstream)
    order = np.lexsort((found.step, found.index[:, 0], judged.explained))
    flips = tuple(make(int(i)) for i in order[:LISTED])
    return replace(summary, flips=flips), make.firsts()


@dataclass(frozen=True)
class _Judged:
    """Per first flip: distance, allowance, whether inputs differed by then, whether explained."""

    distance: Tensor
    allowance: Tensor
    traced: Tensor
    explained: Tensor


def _judge(
    golden: Golden,
    name: str,
    values: Mapping[str, Signal],
    keep: Tensor | None,
    found: Differences,
    upstream: Upstream | None,
) -> _Judged:
    sample = found.index[:, 0]
    if not len(sample):
        nothing, none = torch.zeros(0, dtype=torch.float64), torch.zeros(0, dtype=torch.bool)
        return _Judged(nothing, nothing, none, none)
    samples = torch.unique(sample)
    distance, allowance = golden.margins(name, values, samples)
    if keep is not None:
        distance, allowance = distance.index_select(2, keep), allowance.index_select(2, keep)
    at = (found.step, torch.searchsorted(samples, sample), *found.index[:, 1:].t())
    here, allowed = distance[at], allowance[at]
    traced = torch.zeros_like(sample, dtype=torch.bool)
    if upstream is not None:
        traced = found.step >= upstream.step[sample]
    return _Judged(here, allowed, traced, traced | (here.abs() <= allowed))


@dataclass(frozen=True)
class _FlipMaker:
    """Turns rows of the arrays into Flip records, as far as they are wanted."""

    name: str
    found: Differences
    judged: _Judged
    ours: Tensor
    keep: Tensor | None
    offset: int
    upstream: Upstream | None

    def __call__(self, i: int) -> Flip:
        sample, channel, *place = (int(k) for k in self.found.index[i])
        step = int(self.found.step[i])
        fired = bool(self.ours[(step, sample, channel, *place)])
        if self.keep is not None:
            channel = int(self.keep[channel])
        cause = None
        if self.upstream is not None and bool(self.judged.traced[i]):
            cause = self.upstream.causes.get(sample + self.offset)
        return Flip(
            self.name,
            step,
            sample + self.offset,
            (channel, *place),
            fired,
            float(self.judged.distance[i]),
            float(self.judged.allowance[i]),
            cause,
        )

    def firsts(self) -> dict[int, Flip]:
        """The first flip of each sample; of several at one step, the one nearest to threshold."""
        sample = self.found.index[:, 0].numpy()
        order = np.lexsort((self.judged.distance.abs(), self.found.step, sample))
        _, begin = np.unique(sample[order], return_index=True)
        flips = (self(int(order[i])) for i in begin)
        return {flip.sample: flip for flip in flips}
