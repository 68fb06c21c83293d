"""Two executions of one network: are they the same?

`compare` answers it for two models, `Comparer` for a model and an `Execution`, which engines offer.
`forced`: layer by layer, each layer fed with what the reference recorded. `end_to_end`: each
execution on its own spikes, every difference traced to the first flipped neuron. Spikes are
compared by `soul_deploy.equivalence.spikes`; the result is a `soul_deploy.equivalence.comparison`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from soul_deploy.base import Array, brief, errors, reduction
from soul_deploy.data.given import Images, images_for
from soul_deploy.equivalence.comparison import LOGIT_LIMIT, CheckResult, Comparison
from soul_deploy.equivalence.counts import CountComparer, CountDifference, CountMismatch
from soul_deploy.equivalence.reference import ReferenceModel, entries, sent_of, sources
from soul_deploy.equivalence.spikes import (
    LayerSpikes,
    SpikeMismatch,
    Upstream,
    compare_population,
    unseen_population,
)
from soul_deploy.ir import Input
from soul_deploy.model.model import Model
from soul_deploy.nn.graph_module import Signal
from soul_deploy.runtime.ops.counters import LayerCounts, StepCounts

BATCH = 16


@brief
@dataclass(frozen=True)
class LayerRun:
    """One layer's output: bool spikes (T, B, ...), or the readout's logits; and what it counted.

    counts: by step and sample, by projection, population or pooling (as
    `soul_deploy.analysis.synops.counted_nodes` names them), of what ran between the layer and the
    populations before it; None if the engine does not count.
    """

    output: Tensor
    counts: Mapping[str, StepCounts] | None = None


@brief
@dataclass(frozen=True)
class ExecutionRun:
    """A whole run: bool spikes (T, B, ...) per population, logits (B, classes), counts if any.

    spikes: of all populations, or none where the engine does not show them.
    """

    spikes: Mapping[str, Tensor]
    logits: Tensor
    counts: Mapping[str, LayerCounts] | None = None


class Execution(Protocol):
    """An engine with one network loaded. Populations have the reference's names."""

    def run(self, images: Tensor) -> ExecutionRun:
        """On static images (B, C, H, W) or a sequence (T, B, C, H, W)."""
        ...

    def run_layer(self, layer: str, values: Mapping[str, Signal]) -> LayerRun:
        """One population, or the readout, on given values of the input and all populations.

        A population's feedback is given its own values too, as recorded: what it sends at a step
        does not depend on what it sent before but through its membrane.
        """
        ...


class ModelExecution:
    """Another PyTorch model, such as the compact one, as an execution."""

    def __init__(self, model: Model) -> None:
        self.reference = ReferenceModel(model)

    def run(self, images: Tensor) -> ExecutionRun:
        values, logits = self.reference.record(images)
        names = [node.name for node in self.reference.graph.populations]
        graph = self.reference.graph
        sent = {name: sent_of(graph, name, values[name].tensor) for name in names}
        return ExecutionRun(sent, logits)

    @torch.no_grad()
    def run_layer(self, layer: str, values: Mapping[str, Signal]) -> LayerRun:
        known = {name: values[name] for name in sources(self.reference.graph, layer)}
        graph, module = self.reference.graph, self.reference.module
        if graph[layer].feedback is None:
            output = module.evaluate(known, [layer])[layer].tensor
        else:
            (source,) = graph[layer].inputs
            current = module.evaluate(known, [source])[source]
            output = module.fire_taught(layer, current, values[layer].tensor)
        return LayerRun(output if layer == graph.readout.name else sent_of(graph, layer, output))


