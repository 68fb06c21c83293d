"""A network that is updated where events reach it: the path of least latency.

A step costs what its events reach. Neurons that nothing reaches are left out, and made up for when
something does (kernels/touched.py), so scores have the bits of a `Stream` whose synapses run from
event to event. What can run so: chains of layers with synapses and neurons, and poolings, from an
input of events; neurons of one membrane (IF, LIF, PLIF, LTMD, snnTorch's Leaky, fixed point).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from soul_deploy.base import Array, brief, dispatch, errors
from soul_deploy.runtime.engine.pending import PendingEvents
from soul_deploy.runtime.equations import Equation, FixedEquation, NeuronEquation
from soul_deploy.runtime.format import network as net
from soul_deploy.runtime.kernels import steps as step_forms
from soul_deploy.runtime.kernels import touched
from soul_deploy.runtime.kernels.program import Bound, Program
from soul_deploy.runtime.plan import neuron_state
from soul_deploy.runtime.plan.event_rows import event_rows
from soul_deploy.runtime.plan.layout import channel_last
from soul_deploy.runtime.plan.readout import readout_region


@brief
@dataclass(frozen=True)
class Listed:
    """What a layer sends in a step: places in rising order, so many of them, and values there."""

    places: Array
    counts: Array
    values: Array


@brief
@dataclass(frozen=True)
class Updated:
    """Neurons of a layer, and how a step is taken back or kept."""

    name: str
    v: Array
    last: Array
    counts: Array
    rest: Any
    always: Array
    undo: Bound
    commit: Bound

    def reset(self) -> None:
        self.v[:], self.last[:], self.counts[:] = self.rest, -1, 0


@brief
@dataclass(eq=False)
class EventStream:
    """One sample, step by step, as `Stream`: `push` events, `step` ends the step. `peek` says what
    it would give if it ended now.

    always  how many neurons are updated at each step, since their bias alone can make them fire
    scores  (1, classes) of the last step that ended; None: none has

    Raises UnsupportedGraphError, naming the layer, for what cannot run so, LimitError.
    """

    events: net.EventNetwork
    max_memory: int | None = None

    def __post_init__(self) -> None:
        network = self.events
        if network.input_bound is None:
            raise _refused(network.input_name, f"an input of {network.input_kind} without a bound")
        self._pending = PendingEvents(network)
        given = Listed(self._pending.places, self._pending.counts, self._pending.values)
        self.scores: Array | None = None
        self.steps = 0
        self._step = np.zeros(1, np.int64)
        sent, calls = {network.input_name: given}, list[Bound]()
        calls.append((touched.sort_events, (given.places, given.counts)))
        self._layers: list[Updated] = []
        for layer in network.layers:
            sent[layer.name] = take(layer, self, sent, calls)
        self._out = np.zeros((1, network.readout.classes), np.float32)
        self._read(sent[network.readout.source], calls)
        forget = touched.forget_events, (given.values, given.places, given.counts)
        self._try, self._undo = Program(calls), Program([each.undo for each in self._layers])
        self._commit = Program([*(each.commit for each in self._layers), forget])
        self.reset()

    @property
    def always(self) -> int:
        return sum(len(layer.always) for layer in self._layers)

    def _read(self, source: Listed, calls: list[Bound]) -> None:
        """The head: its spikes on a map, which is emptied again."""
        readout = self.events.readout
        if readout.neuron is not None:
            raise _refused(readout.name, "scores that are membranes")
        shown = np.zeros((1, *channel_last(readout.in_shape)), np.uint8)
        (region,) = readout_region(readout, shown, self._out[0])
        lists = source.places, source.counts, shown.reshape(-1)
        calls.append((touched.place, lists))
        calls += [(call.kernel, call.arguments) for call in region]
        calls.append((touched.clear, lists))

    def push(self, events: Array) -> None:
        """Events (N,) of `base.events.EVENT` for the step that `step` ends. Raises ValidityError as
        `Stream.push`.
        """
        self._pending.add(events)

    def peek(self) -> Array:
        """Scores (1, classes) as if the step ended now."""
        self._run()
        self._undo.run()
        return self._out.copy()

    def step(self) -> Array:
        """Scores (1, classes) of the step, which ends with the events pushed since the one before.

        Raises ValidityError for a step beyond the T that the network is valid for.
        """
        self._run()
        self._commit.run()
        self._step[0] += 1
        self.steps += 1
        self.scores = self._out.copy()
        return self.scores

    def _run(self) -> None:
        network = self.events
        if network.fixed_steps and self.steps >= network.time_steps:
            raise errors.ValidityError(
                f"step {self.steps + 1} asked, but this network is valid for T = "
                f"{network.time_steps} steps from rest; call reset() first"
            )
        self._try.run()

    def reset(self) -> None:
        """The next step starts at rest, without events."""
        self._step[0], self.steps, self.scores = 0, 0, None
        self._pending.clear()
        for layer in self._layers:
            layer.reset()


def _refused(name: str, what: str) -> errors.UnsupportedGraphError:
    return errors.UnsupportedGraphError(
        f"{name}: {what}, which the latency path does not run; use Network.stream()"
    )


def _listed(size: int) -> Listed:
    counts = np.zeros(touched.COUNTS, np.int64)
    return Listed(np.zeros(size, np.int32), counts, np.zeros(size, np.uint8))


@dispatch.operation_table(net.Layer)
def take(
    layer: net.Layer, stream: EventStream, sent: dict[str, Listed], calls: list[Bound]
) -> Listed:
    """Add the calls of a layer's step; what it sends."""
    raise take.unknown(layer)


