"""The readout bound to buffers: class scores of the spikes that a run leaves."""

from dataclasses import dataclass

import numpy as np

from soul_deploy.base import Array, brief, reduction
from soul_deploy.runtime.equations import Equation
from soul_deploy.runtime.format import network, validate
from soul_deploy.runtime.kernels import maps
from soul_deploy.runtime.plan import layer_plan, neuron_state
from soul_deploy.runtime.plan.regions import Call, Region, run_calls


@brief
@dataclass(frozen=True, eq=False)
class Membranes:
    """The neurons behind a head while they run.

    state     as `neuron_state.state_at_rest`, one neuron a class
    of_steps  their membrane after each step, float32 (T, classes)
    carry     whether the state is kept from run to run instead of starting at rest
    """

    neuron: Equation
    state: Array
    of_steps: Array
    carry: bool = False


def membranes_of(
    readout: network.ReadoutLayer, steps: int, *, carry: bool = False
) -> Membranes | None:
    """Buffers of the neurons behind the head; None: there are none."""
    if readout.neuron is None:
        return None
    state = neuron_state.state_at_rest(readout.neuron, readout.classes)
    of_steps = layer_plan.aligned((steps, readout.classes), np.float32)
    return Membranes(readout.neuron, state, of_steps, carry)


def readout_region(
    readout: network.ReadoutLayer, source: Array, scores: Array, membranes: Membranes | None = None
) -> Region:
    """Sums, then scores; of a maximum over time both step by step, and the largest are kept.

    source: (T, positions, channels) of whole numbers, scores: float32 (classes,), which is written.
    membranes: as `membranes_of`; the scores of each step charge them.
    """
    if membranes is not None:
        return _membrane_region(readout, source, scores, membranes)
    spikes = source if readout.space else source.reshape(len(source), 1, -1)
    sums = np.empty(readout.sums, np.int64)
    largest = readout.over_time == "max"
    result = np.empty_like(scores) if largest else scores
    weigh = _weighing(readout, len(source), sums, result)
    calls: list[Call] = []
    for at in readout.weighings(len(source)):
        calls += [Call(maps.sum_spikes, (spikes[at], sums)), weigh]
        if largest:
            calls.append(Call(maps.keep_largest, (result, at.start == 0, scores)))
    return (tuple(calls),)


def _membrane_region(
    readout: network.ReadoutLayer, source: Array, scores: Array, membranes: Membranes
) -> Region:
    """Step by step: sums, their scores, which are currents, the neurons, their membrane; then the
    scores, by soul_deploy/base/reduction.py.
    """
    spikes = source if readout.space else source.reshape(len(source), 1, -1)
    neuron, state, of_steps = membranes.neuron, membranes.state, membranes.of_steps
    sums = np.empty(readout.sums, np.int64)
    current = layer_plan.aligned((1, readout.classes), np.float32)
    edge = validate.edge_between(neuron.low, neuron.high)
    sent = layer_plan.aligned(current.shape, neuron_state.sent_dtype(edge))
    numbers = neuron_state.update_numbers(neuron, (readout.classes,), None)
    weigh = _weighing(readout, len(source), sums, current[0])
    calls: list[Call] = []
    for step, at in enumerate(readout.weighings(len(source))):
        update = neuron_state.update_call(
            neuron, current, state, sent, (0, readout.classes),
            carry=membranes.carry or step > 0, lanes=0, numbers=numbers,
        )  # fmt: skip
        membrane = state if state.ndim == 1 else state[0]
        calls += [Call(maps.sum_spikes, (spikes[at], sums)), weigh, Call(*update, "neurons")]
        calls.append(Call(maps.add_in_order, (membrane[None], np.float32(1), of_steps[step])))
    if readout.over_time == "max":
        calls += [
            Call(maps.keep_largest, (of_step, step == 0, scores))
            for step, of_step in enumerate(of_steps)
        ]
        return (tuple(calls),)
    added = of_steps[-1:] if readout.over_time == "last" else of_steps
    share = np.float32(1 / len(of_steps) if readout.over_time == "mean" else 1)
    calls.append(Call(maps.add_in_order, (added, share, scores)))
    return (tuple(calls),)


def _weighing(readout: network.ReadoutLayer, steps: int, sums: Array, scores: Array) -> Call:
    """Scores from sums: a vote, or the head."""
    scale = np.float32(readout.scale(steps))
    if readout.weight is None:
        return Call(maps.vote, (sums, readout.votes, scale, scores))
    if readout.fixed:
        biases = reduction.together(readout.weighing, steps)
        arrays = layer_plan.aligned_copy(readout.weight), layer_plan.aligned_copy(readout.bias)
        return Call(maps.score_integers, (sums, *arrays, biases, scale, scores))
    times = np.float32(readout.biases(steps))
    bias = layer_plan.aligned_copy(None if readout.bias is None else times * readout.bias)
    weight = layer_plan.aligned_copy(readout.weight.T)
    return Call(maps.score, (sums, weight, bias, scale, scores))


def step_scores(readout: network.ReadoutLayer, values: Array) -> Array:
    """The scores of each step, float32 (T, B, classes), of what the readout's source held, (B, T,
    positions, channels).
    """
    batch, steps, *map_shape = values.shape
    if readout.neuron is not None:
        return _step_membranes(readout, values)
    source = layer_plan.aligned((1, *map_shape), values.dtype)
    scores = layer_plan.aligned((readout.classes,), np.float32)
    (calls,) = readout_region(readout, source, scores)
    found = np.empty((steps, batch, readout.classes), np.float32)
    for t, b in np.ndindex(steps, batch):
        source[0] = values[b, t]
        run_calls(calls)
        found[t, b] = scores
    return found


def _step_membranes(readout: network.ReadoutLayer, values: Array) -> Array:
    """As `step_scores`: the membranes after each step."""
    batch, steps, *map_shape = values.shape
    source = layer_plan.aligned((steps, *map_shape), values.dtype)
    scores = layer_plan.aligned((readout.classes,), np.float32)
    membranes = membranes_of(readout, steps)
    assert membranes is not None
    (calls,) = readout_region(readout, source, scores, membranes)
    found = np.empty((steps, batch, readout.classes), np.float32)
    for b in range(batch):
        source[...] = values[b]
        run_calls(calls)
        found[:, b] = membranes.of_steps
    return found
