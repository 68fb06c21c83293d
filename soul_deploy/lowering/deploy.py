"""The lowered form of a model: deployed weights, linear operators, masks, what is counted.

Made once per model and read by whoever exports, counts, compares or verifies.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache

import numpy as np
import torch

from soul_deploy import ir
from soul_deploy.base import Array, brief, dispatch, errors
from soul_deploy.lowering import (
    compose_currents,
    fan_out,
    fold_batch_norm,
    linear_operators,
    one_to_one,
    rescaling,
)
from soul_deploy.lowering import sum_pools as sum_pools  # enters its operation
from soul_deploy.lowering.liveness import live_neurons, live_values
from soul_deploy.model.model import Model
from soul_deploy.nn import fixed
from soul_deploy.nn.dynamics import deployed
from soul_deploy.nn.neuron import learned_number
from soul_deploy.runtime.equations import Equation

CACHE = "_deployed"

linear_operators.base_operator.on(ir.OneToOne)(one_to_one.operator_of)


@brief
@dataclass(frozen=True)
class Deployed:
    """A model as it is deployed; what else it holds is computed when it is first asked for.

    synapses: deployed weights of every projection and of a linear readout, by node name.
    constants: those of operations that rescale their channels, by node name.
    """

    model: Model
    synapses: Mapping[str, fold_batch_norm.DeployedWeights]
    constants: linear_operators.Rescaling
    _operators: dict[str, linear_operators.LinearProjection] = field(
        default_factory=dict, repr=False, compare=False
    )

    @property
    def graph(self) -> ir.SpikingGraph:
        return self.model.graph

    def operator(self, name: str) -> linear_operators.LinearProjection:
        """The linear operator of a projection or of the readout. Raises as `lower_projection`."""
        if name not in self._operators:
            self._operators[name] = linear_operators.lower_projection(
                self.graph, self.synapses, name, self.constants
            )
        return self._operators[name]

    @cached_property
    def _composed(self) -> "Deployed | None":
        """None where it is the model's own form: an object that holds itself stays for long."""
        form = compose_currents.compose(self.graph, self.synapses, self.constants)
        if form is None:
            return None
        return Deployed(replace(self.model, graph=form.graph), form.synapses, form.rescaling)

    @property
    def composed(self) -> "Deployed":
        """The same network in which every average pooling and multiplication by constants stands
        in front of a projection or the readout (lowering/compose_currents.py): what is counted, and
        what the event runtime runs. A projection's current there may be that behind its pooling.
        """
        return self._composed or self

    @property
    def readout(self) -> linear_operators.ReadoutOperator:
        """The linear operator of the readout."""
        operator = self.operator(self.graph.readout.name).operator.readout
        assert operator is not None
        return operator

    @cached_property
    def equations(self) -> Mapping[str, Equation]:
        """The deployed equation of every population, by name; and that of the neurons behind the
        head, whose membrane is read, by theirs (`Readout.neurons_name`).
        """
        found = {
            node.name: equation_of(self.graph, node, self.model.state)
            for node in self.graph.populations
        }
        node = self.graph.readout
        if node.neuron is not None:
            name = node.neurons_name
            found[name] = deployed_neuron(node.neuron, name, 1, self.model.state)
        return found

    @property
    def membrane(self) -> Equation | None:
        """The equation of the neurons behind the head; None: there are none."""
        return self.equations.get(self.graph.readout.neurons_name)

    @cached_property
    def patterns(self) -> Mapping[str, Array]:
        """Stored spikes (T, generated) of populations with constant-pattern channels, by name."""
        names = (node.name for node in self.graph.populations if node.generated)
        return {name: self.model.state[f"{name}.pattern"] for name in names}

    @cached_property
    def live_values(self) -> Mapping[str, Array | None]:
        """Where each node can hold another value than 0, bool of its shape; None: everywhere."""
        return live_values(self.composed.graph, self.model.neuron_masks)

    @cached_property
    def live_neurons(self) -> Mapping[str, Array]:
        """Neurons that some output depends on: population -> bool of its shape."""
        form = self.composed
        return live_neurons(form.graph, form.operator, self.model.neuron_masks)

    @cached_property
    def trimmed(self) -> "Deployed":
        """The same with every neuron masked that no output depends on: outputs are unchanged."""
        masks = {name: keep for name, keep in self.live_neurons.items() if not keep.all()}
        model = replace(self.model, neuron_masks=masks)
        parts = self.synapses, self.constants, self._operators
        _keep(model, *parts)  # whoever lowers it again finds it done
        return Deployed(model, *parts)

    @cached_property
    def layers(self) -> tuple[fan_out.CountedLayer, ...]:
        """Every projection, then feedbacks, then the readout, in execution order."""
        form = self.composed
        graph = form.graph
        backs = (_layer(node, form, fan_out.CountedFeedback) for node in graph.feedbacks.values())
        plain = [_layer(node, form) for node in (*graph.projections, graph.readout)]
        return (*plain[:-1], *backs, plain[-1])

    @cached_property
    def counted(self) -> tuple[fan_out.Counted, ...]:
        """What it is counted by: projections, populations without one, poolings, the readout."""
        *projections, readout = self.layers
        have = {layer.name for layer in self.layers}
        form = self.composed
        others = [counted_as(node, form) for node in form.graph.nodes if node.name not in have]
        found = [entry for entry in others if entry is not None]
        return (*projections, *sorted(found, key=lambda entry: entry.population is None), readout)


