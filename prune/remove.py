"""Applying a removal plan: rows and columns are cut, names stay. Short, so that it is not wrong."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from soul_deploy.graph import (
    Convolution,
    Linear,
    Node,
    Population,
    Projection,
    Readout,
    SpikingGraph,
)
from soul_deploy.modelfile import Model, Validity, check_state
from soul_deploy.prune.plan import LayerRemoval, RemovalPlan
from soul_deploy.prune.planner import source_population, with_bias
from soul_deploy.runtime.files import Array

Part = Callable[[LayerRemoval], tuple[int, ...]]
BATCH_NORM_PARTS = ("weight", "bias", "running_mean", "running_var")


def remove(model: Model, plan: RemovalPlan) -> Model:
    """The compact network: the same outputs from fewer channels, under the same names.

    Masks of channels and neurons that stay are kept.
    """
    graph, state = model.graph, dict(model.state)
    changed: dict[str, Node] = {}
    for projection in graph.projections:
        state = dict(with_bias(state, projection, plan.bias.get(projection.name)))
    nodes: list[Projection | Readout] = [*graph.projections, graph.readout]
    for node in nodes:
        cut = _Cut(graph, node, plan)
        cut.apply(state)
        changed[node.name] = cut.narrower(state)
    for layer in plan.layers:
        if layer.generated:
            population = graph[layer.population]
            assert isinstance(population, Population)
            changed[population.name] = replace(population, generated=len(layer.generated))
            patterns = np.array(list(layer.generated.values()), np.float32).T
            state[f"{population.name}.pattern"] = np.ascontiguousarray(patterns)
    narrow = graph.with_nodes(changed)
    check_state(narrow, state, "the compact network")
    info = replace(model.info, stage="compact", validity=_stricter(model.info.validity, plan))
    return Model(
        narrow,
        state,
        _sliced(model.channel_masks, plan, lambda layer: layer.kept),
        info,
        _sliced(model.neuron_masks, plan, lambda layer: layer.outputs),
    )


def _sliced(masks: Mapping[str, Array], plan: RemovalPlan, part: Part) -> dict[str, Array]:
    """Masks of what stays; those that mask nothing any more are dropped."""
    sliced = {}
    for name, keep in masks.items():
        layer = plan.layer(name)
        sliced[name] = keep if layer is None else keep[list(part(layer))]
    return {name: keep for name, keep in sliced.items() if not keep.all()}


class _Cut:
    """Which rows and columns of one projection or readout stay; None: all."""

    def __init__(self, graph: SpikingGraph, node: Projection | Readout, plan: RemovalPlan) -> None:
        self.node = node
        self.grouped = isinstance(node, Convolution) and node.groups != 1
        behind = [plan.layer(name) for name in graph.consumers[node.name]]
        self.rows: Sequence[int] | None = next((b.kept for b in behind if b is not None), None)
        source = source_population(graph, node)
        before = None if source is None or self.grouped else plan.layer(source)
        self.columns: Sequence[int] | None = None if before is None else before.outputs
        self.channels = 0 if before is None else before.channels

    def apply(self, state: dict[str, Array]) -> None:
        """Cut weight, bias and batch norm in `state`."""
        node = self.node
        if isinstance(node, Readout) and not node.linear:
            return
        name = f"{node.name}.weight"
        if self.columns is not None:
            weight = state[name]
            blocks = weight.reshape(len(weight), self.channels, -1)[:, list(self.columns)]
            sides = (len(self.columns), *weight.shape[2:]) if weight.ndim == 4 else (-1,)
            state[name] = np.ascontiguousarray(blocks.reshape(len(weight), *sides))
        if self.rows is None:
            return
        names = [name, f"{node.name}.bias"]
        if isinstance(node, Projection) and node.norm is not None:
            names += [f"{node.norm.name}.{part}" for part in BATCH_NORM_PARTS]
        for entry in names:
            if entry in state:
                state[entry] = state[entry][list(self.rows)]

    def narrower(self, state: Mapping[str, Array]) -> Node:
        """The node with the sizes that its cut weights have."""
        node = self.node
        if isinstance(node, Readout):
            return node
        weight = state[f"{node.name}.weight"]
        bias = f"{node.name}.bias" in state
        if isinstance(node, Convolution):
            inputs = weight.shape[1] * node.groups
            return replace(node, channels=len(weight), in_channels=inputs, bias=bias)
        assert isinstance(node, Linear), node
        return replace(node, features=len(weight), in_features=weight.shape[1], bias=bias)


def _stricter(old: Validity, plan: RemovalPlan) -> Validity:
    new: Validity = plan.validity
    return Validity(
        new.time_steps if new.time_steps is not None else old.time_steps,
        old.reset_per_sample or new.reset_per_sample,
    )


def parameters(state: Mapping[str, Array]) -> int:
    """Number of trained values: weights and biases, not running statistics or patterns."""
    skipped = ("running_mean", "running_var", "num_batches_tracked", "pattern")
    return sum(int(a.size) for name, a in state.items() if not name.endswith(skipped))
