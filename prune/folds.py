"""Channels that spike at every step, turned into their consumers' bias."""

from collections.abc import Iterator

import numpy as np

from soul_deploy.graph import AvgPool, Convolution, Linear, MaxPool, Population, Projection, Readout
from soul_deploy.modelfile import Model
from soul_deploy.prune.groups import ChannelGroup
from soul_deploy.runtime.files import Array


def foldable(model: Model, name: str, channel: int) -> bool:
    """Whether a channel that spikes at every step is a scalar in its one consumer's bias.

    Not with a masked position, and not where zero padding cuts windows off.
    """
    spikes = model.neuron_masks.get(name)
    if spikes is not None and not spikes[channel].all():
        return False
    graph = model.graph
    node = graph[name]
    while True:
        users = graph.consumers[node.name]
        if len(users) != 1:
            return False
        node = graph[users[0]]
        if isinstance(node, MaxPool | AvgPool):
            if node.padding != (0, 0):
                return False
        elif isinstance(node, Convolution):
            return node.padding == (0, 0) or node.kernel == (1, 1)
        elif isinstance(node, Projection | Readout | Population):
            return isinstance(node, Linear)


def added_bias(model: Model, group: ChannelGroup, channel: int) -> Iterator[tuple[str, Array]]:
    """(projection, what the channel adds to its output (out,) float64) for each that reads it."""
    for _, reader in group.readers:
        weight = model.state[f"{reader}.weight"].astype(np.float64)
        by_channel = weight.reshape(len(weight), group.channels, -1)
        yield reader, by_channel[:, channel].sum(axis=1)
