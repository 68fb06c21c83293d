"""The epochs after the last mask update: trained on the network without its masked channels.

A masked channel gives no current, so its neurons never fire (every neuron rests below its
threshold), nothing learns from it, and the other channels compute the same without it. Only masks
are trusted here: what is constant for other reasons may no longer be once weights move on. Its
weights wait in the whole network, into which the trained ones are written back at the end.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from soul_deploy.base import Array, brief, errors
from soul_deploy.model.model import Model, ModelInfo, Validity, from_module
from soul_deploy.nn.graph_module import GraphModule
from soul_deploy.prune.channel_groups import Residual
from soul_deploy.prune.removal import apply, planner
from soul_deploy.prune.removal.plan import RemovalPlan
from soul_deploy.prune.structured.selection import ChannelPlan, Flags
from soul_deploy.training import messages, trainer
from soul_deploy.training import state as saved
from soul_deploy.training.train import module_of
from soul_deploy.training.trainer import EpochResult, Training

Reserve = Mapping[str, Flags]
"""Mask -> bool (C,): channels that stay in the module although they are masked."""


class Correction(saved.Restorable, Protocol):
    """What changes masks after each frozen epoch, among the channels that stay in the module."""

    def begin(self, module: GraphModule, channels: Mapping[str, Array]) -> trainer.BatchHooks:
        """What measures during the epochs; masks that it needs in `module` are opened here.

        channels: mask -> which channels of the whole network those of the module are.
        """
        ...

    def after_epoch(self, training: Training) -> ChannelPlan | None:
        """Change masks of the module; the plan, or None where they stay."""
        ...

    def worth(self, accuracy: float) -> float:
        """By what epochs are compared, above -1: the accuracy, where the masks are as they should
        be.
        """
        ...


@brief
@dataclass(frozen=True)
class Narrowed:
    """A network without the channels that its masks close for good.

    places    tensor -> flat indices of its values in the whole network's tensor
    channels  mask -> which channels of the whole network are left, ascending
    """

    model: Model
    places: Mapping[str, Array]
    channels: Mapping[str, Array]

    @torch.no_grad()
    def write_back(self, module: GraphModule, whole: GraphModule) -> None:
        """The weights and masks of `module`, made of `model`, into the network that it was."""
        state, tensors = module.state_dict(), whole.state_dict()
        for name, index in self.places.items():
            place = torch.from_numpy(index.reshape(-1)).to(state[name].device)
            tensors[name].view(-1)[place] = state[name].reshape(-1)
        for name, mask in module.channel_masks.items():
            place = torch.from_numpy(self.channels[name]).to(mask.keep.device)
            whole.channel_masks[name].keep[place] = mask.keep


def narrowed(whole: GraphModule, residual: Residual, reserve: Reserve) -> Narrowed:
    """Remove what is masked and not in `reserve`.

    Where that cannot be done a warning says why, and nothing is removed.
    """
    gates = {name: gate().cpu().numpy() > 0 for name, gate in whole.neuron_gates.items()}
    model = replace(from_module(whole, ModelInfo()), neuron_masks=gates)
    masks = model.channel_masks
    stays = {name: keep | reserve.get(name, False) for name, keep in masks.items()}
    try:
        asked = replace(model, channel_masks=stays)
        plan = planner.plan_removal(asked, residual=residual, trained_on=True)
        compact = apply.remove(model, plan)
    except (errors.RemovalError, errors.LimitError) as error:
        messages.warn(f"the epochs with frozen masks run at full width: {error}")
        plan, compact = RemovalPlan((), Validity()), model
    found = {}
    for name, keep in masks.items():
        layer = plan.layer(name)
        cut = layer is not None and layer.tied is None
        found[name] = np.array(layer.kept if layer and cut else range(len(keep)), np.int64)
    return Narrowed(compact, apply.places(model.graph, model.state, plan), found)


class FrozenEpochs:
    """What is left of a training, on a compact module; ends with the whole one written back.

    whole: a training that has come to its last mask update; it is not trained on. correction: what
    still changes masks, and `reserve` what it can open again. Its `state` holds the whole network
    too, so that it can be restored into a training that is only set up.
    """

    def __init__(
        self,
        whole: Training,
        residual: Residual,
        *,
        reserve: Reserve | None = None,
        correction: Correction | None = None,
        after_step: Callable[[], None] | None = None,
    ) -> None:
        self._whole, self._residual = whole, residual
        self._reserve: Reserve = reserve or {}
        self._correction, self._after_step = correction, after_step
        self._narrow()

    def _narrow(self) -> None:
        whole = self._whole
        self._made = made = narrowed(whole.module, self._residual, self._reserve)
        self.module = module_of(made.model, trainer.device_of(whole.module))
        correction = self._correction
        self.training = Training(
            *(self.module, whole.data, whole.config),
            hooks=None if correction is None else correction.begin(self.module, made.channels),
            tick=whole.tick,
            after_step=self._after_step,
        )
        self._best = _Best(self.module)

    def begin(self) -> None:
        """Go on where the whole network's training is; its state is the first candidate."""
        _carry_over(self._whole, self.training, self._made.places)
        self._best.offer(self._worth(self._accuracy()))

    def run(self) -> Iterator[tuple[EpochResult, ChannelPlan | None]]:
        """Go on, yielding after each epoch its result and the change of masks after it.

        It ends with the best epoch by validation accuracy, under the masks that follow it.
        """
        for result in self.training.run():
            correction = self._correction
            plan = None if correction is None else correction.after_epoch(self.training)
            reached = result.validation_accuracy if plan is None else self._accuracy()
            self._best.offer(self._worth(reached))
            yield result, plan
        self._best.take()
        self._made.write_back(self.module, self._whole.module)

    def _worth(self, accuracy: float) -> float:
        return accuracy if self._correction is None else self._correction.worth(accuracy)

    def _accuracy(self) -> float:
        return trainer.accuracy(self.module, self.training.data, self.training.data.validation)

    def state(self) -> saved.Tree:
        """The whole network at removal, what stayed of it, and the training on the rest."""
        return {
            "whole": trainer.module_state(self._whole.module),
            "reserve": dict(self._reserve),
            "best": self._best.state(),
            "training": self.training.state(),
            "correction": {} if self._correction is None else self._correction.state(),
        }

    def restore(self, tree: saved.Tree) -> None:
        masks = self._whole.module.channel_masks
        trainer.restore_module(self._whole.module, saved.tree_of(tree, "whole"))
        self._reserve = _reserve(saved.tree_of(tree, "reserve"), masks)
        self._narrow()
        self._best.restore(saved.tree_of(tree, "best"))
        self.training.restore(saved.tree_of(tree, "training"))
        if self._correction is not None:
            self._correction.restore(saved.tree_of(tree, "correction"))


