"""An event network against the graph it should come from: structure, and running layer by layer."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from soul_deploy import ir
from soul_deploy.base import Array, dispatch
from soul_deploy.export.event import build, storage_format
from soul_deploy.lowering import deploy, fan_out, linear_operators
from soul_deploy.model.model import Model
from soul_deploy.runtime.engine.network import Network
from soul_deploy.runtime.format import network as eventnet
from soul_deploy.runtime.ops import counted_run

CHUNK = 1 << 22  # synapses looked at together


def event_problems(
    reference: Model, network: Network, source_sha256: str | None = None
) -> tuple[str, ...]:
    """The static check: every difference between the event network and the graph, in words.

    Rows are expanded to dense operators and compared number by number (explicit ones synapse by
    synapse); the fan-out map that the stored rows give must be the graph's, entry by entry. Neurons
    that no output depends on are expected to be masked.
    """
    lowered = deploy.lower(reference).trimmed.composed
    events, graph = network.events, lowered.graph
    problems = list(_header_problems(reference, events, source_sha256))
    expected = list(build.layer_names(graph))
    found = [layer.name for layer in events.layers]
    if expected != found:
        return (*problems, f"layers {found}, the graph says {expected}")
    for population in events.populations:
        problems += _population_problems(lowered, population)
    for projected in (*events.projected, *events.feedbacks):
        problems += _synaptic_problems(lowered, network, projected)
    with_synapses = {layer.name for layer in events.projected}
    for other in events.layers:
        problems += () if other.name in with_synapses else _node_problems(graph, other)
    problems += _readout_problems(lowered, events.readout)
    problems += _fanout_problems(network, lowered.layers[-1], None)
    return tuple(problems)


def _differs(what: str, stored: object, expected: object) -> Iterator[str]:
    if stored != expected:
        yield f"{what} is {stored}, the graph says {expected}"


def _header_problems(
    reference: Model, events: eventnet.EventNetwork, source_sha256: str | None
) -> Iterator[str]:
    graph, info = reference.graph, reference.info
    yield from _differs("T", events.time_steps, graph.time_steps)
    yield from _differs("the input's name", events.input_name, graph.input.name)
    yield from _differs("the input shape", events.input_shape, graph.input.shape)
    yield from _differs("the kind of input", events.input_kind, info.input_kind)
    yield from _differs("class names", events.classes, info.classes)
    fixed = reference.for_one_t
    yield from _differs("validity for one T only", events.fixed_steps, fixed)
    reset = info.validity.reset_per_sample
    yield from _differs("validity with reset only", events.reset_per_sample, reset)
    norm, stored = build.normalization_of(reference), events.normalization
    ours = norm and (norm.mean, norm.std)
    yield from _differs("normalisation", stored and (stored.mean, stored.std), ours)
    integers = reference.input_rule.integers
    yield from _differs("the integers that come in", events.integers, integers)
    yield from _differs("the largest event that comes in", events.input_bound, graph.input.events)
    yield from source_problems(events.source_sha256, source_sha256)


def source_problems(stored: str | None, given: str | None) -> Iterator[str]:
    """Whether the digests of a file's model and of the model given differ, where both are known."""
    if given and stored and stored != given:
        yield f"made from a file with sha256 {stored[:16]}…, the model given is {given[:16]}…"


def _node_problems(graph: ir.SpikingGraph, stored: eventnet.Layer) -> Iterator[str]:
    """A layer without synapses against its node."""
    node, name = graph[stored.name], stored.name
    yield from _differs(f"{name}: sources", stored.sources, node.inputs)
    yield from _differs(f"{name}: output shape", stored.out_shape, graph.shapes[name])
    kind, content = stored_as(node)
    if kind is type(stored):
        yield from content(stored, node)
    else:
        yield f"{name}: stored as {stored.what}, the graph says {node.op}"


Content: TypeAlias = Callable[[Any, Any], Iterator[str]]


def _same(*fields: str) -> Content:
    """Differences of the fields that a layer and its node share."""

    def content(stored: eventnet.Layer, node: ir.Node) -> Iterator[str]:
        ours, expected = (tuple(getattr(n, field) for field in fields) for n in (stored, node))
        yield from _differs(f"{stored.name}: {', '.join(fields)}", ours, expected)

    return content


def _same_index(stored: eventnet.ScatterLayer, node: ir.Scatter) -> Iterator[str]:
    index = np.array(node.index, np.uint32)
    yield from array_problems(f"{stored.name}: index", stored.index, index)


