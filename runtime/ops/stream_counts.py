"""SynOps of one step of a stream: what its events and spikes pass over (docs/counting.md)."""

from dataclasses import dataclass, field

import numpy as np

from soul_deploy.base import Array, brief
from soul_deploy.runtime.engine.inputs import to_channel_last
from soul_deploy.runtime.engine.network import Network
from soul_deploy.runtime.engine.streaming import Stream
from soul_deploy.runtime.ops.counting import readout_fanout
from soul_deploy.runtime.ops.fan_out import fanout_map


@brief
@dataclass
class StepCounter:
    """How many synapses leave each neuron, by the layer that gives its spikes."""

    network: Network
    reach: list[tuple[str, Array]] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        events = self.network.events
        for layer in events.projected:
            if layer.edge != "analog":
                leaving = fanout_map(layer.synapses, layer.updated)
                self.reach.append((layer.source, to_channel_last(leaving, layer.in_shape)))
        head, readout = readout_fanout(events.readout), events.readout
        of_map = head if readout.space else to_channel_last(head, readout.in_shape)
        self.reach.append((readout.source, of_map))

    def synops(self, stream: Stream) -> int:
        """Of the last step of a stream of one sample; its head weighs that step alone."""
        (buffers,), total = stream.samples, 0
        for name, reach in self.reach:
            values = np.abs(self.network.values_of(buffers, name)[0].astype(np.int64))
            total += int((values * reach).sum())
        return total
