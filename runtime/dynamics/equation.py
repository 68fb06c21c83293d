"""A neuron of any family as deployed, and the table of the families."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property

from soul_deploy.runtime.dynamics import bipolar, complementary, integer, quadratic, refractory
from soul_deploy.runtime.dynamics.form import Dynamics, Operations, Parts, SendRule, State, Value
from soul_deploy.runtime.dynamics.operations import NUMPY
from soul_deploy.runtime.equations import Equation

DYNAMICS: Mapping[str, Dynamics] = {
    family.name: family
    for family in (
        *(complementary.CLIF, complementary.ILIF, integer.INTLIF, integer.TLIF, integer.IELIF),
        *(refractory.RPLIF, quadratic.IZHIKEVICH, bipolar.STBIF),
    )
}
"""The families by name."""


@cache
def parts_of(family: str, operations: Operations) -> Parts:
    """A family's step for an engine."""
    return DYNAMICS[family].parts(operations)


@dataclass(frozen=True)
class DynamicsEquation(Equation):
    """A neuron of a family of `DYNAMICS`.

    constants  as `Dynamics.constants` names them
    send       how it sends; low, high: the least and the largest integer that is sent
    """

    family: str
    constants: tuple[float, ...]
    send: SendRule
    low: int = 0
    high: int = 1

    @cached_property
    def dynamics(self) -> Dynamics:
        return DYNAMICS[self.family]

    @property
    def state(self) -> tuple[str, ...]:
        return self.dynamics.state

    @property
    def start(self) -> tuple[float, ...]:
        return self.dynamics.start_of(self.constants)

    @property
    def named(self) -> dict[str, float]:
        """The constants by name."""
        return dict(zip(self.dynamics.constants, self.constants, strict=True))

    def advance(self, state: State, x: Value) -> tuple[Value, State]:
        """One step on numpy arrays of one dtype."""
        numbers = tuple(x.dtype.type(c) for c in self.constants)
        return self.step(NUMPY, state, x, numbers)

    def step(
        self, operations: Operations, state: State, x: Value, numbers: tuple[Value, ...]
    ) -> tuple[Value, State]:
        """One step with an engine's operations; numbers: the constants as its values."""
        parts = parts_of(self.family, operations)
        charged = parts.charge(x, state, numbers)
        sent = operations.send[self.send](*parts.decide(charged, numbers), self.low, self.high)
        return sent, parts.settle(sent, charged, numbers)
