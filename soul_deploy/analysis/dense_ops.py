"""Operations of a network without sparsity, from its graph alone: no data, no weights.

Operations, not synapses: each projection is taken on its own input, pooled where the graph pools,
as tools that count multiplications per layer do. What synapses a network could have, average
pooling composed as in those that it stores, is `soul_deploy.analysis.connectivity.dense_synapses`.
"""

from dataclasses import dataclass

from soul_deploy.base.dispatch import operation_table
from soul_deploy.ir import Convolution, Linear, Projection, SpikingGraph, no_entry


@dataclass(frozen=True)
class DenseOps:
    """Operations of one execution of a layer with all weights kept and all inputs nonzero.

    valid   taps inside the input only
    padded  taps on the padding too: K² · C_in / groups · C_out · OH · OW ("MACs" of thop, ptflops)
    """

    valid: int
    padded: int


def dense_ops(graph: SpikingGraph) -> dict[str, DenseOps]:
    """Of every projection, and of the readout's head (once per sample), by name."""
    readout = graph.readout
    weights = graph.shapes[readout.inputs[0]][0] * readout.classes if readout.linear else 0
    found = {node.name: dense_ops_of(node, graph) for node in graph.projections}
    return found | {readout.name: DenseOps(weights, weights)}


@operation_table(Projection)
def dense_ops_of(node: Projection, graph: SpikingGraph) -> DenseOps:
    """The operations of one projection."""
    raise no_entry(node, "counting of dense operations")


@dense_ops_of.on(Convolution)
def _convolution(node: Convolution, graph: SpikingGraph) -> DenseOps:
    shape, out = graph.shapes[node.inputs[0]], graph.shapes[node.name]
    pairs = node.in_channels // node.groups * node.channels
    kernel = node.kernel[0] * node.kernel[1]
    valid = pairs * _taps(node, 0, shape[1], out[1]) * _taps(node, 1, shape[2], out[2])
    return DenseOps(valid, pairs * kernel * out[1] * out[2])


@dense_ops_of.on(Linear)
def _linear(node: Linear, graph: SpikingGraph) -> DenseOps:
    return DenseOps(node.in_features * node.features, node.in_features * node.features)


def _taps(node: Convolution, axis: int, size: int, out: int) -> int:
    """Pairs (output position, kernel index) inside an input of `size` along one axis."""
    stride, padding, dilation = node.stride[axis], node.padding[axis], node.dilation[axis]
    positions = (
        o * stride - padding + k * dilation for o in range(out) for k in range(node.kernel[axis])
    )
    return sum(0 <= position < size for position in positions)
