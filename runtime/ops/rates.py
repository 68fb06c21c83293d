"""How often layers fire: the expected rates that an event file keeps for choosing forms."""

from collections import Counter

import numpy as np

from soul_deploy.base import Array
from soul_deploy.runtime.engine.network import Network

BATCH = 16
"""Samples whose values are kept at once."""


def measure_rates(network: Network, x: Array) -> tuple[dict[str, float], dict[str, float]]:
    """Share of values that are nonzero at a step, of every layer whose events synapses take; and
    share of its neurons that give one at any step: the same neurons often fire again.

    x: as `Network.run` takes it. Layers that gave no event are left out: on other samples they may.
    Shares have four digits. Raises ValidityError for inputs that do not fit.
    """
    events = network.events
    names = [layer.source for layer in events.projected if layer.edge != "analog"]
    axis = 0 if x.ndim == len(events.input_shape) + 1 else 1
    nonzero, active, values, neurons = (Counter[str]() for _ in range(4))
    for first in range(0, x.shape[axis], BATCH):
        part = x[first : first + BATCH] if axis == 0 else x[:, first : first + BATCH]
        recorded, _ = network.run_recording_values(part, names)
        for name in dict.fromkeys(names):
            at_any = recorded[name].any(axis=1)
            nonzero[name] += int(np.count_nonzero(recorded[name]))
            active[name] += int(np.count_nonzero(at_any))
            values[name] += recorded[name].size
            neurons[name] += at_any.size
    return _shares(nonzero, values), _shares(active, neurons)


def _shares(counts: Counter[str], of: Counter[str]) -> dict[str, float]:
    return {name: float(f"{count / of[name]:.4g}") for name, count in counts.items() if count}
