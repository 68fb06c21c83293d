"""One layer by itself, on given values of its sources: what verification feeds layer by layer."""

import numpy as np

from soul_deploy.base.dispatch import operation_table
from soul_deploy.base.files import Array
from soul_deploy.runtime.format.network import (
    CurrentLayer,
    Layer,
    MapLayer,
    PopulationLayer,
    SpikingLayer,
)
from soul_deploy.runtime.format.validate import EdgeKind
from soul_deploy.runtime.plan.buffers import picked_of
from soul_deploy.runtime.plan.layer_plan import Prepared, aligned
from soul_deploy.runtime.plan.layout import channel_last, packing_of, unpacked
from soul_deploy.runtime.plan.partition import Stage, run_calls
from soul_deploy.runtime.plan.stages import (
    current_room,
    current_stage,
    map_stage,
    neuron_stage,
    spiking_stage,
)


def run_one(
    layer: Layer, prepared: Prepared | None, values: list[Array], steps: int, kind: EdgeKind
) -> Array:
    """The layer's map for every sample, (B, steps or 1, positions, channels), from rest.

    prepared: of a layer with synapses. values: per source (B, steps or 1, positions, channels).
    kind: of what the layer gives; analog values have one step if all sources have.
    """
    if prepared is not None and prepared.source is not None:
        values = [v.reshape(*v.shape[:2], -1)[..., prepared.source.placed] for v in values]
    sources = [aligned(v.shape[1:], v.dtype) for v in values]
    length = steps if layer.stateful else max(map(len, sources))
    packing = packing_of(layer)
    room = channel_last(layer.out_shape) if packing is None else (len(packing.updated),)
    out = aligned((length, *room), np.float32 if kind == "analog" else np.uint8)
    out[...] = 0
    stage = stage_of(layer, prepared, sources, out)
    found = np.empty((len(values[0]), length, *channel_last(layer.out_shape)), out.dtype)
    for b in range(len(found)):
        for source, given in zip(sources, values, strict=True):
            source[...] = given[b]
        run_calls(stage[0])
        found[b] = out if packing is None else unpacked(layer, packing, out)
    return found


@operation_table(Layer)
def stage_of(layer: Layer, prepared: Prepared | None, sources: list[Array], out: Array) -> Stage:
    """The calls that compute `out` of the sources. prepared: of a layer with synapses."""
    raise stage_of.unknown(layer)


@stage_of.on(PopulationLayer)
def _(layer: PopulationLayer, prepared: None, sources: list[Array], out: Array) -> Stage:
    v = aligned((layer.neurons,), np.float32)
    current = sources[0].reshape(len(sources[0]), -1)
    picked, bounds = picked_of(layer, packing_of(layer)), [(0, current.shape[1])]
    neuron = layer.neuron
    return neuron_stage(neuron, current, picked, v, out, carry=False, lanes=0, bounds=bounds)


@stage_of.on(SpikingLayer)
def _(layer: SpikingLayer, prepared: Prepared, sources: list[Array], out: Array) -> Stage:
    v = aligned((prepared.neurons,), np.float32)
    current = aligned(current_room(layer, prepared, len(sources[0])), np.float32)
    return spiking_stage(
        layer, prepared, sources[0], current, v, out, neuron=layer.neuron, carry=False, parts=1
    )


@stage_of.on(CurrentLayer)
def _(layer: CurrentLayer, prepared: Prepared, sources: list[Array], out: Array) -> Stage:
    flat = out.reshape(len(out), -1)
    return current_stage(layer, prepared, sources[0], flat, lanes=0, parts=1)


@stage_of.on(MapLayer)
def _(layer: MapLayer, prepared: None, sources: list[Array], out: Array) -> Stage:
    return map_stage(layer, sources, out, parts=1)
