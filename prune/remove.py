"""Applying a removal plan: rows and columns are cut, names stay. Short, so that it is not wrong."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from soul_deploy.graph import Convolution, Linear, Node, Projection, Readout, SpikingGraph
from soul_deploy.modelfile import Model, Validity, check_state
from soul_deploy.prune.plan import RemovalPlan, source_population
from soul_deploy.runtime.files import Array

BATCH_NORM_PARTS = ("weight", "bias", "running_mean", "running_var")


def remove(model: Model, plan: RemovalPlan) -> Model:
    """The compact network: the same outputs from fewer channels, under the same names.

    Masks of layers that the plan had to leave whole are kept.
    """
    graph = model.graph
    state = dict(model.state)
    changed: dict[str, Node] = {}
    nodes: list[Projection | Readout] = [*graph.projections, graph.readout]
    for node in nodes:
        rows, columns = _rows(graph, node, plan), _columns(graph, node, plan)
        _cut(state, graph, node, rows, columns)
        changed[node.name] = _narrower(graph, node, rows, columns)
    narrow = graph.with_nodes(changed)
    check_state(narrow, state, "the compact network")
    masks = {
        name: keep
        for name, keep in model.channel_masks.items()
        if not keep.all()
        and plan.kept(name) is not None
        and len(plan.kept(name) or ()) == len(keep)
    }
    info = replace(model.info, stage="compact", validity=_stricter(model.info.validity, plan))
    return Model(narrow, state, masks, info)


def _rows(graph: SpikingGraph, node: Node, plan: RemovalPlan) -> Sequence[int] | None:
    """Output channels of a projection that stay; None: all."""
    for consumer in graph.consumers[node.name]:
        kept = plan.kept(consumer)
        if kept is not None:
            return kept
    return None


def _columns(graph: SpikingGraph, node: Node, plan: RemovalPlan) -> Sequence[int] | None:
    """Input channels that stay; None: all."""
    source = source_population(graph, node)
    return None if source is None else plan.kept(source)


def _cut(
    state: dict[str, Array],
    graph: SpikingGraph,
    node: Projection | Readout,
    rows: Sequence[int] | None,
    columns: Sequence[int] | None,
) -> None:
    if isinstance(node, Readout) and not node.linear:
        return
    name = f"{node.name}.weight"
    if columns is not None and not _grouped(node):
        source = source_population(graph, node)
        assert source is not None
        state[name] = _cut_columns(state[name], graph.shapes[source][0], columns)
    if rows is None:
        return
    kept = list(rows)
    state[name] = state[name][kept]
    if node.bias:
        state[f"{node.name}.bias"] = state[f"{node.name}.bias"][kept]
    if isinstance(node, Projection) and node.norm is not None:
        for part in BATCH_NORM_PARTS:
            state[f"{node.norm.name}.{part}"] = state[f"{node.norm.name}.{part}"][kept]


def _cut_columns(weight: Array, channels: int, columns: Sequence[int]) -> Array:
    """Columns of a convolution, or the groups of columns that a flattened channel became."""
    if weight.ndim == 4:
        return weight[:, list(columns)]
    blocks = weight.reshape(len(weight), channels, -1)[:, list(columns)]
    return np.ascontiguousarray(blocks.reshape(len(weight), -1))


def _grouped(node: Node) -> bool:
    return isinstance(node, Convolution) and node.groups != 1


def _narrower(
    graph: SpikingGraph,
    node: Projection | Readout,
    rows: Sequence[int] | None,
    columns: Sequence[int] | None,
) -> Node:
    if isinstance(node, Convolution):
        return replace(
            node,
            channels=node.channels if rows is None else len(rows),
            in_channels=node.in_channels if columns is None else len(columns),
        )
    if isinstance(node, Linear):
        source = source_population(graph, node)
        inputs = node.in_features
        if columns is not None and source is not None:
            inputs = inputs // graph.shapes[source][0] * len(columns)
        return replace(
            node, features=node.features if rows is None else len(rows), in_features=inputs
        )
    return node


def _stricter(old: Validity, plan: RemovalPlan) -> Validity:
    new: Validity = plan.validity
    return Validity(
        new.time_steps if new.time_steps is not None else old.time_steps,
        old.reset_per_sample or new.reset_per_sample,
    )


def parameters(state: Mapping[str, Array]) -> int:
    """Number of trained values: weights and biases, not batch norm's running statistics."""
    return sum(
        int(np.prod(array.shape))
        for name, array in state.items()
        if not name.endswith(("running_mean", "running_var", "num_batches_tracked"))
    )
