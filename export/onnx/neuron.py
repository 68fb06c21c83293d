"""One time step of a neuron in ONNX, with the operations of `runtime.equations`.

Either a call of a model-local function per neuron model, (v, x) -> (spike, v after reset), whose
attributes are the neuron's constants; or, since many engines know no such functions, its operators
in the graph itself, `<population>/<step>/<role>`, with the constants as initializers. The equation
itself is called, with values that write down what is done to them; another spelling of the formula
would round differently.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partialmethod

import numpy as np
from onnx import AttributeProto, FunctionProto, NodeProto, TensorProto, helper

from soul_deploy.base import Array, dispatch, errors
from soul_deploy.export.onnx import dynamics, integers, parallel
from soul_deploy.runtime import equations
from soul_deploy.runtime.dynamics.equation import DynamicsEquation, Number
from soul_deploy.runtime.dynamics.parallel import ParallelEquation
from soul_deploy.runtime.equations import Equation, FixedEquation, NeuronEquation

DOMAIN = "soul_deploy.neurons"
DOMAIN_VERSION = 1
CONSTANT, THRESHOLD, REST, SUBTRACT = "constant", "threshold", "rest", "subtract"
CHARGE, FIRE, RESET = "charge", "fire", "reset"  # the roles of a step's operators

FIRE_NODES: dict[equations.FireRule, str] = {"gt": "Greater", "ge": "GreaterOrEqual"}
WITHOUT_CONSTANT: tuple[equations.ChargeForm, ...] = ("integrate",)
WITHOUT_REST: tuple[equations.ChargeForm, ...] = (
    *("integrate", "leak_multiply", "leak_multiply_late"),
)


@dataclass(frozen=True)
class _Value:
    """A value inside the function; arithmetic with it appends the node that computes the result."""

    name: str
    nodes: list[NodeProto]

    def op(self, kind: str, other: "_Value") -> "_Value":
        name = f"s{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, [self.name, other.name], [name], name=name))
        return _Value(name, self.nodes)

    __add__ = partialmethod(op, "Add")
    __sub__ = partialmethod(op, "Sub")
    __mul__ = partialmethod(op, "Mul")
    __truediv__ = partialmethod(op, "Div")

    def __gt__(self, other: "_Value") -> "_Value":
        return self.op("Greater", other).as_number()

    def as_number(self, name: str = "") -> "_Value":
        """True as 1, False as 0."""
        name = name or f"s{len(self.nodes)}"
        cast = helper.make_node("Cast", [self.name], [name], name=name, to=TensorProto.FLOAT)
        self.nodes.append(cast)
        return _Value(name, self.nodes)


def _attribute(name: str) -> NodeProto:
    """The function's float attribute `name` as a scalar."""
    value = AttributeProto(name="value_float", type=AttributeProto.FLOAT, ref_attr_name=name)
    node = helper.make_node("Constant", [], [name], name=name)
    node.attribute.append(value)
    return node


@dispatch.operation_table(Equation)
def function_name(equation: Equation) -> str:
    """The function of this neuron model."""
    raise function_name.unknown(equation)


@function_name.on(NeuronEquation)
def _leaky_name(equation: NeuronEquation) -> str:
    """Charge form, firing comparison and reset."""
    reset = "soft" if equation.v_reset is None else "hard"
    reset = reset if equation.v_subtract is None else SUBTRACT
    return f"{equation.charge}_{equation.fire}_{reset}"


function_name.on(DynamicsEquation)(lambda equation: f"{equation.family}_{equation.send}")


function_name.on(ParallelEquation)(lambda equation: "psn")
function_name.on(FixedEquation)(lambda equation: f"fixed_{equation.fire}_{equation.reset}")


@dispatch.operation_table(Equation)
def attributes(equation: Equation) -> Mapping[str, Number]:
    """The attributes that a call of the function carries."""
    raise attributes.unknown(equation)


attributes.on(DynamicsEquation)(dynamics.attributes)
attributes.on(ParallelEquation)(parallel.attributes)
attributes.on(FixedEquation)(integers.attributes)


@attributes.on(NeuronEquation)
def _leaky_attributes(equation: NeuronEquation) -> dict[str, float]:
    names = {THRESHOLD: equation.v_threshold}
    if equation.charge not in WITHOUT_CONSTANT:
        names[CONSTANT] = equation.constant
    if equation.v_reset is not None or equation.charge not in WITHOUT_REST:
        names[REST] = equation.rest
    if equation.v_subtract is not None:
        names[SUBTRACT] = equation.v_subtract
    return {name: float(value) for name, value in names.items()}


