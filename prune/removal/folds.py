"""Channels that spike at every step, turned into their consumers' bias."""

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from soul_deploy.base import Array, dispatch
from soul_deploy.ir import Convolution, Linear, Node, Projection, no_entry
from soul_deploy.model.model import Model
from soul_deploy.nn.operations import unweighed
from soul_deploy.prune.channel_groups import ChannelGroup


@torch.no_grad()
def foldable(model: Model, name: str, channels: Array) -> Array:
    """Which of the `channels` (n,) of population `name`, if they spike at every step, are a scalar.

    bool (n,). A channel is one if a single projection reads it and each of that projection's
    windows sees it whole, so that every output position receives the same sum. Found by sending its
    map of spikes, ones where no mask is, through the poolings and counting at each position what
    arrives: padding, and masked neurons, that a window meets arrive as less than its taps.
    """
    graph, spikes = model.graph, model.neuron_masks.get(name)
    maps = torch.ones(len(channels), 1, *graph.shapes[name][1:], dtype=torch.float64)
    if spikes is not None:
        maps *= torch.from_numpy(spikes[channels].astype(np.float64)).reshape(maps.shape)
    node = graph[name]
    while len(channels) and len(graph.consumers[node.name]) == 1:
        node = graph[graph.consumers[node.name][0]]
        if node.projects:
            return meets_ones(node, maps)
        if node.fires or not node.keeps_channels or node.arity != 1:
            break
        maps = unweighed(node, maps)
    return np.zeros(len(channels), bool)


@dispatch.operation_table(Projection)
def meets_ones(node: Node, maps: Tensor) -> Array:
    """bool (n,): whether each window of `node` holds ones only; maps (n, 1, H, W) or (n, inputs).

    No value is above 1, so a window's sum is its number of taps only if all of them are 1.
    """
    raise no_entry(node, "folding of constant channels")


@meets_ones.on(Convolution)
def _convolution(node: Convolution, maps: Tensor) -> Array:
    kernel = maps.new_ones(1, 1, *node.kernel)
    sums = F.conv2d(maps, kernel, None, node.stride, node.padding, node.dilation)
    return np.asarray((sums == kernel.numel()).flatten(1).all(1))


@meets_ones.on(Linear)
def _linear(node: Linear, maps: Tensor) -> Array:
    return np.asarray((maps == 1).flatten(1).all(1))


def added_bias(model: Model, group: ChannelGroup, channel: int) -> Iterator[tuple[str, Array]]:
    """(projection, what the channel adds to its output (out,) float64) for each that reads it."""
    for _, reader in group.readers:
        weight = model.state[f"{reader}.weight"].astype(np.float64)
        by_channel = weight.reshape(len(weight), group.channels, -1)
        yield reader, by_channel[:, channel].sum(axis=1)
