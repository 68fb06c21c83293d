"""A sparse network the way most people would write it: scipy's CSR products, step by step.

A convolution gathers its patches (im2col) and multiplies them by one CSR matrix; a matrix layer
multiplies the values. Every product runs over all presynaptic values, spikes or not: weights are
sparse here, activity is not used. Sums run in scipy's order, so currents may differ from the event
engine's in the last bits.

Maps are float32 vectors, channel-last: value (c, y, x) of a (C, H, W) map has index
(y·W + x)·C + c.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import csr_array

from soul_deploy.base.brief import brief
from soul_deploy.base.files import Array
from soul_deploy.runtime.engine.inputs import samples_of
from soul_deploy.runtime.format.file import load_event_network
from soul_deploy.runtime.format.network import (
    Convolution,
    DenseRows,
    EventNetwork,
    Firing,
    Layer,
    Matrix,
    MergeLayer,
    PoolLayer,
    ReadoutLayer,
    ScatterLayer,
    Synapses,
    Synaptic,
)
from soul_deploy.runtime.format.tap_tables import gather_table
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
            found: Array = self.weight @ values
        else:
            columns = np.append(values, np.float32(0))[self.patches]
            found = np.ascontiguousarray((self.weight @ columns).T).reshape(-1)
        if len(self.bias):
            found = (found.reshape(-1, len(self.bias)) + self.bias).reshape(-1)
        return found


def product_of(synapses: Synapses) -> SparseProduct:
    """A projection as a CSR product."""
    bias = np.zeros(0, np.float32) if synapses.bias is None else synapses.bias
    if isinstance(synapses, Matrix):
        sizes = math.prod(synapses.in_shape), math.prod(synapses.out_shape)
        return SparseProduct(_transposed(_by_source(synapses, sizes)), None, bias)
    sizes = synapses.in_shape[0] * math.prod(synapses.kernel), synapses.out_shape[0]
    table = gather_table(synapses)
    patches = np.ascontiguousarray(table.reshape(len(table), -1).T.astype(np.intp))
    return SparseProduct(_transposed(_by_source(synapses, sizes)), patches, bias)


def _by_source(synapses: Synapses, sizes: tuple[int, int]) -> Any:
    """CSR (rows, targets) as stored, zeros left out; channels of a group are a block of it."""
    rows = synapses.rows
    if not isinstance(rows, DenseRows):
        starts, targets, weight = rows.arrays
        return csr_array((weight, targets.astype(np.int64), starts.astype(np.int64)), shape=sizes)
    if not isinstance(synapses, Convolution):
        return csr_array(rows.weight)
    groups = synapses.groups
    blocks = rows.weight.reshape(groups, sizes[0] // groups, sizes[1] // groups)
    group, row, column = np.nonzero(blocks)
    places = group * blocks.shape[1] + row, group * blocks.shape[2] + column
    return csr_array((blocks[group, row, column], places), shape=sizes)


def _transposed(weight: Any) -> Any:
    """CSR with a row per target, its sources sorted."""
    found = weight.T.tocsr()
    found.sort_indices()
    return found


@dataclass
class _Population:
    """The neurons of one layer while a sample runs; v (n,) float32 of all, live or not."""

    layer: Firing
    v: Array

    def step(self, current: Array, step: int) -> Array:
        """Spikes of the output, generated channels included, as float32."""
        layer = self.layer
        spike, self.v = layer.neuron.step(self.v, current)
        by_position = spike.reshape(-1, layer.current_shape[0])
        if layer.pattern is not None:
            shown = np.repeat(layer.pattern[step][None] != 0, len(by_position), axis=0)
            by_position = np.concatenate([by_position, shown], axis=1)
        spikes = by_position.reshape(-1)
        if layer.live is not None:
            spikes = spikes & layer.live
        return np.asarray(spikes, np.float32)


def at_rest(layer: Firing) -> _Population:
    """The neurons of a layer before the first step."""
    size = math.prod(layer.current_shape)
    return _Population(layer, np.full(size, layer.neuron.rest, np.float32))


def pool(layer: PoolLayer, values: Array, *, analog: bool) -> Array:
    """Maximum over windows; values outside never are the maximum."""
    channels, height, width = layer.in_shape
    (top, left), (down, right) = layer.padding, layer.stride
    lowest = np.float32(-np.inf if analog else 0)
    padded = np.full((height + 2 * top, width + 2 * left, channels), lowest, np.float32)
    padded[top : top + height, left : left + width] = values.reshape(height, width, channels)
    _, rows, columns = layer.out_shape
    found = np.full((rows, columns, channels), lowest, np.float32)
    for y in range(layer.kernel[0]):
        for x in range(layer.kernel[1]):
            window = padded[y : y + rows * down : down, x : x + columns * right : right]
            np.maximum(found, window[:rows, :columns], out=found)
    return found.reshape(-1)


def merge(layer: MergeLayer, branches: list[Array]) -> Array:
    """Branches element by element, left to right."""
    found, *others = branches
    for other in others:
        if layer.function == "add":
            found = found + other
        else:
            found = found * (other if layer.function == "and" else 1 - other)
    return found


def scatter(layer: ScatterLayer, values: Array) -> Array:
    """Channels into a wide map, zeros elsewhere."""
    by_position = values.reshape(-1, layer.in_shape[0])
    found = np.zeros((len(by_position), layer.out_shape[0]), np.float32)
    found[:, layer.index] = by_position
    return found.reshape(-1)


def scores_of(readout: ReadoutLayer, total: Array, steps: int) -> Array:
    """float32 (classes,) from spikes summed over time, (n,)."""
    sums = total.reshape(-1, readout.in_shape[0]).sum(0) if readout.space else total
    scale = np.float32(readout.scale(steps))
    if readout.weight is None:
        found = sums.reshape(readout.classes, readout.votes).sum(1) * scale
    else:
        found = (readout.weight @ sums) * scale
    return np.asarray(found if readout.bias is None else found + readout.bias, np.float32)


class ScipyEngine:
    """An event file on scipy's CSR products: one sample after the other, step by step.

    `threads` changes nothing: the products run on one.
    """

    imports = ("soul_deploy.runtime.bench.scipy_engine",)

    def __init__(self, path: Path, threads: int) -> None:
        self.path, self.threads = path, threads

    def load(self) -> None:
        """Read and check the event file. Raises MissingFileError, FileFormatError, LimitError."""
        self.prepare(load_event_network(self.path))

    def prepare(self, network: EventNetwork) -> None:
        """Make the products of a network."""
        require_products(network)
        self.network = network
        self.products = {layer.name: product_of(layer.synapses) for layer in network.projected}

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
        neurons = {
            layer.name: at_rest(layer) for layer in network.layers if isinstance(layer, Firing)
        }
        values: dict[str, Array] = {}
        currents: dict[str, Array] = {}
        total = np.zeros(math.prod(network.readout.in_shape), np.float32)
        for step in range(network.time_steps):
            values[network.input_name] = sample[step % len(sample)]
            still = network.static if step and len(sample) == 1 else frozenset()
            for layer in network.layers:
                if layer.name not in still:
                    fresh = not still.issuperset(layer.sources)
                    current = self._current(layer, values) if fresh else currents[layer.name]
                    currents[layer.name] = current
                    population = neurons.get(layer.name)
                    values[layer.name] = population.step(current, step) if population else current
            total += values[network.readout.source]
        return scores_of(network.readout, total, network.time_steps)

    def _current(self, layer: Layer, values: dict[str, Array]) -> Array:
        """What a layer gives, or what arrives at its neurons."""
        source = values[layer.sources[0]]
        if isinstance(layer, Synaptic):
            return self.products[layer.name].currents(source)
        if isinstance(layer, PoolLayer):
            analog = self.network.edges[layer.source][0] == "analog"
            return pool(layer, source, analog=analog)
        if isinstance(layer, MergeLayer):
            return merge(layer, [values[name] for name in layer.sources])
        return scatter(layer, source) if isinstance(layer, ScatterLayer) else source
