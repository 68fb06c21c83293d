"""By which method weights are pruned, and along which ramp a baseline gets there."""

from collections.abc import Callable, Mapping
from typing import Literal, get_args

Method = Literal["search", "magnitude", "random"]
METHODS: tuple[Method, ...] = get_args(Method)
Ramp = Literal["constant", "linear", "cubic"]
RAMPS: Mapping[Ramp, Callable[[float], float]] = {
    "constant": lambda part: 1.0,
    "linear": lambda part: part,
    "cubic": lambda part: 1 - (1 - part) ** 3,
}
"""From the share of the epochs that have begun to the share of the way to the target."""
