"""One layer by itself, on given values of its sources: what verification feeds layer by layer."""

from collections.abc import Mapping

import numpy as np

from soul_deploy.base.files import Array
from soul_deploy.runtime.format.network import EventNetwork, Layer
from soul_deploy.runtime.plan.buffers import Builder, bind
from soul_deploy.runtime.plan.layer_plan import NOTHING, Prepared, aligned
from soul_deploy.runtime.plan.partition import run_calls


def run_one(
    network: EventNetwork, prepared: Mapping[str, Prepared], layer: Layer, values: list[Array]
) -> Array:
    """The layer's map for every sample, (B, T or 1, positions, channels), from rest.

    prepared: of the network's layers with synapses. values: per source (B, T or 1, positions,
    channels). Analog values have one step if all sources have.
    """
    builder = Builder(network, prepared, network.time_steps, False, 1, NOTHING)
    builder.read = {layer.name}
    given, sources = dict(zip(layer.sources, values, strict=True)), builder.maps
    ready = prepared.get(layer.name)
    if ready is not None and ready.source is not None:
        placed, sources = ready.source.placed, builder.packed
        given = {name: v.reshape(*v.shape[:2], -1)[..., placed] for name, v in given.items()}
    for name, v in given.items():
        sources[name] = aligned(v.shape[1:], v.dtype)
    bind(layer, builder)
    out = builder.maps[layer.name]
    found = np.empty((len(values[0]), *out.shape), out.dtype)
    for b, row in enumerate(found):
        for name, v in given.items():
            sources[name][...] = v[b]
        for stage in builder.stages:
            run_calls(stage[0])
        row[...] = out
    return found
