"""Comparing spikes: flips, and how far the golden's membrane was from its threshold there.

A sum in another order rounds differently, and one that lands on the other side of the threshold
is another spike. So a difference is *explained* only if the golden's membrane, recomputed in
float64, lies so close to the threshold that rounding can decide. After a neuron's first flip its
own membrane differs, so each neuron is compared up to that flip.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from soul_deploy.counting import population_behind
from soul_deploy.folding import fold
from soul_deploy.graph import Node, Population, SpikingGraph
from soul_deploy.modelfile import Model
from soul_deploy.module import GraphModule, Signal
from soul_deploy.neurons import SpikingNeuron
from soul_deploy.runtime.equations import CHARGE, reset_hard, reset_soft
from soul_deploy.runtime.errors import VerificationError

ROUNDING = 4 * 2.0**-24  # of Σ|w·x|: the allowed error of a float32 sum
LEAST_ALLOWANCE = 1e-5  # of the threshold
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


def entries(graph: SpikingGraph, name: str) -> tuple[str, ...]:
    """The nodes whose values enter the first projections in front of `name`.

    They hold the population's input before any sum of weights: input, spikes, or those pooled.
    """
    found: list[str] = []
    for source in graph[name].inputs:
        if _has_projection(graph, source):
            found += entries(graph, source)
        else:
            found.append(source)
    return tuple(dict.fromkeys(found))


def _has_projection(graph: SpikingGraph, name: str) -> bool:
    node = graph[name]
    if isinstance(node, Population) or not node.inputs:
        return False
    kinds = ("convolution", "linear")
    return node.op in kinds or any(_has_projection(graph, source) for source in node.inputs)


def sources(graph: SpikingGraph, name: str) -> tuple[str, ...]:
    """The populations (or the input) that feed `name`, nothing spiking in between."""
    found: list[str] = []
    for source in graph[name].inputs:
        node = graph[source]
        found += [source] if isinstance(node, Population) or not node.inputs else []
        found += [] if isinstance(node, Population) else sources(graph, source)
    return tuple(dict.fromkeys(found))


class Golden:
    """The PyTorch original that everything is compared with, in float32 and in float64."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.graph = model.graph
        self.module = model.module()

    @cached_property
    def double(self) -> GraphModule:
        """The network in float64, batch norm unfolded."""
        return self.model.module().double()

    @cached_property
    def absolute(self) -> GraphModule:
        """The network with |deployed weights|, in float64: it sums |w·x|.

        Biases are left out where nothing but one population reads the current; in other currents
        they are part of what following projections weigh.
        """
        folded = fold(self.graph, self.model.state, self.model.channel_masks)
        plain: dict[str, Node] = {}
        for p in self.graph.projections:
            alone = population_behind(self.graph, p.name) is not None
            plain[p.name] = replace(
                p, bias=not alone and folded[p.name].bias is not None, norm=None
            )
        module = GraphModule(self.graph.with_nodes(plain)).double()
        with torch.no_grad():
            for name in plain:
                for key, parameter in module.get_submodule(name).named_parameters():
                    parameter.copy_(torch.from_numpy(getattr(folded[name], key)).abs())
        return module.eval()

    @torch.no_grad()
    def record(self, images: Tensor) -> tuple[dict[str, Signal], Tensor]:
        """Values of the input and of every population (T, B, ...), and the logits."""
        start, readout = self.graph.input.name, self.graph.readout.name
        names = [start, *(node.name for node in self.graph.populations), readout]
        values = self.module.evaluate({start: self.module.as_signal(images)}, names)
        logits = values.pop(readout).tensor
        return values, logits

    @torch.no_grad()
    def margins(
        self, name: str, values: Mapping[str, Signal], samples: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Distance to threshold and allowance of population `name`, both (T, S, ...) float64.

        values: as recorded; samples: indices (S,) of the samples to look at. The membrane is
        recomputed from the recorded inputs, its resets taught by the recorded spikes. The
        allowance at a step is that of the largest Σ|w·x| up to it: the membrane remembers.
        Generated channels have no membrane, and an infinite distance.
        """
        known = {s: _select(values[s], samples) for s in sources(self.graph, name)}
        spikes = _select(values[name], samples).tensor
        current_of = self.graph[name].inputs[0]
        current = self.double.evaluate(known, [current_of])[current_of]
        sizes = {s: Signal(signal.tensor.abs(), signal.static) for s, signal in known.items()}
        summed = self.absolute.evaluate(sizes, [current_of])[current_of]
        neuron = self.double.get_submodule(name)
        assert isinstance(neuron, SpikingNeuron)
        charged = spikes[:, :, : self.graph.shapes[current_of][0]]
        distance = _taught_distance(neuron, current, charged)
        allowance = ROUNDING * _over_time(summed, len(spikes)).cummax(dim=0).values
        allowance = allowance.clamp(min=LEAST_ALLOWANCE * neuron.spec.v_threshold)
        generated = torch.full_like(spikes[:, :, charged.shape[2] :], torch.inf)
        return (
            torch.cat([distance, generated], dim=2),
            torch.cat([allowance, torch.zeros_like(generated)], dim=2),
        )


def _select(signal: Signal, samples: Tensor) -> Signal:
    axis = 0 if signal.static else 1
    return Signal(signal.tensor.index_select(axis, samples).double(), signal.static)


def _over_time(signal: Signal, steps: int) -> Tensor:
    if not signal.static:
        return signal.tensor
    return signal.tensor.expand(steps, *signal.tensor.shape)


def _taught_distance(neuron: SpikingNeuron, current: Signal, spikes: Tensor) -> Tensor:
    """The charged membrane minus the threshold at every step, reset by the given spikes."""
    equation = neuron.equation()
    x = _over_time(current, len(spikes))
    v = torch.full_like(x[0], equation.rest)
    distances = []
    for t, spike in enumerate(spikes):
        v = CHARGE[equation.charge](v, x[t], equation.constant, equation.rest)
        distances.append(v - equation.v_threshold)
        if equation.v_reset is None:
            v = reset_soft(v, spike, equation.v_threshold)
        else:
            v = reset_hard(v, spike, equation.v_reset)
    return torch.stack(distances)


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
