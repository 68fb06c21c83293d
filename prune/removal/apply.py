"""Applying a removal plan: rows and columns are cut, names stay. Short, so that it is not wrong."""

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from soul_deploy import ir
from soul_deploy.base import Array, memory
from soul_deploy.model.file import check_state
from soul_deploy.model.model import Model, Validity
from soul_deploy.prune.removal import connections, planner
from soul_deploy.prune.removal.plan import LayerRemoval, RemovalPlan

Part = Callable[[LayerRemoval], tuple[int, ...]]
State = dict[str, Array]


def removal_bytes(model: Model, plan: RemovalPlan) -> int:
    """Bytes that `remove` takes besides the model: copies of its weights, at most all of them, and
    the patterns of constant-pattern channels.
    """
    steps = model.graph.time_steps
    patterns = sum(4 * steps * len(layer.generated) for layer in plan.layers)
    return sum(array.nbytes for array in model.state.values()) + patterns


def remove(
    model: Model, plan: RemovalPlan | None = None, *, max_memory: int | None = None
) -> Model:
    """The compact network: the same outputs from fewer channels, under the same names.

    plan: what goes; None: what `plan_removal` finds. max_memory: bytes that it may take besides
    the model; None: what the machine has. Raises LimitError for more, before anything is made.

    Masks of channels and neurons that stay are kept. A scattered branch `x` gets a node `x.scatter`
    behind it.
    """
    if plan is None:
        plan = planner.plan_removal(model, max_memory=max_memory)
    needed = removal_bytes(model, plan)
    memory.require_memory("the removal", needed, max_memory, "Give more with --max_memory")
    graph, state = model.graph, dict(model.state)
    changed: dict[str, ir.Node] = {}
    for projection in graph.projections:
        name = projection.name
        state = dict(connections.with_bias(state, projection, plan.bias.get(name)))
        biased = replace(projection, bias=f"{name}.bias" in state)
        _cut(graph, biased, plan, state)
        changed[name] = biased.resized(state[f"{name}.weight"].shape)
    _cut_constants(graph, plan, state)
    _cut(graph, graph.readout, plan, state)
    for node in graph.populations:
        _cut_neurons(node, plan, state)
        if isinstance(node.feedback, ir.Projection):
            shape = state[f"{node.feedback.name}.weight"].shape
            changed[node.name] = replace(node, feedback=node.feedback.resized(shape))
    populations = {node.name: node for node in graph.populations}
    for layer in plan.layers:
        if layer.generated:
            population = populations[layer.population]
            changed[population.name] = replace(population, generated=len(layer.generated))
            patterns = np.array(list(layer.generated.values()), np.float32).T
            state[f"{population.name}.pattern"] = np.ascontiguousarray(patterns)
    narrow = _narrower(graph, changed, plan)
    check_state(narrow, state, "the compact network")
    info = replace(model.info, stage="compact", validity=_stricter(model.info.validity, plan))
    channels = _sliced(model.channel_masks, plan, lambda layer: layer.kept)
    neurons = _sliced(model.neuron_masks, plan, lambda layer: layer.outputs)
    return Model(narrow, state, channels, info, neurons)


def places(graph: ir.SpikingGraph, state: Mapping[str, Array], plan: RemovalPlan) -> State:
    """Where each value of the compact network stands in the whole one: name -> flat indices.

    They have the shapes of the compact tensors. For plans that only cut: no channel is folded or
    generated.
    """
    found: State = {
        name: np.arange(array.size).reshape(array.shape) for name, array in state.items()
    }
    for projection in graph.projections:
        _cut(graph, projection, plan, found)
    _cut_constants(graph, plan, found)
    _cut(graph, graph.readout, plan, found)
    for node in graph.populations:
        _cut_neurons(node, plan, found)
    return found


