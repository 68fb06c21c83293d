"""An event network against the graph it should come from: structure, and running layer by layer."""

import math
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from soul_deploy.compare import LayerRun, Run
from soul_deploy.composing import (
    Composed,
    ConvOperator,
    MatrixOperator,
    ReadoutOperator,
)
from soul_deploy.counting import CountedLayer, counted_layers, fanout
from soul_deploy.export.event import valid_for_one_t
from soul_deploy.export.explicit_check import explicit_problems
from soul_deploy.export.onnx_graph import equations_of, patterns_of
from soul_deploy.export.representation import channel_last_mask
from soul_deploy.flips import Golden
from soul_deploy.folding import fold
from soul_deploy.graph import MaxPool, Shape, SpikingGraph
from soul_deploy.liveness import deployed, live_values
from soul_deploy.modelfile import Model
from soul_deploy.module import Signal
from soul_deploy.runtime.eventnet import (
    Convolution,
    DenseRows,
    EventNetwork,
    Matrix,
    PoolLayer,
    ReadoutLayer,
    Rows,
    SparseRows,
    SpikingLayer,
)
from soul_deploy.runtime.files import Array
from soul_deploy.runtime.network import Network, to_channel_last
from soul_deploy.runtime.packing import channel_last
from soul_deploy.runtime.program import aligned, readout_calls


def static_problems(
    golden: Model, network: Network, source_sha256: str | None = None
) -> tuple[str, ...]:
    """Gate 1: what in the event network is not exactly what the graph says.

    Rows are spelled out as dense operators and compared number by number (explicit ones synapse by
    synapse); the fan-out map that the stored rows give must be the graph's, entry by entry. Neurons
    that no output depends on are expected to be masked.
    """
    golden = deployed(golden)
    events, graph = network.events, golden.graph
    problems = list(_header_problems(golden, events, source_sha256))
    expected = [n.name for n in graph.nodes if n.op in ("population", "max_pool")]
    found = [layer.name for layer in events.layers]
    if expected != found:
        return (*problems, f"layers {found}, the graph says {expected}")
    folded = fold(graph, golden.state, golden.channel_masks)
    layers = counted_layers(graph, folded, golden.neuron_masks)
    behind = {layer.population: layer for layer in layers if layer.population is not None}
    live = live_values(golden)
    for stored in events.layers:
        if isinstance(stored, PoolLayer):
            problems += _pool_problems(graph, stored)
        else:
            layer = behind[stored.name]
            before = live[layer.composed.source]
            problems += _population_problems(golden, stored, live[stored.name])
            problems += _layer_problems(golden, network, stored, layer, before)
    problems += _readout_problems(graph, events.readout, layers[-1].composed)
    problems += _fanout_problems(network, layers[-1], None)
    return tuple(problems)


def _differs(what: str, found: object, expected: object) -> Iterator[str]:
    if found != expected:
        yield f"{what} is {found}, the graph says {expected}"


def _header_problems(
    golden: Model, events: EventNetwork, source_sha256: str | None
) -> Iterator[str]:
    graph, info = golden.graph, golden.info
    yield from _differs("T", events.time_steps, graph.time_steps)
    yield from _differs("the input's name", events.input_name, graph.input.name)
    yield from _differs("the input shape", events.input_shape, graph.input.shape)
    yield from _differs("class names", events.classes, info.classes)
    fixed = valid_for_one_t(golden)
    yield from _differs("validity for one T only", events.fixed_steps, fixed)
    reset = info.validity.reset_per_sample
    yield from _differs("validity with reset only", events.reset_per_sample, reset)
    norm, stored = info.normalization, events.normalization
    ours = None if norm is None else (norm.mean, norm.std)
    yield from _differs("normalisation", stored and (stored.mean, stored.std), ours)
    if source_sha256 and events.source_sha256 and events.source_sha256 != source_sha256:
        yield (
            f"made from a file with sha256 {events.source_sha256[:16]}…, the model given is "
            f"{source_sha256[:16]}…"
        )


def _pool_problems(graph: SpikingGraph, stored: PoolLayer) -> Iterator[str]:
    node = graph[stored.name]
    if not isinstance(node, MaxPool):
        yield f"{stored.name}: a max pooling, the graph says {node.op}"
        return
    expected = (node.inputs[0], node.kernel, node.stride, node.padding)
    found = (stored.source, stored.kernel, stored.stride, stored.padding)
    yield from _differs(f"{stored.name}: source, kernel, stride, padding", found, expected)


