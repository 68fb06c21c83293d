"""Live neurons side by side: what is neither updated nor spikes takes no room while running.

A population without dead neurons and without generated channels runs on its map, (T, positions,
channels). So does one behind a convolution's shared rows with few dead neurons: these are updated
as well, and their spikes taken out. Any other keeps currents, membranes and spikes of its live
neurons only, packed: (T, L). Its map is filled from them where something reads the map.
"""

from dataclasses import dataclass

import numpy as np

from soul_deploy.base.brief import brief
from soul_deploy.base.dispatch import operation_table
from soul_deploy.base.files import Array
from soul_deploy.runtime.format.network import (
    CurrentLayer,
    Firing,
    Layer,
    MapLayer,
    PopulationLayer,
    Shape,
    SparseRows,
    SpikingLayer,
    Synaptic,
)


def channel_last(shape: Shape) -> tuple[int, int]:
    """(positions, channels) of a population's values."""
    return (shape[1] * shape[2], shape[0]) if len(shape) == 3 else (1, shape[0])


MAPPED_FROM = 0.4
"""Share of live neurons from which on a population behind shared rows runs on its map.

6Conv2FC, one image on one thread: 13.1 → 9.4 ms with 90 % of the neurons of the first five layers
live, 7.0 → 6.5 ms with half, no gain with a quarter."""


@brief
@dataclass(frozen=True)
class Packing:
    """Where the L live neurons of a population stand, in channel-last order.

    updated  uint32 (L,): index among the neurons of the current
    placed   uint32 (L,): index in the map, which generated channels widen
    """

    updated: Array
    placed: Array


@operation_table(Layer)
def packing_of(layer: Layer) -> Packing | None:
    """None for a population that runs on its map, and for what is no population."""
    raise packing_of.unknown(layer)


@packing_of.on(CurrentLayer, MapLayer)
def _(layer: CurrentLayer | MapLayer) -> None:
    return None


@packing_of.on(SpikingLayer)
def _(layer: SpikingLayer) -> Packing | None:
    return None if silenced_of(layer) is not None else _packed(layer)


@packing_of.on(PopulationLayer)
def _packed(layer: Firing) -> Packing | None:
    if layer.live is None and layer.pattern is None:
        return None
    (positions, wide), channels = channel_last(layer.out_shape), layer.current_shape[0]
    live = np.ones(positions * wide, np.bool_) if layer.live is None else layer.live
    position, channel = np.nonzero(live.reshape(positions, wide)[:, :channels])
    return Packing(
        (position * channels + channel).astype(np.uint32),
        (position * wide + channel).astype(np.uint32),
    )


def silenced_of(layer: Synaptic) -> Array | None:
    """uint32: where the dead neurons stand in the map of a population that runs on it with them."""
    if not (layer.stateful and layer.synapses.shared):
        return None
    if layer.live is None or layer.pattern is not None or layer.live.mean() < MAPPED_FROM:
        return None
    return np.flatnonzero(~layer.live).astype(np.uint32)


def reads_packed(layer: Synaptic, source: Layer | None) -> bool:
    """Whether the layer's rows belong to its source's live neurons alone.

    So it is for a matrix behind a packed population; behind generated channels it reads the map.
    """
    return (
        not layer.synapses.shared
        and source is not None
        and packing_of(source) is not None
        and source.pattern is None
    )


def generated_spikes(layer: Layer) -> Array:
    """uint8 (T, positions, G): the stored pattern at the live positions of generated channels."""
    assert layer.pattern is not None
    spikes = layer.pattern[:, None, :]
    positions, wide = channel_last(layer.out_shape)
    if layer.live_neurons is None:
        return np.repeat(spikes, positions, axis=1)
    live = layer.live_neurons.reshape(positions, wide)[:, -spikes.shape[2] :]
    return np.asarray(spikes * live, np.uint8)


def unpacked(layer: Layer, packing: Packing, spikes: Array) -> Array:
    """The map (T, positions, channels), uint8, of the spikes (T, L) of a whole run."""
    steps, (positions, wide) = len(spikes), channel_last(layer.out_shape)
    full: Array = np.zeros((steps, positions * wide), np.uint8)
    full[:, packing.placed] = spikes
    full = full.reshape(steps, positions, wide)
    if layer.pattern is not None:
        full[:, :, -layer.pattern.shape[1] :] = generated_spikes(layer)
    return full


def packed_rows(
    rows: SparseRows, source: Packing | None, target: Packing | None, targets: int
) -> SparseRows:
    """Rows of the live presynaptic neurons onto packed targets; the others hold nothing.

    source, target: None where that side is not packed. targets: neurons of the current.
    """
    starts, listed = rows.starts, rows.targets
    if source is not None:
        starts = np.append(starts[source.placed], starts[-1])
    if target is not None:
        renumbered = np.zeros(targets, np.uint32)
        renumbered[target.updated] = np.arange(len(target.updated), dtype=np.uint32)
        listed = renumbered[listed]
    return SparseRows(starts, listed, rows.weight)
