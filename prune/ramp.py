"""How what is pruned rises to its end over the updates."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Literal, get_args

Ramp = Literal["constant", "linear", "cubic"]
RAMPS: tuple[Ramp, ...] = get_args(Ramp)
RISE: Mapping[Ramp, Callable[[float], float]] = MappingProxyType(
    {
        "constant": lambda part: 1.0,
        "linear": lambda part: part,
        "cubic": lambda part: 1 - (1 - part) ** 3,
    }
)
"""From the share of the updates that are done, above 0, to the share of the way to the end.

The cubic ramp is that of Zhu and Gupta, "To prune, or not to prune" (2017).
"""
