"""One layer by itself, on given values of its sources: what verification feeds layer by layer."""

import numpy as np

from soul_deploy.base.files import Array
from soul_deploy.runtime.format.network import (
    CurrentLayer,
    Firing,
    Layer,
    Neurons,
    PopulationLayer,
    SpikingLayer,
    Synaptic,
)
from soul_deploy.runtime.format.validate import EdgeKind
from soul_deploy.runtime.plan.buffers import map_stage, picked_of
from soul_deploy.runtime.plan.layer_plan import Prepared, aligned
from soul_deploy.runtime.plan.layout import Packing, channel_last, packing_of, unpacked
from soul_deploy.runtime.plan.partition import Stage, run_calls
from soul_deploy.runtime.plan.stages import current_room, current_stage, neuron_stage, spiking_stage


def run_one(
    layer: Layer, prepared: Prepared | None, values: list[Array], steps: int, kind: EdgeKind
) -> Array:
    """The layer's map for every sample, (B, steps or 1, positions, channels), from rest.

    prepared: of a layer with synapses. values: per source (B, steps or 1, positions, channels).
    kind: of what the layer gives; analog values have one step if all sources have.
    """
    if isinstance(layer, Synaptic):
        assert prepared is not None
        if prepared.source is not None:
            values = [v.reshape(*v.shape[:2], -1)[..., prepared.source.placed] for v in values]
    sources = [aligned(v.shape[1:], v.dtype) for v in values]
    length = steps if isinstance(layer, Firing) else max(map(len, sources))
    packing = packing_of(layer)
    room = channel_last(layer.out_shape)
    if packing is not None:
        assert isinstance(layer, Neurons)
        room = (layer.neurons,)  # type: ignore[assignment]
    out = aligned((length, *room), np.float32 if kind == "analog" else np.uint8)
    out[...] = 0
    stage = _stage(layer, prepared, sources, packing, out)
    found = np.empty((len(values[0]), length, *channel_last(layer.out_shape)), out.dtype)
    for b in range(len(found)):
        for source, given in zip(sources, values, strict=True):
            source[...] = given[b]
        run_calls(stage[0])
        if packing is None:
            found[b] = out
        else:
            assert isinstance(layer, Firing)
            found[b] = unpacked(layer, packing, out)
    return found


def _stage(
    layer: Layer,
    prepared: Prepared | None,
    sources: list[Array],
    packing: Packing | None,
    out: Array,
) -> Stage:
    if isinstance(layer, PopulationLayer):
        v = aligned((layer.neurons,), np.float32)
        current = sources[0].reshape(len(sources[0]), -1)
        picked, bounds = picked_of(layer, packing), [(0, current.shape[1])]
        neuron = layer.neuron
        return neuron_stage(neuron, current, picked, v, out, carry=False, lanes=0, bounds=bounds)
    if isinstance(layer, SpikingLayer):
        assert prepared is not None
        v = aligned((prepared.neurons,), np.float32)
        current = aligned(current_room(layer, prepared, len(sources[0])), np.float32)
        return spiking_stage(
            layer, prepared, sources[0], current, v, out,
            neuron=layer.neuron, carry=False, parts=1,
        )  # fmt: skip
    if isinstance(layer, CurrentLayer):
        assert prepared is not None
        flat = out.reshape(len(out), -1)
        return current_stage(layer, prepared, sources[0], flat, lanes=0, parts=1)
    return map_stage(layer, sources, out, parts=1)
