"""One layer by itself, on given values of its sources: what verification feeds layer by layer."""

from collections.abc import Mapping

import numpy as np

from soul_deploy.base import Array
from soul_deploy.runtime.format.network import EventNetwork, Layer
from soul_deploy.runtime.plan import buffers, layer_plan, partition


def run_one(
    network: EventNetwork,
    plan: Mapping[str, layer_plan.LayerPlan],
    layer: Layer,
    values: list[Array],
) -> Array:
    """The layer's map for every sample, (B, T or 1, positions, channels), from rest.

    plan: of the network's layers with synapses. values: per source (B, T or 1, positions,
    channels). Analog values have one step if all sources have.
    """
    builder = buffers.Builder(network, plan, network.time_steps, False, 1, layer_plan.EMPTY)
    builder.read = {layer.name}
    samples, sources = dict(zip(layer.sources, values, strict=True)), builder.maps
    ready = plan.get(layer.name)
    if ready is not None and ready.source_layout is not None:
        index, sources = ready.source_layout.scatter_index, builder.compacted
        samples = {name: v.reshape(*v.shape[:2], -1)[..., index] for name, v in samples.items()}
    for name, v in samples.items():
        sources[name] = layer_plan.aligned(v.shape[1:], v.dtype)
    buffers.bind(layer, builder)
    out = builder.maps[layer.name]
    maps = np.empty((len(values[0]), *out.shape), out.dtype)
    for b, row in enumerate(maps):
        for name, v in samples.items():
            sources[name][...] = v[b]
        for region in builder.regions:
            partition.run_calls(region[0])
        row[...] = out
    return maps