def _population_problems(golden: Model, stored: SpikingLayer, live: Array | None) -> Iterator[str]:
    """Live neurons and generated channels."""
    mask = None if live is None else channel_last_mask(live)
    yield from _optional_problems(f"{stored.name}: live neurons", stored.live, mask)
    pattern = patterns_of(golden).get(stored.name)
    pattern = None if pattern is None else np.asarray(pattern, np.uint8)
    yield from _optional_problems(f"{stored.name}: generated spikes", stored.pattern, pattern)


def _layer_problems(
    golden: Model,
    network: Network,
    stored: SpikingLayer,
    layer: CountedLayer,
    before: Array | None,
) -> Iterator[str]:
    """before: where the source can hold events; None: everywhere."""
    name, operator = stored.name, layer.composed.operator
    yield from _differs(f"{name}: projection", stored.projection, layer.name)
    yield from _differs(f"{name}: source", stored.source, layer.composed.source)
    edge = (stored.edge, stored.bound)
    yield from _differs(f"{name}: edge", edge, (layer.edge.kind, layer.edge.bound))
    yield from _differs(f"{name}: neuron", stored.neuron, equations_of(golden)[name])
    yield from _differs(f"{name}: output shape", stored.out_shape, golden.graph.shapes[name])
    if isinstance(operator, ConvOperator) and isinstance(stored.synapses, Matrix):
        problems = list(explicit_problems(name, stored.synapses, operator, before, layer.live))
    elif isinstance(operator, ConvOperator):
        problems = list(_convolution_problems(name, stored, operator))
    else:
        assert isinstance(operator, MatrixOperator)
        problems = list(_matrix_problems(name, stored, operator, before, layer.live))
    yield from problems
    if not problems:
        yield from _fanout_problems(network, layer, before)


def _convolution_problems(name: str, stored: SpikingLayer, op: ConvOperator) -> Iterator[str]:
    found = stored.synapses
    assert isinstance(found, Convolution)
    reach = tuple(min(op.reach[i], op.in_shape[1 + i]) for i in (0, 1))
    ours = (op.in_shape, op.stride, op.padding, op.dilation, op.groups, reach)
    theirs = (found.in_shape, found.stride, found.padding, found.dilation, found.groups)
    yield from _differs(f"{name}: geometry", (*theirs, found.reach), ours)
    yield from _array_problems(f"{name}: weights", convolution_weight(found), op.weight)
    yield from _optional_problems(f"{name}: bias", found.bias, op.bias)


def _matrix_problems(
    name: str, stored: SpikingLayer, op: MatrixOperator, before: Array | None, live: Array | None
) -> Iterator[str]:
    """Compressed rows hold nothing from or to a dead neuron; dense ones may."""
    found = stored.synapses
    if not isinstance(found, Matrix):
        yield f"{name}: stored as a convolution, the graph says matrix"
        return
    yield from _differs(f"{name}: input shape", found.in_shape, op.in_shape)
    weight = op.weight
    if isinstance(found.rows, SparseRows):
        weight = weight if before is None else weight * before.reshape(-1)
        weight = weight if live is None else weight * live.reshape(-1, 1)
    yield from _array_problems(f"{name}: weights", matrix_weight(found), weight)
    yield from _optional_problems(f"{name}: bias", found.bias, op.bias)


def _readout_problems(
    graph: SpikingGraph, stored: ReadoutLayer, composed: Composed
) -> Iterator[str]:
    op = composed.operator
    assert isinstance(op, ReadoutOperator)
    node = graph.readout
    divisor = node.divisor(graph.shapes[node.inputs[0]], 1)
    ours = (node.name, composed.source, op.in_shape, node.classes, op.space, op.votes, divisor)
    theirs = (stored.name, stored.source, stored.in_shape, stored.classes, stored.space)
    yield from _differs("readout", (*theirs, stored.votes, stored.divisor), ours)
    weight = stored.weight
    if weight is not None and not stored.space:
        weight = _channel_major(weight, stored.in_shape)
    yield from _optional_problems("readout: weights", weight, op.weight)
    yield from _optional_problems("readout: bias", stored.bias, op.bias)


def _fanout_problems(network: Network, layer: CountedLayer, before: Array | None) -> Iterator[str]:
    """From where events can come; rows of the other neurons may be left out."""
    expected, found = fanout(layer.composed.operator, layer.live), network.fanout(layer.name)
    if before is not None and found.shape == before.shape:
        expected, found = expected * before, found * before
    yield from _array_problems(f"{layer.name}: fan-out map", found, expected)


def _optional_problems(what: str, found: Array | None, expected: Array | None) -> Iterator[str]:
    if (found is None) != (expected is None):
        yield f"{what}: {'missing' if found is None else 'stored, but the graph has none'}"
    elif found is not None and expected is not None:
        yield from _array_problems(what, found, expected)


