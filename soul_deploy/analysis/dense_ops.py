"""What a network would cost without sparsity, from its graph alone: no data, no weights.

Operations, not synapses: each projection is taken on its own input, pooled where the graph pools,
as tools that count multiplications per layer do. What synapses a network could have, average
pooling composed as in those that it stores, is `soul_deploy.analysis.connectivity.dense_synapses`.
"""

from dataclasses import dataclass

from soul_deploy.ir.graph import Convolution, Linear, Node, Population, Readout, SpikingGraph


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
    return {
        node.name: _dense(graph, node) for node in (*graph.projections, graph.readout)
    }  # fmt: skip


def _dense(graph: SpikingGraph, node: Node) -> DenseOps:
    shape, out = graph.shapes[node.inputs[0]], graph.shapes[node.name]
    if isinstance(node, Convolution):
        pairs = node.in_channels // node.groups * node.channels
        kernel = node.kernel[0] * node.kernel[1]
        valid = pairs * _taps(node, 0, shape[1], out[1]) * _taps(node, 1, shape[2], out[2])
        return DenseOps(valid, pairs * kernel * out[1] * out[2])
    if isinstance(node, Linear):
        return DenseOps(node.in_features * node.features, node.in_features * node.features)
    assert isinstance(node, Readout), node
    weights = shape[0] * node.classes if node.linear else 0
    return DenseOps(weights, weights)


def _taps(node: Convolution, axis: int, size: int, out: int) -> int:
    """Pairs (output position, kernel index) inside an input of `size` along one axis."""
    stride, padding, dilation = node.stride[axis], node.padding[axis], node.dilation[axis]
    positions = (
        o * stride - padding + k * dilation for o in range(out) for k in range(node.kernel[axis])
    )
    return sum(0 <= position < size for position in positions)


def static_nodes(graph: SpikingGraph) -> frozenset[str]:
    """Nodes that a static image alone determines: executed once, not at every step."""
    found = {graph.input.name}
    for node in graph.nodes[1:]:
        if not isinstance(node, Population | Readout) and found.issuperset(node.inputs):
            found.add(node.name)
    return frozenset(found)