@dispatch.operation_table(Equation)
def step_function(equation: Equation, opset: int) -> FunctionProto:
    """(states, x) -> (spike, states after it), all float32 of one shape; `ends_of` names them."""
    raise step_function.unknown(equation)


@step_function.on(DynamicsEquation)
def _dynamics_function(equation: DynamicsEquation, opset: int) -> FunctionProto:
    constants = [_attribute(name) for name in sorted(attributes(equation))]
    return dynamics.step_function(equation, DOMAIN, function_name(equation), constants, opset)


@step_function.on(FixedEquation)
def _fixed_function(equation: FixedEquation, opset: int) -> FunctionProto:
    fire = FIRE_NODES[equation.fire]
    return integers.step_function(equation, DOMAIN, function_name(equation), fire, opset)


step_function.refuse(
    ParallelEquation,
    error=lambda equation: errors.UnsupportedGraphError(
        "a PSN mixes all steps: no function, and no file, of one step holds it. Export operators "
        "of all steps"
    ),
)


@step_function.on(NeuronEquation)
def _leaky_function(equation: NeuronEquation, opset: int) -> FunctionProto:
    """(v, x) -> (spike, v_next); the spike is 0 or 1."""
    used = sorted(attributes(equation))
    nodes = [_attribute(name) for name in used]
    v, x = (_Value(name, nodes) for name in ("v", "x"))
    names = (THRESHOLD, CONSTANT, REST, SUBTRACT)
    threshold, constant, rest, subtract = (_Value(name, nodes) for name in names)
    v = equations.CHARGE[equation.charge](v, x, constant, rest, threshold)
    spike = v.op(FIRE_NODES[equation.fire], threshold).as_number("spike")
    if equation.v_reset is not None:
        equations.reset_hard(v, spike, rest)
    else:
        equations.reset_soft(v, spike, threshold if equation.v_subtract is None else subtract)
    nodes[-1].name = nodes[-1].output[0] = "v_next"
    ends = (["v", "x"], ["spike", "v_next"])
    opsets = [helper.make_opsetid("", opset)]
    name = function_name(equation)
    return helper.make_function(DOMAIN, name, *ends, nodes, opsets, attributes=used)


def stored(value: Number, shape: tuple[int, ...]) -> Array:
    """A constant as an initializer holds it: (1,), or (T or 1, C or 1, ...).

    shape: of the neurons.
    """
    if isinstance(value, np.ndarray) and value.dtype.kind in "iu":
        return integers.beside(value, shape)
    if isinstance(value, np.ndarray):
        return value.astype(np.float32)
    return np.full(1, value, np.float32)


def constant_name(population: str, constant: str) -> str:
    """The initializer that holds a constant of a population's neurons in a flat file."""
    return f"{population}.{constant}"


def flat_step(function: FunctionProto, place: str, ends: Mapping[str, str]) -> Iterator[NodeProto]:
    """The operators of one step in the graph itself, each with its role in the metadata.

    place: `<population>/<step>`, in front of the names of nodes and of the values between them;
    ends: the graph's names of the function's inputs, outputs and attributes.
    """
    names, role = dict(ends), CHARGE
    (compared,) = (n.input[0] for n in function.node if n.output[0] == "spike")
    for number, spelt in enumerate(n for n in function.node if n.op_type != "Constant"):
        role = FIRE if spelt.output[0] == compared else role
        said, _, _ = spelt.name.rpartition(".")
        role = said or role
        node = NodeProto()
        node.CopyFrom(spelt)
        node.name = f"{place}/{role}.{number}"
        node.input[:] = [names[name] for name in spelt.input]
        node.output[:] = [names.setdefault(name, node.name) for name in spelt.output]
        annotate(node, role=role)
        role = RESET if spelt.output[0] == "spike" else role
        yield node


def annotate(node: NodeProto, **entries: str) -> None:
    """Add to the node's metadata, which viewers show, what it has no entry for yet."""
    known = {entry.key for entry in node.metadata_props}
    for key in sorted(entries.keys() - known):
        node.metadata_props.add(key=key, value=entries[key])
