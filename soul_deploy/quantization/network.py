"""The fixed-point network: a Model of integers, for units that are chosen."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np

from soul_deploy import ir
from soul_deploy.base import Array, brief, errors
from soul_deploy.lowering import bounds, deploy
from soul_deploy.model.model import Model
from soul_deploy.quantization import neurons, structure, units
from soul_deploy.quantization.neurons import RealNeuron
from soul_deploy.quantization.units import Unit
from soul_deploy.runtime.dynamics.form import Granularity
from soul_deploy.runtime.equations import leak_numbers

Membrane = Literal["auto", "int16", "int32"]
MEMBRANES: tuple[Membrane, ...] = get_args(Membrane)
INT16_BITS, MOST_BITS = 15, 29


@brief
@dataclass(frozen=True)
class Plan:
    """All that decides the integers: the real form, its neurons, the units of its currents.

    units: by the node that holds the current.
    """

    model: Model
    form: structure.RealForm
    neurons: Mapping[str, RealNeuron]
    units: Mapping[str, Unit]
    head: float
    input: structure.InputUnits
    counts: int

    def unit_for(self, population: str) -> Unit:
        """The unit of a population's membrane."""
        node = next(n for n in self.form.nodes if n.name == population)
        return self.units[node.inputs[0]]


def make_plan(model: Model, choice: units.UnitChoice, counts: int = 1) -> Plan:
    """counts: the largest input of a network that takes counts.

    Raises UnsupportedGraphError, naming the node, for what has no form in fixed point.
    """
    if model.graph.integers:
        raise errors.UsageError(
            "the model is a fixed-point network already; give the one that it was made of"
        )
    lowered = deploy.lower(model).composed
    form = structure.real_form(lowered)
    real = {
        node.name: neurons.real_neuron(node, lowered.equations[node.name])
        for node in lowered.graph.populations
    }
    found: dict[str, Unit] = {}
    for meeting in units.meetings(form, lowered.graph.input.name):
        unit = units.unit_of(meeting, form.weights, real, choice)
        found |= dict.fromkeys(meeting.nodes, unit)
    head = 1.0 if form.head is None else units.head_unit(form.head, choice)
    given = structure.input_units(lowered)
    return Plan(model, form, real, found, head, given, counts)


def integer_network(plan: Plan, bits: Mapping[str, int] | None = None) -> Model:
    """The network of the plan's integers; bits: p of the membranes that are not int16.

    Raises UnsupportedGraphError where a current does not fit the definition.
    """
    bits = bits or {}
    graph = plan.model.graph
    state: dict[str, Array] = {}
    made: list[ir.Node] = [_input(plan)]
    for node in plan.form.nodes[:-1]:
        kept: ir.Node = node
        if isinstance(node, ir.Projection):
            state |= _synapses(plan, node)
        elif isinstance(node, ir.Population):
            p = bits.get(node.name, INT16_BITS)
            kept, tensors = _population(plan, node, p)
            state |= tensors
        made.append(kept)
    readout, head = _readout(plan)
    network = ir.SpikingGraph((*made, readout), graph.time_steps)
    masks = dict(plan.model.neuron_masks)
    found = Model(network, state | head, info=plan.model.info, neuron_masks=masks)
    bounds.current_bounds(deploy.lower(found))
    return found


def _input(plan: Plan) -> ir.IntegerInput:
    given, rule = plan.model.graph.input, plan.input
    if plan.model.info.input_kind == "images":
        zero = rule.zero or (0,)
        return ir.IntegerInput(
            given.name, (), given.shape, -max(zero), structure.PIXELS - min(zero), rule.zero
        )
    most = 1 if plan.model.info.input_kind == "spikes" else plan.counts
    kind = ir.IntegerInput if given.events is None else ir.IntegerEventInput
    return kind(given.name, (), given.shape, 0, most)


def _synapses(plan: Plan, node: ir.Projection) -> dict[str, Array]:
    real, unit = plan.form.weights[node.name], plan.units[node.name]
    found = {f"{node.name}.weight": units.int8(real.weight * unit.gain, unit.values)}
    if real.bias is not None:
        bias = units.in_units(real.bias * unit.gain, unit.values)
        found[f"{node.name}.bias"] = bias.astype(np.int32)
    return found


def _population(
    plan: Plan, node: ir.Population, bits: int
) -> tuple[ir.Population, dict[str, Array]]:
    real, unit = plan.neurons[node.name], plan.unit_for(node.name).values
    multiplier, shift = leak_numbers(real.leak, bits)
    settings: dict[str, Any] = {
        "multiplier": multiplier,
        "shift": shift,
        "low": -(1 << bits),
        "high": (1 << bits) - 1,
        "reset": ir.fixed.RESETS.index(real.reset),
    }
    tensors = {"threshold": neurons.threshold_of(real, unit), "unit": np.asarray(unit, np.float32)}
    if real.subtract is not None:
        tensors["subtract"] = np.asarray(np.rint(real.subtract / unit), np.int32)
    each: Granularity = "channel" if unit.ndim else "layer"
    order = [name for name in ir.fixed.TENSORS if name in tensors]
    spec = ir.NeuronSpec(
        ir.fixed.FIXED,
        fire=real.fire,
        settings=tuple((name, float(value)) for name, value in settings.items()),
        tensors=tuple((name, each) for name in order),
    )
    held = {f"{node.name}.{name}": tensors[name] for name in order}
    if node.generated:
        held[f"{node.name}.pattern"] = np.array(plan.model.state[f"{node.name}.pattern"])
    return replace(node, neuron=spec), held


def _readout(plan: Plan) -> tuple[ir.Readout, dict[str, Array]]:
    """The scale of the float readout and that of the new one may differ: it goes into the unit."""
    node, head = plan.form.nodes[-1], plan.form.head
    assert isinstance(node, ir.Readout)
    unit = plan.head * plan.form.scale * head_divisor(plan)
    made = replace(node, unit=unit)
    if head is None:
        return made, {}
    found = {f"{node.name}.weight": units.int8(head.weight, plan.head)}
    if head.bias is not None:
        bias = units.in_units(head.bias, plan.head * plan.form.scale)
        found[f"{node.name}.bias"] = bias.clip(-(1 << 29), 1 << 29).astype(np.int32)
    return made, found


def head_divisor(plan: Plan) -> int:
    """What the readout divides a step's sums by, H · W · votes."""
    node = plan.form.nodes[-1]
    assert isinstance(node, ir.Readout)
    return replace(node, over_time="sum").divisor(_shape_before(plan, node), 1)


def _shape_before(plan: Plan, readout: ir.Readout) -> ir.Shape:
    (name,) = readout.inputs
    shapes = plan.model.graph.shapes
    if name in shapes:
        return shapes[name]
    flat = next(node for node in plan.form.nodes if node.name == name)
    return (int(np.prod(shapes[flat.inputs[0]])),)
