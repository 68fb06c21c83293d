"""Layers bound to buffers: stages of kernel calls, split into parts that may run side by side."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from soul_deploy.base.dispatch import operation_table
from soul_deploy.base.files import Array
from soul_deploy.runtime.equations import NeuronEquation
from soul_deploy.runtime.format.network import (
    Convolution,
    MapLayer,
    Matrix,
    MergeLayer,
    PoolLayer,
    ReadoutLayer,
    ScatterLayer,
    Shape,
    Synapses,
    Synaptic,
)
from soul_deploy.runtime.kernels import maps as mapping
from soul_deploy.runtime.kernels import synapses as kernels
from soul_deploy.runtime.kernels.config import LANE_BLOCK
from soul_deploy.runtime.kernels.neurons import sweep_numbers, sweep_of
from soul_deploy.runtime.kernels.time_vectorised import (
    convolve_lanes,
    multiply_lanes,
    pick_lanes,
    start_lanes,
)
from soul_deploy.runtime.plan.layer_plan import Prepared, aligned, private, tables_of
from soul_deploy.runtime.plan.partition import Call, Part, Stage, parts_of


def lanes_of(layer: Synaptic, prepared: Prepared, steps: int) -> int:
    """Lanes that a spiking layer's currents have for so many different steps of its source."""
    return 0 if layer.edge == "analog" else prepared.lanes(steps)


def current_room(layer: Synaptic, prepared: Prepared, steps: int) -> Shape:
    """Shape of a spiking layer's currents: (n, lanes), or (T, n)."""
    lanes = lanes_of(layer, prepared, steps)
    return (prepared.columns, lanes) if lanes else (steps, prepared.columns)


def current_stage(
    layer: Synaptic, prepared: Prepared, source: Array, current: Array, *, lanes: int, parts: int
) -> Stage:
    """Bias and synapses.

    source (T or 1, positions, channels) or packed (T, L'); current (T or 1, prepared.columns), or
    (prepared.columns, lanes).
    """
    return tuple(
        _current_calls(layer, prepared, source, current, lanes, part) for part in parts_of(parts)
    )


def _current_calls(
    layer: Synaptic, prepared: Prepared, source: Array, current: Array, lanes: int, part: Part
) -> tuple[Call, ...]:
    first, last = prepared.bounds(part)
    values, events = values_of(layer.synapses, source)
    start, kernel = (start_lanes(lanes) if lanes else kernels.start_currents), prepared.kernel
    scratch: tuple[Array, ...] = (np.empty(events, np.uint32), np.empty(events, np.float32))
    if lanes:
        make = multiply_lanes if kernel is kernels.multiply_sparse else convolve_lanes
        kernel = make(lanes)
        amounts = np.zeros((events, lanes), np.float32)
        scratch = (np.empty(events, np.uint8), np.zeros(events + 1, np.uint32), amounts)
    arguments = (values, *tables_of(prepared, part), *scratch, current)
    return (
        Call(start, (current, prepared.bias_of(part), first, last)),
        Call(kernel, arguments),
    )


@operation_table(Synapses)
def values_of(synapses: Synapses, source: Array) -> tuple[Array, int]:
    """The source as the kernel sees it, and how many events it collects at once at most."""
    raise values_of.unknown(synapses)


