"""How the scores of single steps become the class scores of a run: what every engine does.

With s_t the spikes of step t, w the head, b its bias and c = 1 / (H · W · votes):

mean  (w · Σ s_t) · (c / T) + b    the integers are summed first, the scale comes last
sum   (w · Σ s_t) · c + T · b      as the mean; the bias of every step is among the scores
last  (w · s_T) · c + b            no other step is read
max   max over t of (w · s_t) · c + b, by class: scale and bias come first, the maximum last

Of a single step all four are the same, the scores of that step.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal, get_args

OverTime = Literal["mean", "sum", "last", "max"]
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


def weighings(over_time: OverTime, steps: int) -> tuple[slice, ...]:
    """The steps of each weighing by the head: all at once, the last, or one after the other."""
    if adds_steps(over_time):
        return (slice(0, steps),)
    first = steps - 1 if over_time == "last" else 0
    return tuple(slice(step, step + 1) for step in range(first, steps))


def adds_steps(over_time: OverTime) -> bool:
    """Whether the head weighs counts over time; else the spikes of single steps."""
    return over_time in ("mean", "sum")


def divisor(over_time: OverTime, steps: int) -> int:
    """What scores are divided by for time: T of the mean, 1 of the others."""
    return steps if over_time == "mean" else 1


def biases(over_time: OverTime, steps: int) -> int:
    """How many times the bias is in the scores: T times in the sum, once in the others."""
    return steps if over_time == "sum" else 1
