"""Populations in ONNX: T steps of their neurons, one after the other."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
from onnx import AttributeProto, NodeProto, helper, numpy_helper

from soul_deploy import ir
from soul_deploy.base import errors
from soul_deploy.export.onnx import feedback
from soul_deploy.export.onnx import neuron as onnx_neuron
from soul_deploy.export.onnx.nodes import OnnxBuilder, mask_name, pattern_name, synapses
from soul_deploy.export.onnx.parallel import append_parallel
from soul_deploy.runtime.dynamics.equation import Number
from soul_deploy.runtime.dynamics.parallel import ParallelEquation
from soul_deploy.runtime.equations import Equation


def append_population(node: ir.Population, b: OnnxBuilder) -> None:
    """The neuron's step, T times; spikes leave merged, T-major."""
    name, value = node.name, b.value(node.name)
    stages = [f"{name}.fired"]
    stages += [f"{name}.all_channels"] if node.generated else []
    mask = b.lowered.model.neuron_masks.get(name)
    stages += [] if mask is None else [f"{name}.masked"]
    stages[-1] = value
    masked = mask is not None and node.feedback is not None
    if masked:  # each step's spikes are masked before they are fed back
        b.constant(mask_name(name), np.asarray(mask, np.float32))
    fired = _fire(b, node, stages[0])
    if node.generated:
        fired = _append_pattern(b, node, fired, stages[1])
    if mask is not None and not masked:
        b.constant(mask_name(name), mask.astype(b.dtype))
    if mask is not None:
        b.op("Mul", [fired, mask_name(name)], value)


def _fire(b: OnnxBuilder, node: ir.Population, output: str) -> str:
    """Charge, fire, reset; spikes of all steps (T·batch, ...)."""
    current, name, steps = b.source(node), node.name, b.graph.time_steps
    equation = b.lowered.equations[name]
    currents = [current] * steps
    if isinstance(equation, ParallelEquation):
        return _fire_together(b, node, equation, output)
    if node.inputs[0] not in b.static and steps > 1:
        currents = _split(b, current, name, steps)
    if name not in b.membranes or node.generated:
        b.op("Shape", [currents[0]], f"{name}.current_shape")
    one = output if steps == 1 and not b.functions else None
    spikes = [spike for spike, *_ in _steps(b, name, currents, one, _feeding(b, node))]
    if node.feedback is not None and name in b.membranes:
        b.op("Identity", [spikes[-1]], b.membranes[name][-1][1])
    return spikes[0] if spikes == [output] else b.op("Concat", spikes, output, axis=0)


def append_membranes(node: ir.Readout, b: OnnxBuilder, currents: Sequence[str]) -> list[str]:
    """The neurons behind the readout's head on the current of each step: their membranes, (batch,
    classes), after each.
    """
    name = node.neurons_name
    if name not in b.membranes:
        b.op("Shape", [currents[0]], f"{name}.current_shape")
    return [membrane for _, membrane, *_ in _steps(b, name, currents)]


Feeding = Callable[[str, int, str], str]
"""What makes a step's current, of what arrives, the step's number and the spikes of the one before
("": of the first)."""


def _steps(
    b: OnnxBuilder, name: str, currents: Sequence[str], only: str | None = None,
    feeding: Feeding | None = None,
) -> Iterator[Sequence[str]]:  # fmt: skip
    """The neuron's step on each current: (spike, states after it), from rest or as given.

    Needs their shape as `<name>.current_shape`, if from rest. only: the spike of a single step.
    """
    equation, given = b.lowered.equations[name], b.membranes.get(name, ())
    kept = _state_names(equation)
    state = [into for into, _ in given[: len(kept)]] or [
        _at_rest(b, f"{name}.{kind}", f"{name}.current_shape", value)
        for kind, value in zip(kept, equation.start, strict=True)
    ]
    spike = ""
    for t, x in enumerate(currents):
        x = x if feeding is None else feeding(x, t, spike)
        own = [out for _, out in given[: len(kept)]]
        after = own or [f"{name}.{kind}.{t}" for kind in kept]
        spike, *_ = made = only or f"{name}.spike.{t}", *after
        b.nodes += _step(b, name, t, (*state, x), made)
        yield made
        state = after


def _feeding(b: OnnxBuilder, node: ir.Population) -> Feeding | None:
    """What adds a population's feedback to its currents; before the first step nothing was sent, or
    in a file of one step what the last of its states holds.
    """
    name, back = node.name, node.feedback
    if back is None:
        return None
    masked = [mask_name(name)] if name in b.lowered.model.neuron_masks else []
    numbers = [*masked, *synapses(b, back.name)]
    if name in b.membranes:
        sent, _ = b.membranes[name][-1]
    else:
        sent = _at_rest(b, f"{back.name}.before", f"{name}.current_shape", 0.0)
    return lambda x, t, spikes: feedback.append_feedback(b, node, x, spikes or sent, numbers, t)


