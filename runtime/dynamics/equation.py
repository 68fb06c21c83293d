"""A neuron of any family as deployed, and the table of the families."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from typing import TypeAlias

import numpy as np

from soul_deploy.base import Array, brief
from soul_deploy.runtime.dynamics import (
    bipolar,
    complementary,
    exponential,
    gated,
    integer,
    quadratic,
    refractory,
    scaled,
    snntorch,
    synaptic,
)
from soul_deploy.runtime.dynamics.form import Dynamics, Operations, Parts, SendRule, State, Value
from soul_deploy.runtime.dynamics.operations import NUMPY
from soul_deploy.runtime.equations import Equation

DYNAMICS: Mapping[str, Dynamics] = {
    family.name: family
    for family in (
        *(complementary.CLIF, complementary.ILIF, integer.INTLIF, integer.TLIF, integer.IELIF),
        *(refractory.RPLIF, quadratic.IZHIKEVICH, bipolar.STBIF, gated.GLIF),
        *(quadratic.QIF, exponential.EIF, scaled.KLIF, synaptic.CUBALIF),
        *(complementary.COMPLEMENTARY_LIF, integer.INTEGER_LIF),
        *(snntorch.LEAKY, snntorch.RLEAKY, snntorch.SYNAPTIC, snntorch.RSYNAPTIC),
        snntorch.LAPICQUE,
    )
}
"""The families by name."""

Number: TypeAlias = float | Array
"""One number of all neurons, or float32 (T or 1, C or 1, …): of a step, a channel, a neuron."""


@cache
def parts_of(family: str, operations: Operations) -> Parts:
    """A family's step for an engine."""
    return DYNAMICS[family].parts(operations)


@brief
@dataclass(frozen=True, eq=False)
class DynamicsEquation(Equation):
    """A neuron of a family of `DYNAMICS`.

    constants  as `Dynamics.constants` names them
    send       how it sends; low, high: the least and the largest integer that is sent
    """

    family: str
    constants: tuple[Number, ...]
    send: SendRule
    low: int = 0
    high: int = 1

    def __eq__(self, other: object) -> bool:
        """Whether both compute the same: all numbers are equal."""
        if not isinstance(other, DynamicsEquation):
            return NotImplemented
        mine, theirs = self._facts, other._facts
        same = len(self.constants) == len(other.constants) and mine == theirs
        pairs = zip(self.constants, other.constants, strict=False)
        return same and all(np.array_equal(a, b) for a, b in pairs)

    def __hash__(self) -> int:
        return hash(self._facts)

    @property
    def _facts(self) -> tuple[str, SendRule, int, int]:
        return self.family, self.send, self.low, self.high

    @cached_property
    def dynamics(self) -> Dynamics:
        return DYNAMICS[self.family]

    @property
    def state(self) -> tuple[str, ...]:
        return self.dynamics.state

    @property
    def start(self) -> tuple[float, ...]:
        named = self.named
        starts = (named[s] if isinstance(s, str) else s for s in self.dynamics.start)
        return tuple(float(value) for value in starts)

    @property
    def named(self) -> dict[str, Number]:
        """The constants by name."""
        return dict(zip(self.dynamics.constants, self.constants, strict=True))

    @property
    def arrays(self) -> dict[str, Array]:
        """The constants that are not one number."""
        return {name: c for name, c in self.named.items() if isinstance(c, np.ndarray)}

    @property
    def steps(self) -> int | None:
        """For how many steps there are numbers; None: for any."""
        return max((len(a) for a in self.arrays.values() if len(a) > 1), default=None)

    def at_step(self, t: int) -> tuple[Number, ...]:
        """The constants of step t, without the axis of steps."""
        return tuple(
            c[min(t, len(c) - 1)] if isinstance(c, np.ndarray) else c for c in self.constants
        )

    def advance(self, state: State, x: Value, t: int = 0) -> tuple[Value, State]:
        """Step t on numpy arrays of one dtype and of the neurons' shape."""
        numbers = tuple(np.asarray(c, x.dtype) for c in self.at_step(t))
        return self.step(NUMPY, state, x, numbers)

    def step(
        self, operations: Operations, state: State, x: Value, numbers: tuple[Value, ...]
    ) -> tuple[Value, State]:
        """One step with an engine's operations; numbers: the constants as its values."""
        parts = parts_of(self.family, operations)
        charged = parts.charge(x, state, numbers)
        sent = operations.send[self.send](*parts.decide(charged, numbers), self.low, self.high)
        return sent, parts.settle(sent, charged, numbers)
