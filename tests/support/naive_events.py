"""A naive twin of the event runtime: an event network read from its definitions, densely.

Every projection becomes a matrix (inputs, outputs) in float64, filled synapse by synapse from the
stored rows; maps stay channel-last vectors. It shares no code with the runtime's kernels, tables or
packing, so that both would have to misread a file in the same way.
"""

import math
from typing import Any

import numpy as np
from naive import charged

from soul_deploy.base import Array
from soul_deploy.runtime.engine.network import Network
from soul_deploy.runtime.equations import NeuronEquation
from soul_deploy.runtime.format.network import (
    ConvSynapses,
    CurrentLayer,
    DenseRows,
    EventNetwork,
    Layer,
    MatrixSynapses,
    MergeLayer,
    PoolLayer,
    PopulationLayer,
    Rows,
    ScatterLayer,
    SparseRows,
    SpikingLayer,
    Synapses,
)

F = np.float32
LARGEST = 1e37
"""Where sums may leave float32 on the way, nothing is compared."""
SLACK = 1e-5
"""Rounding allowed, as a share of the absolute values that were added up."""


def matrix_of(synapses: Synapses) -> Array:
    """float64 (inputs, outputs), both channel-last."""
    sizes = math.prod(synapses.in_shape), math.prod(synapses.out_shape)
    found = np.zeros(sizes)
    if isinstance(synapses, MatrixSynapses):
        for j in range(sizes[0]):
            for target, weight in _row(synapses.rows, j):
                found[j, target] += weight
        return found
    assert isinstance(synapses, ConvSynapses)
    channels, height, width = synapses.in_shape
    kernel = synapses.kernel
    for c in range(channels):
        for i in range(kernel[0]):
            for j in range(kernel[1]):
                row = list(_channels(synapses, c, i, j))
                for y in range(min(height, synapses.reach[0])):
                    for x in range(min(width, synapses.reach[1])):
                        at = _output(synapses, y, x, kernel[0] - 1 - i, kernel[1] - 1 - j)
                        for o, weight in row if at is not None else ():
                            assert at is not None
                            found[(y * width + x) * channels + c, at * len_out(synapses) + o] += (
                                weight
                            )
    return found


def len_out(synapses: ConvSynapses) -> int:
    """Output channels."""
    return synapses.out_shape[0]


def _row(rows: Rows, j: int) -> list[tuple[int, float]]:
    if isinstance(rows, DenseRows):
        return [(k, float(w)) for k, w in enumerate(rows.weight[j]) if w != 0]
    assert isinstance(rows, SparseRows)
    span = range(int(rows.starts[j]), int(rows.starts[j + 1]))
    return [(int(rows.targets[k]), float(rows.weight[k])) for k in span]


def _channels(conv: ConvSynapses, c: int, i: int, j: int) -> list[tuple[int, float]]:
    if isinstance(conv.rows, SparseRows):
        return _row(conv.rows, (c * conv.kernel[0] + i) * conv.kernel[1] + j)
    share = conv.out_shape[0] // conv.groups
    first = c // (conv.in_shape[0] // conv.groups) * share
    return [(first + k, float(w)) for k, w in enumerate(conv.rows.weight[c, i, j]) if w != 0]


