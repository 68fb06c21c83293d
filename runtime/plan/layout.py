"""The dense and the compacted layout of a population's currents, membranes and spikes.

Dense: the map itself, (T, positions, channels). Compacted: the L live neurons side by side, (T, L);
the spikes are scattered into a map if a layer reads the map.

- A population without dead neurons and without constant-pattern channels is dense.
- A population behind a convolution with shared rows, of which few neurons are dead, is dense: its
  dead neurons are updated as well, and their spikes are masked out.
- Every other population is compacted.
"""

from dataclasses import dataclass

import numpy as np

from soul_deploy.base import Array, brief, dispatch
from soul_deploy.runtime.format import network


def channel_last(shape: network.Shape) -> tuple[int, int]:
    """(positions, channels) of a population's values."""
    return (shape[1] * shape[2], shape[0]) if len(shape) == 3 else (1, shape[0])


DENSE_FROM = 0.4
"""Share of live neurons from which on a population behind shared rows is dense.

6Conv2FC, one image on one thread: 13.1 → 9.4 ms with 90 % of the neurons of the first five layers
live, 7.0 → 6.5 ms with half, no gain with a quarter."""


@brief
@dataclass(frozen=True)
class CompactLayout:
    """The L live neurons of a compacted population, in channel-last order.

    gather_index   uint32 (L,): index among the neurons of the current
    scatter_index  uint32 (L,): index in the map, which also holds constant-pattern channels
    """

    gather_index: Array
    scatter_index: Array


@dispatch.operation_table(network.Layer)
def layout_of(layer: network.Layer) -> CompactLayout | None:
    """The layout of a compacted population; None for a dense one and for other layers."""
    raise layout_of.unknown(layer)


layout_of.on(network.CurrentLayer, network.MapLayer, network.RecurrentLayer)(lambda layer: None)


@layout_of.on(network.PopulationLayer)
def _packed(layer: network.Firing) -> CompactLayout | None:
    if layer.live is None and layer.pattern is None:
        return None
    (positions, wide), channels = channel_last(layer.out_shape), layer.current_shape[0]
    live = np.ones(positions * wide, np.bool_) if layer.live is None else layer.live
    position, channel = np.nonzero(live.reshape(positions, wide)[:, :channels])
    return CompactLayout(
        (position * channels + channel).astype(np.uint32),
        (position * wide + channel).astype(np.uint32),
    )


layout_of.on(network.SpikingLayer)(
    lambda layer: None if masked_out_index(layer) is not None else _packed(layer)
)


def masked_out_index(layer: network.Synaptic) -> Array | None:
    """uint32: index of the dead neurons in the map of a dense population that has dead neurons."""
    if not (layer.stateful and layer.synapses.shared):
        return None
    if layer.live is None or layer.pattern is not None or layer.live.mean() < DENSE_FROM:
        return None
    return np.flatnonzero(~layer.live).astype(np.uint32)


def pattern_spikes(layer: network.Layer) -> Array:
    """uint8 (T, positions, G): the stored pattern at the live positions of its channels."""
    assert layer.pattern is not None
    spikes = layer.pattern[:, None, :]
    positions, wide = channel_last(layer.out_shape)
    if layer.live_neurons is None:
        return np.repeat(spikes, positions, axis=1)
    live = layer.live_neurons.reshape(positions, wide)[:, -spikes.shape[2] :]
    return np.asarray(spikes * live, np.uint8)


def dense_map(layer: network.Layer, layout: CompactLayout, spikes: Array) -> Array:
    """The map (T, positions, channels) of the spikes (T, L) of a whole run."""
    steps, (positions, wide) = len(spikes), channel_last(layer.out_shape)
    full: Array = np.zeros((steps, positions * wide), spikes.dtype)
    full[:, layout.scatter_index] = spikes
    full = full.reshape(steps, positions, wide)
    if layer.pattern is not None:
        full[:, :, -layer.pattern.shape[1] :] = pattern_spikes(layer)
    return full


def compact_rows(
    rows: network.SparseRows,
    source: CompactLayout | None,
    target: CompactLayout | None,
    targets: int,
) -> network.SparseRows:
    """Rows of the live presynaptic neurons, with targets numbered in the compacted layout.

    source, target: None if that side is dense. targets: neurons of the current.
    """
    starts, listed = rows.starts, rows.targets
    if source is not None:
        starts = np.append(starts[source.scatter_index], starts[-1])
    if target is not None:
        renumbered = np.zeros(targets, np.uint32)
        renumbered[target.gather_index] = np.arange(len(target.gather_index), dtype=np.uint32)
        listed = renumbered[listed]
    return network.SparseRows(starts, listed, rows.weight)
