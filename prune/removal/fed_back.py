"""Channels that feed back to their own population: which stay silent, which something reads.

Of a population, `fed` (C, C) says whether a spike of channel c adds to the current of channel r at
the next step: fed[r, c]. A set of channels that no spike but their own can reach, and none of which
fires by itself, is silent: at the first step nothing was sent, and so on from step to step.
"""

from dataclasses import dataclass

import numpy as np

from soul_deploy.base import Array, brief


@brief
@dataclass(frozen=True)
class FedBack:
    """A population's feedback by channel; bias (C,) float32, what it adds at every step."""

    fed: Array
    bias: Array

    def among(self, live: Array) -> Array:
        """`fed` by channels that are not removed; live: bool (C,)."""
        return np.asarray(self.fed & live)


def unreached(feeding: Array, still: Array, off: Array) -> Array:
    """bool (C,): of the channels that are `still` by themselves, those that no other one reaches.

    off: channels of which every spike is masked, whatever reaches them.
    """
    found = still | off
    while (reached := found & ~off & (feeding & ~found).any(axis=1)).any():
        found = found & ~reached
    return found


def also_seen(feeding: Array, seen: Array, silent: Array) -> Array:
    """bool (C,): the channels that are `seen`, and those that feed, in the end, such a one.

    silent: channels whose spikes are always 0.
    """
    found = seen.copy()
    while (more := found | ((found @ feeding) & ~silent)).sum() > found.sum():
        found = more
    return found