@values_of.on(Matrix)
def _(matrix: Matrix, source: Array) -> tuple[Array, int]:
    flat = source.reshape(len(source), 1, source.size // len(source))
    return flat, flat.shape[2]


@values_of.on(Convolution)
def _(convolution: Convolution, source: Array) -> tuple[Array, int]:
    return source, source.shape[2] * math.prod(convolution.kernel)


def spiking_stage(
    layer: Synaptic,
    prepared: Prepared,
    source: Array,
    current: Array,
    v: Array,
    spikes: Array,
    *,
    neuron: NeuronEquation,
    carry: bool,
    parts: int,
) -> Stage:
    """Bias, synapses, neurons.

    source and current as in `current_stage`, current of the shape `current_room`; v (L,), spikes
    (T, positions, C) or packed (T, L).
    """
    lanes = lanes_of(layer, prepared, len(source))
    currents = current_stage(layer, prepared, source, current, lanes=lanes, parts=parts)
    bounds = [prepared.bounds(part) for part in parts_of(parts)]
    neurons = neuron_stage(
        neuron, current, prepared.picked, v, spikes, carry=carry, lanes=lanes, bounds=bounds,
        silenced=prepared.silenced,
    )  # fmt: skip
    return tuple(a + b for a, b in zip(currents, neurons, strict=True))


def neuron_stage(
    neuron: NeuronEquation,
    current: Array,
    picked: Array | None,
    v: Array,
    spikes: Array,
    *,
    carry: bool,
    lanes: int,
    bounds: Sequence[tuple[int, int]],
    silenced: Array | None = None,
) -> Stage:
    """Neurons on their currents, (T or 1, n) or (n, lanes).

    picked: the live ones' places, None: all n. bounds: columns of the currents, by part.
    silenced: places whose spikes are taken out, None: none.
    """
    arriving = current
    if picked is not None:
        room = (len(v), lanes) if lanes else (len(current), len(v))
        arriving = aligned(room, np.float32)
        bounds = [_places_between(picked, pair) for pair in bounds]
    fired, sweep = spikes.reshape(len(spikes), len(v)), sweep_of(neuron, lanes)
    stage = []
    for first, last in bounds:
        calls: list[Call] = []
        if picked is not None:
            pick = pick_lanes if lanes else mapping.pick
            calls.append(Call(pick, (current, picked, first, last, arriving)))
        turned: tuple[Any, ...] = (aligned((lanes, LANE_BLOCK), np.float32),) if lanes else ()
        numbers = sweep_numbers(neuron)
        calls.append(Call(sweep, (arriving, *numbers, carry, v, fired, first, last, *turned)))
        if silenced is not None:
            among = _places_between(silenced, (first, last))
            calls.append(Call(mapping.silence, (fired, silenced, *among)))
        stage.append(tuple(calls))
    return tuple(stage)


def _places_between(places: Array, bounds: tuple[int, int]) -> tuple[int, int]:
    """Which of the rising places stand between two columns of the currents."""
    first, last = np.searchsorted(places, bounds)
    return int(first), int(last)


def place_stage(spikes: Array, placed: Array, flat: Array, *, parts: int) -> Stage:
    """Spikes (T, L) of live neurons into their map (T, n)."""
    shares = (part.of(len(placed)) for part in parts_of(parts))
    return tuple((Call(mapping.place, (spikes, placed, *share, flat)),) for share in shares)


@operation_table(MapLayer)
def map_stage(layer: MapLayer, sources: Sequence[Array], out: Array, *, parts: int) -> Stage:
    """A layer without synapses and neurons: (T or 1, positions, channels) each, `out` zeroed."""
    raise map_stage.unknown(layer)


@map_stage.on(PoolLayer)
def _(layer: PoolLayer, sources: Sequence[Array], out: Array, *, parts: int) -> Stage:
    """Max pooling of spikes or analog values."""
    (source,) = sources
    kernel = mapping.max_pool_analog if source.dtype.kind == "f" else mapping.max_pool
    windows = (layer.kernel, layer.stride, layer.padding)
    arguments = (source, layer.in_shape[2], *windows, layer.out_shape[2])
    shares = (part.of(out.shape[1]) for part in parts_of(parts))
    return tuple((Call(kernel, (*arguments, *share, out)),) for share in shares)


@map_stage.on(MergeLayer)
def _(layer: MergeLayer, sources: Sequence[Array], out: Array, *, parts: int) -> Stage:
    """Maps to one, left to right."""
    add = mapping.add_currents if out.dtype.kind == "f" else mapping.add_events
    kernel = {"add": add, "and": mapping.both, "iand": mapping.first_without_second}[layer.function]
    start, *others = (source.reshape(len(source), -1) for source in sources)
    to, stage = out.reshape(len(out), -1), []
    for part in parts_of(parts):
        calls, first = [], start
        for other in others:
            calls.append(Call(kernel, (first, other, *part.of(to.shape[1]), to)))
            first = to
        stage.append(tuple(calls))
    return tuple(stage)


@map_stage.on(ScatterLayer)
def _(layer: ScatterLayer, sources: Sequence[Array], out: Array, *, parts: int) -> Stage:
    """Channels into a map that is 0 everywhere else."""
    (source,) = sources
    index = private(layer.index)
    shares = (part.of(source.shape[1]) for part in parts_of(parts))
    return tuple((Call(mapping.scatter, (source, index, *share, out)),) for share in shares)


def readout_stage(readout: ReadoutLayer, source: Array, scores: Array) -> Stage:
    """Sums, then scores."""
    spikes = source if readout.space else source.reshape(len(source), 1, -1)
    sums = np.empty(readout.sums, np.int64)
    scale = np.float32(readout.scale(len(source)))
    summing = Call(mapping.sum_spikes, (spikes, sums))
    if readout.weight is None:
        return ((summing, Call(mapping.vote, (sums, readout.votes, scale, scores))),)
    weight, bias = private(readout.weight.T), private(readout.bias)
    return ((summing, Call(mapping.score, (sums, weight, bias, scale, scores))),)
