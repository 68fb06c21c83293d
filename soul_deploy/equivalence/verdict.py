"""The three verdicts on a comparison, computed in this module only.

Two networks that both stay silent agree on every spike, and nothing is known about either: the
weights in front of a population that never fired may be anything that keeps it silent. Such a
comparison has found no difference and proves nothing.
"""

from collections.abc import Sequence
from enum import StrEnum

NAMED = 8  # populations in one line; JSON has all


class Verdict(StrEnum):
    """passed: no difference, and everything fired. failed: a difference. inconclusive: neither."""

    PASSED = "passed"
    FAILED = "failed"
    INCONCLUSIVE = "inconclusive"


def verdict_of(
    agree: bool, samples: int, silent: Sequence[str], *, allow_silent: bool = False
) -> Verdict:
    """The verdict on one comparison.

    agree         whether no difference was found
    samples       on how many samples; none prove nothing
    silent        populations of which no neuron ever fired
    allow_silent  the caller knows about these: they don't make it inconclusive
    """
    if not agree:
        return Verdict.FAILED
    if not samples or (silent and not allow_silent):
        return Verdict.INCONCLUSIVE
    return Verdict.PASSED


def untested(silent: Sequence[str]) -> str:
    """The silent populations (at least one) by name, as the words that follow a verdict."""
    more = len(silent) - NAMED
    names = ", ".join(silent[:NAMED]) + (f" and {more} more" if more > 0 else "")
    return f"never fired, so untested: {names}"
