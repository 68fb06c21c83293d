"""A value of the forward being traced, and how errors name an operation."""

from dataclasses import dataclass
from typing import Any

from torch import fx

from soul_deploy.base import reduction
from soul_deploy.base.errors import UnsupportedGraphError


@dataclass(frozen=True)
class TracedValue:
    """The value that a traced operation returns.

    name     the graph node that holds it
    lead     leading axes: 2 for (T, B, ...), 1 for (B, ...)
    folded   lead 1 because T and B were merged into one axis
    once     its time axis has length 1, until it is repeated
    reduced  what was made of the steps: their mean, sum, last or maximum; None: nothing yet
    pair     what `max` over an axis gives: the values and their places
    inverse  1 - the node's value
    step     of a forward that loops over time: which step's value it is; None: the same at all
    partial  how many steps of it, the first ones, are summed up; 0: it is no such sum
    membrane which state of the population it is (mem, syn); None: its spikes
    order    which of its axes stands where, after a permutation; (): as they are
    """

    name: str
    lead: int
    folded: bool = False
    once: bool = False
    reduced: reduction.OverTime | None = None
    pair: bool = False
    inverse: bool = False
    step: int | None = None
    partial: int = 0
    membrane: str | None = None
    order: tuple[int, ...] = ()

    @property
    def of_all_steps(self) -> bool:
        """Whether it has an axis of time, along which it can be reduced."""
        return self.step is None and self.lead == 2


class ShowsImageError(UnsupportedGraphError):
    """A forward that puts a time axis in front of a sequence: it takes images."""


def told(node: fx.Node) -> str:
    """What an operation is called."""
    target: Any = node.target
    return str(target if isinstance(target, str) else getattr(target, "__name__", target))