def _fire_together(
    b: OnnxBuilder, node: ir.Population, equation: ParallelEquation, output: str
) -> str:
    """As `_fire`, of neurons that mix the steps."""
    name, current = node.name, b.source(node)
    if b.functions:
        onnx_neuron.step_function(equation, b.opset)
    if node.inputs[0] in b.static and b.graph.time_steps > 1:
        repeated = [current] * b.graph.time_steps
        current = b.op("Concat", repeated, f"{name}.current", axis=0)
    stored = partial(onnx_neuron.constant_name, name)
    return append_parallel(b, name, equation, current, output, stored)


def _state_names(equation: Equation) -> tuple[str, ...]:
    """What the state's values are called: the first is the membrane."""
    return ("membrane", *equation.state[1:])


def _at_rest(b: OnnxBuilder, name: str, shape: str, rest: float) -> str:
    """The state before the first step. It is not a constant, so that ONNX Runtime cannot simplify
    the first step and move what is left of it into the convolution's weights (ConvAddFusion,
    ConvMulFusion): a product rounded at another place is another number."""
    value = numpy_helper.from_array(np.array([rest], b.dtype), "value")
    return b.op("ConstantOfShape", [shape], name, value=value)


def _append_pattern(b: OnnxBuilder, node: ir.Population, fired: str, output: str) -> str:
    """Behind the neurons' channels, those that fire a stored pattern: (T, generated)."""
    name, space = node.name, b.graph.shapes[node.name][1:]
    pattern = b.lowered.patterns[name].astype(b.dtype)
    steps, count = pattern.shape
    stored = b.constant(pattern_name(name), pattern.reshape(steps, 1, count, *[1] * len(space)))
    if b.counter:
        steps, stored = 1, b.op("Gather", [stored, b.counter], f"{name}.pattern_now", axis=0)
    shape, batch = f"{name}.current_shape", f"{name}.batch"
    b.op("Slice", [shape, *(b.integers(f"{batch}.{k}", k) for k in (0, 1))], batch)
    sides = [b.integers(f"{name}.steps", steps), batch, b.integers(f"{name}.sides", count, *space)]
    full = b.op("Concat", sides, f"{name}.full", axis=0)
    expanded = b.op("Expand", [stored, full], f"{name}.expanded")
    merged = (f"{name}.merged_shape", f"{name}.generated")
    generated = b.reshape(expanded, *merged, -1, count, *space)
    return b.op("Concat", [fired, generated], output, axis=1)


def _step(
    b: OnnxBuilder, name: str, step: int, inputs: Sequence[str], outputs: Sequence[str]
) -> list[NodeProto]:
    """The tensors that the step takes (states, x) and yields (spike, states after it)."""
    equation = b.lowered.equations[name]
    constants = sorted(onnx_neuron.attributes(equation).items())
    kind = onnx_neuron.function_name(equation)
    if b.functions:
        call = helper.make_node(kind, inputs, outputs, name=outputs[0], domain=onnx_neuron.DOMAIN)
        call.attribute.extend(_attribute(name, *item) for item in constants)
        return [call]
    function = onnx_neuron.step_function(equation, b.opset)
    taken = zip((*function.input, *function.output), (*inputs, *outputs), strict=True)
    ends = dict(taken)
    for constant, value in constants:
        ends[constant] = _constant(b, name, constant, value, step)
    nodes = list(onnx_neuron.flat_step(function, f"{name}/{step}", ends))
    for node in nodes:
        onnx_neuron.annotate(node, neuron=kind)
    return nodes


def _attribute(population: str, name: str, value: Number) -> AttributeProto:
    if isinstance(value, np.ndarray):
        raise errors.UnsupportedGraphError(
            f"{population}: its neurons differ in {name}, which attributes of a function cannot "
            "hold; export without functions"
        )
    return helper.make_attribute(name, value)


def _constant(b: OnnxBuilder, population: str, constant: str, value: Number, step: int) -> str:
    """The tensor that holds a neurons' number at a step; stored at the first one."""
    name = onnx_neuron.constant_name(population, constant)
    array = onnx_neuron.stored(value, b.graph.neurons_shape(population))
    if not step:
        b.constant(name, array)
    if len(array) == 1:
        return name
    at = b.counter or b.integers(f"{name}.step.{step}", step)
    return b.op("Gather", [name, at], f"{name}.at.{step}", axis=0)


def _split(b: OnnxBuilder, current: str, name: str, steps: int) -> list[str]:
    outputs = [f"{name}.current.{t}" for t in range(steps)]
    node = helper.make_node("Split", [current], outputs, name=f"{name}.split", axis=0)
    if b.opset >= 18:  # before, the number of equal parts is the number of outputs
        node.attribute.append(helper.make_attribute("num_outputs", steps))
    b.nodes.append(node)
    return outputs