@dispatch.operation_table(ir.Node)
def counted_as(node: ir.Node, lowered: Deployed) -> fan_out.Counted | None:
    """What a node is counted by; None where it has no operations of its own."""
    raise ir.no_entry(node, "counting")


counted_as.on(
    *(ir.Input, ir.AvgPool, ir.AdaptiveAvgPool, ir.Flatten, ir.Merge, ir.Scatter, ir.Scale),
    ir.ChannelNorm,
)(lambda node, lowered: None)


@counted_as.on(ir.Projection, ir.Readout)
def _layer(
    node: ir.Node, lowered: Deployed, kind: type[fan_out.CountedLayer] = fan_out.CountedLayer
) -> fan_out.CountedLayer:
    graph, linear = lowered.graph, lowered.operator(node.name)
    behind = fan_out.population_behind(graph, node.name)
    live = fan_out.live_targets(graph, lowered.model.neuron_masks, node.name)
    return kind(node.name, linear, graph.edges[linear.source], behind, live)


@counted_as.on(ir.MaxPool)
def _pooling(node: ir.MaxPool, lowered: Deployed) -> fan_out.CountedPooling:
    (source,) = node.inputs
    return fan_out.CountedPooling(node.name, source, node.kernel, node.stride, node.padding)


@counted_as.on(ir.Population)
def _neurons(node: ir.Population, lowered: Deployed) -> fan_out.CountedPopulation | None:
    """None for the only population behind a projection, or with a feedback: both are one entry."""
    if node.name in {layer.population for layer in lowered.layers}:
        return None
    shape, live = lowered.graph.shapes[node.inputs[0]], lowered.model.neuron_masks.get(node.name)
    return fan_out.CountedPopulation(node.name, shape, None if live is None else live[: shape[0]])


def equation_of(
    graph: ir.SpikingGraph, population: ir.Population, state: Mapping[str, Array]
) -> Equation:
    """The equation of one population; learned numbers are read from `state`, in float32."""
    rank = len(graph.shapes[population.inputs[0]])
    return deployed_neuron(population.neuron, population.name, rank, state)


def deployed_neuron(
    neuron: ir.NeuronSpec, name: str, rank: int, state: Mapping[str, Array]
) -> Equation:
    """The equation of neurons whose tensors are called after `name`; rank: axes of their shape."""
    if neuron.tensors:
        names = (own for own, _ in neuron.tensors)
        held = {own: torch.from_numpy(state[f"{name}.{own}"].copy()) for own in names}
        return fixed.deployed(neuron, held) if neuron.integers else deployed(neuron, held, rank)
    if not neuron.learned:
        return neuron.equation()
    w = torch.from_numpy(state[f"{name}.w"].copy())
    number = learned_number(neuron, w)
    if neuron.family == "ltmd" and not number > 0:
        raise errors.UnsupportedGraphError(
            f"{name}: its learned threshold tanh(w) is {number:g}; a threshold is above "
            "0, since neurons without input would fire. Train it further, or with a larger kappa"
        )
    return neuron.equation(number)


