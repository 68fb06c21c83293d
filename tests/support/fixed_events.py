"""Random fixed-point event networks, and their naive twin: each layer read from its definition.

The twin computes in int64 with matrices that `naive_events` fills synapse by synapse, and with the
neurons' table of docs/fixed-point.md; it shares no code with kernels or plans.
"""

import math
from dataclasses import replace
from typing import Any

import numpy as np
from naive_events import matrix_of

from soul_deploy.base import Array
from soul_deploy.base.pixel_rule import InputKind, Integers
from soul_deploy.runtime.equations import FixedEquation
from soul_deploy.runtime.format import bounds
from soul_deploy.runtime.format import network as net

Values = dict[str, Array]
"""Of each layer (T, n), channel-last."""


def neurons(equation: FixedEquation, current: Array, channels: int) -> tuple[Array, Array]:
    """Spikes (T, n) and the membranes (n,) at the end, of currents (T, n), channel-last."""
    count = current.shape[1]
    theta, taken = (
        np.broadcast_to(number.astype(np.int64), channels)[np.arange(count) % channels]
        for number in (equation.threshold, equation.subtract)
    )

    def fires(u: Array) -> Array:
        return np.asarray(u > theta if equation.fire == "gt" else u >= theta)

    u, spikes = np.zeros(count, np.int64), []
    for x in current.astype(np.int64):
        h = u * equation.multiplier // 2**equation.shift + x
        if equation.reset == "late":
            h = h - fires(u) * taken
        h = np.clip(h, equation.lowest, equation.highest)
        spikes.append(fires(h))
        after = {"hard": 0 * h, "soft": h - taken}.get(equation.reset, h)
        u = np.where(spikes[-1], after, h)
    return np.array(spikes), u


def currents(synapses: net.Synapses, values: Array) -> Array:
    """int64 (T, n); exact: float64 holds all integers here."""
    bias = 0 if synapses.bias is None else np.resize(synapses.bias, math.prod(synapses.out_shape))
    return np.rint(values.astype(np.float64) @ matrix_of(synapses)).astype(np.int64) + bias


def fired(layer: net.Firing, current: Array) -> Array:
    """What a population's map holds, int64 (T, n)."""
    channels = layer.current_shape[0]
    assert isinstance(layer.neuron, FixedEquation)
    spikes, _ = neurons(layer.neuron, current, channels)
    maps = spikes.reshape(len(spikes), -1, channels).astype(np.int64)
    if layer.pattern is not None:
        shown = np.repeat(layer.pattern[:, None].astype(np.int64), maps.shape[1], axis=1)
        maps = np.concatenate([maps, shown], axis=2)
    flat = maps.reshape(len(maps), -1)
    return flat if layer.live is None else flat * layer.live


def pooled(layer: net.PoolLayer, values: Array) -> Array:
    (channels, height, width), (_, rows, columns) = layer.in_shape, layer.out_shape
    maps = values.reshape(len(values), height, width, channels)
    (ky, kx), (sy, sx), (py, px) = layer.kernel, layer.stride, layer.padding
    out = np.zeros((len(values), rows, columns, channels), np.int64)
    for oy, ox in np.ndindex(rows, columns):
        y, x = max(0, oy * sy - py), max(0, ox * sx - px)
        out[:, oy, ox] = maps[:, y : oy * sy - py + ky, x : ox * sx - px + kx].max(axis=(1, 2))
    return out.reshape(len(values), -1)


def layer_values(layer: net.Layer, sources: list[Array]) -> Array:
    """int64 (T, n) of a layer from those of its sources, each with T steps."""
    first = sources[0]
    if isinstance(layer, net.SpikingLayer):
        return fired(layer, currents(layer.synapses, first))
    if isinstance(layer, net.CurrentLayer):
        return currents(layer.synapses, first)
    if isinstance(layer, net.PopulationLayer):
        return fired(layer, first)
    if isinstance(layer, net.PoolLayer):
        return pooled(layer, first)
    if isinstance(layer, net.ScatterLayer):
        maps = first.reshape(len(first), -1, layer.in_shape[0])
        wide = np.zeros((*maps.shape[:2], layer.out_shape[0]), np.int64)
        wide[:, :, layer.index] = maps
        return wide.reshape(len(first), -1)
    assert isinstance(layer, net.MergeLayer)
    for other in sources[1:]:
        first = {"add": first + other, "and": first * other}.get(
            layer.function, first * (1 - other)
        )
    return first


