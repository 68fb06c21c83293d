"""Fixed-point neurons in the graph: their numbers, and what these can be (docs/fixed-point.md)."""

from collections.abc import Mapping

from soul_deploy.runtime.dynamics.form import Granularity
from soul_deploy.runtime.equations import FIXED_RESETS, MOST_SHIFT

FIXED = "fixed"
RESETS = FIXED_RESETS
"""In the order of the setting `reset`: 0 to the resting value, 1 by subtraction, 2 the same a step
later, 3 none."""
SETTINGS: Mapping[str, float] = {
    "multiplier": 1.0,
    "shift": 0.0,
    "low": -32768.0,
    "high": 32767.0,
    "reset": 0.0,
}
TENSORS: Mapping[str, Granularity | None] = {
    "threshold": "channel",
    "subtract": None,
    "unit": "channel",
}
"""threshold, subtract: int32. unit: float32, what 1 of current and membrane stands for; no engine
reads it. subtract where the reset takes something off."""
MEMBRANE_BITS = range(15, 30)
"""The membrane is from -2^p to 2^p - 1."""


def wrong_numbers(settings: Mapping[str, float], tensors: Mapping[str, object]) -> str | None:
    """What is wrong with the numbers of a fixed-point neuron, in words; None if nothing is."""
    for name, number in settings.items():
        if number != int(number):
            return f"{name} {number:g} is no integer"
    names = ("multiplier", "shift", "low", "high")
    multiplier, shift, low, high = (int(settings[name]) for name in names)
    bits = (high + 1).bit_length() - 1
    if bits not in MEMBRANE_BITS or (low, high) != (-(1 << bits), (1 << bits) - 1):
        return f"a membrane from {low} to {high}; it is from -2^p to 2^p - 1, p from 15 to 29"
    whole = (multiplier, shift) == (1, 0)
    leaks = 0 <= shift <= min(MOST_SHIFT, 30 - bits) and 0 <= multiplier < 1 << shift
    if not (whole or leaks):
        return f"a leak of {multiplier} / 2^{shift}; it is from 0 to 1, and p + k is at most 30"
    if not 0 <= settings["reset"] < len(RESETS):
        return f"reset {settings['reset']:g}; valid: 0 to {len(RESETS) - 1}"
    taken = RESETS[int(settings["reset"])] in ("soft", "late")
    if taken != ("subtract" in tensors):
        return "subtract is a tensor where the reset is soft or late, and only there"
    return None


def described(settings: Mapping[str, float], fire: str) -> str:
    """A neuron in a few words, for tables."""
    multiplier, shift, high, reset = (
        int(settings[name]) for name in ("multiplier", "shift", "high", "reset")
    )
    leak = f"leak {multiplier}/2^{shift}" if (multiplier, shift) != (1, 0) else "no leak"
    bits = 16 if high < 1 << 15 else 32
    return f"fixed point: {leak}, int{bits} membrane, {fire}, {RESETS[reset]} reset"
