"""A sparse network the way most people would write it: scipy's CSR products, step by step.

A convolution gathers its patches (im2col) and multiplies them by one CSR matrix; a matrix layer
multiplies the values. Every product runs over all presynaptic values, spikes or not: weights are
sparse here, activity is not used. Sums run in scipy's order, so currents may differ from the event
engine's in the last bits.

Maps are float32 vectors, channel-last: value (c, y, x) of a (C, H, W) map has index
(y·W + x)·C + c.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import csr_array

from soul_deploy.base import Array, brief, dispatch
from soul_deploy.runtime.engine.inputs import samples_of
from soul_deploy.runtime.equations import Equation
from soul_deploy.runtime.format import file, tap_tables
from soul_deploy.runtime.format import network as eventnet
from soul_deploy.runtime.ops.fan_out import nonzero_rows
from soul_deploy.runtime.plan.estimate import require_products


@brief
@dataclass(frozen=True)
class SparseProduct:
    """The currents of a projection: weight @ values + bias.

    weight   CSR (C_out, C_in·kh·kw) of a convolution, (n_out, n_in) of a matrix
    patches  int (C_in·kh·kw, OH·OW): which value stands where in a convolution's patches, one past
             the last for an input outside; None for a matrix
    bias     float32 that repeats over the currents, or empty
    """

    weight: Any
    patches: Array | None
    bias: Array

    def currents(self, values: Array) -> Array:
        """(n_out,) from (n_in,)."""
        if self.patches is None:
            currents: Array = self.weight @ values
        else:
            columns = np.append(values, np.float32(0))[self.patches]
            currents = np.ascontiguousarray((self.weight @ columns).T).reshape(-1)
        if len(self.bias):
            currents = (currents.reshape(-1, len(self.bias)) + self.bias).reshape(-1)
        return currents


@dispatch.operation_table(eventnet.Synapses)
def product_of(synapses: eventnet.Synapses) -> SparseProduct:
    """A projection as a CSR product."""
    raise product_of.unknown(synapses)


@product_of.on(eventnet.ConvSynapses)
def _(convolution: eventnet.ConvSynapses) -> SparseProduct:
    table = tap_tables.gather_table(convolution)
    patches = np.ascontiguousarray(table.reshape(len(table), -1).T.astype(np.intp))
    return _product(convolution, patches)


@product_of.on(eventnet.MatrixSynapses)
def _product(synapses: eventnet.Synapses, patches: Array | None = None) -> SparseProduct:
    bias = np.zeros(0, np.float32) if synapses.bias is None else synapses.bias
    starts, indices = nonzero_rows(synapses)
    stored = synapses.rows.weight[synapses.rows.weight != 0]
    targets = synapses.out_shape[0] if synapses.shared else math.prod(synapses.out_shape)
    shape = synapses.row_count, targets
    weight: Any = csr_array((stored, indices, starts), shape=shape).T.tocsr()
    weight.sort_indices()
    return SparseProduct(weight, patches, bias)


@dataclass
class _Population:
    """The neurons of one layer while a sample runs; state (n,) float32 of all, live or not."""

    layer: eventnet.Firing

    def __post_init__(self) -> None:
        size = math.prod(self.layer.current_shape)
        start = self.layer.neuron.start
        self.state: tuple[Array, ...] = tuple(np.full(size, v, np.float32) for v in start)

    def step(self, current: Array, step: int) -> Array:
        """Spikes of the output, constant-pattern channels included, as float32."""
        layer = self.layer
        spike, self.state = layer.neuron.advance(self.state, current)
        by_position = spike.reshape(-1, layer.current_shape[0])
        if layer.pattern is not None:
            shown = np.repeat(layer.pattern[step][None] != 0, len(by_position), axis=0)
            by_position = np.concatenate([by_position, shown], axis=1)
        spikes = by_position.reshape(-1)
        return np.asarray(spikes if layer.live is None else spikes & layer.live, np.float32)


def pool(layer: eventnet.PoolLayer, values: Array, *, analog: bool) -> Array:
    """Maximum over windows; values outside never are the maximum."""
    channels, height, width = layer.in_shape
    (top, left), (down, right) = layer.padding, layer.stride
    lowest = np.float32(-np.inf if analog else 0)
    padded = np.full((height + 2 * top, width + 2 * left, channels), lowest, np.float32)
    padded[top : top + height, left : left + width] = values.reshape(height, width, channels)
    _, rows, columns = layer.out_shape
    pooled = np.full((rows, columns, channels), lowest, np.float32)
    for y in range(layer.kernel[0]):
        for x in range(layer.kernel[1]):
            window = padded[y : y + rows * down : down, x : x + columns * right : right]
            np.maximum(pooled, window[:rows, :columns], out=pooled)
    return pooled.reshape(-1)


MERGES: Mapping[str, Callable[[Array, Array], Array]] = {
    "add": np.add,
    "and": np.multiply,
    "iand": lambda merged, other: merged * (1 - other),
}
Step = Callable[[Mapping[str, Array]], Array]
"""From the maps of one step by name: a layer's map, or what arrives at its neurons."""


@dispatch.operation_table(eventnet.Layer)
def step_of(layer: eventnet.Layer, network: eventnet.EventNetwork) -> Step:
    """What computes one step of a layer."""
    raise step_of.unknown(layer)


@step_of.on(eventnet.SpikingLayer, eventnet.CurrentLayer)
def _(layer: eventnet.Synaptic, network: eventnet.EventNetwork) -> Step:
    product = product_of(layer.synapses)
    return lambda values: product.currents(values[layer.source])