@dispatch.operation_table(ir.Node)
def stored_as(node: ir.Node) -> tuple[type[eventnet.Layer] | None, Content]:
    """The kind of layer without synapses that a node is, and how the content of both differs."""
    raise ir.no_entry(node, "verification of event files")


stored_as.on(ir.Projection, *build.PARTS)(lambda _: (None, _same()))
stored_as.on(ir.Population)(
    lambda node: (
        eventnet.PopulationLayer if node.feedback is None else eventnet.RecurrentLayer,
        _same(),
    )
)
stored_as.on(ir.MaxPool)(lambda _: (eventnet.PoolLayer, _same("kernel", "stride", "padding")))
stored_as.on(ir.Merge)(lambda _: (eventnet.MergeLayer, _same("function")))
stored_as.on(ir.Scatter)(lambda _: (eventnet.ScatterLayer, _same_index))


def _population_problems(lowered: deploy.Deployed, stored: eventnet.Firing) -> Iterator[str]:
    """Equation, live neurons and constant-pattern channels."""
    name, live = stored.name, lowered.live_values[stored.name]
    yield from _differs(f"{name}: neuron", stored.neuron, lowered.equations.get(name))
    mask = None if live is None else storage_format.channel_last_mask(live)
    yield from array_problems(f"{name}: live neurons", stored.live, mask)
    pattern = lowered.patterns.get(name)
    pattern = None if pattern is None else np.asarray(pattern, np.uint8)
    yield from array_problems(f"{name}: generated spikes", stored.pattern, pattern)


def _synaptic_problems(
    lowered: deploy.Deployed, network: Network, stored: eventnet.Synaptic
) -> Iterator[str]:
    backs = {back.name for back in lowered.graph.feedbacks.values()}
    by_name = {
        layer.name if layer.name in backs else layer.population or layer.name: layer
        for layer in lowered.layers
    }
    if stored.name not in by_name:
        yield from _node_problems(lowered.graph, stored)
        return
    name, layer = stored.name, by_name[stored.name]
    before = lowered.live_values[layer.source]  # where the source can hold events; None: everywhere
    yield from _differs(f"{name}: projection", stored.projection, layer.name)
    yield from _differs(f"{name}: source", stored.source, layer.source)
    edge = (stored.edge, stored.bound)
    yield from _differs(f"{name}: edge", edge, build.event_edge(layer.edge))
    if not stored.stateful:  # a population says itself which neurons are live
        live = None if layer.live is None else storage_format.channel_last_mask(layer.live)
        yield from array_problems(f"{name}: live targets", stored.live, live)
    yield from _differs(f"{name}: output shape", stored.out_shape, lowered.graph.shapes[name])
    rows = _Stored(name, stored.synapses, before, layer.live)
    problems = list(operator_problems(layer.linear.operator, rows))
    yield from problems
    if not problems:
        yield from _fanout_problems(network, layer, before)


@dataclass(frozen=True)
class _Stored:
    """A projection's stored synapses; before, live: where events come from and go to, bool of the
    source's and the output's shape, None: everywhere.
    """

    name: str
    synapses: eventnet.Synapses
    before: Array | None
    live: Array | None


@dispatch.operation_table(linear_operators.Operator)
def operator_problems(op: linear_operators.Operator, stored: _Stored) -> Iterator[str]:
    """How stored synapses differ from a projection's operator."""
    raise operator_problems.unknown(op)


@operator_problems.on(linear_operators.ConvOperator)
def _convolution_problems(op: linear_operators.ConvOperator, stored: _Stored) -> Iterator[str]:
    conv, name = stored.synapses.convolution, stored.name
    if conv is None:
        yield from explicit_problems(name, stored.synapses, op, stored.before, stored.live)
        return
    reach = tuple(min(op.reach[i], op.in_shape[1 + i]) for i in (0, 1))
    ours = (op.in_shape, op.stride, op.padding, op.dilation, op.groups, reach)
    theirs = (conv.in_shape, conv.stride, conv.padding, conv.dilation, conv.groups)
    yield from _differs(f"{name}: geometry", (*theirs, conv.reach), ours)
    yield from array_problems(f"{name}: weights", convolution_weight(conv), op.weight)
    yield from array_problems(f"{name}: bias", conv.bias, op.bias)


