"""Bounds on the currents of a fixed-point network, proved from its weights (docs/fixed-point.md).

Sums of integers are exact in any order; what wraps around on the way does no harm where the whole
sum fits.
"""

from collections.abc import Mapping

import numpy as np

from soul_deploy import ir
from soul_deploy.base import Array, dispatch, errors
from soul_deploy.lowering import deploy, linear_operators
from soul_deploy.runtime.format.bounds import MOST_CURRENT


def largest(values: Array) -> int:
    """The bound of a layer of those of its channels."""
    return int(values.max(initial=0))


def current_bounds(lowered: deploy.Deployed) -> dict[str, Array]:
    """Of every node that holds currents, and of the readout: the largest absolute value of each
    channel, int64 (C,).

    Raises UnsupportedGraphError where one does not fit the definition.
    """
    graph = lowered.graph
    found: dict[str, Array] = {}
    for node in graph.nodes:
        bound = bound_of(node, lowered, found)
        if bound is not None:
            found[node.name] = bound
            if largest(bound) > MOST_CURRENT:
                raise errors.UnsupportedGraphError(
                    f"{node.name}: its integers reach {largest(bound)}, more than "
                    f"{MOST_CURRENT}, which fixed-point neurons take; use smaller weights or "
                    "inputs"
                )
    return found


@dispatch.operation_table(ir.Node)
def bound_of(node: ir.Node, lowered: "deploy.Deployed", found: Mapping[str, Array]) -> Array | None:
    """The bound of a node's currents, of those of the nodes before it; None where it has none."""
    raise ir.no_entry(node, "the bounds of fixed-point networks")


bound_of.on(ir.Input, ir.Population, ir.Scale, ir.ChannelNorm, ir.AdaptiveAvgPool, ir.AvgPool)(
    lambda node, lowered, found: None
)


@bound_of.on(ir.Projection)
def _projection(
    node: ir.Projection, lowered: "deploy.Deployed", found: Mapping[str, Array]
) -> Array:
    linear = lowered.operator(node.name)
    edge = lowered.graph.edges[linear.source]
    operator = linear.operator
    assert isinstance(operator, linear_operators.Operator)
    if edge.size is None:
        raise errors.UnsupportedGraphError(
            f"{node.name}: it reads currents of {linear.source}, which a fixed-point network does "
            "not weigh; put neurons in between"
        )
    rows = _row_sums(operator.weight) * edge.size
    by_channel = rows.reshape(lowered.graph.shapes[node.name][0], -1).max(axis=1)
    total: Array = by_channel + _sizes(operator.bias)
    return total


def _row_sums(weight: Array) -> Array:
    sums: Array = np.abs(weight.astype(np.int64)).reshape(len(weight), -1).sum(axis=1)
    return sums


def _sizes(bias: Array | None) -> Array:
    return np.zeros(1, np.int64) if bias is None else np.abs(bias.astype(np.int64))


@bound_of.on(ir.Merge)
def _merge(node: ir.Merge, lowered: "deploy.Deployed", found: Mapping[str, Array]) -> Array | None:
    if not any(name in found for name in node.inputs):
        return None
    edges = lowered.graph.edges
    sizes = [np.full(1, edges[n].size or 0, np.int64) for n in node.inputs if n not in found]
    total: Array = np.zeros(1, np.int64)
    for bound in [found[name] for name in node.inputs if name in found] + sizes:
        total = total + bound
    return total


@bound_of.on(ir.MaxPool)
def _pool(node: ir.MaxPool, lowered: "deploy.Deployed", found: Mapping[str, Array]) -> Array | None:
    return found.get(node.inputs[0])


@bound_of.on(ir.Flatten)
def _flatten(
    node: ir.Flatten, lowered: "deploy.Deployed", found: Mapping[str, Array]
) -> Array | None:
    (source,) = node.inputs
    if source not in found:
        return None
    shape = lowered.graph.shapes[source]
    return np.repeat(found[source], int(np.prod(shape[1:])))


@bound_of.on(ir.Scatter)
def _scatter(
    node: ir.Scatter, lowered: "deploy.Deployed", found: Mapping[str, Array]
) -> Array | None:
    if node.inputs[0] not in found:
        return None
    wide: Array = np.zeros(node.channels, np.int64)
    wide[list(node.index)] = found[node.inputs[0]]
    return wide


@bound_of.on(ir.Readout)
def _readout(node: ir.Readout, lowered: "deploy.Deployed", found: Mapping[str, Array]) -> Array:
    """Of the integer scores of all steps."""
    graph, operator = lowered.graph, lowered.readout
    edge = graph.edges[lowered.operator(node.name).source]
    steps = graph.time_steps if node.over_time in ("mean", "sum") else 1
    positions = int(np.prod(operator.in_shape[1:])) if operator.space else 1
    rows = operator.votes * np.ones(node.classes, np.int64)
    if operator.weight is not None:
        rows = _row_sums(operator.weight)
    return steps * (rows * positions * (edge.size or 1) + _sizes(operator.bias))
