"""What a masked or zeroed model's synapses connect, channel by channel; masks by projection."""

from collections.abc import Mapping
from functools import cached_property

import numpy as np

from soul_deploy.base import Array
from soul_deploy.ir import Projection, SpikingGraph
from soul_deploy.model.model import Model
from soul_deploy.prune.removal.fed_back import FedBack


class Connections:
    """Which input channels each row of a projection (or of the head) has a nonzero weight for."""

    def __init__(self, model: Model, channels: Mapping[str, int]) -> None:
        """channels: reader -> how many channels it reads."""
        self.model = model
        self._channels = channels
        self._used: dict[str, Array] = {}

    def used(self, reader: str) -> Array:
        """(out, in) bool."""
        if reader not in self._used:
            groups = self.model.graph[reader].groups
            weight = self.model.state[f"{reader}.weight"]
            self._used[reader] = columns_used(weight, self._channels[reader], groups)
        return self._used[reader]

    def fed_back(self, population: str) -> FedBack:
        """What a population's feedback connects; masked rows take nothing."""
        graph, state = self.model.graph, self.model.state
        back, channels = graph.feedbacks[population], graph.shapes[population][0]
        fed, bias = np.eye(channels, dtype=bool), np.zeros(channels, np.float32)
        if isinstance(back, Projection):
            fed = columns_used(state[f"{back.name}.weight"], channels, back.groups)
            bias = state[f"{back.name}.bias"] if back.bias else bias
        on = self.masks.get(graph.masked_projection(population))
        return FedBack(fed, bias) if on is None else FedBack(fed & on[:, None], bias * on)

    @cached_property
    def masks(self) -> dict[str, Array]:
        """Projection -> its channel mask, bool (C,)."""
        graph, masks = self.model.graph, self.model.channel_masks
        return {graph.masked_projection(name): keep for name, keep in masks.items()}

    @cached_property
    def off(self) -> dict[str, Array]:
        """Population -> bool (C,): channels of which every spike is masked."""
        return {
            name: np.asarray(~keep.reshape(len(keep), -1).any(axis=1))
            for name, keep in self.model.neuron_masks.items()
        }

    def rows(self, projection: Projection) -> Array:
        """bool (C,): rows whose current is not masked, and not read by masked neurons only."""
        on: Array = np.ones(projection.out_channels, bool)
        if projection.name in self.masks:
            on = on & self.masks[projection.name]
        fed = self.model.graph.population_fed_by(projection.name)
        if fed is not None and fed in self.off:
            on = on & ~self.off[fed][: len(on)]
        return on


def columns_used(weight: Array, channels: int, groups: int = 1) -> Array:
    """(out, channels) bool: whether any weight from an input channel is not 0."""
    if groups == 1 and not (weight == 0).any():  # by far the quickest to find out
        return np.ones((len(weight), channels), bool)
    inner = channels // groups
    used: Array = np.asarray((weight.reshape(len(weight), inner, -1) != 0).any(axis=2))
    if groups == 1:
        return used
    wide: Array = np.zeros((groups, len(weight) // groups, groups, inner), bool)
    for g, block in enumerate(used.reshape(groups, -1, inner)):
        wide[g, :, g] = block
    return wide.reshape(len(weight), channels)


def source_member(graph: SpikingGraph, name: str) -> str | None:
    """The population or projection whose channels a node reads, through pools and merges.

    None for the network's input, and for a stream that starts at a scatter.
    """
    node = graph[graph[name].inputs[0]]
    while not (node.fires or node.projects):
        if not node.inputs or node.scatters:
            return None
        node = graph[node.inputs[0]]
    return node.name


def with_bias(
    state: Mapping[str, Array], projection: Projection, added: Array | None
) -> Mapping[str, Array]:
    """A state in which `added` (out,) is added to a projection's output, before batch norm."""
    if added is None:
        return state
    changed = dict(state)
    if projection.norm is not None and not projection.bias:
        name, sign = f"{projection.norm.name}.running_mean", -1.0
    else:
        name, sign = f"{projection.name}.bias", 1.0
    before = state[name].astype(np.float64) if name in state else 0.0
    changed[name] = (before + sign * added).astype(np.float32)
    return changed