@operator_problems.on(linear_operators.MatrixOperator)
def _matrix_problems(op: linear_operators.MatrixOperator, stored: _Stored) -> Iterator[str]:
    """Compressed rows hold nothing from or to a dead neuron; dense ones may."""
    matrix, name, before, live = stored.synapses, stored.name, stored.before, stored.live
    if matrix.shared:
        yield f"{name}: stored as a convolution, the graph says matrix"
        return
    yield from _differs(f"{name}: input shape", matrix.in_shape, op.in_shape)
    weight = op.weight
    if not matrix.rows.dense:
        weight = weight if before is None else weight * before.reshape(-1)
        weight = weight if live is None else weight * live.reshape(-1, 1)
    yield from array_problems(f"{name}: weights", matrix_weight(matrix), weight)
    yield from array_problems(f"{name}: bias", matrix.bias, op.bias)


def _readout_problems(lowered: deploy.Deployed, stored: eventnet.ReadoutLayer) -> Iterator[str]:
    node = lowered.graph.readout
    op, source = lowered.readout, lowered.operator(node.name).source
    divisor = node.divisor(lowered.graph.shapes[node.inputs[0]], 1)
    ours = (node.name, source, op.in_shape, node.classes, op.space, op.votes, divisor)
    theirs = (stored.name, stored.source, stored.in_shape, stored.classes, stored.space)
    yield from _differs("readout", (*theirs, stored.votes, stored.divisor), ours)
    yield from _differs("readout: over time", stored.over_time, node.over_time)
    yield from _differs("readout: neurons", stored.neuron, lowered.membrane)
    unit = None if op.weight is None else node.unit
    yield from _differs("readout: unit", stored.unit, unit)
    weight = stored.weight
    if weight is not None and not stored.space:
        weight = _channel_major(weight, stored.in_shape)
    yield from array_problems("readout: weights", weight, op.weight)
    yield from array_problems("readout: bias", stored.bias, op.bias)


def _fanout_problems(
    network: Network, layer: fan_out.CountedLayer, before: Array | None
) -> Iterator[str]:
    """From where events can come; rows of the other neurons may be left out."""
    expected = fan_out.fanout(layer.linear.operator, layer.live)
    stored_map = counted_run.fan_out(network, layer.name)
    if before is not None and stored_map.shape == before.shape:
        expected, stored_map = expected * before, stored_map * before
    yield from array_problems(f"{layer.name}: fan-out map", stored_map, expected)


def array_problems(
    what: str, stored: Array | None, expected: Array | None, differ: str = "entries differ"
) -> Iterator[str]:
    """How a stored array (None: there is none) is not the graph's; differ: how others are not."""
    if stored is None or expected is None:
        if stored is not expected:
            yield f"{what}: {'missing' if stored is None else 'stored, but the graph has none'}"
    elif stored.shape != expected.shape or stored.dtype != expected.dtype:
        differing = f"{stored.dtype}{stored.shape}, the graph says {expected.dtype}{expected.shape}"
        yield f"{what}: {differing}"
    elif not np.array_equal(stored, expected):
        yield f"{what}: {int((stored != expected).sum())} of {expected.size} {differ}"


def same_arrays(a: Array | None, b: Array | None) -> bool:
    """Whether there is neither, or both are equal."""
    return a is b if a is None or b is None else np.array_equal(a, b)


def _dense(rows: eventnet.Rows, count: int, width: int) -> Array:
    """Rows as a (count, width) array."""
    if rows.dense:
        return rows.weight.reshape(count, -1)
    dense = np.zeros((count, width), rows.weight.dtype)
    _, targets, weight = rows.arrays
    dense[np.repeat(np.arange(count), rows.lengths), targets] = weight
    return dense


def convolution_weight(conv: eventnet.ConvSynapses) -> Array:
    """The stored rows as (C_out, C_in / groups, kh, kw), the kernel unmirrored.

    Synapses stored across groups stay visible: they make the result differ in shape.
    """
    channels, out, (kh, kw) = conv.in_shape[0], conv.out_shape[0], conv.kernel
    dense = _dense(conv.rows, channels * kh * kw, out).reshape(channels, kh, kw, -1)
    dense = dense[:, ::-1, ::-1]
    inner, share = channels // conv.groups, out // conv.groups
    weight = np.zeros((out, inner, kh, kw), dense.dtype)
    used = 0
    for g in range(conv.groups):
        part = dense[g * inner : (g + 1) * inner]
        if not conv.rows.dense:
            part = part[..., g * share : (g + 1) * share]
        weight[g * share : (g + 1) * share] = part.transpose(3, 0, 1, 2)
        used += int(np.count_nonzero(part))
    return weight if used == int(np.count_nonzero(dense)) else dense


