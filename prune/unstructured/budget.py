"""What a network under masks spends of what a target limits: measured exactly, and estimated.

The estimate steers lambda while masks are trained. It is of what the hard masks would leave, so
that it does not wait for the temperature; a layer that they leave nothing of for a moment does not
make it 0.
"""

from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from soul_deploy.base.errors import UsageError, require
from soul_deploy.data import datasets
from soul_deploy.lowering import deploy
from soul_deploy.model.model import Model, ModelInfo, from_module
from soul_deploy.nn.graph_module import GraphModule
from soul_deploy.prune.delivered import Sums, delivered, node_of, sources, synops_sum
from soul_deploy.prune.removal import apply
from soul_deploy.prune.target import UNITS, Quantity, Spent, Target, within
from soul_deploy.prune.unstructured.connectivity_meter import ConnectivityMeter
from soul_deploy.prune.unstructured.masks import Masks
from soul_deploy.training.state import Tree, array_of, number_of, tree_of

WIDEST = 2.0
"""The factor by which an estimate of the synapses may be off and is still corrected."""
SAMPLE = 256
"""Validation samples on which SynOps are measured while a threshold is searched for."""


@dataclass(frozen=True)
class Subject:
    """A module, its masks and what measures them; model: the network under its hard masks."""

    module: GraphModule
    data: datasets.Data
    masks: Masks
    meter: ConnectivityMeter
    model: Callable[[], Model]


class Spending(Protocol):
    """A quantity of a network, under its hard masks or, `dense`, without masks."""

    dense: float

    @property
    def known(self) -> bool:
        """Whether there is anything to estimate from; a network that never fires gives nothing."""
        ...

    def exact(self) -> float:
        """Leaves the hard masks attached."""
        ...

    def sampled(self) -> float:
        """As `exact`, but perhaps on fewer samples."""
        ...

    def estimate(self) -> float:
        """Without running the network."""
        ...

    def look(self) -> None:
        """Learn what the estimate needs to know of the network as it runs now."""
        ...

    def state(self) -> Tree: ...

    def restore(self, tree: Tree) -> None: ...


class _Static:
    """A quantity that no spike changes."""

    known = True

    def __init__(self, subject: Subject) -> None:
        self.subject = subject

    def exact(self) -> float:
        raise NotImplementedError

    def sampled(self) -> float:
        return self.exact()

    def look(self) -> None:
        """Nothing is to be learnt."""

    def state(self) -> Tree:
        return {}

    def restore(self, tree: Tree) -> None:
        """There is nothing to restore."""


class _Connectivity(_Static):
    """Live synapses.

    The estimate knows no borders, no single neurons and no dead ends, by which it can be 10 % off
    for good; lambda would be steered to another budget. So it is corrected by what it was off by
    when it was looked at.
    """

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        self.dense = float(sum(subject.meter.dense.values()))
        self._correction = 1.0

    def exact(self) -> float:
        return float(self.subject.meter.exact().live)

    def estimate(self) -> float:
        return self.subject.meter.estimate() * self.dense * self._correction

    def look(self) -> None:
        exact, estimate = self.exact(), self.subject.meter.estimate() * self.dense
        # For a moment hard masks may leave nothing of a layer: that says nothing of the estimate.
        ratio = exact / estimate if estimate > 0 else 0.0
        if 1 / WIDEST <= ratio <= WIDEST:
            self._correction = ratio

    def state(self) -> Tree:
        return {"correction": self._correction}

    def restore(self, tree: Tree) -> None:
        if "correction" not in tree:  # a checkpoint of a version that did not correct
            return
        self._correction = number_of(tree, "correction")
        fits = 1 / WIDEST <= self._correction <= WIDEST
        require(fits, f"correction {self._correction:g}: none of an estimate")


class _Params(_Static):
    """Trained values: weights that are kept and not 0, and all others, such as batch norms'.

    A file stores them so if it stores single weights; the compact network has more, since its
    channels hold zeros.
    """

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        names = [node.name for node in subject.module.graph.projections]
        self.weights = {n: subject.module.get_parameter(f"{n}.weight") for n in names}
        arrays = {n: v.cpu().numpy() for n, v in subject.module.state_dict().items()}
        self.others = apply.parameters(arrays) - sum(w.numel() for w in self.weights.values())
        self.dense = float(self.others + sum(int((w != 0).sum()) for w in self.weights.values()))

    def exact(self) -> float:
        masks, total = self.subject.masks.weights, self.others
        for name, weight in self.weights.items():
            kept = weight.detach() != 0
            kept = kept & masks[name].keep() if name in masks else kept
            total += int(kept.sum())
        return float(total)

    def estimate(self) -> float:
        return self.exact()


