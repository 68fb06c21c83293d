"""The sides of traced values, as a forward sees them in `x.shape`, `x.size()` and `x.ndim`.

All sides are numbers but one. A graph is for any number of samples, so the batch has no number, and
neither has a batch that time is folded into. What holds for every number of samples is answered;
the rest is refused.
"""

from collections.abc import Sequence
from math import prod
from typing import Any, NoReturn

from soul_deploy.base.errors import UnsupportedGraphError


class Refusal(UnsupportedGraphError):
    """What a forward does that no graph holds; the tracer adds the module and the code line."""


class BatchSize:
    """`factor` times the number of samples."""

    def __init__(self, factor: int = 1) -> None:
        self.factor = factor

    def __repr__(self) -> str:
        return "B" if self.factor == 1 else f"{self.factor}·B"

    def __hash__(self) -> int:
        return hash((BatchSize, self.factor))

    def __eq__(self, other: object) -> bool:
        if isinstance(other, BatchSize):
            return self.factor == other.factor
        if isinstance(other, int | float):
            self._refuse()
        return False

    def __mul__(self, other: Any) -> "BatchSize":
        return BatchSize(self.factor * other) if isinstance(other, int) else self._refuse()

    __rmul__ = __mul__

    def __floordiv__(self, other: Any) -> "BatchSize | int":
        if isinstance(other, BatchSize) and self.factor % other.factor == 0:
            return self.factor // other.factor
        if isinstance(other, int) and other and self.factor % other == 0:
            return BatchSize(self.factor // other)
        return self._refuse()

    def __fx_create_arg__(self, tracer: Any) -> "BatchSize":
        return self

    @classmethod
    def __torch_function__(cls, *_: object) -> NoReturn:
        cls()._refuse()

    def _refuse(self, *_: object) -> NoReturn:
        raise Refusal(
            f"the number of samples that are given at once ({self}) is used as a number; the graph "
            "is for any, so only what is the same for all of them can be traced (view, reshape, "
            "unflatten, T * B); loops over time belong outside the network"
        )

    __add__ = __radd__ = __sub__ = __rsub__ = __truediv__ = __rtruediv__ = _refuse
    __rfloordiv__ = __mod__ = __rmod__ = __pow__ = __rpow__ = __neg__ = _refuse
    __lt__ = __le__ = __gt__ = __ge__ = __bool__ = __int__ = __float__ = __index__ = _refuse


Side = int | BatchSize


class Sides(tuple[Side, ...]):
    """In place of torch.Size."""

    __slots__ = ()

    def numel(self) -> Side:
        """The number of elements."""
        return prod(side for side in self if isinstance(side, int)) * prod(
            side for side in self if isinstance(side, BatchSize)
        )


def fits(given: Sequence[Any], real: Sequence[Side]) -> bool:
    """Whether `given` sides of a view are these, -1 standing for one of them."""
    same = [type(a) is type(b) and a == b for a, b in zip(given, real, strict=False)]
    open_sides = [type(a) is int and a == -1 for a in given]
    fitting = all(a or b for a, b in zip(same, open_sides, strict=False))
    return len(given) == len(real) and fitting and sum(open_sides) <= 1