def scores(readout: net.ReadoutLayer, values: Array) -> Array:
    """float32 (classes,): integers of each step, what becomes of them, one multiplication."""
    maps = values.reshape(len(values), -1, readout.in_shape[0] if readout.space else 1)
    by_step = maps.sum(axis=1) if readout.space else values
    if readout.weight is None:
        integers = by_step.reshape(len(values), readout.classes, readout.votes).sum(axis=2)
    else:
        integers = by_step @ readout.weight.T.astype(np.int64)
        if readout.bias is not None:
            integers = integers + readout.bias
    steps = len(values)
    made = {"last": integers[-1], "max": integers.max(axis=0)}
    total = made.get(readout.over_time, integers.sum(axis=0))
    divisor = readout.divisor * (steps if readout.over_time == "mean" else 1)
    unit = 1.0 if readout.unit is None else readout.unit
    found: Array = total.astype(np.float32) * np.float32(unit / divisor)
    return found


def read(network: net.EventNetwork, sample: Array) -> tuple[Values, Array]:
    """All values of one sample (T or 1, *shape) of integers, and the class scores."""
    shape, steps = network.input_shape, network.time_steps
    last = sample if len(shape) == 1 else np.moveaxis(sample, 1, -1)
    flat = last.reshape(len(sample), -1).astype(np.int64)
    held = {network.input_name: np.repeat(flat, steps, axis=0) if len(flat) == 1 else flat}
    for layer in network.layers:
        held[layer.name] = layer_values(layer, [held[name] for name in layer.sources])
    return held, scores(network.readout, held[network.readout.source])


