"""What pruning ends with, whichever method it was."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from soul_deploy.analysis.connectivity import Connectivity
from soul_deploy.base.tables import Shown, Table
from soul_deploy.model.model import Model
from soul_deploy.prune.removal import apply, planner
from soul_deploy.prune.removal.plan import RemovalPlan
from soul_deploy.prune.target import Spent
from soul_deploy.training.train import Work, module_of
from soul_deploy.training.trainer import device_of


@dataclass(frozen=True, kw_only=True)
class PruneResult(Shown):
    """A pruned network, before and after removal.

    masked        the network with its masks
    compact       the same outputs from fewer channels; None where nothing was masked
    plan          which channels went from the one to the other, and why
    history       one result, or row of the table, per epoch; those before a resumption included
    accuracies    test accuracies, 0 to 1: "dense" or "start" (unless fresh), "masked", "compact"
    connectivity  live synapses of the masked network
    synops        SynOps per sample of the start and of the masked network, on the validation split
    spent         the target, if one was given, and what was reached
    """

    masked: Model
    compact: Model | None
    plan: RemovalPlan | None
    history: tuple[Any, ...]
    accuracies: Mapping[str, float]
    connectivity: Connectivity | None = None
    synops: tuple[float, float] | None = None
    spent: Spent | None = None

    @property
    def layers(self) -> tuple[tuple[str, int, int, int], ...]:
        """(population, channels before, unmasked channels, channels of the compact network)."""
        kept = {name: int(keep.sum()) for name, keep in self.masked.channel_masks.items()}
        after = (self.compact or self.masked).graph.shapes
        graph = self.masked.graph
        rows = [(node.name, graph.shapes[node.name][0]) for node in graph.populations]
        return tuple((name, had, kept.get(name, had), after[name][0]) for name, had in rows)

    @property
    def parameters(self) -> tuple[int, int]:
        """Trained values of the masked and of the compact network."""
        compact = self.compact or self.masked
        return apply.parameters(self.masked.state), apply.parameters(compact.state)

    def to_dict(self) -> dict[str, Any]:
        """As JSON data: accuracies, channels, parameters, epochs; no weights."""
        connectivity = None if self.connectivity is None else self.connectivity.to_dict()
        return {
            "test_accuracy": dict(self.accuracies),
            "layers": [list(row) for row in self.layers],
            "parameters": list(self.parameters),
            "history": [e if isinstance(e, dict) else asdict(e) for e in self.history],
            "connectivity": connectivity,
            "synops": None if self.synops is None else list(self.synops),
            "target": None if self.spent is None else self.spent.to_dict(),
        }

    def parts(self) -> list[Table | str]:
        """Channels of each population, connectivity if it was measured, parameters, accuracies."""
        before, after = self.parameters
        channels = Table("Channels", ["layer", "before", "masked", "compact"], self.layers)
        measured = [] if self.connectivity is None else self.connectivity.parts()
        return [channels, *measured, f"Parameters: {before:,} -> {after:,}", f"Test {self._tested}"]

    @property
    def _tested(self) -> str:
        tested = ", ".join(f"{name} {value:.2%}" for name, value in self.accuracies.items())
        return f"accuracy: {tested}"

    def __repr__(self) -> str:
        before, after = self.parameters
        return f"PruneResult(parameters {before:,} -> {after:,}; test {self._tested})"


OnMasked = Callable[[Model], None]
"""Called with the masked network, before anything is removed."""


def finished(
    work: Work,
    masked: Model,
    accuracies: dict[str, float],
    removal: Mapping[str, Any] | None,
    on_masked: OnMasked | None,
    **measured: Any,
) -> PruneResult:
    """The result of pruning that made `masked`; removal: as `plan_removal` takes it.

    on_masked is called with it first, since removal can be refused. The compact network is tested
    too; without `removal` there is none. measured: the other fields.
    """
    if on_masked is not None:
        on_masked(masked)
    plan = compact = None
    if removal is not None:
        plan = planner.plan_removal(masked, **removal)
        compact = apply.remove(masked, plan)
        accuracies["compact"] = work.accuracy(module_of(compact, device_of(work.module)))
    return PruneResult(masked=masked, compact=compact, plan=plan, accuracies=accuracies, **measured)
