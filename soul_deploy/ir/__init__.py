"""The spiking graph as frozen data: nodes, edges, neurons, JSON. Others import from here."""

from soul_deploy.ir import fixed
from soul_deploy.ir.channelwise import ChannelNorm, Scale
from soul_deploy.ir.feedback import OneToOne
from soul_deploy.ir.graph import UNREADABLE, SpikingGraph, node_from_json, node_to_json
from soul_deploy.ir.neurons import (
    ANALOG,
    SOUL_NEURONS,
    SPIKE,
    Edge,
    FormName,
    NeuronFamily,
    NeuronSpec,
    SurrogateName,
)
from soul_deploy.ir.node import BatchNorm, Node, Pair, Shape, no_entry
from soul_deploy.ir.nodes import (
    OPS,
    Convolution,
    EventInput,
    Flatten,
    Input,
    IntegerEventInput,
    IntegerInput,
    Linear,
    Merge,
    MergeFunction,
    Population,
    Projection,
    Readout,
    Scatter,
)
from soul_deploy.ir.pools import AdaptiveAvgPool, AvgPool, MaxPool, Pool, SumPool