def _array_problems(what: str, found: Array, expected: Array) -> Iterator[str]:
    if found.shape != expected.shape or found.dtype != expected.dtype:
        yield f"{what}: {found.dtype}{found.shape}, the graph says {expected.dtype}{expected.shape}"
    elif not np.array_equal(found, expected):
        yield f"{what}: {int((found != expected).sum())} of {expected.size} entries differ"


def _dense(rows: Rows, count: int, width: int) -> Array:
    """Rows as a (count, width) array."""
    if isinstance(rows, DenseRows):
        return rows.weight.reshape(count, -1)
    dense = np.zeros((count, width), np.float32)
    lengths: Array = np.diff(rows.starts.astype(np.int64))
    row = np.repeat(np.arange(count), lengths)
    dense[row, rows.targets] = rows.weight
    return dense


def convolution_weight(found: Convolution) -> Array:
    """The stored rows as (C_out, C_in / groups, kh, kw), the kernel unmirrored.

    Synapses stored across groups stay visible: they make the result differ in shape.
    """
    channels, out, (kh, kw) = found.in_shape[0], found.out_shape[0], found.kernel
    dense = _dense(found.rows, channels * kh * kw, out).reshape(channels, kh, kw, -1)
    dense = dense[:, ::-1, ::-1]
    inner, share = channels // found.groups, out // found.groups
    weight = np.zeros((out, inner, kh, kw), np.float32)
    used = 0
    for g in range(found.groups):
        part = dense[g * inner : (g + 1) * inner]
        if not isinstance(found.rows, DenseRows):
            part = part[..., g * share : (g + 1) * share]
        weight[g * share : (g + 1) * share] = part.transpose(3, 0, 1, 2)
        used += int(np.count_nonzero(part))
    return weight if used == int(np.count_nonzero(dense)) else dense


def matrix_weight(found: Matrix) -> Array:
    """The stored rows as (n_out, n_in), both sides channel-major."""
    size = math.prod(found.in_shape), math.prod(found.out_shape)
    by_target = _channel_major(_dense(found.rows, *size), found.out_shape)
    return np.ascontiguousarray(_channel_major(by_target.T, found.in_shape))


def _channel_major(values: Array, shape: Shape) -> Array:
    """The last axis from channel-last to channel-major order."""
    if len(shape) == 1:
        return values
    channels, height, width = shape
    split = values.reshape(*values.shape[:-1], height, width, channels)
    return np.moveaxis(split, -1, -3).reshape(values.shape)


class EventExecution:
    """The event runtime as an execution to compare; it also counts."""

    def __init__(self, network: Network, golden: Golden) -> None:
        self.network, self.golden = network, golden

    def run(self, images: Tensor) -> Run:
        x = images.numpy()
        recording = self.network.run_recorded(x)
        spikes = {name: torch.from_numpy(array) for name, array in recording.spikes.items()}
        return Run(spikes, torch.from_numpy(recording.logits), self.network.count(x))

    def run_layer(self, layer: str, values: Mapping[str, Signal]) -> LayerRun:
        if layer == self.golden.graph.readout.name:
            inputs = self._source(self.network.events.readout.source, values)
            return LayerRun(self._scores(inputs), self.network.count_layer(layer, inputs))
        stored = self.network.events.by_name[layer]
        assert isinstance(stored, SpikingLayer)
        inputs = self._source(stored.source, values)
        spikes = self.network.run_layer(layer, inputs)
        counts = self.network.count_layer(stored.projection, inputs, spikes)
        return LayerRun(torch.from_numpy(spikes), counts)

    def _source(self, name: str, values: Mapping[str, Signal]) -> Array:
        """What a layer's source held: recorded, or max-pooled from what was recorded."""
        array: Array = self.golden.module.evaluate(values, [name])[name].tensor.numpy()
        return array

    def _scores(self, inputs: Array) -> Tensor:
        """The readout on spikes (T, B, ...), sample by sample."""
        readout = self.network.events.readout
        steps, batch = inputs.shape[:2]
        source = aligned((steps, *channel_last(readout.in_shape)), np.uint8)
        scores = aligned((readout.classes,), np.float32)
        calls = readout_calls(readout, source, scores)
        result = np.empty((batch, readout.classes), np.float32)
        for b in range(batch):
            source[...] = to_channel_last(inputs[:, b], readout.in_shape)
            for call in calls:
                call.kernel(*call.arguments)
            result[b] = scores
        return torch.from_numpy(result)
