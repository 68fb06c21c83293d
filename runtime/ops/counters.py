"""The counter record: what one layer did, as exact integers, and the bounds that it must obey.

Definitions: docs/counting.md. A spike edge delivers 0/1, a graded edge small integers, an analog
edge real values; which one an edge is follows from the graph, never from the data.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields

import numpy as np

from soul_deploy.base import Array, brief, errors


@dataclass(frozen=True)
class LayerCounts:
    """Counts of one projection and the population behind it, or of a pooling.

    events_in         nonzero inputs (spike and graded edges)
    spikes_in         sum of input values (spike and graded edges)
    synops_events     Σ over events of the nonzero synapses onto live targets inside the output
    synops            the same, times the event's value: the headline number
    touched           (step, target) pairs that receive at least one event
    macs_effective    nonzero analog inputs × nonzero synapses; a static input counts once
    neuron_updates    steps × live neurons
    spikes_out        spikes of the population
    bias_adds         live targets with a nonzero bias, at every step that the layer is executed
    pool_ops          of a max pooling: nonzero inputs × the windows that hold them
    """

    events_in: int = 0
    spikes_in: int = 0
    synops_events: int = 0
    synops: int = 0
    touched: int = 0
    macs_effective: int = 0
    neuron_updates: int = 0
    spikes_out: int = 0
    bias_adds: int = 0
    pool_ops: int = 0

    def __add__(self, other: "LayerCounts") -> "LayerCounts":
        return LayerCounts(
            *(getattr(self, item.name) + getattr(other, item.name) for item in fields(self))
        )


def mean_text(total: int, samples: int) -> str:
    """A count per sample, as text."""
    mean = total / samples
    return f"{mean:,.0f}" if mean >= 100 or mean == int(mean) else f"{mean:.1f}"


COUNTERS = tuple(item.name for item in fields(LayerCounts))


@brief
@dataclass(frozen=True)
class StepCounts:
    """The same counts by step and sample.

    values: name of a count -> int64 (steps, B); one step where it holds for the whole run, as for a
    layer that a static image alone determines. What is not named is 0.
    """

    values: Mapping[str, Array] = field(default_factory=dict)

    def __add__(self, other: "StepCounts") -> "StepCounts":
        """Both; no count may be in both."""
        assert not self.values.keys() & other.values.keys()
        return StepCounts({**self.values, **other.values})

    def total(self) -> LayerCounts:
        """Summed over steps and samples."""
        return LayerCounts(**{name: int(array.sum()) for name, array in self.values.items()})


@dataclass(frozen=True)
class CountLimits:
    """Bounds of a layer's counts that follow from its structure.

    slots     executed steps × samples
    bound     the largest value that an event can have; None: an analog edge
    synapses  nonzero synapses onto live targets
    targets   live targets
    fan_out   synapses that can leave one input: output channels of its group × kernel positions
    """

    slots: int
    bound: int | None
    synapses: int
    targets: int
    fan_out: int


def require_bounds(layer: str, counts: LayerCounts, limits: CountLimits) -> None:
    """Raise VerificationError if counts cannot be: a layer never counts more than it has."""
    c, slots = counts, limits.slots
    most = slots * (limits.bound or 0) * limits.synapses
    rules = [
        ("macs_effective", c.macs_effective, "slots · synapses", slots * limits.synapses),
        ("touched", c.touched, "synops_events", c.synops_events),
        ("touched", c.touched, "slots · live targets", slots * limits.targets),
        ("synops_events", c.synops_events, "synops", c.synops),
        ("synops", c.synops, "slots · bound · synapses", most),
        ("synops_events", c.synops_events, "events · fan-out", c.events_in * limits.fan_out),
        ("bias_adds", c.bias_adds, "slots · live targets", slots * limits.targets),
        *(("0", 0, name, getattr(c, name)) for name in COUNTERS),
    ]
    for small, low, large, high in rules:
        if low > high:
            raise errors.VerificationError(
                f"{layer}: {small} is {low}, more than {large}, {high}; the counts are wrong. "
                "Please report this with the file"
            )


def require_edge_values(layer: str, values: Array, bound: int | None, least: int = 0) -> None:
    """Raise VerificationError unless all are whole numbers from `least` to `bound`.

    bound None: anything.
    """
    if bound is None or not values.size:
        return
    low, high = values.min(), values.max()
    if (
        low < least
        or high > bound
        or (values.dtype.kind == "f" and (values != np.rint(values)).any())
    ):
        raise errors.VerificationError(
            f"{layer}: values from {low:g} to {high:g} arrived on an edge that holds whole numbers "
            f"from {least} to {bound}; its kind follows from the graph, so the execution is wrong"
        )
