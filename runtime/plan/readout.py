"""The readout bound to buffers: class scores of the spikes that a run leaves."""

import numpy as np

from soul_deploy.base import Array, reduction
from soul_deploy.runtime.format import network
from soul_deploy.runtime.kernels import maps
from soul_deploy.runtime.plan import layer_plan
from soul_deploy.runtime.plan.regions import Call, Region, run_calls


def readout_region(readout: network.ReadoutLayer, source: Array, scores: Array) -> Region:
    """Sums, then scores; of a maximum over time both step by step, and the largest are kept.

    source: (T, positions, channels) of whole numbers, scores: float32 (classes,), which is written.
    """
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


def _weighing(readout: network.ReadoutLayer, steps: int, sums: Array, scores: Array) -> Call:
    """Scores from sums: a vote, or the head."""
    scale = np.float32(readout.scale(steps))
    if readout.weight is None:
        return Call(maps.vote, (sums, readout.votes, scale, scores))
    if readout.fixed:
        biases = steps if reduction.adds_steps(readout.over_time) else 1
        arrays = layer_plan.aligned_copy(readout.weight), layer_plan.aligned_copy(readout.bias)
        return Call(maps.score_integers, (sums, *arrays, biases, scale, scores))
    times = np.float32(reduction.biases(readout.over_time, steps))
    bias = layer_plan.aligned_copy(None if readout.bias is None else times * readout.bias)
    weight = layer_plan.aligned_copy(readout.weight.T)
    return Call(maps.score, (sums, weight, bias, scale, scores))


def step_scores(readout: network.ReadoutLayer, values: Array) -> Array:
    """The scores of each step, float32 (T, B, classes), of what the readout's source held, (B, T,
    positions, channels).
    """
    batch, steps, *map_shape = values.shape
    source = layer_plan.aligned((1, *map_shape), values.dtype)
    scores = layer_plan.aligned((readout.classes,), np.float32)
    (calls,) = readout_region(readout, source, scores)
    found = np.empty((steps, batch, readout.classes), np.float32)
    for t, b in np.ndindex(steps, batch):
        source[0] = values[b, t]
        run_calls(calls)
        found[t, b] = scores
    return found
