"""An event network run beside its model, layer by layer or whole, with its operation counts."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from soul_deploy.base import Array
from soul_deploy.data.given import Images, images_for
from soul_deploy.equivalence.comparison import Comparison
from soul_deploy.equivalence.engines import Comparer, ExecutionRun, LayerRun
from soul_deploy.equivalence.reference import ReferenceModel, sent_of
from soul_deploy.equivalence.verdict import Verdict, untested
from soul_deploy.export.event.build import build_event_network
from soul_deploy.export.verify.event import event_problems
from soul_deploy.lowering.deploy import lower
from soul_deploy.model.model import Model
from soul_deploy.nn.graph_module import Signal
from soul_deploy.runtime.engine.inputs import to_channel_last
from soul_deploy.runtime.engine.network import Network
from soul_deploy.runtime.format import network as eventnet
from soul_deploy.runtime.kernels.cache import compiling_announced
from soul_deploy.runtime.ops import counted_run, counters, counting
from soul_deploy.runtime.plan import layer_plan, layout, regions
from soul_deploy.runtime.plan.neuron_state import sent_dtype
from soul_deploy.runtime.plan.readout import membranes_of, readout_region


class EventExecution:
    """The event runtime as an execution to compare; it also counts."""

    def __init__(self, network: Network, reference: ReferenceModel) -> None:
        self.network, self.reference = network, reference
        self._given: Mapping[str, Signal] = {}
        self._known: dict[str, Signal] = {}  # of the reference
        self._held: dict[str, Array] = {}  # of this network
        self._counted: set[str] = set()

    def run(self, images: Tensor) -> ExecutionRun:
        counted = counted_run.count_run(self.network, images.numpy())
        recording = counted.recording
        graph, sent = self.reference.graph, recording.spikes
        spikes = {name: sent_of(graph, name, torch.from_numpy(a)) for name, a in sent.items()}
        return ExecutionRun(spikes, torch.from_numpy(recording.logits), counted.counts)

    def run_layer(self, layer: str, values: Mapping[str, Signal]) -> LayerRun:
        """A population (with all that stands between it and others' spikes), or the readout.

        What stands between runs on this network, once for the same `values`; counts are taken on
        the reference's.
        """
        events = self.network.events
        if values is not self._given:
            self._given, self._known, self._held = values, dict(values), {}
            self._counted = set()
        if layer == events.readout.name:
            scores = self._scores(self._value(events.readout.source))
            fed = self._arriving(events.readout.in_shape, events.readout.source)
            counted = {layer: counting.readout_steps(events.readout, fed)}
            return LayerRun(scores, counted | self._counts(self._between(events.readout), None))
        stored = events.by_name[layer]
        taught = None if stored.feedback is None else values[layer].tensor.numpy()
        spikes = self._run(stored, taught)
        counted = self._counts((stored, *self._between(stored)), spikes)
        sent = sent_of(self.reference.graph, layer, torch.from_numpy(spikes))
        return LayerRun(sent, counted)

    def _counts(
        self, parts: Iterable[eventnet.Layer], spikes: Array | None
    ) -> dict[str, counters.StepCounts]:
        """Counts of layers on the reference's values; spikes: of the population among them."""
        counted: dict[str, counters.StepCounts] = {}
        for part in parts:
            fired = {} if spikes is None else {part.name: spikes}
            counted |= counting.steps_of(part, partial(self._arriving, part.in_shape), fired)
        return counted

    def _arriving(self, in_shape: eventnet.Shape, source: str) -> Array:
        """The reference's values of a source, as the runtime holds them."""
        values = self._reference_value(source)
        typed = values.astype(sent_dtype(self.network.events.edges[source]))
        return counted_run.by_position(typed, in_shape)

    def _run(self, stored: eventnet.Layer, sent: Array | None = None) -> Array:
        inputs = [self._value(name) for name in stored.sources]
        return self.network.run_layer(stored.name, *inputs, sent=sent)

    def _value(self, name: str) -> Array:
        """The values of a layer: recorded, or computed from recorded values."""
        if name in self._given:
            values: Array = self._given[name].tensor.numpy()
            first = name == self.reference.graph.input.name
            return values.astype(np.int16) if first and self.reference.graph.integers else values
        if name not in self._held:
            self._held[name] = self._run(self.network.events.by_name[name])
        return self._held[name]

    @torch.no_grad()
    def _reference_value(self, name: str) -> Array:
        """The recorded or computed value of a node of the reference."""
        self._known |= self.reference.module.evaluate(self._known, [name])
        array: Array = self._known[name].tensor.numpy()
        return array

    def _between(self, stored: eventnet.Layer | eventnet.ReadoutLayer) -> Iterator[eventnet.Layer]:
        """Layers not yet counted between a layer and the populations or the input before it."""
        for name in stored.sources:
            if name not in self._given and name not in self._counted:
                self._counted.add(name)
                layer = self.network.events.by_name[name]
                yield layer
                yield from self._between(layer)

    def _scores(self, inputs: Array) -> Tensor:
        """The readout on spikes (T, B, ...), sample by sample."""
        readout = self.network.events.readout
        steps, batch = inputs.shape[:2]
        edge = self.network.events.edges[readout.source]
        source = layer_plan.aligned(
            (steps, *layout.channel_last(readout.in_shape)), sent_dtype(edge)
        )
        scores = layer_plan.aligned((readout.classes,), np.float32)
        membranes = membranes_of(readout, steps)
        region = readout_region(readout, source, scores, membranes)
        result = np.empty((batch, readout.classes), np.float32)
        for b in range(batch):
            source[...] = to_channel_last(inputs[:, b], readout.in_shape)
            regions.run_calls(region[0])
            result[b] = scores
        return torch.from_numpy(result)


@dataclass(frozen=True)
class CountCheck:
    """Whether the event network is the model, and how its spikes and counts compare."""

    static: bool
    comparison: Comparison

    @property
    def verdict(self) -> Verdict:
        return self.comparison.verdict if self.static else Verdict.FAILED

    @property
    def spike_mismatch(self) -> int:
        """Spikes that differ, end to end."""
        return sum(layer.differing for layer in self.comparison.end_to_end.layers)

    def line(self) -> str:
        """The check in a sentence."""
        gates = {
            "static": self.static,
            "forced": self.comparison.forced.passed,
            "end_to_end": self.comparison.end_to_end.passed,
        }
        told = " ".join(f"{gate} {'yes' if passed else 'NO'}," for gate, passed in gates.items())
        line = f"Counters equal the event runtime's: {told} spike mismatches {self.spike_mismatch}"
        if self.verdict is not Verdict.INCONCLUSIVE:
            return line
        return f"{line}; inconclusive: {untested(self.comparison.silent)}"

    def to_dict(self) -> dict[str, Any]:
        """The check as JSON data."""
        whole = self.comparison.end_to_end
        changed = {f"{item.layer}.{item.count}": item.difference for item in whole.differences}
        return {
            "verdict": self.verdict.value,
            "static": self.static,
            "forced": self.comparison.forced.passed,
            "end_to_end": whole.passed,
            "spike_mismatch": self.spike_mismatch,
            "counter_diff": changed,
            "silent_layers": list(self.comparison.silent),
        }


def verify_counts(model: Model, images: Images) -> CountCheck:
    """Build the event network of `model`, and compare its counts on `images` by the three checks.

    Raises UnsupportedGraphError for a model that cannot be an event network, and what `images_for`
    raises.
    """
    reference = ReferenceModel(lower(model).trimmed.model)
    network = Network(build_event_network(model))
    static = not event_problems(reference.model, network)
    with compiling_announced():
        given, _ = images_for(model, images)
        execution = EventExecution(network, reference)
        return CountCheck(static, Comparer(reference).both(execution, given))
