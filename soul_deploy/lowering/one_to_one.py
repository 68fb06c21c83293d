"""The linear operator of a feedback from each neuron to itself."""

import numpy as np

from soul_deploy import ir
from soul_deploy.base import errors
from soul_deploy.lowering import linear_operators as linear
from soul_deploy.lowering.fold_batch_norm import DeployedWeights


def operator_of(
    node: ir.OneToOne, graph: ir.SpikingGraph, synapses: DeployedWeights
) -> linear.Operator:
    """Weights by channel: a convolution of single points, of a vector a diagonal matrix."""
    shape = graph.shapes[node.name]
    if len(shape) == 1:
        if shape[0] ** 2 > linear.MAX_ELEMENTS:
            raise errors.LimitError(
                f"{node.name}: each of {shape[0]:,} neurons to itself is a matrix of "
                f"{shape[0] ** 2:,} elements; at most {linear.MAX_ELEMENTS:,} are supported. Use a "
                "map (C, H, W) in place of a vector"
            )
        return linear.MatrixOperator(np.diag(synapses.weight), None, shape, shape)
    weight = synapses.weight.reshape(-1, 1, 1, 1)
    geometry = (1, 1), (0, 0), (1, 1), shape[0]
    return linear.ConvOperator(weight, None, *geometry, shape, shape, (shape[1], shape[2]))
