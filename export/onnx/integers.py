"""Fixed-point networks in ONNX (docs/fixed-point.md): int8 weights, int32 sums and neurons.

Values between nodes are int32, the network's input is uint8. Standard operators take no more than 8
bits, and some processors add two products of them in int16 (ONNX Runtime without VNNI), so what can
be above 127 is weighed by its digits of 7 bits: then two products fit.
"""

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from onnx import FunctionProto, NodeProto, TensorProto, helper

from soul_deploy import ir
from soul_deploy.base import Array, errors
from soul_deploy.export.onnx.convolution import pads
from soul_deploy.lowering.deploy import Deployed
from soul_deploy.nn.graph_module import Signal
from soul_deploy.runtime.equations import FixedEquation

if TYPE_CHECKING:
    from soul_deploy.export.onnx.nodes import OnnxBuilder

DIGIT = 128
OFFSET = 1 << 30
INPUT_TYPE, VALUE_TYPE = TensorProto.UINT8, TensorProto.INT32
LARGEST_INPUT = 255


def require_form(graph: ir.SpikingGraph, *, functions: bool) -> None:
    """Raise UsageError for neurons as functions, UnsupportedGraphError for an input that uint8
    cannot hold."""
    if graph.integers and functions:
        raise errors.UsageError(
            "functions given; the neurons of a fixed-point network are operators in the graph"
        )
    if isinstance(graph.input, ir.IntegerInput) and graph.input.high > LARGEST_INPUT:
        raise errors.UnsupportedGraphError(
            f"{graph.input.name}: it takes integers up to {graph.input.high}; ONNX files of "
            f"fixed-point networks take uint8, up to {LARGEST_INPUT}"
        )


def type_of(graph: ir.SpikingGraph, node: str) -> int:
    """The type of the tensor that holds a node's value."""
    if not graph.integers:
        return int(TensorProto.FLOAT)
    while isinstance(graph[node], ir.Flatten):
        (node,) = graph[node].inputs
    return int(INPUT_TYPE if node == graph.input.name else VALUE_TYPE)


def pixels_name(projection: str) -> str:
    """The initializer that holds what the zeros of pixels make of a projection."""
    return f"{projection}.pixels"


def stored(lowered: Deployed, node: ir.Node) -> Iterator[tuple[str, Array]]:
    """The initializer that takes the pixels' zeros off a projection's current, if there is one:
    (1, C, H, W) or (1, N), int32. A map, since padding has no zeros.
    """
    graph, first = lowered.graph, lowered.graph.input
    assert isinstance(first, ir.IntegerInput)
    if not node.projects or not any(first.zero) or not _reads_pixels(graph, node):
        return
    zero = torch.tensor(first.zero).double().reshape(1, -1, *[1] * (len(first.shape) - 1))
    black = Signal(-zero.expand(1, *first.shape), True)
    module = lowered.model.module()
    with torch.no_grad():
        current = module.evaluate({first.name: black}, [node.name])[node.name].tensor
    bias = lowered.synapses[node.name].bias
    if bias is not None:
        current = current - torch.from_numpy(bias.copy()).reshape(-1, *[1] * (current.dim() - 2))
    yield pixels_name(node.name), current.numpy().astype(np.int32)


def _reads_pixels(graph: ir.SpikingGraph, node: ir.Node) -> bool:
    source = graph[node.inputs[0]]
    while source.composable:
        source = graph[source.inputs[0]]
    return source is graph.input