class _Best:
    """The module's weights and masks at its highest worth, the first of equals."""

    def __init__(self, module: GraphModule) -> None:
        self._module = module
        self._accuracy = -1.0
        self._kept: saved.Tree = {}

    def offer(self, accuracy: float) -> None:
        if accuracy > self._accuracy:
            self._keep(accuracy)

    def _keep(self, accuracy: float) -> None:
        arrays, facts = saved.split_tree(trainer.module_state(self._module))
        self._accuracy = accuracy
        self._kept = saved.join_tree({name: array.copy() for name, array in arrays.items()}, facts)

    def take(self) -> None:
        trainer.restore_module(self._module, self._kept)

    def state(self) -> saved.Tree:
        return {"accuracy": self._accuracy, "module": self._kept}

    def restore(self, tree: saved.Tree) -> None:
        """The module goes through what is kept, which is checked so."""
        trainer.restore_module(self._module, saved.tree_of(tree, "module"))
        self._keep(saved.number_of(tree, "accuracy"))


def _carry_over(old: Training, new: Training, places: Mapping[str, Array]) -> None:
    """Moments of what stays, learning rates, schedule and epoch, from `old` to `new`."""
    state = old.optimizer.state_dict()
    parameters = list(old.module.named_parameters())

    def cut(number: int, value: Any) -> Any:
        name, parameter = parameters[number]
        if not isinstance(value, Tensor):
            return value
        if value.shape != parameter.shape:
            return value.clone()
        return value.reshape(-1)[torch.from_numpy(places[name]).to(value.device)]

    state["state"] = {
        number: {name: cut(number, value) for name, value in moments.items()}
        for number, moments in state["state"].items()
    }
    new.optimizer.load_state_dict(state)
    new.scheduler.load_state_dict(old.scheduler.state_dict())
    new.progress.restore(old.progress.state())


def _reserve(tree: saved.Tree, masks: Mapping[str, Any]) -> Reserve:
    """Flags of masks as a checkpoint holds them. Raises FileFormatError for others."""
    found = {name: np.array(saved.array_of(tree, name)) for name in tree}
    for name, flags in found.items():
        fits = name in masks and flags.shape == tuple(masks[name].keep.shape)
        errors.require(fits and flags.dtype == np.bool_, f"reserve: {name} does not fit its mask")
    return found
