"""Layers bound to buffers: regions of kernel launches, split into partitions."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from soul_deploy.base import Array, brief, dispatch
from soul_deploy.runtime.equations import Equation
from soul_deploy.runtime.format import network
from soul_deploy.runtime.kernels import gather, maps, synapses, time_vectorised
from soul_deploy.runtime.kernels import steps as step_forms
from soul_deploy.runtime.kernels.listed import AHEAD, UNROLLED
from soul_deploy.runtime.kernels.simd import BYTES
from soul_deploy.runtime.plan import layer_plan, neuron_state
from soul_deploy.runtime.plan.layer_plan import LayerPlan, Partition, aligned, partitions_of

Work = Literal["currents", "neurons", "fused", "words", "maps"]
"""What a kernel call does: currents of a layer, its neurons, both of them, spikes into words of
bits and back, maps to maps (pooling, merges, the readout's sums)."""


TILED_FROM, TILE_BYTES = 8 << 20, 4 << 20
"""Bytes of a layer's currents on lanes: from how many on they are cut into tiles, and of a tile."""


@dataclass(frozen=True)
class Call:
    """A kernel and all its arguments."""

    kernel: Callable[..., Any]
    arguments: tuple[Any, ...]
    work: Work = "maps"


Region = tuple[tuple[Call, ...], ...]
"""A region of kernel launches: for each partition its kernel calls, in order.

Threads run the partitions of one region at the same time and wait for each other at its end."""


def run_calls(calls: tuple[Call, ...]) -> None:
    for call in calls:
        call.kernel(*call.arguments)


@brief
@dataclass
class Scratch:
    """Arrays that layers use in turn, and so find in the caches; for each partition and name one,
    as long as the longest so far.
    """

    kept: dict[tuple[Partition, str], Array] = field(default_factory=dict)

    def array(
        self, partition: Partition, name: str, shape: network.Shape, dtype: npt.DTypeLike
    ) -> Array:
        """Uninitialised; a name always has the same dtype."""
        size, key = math.prod(shape), (partition, name)
        if key not in self.kept or self.kept[key].size < size:
            self.kept[key] = aligned((size,), dtype)
        return self.kept[key][:size].reshape(shape)


def lanes_of(layer: network.Synaptic, plan: LayerPlan, steps: int) -> int:
    """Lanes of a spiking layer's currents, for so many different steps of its source; 0: none."""
    in_lanes = layer.edge != "analog" and plan.form == "sparse"
    return time_vectorised.lanes_for(steps) if in_lanes else 0


def currents_shape(layer: network.Synaptic, plan: LayerPlan, steps: int) -> network.Shape:
    """Shape of a spiking layer's currents: (n, lanes), or (T, n)."""
    lanes = lanes_of(layer, plan, steps)
    return (plan.columns, lanes) if lanes else (steps, plan.columns)


def tiles_of(layer: network.SpikingLayer, plan: LayerPlan, steps: int, partitions: int) -> int:
    """Into how many tiles, whole rows of the map, each partition of a convolution on lanes is cut,
    so that its currents are still in the caches when its neurons take them. 1: it is not cut.
    """
    lanes = lanes_of(layer, plan, steps)
    rows = layer.out_shape[1] if len(layer.out_shape) == 3 else 0
    fits = lanes and layer.neuron.fuses and plan.gather_index is None and plan.masked_out is None
    if not fits or layer.synapses.convolution is None or plan.columns * lanes * 4 <= TILED_FROM:
        return 1
    wanted = -(-plan.columns * lanes * 4 // (partitions * TILE_BYTES))
    return max(1, min(wanted, rows // partitions))


def _tiled_region(
    layer: network.SpikingLayer, plan: LayerPlan, source: Array, v: Array, spikes: Array, *,
    carry: bool, partitions: int, tiles: int, lanes: int, numbers: Array | None, shared: Scratch,
) -> Region:  # fmt: skip
    """Bias, synapses and neurons of a convolution on lanes, tile by tile."""
    start, kernel = time_vectorised.start_lanes(lanes), layer_plan.IN_LANES[plan.kernel](lanes)
    (values, events), kind = values_of(layer.synapses, source), np.dtype(plan.current)
    fired, region = spikes.reshape(len(spikes), v.shape[-1]), []
    for partition in partitions_of(partitions):
        calls: list[Call] = []
        amounts = np.zeros((events, lanes), kind)
        own = np.empty(events, np.uint8), np.zeros(events + 1, np.uint32), amounts
        shares = [
            Partition(partition.index * tiles + tile, partitions * tiles) for tile in range(tiles)
        ]
        bounds = [plan.bounds(share) for share in shares]
        size = max(last - first for first, last in bounds)
        current = shared.array(partition, f"tile {kind}", (size, lanes), kind)
        for share, (first, last) in zip(shares, bounds, strict=True):
            tables = layer_plan.synapse_tables(layer.synapses, plan, share, origin=True)
            begin = current, plan.bias_of(share), 0, last - first
            update, running = neuron_state.update_call(
                layer.neuron, current, v, fired, (first, last), carry=carry, lanes=lanes,
                numbers=numbers, origin=first,
            )  # fmt: skip
            calls += [
                Call(start, begin, "currents"),
                Call(kernel, (values, *tables, *own, current), "currents"),
                Call(update, running, "neurons"),
            ]
        region.append(tuple(calls))
    return tuple(region)


def current_region(
    layer: network.Synaptic, plan: LayerPlan, source: Array, current: Array, *, lanes: int,
    partitions: int, shared: Scratch | None = None,
) -> Region:  # fmt: skip
    """Bias and synapses. shared: scratch that layers use in turn.

    source (T or 1, positions, channels) or compacted (T, L'); current (T or 1, plan.columns), or
    (plan.columns, lanes).
    """
    if plan.form == "gather":
        return _gather_region(layer, plan, source, current, partitions, shared or Scratch())
    start: Callable[..., None] = synapses.start_currents
    kernel, region = plan.kernel, []
    if lanes:
        start, kernel = time_vectorised.start_lanes(lanes), layer_plan.IN_LANES[kernel](lanes)
    (values, events), kind = values_of(layer.synapses, source), current.dtype
    for partition in partitions_of(partitions):
        scratch: tuple[Array, ...] = (np.empty(events, np.uint32), np.empty(events, kind))
        if lanes:
            amounts = np.zeros((events, lanes), kind)
            scratch = (np.empty(events, np.uint8), np.zeros(events + 1, np.uint32), amounts)
        tables = layer_plan.synapse_tables(layer.synapses, plan, partition)
        first = current, plan.bias_of(partition), *plan.bounds(partition)
        adding = Call(kernel, (values, *tables, *scratch, current), "currents")
        region.append((Call(start, first, "currents"), adding))
    return tuple(region)


def _gather_region(
    layer: network.Synaptic, plan: LayerPlan, source: Array, current: Array, partitions: int,
    shared: Scratch,
) -> Region:  # fmt: skip
    """Each partition lists the events that it reads."""
    region = []
    for partition in partitions_of(partitions):
        given = source, *_gather_tables(layer, plan, source.shape, partition, shared), (current,)
        region.append((Call(plan.kernel, given, "currents"),))
    return tuple(region)


def _fused_region(
    layer: network.SpikingLayer, plan: LayerPlan, source: Array, v: Array, spikes: Array, *,
    carry: bool, partitions: int, shared: Scratch,
) -> Region:  # fmt: skip
    """Gathered currents and their neurons, a block of channels at a time."""
    neuron, region, (weight, _) = layer.neuron, [], plan.arrays
    lanes = BYTES // weight.itemsize
    form, vectors = step_forms.form_of(neuron), weight.shape[-1] // lanes
    kernel = gather.fire_gathered(vectors, layer.edge != "spike", form, lanes)
    numbers = tuple(
        np.pad(number, (0, weight.shape[-1])) if isinstance(number, np.ndarray) else number
        for number in step_forms.numbers_of(neuron, layer.out_shape[0])
    )
    fired = spikes.reshape(len(spikes), len(v))
    for partition in partitions_of(partitions):
        tables = _gather_tables(layer, plan, source.shape, partition, shared)
        scratch = [
            np.empty((gather.TOGETHER, weight.shape[-1]), kind)
            for kind in (step_forms.membrane_type(neuron), np.uint8)
        ]
        calls = [Call(kernel, (source, *tables, (numbers, carry, v, fired, *scratch)), "fused")]
        if plan.masked_out is not None:
            share = index_between(plan.masked_out, plan.bounds(partition))
            calls.append(Call(maps.mask_out, (fired, plan.masked_out, *share), "neurons"))
        region.append(tuple(calls))
    return tuple(region)


def _gather_tables(
    layer: network.Synaptic, plan: LayerPlan, source: network.Shape, partition: Partition,
    shared: Scratch,
) -> tuple[Any, ...]:  # fmt: skip
    """What `convolve_gathered` takes between its values and `kept`; source: their shape."""
    tables = layer_plan.synapse_tables(plan.synapses, plan, partition)
    (weight, bias), (steps, positions, channels) = plan.arrays, source
    groups, _, taps, inner, wide = weight.shape
    _, x_under, (first, last), in_columns, arriving = tables[-5:]
    row = x_under.shape[1] * steps
    tile = max(1, gather.rows_of_tile(last - first, row * wide * bias.itemsize))
    read = steps * (arriving[1] - arriving[0]) * in_columns * channels + UNROLLED
    scratch = partial(shared.array, partition)
    lists = (
        scratch("rows", (read,), np.uint16),
        scratch(f"amounts {weight.dtype}", (read if layer.edge != "spike" else 0,), weight.dtype),
        scratch("counts", (taps, inner + 2), np.uint32),
        scratch("begins", (taps, tile * row + AHEAD + 1), np.uint32),
        scratch("places", (taps, tile * row + AHEAD + 1), np.uint32),
    )
    starts = scratch("starts", (steps, positions * groups + 1), np.uint32)
    sums = scratch(f"sums {bias.dtype}", (tile * row, wide), bias.dtype)
    return *tables, tile, starts, lists, sums


@dispatch.operation_table(network.Synapses)
def values_of(synapses: network.Synapses, source: Array) -> tuple[Array, int]:
    """The source as the kernel sees it, and how many events it collects at once at most."""
    raise values_of.unknown(synapses)


@values_of.on(network.MatrixSynapses)
def _(matrix: network.MatrixSynapses, source: Array) -> tuple[Array, int]:
    flat = source.reshape(len(source), 1, source.size // len(source))
    return flat, flat.shape[2]


values_of.on(network.ConvSynapses)(
    lambda synapses, source: (source, source.shape[2] * math.prod(synapses.kernel))
)


def spiking_regions(
    layer: network.SpikingLayer, plan: LayerPlan, source: Array, current: Array, v: Array,
    spikes: Array, *, carry: bool, partitions: int, apart: bool = False,
    shared: Scratch | None = None, numbers: Array | None = None,
) -> tuple[Region, ...]:  # fmt: skip
    """Bias, synapses, neurons: in one region, or the neurons in one of their own if `apart`.

    source and current as in `current_region`, current of the shape `currents_shape`; v (L,), spikes
    (T, positions, C) or compacted (T, L).
    """
    joined = plan.form == "gather" and plan.gather_index is None and not apart
    if joined and layer.neuron.fuses:
        region = _fused_region(
            layer, plan, source, v, spikes, carry=carry, partitions=partitions,
            shared=shared or Scratch(),
        )  # fmt: skip
        return (region,)
    lanes = lanes_of(layer, plan, len(source))
    tiles = 1 if apart else tiles_of(layer, plan, len(source), partitions)
    if tiles > 1:
        region = _tiled_region(
            layer, plan, source, v, spikes, carry=carry, partitions=partitions, tiles=tiles,
            lanes=lanes, numbers=numbers, shared=shared or Scratch(),
        )  # fmt: skip
        return (region,)
    currents = current_region(
        layer, plan, source, current, lanes=lanes, partitions=partitions, shared=shared
    )
    bounds = [plan.bounds(partition) for partition in partitions_of(partitions)]
    updates = neuron_region(
        layer.neuron, current, plan.gather_index, v, spikes, carry=carry, lanes=lanes,
        bounds=bounds, masked_out=plan.masked_out, numbers=numbers,
    )  # fmt: skip
    if apart:
        return currents, updates
    return (tuple(a + b for a, b in zip(currents, updates, strict=True)),)


def neuron_region(
    neuron: Equation, current: Array, gather: Array | None, v: Array, spikes: Array, *,
    carry: bool, lanes: int, bounds: Sequence[tuple[int, int]], masked_out: Array | None = None,
    numbers: Array | None = None,
) -> Region:  # fmt: skip
    """Neurons on their currents, (T or 1, n) or (n, lanes).

    gather: of the live neurons' currents, None: all n. bounds: columns of the currents, by
    partition. masked_out: index of neurons whose spikes are set to 0, None: none. numbers: as
    `neuron_state.update_numbers`.
    """
    arriving = current
    if gather is not None:
        shape = (v.shape[-1], lanes) if lanes else (len(current), v.shape[-1])
        arriving = aligned(shape, current.dtype)
        bounds = [index_between(gather, pair) for pair in bounds]
    fired, region = spikes.reshape(len(spikes), v.shape[-1]), []
    for first, last in bounds:
        calls: list[Call] = []
        if gather is not None:
            kernel = time_vectorised.gather_lanes if lanes else maps.gather_currents
            calls.append(Call(kernel, (current, gather, first, last, arriving), "neurons"))
        update, running = neuron_state.update_call(
            neuron, arriving, v, fired, (first, last), carry=carry, lanes=lanes, numbers=numbers
        )
        calls.append(Call(update, running, "neurons"))
        if masked_out is not None:
            masked_part = index_between(masked_out, (first, last))
            calls.append(Call(maps.mask_out, (fired, masked_out, *masked_part), "neurons"))
        region.append(tuple(calls))
    return tuple(region)


def index_between(index: Array, bounds: tuple[int, int]) -> tuple[int, int]:
    """(first, last) of the entries of a rising index between two columns of the currents."""
    first, last = np.searchsorted(index, bounds)
    return int(first), int(last)


def scatter_spikes_region(spikes: Array, scatter: Array, flat: Array, *, partitions: int) -> Region:
    """Scatter spikes (T, L) of live neurons into their map (T, n)."""
    shares = (partition.of(len(scatter)) for partition in partitions_of(partitions))
    scattered = ((spikes, scatter, *share, flat) for share in shares)
    return tuple((Call(maps.scatter_spikes, each, "neurons"),) for each in scattered)


@dispatch.operation_table(network.MapLayer)
def map_region(
    layer: network.MapLayer, sources: Sequence[Array], out: Array, *, partitions: int
) -> Region:
    """A layer without synapses and neurons: (T or 1, positions, channels) each, `out` zeroed."""
    raise map_region.unknown(layer)


@map_region.on(network.PoolLayer)
def _(layer: network.PoolLayer, sources: Sequence[Array], out: Array, *, partitions: int) -> Region:
    """Max pooling of spikes or analog values."""
    (source,) = sources
    kind = source.dtype
    lowest = kind.type(-np.inf) if kind.kind == "f" else kind.type(np.iinfo(kind).min)
    windows: tuple[Any, ...] = (layer.kernel, layer.stride, layer.padding)
    kernel: Callable[..., None] = maps.max_pool
    if layer.kernel == (2, 2) and layer.padding == (0, 0):  # then every window lies inside
        kernel, windows = maps.max_of_fours, (layer.stride,)
    arguments = (source, layer.in_shape[2], *windows, layer.out_shape[2], lowest)
    shares = (partition.of(out.shape[1]) for partition in partitions_of(partitions))
    return tuple((Call(kernel, (*arguments, *share, out)),) for share in shares)


@map_region.on(network.MergeLayer)
def _(
    layer: network.MergeLayer, sources: Sequence[Array], out: Array, *, partitions: int
) -> Region:
    """Maps to one, left to right."""
    add = maps.add_currents if out.dtype.kind == "f" else maps.add_integers
    kernel = {"add": add, "and": maps.both, "iand": maps.first_without_second}[layer.function]
    start, *others = (source.reshape(len(source), -1) for source in sources)
    to, region = out.reshape(len(out), -1), []
    for partition in partitions_of(partitions):
        calls, first = [], start
        for other in others:
            calls.append(Call(kernel, (first, other, *partition.of(to.shape[1]), to)))
            first = to
        region.append(tuple(calls))
    return tuple(region)


@map_region.on(network.ScatterLayer)
def _(
    layer: network.ScatterLayer, sources: Sequence[Array], out: Array, *, partitions: int
) -> Region:
    """Channels into a map that is 0 everywhere else."""
    (source,) = sources
    index = layer_plan.aligned_copy(layer.index)
    shares = (partition.of(source.shape[1]) for partition in partitions_of(partitions))
    return tuple((Call(maps.scatter_channels, (source, index, *share, out)),) for share in shares)
