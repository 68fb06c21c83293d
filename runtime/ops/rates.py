"""How often layers fire: the expected rates that an event file keeps for choosing forms."""

from collections import Counter

import numpy as np

from soul_deploy.base import Array
from soul_deploy.runtime.engine.network import Network

BATCH = 16
"""Samples whose values are kept at once."""


def measure_rates(network: Network, x: Array) -> dict[str, float]:
    """Share of values that are nonzero at a step, of every layer whose events synapses take.

    x: as `Network.run` takes it. Layers that gave no event are left out: on other samples they may.
    Rates have four digits. Raises ValidityError for inputs that do not fit.
    """
    events = network.events
    names = [layer.source for layer in events.projected if layer.edge != "analog"]
    axis = 0 if x.ndim == len(events.input_shape) + 1 else 1
    nonzero, values = Counter[str](), Counter[str]()
    for first in range(0, x.shape[axis], BATCH):
        part = x[first : first + BATCH] if axis == 0 else x[:, first : first + BATCH]
        recorded, _ = network.run_recording_values(part, names)
        for name in dict.fromkeys(names):
            nonzero[name] += int(np.count_nonzero(recorded[name]))
            values[name] += recorded[name].size
    return {name: float(f"{count / values[name]:.4g}") for name, count in nonzero.items() if count}