def lower(model: Model) -> Deployed:
    """The lowered form of `model`, made once and kept with it (a copy of the model makes its own).

    A model with another array in one of its mappings is lowered anew. Its arrays are read-only from
    then on, since a change in place would leave the form as it was (a view's base stays writable:
    change none of those). Raises UnsupportedGraphError where folding batch norm leaves float32.
    """
    kept: Deployed | None = vars(model).get(CACHE)
    if kept is None or not _hold_the_same(model, kept.model):
        synapses = fold_batch_norm.fold(model.graph, model.state, model.channel_masks)
        for array in (a for s in synapses.values() for a in (s.weight, s.bias) if a is not None):
            array.setflags(write=False)  # whoever hands one out as their own gives a copy
        constants = rescaling.channel_constants(model.graph, model.state, model.channel_masks)
        kept = _keep(model, synapses, constants, {})
    return kept


def _arrays(model: Model) -> tuple[dict[str, Array], dict[str, Array], dict[str, Array]]:
    return dict(model.state), dict(model.channel_masks), dict(model.neuron_masks)


def _keep(
    model: Model,
    synapses: Mapping[str, fold_batch_norm.DeployedWeights],
    constants: linear_operators.Rescaling,
    operators: dict[str, linear_operators.LinearProjection],
) -> Deployed:
    """Keep the lowered form with the model, whose arrays become read-only."""
    state, channels, neurons = _arrays(model)
    for array in (*state.values(), *channels.values(), *neurons.values()):
        array.setflags(write=False)
    # Of a twin: a model that its own lowered form holds would only be freed by the collector.
    twin = replace(model, state=state, channel_masks=channels, neuron_masks=neurons)
    kept = vars(model)[CACHE] = Deployed(twin, synapses, constants, operators)
    return kept


def _hold_the_same(model: Model, twin: Model) -> bool:
    return all(
        ours.keys() == kept.keys() and all(array is kept[name] for name, array in ours.items())
        for ours, kept in zip(_arrays(model), _arrays(twin), strict=True)
    )


def with_every_synapse(graph: ir.SpikingGraph) -> Deployed:
    """The lowered form of a graph whose weights are all 1, which says what could be connected."""
    readout = graph.readout
    shapes = {node.name: node.weight_shape for node in graph.projections}
    if readout.linear:
        shapes[readout.name] = (readout.classes, graph.shapes[readout.inputs[0]][0])
    for population, back in graph.feedbacks.items():
        one = fold_batch_norm.by_channel(graph.shapes[population])
        shapes[back.name] = back.weight_shape if isinstance(back, ir.Projection) else one
    ones = {
        name: fold_batch_norm.DeployedWeights(np.broadcast_to(np.float32(1), shape), None)
        for name, shape in shapes.items()
    }
    return lower_synapses(graph, ones, {})


@lru_cache(maxsize=16)
def composed_graph(graph: ir.SpikingGraph) -> ir.SpikingGraph:
    """The graph of the composed form (`Deployed.composed`), which no weight decides about."""
    return with_every_synapse(graph).composed.graph


def lower_synapses(
    graph: ir.SpikingGraph,
    synapses: Mapping[str, fold_batch_norm.DeployedWeights],
    neuron_masks: Mapping[str, Array],
) -> Deployed:
    """The lowered form of deployed weights that are no model's, by node name; constants that a map
    is multiplied by channel by channel are taken for 1.
    """
    constants = rescaling.channel_constants(graph, {})
    return Deployed(Model(graph, {}, neuron_masks=neuron_masks), synapses, constants)