class Drawn:
    """Layers that are drawn one after the other; each population's threshold is set on what
    arrives at it from one drawn sample, so that it fires. All populations have one leak and reset,
    by the seed: kernels are compiled for each.
    """

    def __init__(self, seed: int, shape: net.Shape, steps: int, kind: InputKind = "images") -> None:
        self.rng, self.steps, self.kind = np.random.default_rng(seed), steps, kind
        leaks, resets = [(1, 1), (3, 2), (1, 0), (21845, 15)], ("hard", "soft", "late", "none")
        self.leak, self.reset = leaks[seed % 4], resets[seed // 2 % 4]
        self.layers: list[net.Layer] = []
        zero = tuple(map(int, self.rng.integers(100, 150, shape[0]))) if kind == "images" else ()
        limits = {"images": (-max(zero, default=0), 255 - min(zero, default=0)), "spikes": (0, 1)}
        self.integers = Integers(*limits.get(kind, (0, 40)), zero)
        self.shapes: dict[str, net.Shape] = {"input": shape}
        most = max(-self.integers.low, self.integers.high)
        self.edges: dict[str, net.Edge] = {"input": ("analog", most)}
        self.x = self.inputs(1)[0]
        last = self.x if len(shape) == 1 else np.moveaxis(self.x, 0, -1)
        flat = last.reshape(1, -1).astype(np.int64)
        self.values: Values = {"input": np.repeat(flat, steps, axis=0)}

    def inputs(self, count: int, *, steps: int = 0) -> Array:
        """int16 (count, ...), or (steps, count, ...)."""
        lead, ends = ((steps, count) if steps else (count,)), self.integers
        size = (*lead, *self.shapes["input"])
        x = self.rng.integers(ends.low, ends.high + 1, size)
        return (x * (self.rng.random(size) < 0.8)).astype(np.int16)

    def add(self, layer: net.Layer) -> str:
        self.layers.append(layer)
        self.values[layer.name] = layer_values(layer, [self.values[s] for s in layer.sources])
        self.shapes[layer.name] = layer.out_shape
        self.edges[layer.name] = layer.edge_of([self.edges[s] for s in layer.sources])
        return layer.name

    def weight(self, shape: tuple[int, ...], density: float, size: int = 128) -> Array:
        drawn = self.rng.integers(-size + 1, size, shape) * (self.rng.random(shape) < density)
        return drawn.astype(np.int8)

    def neuron(self, current: Array, channels: int, **given: Any) -> FixedEquation:
        """given: fields of the equation; `wide`: a threshold for each channel."""
        wide = given.pop("wide", bool(self.rng.integers(2)))
        leak: tuple[int, int] = given.pop("leak", self.leak)
        bits = given.pop("bits", 15)
        reset: Any = given.pop("reset", self.reset)
        by_channel = current.reshape(-1, channels)
        level = np.quantile(np.maximum(by_channel, 0), 0.8, axis=0)
        level = np.clip(level, 1, 2**bits - 1).astype(np.int32)
        threshold = level if wide else np.array(max(1, int(np.median(level))), np.int32)
        fire: Any = given.pop("fire", ("gt", "ge")[self.rng.integers(2)])
        ends = -(2**bits), 2**bits - 1
        return FixedEquation(*leak, *ends, threshold, threshold.copy(), fire, reset)

    def synapses(
        self, source: str, outputs: int, *, sparse: bool, density: float, size: int = 128,
        kernel: int = 3, stride: int = 1, groups: int = 1, padding: int | None = None,
        shape: net.Shape | None = None, live: tuple[Array | None, Array | None] = (None, None),
    ) -> net.Synapses:  # fmt: skip
        """A convolution of a map, or with `shape` a matrix onto neurons of that shape."""
        given = self.shapes[source]
        bias = self.rng.integers(-200, 201, outputs).astype(np.int32)
        if len(given) == 1 or shape is not None:
            out: net.Shape = (outputs,) if shape is None else shape
            weight = self.weight((math.prod(given), math.prod(out)), density, size)
            if sparse:
                weight *= _mask(live[0], len(weight))[:, None] * _mask(live[1], weight.shape[1])
            rows = compressed(weight) if sparse else net.DenseRows(weight)
            return net.MatrixSynapses(given, out, rows, bias)
        pad = kernel // 2 if padding is None else padding
        sides = tuple((side + 2 * pad - kernel) // stride + 1 for side in given[1:])
        weight = self.weight((given[0], kernel, kernel, outputs // groups), density, size)
        rows = compressed(spread(weight, groups)) if sparse else net.DenseRows(weight)
        geometry: Any = *((n, n) for n in (kernel, stride, pad, 1)), groups, given[1:]
        return net.ConvSynapses(given, (outputs, *sides), rows, bias, *geometry)

    def current(self, name: str, source: str, outputs: int, **how: Any) -> str:
        synapses, edge = self.synapses(source, outputs, **how), self.edges[source]
        layer = net.CurrentLayer(name, source, *edge, synapses, accumulator=sums(synapses, edge))
        return self.add(layer)

    def spiking(
        self, name: str, source: str, outputs: int, *, live: float = 1.0, generated: int = 0,
        neuron: dict[str, Any] | None = None, **how: Any,
    ) -> str:  # fmt: skip
        edge, (shape, mask) = self.edges[source], (how.get("shape"), None)
        if live < 1 and shape is not None:
            before = next((x for x in self.layers if x.name == source), None)
            channels, positions = shape[0] + generated, math.prod(shape[1:])
            mask = self.rng.random(positions * channels) < live
            onto = mask.reshape(positions, channels)[:, : shape[0]].reshape(-1)
            how["live"] = None if before is None else before.live_neurons, onto
        synapses = self.synapses(source, outputs, **how)
        if live < 1 and mask is None:
            channels = synapses.out_shape[0] + generated
            mask = self.rng.random(math.prod(synapses.out_shape[1:]) * channels) < live
        pattern = self.rng.integers(0, 2, (self.steps, generated)).astype(np.uint8)
        arriving = currents(synapses, self.values[source])
        made = self.neuron(arriving, synapses.out_shape[0], **(neuron or {}))
        layer = net.SpikingLayer(
            *(name, f"{name}_synapses", source, *edge, synapses, made),
            live=mask, pattern=pattern if generated else None, accumulator=sums(synapses, edge),
        )  # fmt: skip
        return self.add(layer)

    def population(self, name: str, source: str, **neuron: Any) -> str:
        shape = self.shapes[source]
        made = self.neuron(self.values[source], shape[0], **neuron)
        return self.add(net.PopulationLayer(name, source, shape, made))

    def network(
        self, source: str, *, head: bool = True, classes: int = 3, over_time: Any = "mean"
    ) -> net.EventNetwork:
        shape = self.shapes[source]
        space = len(shape) == 3
        count, positions = shape[0], math.prod(shape[1:])
        weight = self.weight((classes, count), 0.9)
        bias = self.rng.integers(-500, 500, classes).astype(np.int32)
        classes, votes = (classes, 1) if head else (count, 1)
        readout = net.ReadoutLayer(
            "head", source, shape, classes, space, weight if head else None, bias if head else None,
            votes, positions, over_time, 0.0371 if head else None,
        )  # fmt: skip
        generated = any(layer.pattern is not None for layer in self.layers)
        return net.EventNetwork(
            "input", self.shapes["input"], self.steps, tuple(self.layers), readout,
            fixed_steps=generated, input_kind=self.kind, integers=self.integers,
        )  # fmt: skip


def sums(synapses: net.Synapses, edge: net.Edge) -> bounds.Accumulator:
    return bounds.accumulator_for(bounds.current_bound(synapses, edge[1] or 1))


def _mask(live: Array | None, size: int) -> Array:
    return np.ones(size, np.int8) if live is None else live.astype(np.int8)


def spread(weight: Array, groups: int) -> Array:
    """Rows (C_in · kh · kw, C_out) of grouped ones."""
    channels, height, width, share = weight.shape
    full = np.zeros((channels, height, width, share * groups), weight.dtype)
    for c in range(channels):
        g = c // (channels // groups)
        full[c, :, :, g * share : (g + 1) * share] = weight[c]
    return full.reshape(-1, share * groups)


def compressed(weight: Array) -> net.SparseRows:
    """Sparse rows of a matrix, or of (C_in, kh, kw, C_out)."""
    flat = weight.reshape(-1, weight.shape[-1])
    row, target = np.nonzero(flat)
    starts = np.searchsorted(row, np.arange(len(flat) + 1)).astype(np.uint32)
    return net.SparseRows(starts, target.astype(np.uint32), flat[row, target])


def chain(seed: int, steps: int = 4, **how: Any) -> tuple[net.EventNetwork, Drawn]:
    """Pixels, convolutions on dense and sparse rows, pooling, an explicit matrix with dead neurons
    on both sides, generated channels, a head.
    """
    d = Drawn(seed, (3, 9, 10), steps, **how)
    d.spiking("a", "input", 8, sparse=False, density=0.8, size=60)
    d.spiking("b", "a", 6, sparse=True, density=0.3, live=0.7)
    d.add(net.PoolLayer("pool", "b", (6, 9, 10), (6, 4, 5), (2, 2), (2, 2), (0, 0)))
    d.spiking("c", "pool", 5, sparse=False, density=1.0, stride=2)
    d.spiking("d", "c", 7, sparse=True, density=0.6, shape=(7, 2, 2), live=0.7, generated=2)
    d.spiking("e", "d", 12, sparse=True, density=0.5, shape=(12,), live=0.8)
    d.spiking("f", "e", 10, sparse=False, density=0.8, shape=(10,))
    return d.network("f"), d


def branches(seed: int, steps: int = 4) -> tuple[net.EventNetwork, Drawn]:
    """Sums of spikes (graded edges), of currents; AND, IAND; scattering; groups."""
    d = Drawn(seed, (2, 6, 6), steps, "counts")
    d.spiking("a", "input", 6, sparse=False, density=0.9)
    d.spiking("b", "a", 6, sparse=True, density=0.5)
    d.add(net.MergeLayer("sum", ("a", "b"), "add", (6, 6, 6)))
    d.spiking("c", "sum", 6, sparse=True, density=0.4)
    d.spiking("c2", "sum", 6, sparse=False, density=0.7, groups=2)
    d.add(net.MergeLayer("both", ("c", "c2"), "and", (6, 6, 6)))
    d.add(net.MergeLayer("one", ("a", "c2"), "iand", (6, 6, 6)))
    d.current("x", "both", 4, sparse=True, density=0.5)
    d.current("y", "one", 4, sparse=False, density=0.5, groups=2)
    d.current("z", "sum", 4, sparse=False, density=0.5)
    d.add(net.MergeLayer("currents", ("x", "y", "z"), "add", (4, 6, 6)))
    d.population("p", "currents")
    d.add(net.ScatterLayer("wide", "p", (4, 6, 6), (6, 6, 6), np.array([0, 2, 3, 5], np.uint32)))
    d.add(net.MergeLayer("last", ("wide", "sum"), "add", (6, 6, 6)))
    d.spiking("q", "last", 5, sparse=True, density=0.6, stride=2)
    return d.network("q"), d


def wide(seed: int, steps: int = 4) -> tuple[net.EventNetwork, Drawn]:
    """Many channels: sums beyond int16, of parts that fit it, and of parts that do not."""
    d = Drawn(seed, (3, 2, 2), steps)
    d.spiking("a", "input", 136, sparse=False, density=1.0)
    d.spiking("b", "a", 136, sparse=False, density=1.0)
    d.add(net.MergeLayer("sum", ("a", "b"), "add", (136, 2, 2)))
    d.spiking("c", "sum", 20, sparse=False, density=1.0, neuron={"bits": 18})
    d.spiking("d", "b", 20, sparse=True, density=0.9)
    d.add(net.MergeLayer("last", ("c", "d"), "add", (20, 2, 2)))
    return d.network("last"), d


def with_readout(network: net.EventNetwork, **changed: Any) -> net.EventNetwork:
    return replace(network, readout=replace(network.readout, **changed))
