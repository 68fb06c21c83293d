"""One time step of a neuron family of `runtime.dynamics` in ONNX, by the family's own functions.

They are called with values that write down what is done to them. Nodes are named by their role and
number: `charge.0`, `fire.4`, `reset.6`.
"""

from dataclasses import dataclass, field
from functools import partialmethod
from typing import Any

from onnx import FunctionProto, NodeProto, TensorProto, helper

from soul_deploy.runtime.dynamics.equation import DynamicsEquation, Number, parts_of
from soul_deploy.runtime.dynamics.form import Operations

LOW, HIGH, HALF, ZERO = "low", "high", "half", "zero"
CONSTANT = "constant_"
STATE = "state_"


@dataclass
class Written:
    """The nodes written so far, and the role of the next ones."""

    role: str = "charge"
    nodes: list[NodeProto] = field(default_factory=list)

    def add(self, kind: str, *inputs: str, **attributes: Any) -> "Traced":
        """One more node."""
        name = f"{self.role}.{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        return Traced(name, self)


@dataclass(frozen=True)
class Traced:
    """A value of the graph; arithmetic with it writes the node that computes the result."""

    name: str
    to: Written

    def op(self, kind: str, *others: "Traced") -> "Traced":
        return self.to.add(kind, self.name, *(other.name for other in others))

    __add__ = partialmethod(op, "Add")
    __sub__ = partialmethod(op, "Sub")
    __mul__ = partialmethod(op, "Mul")
    __truediv__ = partialmethod(op, "Div")


def _choose(s: Traced, a: Traced, b: Traced) -> Traced:
    fired = s.op("Greater", Traced(ZERO, s.to))
    return fired.op("Where", a, b)


def _compare(kind: str, p: Traced, level: Traced) -> Traced:
    return p.to.add("Cast", p.op(kind, level).name, to=TensorProto.FLOAT)


def _within(p: Traced, low: Traced, high: Traced) -> Traced:
    return p.op("Max", low).op("Min", high)


def _round_up(p: Traced, low: Traced, high: Traced) -> Traced:
    return (_within(p, low, high) + Traced(HALF, p.to)).op("Floor")


ONNX = Operations(
    sigmoid=lambda x: x.op("Sigmoid"),
    exp=lambda x: x.op("Exp"),
    relu=lambda x: x.op("Relu"),
    minimum=lambda a, b: a.op("Min", b),
    choose=_choose,
    held=lambda s: s,
    above=lambda a, b: _compare("Greater", a, b),
    send={
        "gt": lambda p, level, low, high: _compare("Greater", p, level),
        "ge": lambda p, level, low, high: _compare("GreaterOrEqual", p, level),
        "round": lambda p, level, low, high: _within(p, low, high).op("Round"),
        "round_up": lambda p, level, low, high: _round_up(p, low, high),
    },
)


def attributes(equation: DynamicsEquation) -> dict[str, Number]:
    """The numbers that the step uses, by name."""
    named: dict[str, Number] = {
        f"{CONSTANT}{name}": value for name, value in equation.named.items()
    }
    named |= {LOW: float(equation.low), HIGH: float(equation.high), HALF: 0.5, ZERO: 0.0}
    read = {name for node in step_nodes(equation) for name in node.input}
    return {name: value for name, value in named.items() if name in read}


def step_nodes(equation: DynamicsEquation) -> list[NodeProto]:
    """The step's operators: (states, x) -> (spike, states_next), float32 of one shape."""
    to = Written()
    family = equation.dynamics
    numbers = tuple(Traced(f"{CONSTANT}{name}", to) for name in family.constants)
    state = tuple(Traced(f"{STATE}{name}", to) for name in family.state)
    parts = parts_of(equation.family, ONNX)
    state = parts.charge(Traced("x", to), state, numbers)
    potential, level = parts.decide(state, numbers)
    to.role = "fire"
    bounds = Traced(LOW, to), Traced(HIGH, to)
    sent = ONNX.send[equation.send](potential, level, *bounds)
    spike = to.nodes[-1]
    spike.output[0] = "spike"
    to.role = "reset"
    after = parts.settle(Traced(spike.output[0], to), state, numbers)
    assert sent.name == spike.name
    for name, value in zip(family.state, after, strict=True):
        to.add("Identity", value.name)
        to.nodes[-1].output[0] = f"{STATE}{name}_next"
    return to.nodes


def step_function(
    equation: DynamicsEquation, domain: str, name: str, constants: list[NodeProto], opset: int
) -> FunctionProto:
    """The model-local function of the step; constants: the nodes that give its attributes."""
    states = [f"{STATE}{s}" for s in equation.state]
    ends = [*states, "x"], ["spike", *(f"{s}_next" for s in states)]
    used = sorted(attributes(equation))
    opsets = [helper.make_opsetid("", opset)]
    nodes = [*constants, *step_nodes(equation)]
    return helper.make_function(domain, name, *ends, nodes, opsets, attributes=used)