class _Synops:
    """SynOps per sample, the mean over the validation split."""

    def __init__(self, subject: Subject) -> None:
        self.subject, self.names = subject, sources(subject.module.graph)
        self._sums: Sums = self._delivered(len(subject.data.validation))
        plain = deploy.lower(from_module(subject.module, ModelInfo()))
        self.dense = synops_sum(plain, self._sums) / len(subject.data.validation)

    @property
    def known(self) -> bool:
        return any(bool(total.any()) for total in self._sums.values())

    def exact(self) -> float:
        return self._measured(len(self.subject.data.validation))

    def sampled(self) -> float:
        return self._measured(min(SAMPLE, len(self.subject.data.validation)))

    def estimate(self) -> float:
        """What was delivered when it was looked at, through the synapses that are kept now."""
        return self._spent(self._sums, len(self.subject.data.validation))

    def look(self) -> None:
        self._sums = self._delivered(len(self.subject.data.validation))

    def _measured(self, samples: int) -> float:
        self.subject.masks.attach_hard(self.subject.module)
        return self._spent(self._delivered(samples), samples)

    def _delivered(self, samples: int) -> Sums:
        split = self.subject.data.validation.select(torch.arange(samples))
        return delivered(self.subject.module, self.subject.data, split, self.names)

    def _spent(self, sums: Sums, samples: int) -> float:
        return synops_sum(deploy.lower(self.subject.model()), sums) / samples

    def state(self) -> Tree:
        return {"delivered": dict(self._sums)}

    def restore(self, tree: Tree) -> None:
        held, graph = tree_of(tree, "delivered"), self.subject.module.graph
        sums = {n: torch.from_numpy(np.array(array_of(held, n))) for n in held}
        fits = set(sums) == set(self.names) and all(
            s.dtype == torch.float64 and s.shape == graph.shapes[node_of(graph, n)]
            for n, s in sums.items()
        )
        require(fits, "what nodes delivered: other nodes or shapes than this network's")
        self._sums = sums


_KINDS: Mapping[Quantity, Callable[[Subject], Spending]] = {
    "connectivity": _Connectivity,
    "params": _Params,
    "synops": _Synops,
}


class Budget:
    """A target, and what the network under its masks spends; made before masks are attached.

    Raises UsageError for a share of nothing.
    """

    def __init__(self, target: Target, subject: Subject) -> None:
        self.target, self.spending = target, _KINDS[target.quantity](subject)
        self._part = 1.0
        if self.wanted == 0:
            raise UsageError(
                f"{target}: the network has 0 {UNITS[target.quantity]} before pruning, of which "
                "there is no share; train it, until its neurons spike"
            )

    def on_the_way(self, part: float) -> "Budget":
        """The budget at a part of the way from the dense network, 0, to the target, 1."""
        other = copy(self)
        other._part = part
        return other

    @property
    def wanted(self) -> float:
        """The amount that the masks are to leave."""
        dense = self.spending.dense
        return self._part * self.target.amount(dense) + (1 - self._part) * dense

    def reached(self, amount: float) -> bool:
        """Whether an amount is within 5 % of the wanted one."""
        return within(amount, self.wanted)

    def excess(self) -> float:
        """The estimate, relative to the wanted amount; 1 where nothing is known."""
        if not self.spending.known:
            return 1.0
        return self.spending.estimate() / self.wanted

    def told(self, amount: float) -> str:
        """An amount in the target's unit, and as a share."""
        target, dense = self.target, self.target.whole(self.spending.dense)
        share = f" ({amount / dense:.2%})" if dense else ""
        return f"{amount:,.0f} {UNITS[target.quantity]}{share}"

    @property
    def spent(self) -> Spent:
        """What the network spends under its hard masks, which are attached then."""
        return Spent(self.target, self.spending.dense, self.spending.exact())


def refuse_fresh(target: Target | None) -> None:
    """Raise UsageError for a share of the SynOps of a network that has not been trained."""
    if target is not None and target.quantity == "synops" and target.is_share:
        raise UsageError(
            f"{target} is a share of the dense network's SynOps, and fresh weights say nothing of "
            "them; give a count of SynOps per sample, or a trained network (--model_path)"
        )
