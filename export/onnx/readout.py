"""ONNX's spelling of the readout: class scores of the spikes of all steps."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from onnx import TensorProto

from soul_deploy import ir
from soul_deploy.base import reduction

if TYPE_CHECKING:
    from soul_deploy.export.onnx.nodes import OnnxBuilder

Synapses = Callable[[], list[str]]
Charge = Callable[[Sequence[str]], list[str]]


def append_readout(
    node: ir.Readout, b: "OnnxBuilder", synapses: Synapses, charge: Charge, output: str
) -> None:
    """Sum first, scale last; a maximum over time after that.

    synapses: puts the head's weight and bias into the graph, those that it has, and gives their
    names. charge: puts the neurons behind the head there, which take a current (batch, classes) at
    each step, and gives their membranes after each. output: (batch, classes), or (T, batch,
    classes) of a file that yields all steps.
    """
    if node.neuron is not None:
        _of_membranes(node, b, synapses, charge, output)
        return
    largest = node.over_time == "max" and b.graph.time_steps > 1 and not b.by_step
    head = _Head(node, b, each_step=largest or b.by_step)
    if node.unit is not None:
        _append_integers(head, synapses, output, largest=largest)
        return
    of_steps = f"{node.name}.of_steps" if largest else output
    counts = head.by_step() if head.each_step else head.counts()
    if node.linear:
        head.weigh(counts, synapses, of_steps)
    else:
        head.vote(counts, of_steps)
    if largest:
        _largest(b, of_steps, output)


def _of_membranes(
    node: ir.Readout, b: "OnnxBuilder", synapses: Synapses, charge: Charge, output: str
) -> None:
    """The head's scores of each step charge neurons; then the scores, of their membranes in the
    order of the steps.
    """
    name, steps = node.name, b.graph.time_steps
    head = _Head(node, b, each_step=True)
    head.weigh(head.by_step(), synapses, f"{name}.of_steps")
    currents = []
    for t in range(steps):
        at = b.integers(f"{name}.step.{t}", t)
        taken = b.op("Gather", [f"{name}.of_steps", at], f"{name}.taken.{t}", axis=0)
        sides = f"{name}.current_shape.{t}", f"{name}.current.{t}"
        currents.append(b.reshape(taken, *sides, -1, node.classes))
    membranes = charge(currents)
    if b.by_step:
        shape = b.integers(f"{name}.step_shape", 1, -1, node.classes)
        each = [b.op("Reshape", [v, shape], f"{v}.of_step") for v in membranes]
        b.op("Concat", each, output, axis=0)
    elif node.over_time == "last" or len(membranes) == 1:
        b.op("Identity", [membranes[-1]], output)  # OpenVINO loses the name of a Max of one
    elif node.over_time == "max":
        b.op("Max", membranes, output)
    else:
        _added(node, b, membranes, output)


def _added(node: ir.Readout, b: "OnnxBuilder", membranes: list[str], output: str) -> None:
    total = membranes[0]
    for t, membrane in enumerate(membranes[1:], start=1):
        total = b.op("Add", [total, membrane], f"{node.name}.added.{t}")
    if node.over_time == "sum":
        b.op("Identity", [total], output)
        return
    share = np.full(node.classes, 1 / len(membranes), np.float32)
    b.op("Mul", [total, b.constant(f"{node.name}.share", share)], output)


@dataclass(frozen=True)
class _Head:
    """What is appended for one readout; each_step: its counts and scores have a leading axis T."""

    node: ir.Readout
    b: "OnnxBuilder"
    each_step: bool

    @property
    def steps(self) -> int:
        """How many steps are counted together."""
        return 1 if self.each_step else self.b.graph.time_steps

    def by_step(self) -> str:
        """Sums over space: (T·batch, C, H, W) to (T, batch, C)."""
        b, name, shape = self.b, self.node.name, self.b.graph.shapes[self.node.inputs[0]]
        source = b.source(self.node)
        if len(shape) == 3:
            source = _sum(b, source, f"{name}.space_sum", 2, 3)
        sides = (b.graph.time_steps, -1, shape[0])
        return b.reshape(source, f"{name}.steps_shape", f"{name}.steps", *sides)

    def counts(self) -> str:
        """Sums over space and over time, or of the last step: (batch, C)."""
        steps, last, b = self.by_step(), self.b.graph.time_steps - 1, self.b
        if self.node.over_time == "last" and last:
            index = b.integers(f"{self.node.name}.last", last)
            steps = b.op("Gather", [steps, index], f"{self.node.name}.last_step", axis=0)
        return _sum(b, steps, f"{self.node.name}.counts", 0)

    def weigh(self, counts: str, synapses: Synapses, output: str) -> None:
        """The scores of counts (..., C). The scale has one entry per class: ONNX Runtime would fold
        a scalar into the matrix product (MatMulScaleFusion)."""
        b, name, factor = self.b, self.node.name, self._factor(self.node.classes)
        weight, *bias = synapses()
        columns = b.op("Transpose", [weight], f"{name}.columns", perm=[1, 0])
        product = b.op("MatMul", [counts, columns], f"{name}.product")
        scaled = b.op("Mul", [product, factor], f"{name}.scores" if bias else output)
        times = reduction.biases(self.node.over_time, self.steps)
        if bias and times > 1:
            repeated = b.constant(f"{name}.times", np.full(1, times, np.float32))
            bias = [b.op("Mul", [*bias, repeated], f"{name}.bias_of_steps")]
        if bias:
            b.op("Add", [scaled, *bias], output)

    def vote(self, counts: str, output: str) -> None:
        """The votes of counts (..., C). Behind a sum the scale is a scalar: OpenVINO 2026.4 scales
        sums by other classes' entries."""
        b, node = self.b, self.node
        factor = self._factor(node.classes if b.functions else 1)
        lead = (b.graph.time_steps, -1) if self.each_step else (-1,)
        sides = (f"{node.name}.votes_shape", f"{node.name}.grouped")
        votes = b.reshape(counts, *sides, *lead, node.classes, node.votes)
        b.op("Mul", [_sum(b, votes, f"{node.name}.votes", len(lead) + 1), factor], output)

    def weigh_integers(self, counts: str, synapses: Synapses) -> str:
        """int32 scores of counts (..., C), which may be more than 8 bits hold."""
        b, name = self.b, self.node.name
        weight, *bias = synapses()
        wide = b.op("Cast", [weight], f"{name}.wide", to=TensorProto.INT32)
        columns = b.op("Transpose", [wide], f"{name}.columns", perm=[1, 0])
        scores = b.op("MatMul", [counts, columns], f"{name}.product")
        times = reduction.together(self.node.weighing, self.steps)
        if bias and times > 1:
            repeated = b.constant(f"{name}.times", np.full(1, times, np.int32))
            bias = [b.op("Mul", [*bias, repeated], f"{name}.bias_of_steps")]
        return b.op("Add", [scores, *bias], f"{name}.scores") if bias else scores

    def vote_integers(self, counts: str) -> str:
        """int32 votes of counts (..., C)."""
        b, node = self.b, self.node
        lead = (b.graph.time_steps, -1) if self.each_step else (-1,)
        sides = (f"{node.name}.votes_shape", f"{node.name}.grouped")
        votes = b.reshape(counts, *sides, *lead, node.classes, node.votes)
        return _sum(b, votes, f"{node.name}.votes", len(lead) + 1)

    def _factor(self, entries: int) -> str:
        shape = self.b.graph.shapes[self.node.inputs[0]]
        scale = 1.0 / self.node.divisor(shape, self.steps)
        return self.b.constant(f"{self.node.name}.scale", np.full(entries, scale, np.float32))