@step_of.on(eventnet.PopulationLayer)
def _(layer: eventnet.PopulationLayer, network: eventnet.EventNetwork) -> Step:
    return lambda values: values[layer.source]


@step_of.on(eventnet.RecurrentLayer)
def _(layer: eventnet.RecurrentLayer, network: eventnet.EventNetwork) -> Step:
    """The current, then what the layer's own map, which is still that of the step before, adds."""
    product = product_of(layer.feedback.synapses)
    nothing = np.zeros(math.prod(layer.in_shape), np.float32)

    def step(values: Mapping[str, Array]) -> Array:
        return values[layer.source] + product.currents(values.get(layer.name, nothing))

    return step


@step_of.on(eventnet.PoolLayer)
def _(layer: eventnet.PoolLayer, network: eventnet.EventNetwork) -> Step:
    analog = network.edges[layer.source][0] == "analog"
    return lambda values: pool(layer, values[layer.source], analog=analog)


@step_of.on(eventnet.MergeLayer)
def _(layer: eventnet.MergeLayer, network: eventnet.EventNetwork) -> Step:
    merge = MERGES[layer.function]
    return lambda values: reduce(merge, [values[name] for name in layer.sources])


@step_of.on(eventnet.ScatterLayer)
def _(layer: eventnet.ScatterLayer, network: eventnet.EventNetwork) -> Step:
    """Channels into a wide map, zeros elsewhere."""

    def step(values: Mapping[str, Array]) -> Array:
        by_position = values[layer.source].reshape(-1, layer.in_shape[0])
        wide = np.zeros((len(by_position), layer.out_shape[0]), np.float32)
        wide[:, layer.index] = by_position
        return wide.reshape(-1)

    return step


def scores_of(readout: eventnet.ReadoutLayer, spikes: Array) -> Array:
    """float32 (classes,) from the spikes that the readout reads, (T, n)."""
    steps = len(spikes)
    weighed = [_weighed(readout, spikes[at].sum(0), steps) for at in readout.weighings(steps)]
    if readout.neuron is not None:
        return _of_membranes(readout, readout.neuron, weighed)
    return np.asarray(reduce(np.maximum, weighed), np.float32)


def _of_membranes(
    readout: eventnet.ReadoutLayer, neuron: Equation, currents: Sequence[Array]
) -> Array:
    """Scores from the membranes that the currents of all steps leave."""
    state = tuple(np.full(readout.classes, v, np.float32) for v in neuron.start)
    membranes = []
    for current in currents:
        _, state = neuron.advance(state, np.asarray(current, np.float32))
        membranes.append(state[0])
    if readout.over_time in ("last", "max"):
        return np.asarray(membranes[-1] if readout.over_time == "last" else np.max(membranes, 0))
    total = reduce(np.add, membranes)
    mean = readout.over_time == "mean"
    return np.asarray(total * np.float32(1 / len(membranes)) if mean else total, np.float32)


def _weighed(readout: eventnet.ReadoutLayer, total: Array, steps: int) -> Array:
    """Scores from sums of spikes, (n,)."""
    sums = total.reshape(-1, readout.in_shape[0]).sum(0) if readout.space else total
    scale = np.float32(readout.scale(steps))
    if readout.weight is None:
        scores = sums.reshape(readout.classes, readout.votes).sum(1) * scale
    else:
        scores = (readout.weight @ sums) * scale
    if readout.bias is None:
        return np.asarray(scores)
    times = np.float32(readout.biases(steps))
    return np.asarray(scores + times * readout.bias)


class ScipyEngine:
    """An event file on scipy's CSR products: one sample after the other, step by step.

    `threads` changes nothing: the products run on one.
    """

    imports = ("soul_deploy.runtime.bench.scipy_engine",)

    def __init__(self, path: Path, threads: int) -> None:
        self.path, self.threads = path, threads

    def load(self) -> None:
        """Read and check the event file. Raises MissingFileError, FileFormatError, LimitError."""
        self.prepare(file.load_event_network(self.path))

    def prepare(self, network: eventnet.EventNetwork) -> None:
        """Make the products of a network."""
        require_products(network)
        self.network = network
        self.steps = {layer.name: step_of(layer, network) for layer in network.layers}

    def infer(self, x: Array) -> Array:
        """As Engine. Raises ValidityError for another T or shape."""
        samples = samples_of(self.network, x)
        scores = np.empty((len(samples), self.network.readout.classes), np.float32)
        for sample, row in zip(samples, scores, strict=True):
            row[...] = self._run(sample.reshape(len(sample), -1))
        return scores

    def _run(self, sample: Array) -> Array:
        """Scores of one sample, (T or 1, n). What a static input alone determines is done once."""
        network = self.network
        neurons = {layer.name: _Population(layer) for layer in network.populations}
        values: dict[str, Array] = {}
        currents: dict[str, Array] = {}
        read = np.zeros((network.time_steps, math.prod(network.readout.in_shape)), np.float32)
        for step in range(network.time_steps):
            values[network.input_name] = sample[step % len(sample)]
            still = network.static if step and len(sample) == 1 else frozenset()
            for layer in network.layers:
                if layer.name not in still:
                    fresh = layer.feedback is not None or not still.issuperset(layer.sources)
                    current = self.steps[layer.name](values) if fresh else currents[layer.name]
                    currents[layer.name] = current
                    population = neurons.get(layer.name)
                    values[layer.name] = population.step(current, step) if population else current
            read[step] = values[network.readout.source]
        return scores_of(network.readout, read)