def matrix_weight(matrix: eventnet.Synapses) -> Array:
    """The stored rows as (n_out, n_in), both sides channel-major."""
    size = math.prod(matrix.in_shape), math.prod(matrix.out_shape)
    by_target = _channel_major(_dense(matrix.rows, *size), matrix.out_shape)
    return np.ascontiguousarray(_channel_major(by_target.T, matrix.in_shape))


def _channel_major(values: Array, shape: ir.Shape) -> Array:
    """The last axis from channel-last to channel-major order."""
    if len(shape) == 1:
        return values
    channels, height, width = shape
    split = values.reshape(*values.shape[:-1], height, width, channels)
    return np.moveaxis(split, -1, -3).reshape(values.shape)


def explicit_problems(
    name: str,
    synapses: eventnet.Synapses,
    op: linear_operators.ConvOperator,
    before: Array | None,
    live: Array | None,
) -> Iterator[str]:
    """What differs in explicit rows; before, live: bool masks of source and targets, None: all.

    If every row holds as many synapses as the graph's fan-out map says, all distinct, each with the
    weight that the definition gives for its pair of neurons, then the rows are exactly the graph's.
    """
    rows = synapses.explicit_rows
    if rows is None:
        yield f"{name}: stored as a dense matrix, the graph says convolution"
        return
    if (synapses.in_shape, synapses.out_shape) != (op.in_shape, op.out_shape):
        ours = f"{op.in_shape} to {op.out_shape}"
        theirs = f"{synapses.in_shape} to {synapses.out_shape}"
        yield f"{name}: rows lead from {theirs}, the graph says {ours}"
        return
    expected = fan_out.fanout(op, live) * (True if before is None else before)
    channels, height, width = op.in_shape
    by_source = np.moveaxis(rows.lengths.reshape(height, width, channels), -1, 0)
    wrong = int((by_source != expected).sum())
    if wrong:
        yield f"{name}: {wrong} rows have another number of synapses than the graph says"
    count = rows.synapses
    chunks = (slice(first, min(first + CHUNK, count)) for first in range(0, count, CHUNK))
    differing = sum(_wrong_synapses(rows, op, live, at) for at in chunks)
    if differing:
        yield f"{name}: {differing} of {count} synapses differ from the graph's"
    if not same_arrays(synapses.bias, op.bias):
        yield f"{name}: bias differs from the graph's"


def _wrong_synapses(
    rows: eventnet.SparseRows, op: linear_operators.ConvOperator, live: Array | None, at: slice
) -> int:
    """Synapses whose weight is not the kernel's for their pair of neurons."""
    numbers = np.arange(at.start, at.stop)
    source = np.searchsorted(rows.starts, numbers, side="right") - 1
    target = rows.targets[at].astype(np.int64)
    c, y, x = _place(source, op.in_shape)
    o, oy, ox = _place(target, op.out_shape)
    inner, share = op.weight.shape[1], op.out_shape[0] // op.groups
    ky, fits_y = _tap(op, 0, y, oy)
    kx, fits_x = _tap(op, 1, x, ox)
    fits = fits_y & fits_x & (c // inner == o // share)
    weight = op.weight[o, c % inner, np.where(fits_y, ky, 0), np.where(fits_x, kx, 0)]
    right = fits & (weight == rows.weight[at])
    if live is not None:
        right &= storage_format.channel_last_mask(live)[target]
    return int((~right).sum())


def _place(index: Array, shape: ir.Shape) -> tuple[Array, Array, Array]:
    """Channel, row and column of channel-last indices."""
    channels, _, width = shape
    position = index // channels
    return index % channels, position // width, position % width


def _tap(
    op: linear_operators.ConvOperator, axis: int, place: Array, out: Array
) -> tuple[Array, Array]:
    """The kernel index between an input and an output position, and whether there is one."""
    offset = place - out * op.stride[axis] + op.padding[axis]
    tap = offset // op.dilation[axis]
    fits = (offset % op.dilation[axis] == 0) & (tap >= 0) & (tap < op.weight.shape[2 + axis])
    return tap, fits & (place < op.reach[axis])