def append_projection(node: ir.Projection, b: "OnnxBuilder", synapses: list[str]) -> None:
    """The sum of what each digit's products weigh, and the bias; synapses: as they are stored."""
    weight, *bias = synapses
    name, output = node.name, b.value(node.name)
    added = [*bias, *(b.constant(*item) for item in stored(b.lowered, node))]
    products = [
        _weighed(node, b, digit, weight, f"{name}.product.{place}")
        for place, digit in enumerate(_digits(b, node))
    ]
    sums = products[0]
    for place, product in enumerate(products[1:], start=1):
        worth = b.constant(f"{name}.worth.{place}", np.full(1, DIGIT**place, np.int32))
        scaled = b.op("Mul", [product, worth], f"{name}.scaled.{place}")
        sums = b.op("Add", [sums, scaled], f"{name}.sum.{place}")
    for number, values in enumerate(added):
        beside = values
        if values in bias and isinstance(node, ir.Convolution):
            beside = b.reshape(values, f"{name}.bias_sides", f"{name}.bias_map", 1, -1, 1, 1)
        sums = b.op("Add", [sums, beside], f"{name}.added.{number}")
    b.nodes[-1].output[0] = b.nodes[-1].name = output


def _weighed(node: ir.Projection, b: "OnnxBuilder", digit: str, weight: str, output: str) -> str:
    if isinstance(node, ir.Convolution):
        window = {"kernel_shape": node.kernel, "strides": node.stride, "dilations": node.dilation}
        sides = pads(node.padding)
        return b.op("ConvInteger", [digit, weight], output, **window, pads=sides, group=node.groups)
    columns = f"{node.name}.columns"
    if columns not in {made.name for made in b.nodes}:
        b.op("Transpose", [weight], columns, perm=[1, 0])
    return b.op("MatMulInteger", [digit, columns], output)


def _digits(b: "OnnxBuilder", node: ir.Node) -> list[str]:
    """uint8 tensors of what a node reads, its digits from the last on."""
    (source,), name = node.inputs, node.name
    bound, value = _largest(b.graph, source), b.source(node)
    if bound < DIGIT:
        return [_cast(b, value, f"{name}.read", INPUT_TYPE, type_of(b.graph, source))]
    value = _cast(b, value, f"{name}.read", VALUE_TYPE, type_of(b.graph, source))
    base = b.constant(f"{name}.base", np.full(1, DIGIT, np.int32))
    digits: list[str] = []
    while bound:
        place = len(digits)
        last = b.op("Mod", [value, base], f"{name}.digit.{place}")
        digits.append(_cast(b, last, f"{name}.read.{place}", INPUT_TYPE, VALUE_TYPE))
        bound //= DIGIT
        if bound:
            value = b.op("Div", [value, base], f"{name}.rest.{place}")
    return digits


def _largest(graph: ir.SpikingGraph, name: str) -> int:
    """The largest value of a node that projections read; of pixels their own, zeros and all."""
    node = graph[name]
    if isinstance(node, ir.IntegerInput):
        return LARGEST_INPUT if any(node.zero) else node.high
    if isinstance(node, ir.SumPool):
        return math.prod(node.kernel) * _largest(graph, node.inputs[0])
    if isinstance(node, ir.Flatten):
        return _largest(graph, node.inputs[0])
    return graph.edges[name].bound or 0


def _cast(b: "OnnxBuilder", value: str, output: str, wanted: int, given: int) -> str:
    return value if wanted == given else b.op("Cast", [value], output, to=wanted)


def append_max_pool(node: ir.MaxPool, b: "OnnxBuilder") -> None:
    """In float64, which holds every int32: ONNX Runtime has no maximum pooling of int32."""
    sides = {"kernel_shape": node.kernel, "strides": node.stride, "pads": pads(node.padding)}
    given = b.op("Cast", [b.source(node)], f"{node.name}.read", to=TensorProto.DOUBLE)
    pooled = b.op("MaxPool", [given], f"{node.name}.pooled", **sides)
    b.op("Cast", [pooled], b.value(node.name), to=VALUE_TYPE)