def _output(conv: ConvSynapses, y: int, x: int, ki: int, kj: int) -> int | None:
    """The output position that input (y, x) reaches through kernel position (ki, kj)."""
    place = []
    for axis, (at, k) in enumerate(((y, ki), (x, kj))):
        offset = at + conv.padding[axis] - k * conv.dilation[axis]
        inside = 0 <= offset // conv.stride[axis] < conv.out_shape[1 + axis]
        if offset % conv.stride[axis] or not inside:
            return None
        place.append(offset // conv.stride[axis])
    return place[0] * conv.out_shape[2] + place[1]


def currents(synapses: Synapses, values: Array) -> tuple[Array, Array]:
    """(T, outputs) float64: the currents, and the absolute values that they are sums of."""
    dense = matrix_of(synapses)
    size = math.prod(synapses.out_shape)
    bias = np.zeros(size) if synapses.bias is None else np.resize(synapses.bias, size)
    with np.errstate(all="ignore"):
        return values @ dense + bias, np.abs(values) @ np.abs(dense) + np.abs(bias)


def fire(layer: SpikingLayer | PopulationLayer, current: Array, total: Array) -> tuple[Array, Any]:
    """Spikes (T, positions · channels), and bool of the same shape: where rounding may decide."""
    neuron, steps = layer.neuron, len(current)
    assert isinstance(neuron, NeuronEquation)
    channels = layer.current_shape[0]
    rest, threshold = F(neuron.rest), F(neuron.v_threshold)
    spikes = np.zeros((steps, current.shape[1] // channels, channels + layer.generated), np.uint8)
    unsure = np.zeros(spikes.shape, np.bool_)
    for i in range(current.shape[1]):
        v, doubtful, place = rest, False, (i // channels, i % channels)
        for t in range(steps):
            with np.errstate(all="ignore"):
                h = charged(neuron.charge, v, F(current[t, i]), F(neuron.constant), rest)
                scale = abs(float(total[t, i])) + abs(float(v)) + abs(float(h)) + float(threshold)
                near = (
                    scale >= LARGEST or not abs(float(h) - float(threshold)) > 100 * SLACK * scale
                )
                fires = bool(h > threshold if neuron.fire == "gt" else h >= threshold)
                after = F(h - threshold) if neuron.v_reset is None else rest
            doubtful = doubtful or near or not np.isfinite(h)
            spikes[t, *place], unsure[t, *place] = fires, doubtful
            v = after if fires else h
    if layer.pattern is not None:
        spikes[:, :, channels:] = layer.pattern[:, None]
    spikes = spikes.reshape(steps, -1)
    if layer.live is not None:
        spikes = spikes * layer.live
    return spikes.astype(np.float64), unsure.reshape(steps, -1)


def _windows(layer: PoolLayer, values: Array) -> Array:
    channels, height, width = layer.in_shape
    maps = values.reshape(len(values), height, width, channels)
    out = np.zeros((len(values), *layer.out_shape[1:], channels))
    for oy in range(layer.out_shape[1]):
        for ox in range(layer.out_shape[2]):
            y, x = (
                slice(
                    max(0, o * layer.stride[k] - layer.padding[k]),
                    max(0, o * layer.stride[k] - layer.padding[k] + layer.kernel[k]),
                )
                for k, o in enumerate((oy, ox))
            )
            window = maps[:, y, x].reshape(len(values), -1, channels)
            out[:, oy, ox] = window.max(axis=1, initial=0 if window.size == 0 else -np.inf)
    return out.reshape(len(values), -1)


def _merged(layer: MergeLayer, branches: list[Array]) -> Array:
    first, *others = branches
    with np.errstate(all="ignore"):
        for other in others:
            if layer.function == "add":
                first = first + other
            else:
                first = first * (other if layer.function == "and" else other == 0)
    return first


def _scattered(layer: ScatterLayer, values: Array) -> Array:
    positions = math.prod(layer.in_shape[1:])
    out = np.zeros((len(values), positions, layer.out_shape[0]))
    out[:, :, layer.index] = values.reshape(len(values), positions, -1)
    return out.reshape(len(values), -1)


Found = tuple[Array, Array]
"""(T, n) values, and how far each may be off; for spikes 1 where rounding may decide."""


def compute(layer: Layer, sources: list[Found]) -> Found:
    """What a layer gives, densely."""
    values = sources[0][0]
    with np.errstate(all="ignore"):
        if isinstance(layer, SpikingLayer | CurrentLayer):
            current, total = currents(layer.synapses, values)
            if isinstance(layer, CurrentLayer):
                return current, SLACK * total
            spikes, unsure = fire(layer, current, total)
            return spikes, unsure.astype(np.float64)
        if isinstance(layer, PopulationLayer):
            spikes, unsure = fire(layer, values, np.abs(values))
            return spikes, unsure.astype(np.float64)
        if isinstance(layer, PoolLayer):
            return _windows(layer, values), np.abs(_windows(layer, np.abs(values))) * SLACK
        if isinstance(layer, MergeLayer):
            branches = [value for value, _ in sources]
            return _merged(layer, branches), SLACK * np.sum(np.abs(branches), axis=0)
        assert isinstance(layer, ScatterLayer)
        return _scattered(layer, values), np.abs(_scattered(layer, values)) * SLACK


def images_of(network: EventNetwork, seed: int) -> Array:
    """(1, ...) float32: one image of the network's size, some pixels 0."""
    rng = np.random.default_rng(seed)
    x = rng.integers(-4, 9, (1, *network.input_shape)) / 4
    return (x * (rng.random(x.shape) < 0.8)).astype(np.float32)


def disagreement(network: EventNetwork, seed: int) -> str | None:
    """The first layer in which the runtime and the dense reading differ, fed with the same."""
    running, x = Network(network), images_of(network, seed)
    held: dict[str, Found] = {}
    start = np.repeat(_flat(x, network.input_shape), network.time_steps, axis=0)
    held[network.input_name] = start.astype(np.float64), np.zeros(1)
    for layer in network.layers:
        sources = [held[name] for name in layer.sources]
        held[layer.name] = value, slack = compute(layer, sources)
        given = [_maps(v, network.edges[n][0], layer.in_shape) for n, (v, _) in
                 zip(layer.sources, sources, strict=True)]  # fmt: skip
        if not all(np.isfinite(g).all() and np.abs(g).max() < LARGEST for g in given):
            return None  # sums beyond float32: nothing behind them is defined
        with np.errstate(all="ignore"):
            found = _flat(running.run_layer(layer.name, *given)[:, 0], layer.out_shape)
            off = np.abs(found.astype(np.float64) - value)
            inside = np.isfinite(value) & (slack <= max(1.0, SLACK * LARGEST))
            wrong = inside & ~(off <= slack + 1e-30)
        if wrong.any():
            return f"{layer.name}: off by {off[wrong].max()}"
    scores = running.run(x)
    return None if scores.shape == (1, network.readout.classes) else f"scores {scores.shape}"


def _flat(maps: Array, shape: tuple[int, ...]) -> Array:
    """(T, C, H, W) or (T, N) to (T, n) channel-last."""
    last = maps if len(shape) == 1 else np.moveaxis(maps, 1, -1)
    return last.reshape(len(maps), -1)


def _maps(values: Array, kind: str, shape: tuple[int, ...]) -> Array:
    """(T, n) channel-last to (T, 1, C, H, W) or (T, 1, N), as `Network.run_layer` takes it."""
    with np.errstate(over="ignore"):
        typed = values.astype(np.float32 if kind == "analog" else np.uint8)
    if len(shape) == 1:
        return typed[:, None]
    maps = typed.reshape(len(values), *shape[1:], shape[0])
    return np.moveaxis(maps, -1, 1)[:, None]


def small(network: EventNetwork, limit: int = 4000) -> bool:
    """Whether the dense reading is quick: few values, small matrices and kernels."""
    shapes = [network.input_shape, *(layer.out_shape for layer in network.layers)]
    if network.time_steps * sum(map(math.prod, shapes)) > limit:
        return False
    kernels = [getattr(layer, "synapses", layer) for layer in network.layers]
    sides = [side for k in kernels for side in getattr(k, "kernel", (1, 1))]
    paddings = [side for k in kernels for side in getattr(k, "padding", (0, 0))]
    return max(sides) <= 16 and max(paddings) <= 1000
