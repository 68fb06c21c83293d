"""Keeping to a target while the weights still move: masks are corrected after each frozen epoch."""

from collections.abc import Mapping
from typing import TypeVar

import numpy as np

from soul_deploy import distributed
from soul_deploy.base import Array
from soul_deploy.nn.graph_module import GraphModule
from soul_deploy.prune.structured.measurement import Measurement
from soul_deploy.prune.structured.selection import ChannelPlan, Flags, LayerChannels, Values
from soul_deploy.prune.target import Spent
from soul_deploy.training.state import Tree, number_of, tree_of
from soul_deploy.training.trainer import BatchHooks, Training

ValuesOrFlags = TypeVar("ValuesOrFlags", Values, Flags)


class TargetCorrection:
    """Opens and closes channels of a narrowed network, as its measured cost asks for.

    whole: the measurement of the whole network, whose `cost` follows.
    """

    def __init__(self, whole: Measurement) -> None:
        self._whole = self._now = whole
        self._channels: Mapping[str, Array] = {}

    def begin(self, module: GraphModule, channels: Mapping[str, Array]) -> BatchHooks:
        """What measures during the epochs. channels: mask -> which of the whole network's."""
        self._now, self._channels = self._whole.narrowed(module, channels), channels
        return self._now.statistics

    def after_epoch(self, training: Training) -> ChannelPlan | None:
        """The plan, in the whole network's channels, if masks had to be changed."""
        plan = self._now.settle(training.optimizer)
        self._whole.cost = self._now.cost
        distributed.assert_ranks_agree("after the corrected masks", training.module, [plan is None])
        if plan is None:
            return None
        self._now.statistics.reset()
        return self._widened(plan)

    def worth(self, accuracy: float) -> float:
        """The accuracy of a network within tolerance; of others a negative number, which is the
        lower the further its cost is from the target.
        """
        target, dense = self._whole.sca.target, self._whole.dense.values
        assert target is not None
        spent = Spent(target, dense[target.quantity], self._whole.cost)
        distance = abs(spent.cost - spent.wanted) / spent.wanted
        return accuracy if spent.reached else -distance / (1 + distance)

    def state(self) -> Tree:
        """What was measured, and the cost."""
        parts = {name: part.state() for name, part in self._now.parts.items()}
        return {"measured": parts, "cost": self._whole.cost}

    def restore(self, tree: Tree) -> None:
        held = tree_of(tree, "measured")
        for name, part in self._now.parts.items():
            part.restore(tree_of(held, name))
        self._whole.cost = self._now.cost = number_of(tree, "cost")

    def _widened(self, plan: ChannelPlan) -> ChannelPlan:
        """`plan` with the channels that were removed, closed."""
        widths = {unit.name: unit.channels for unit in self._whole.units}
        index = {unit.name: self._channels[unit.masks[0]] for unit in self._whole.units}

        def spread(name: str, values: ValuesOrFlags) -> ValuesOrFlags:
            whole = np.zeros(widths[name], values.dtype)
            whole[index[name]] = values
            return whole

        layers = []
        for layer in plan.layers:
            name = layer.name
            flags = spread(name, layer.keep), spread(name, layer.regrown)
            values = spread(name, layer.score), spread(name, layer.gradient)
            layers.append(LayerChannels(name, *flags, *values))
        return ChannelPlan(tuple(layers))