def append_sum_pool(node: ir.SumPool, b: "OnnxBuilder") -> None:
    """The windows as axes of their own, summed."""
    name, (source,) = node.name, node.inputs
    (channels, *sides), (_, rows, columns) = b.graph.shapes[source], b.graph.shapes[name]
    value = _cast(b, b.source(node), f"{name}.read", VALUE_TYPE, type_of(b.graph, source))
    (height, width), whole = node.kernel, (rows * node.kernel[0], columns * node.kernel[1])
    if tuple(sides) != whole:
        parts = {"begin": (0, 0), "end": whole, "axes": (2, 3)}
        ranges = [b.integers(f"{name}.{part}", *values) for part, values in parts.items()]
        value = b.op("Slice", [value, *ranges], f"{name}.inside")
    windows = (-1, channels, rows, height, columns, width)
    split = b.reshape(value, f"{name}.windows_shape", f"{name}.windows", *windows)
    b.op("ReduceSum", [split, b.integers(f"{name}.window_axes", 3, 5)], b.value(name), keepdims=0)


def attributes(equation: FixedEquation) -> Mapping[str, Array]:
    """The numbers that a step needs as tensors: (1,), or of each channel (C,)."""
    numbers: dict[str, Array] = {
        "threshold": np.atleast_1d(equation.threshold),
        "lowest": np.full(1, equation.lowest, np.int32),
        "highest": np.full(1, equation.highest, np.int32),
    }
    if equation.shift:
        numbers |= {
            "offset": np.full(1, OFFSET, np.int32),
            "shift": np.full(1, equation.shift, np.uint32),
            "shifted": np.full(1, OFFSET >> equation.shift, np.int32),
        }
    if equation.multiplier != 1:
        numbers["multiplier"] = np.full(1, equation.multiplier, np.int32)
    if equation.reset == "hard":
        numbers["rest"] = np.zeros(1, np.int32)
    if equation.reset in ("soft", "late"):
        numbers["subtract"] = np.atleast_1d(equation.subtract)
    return numbers


def beside(numbers: Array, shape: ir.Shape) -> Array:
    """Numbers (1,) or (C,) beside neurons (batch, C, ...) of `shape`."""
    return numbers if len(numbers) == 1 else numbers.reshape(1, -1, *[1] * (len(shape) - 1))


def step_function(
    equation: FixedEquation, domain: str, name: str, fire: str, opset: int
) -> FunctionProto:
    """(v, x) -> (spike, v_next), int32; its operators are put into the graph, never called."""
    step = _Step(fire)
    leaked = "v"
    if equation.shift:
        scaled = step.op("Mul", "v", "multiplier") if equation.multiplier != 1 else "v"
        lifted = step.cast(step.op("Add", scaled, "offset"), TensorProto.UINT32)
        shifted = step.op("BitShift", lifted, "shift", direction="RIGHT")
        leaked = step.op("Sub", step.cast(shifted, VALUE_TYPE), "shifted")
    elif equation.multiplier != 1:
        leaked = step.op("Mul", "v", "multiplier")
    if equation.reset == "late":
        again = step.cast(step.op(fire, "v", "threshold"), VALUE_TYPE)
        leaked = step.op("Sub", leaked, step.op("Mul", again, "subtract"))
    charged = step.op("Min", step.op("Max", step.op("Add", leaked, "x"), "lowest"), "highest")
    fired = step.op(fire, charged, "threshold")
    spike = step.cast(fired, VALUE_TYPE, "spike")
    if equation.reset == "hard":
        step.op("Where", fired, "rest", charged)
    elif equation.reset == "soft":
        step.op("Sub", charged, step.op("Mul", spike, "subtract"))
    else:
        step.op("Identity", charged)
    step.nodes[-1].name = step.nodes[-1].output[0] = "v_next"
    opsets = [helper.make_opsetid("", opset)]
    ends = ["v", "x"], ["spike", "v_next"]
    used = sorted(attributes(equation))
    return helper.make_function(domain, name, *ends, step.nodes, opsets, attributes=used)


class _Step:
    """The operators of a step, which name numbers as `attributes` does."""

    def __init__(self, fire: str) -> None:
        self.nodes: list[NodeProto] = []

    def op(self, kind: str, *inputs: str, **attributes: str) -> str:
        name = f"s{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name

    def cast(self, value: str, kind: int, name: str = "") -> str:
        name = name or f"s{len(self.nodes)}"
        self.nodes.append(helper.make_node("Cast", [value], [name], name=name, to=kind))
        return name
