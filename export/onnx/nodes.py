"""One ONNX spelling per graph node, and the growing ONNX graph that they append to.

A node's value is a tensor named like the node. Populations put T on the batch axis, T-major:
(T·batch, ...); what comes before the first population of a static network is (batch, ...).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from soul_deploy import ir
from soul_deploy.base import Array, brief, dispatch, errors
from soul_deploy.export.onnx import channelwise, integers
from soul_deploy.export.onnx import neuron as onnx_neuron
from soul_deploy.export.onnx.convolution import append_convolution, pads
from soul_deploy.lowering import deploy, pool_windows

BATCH, MERGED = "batch", "time_batch"
OUTPUT = "logits"
Sides = tuple[int | str, ...]  # of a tensor, axes of any length by name
Entry = tuple[str, Sides]  # a name and its shape
InputMode = Literal["static", "sequence", "step"]
Outputs = Literal["logits", "spikes", "steps"]


@brief
@dataclass
class OnnxBuilder:
    """An ONNX graph being built of `graph`, with the numbers that `lowered` has.

    In step mode, `graph` runs one step, states (population -> pairs of names, in and out) come from
    the caller and return to it, and `counter` names the input that says which step it is, if
    anything needs it.
    functions: neurons are calls of model-local functions. batch: the samples of each call, None
    for any number. by_step: the scores of each step leave, (T, batch, classes).
    """

    graph: ir.SpikingGraph
    lowered: deploy.Deployed
    opset: int
    nodes: list[NodeProto] = field(default_factory=list)
    initializers: list[TensorProto] = field(default_factory=list)
    values: list[ValueInfoProto] = field(default_factory=list)
    input_mode: InputMode = "static"
    membranes: Mapping[str, Sequence[tuple[str, str]]] = field(default_factory=dict)
    counter: str = ""
    functions: bool = False
    batch: int | None = None
    by_step: bool = False

    @property
    def dtype(self) -> type[np.float32] | type[np.int32]:
        """What values between nodes are."""
        return np.int32 if self.graph.integers else np.float32

    @cached_property
    def static(self) -> frozenset[str]:
        """Nodes whose value has no time axis."""
        return frozenset(self.graph.static if self.input_mode == "static" else ())

    def value(self, node: str) -> str:
        """The tensor that holds a node's value, (batch, ...) or (T·batch, ...)."""
        return value_name(self.graph, node, self.input_mode)

    def source(self, node: ir.Node) -> str:
        """The tensor that holds the value of a node's input."""
        return self.value(node.inputs[0])

    def op(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output

    def constant(self, name: str, value: Array) -> str:
        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def integers(self, name: str, *values: int) -> str:
        return self.constant(name, np.array(values, np.int64))

    def reshape(self, source: str, name: str, output: str, *sides: int) -> str:
        """name: of the constant that holds the sides."""
        return self.op("Reshape", [source, self.integers(name, *sides)], output)

    def declare(self, node: ir.Node) -> None:
        """State the value's shape, so that the file can be cut at any population."""
        if self.value(node.name) == self.graph.input.name:
            return  # the file's own input
        merged = node.name not in self.static and self.input_mode != "step"
        shape: Sides = (MERGED if merged else BATCH, *self.graph.shapes[node.name])
        kind = integers.type_of(self.graph, node.name)
        self.values.append(self.declared(self.value(node.name), shape, kind))

    def declared(self, name: str, shape: Sides, kind: int = TensorProto.FLOAT) -> ValueInfoProto:
        """A tensor of the file; kind: its type."""
        if self.batch is not None:
            sizes = {BATCH: self.batch, MERGED: self.batch * self.graph.time_steps}
            shape = tuple(sizes.get(s, s) if isinstance(s, str) else s for s in shape)
        return helper.make_tensor_value_info(name, kind, shape)


def value_name(graph: ir.SpikingGraph, node: str, input_mode: InputMode) -> str:
    """The tensor that holds a node's value: the node's name, unless the file's own input or
    output is called so."""
    merged = node == graph.input.name and input_mode == "sequence"
    taken = node == OUTPUT and node != graph.readout.name
    return f"{node}.value" if merged or taken else node


def spikes_name(population: str) -> str:
    """The output that holds a population's spikes, (T, batch, ...), if the file yields them."""
    return f"{population}.spikes"


def weight_name(node: str) -> str:
    """The initializer that holds a projection's or the head's deployed weight."""
    return f"{node}.weight"


def bias_name(node: str) -> str:
    """The initializer that holds a projection's or the head's deployed bias."""
    return f"{node}.bias"


def mask_name(population: str) -> str:
    """The initializer that holds which neurons of a population are unmasked."""
    return f"{population}.mask"


def pattern_name(population: str) -> str:
    """The initializer that holds a population's constant-pattern channels."""
    return f"{population}.pattern"


def synapses(b: OnnxBuilder, name: str) -> list[str]:
    """Put a node's deployed weights into the graph; the initializers' names."""
    deployed = b.lowered.synapses[name]
    names = [b.constant(weight_name(name), deployed.weight)]
    if deployed.bias is not None:
        names.append(b.constant(bias_name(name), deployed.bias))
    return names


@dispatch.operation_table(ir.Node)
def append_onnx(node: ir.Node, b: OnnxBuilder) -> None:
    """Append the node's ONNX spelling to what is being built."""
    raise errors.UnsupportedGraphError(f"{node.name}: ONNX export does not know {node.op!r}")


@append_onnx.on(ir.Input)
def _input(node: ir.Input, b: OnnxBuilder) -> None:
    if b.input_mode == "sequence":
        b.reshape(node.name, f"{node.name}.merged_shape", b.value(node.name), -1, *node.shape)


@append_onnx.on(ir.Convolution)
def _convolution(node: ir.Convolution, b: OnnxBuilder) -> None:
    if b.graph.integers:
        integers.append_projection(node, b, synapses(b, node.name))
        return
    ends = b.source(node), b.value(node.name)
    append_convolution(node, b, synapses(b, node.name), ends, node.name)


@append_onnx.on(ir.MaxPool)
def _max_pool(node: ir.MaxPool, b: OnnxBuilder) -> None:
    if b.graph.integers:
        integers.append_max_pool(node, b)
        return
    sides = {"kernel_shape": node.kernel, "strides": node.stride, "pads": pads(node.padding)}
    b.op("MaxPool", [b.source(node)], b.value(node.name), **sides)


append_onnx.on(ir.AvgPool)(
    lambda node, b: _average(b, node, node.kernel, node.stride, node.padding)
)


def _average(
    b: OnnxBuilder, node: ir.Node, kernel: ir.Pair, stride: ir.Pair, padding: ir.Pair = (0, 0)
) -> None:
    sides = {"kernel_shape": kernel, "strides": stride, "pads": pads(padding)}
    b.op("AveragePool", [b.source(node)], b.value(node.name), count_include_pad=1, **sides)


@append_onnx.on(ir.AdaptiveAvgPool)
def _adaptive(node: ir.AdaptiveAvgPool, b: OnnxBuilder) -> None:
    """Windows that tile evenly are an average pooling, others a matrix over the positions."""
    tile = pool_windows.even_window(node, b.graph.shapes[node.inputs[0]])
    if tile is not None:
        _average(b, node, tile, tile)
        return
    _, height, width = b.graph.shapes[node.inputs[0]]
    sides = zip((height, width), node.size, strict=True)
    rows = np.kron(*(pool_windows.adaptive_rows(side, wanted) for side, wanted in sides))
    name = node.name
    pooling = b.constant(weight_name(name), rows.T.astype(np.float32))
    flat = b.reshape(b.source(node), f"{name}.flat_shape", f"{name}.flat", 0, 0, height * width)
    pooled = b.op("MatMul", [flat, pooling], f"{name}.pooled")
    b.reshape(pooled, f"{name}.shape", b.value(name), 0, 0, *node.size)


append_onnx.on(ir.Flatten)(lambda n, b: b.op("Flatten", [b.source(n)], b.value(n.name), axis=1))
append_onnx.on(ir.SumPool)(integers.append_sum_pool)


@append_onnx.on(ir.Linear)
def _linear(node: ir.Linear, b: OnnxBuilder) -> None:
    if b.graph.integers:
        integers.append_projection(node, b, synapses(b, node.name))
        return
    b.op("Gemm", [b.source(node), *synapses(b, node.name)], b.value(node.name), transB=1)


append_onnx.on(ir.Scale)(channelwise.append_scale)
append_onnx.on(ir.ChannelNorm)(channelwise.append_channel_norm)
append_onnx.on(ir.Scatter)(channelwise.append_scatter)


@append_onnx.on(ir.Merge)
def _merge(node: ir.Merge, b: OnnxBuilder) -> None:
    """Two branches at a time, left to right, as `soul_deploy.nn.layers.merged`."""
    name = node.name
    values = [_at_every_step(b, node, place) for place in range(len(node.inputs))]
    result = values[0]
    for place, branch in enumerate(values[1:], start=1):
        output = b.value(name) if place == len(values) - 1 else f"{name}.partial.{place}"
        if node.function == "iand":
            one = b.constant(f"{name}.one", np.ones(1, b.dtype))
            branch = b.op("Sub", [one, branch], f"{name}.inverse")
        result = b.op("Add" if node.function == "add" else "Mul", [result, branch], output)


def _at_every_step(b: OnnxBuilder, node: ir.Merge, place: int) -> str:
    """A branch's value; one without a time axis is repeated where it meets one that has it."""
    source, steps = node.inputs[place], b.graph.time_steps
    if source not in b.static or b.static.issuperset(node.inputs) or steps == 1:
        return b.value(source)
    name, rank = f"{node.name}.repeated.{place}", 1 + len(b.graph.shapes[source])
    repeats = b.integers(f"{name}.repeats", steps, *[1] * (rank - 1))
    return b.op("Tile", [b.value(source), repeats], name)


def emit(b: OnnxBuilder, node: ir.Node) -> None:
    """Append `node`, named in the metadata of what was appended. Raises UnsupportedGraphError for
    a node that ONNX export does not know."""
    before = len(b.nodes)
    append_onnx(node, b)
    for made in () if b.functions else b.nodes[before:]:
        key = "population" if node.fires else "layer"
        onnx_neuron.annotate(made, **{key: node.name, "role": node.op})
    if node is not b.graph.readout:
        b.declare(node)
    elif b.static.issuperset(node.inputs):
        text = f"{node.name}: no spiking layer stands before the readout"
        raise errors.UnsupportedGraphError(text)


def functions(b: OnnxBuilder) -> list[onnx.FunctionProto]:
    """One function per neuron model in use, by name."""
    called = {node.op_type for node in b.nodes if node.domain == onnx_neuron.DOMAIN}
    known = {onnx_neuron.function_name(e): e for e in b.lowered.equations.values()}
    return [onnx_neuron.step_function(known[name], b.opset) for name in sorted(called)]
