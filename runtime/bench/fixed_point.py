"""A chain of float32 as a fixed-point network, to time one against the other.

The rule is that of docs/fixed-point.md, with a unit for each output channel, the largest of whose
weights becomes 127. No data are looked at, and no accuracy is told.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from soul_deploy.base import Array, errors
from soul_deploy.base.pixel_rule import Integers
from soul_deploy.runtime.bench.engines import EventEngine
from soul_deploy.runtime.equations import LEAK_AND_GAIN, FixedEquation, NeuronEquation, leak_numbers
from soul_deploy.runtime.format import bounds
from soul_deploy.runtime.format import network as net
from soul_deploy.runtime.format.file import load_event_network

MOST = 127
"""Of an int8 weight."""

PER_UNIT, REACH = 50, 255
"""Integers of an input of 1, and the largest that is given: beyond 5 deviations of normal noise."""


def fixed_network(network: net.EventNetwork) -> net.EventNetwork:
    """The network with int8 weights and integer neurons, for inputs · PER_UNIT.

    Raises UsageError for layers that are no chain of projections and poolings, and other neurons
    than IF and LIF.
    """
    edges: dict[str, net.Edge] = {network.input_name: ("analog", REACH)}
    layers: list[net.Layer] = []
    for layer in network.layers:
        if isinstance(layer, net.SpikingLayer):
            layer = _fixed_layer(layer, edges[layer.source])
        elif not isinstance(layer, net.PoolLayer):
            raise errors.UsageError(f"{layer.name}: {layer.what} is not timed in fixed point")
        layers.append(layer)
        edges[layer.name] = layer.edge_of([edges[layer.source]])
    return replace(
        network, layers=tuple(layers), readout=_fixed_head(network.readout), normalization=None,
        integers=Integers(-REACH, REACH), forms={},
    )  # fmt: skip


def _fixed_layer(layer: net.SpikingLayer, edge: net.Edge) -> net.SpikingLayer:
    neuron, synapses = layer.neuron, layer.synapses
    if not isinstance(neuron, NeuronEquation) or neuron.charge == "leak_multiply_late":
        raise errors.UsageError(f"{layer.name}: its neurons have no form in fixed point")
    leak, gain = LEAK_AND_GAIN[neuron.charge](neuron.constant)
    channels, rows = layer.current_shape[0], synapses.rows
    target = _targets(synapses) % channels
    weight = rows.weight.astype(np.float64) * (gain / (PER_UNIT if edge[0] == "analog" else 1))
    largest = np.zeros(channels)
    np.maximum.at(largest, target, np.abs(weight).reshape(-1))
    unit = np.where(largest > 0, largest, 1.0) / MOST
    whole = np.rint(weight.reshape(-1) / unit[target]).astype(np.int8).reshape(weight.shape)
    bias = synapses.bias
    if bias is not None:
        by_channel = np.resize(unit, len(bias))
        bias = np.rint(bias.astype(np.float64) * gain / by_channel).astype(np.int32)
    made = replace(synapses, rows=_with_weights(rows, whole), bias=bias)
    bound = bounds.current_bound(made, edge[1] or 1)
    span = (neuron.v_threshold - neuron.rest) / unit
    level = np.floor(span) if neuron.fire == "gt" else np.ceil(span)
    level = np.clip(level, 1, (1 << 29) - 1).astype(np.int32)
    bits = min(29, max(15, max(bound, int(level.max())).bit_length() + 1))
    multiplier, shift = leak_numbers(leak, bits)
    made_neuron = FixedEquation(
        multiplier, shift, -(1 << bits), (1 << bits) - 1, level, level.copy(), neuron.fire,
        "soft" if neuron.v_reset is None else "hard",
    )  # fmt: skip
    kind, most = edge
    return replace(
        layer, edge=kind, bound=most, synapses=made, neuron=made_neuron, grid=None,
        accumulator=bounds.accumulator_for(bound), alternatives=(),
    )  # fmt: skip


def _targets(synapses: net.Synapses) -> Array:
    """int64: the target of every stored weight, of shared rows its output channel."""
    rows = synapses.rows
    if isinstance(rows, net.SparseRows):
        return rows.targets.astype(np.int64)
    width = rows.weight.shape[-1]
    each = np.arange(rows.weight.size)
    per_block = rows.weight.size // synapses.blocks
    return np.asarray(each % width + each // per_block * width)


def _with_weights(rows: net.Rows, weight: Array) -> net.Rows:
    if isinstance(rows, net.DenseRows):
        return net.DenseRows(weight)
    assert isinstance(rows, net.SparseRows)
    kept = weight != 0  # rounded to nothing
    before = np.concatenate([[0], np.cumsum(kept)])
    starts = before[rows.starts.astype(np.int64)].astype(np.uint32)
    return net.SparseRows(starts, rows.targets[kept], weight[kept])


def _fixed_head(readout: net.ReadoutLayer) -> net.ReadoutLayer:
    if readout.weight is None:
        return readout
    unit = float(np.abs(readout.weight).max()) / MOST or 1.0
    weight = np.rint(readout.weight.astype(np.float64) / unit).astype(np.int8)
    bias = readout.bias
    if bias is not None:
        bias = np.rint(bias.astype(np.float64) * readout.divisor / unit).astype(np.int32)
    return replace(readout, weight=weight, bias=bias, unit=unit)


class FixedEventEngine(EventEngine):
    """The event runtime on a float32 event file's network in fixed point."""

    imports = ("soul_deploy.runtime.engine.network",)

    def load(self) -> None:
        """Read, check and round the event file. Raises as EventEngine, UsageError."""
        from soul_deploy.runtime.engine.network import Network  # imports numba's kernels

        made = fixed_network(load_event_network(Path(self.path)))
        self.network = Network(made, self.threads, forms=dict(self.forms or {}))

    def infer(self, x: Array) -> Array:
        whole: Any = np.clip(np.rint(x * np.float32(PER_UNIT)), -REACH, REACH)
        scores: Array = self.network.run(whole.astype(np.int16))
        return scores
