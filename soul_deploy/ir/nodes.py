"""The operations of a spiking graph, one frozen class each.

Shapes leave out time and batch: (C, H, W) for maps, (N,) for vectors.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np

from soul_deploy.base import reduction
from soul_deploy.base.errors import UsageError
from soul_deploy.ir import channelwise, feedback, neurons, node, pools
from soul_deploy.ir.channelwise import Scatter as Scatter
from soul_deploy.ir.described import described
from soul_deploy.ir.inputs import EventInput as EventInput
from soul_deploy.ir.inputs import Input as Input
from soul_deploy.ir.inputs import IntegerEventInput as IntegerEventInput
from soul_deploy.ir.inputs import IntegerInput as IntegerInput

SIDES = ("bound", "low")  # of an edge
MergeFunction = Literal["add", "and", "iand"]


@dataclass(frozen=True)
class Projection(node.Node):
    """Synapses: weights, an optional bias, an optional batch norm."""

    projects: ClassVar[bool] = True
    gives: ClassVar[neurons.Edge | None] = neurons.ANALOG
    bias: bool
    norm: node.BatchNorm | None

    @property
    def integers(self) -> bool | None:
        return None if self.norm is None else False

    @property
    def weight_shape(self) -> node.Shape:
        """Output channels, then the shape of one row."""
        raise NotImplementedError

    @property
    def out_channels(self) -> int:
        return self.weight_shape[0]

    @property
    def row_tensors(self) -> tuple[str, ...]:
        """The tensors with one row per output channel: weight, bias, batch norm."""
        own = [f"{self.name}.{part}" for part in ("weight", "bias")[: 1 + self.bias]]
        return (*own, *(f"{self.norm.name}.{part}" for part in node.NORM_PARTS if self.norm))

    @property
    def extent(self) -> node.Shape:
        """The sides of the window that one output position sees; () for a vector."""
        return ()

    def resized(self, weight: node.Shape) -> "Projection":
        """The same operation for a weight tensor of this shape."""
        raise NotImplementedError

    def with_norm(self, norm: node.BatchNorm) -> node.Node | None:
        return None if self.norm else replace(self, norm=norm)

    def tensors(self, inputs: Sequence[node.Shape], time_steps: int) -> Mapping[str, node.Shape]:
        shapes = dict.fromkeys(self.row_tensors, self.weight_shape[:1])
        shapes[f"{self.name}.weight"] = self.weight_shape
        return shapes | ({f"{self.norm.name}.num_batches_tracked": ()} if self.norm else {})


@dataclass(frozen=True)
class Convolution(Projection):
    """2-D convolution, zero padding; weight (channels, in_channels / groups, kh, kw)."""

    op: ClassVar[str] = "convolution"
    in_channels: int
    channels: int
    kernel: node.Pair
    stride: node.Pair = (1, 1)
    padding: node.Pair = (0, 0)
    dilation: node.Pair = (1, 1)
    groups: int = 1

    @property
    def weight_shape(self) -> node.Shape:
        return (self.channels, self.in_channels // self.groups, *self.kernel)

    @property
    def pads(self) -> bool:
        return self.padding != (0, 0)

    @property
    def extent(self) -> node.Shape:
        return tuple(1 + self.dilation[i] * (self.kernel[i] - 1) for i in (0, 1))

    def resized(self, weight: node.Shape) -> "Convolution":
        return replace(self, channels=weight[0], in_channels=weight[1] * self.groups)

    def output_shape(self, inputs: Sequence[node.Shape]) -> node.Shape:
        (shape,) = inputs
        groups = self.groups
        if groups < 1 or self.in_channels % groups or self.channels % groups:
            raise UsageError(
                f"{self.name}: {groups} groups do not divide the channels {self.in_channels} and "
                f"{self.channels}"
            )
        if len(shape) != 3 or shape[0] != self.in_channels:
            raise UsageError(
                f"{self.name}: input {shape}, but the convolution needs ({self.in_channels}, H, W)"
            )
        sides = node.slid(self.name, shape, self.extent, self.stride, self.padding)
        return (self.channels, *sides)

    def describe(self) -> str:
        text = f"{self.in_channels}→{self.channels}, {self.kernel[0]}×{self.kernel[1]}"
        if self.stride != (1, 1):
            text += f", stride {self.stride[0]}×{self.stride[1]}"
        if self.groups != 1:
            text += f", groups {self.groups}"
        return text + (", batch norm" if self.norm else "")


@dataclass(frozen=True)
class Linear(Projection):
    """All-to-all synapses; weight (features, in_features)."""

    op: ClassVar[str] = "linear"
    in_features: int
    features: int

    @property
    def weight_shape(self) -> node.Shape:
        return (self.features, self.in_features)

    def as_head(self, source: str) -> "Readout | None":
        head = Readout(self.name, (source,), self.features, True, self.bias)
        return None if self.norm else head

    def resized(self, weight: node.Shape) -> "Linear":
        return replace(self, features=weight[0], in_features=weight[1])

    def output_shape(self, inputs: Sequence[node.Shape]) -> node.Shape:
        if inputs[0] != (self.in_features,):
            raise UsageError(
                f"{self.name}: input {inputs[0]}, but the layer needs ({self.in_features},)"
            )
        return (self.features,)

    def describe(self) -> str:
        return f"{self.in_features}→{self.features}" + (", batch norm" if self.norm else "")


@dataclass(frozen=True)
class Population(node.Node):
    """Spiking neurons, one per element of the input current.

    generated  channels appended behind those of the current: they fire a stored pattern
               (`<name>.pattern`, (T, generated)) whatever the input is, with no neuron behind it
    feedback   what its own spikes of the step before add to its current (ir/feedback.py), or None
    """

    op: ClassVar[str] = "population"
    fires: ClassVar[bool] = True
    keeps_channels: ClassVar[bool] = True
    gives: ClassVar[neurons.Edge | None] = neurons.SPIKE
    neuron: neurons.NeuronSpec
    generated: int = 0
    feedback: node.Node | None = None

    @property
    def integers(self) -> bool | None:
        return self.neuron.integers

    def tensors(self, inputs: Sequence[node.Shape], time_steps: int) -> Mapping[str, node.Shape]:
        own = self.neuron.tensor_shapes(self.name, inputs[0], time_steps)
        pattern = {f"{self.name}.pattern": (time_steps, self.generated)} if self.generated else {}
        back = {} if self.feedback is None else dict(self.feedback.tensors(inputs, time_steps))
        return {**own, **pattern, **back}

    def output_shape(self, inputs: Sequence[node.Shape]) -> node.Shape:
        shape = (inputs[0][0] + self.generated, *inputs[0][1:])
        if self.feedback is not None:
            feedback.check(self.feedback, self.name, self.neuron, inputs[0], shape)
        return shape

    def magnitude(self) -> node.Node:
        if self.feedback is None:
            return self
        return replace(self, feedback=self.feedback.magnitude())

    def output_edge(self, inputs: Sequence[neurons.Edge]) -> neurons.Edge:
        return self.neuron.edge

    def describe(self) -> str:
        more = f", {self.generated} generated channels" if self.generated else ""
        more += "" if self.feedback is None else f"; feedback {self.feedback.describe()}"
        return described(self.neuron) + more


@dataclass(frozen=True)
class Flatten(node.Node):
    """(C, H, W) to (C·H·W,), channel-major."""

    op: ClassVar[str] = "flatten"
    composable: ClassVar[bool] = True
    reshapes: ClassVar[bool] = True
    keeps_channels: ClassVar[bool] = True

    def output_shape(self, inputs: Sequence[node.Shape]) -> node.Shape:
        return (math.prod(inputs[0]),)


@dataclass(frozen=True)
class Merge(node.Node):
    """Two or more branches, element by element: what residual networks do.

    add   their sum: of spikes a graded edge (0 .. number of branches), of currents a current
    and   their product; spikes only
    iand  identity · (1 - branch), the first input times the inverse of the second; spikes only

    Spike-element-wise functions of SEW-ResNet (Fang et al., NeurIPS 2021, table 1).
    """

    op: ClassVar[str] = "merge"
    arity: ClassVar[int | None] = None
    keeps_channels: ClassVar[bool] = True
    function: MergeFunction

    def passes(self, given: Sequence[bool]) -> bool:
        if self.function == "iand":
            return given[0]
        return any(given) if self.function == "add" else all(given)

    def spares(self, branch: str) -> bool:
        second = self.function == "iand" and self.inputs[1] == branch
        return self.inputs.count(branch) == 1 and (self.function == "add" or second)

    def output_shape(self, inputs: Sequence[node.Shape]) -> node.Shape:
        if self.function not in ("add", "and", "iand"):
            raise UsageError(f"{self.name}: function {self.function!r}; valid: add, and, iand")
        if len(inputs) < 2 or (self.function == "iand" and len(inputs) != 2):
            raise UsageError(f"{self.name}: {self.function} of {len(inputs)} branches")
        if len(set(inputs)) != 1:
            raise UsageError(f"{self.name}: its branches have different shapes {list(inputs)}")
        return inputs[0]

    def output_edge(self, inputs: Sequence[neurons.Edge]) -> neurons.Edge:
        if self.function == "add":
            if any(edge.kind == "analog" for edge in inputs):
                return neurons.ANALOG
            most, least = (sum(getattr(edge, side) or 0 for edge in inputs) for side in SIDES)
            return neurons.Edge("graded", most, least)
        if any(edge.kind != "spike" for edge in inputs):
            kinds = ", ".join(edge.kind for edge in inputs)
            raise UsageError(f"{self.name}: {self.function} needs spikes, its inputs are {kinds}")
        return neurons.SPIKE

    def describe(self) -> str:
        return f"{self.function} of {len(self.inputs)} branches"


@dataclass(frozen=True)
class Readout(node.Node):
    """Class scores from spikes: sum first, scale last.

    Over space, and over time where scores are a mean or a sum, the spikes are summed to integers;
    `linear`, if any, weighs them; the scale and the bias come last. Per step, T is 1.

    classes    number of scores
    linear     whether a weight (classes, C) is applied to the sums over space
    bias       whether a bias (classes,) is added at the end
    votes      without `linear`: neurons per class, averaged (6Conv2FC: 10)
    over_time  what the scores of the steps become: their "mean", "sum", "last" or "max"
               (soul_deploy/base/reduction.py has the order of operations)
    neuron     of a membrane read-out: neurons, one a class, that the head's scores of each step
               charge, and whose membrane after the step is that step's score; None: there are none.
               Whether they fire matters to their reset only: nothing reads what they send
    unit       of a fixed-point network, what 1 of the head's sums stands for; None: the head holds
               real numbers
    """

    op: ClassVar[str] = "readout"
    gives: ClassVar[neurons.Edge | None] = neurons.ANALOG
    classes: int
    linear: bool = True
    bias: bool = True
    votes: int = 1
    over_time: reduction.OverTime = "mean"
    neuron: neurons.NeuronSpec | None = None
    unit: float | None = None

    @property
    def integers(self) -> bool | None:
        return self.unit is not None

    @property
    def weighing(self) -> reduction.Weighing:
        """Which spikes the head weighs."""
        return reduction.weighing(self.over_time, charging=self.neuron is not None)

    @property
    def neurons_name(self) -> str:
        """What the neurons' tensors are called after."""
        return f"{self.name}.neuron"

    @property
    def weighs(self) -> bool:
        return self.linear

    @property
    def row_tensors(self) -> tuple[str, ...]:
        """The tensors with one row per class: weight, bias."""
        names = (f"{self.name}.weight", f"{self.name}.bias")
        return names[: self.linear + (self.linear and self.bias)]

    def tensors(self, inputs: Sequence[node.Shape], time_steps: int) -> Mapping[str, node.Shape]:
        shapes: tuple[node.Shape, ...] = (self.classes, inputs[0][0]), (self.classes,)
        own = dict(zip(self.row_tensors, shapes, strict=False))
        if self.neuron is None:
            return own
        return own | self.neuron.tensor_shapes(self.neurons_name, (self.classes,), time_steps)

    def output_shape(self, inputs: Sequence[node.Shape]) -> node.Shape:
        if self.classes < 1 or self.votes < 1:
            raise UsageError(f"{self.name}: {self.classes} classes of {self.votes} votes")
        if not reduction.is_over_time(self.over_time):
            valid = ", ".join(reduction.OVER_TIME)
            raise UsageError(f"{self.name}: over_time {self.over_time!r}; valid: {valid}")
        if self.unit is not None and not neurons.SMALLEST <= self.unit <= neurons.LARGEST:
            raise UsageError(f"{self.name}: unit {self.unit} must be above 0, finite in float32")
        if not self.linear and inputs[0][0] != self.classes * self.votes:
            raise UsageError(
                f"{self.name}: {inputs[0][0]} sums for {self.classes} classes of {self.votes} votes"
            )
        self._check_neuron()
        return (self.classes,)

    def _check_neuron(self) -> None:
        """Raise UsageError for neurons whose membrane cannot be read."""
        if self.neuron is None:
            return
        if not self.linear:
            raise UsageError(f"{self.name}: a membrane read-out of votes; it charges a linear head")
        if self.neuron.parallel or self.neuron.stepwise:
            raise UsageError(
                f"{self.name}: the membrane of {self.neuron.family}, which mixes all steps or has "
                "numbers of each; supported are neurons that go step by step"
            )

    def as_head(self, source: str) -> "Readout":
        return self

    def multiplier(self, shape: node.Shape, time_steps: int) -> float:
        """What makes class scores of a fixed-point network's integers; a float32."""
        return float(np.float32((self.unit or 1.0) / self.divisor(shape, time_steps)))

    def divisor(self, shape: node.Shape, time_steps: int) -> int:
        """H · W · votes for an input of `shape`, times T for a mean over time."""
        space = shape[1] * shape[2] if len(shape) == 3 else 1
        steps = reduction.together(self.weighing, time_steps)
        return reduction.divisor(self.over_time, steps) * space * self.votes

    def describe(self) -> str:
        kind = "linear head" if self.linear else f"vote of {self.votes} neurons a class"
        told = reduction.NAMES[self.over_time]
        if self.neuron is not None:
            read = f"{kind}, membrane of {described(self.neuron)}"
            return f"{read}, its {told}, {self.classes} classes"
        told = f"{told} and space" if self.over_time == "mean" else f"{told}, mean over space"
        return f"{told}, {kind}, {self.classes} classes"


OPS: dict[str, type[node.Node]] = {
    cls.op: cls
    for cls in (
        *(Input, EventInput, IntegerInput, IntegerEventInput, Convolution, Linear, Population),
        *(pools.MaxPool, pools.AvgPool, pools.SumPool, pools.AdaptiveAvgPool),
        *(Flatten, Merge, Readout, Scatter),
        *(channelwise.Scale, channelwise.ChannelNorm),
    )
}
FEEDBACKS: dict[str, type[node.Node]] = {
    cls.op: cls for cls in (Convolution, Linear, feedback.OneToOne)
}
"""What a population's feedback can be, by operation."""
