"""By which method weights are pruned."""

from typing import Literal, get_args

Method = Literal["search", "magnitude", "random"]
METHODS: tuple[Method, ...] = get_args(Method)