@brief
@dataclass(frozen=True)
class Comparer:
    """Compares executions with `reference`.

    kept: by population, channels of the reference that an execution with removed channels has.
    """

    reference: ReferenceModel
    kept: Mapping[str, Array] = field(default_factory=dict)

    @cached_property
    def counts(self) -> CountComparer:
        return CountComparer(self.reference)

    def forced(self, other: Execution, images: Tensor, batch: int = BATCH) -> CheckResult:
        """Layer by layer: every layer on the reference's recorded inputs."""
        parts = self._batches(images, batch)
        checks = (self._forced_batch(other, at, *self.reference.record(part)) for at, part in parts)
        return sum(checks, CheckResult())

    def end_to_end(self, other: Execution, images: Tensor, batch: int = BATCH) -> CheckResult:
        """End to end: every execution on its own spikes."""
        total = CheckResult()
        for offset, part in self._batches(images, batch):
            values, logits = self.reference.record(part)
            total += self._run_batch(other.run(part), offset, values, logits)
        return total

    def both(
        self,
        other: Execution,
        images: Tensor,
        batch: int = BATCH,
        *,
        allow_silent: bool = False,
        by_layer: bool = True,
    ) -> Comparison:
        """Checks 2 and 3; by_layer: False where the other execution has no layers to run."""
        return Comparison(
            forced=self.forced(other, images, batch) if by_layer else CheckResult(),
            end_to_end=self.end_to_end(other, images, batch),
            time_steps=self.reference.graph.time_steps,
            allow_silent=allow_silent,
        )

    def _batches(self, images: Tensor, batch: int) -> Iterator[tuple[int, Tensor]]:
        axis = self.reference.module.batch_axis(images)
        if images.shape[axis] == 0:
            raise errors.UsageError("no samples to compare; give at least one")
        offset = 0
        for part in torch.split(images, batch, dim=axis):
            yield offset, part
            offset += part.shape[axis]

    def _forced_batch(
        self, other: Execution, offset: int, values: dict[str, Signal], logits: Tensor
    ) -> CheckResult:
        kept, known = self._kept_values(values), dict(values)
        layers: list[LayerSpikes] = []
        mismatches: list[CountMismatch] = []
        names: set[str] = set()
        readout, populations = self.reference.graph.readout, self.reference.graph.populations
        for name in (*(node.name for node in populations), readout.name):
            run = other.run_layer(name, kept)
            if name != readout.name:
                layers.append(self._compared(name, values, run.output, offset)[0])
            counts = run.counts or {}
            mismatches += self.counts.mismatches(counts, known, {name: run.output})
            names |= set(counts)
        mismatches += self.counts.missing(names) if names else []
        return replace(
            self._compare_logits(logits, run.output, np.zeros(len(logits), bool), values),
            layers=tuple(layers),
            counted=bool(names),
            mismatches=tuple(mismatches),
        )

    def _compare_logits(
        self, ours: Tensor, other: Tensor, flipped: Array, values: Mapping[str, Signal]
    ) -> CheckResult:
        graph = self.reference.graph
        steps = reduction.biases(graph.readout.over_time, graph.time_steps)
        if graph.integers:
            return replace(_compare_logits(ours, other, flipped, steps), logit_limit=0.0)
        limits = self.reference.score_limits(values, steps * LOGIT_LIMIT)
        return _compare_logits(ours, other, flipped, steps, limits)

    def _compared(
        self, name: str, values: dict[str, Signal], spikes: Tensor, *place: Any
    ) -> tuple[LayerSpikes, dict[int, SpikeMismatch]]:
        """place: the batch's offset and what differs upstream, as `compare_population` takes it."""
        return compare_population(self.reference, name, values, spikes, self._keep(name), *place)

    def _run_batch(
        self, run: ExecutionRun, offset: int, values: dict[str, Signal], logits: Tensor
    ) -> CheckResult:
        layers: list[LayerSpikes] = []
        firsts: dict[str, Mapping[int, SpikeMismatch]] = {}
        populations = self.reference.graph.populations
        if not run.spikes:
            unseen = (unseen_population(self.reference, p.name, values) for p in populations)
            alone = self._compare_logits(logits, run.logits, np.zeros(len(logits), bool), values)
            return replace(alone, layers=tuple(unseen))
        for node in populations:
            name, theirs = node.name, run.spikes
            upstream = self._upstream(name, values, theirs, firsts)
            spikes, first = self._compared(name, values, theirs[name], offset, upstream)
            layers.append(spikes)
            firsts[name] = first
        flipped = np.zeros(len(logits), bool)
        flipped[[sample - offset for first in firsts.values() for sample in first]] = True
        mismatches, differences = self._counts(run, values)
        return replace(
            self._compare_logits(logits, run.logits, flipped, values),
            layers=tuple(layers),
            counted=run.counts is not None,
            mismatches=mismatches,
            differences=differences,
        )

    def _counts(
        self, run: ExecutionRun, values: Mapping[str, Signal]
    ) -> tuple[tuple[CountMismatch, ...], tuple[CountDifference, ...]]:
        """Its counts must be what its own spikes say, and differ from ours by what these do."""
        if run.counts is None:
            return (), ()
        own = dict(values)
        own |= {name: Signal(spikes.float(), False) for name, spikes in run.spikes.items()}
        mismatches = self.counts.mismatches(run.counts, own, run.spikes)
        mismatches += self.counts.missing(set(run.counts))
        return tuple(mismatches), tuple(self.counts.differences(run.counts, dict(values), own))

    def _upstream(
        self,
        name: str,
        values: Mapping[str, Signal],
        spikes: Mapping[str, Tensor],
        firsts: Mapping[str, Mapping[int, SpikeMismatch]],
    ) -> Upstream | None:
        """The step from which the inputs of `name` differ, by sample, and the mismatch behind.

        What a population itself sends otherwise, `compare_population` follows.
        """
        graph = self.reference.graph
        feeding = [s for s in sources(graph, name) if firsts.get(s)]
        if not feeding:
            never = torch.full((spikes[name].shape[1],), graph.time_steps)
            return None if graph[name].feedback is None else Upstream(never, {})
        theirs = dict(values) | {s: self._widened(s, values[s], spikes[s]) for s in feeding}
        step: Tensor | None = None
        for entry in entries(self.reference.graph, name):
            differs = self._entry(entry, values) != self._entry(entry, theirs)
            by_step = differs.flatten(2).any(dim=2)
            never = torch.ones_like(by_step[:1])
            first = torch.cat([by_step, never]).to(torch.uint8).argmax(dim=0)
            step = first if step is None else torch.minimum(step, first)
        assert step is not None
        causes: dict[int, SpikeMismatch] = {}
        for source in feeding:
            for sample, flip in firsts[source].items():
                if sample not in causes or flip.step < causes[sample].step:
                    causes[sample] = flip
        return Upstream(step, {sample: flip.cause or flip for sample, flip in causes.items()})

    def _entry(self, entry: str, values: Mapping[str, Signal]) -> Tensor:
        """An entry's value over time; pooling and merging stand between it and the spikes."""
        signal = self.reference.module.evaluate(values, [entry])[entry]
        steps = self.reference.graph.time_steps
        return signal.tensor.expand(steps, *signal.tensor.shape) if signal.static else signal.tensor

    def _widened(self, name: str, reference: Signal, spikes: Tensor) -> Signal:
        """An execution's spikes among the reference's; removed channels differ from nothing."""
        keep = self._keep(name)
        if keep is None:
            return Signal(spikes.float(), False)
        return Signal(reference.tensor.index_copy(2, keep, spikes.to(reference.tensor)), False)

    def _keep(self, name: str) -> Tensor | None:
        return torch.from_numpy(np.asarray(self.kept[name])) if name in self.kept else None

    def _kept_values(self, values: Mapping[str, Signal]) -> dict[str, Signal]:
        kept = dict(values)
        for name, signal in values.items():
            keep = self._keep(name)
            if keep is not None:
                axis = 1 if signal.static else 2
                kept[name] = Signal(signal.tensor.index_select(axis, keep), signal.static)
        return kept