take.refuse(
    *(net.Layer, net.MergeLayer, net.ScatterLayer, net.CurrentLayer, net.PopulationLayer),
    error=lambda layer: _refused(layer.name, layer.what),
)


@take.on(net.PoolLayer)
def _pool(
    layer: net.PoolLayer, stream: EventStream, sent: dict[str, Listed], calls: list[Bound]
) -> Listed:
    source, out = sent[layer.sources[0]], _listed(math.prod(layer.out_shape))
    # What the step before left is emptied first: maxima begin with 0.
    calls.append((touched.clear, (out.places, out.counts, out.values)))
    windows = layer.in_shape[2], layer.kernel, layer.stride, layer.padding
    given = source.places, source.values, source.counts, *windows, layer.in_shape[0]
    made = layer.out_shape[1:], out.values, out.places, out.counts
    calls.append((touched.pool, (*given, *made)))
    return out


@take.on(net.SpikingLayer)
def _spiking(
    layer: net.SpikingLayer, stream: EventStream, sent: dict[str, Listed], calls: list[Bound]
) -> Listed:
    if not isinstance(layer.neuron, NeuronEquation | FixedEquation):
        raise _refused(layer.name, "neurons of more than one membrane, or that mix steps")
    if layer.pattern is not None:
        raise _refused(layer.name, "channels of a stored pattern")
    size = math.prod(layer.current_shape)
    kind = np.dtype(np.float32 if layer.accumulator is None else np.int32)
    bias = np.zeros(size, kind)
    if layer.synapses.bias is not None:
        bias[:] = np.tile(layer.synapses.bias, size // len(layer.synapses.bias))
    numbers = neuron_state.update_numbers(layer.neuron, layer.current_shape, None)
    taken = step_forms.numbers_of(layer.neuron, 1) if numbers is None else tuple(numbers[0])
    always = _restless(layer, bias, taken)
    v = neuron_state.state_at_rest(layer.neuron, size)
    last, marked = np.full(size, -1, np.int64), np.zeros(size, np.uint8)
    listed, old_last = np.zeros(size, np.int32), np.zeros(size, np.int64)
    old_v, due = np.zeros_like(v), np.zeros(size, np.int32)
    out = _listed(size)
    out.values[:] = 1
    source, rows = sent[layer.source], event_rows(layer, stream.max_memory)
    arriving = source.places, source.values, source.counts
    state = v, last, np.zeros(size, kind), marked, listed, old_v, old_last
    kernel = touched.touched_kernel(step_forms.form_of(layer.neuron))
    own = bias, taken, always, stream._step, *state, due, out.places, out.counts
    calls.append((kernel, (*arriving, *rows, *own)))
    undo = touched.undo, (v, last, listed, old_v, old_last, out.counts)
    commit = touched.commit, (due, out.places, out.counts)
    rest = v[0].copy()
    stream._layers.append(Updated(layer.name, v, last, out.counts, rest, always, undo, commit))
    return out


def _restless(layer: net.SpikingLayer, bias: Array, numbers: Sequence[Any]) -> Array:
    """int32: live neurons that can fire by their bias alone, from a membrane that did not fire.

    A step rises with the membrane (a leak is no negative factor), and whoever did not fire is left
    at the threshold at most. So a neuron that does not fire from there never does.
    """
    neuron, size = layer.neuron, len(bias)
    kernel = touched.alone_kernel(step_forms.form_of(neuron))
    level = _level_of(neuron, layer)
    fires, high, low = np.zeros(size, np.bool_), np.empty_like(level), np.empty_like(level)
    nothing = np.zeros_like(bias)
    kernel(level // 2 if level.dtype.kind == "i" else level / 2, nothing, numbers, fires, high)
    kernel(np.zeros_like(level), nothing, numbers, fires, low)
    if (high < low).any():
        raise _refused(layer.name, "neurons whose leak is a negative factor")
    kernel(level, bias, numbers, fires, high)
    live = fires if layer.updated is None else fires & layer.updated
    return np.flatnonzero(live).astype(np.int32)


def _level_of(neuron: Equation, layer: net.SpikingLayer) -> Array:
    """The highest membrane of each neuron that does not fire."""
    size, channels = math.prod(layer.current_shape), layer.current_shape[0]
    if isinstance(neuron, FixedEquation):
        levels = np.minimum(neuron.threshold - (neuron.fire == "ge"), neuron.highest)
        by_neuron = np.broadcast_to(levels, channels)[np.arange(size) % channels]
        return np.ascontiguousarray(by_neuron.astype(step_forms.membrane_type(neuron)))
    assert isinstance(neuron, NeuronEquation)
    threshold = np.float32(neuron.v_threshold)
    level = threshold if neuron.fire == "gt" else np.nextafter(threshold, np.float32(-np.inf))
    return np.full(size, level, np.float32)
