"""How the scores of single steps become the class scores of a run: what every engine does.

With s_t the spikes of step t, w the head, b its bias and c = 1 / (H · W · votes):

mean  (w · Σ s_t) · (c / T) + b    the integers are summed first, the scale comes last
sum   (w · Σ s_t) · c + T · b      as the mean; the bias of every step is among the scores
last  (w · s_T) · c + b            no other step is read
max   max over t of (w · s_t) · c + b, by class: scale and bias come first, the maximum last

Of a single step all four are the same, the scores of that step.

Where neurons stand behind the head and their membrane is read, i_t = (w · s_t) · c + b is the
current of step t, whatever becomes of the steps, and v_t the membrane after that step:

mean  (v_1 + v_2 + … + v_T) · (1 / T)    added in the order of the steps
sum   v_1 + v_2 + … + v_T                likewise
last  v_T
max   max over t of v_t, by class
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal, get_args

OverTime = Literal["mean", "sum", "last", "max"]
Weighing = Literal["sum", "last", "each"]
"""Which spikes the head weighs: their sum over time, those of the last step, of each step."""
OVER_TIME: tuple[OverTime, ...] = get_args(OverTime)

NAMES: Mapping[OverTime, str] = MappingProxyType(
    {
        "mean": "mean over time",
        "sum": "sum over time",
        "last": "last step",
        "max": "maximum over time",
    }
)
"""What tables and messages call them."""

LOOPS: Mapping[OverTime, str] = MappingProxyType(
    {
        "mean": "the mean of {scores} over time_steps steps is the class scores",
        "sum": "the sum of {scores} over time_steps steps is the class scores",
        "last": "{scores} of the last of time_steps steps is the class scores",
        "max": "the largest of {scores} over time_steps steps, class by class, is the class scores",
    }
)
"""What a caller who runs step by step does with the output `scores` of the steps."""


def is_over_time(value: Any) -> bool:
    """Whether it is one of the four."""
    return isinstance(value, str) and value in OVER_TIME


def weighing(over_time: OverTime, *, charging: bool) -> Weighing:
    """Which spikes the head weighs; charging: its scores are the currents of neurons."""
    if charging or over_time == "max":
        return "each"
    return "last" if over_time == "last" else "sum"


def weighings(how: Weighing, steps: int) -> tuple[slice, ...]:
    """The steps of each weighing by the head: all at once, the last, or one after the other."""
    if how == "sum":
        return (slice(0, steps),)
    first = steps - 1 if how == "last" else 0
    return tuple(slice(step, step + 1) for step in range(first, steps))


def together(how: Weighing, steps: int) -> int:
    """How many steps are in one weighing by the head."""
    return steps if how == "sum" else 1


def divisor(over_time: OverTime, steps: int) -> int:
    """What scores of so many steps together are divided by: their number of the mean, else 1."""
    return steps if over_time == "mean" else 1


def biases(over_time: OverTime, steps: int) -> int:
    """How many times the bias is in scores of so many steps together: as often in the sum, else
    once.
    """
    return steps if over_time == "sum" else 1