def _append_integers(head: _Head, synapses: Synapses, output: str, *, largest: bool) -> None:
    """Of a fixed-point network: integer scores, multiplied once at the very end."""
    b, node = head.b, head.node
    counts, name = head.by_step() if head.each_step else head.counts(), node.name
    scores = head.weigh_integers(counts, synapses) if node.linear else head.vote_integers(counts)
    if largest:
        _largest(b, scores, f"{name}.largest")
        scores = f"{name}.largest"
    real = b.op("Cast", [scores], f"{name}.real", to=TensorProto.FLOAT)
    shape = b.graph.shapes[node.inputs[0]]
    steps = 1 if b.by_step else b.graph.time_steps
    factor = np.full(1, node.multiplier(shape, steps), np.float32)
    b.op("Mul", [real, b.constant(f"{name}.scale", factor)], output)


def _largest(b: "OnnxBuilder", source: str, output: str) -> None:
    """The maximum over the first axis. From opset 18 on the operator takes the axis as an input."""
    if b.opset >= 18:
        b.op("ReduceMax", [source, b.integers(f"{output}.axes", 0)], output, keepdims=0)
    else:
        b.op("ReduceMax", [source], output, keepdims=0, axes=[0])


def _sum(b: "OnnxBuilder", source: str, output: str, *axes: int) -> str:
    inputs = [source, b.integers(f"{output}.axes", *axes)]
    return b.op("ReduceSum", inputs, output, keepdims=0)
