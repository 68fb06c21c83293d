"""One time step of a neuron as an ONNX function, with the operations of `runtime.equations` does.

A model-local function per neuron model, (v, x) -> (spike, v after reset), keeps the file readable
in a viewer: its attributes are the neuron's constants. Every operation, and its order, is that of
the equation; another spelling of the same formula rounds differently and is another spike.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import onnx
from onnx import AttributeProto, FunctionProto, NodeProto, helper

from soul_deploy.runtime.equations import ChargeForm, FireRule, NeuronEquation

DOMAIN = "soul_deploy.neurons"
DOMAIN_VERSION = 1
CONSTANT, THRESHOLD, REST, SUBTRACT = "constant", "threshold", "rest", "subtract"


@dataclass
class _Body:
    """The function's nodes in order; every helper returns the name of the value it made."""

    nodes: list[NodeProto] = field(default_factory=list)

    def op(self, kind: str, *inputs: str, output: str = "") -> str:
        name = output or f"s{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name=name))
        return name

    def add(self, a: str, b: str, output: str = "") -> str:
        return self.op("Add", a, b, output=output)

    def sub(self, a: str, b: str, output: str = "") -> str:
        return self.op("Sub", a, b, output=output)

    def mul(self, a: str, b: str) -> str:
        return self.op("Mul", a, b)

    def div(self, a: str, b: str) -> str:
        return self.op("Div", a, b)

    def attribute(self, name: str) -> str:
        """The function's float attribute `name` as a scalar."""
        value = AttributeProto(name="value_float", type=AttributeProto.FLOAT, ref_attr_name=name)
        node = helper.make_node("Constant", [], [name], name=name)
        node.attribute.append(value)
        self.nodes.append(node)
        return name


def _integrate(b: _Body, v: str, x: str, a: str, r: str) -> str:
    return b.add(v, x)


def _soul_lif_decay(b: _Body, v: str, x: str, a: str, r: str) -> str:
    return b.add(v, b.div(b.add(b.sub(r, v), x), a))


def _soul_lif(b: _Body, v: str, x: str, a: str, r: str) -> str:
    return b.add(b.add(v, b.div(b.sub(r, v), a)), x)


def _decay_divide(b: _Body, v: str, x: str, a: str, r: str) -> str:
    return b.add(v, b.div(b.sub(x, b.sub(v, r)), a))


def _decay_multiply(b: _Body, v: str, x: str, a: str, r: str) -> str:
    return b.add(v, b.mul(b.sub(x, b.sub(v, r)), a))


def _leak_multiply(b: _Body, v: str, x: str, a: str, r: str) -> str:
    return b.add(b.mul(v, a), x)


def _leak_subtract_divide(b: _Body, v: str, x: str, a: str, r: str) -> str:
    return b.add(b.sub(v, b.div(b.sub(v, r), a)), x)


def _leak_subtract_multiply(b: _Body, v: str, x: str, a: str, r: str) -> str:
    return b.add(b.sub(v, b.mul(b.sub(v, r), a)), x)


CHARGE_NODES: dict[ChargeForm, Callable[[_Body, str, str, str, str], str]] = {
    "integrate": _integrate,
    "soul_lif_decay": _soul_lif_decay,
    "soul_lif": _soul_lif,
    "decay_divide": _decay_divide,
    "decay_multiply": _decay_multiply,
    "leak_multiply": _leak_multiply,
    "leak_subtract_divide": _leak_subtract_divide,
    "leak_subtract_multiply": _leak_subtract_multiply,
}
FIRE_NODES: dict[FireRule, str] = {"gt": "Greater", "ge": "GreaterOrEqual"}
WITHOUT_CONSTANT: tuple[ChargeForm, ...] = ("integrate",)
WITHOUT_REST: tuple[ChargeForm, ...] = ("integrate", "leak_multiply")


def function_name(equation: NeuronEquation) -> str:
    """The function of this neuron model: charge form, firing comparison and reset."""
    reset = "soft" if equation.v_reset is None else "hard"
    reset = reset if equation.v_subtract is None else SUBTRACT
    return f"{equation.charge}_{equation.fire}_{reset}"


def attributes(equation: NeuronEquation) -> dict[str, float]:
    """The attributes that a call of the function carries."""
    names = {THRESHOLD: equation.v_threshold}
    if equation.charge not in WITHOUT_CONSTANT:
        names[CONSTANT] = equation.constant
    if equation.v_reset is not None or equation.charge not in WITHOUT_REST:
        names[REST] = equation.rest
    if equation.v_subtract is not None:
        names[SUBTRACT] = equation.v_subtract
    return {name: float(value) for name, value in names.items()}


def step_function(equation: NeuronEquation, opset: int) -> FunctionProto:
    """(v, x) -> (spike, v_next), all float32 of one shape; the spike is 0 or 1."""
    body = _Body()
    used = sorted(attributes(equation))
    named = {name: body.attribute(name) for name in used}
    constant, rest = named.get(CONSTANT, ""), named.get(REST, "")
    v = CHARGE_NODES[equation.charge](body, "v", "x", constant, rest)
    fired = body.op(FIRE_NODES[equation.fire], v, THRESHOLD)
    body.nodes.append(
        helper.make_node("Cast", [fired], ["spike"], name="spike", to=onnx.TensorProto.FLOAT)
    )
    if equation.v_reset is None:
        taken = THRESHOLD if equation.v_subtract is None else SUBTRACT
        body.sub(v, body.mul("spike", taken), output="v_next")
    else:
        kept = body.sub(v, body.mul("spike", v))
        body.add(kept, body.mul("spike", REST), output="v_next")
    return helper.make_function(
        DOMAIN,
        function_name(equation),
        ["v", "x"],
        ["spike", "v_next"],
        body.nodes,
        [helper.make_opsetid("", opset)],
        attributes=used,
    )