def _narrower(
    graph: ir.SpikingGraph, changed: Mapping[str, ir.Node], plan: RemovalPlan
) -> ir.SpikingGraph:
    """The graph with its changed nodes, and a scatter behind each scattered branch."""
    places = {layer.population: _scatter(layer) for layer in plan.layers if layer.scattered}
    nodes: list[ir.Node] = []
    for node in graph.nodes:
        inputs = tuple(places[i].name if i in places else i for i in node.inputs)
        nodes.append(replace(changed.get(node.name, node), inputs=inputs))
        if node.name in places:
            nodes.append(places[node.name])
    return ir.SpikingGraph(tuple(nodes), graph.time_steps)


def _scatter(layer: LayerRemoval) -> ir.Scatter:
    stream = layer.columns
    index = tuple(stream.index(channel) for channel in layer.kept)
    return ir.Scatter(f"{layer.population}.scatter", (layer.population,), len(stream), index)


def _sliced(masks: Mapping[str, Array], plan: RemovalPlan, part: Part) -> dict[str, Array]:
    """Masks of what stays; those that mask nothing any more are dropped."""
    sliced = dict(masks)
    for name in masks:
        layer = plan.layer(name)
        if layer is not None and layer.tied is None:
            sliced[name] = masks[name][list(part(layer))]
    return {name: keep for name, keep in sliced.items() if not keep.all()}


def _cut(
    graph: ir.SpikingGraph, node: ir.Projection | ir.Readout, plan: RemovalPlan, state: State
) -> None:
    """Cut rows and columns of one node in `state`: weight, bias, batch norm."""
    rows, source = _changed(plan, node.name), connections.source_member(graph, node.name)
    before = None if source is None else _changed(plan, source)
    if rows is not None:
        for entry in node.row_tensors:
            state[entry] = state[entry].take(rows.kept, axis=0)
    if before is not None and node.weighs:
        weight = state[f"{node.name}.weight"]
        blocks = weight.reshape(len(weight), before.channels, -1).take(before.columns, axis=1)
        sides = (len(before.columns), *weight.shape[2:]) if weight.ndim == 4 else (-1,)
        state[f"{node.name}.weight"] = blocks.reshape(len(weight), *sides)


def _cut_neurons(node: ir.Population, plan: RemovalPlan, state: State) -> None:
    """Cut the numbers that neurons have by channel, or each of its own, and their feedback."""
    rows = _changed(plan, node.name)
    if rows is None:
        return
    for name, kind in node.neuron.tensors:
        if kind in ("channel", "neuron", "step_channel"):
            key, axis = f"{node.name}.{name}", int(kind == "step_channel")
            state[key] = np.ascontiguousarray(state[key].take(rows.kept, axis=axis))
    for key in () if node.feedback is None else node.feedback.row_tensors:
        state[key] = np.ascontiguousarray(state[key].take(rows.kept, axis=0))
        if state[key].ndim > 1:
            state[key] = np.ascontiguousarray(state[key].take(rows.kept, axis=1))


def _cut_constants(graph: ir.SpikingGraph, plan: RemovalPlan, state: State) -> None:
    """Cut, in `state`, the constants that whole channels are multiplied by."""
    for node in graph.nodes:
        source = connections.source_member(graph, node.name) if node.rescales else None
        layer = None if source is None else _changed(plan, source)
        if source is not None and layer is not None:
            kept = layer.columns if graph[source].fires else layer.kept
            for entry in node.row_tensors:
                state[entry] = state[entry].take(kept, axis=0)


def _changed(plan: RemovalPlan, name: str) -> LayerRemoval | None:
    """The entry of a population or projection that loses channels; None for one that does not."""
    layer = plan.layer(name)
    return None if layer is None or not (layer.removed or layer.generated) else layer


def _stricter(old: Validity, plan: RemovalPlan) -> Validity:
    new: Validity = plan.validity
    steps = old.time_steps if new.time_steps is None else new.time_steps
    return Validity(steps, old.reset_per_sample or new.reset_per_sample)


def parameters(state: Mapping[str, Array]) -> int:
    """Number of trained values: weights and biases, not running statistics or patterns."""
    skipped = ("running_mean", "running_var", "num_batches_tracked", "pattern")
    return sum(int(a.size) for name, a in state.items() if not name.endswith(skipped))
