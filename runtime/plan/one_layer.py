"""A layer of an event network by itself, on given values of its sources."""

from collections.abc import Mapping

import numpy as np

from soul_deploy.base import Array
from soul_deploy.runtime.format import network as net
from soul_deploy.runtime.plan import regions
from soul_deploy.runtime.plan.buffers import Builder, bind
from soul_deploy.runtime.plan.layer_plan import EMPTY, LayerPlan, aligned


def run_layer(
    network: net.EventNetwork, plans: Mapping[str, LayerPlan], layer: net.Layer,
    values: list[Array], sent: Array | None = None,
) -> Array:  # fmt: skip
    """One layer by itself: its map for every sample, (B, T or 1, positions, channels), from rest.

    plans: of the network's layers with synapses. values: per source (B, T or 1, positions,
    channels). Analog values have one step if all sources have. sent (B, T, positions, channels):
    what its feedback is given as its own spikes; None: these.
    """
    taught = None if sent is None else aligned(sent.shape[1:], sent.dtype)
    builder = Builder(network, plans, network.time_steps, False, 1, EMPTY, taught)
    builder.read = {layer.name}
    samples, sources = dict(zip(layer.sources, values, strict=True)), builder.made.values
    plan = plans.get(layer.name)
    if plan is not None and plan.source_layout is not None:
        index, sources = plan.source_layout.scatter_index, builder.made.compacted
        samples = {name: v.reshape(*v.shape[:2], -1)[..., index] for name, v in samples.items()}
    for name, v in samples.items():
        sources[name] = aligned(v.shape[1:], v.dtype)
    bind(layer, builder)
    out = builder.made.values[layer.name]
    maps = np.empty((len(values[0]), *out.shape), out.dtype)
    for b, row in enumerate(maps):
        for name, v in samples.items():
            sources[name][...] = v[b]
        if taught is not None and sent is not None:
            taught[...] = sent[b]
        for region in builder.made.regions:
            regions.run_calls(region[0])
        row[...] = out
    return maps