def _compare_logits(
    reference: Tensor, other: Tensor, flipped: Array, steps: int = 1, limits: Tensor | None = None
) -> CheckResult:
    """Samples of the same class, and the largest difference on unflipped and flipped ones.

    steps: how many steps' scores a score is the sum of. A difference is that of a step: the sum is
    T times the mean, and so is its rounding. limits: (B, classes), None: one limit for all.
    """
    found = CheckResult(samples=len(reference), flipped_samples=int(flipped.sum()))
    if reference.shape != other.shape:
        return replace(found, logit_difference=np.inf, logit_difference_flipped=np.inf)
    by_class = (reference.double() - other.double()).abs().numpy() / steps
    difference = by_class.max(axis=1)
    largest, limit = float(difference[~flipped].max(initial=0.0)), LOGIT_LIMIT
    if limits is not None and not flipped.all():
        largest, limit = _worst(by_class[~flipped], limits.numpy()[~flipped] / steps)
    return replace(
        found,
        logit_difference=largest,
        logit_difference_flipped=float(difference[flipped].max(initial=0.0)),
        logit_limit=limit,
        agreeing=int((reference.argmax(dim=1) == other.argmax(dim=1)).sum()),
    )


def _worst(difference: Array, limits: Array) -> tuple[float, float]:
    """The difference that is the largest share of its limit (a NaN first), and that limit."""
    share = np.nan_to_num(difference / limits, nan=np.inf)
    at = np.unravel_index(share.argmax(), share.shape)
    return float(difference[at]), float(limits[at])


def compare(
    model_a: Model,
    model_b: Model,
    images: Images,
    kept: Mapping[str, Array] | None = None,
    *,
    batch: int = BATCH,
    allow_silent: bool = False,
) -> Comparison:
    """Whether `model_b` (masked, compact) does what `model_a`, the reference, does on `images`.

    images: (B, C, H, W) or (T, B, C, H, W) as `images_for` takes them. kept: for each population
    that lost channels, the reference's channels (indices) that are left, as
    `RemovalPlan.kept_channels` gives them.
    allow_silent: pass also where a population of those left never fires; without, such a
    comparison is inconclusive.
    Raises UsageError if the populations or the channels don't correspond, and what `images_for`
    raises.
    """
    kept = kept or {}
    _check_correspondence(model_a, model_b, kept)
    given, _ = images_for(model_a, images)
    comparer, execution = Comparer(ReferenceModel(model_a), kept), ModelExecution(model_b)
    return comparer.both(execution, given, batch, allow_silent=allow_silent)


def _check_correspondence(reference: Model, other: Model, kept: Mapping[str, Array]) -> None:
    if reference.graph.time_steps != other.graph.time_steps:
        raise errors.UsageError(
            f"T = {reference.graph.time_steps} and T = {other.graph.time_steps} steps; compare "
            "models of the same T"
        )
    shapes = reference.graph.shapes
    for node in (*reference.graph.of_type(Input), *reference.graph.populations):
        shape = shapes[node.name]
        if node.name in kept:
            shape = (len(kept[node.name]), *shape[1:])
        theirs = other.graph.shapes.get(node.name)
        if theirs != shape:
            raise errors.UsageError(
                f"{node.name}: the other model has {theirs}, expected {shape}; say which channels "
                "are left (kept)"
            )
