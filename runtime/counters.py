"""The counter record: what one layer did, as exact integers summed over time and samples.

Definitions: docs/counting.md. A spike edge delivers 0/1, a graded edge small integers, an analog
edge real values; which one an edge is follows from the graph, never from the data.
"""

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class LayerCounts:
    """Counts of one projection and the population behind it.

    events_in         nonzero inputs (spike and graded edges)
    spikes_in         sum of input values (spike and graded edges)
    synops_events     Σ over events of the nonzero synapses onto live targets inside the output
    synops            the same, times the event's value: the headline number
    touched           (step, target) pairs that receive at least one event
    macs_effective    nonzero analog inputs × nonzero synapses; a static input counts once
    neuron_updates    steps × live neurons
    spikes_out        spikes of the population
    """

    events_in: int = 0
    spikes_in: int = 0
    synops_events: int = 0
    synops: int = 0
    touched: int = 0
    macs_effective: int = 0
    neuron_updates: int = 0
    spikes_out: int = 0

    def __add__(self, other: "LayerCounts") -> "LayerCounts":
        return LayerCounts(
            *(getattr(self, item.name) + getattr(other, item.name) for item in fields(self))
        )
