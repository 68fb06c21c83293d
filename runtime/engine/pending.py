"""Events that wait for the end of a step: what a camera saw since the step before."""

import math

import numpy as np

from soul_deploy.base import Array, errors, pixel_rule
from soul_deploy.base.events import EVENT, problem_of
from soul_deploy.runtime.format.network import EventNetwork
from soul_deploy.runtime.kernels import touched


class PendingEvents:
    """The input of a step as events make it: counts, or 1 where there was one (spikes).

    Channel p of the input (2, H, W) holds the events of polarity p. Raises UsageError for a network
    of other inputs.

    values  by position, then polarity; places: where they are not 0, counts[touched.SENT] of them
    """

    def __init__(self, network: EventNetwork) -> None:
        kind, shape = network.input_kind, network.input_shape
        if kind not in pixel_rule.EVENT_KINDS:
            raise errors.UsageError(
                f"events given to a network that takes {kind}; counts and spikes are made of events"
            )
        if len(shape) != 3 or shape[0] != 2:
            raise errors.UsageError(
                f"events given to a network whose input is {shape}; one channel for each polarity "
                "is needed: (2, H, W)"
            )
        self.height, self.width = shape[1:]
        self.kind, self.dtype, size = kind, network.takes, math.prod(shape)
        self.most = _most(network)
        self.values = np.zeros(size, np.uint8 if self.most <= pixel_rule.MOST_COUNT else np.uint32)
        self.places, self.counts = np.zeros(size, np.int32), np.zeros(touched.COUNTS, np.int64)

    def __bool__(self) -> bool:
        return bool(self.counts[touched.SENT])

    def add(self, events: Array) -> None:
        """Events (N,) of base.events.EVENT. Raises ValidityError for what is none, lies outside of
        the input or is more than the network takes in a step; then nothing was added.
        """
        if not isinstance(events, np.ndarray) or events.dtype != EVENT or events.ndim != 1:
            raise errors.ValidityError(str(problem_of(events, self.width, self.height)))
        x, y, p = (np.ascontiguousarray(events[name]) for name in ("x", "y", "p"))
        bad = touched.add_events(
            x, y, p, self.width, self.height, self.most, self.kind == "spikes", self.values,
            self.places, self.counts,
        )  # fmt: skip
        if not bad:
            return
        problem = problem_of(events, self.width, self.height)
        raise errors.ValidityError(
            f"{problem}; the network sees {self.width}×{self.height}"
            if problem
            else f"event {bad - 1} is one more than {self.most} of its pixel and polarity in a "
            "step, which the network takes; take shorter steps, or leave events of that pixel out"
        )

    def take(self) -> Array:
        """The input (1, positions, 2) of the step; the next one begins without events."""
        shown: Array = self.values.astype(self.dtype).reshape(1, -1, 2)
        self.clear()
        return shown

    def clear(self) -> None:
        self.values[:] = 0
        self.counts[:] = 0

    def resume(self, values: Array) -> None:
        """Go on with the events of another one's `values`."""
        places = np.flatnonzero(values)
        self.values[:], self.places[: len(places)] = values, places
        self.counts[touched.SENT] = len(places)


def _most(network: EventNetwork) -> int:
    """The largest count; of networks that were made before events, what their numbers hold."""
    if network.input_kind == "spikes":
        return 1
    if network.input_bound is not None:
        return network.input_bound
    return 1 << 24 if network.integers is None else network.integers.high
