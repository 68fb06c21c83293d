"""The operations of a spiking graph, one frozen class each.

Shapes leave out time and batch: (C, H, W) for maps, (N,) for vectors.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from soul_deploy.base.brief import brief
from soul_deploy.base.errors import UsageError
from soul_deploy.ir.neurons import ANALOG, SPIKE, Edge, NeuronSpec

Shape = tuple[int, ...]
Pair = tuple[int, int]
MergeFunction = Literal["add", "and", "iand"]


@dataclass(frozen=True)
class Node:
    """One operation; `name` is the dotted name of the module it came from."""

    op: ClassVar[str] = ""
    arity: ClassVar[int | None] = 1  # how many inputs it has; None: two or more
    name: str
    inputs: tuple[str, ...]

    def output_shape(self, inputs: Sequence[Shape]) -> Shape:
        """The output's shape without time and batch. Raises UsageError if the inputs don't fit."""
        raise NotImplementedError

    def output_edge(self, inputs: Sequence[Edge]) -> Edge:
        """The output's edge kind."""
        return inputs[0]

    def describe(self) -> str:
        """One line for tables."""
        return ""


@dataclass(frozen=True)
class Input(Node):
    """The network's input: a static image (B, C, H, W) or a sequence (T, B, C, H, W)."""

    op: ClassVar[str] = "input"
    arity: ClassVar[int | None] = 0
    shape: Shape

    def output_shape(self, inputs: Sequence[Shape]) -> Shape:
        return self.shape

    def output_edge(self, inputs: Sequence[Edge]) -> Edge:
        return ANALOG


@dataclass(frozen=True)
class BatchNorm:
    """Batch normalisation of a projection's output, until it is folded; `name` owns its state."""

    name: str
    eps: float = 1e-5
    momentum: float = 0.1


@dataclass(frozen=True)
class Projection(Node):
    """Synapses: weights, an optional bias, an optional batch norm."""

    bias: bool
    norm: BatchNorm | None

    @property
    def out_channels(self) -> int:
        raise NotImplementedError

    @property
    def columns(self) -> Shape:
        """The shape of one row of the weight tensor."""
        raise NotImplementedError

    def output_edge(self, inputs: Sequence[Edge]) -> Edge:
        return ANALOG


@dataclass(frozen=True)
class Convolution(Projection):
    """2-D convolution, zero padding; weight (channels, in_channels / groups, kh, kw)."""

    op: ClassVar[str] = "convolution"
    in_channels: int
    channels: int
    kernel: Pair
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1

    @property
    def out_channels(self) -> int:
        return self.channels

    @property
    def columns(self) -> Shape:
        return (self.in_channels // self.groups, *self.kernel)

    def output_shape(self, inputs: Sequence[Shape]) -> Shape:
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
        sides = tuple(
            (shape[1 + i] + 2 * self.padding[i] - self.dilation[i] * (self.kernel[i] - 1) - 1)
            // self.stride[i]
            + 1
            for i in (0, 1)
        )
        return (self.channels, *_positive(self.name, sides, shape))

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
    def out_channels(self) -> int:
        return self.features

    @property
    def columns(self) -> Shape:
        return (self.in_features,)

    def output_shape(self, inputs: Sequence[Shape]) -> Shape:
        if inputs[0] != (self.in_features,):
            raise UsageError(
                f"{self.name}: input {inputs[0]}, but the layer needs ({self.in_features},)"
            )
        return (self.features,)

    def describe(self) -> str:
        return f"{self.in_features}→{self.features}" + (", batch norm" if self.norm else "")


@dataclass(frozen=True)
class Population(Node):
    """Spiking neurons, one per element of the input current.

    generated  channels appended behind those of the current: they fire a stored pattern
               (`<name>.pattern`, (T, generated)) whatever the input is, with no neuron behind it
    """

    op: ClassVar[str] = "population"
    neuron: NeuronSpec
    generated: int = 0

    def output_shape(self, inputs: Sequence[Shape]) -> Shape:
        return (inputs[0][0] + self.generated, *inputs[0][1:])

    def output_edge(self, inputs: Sequence[Edge]) -> Edge:
        return SPIKE

    def describe(self) -> str:
        n = self.neuron
        reset = "soft reset" if n.v_reset is None else f"reset to {n.v_reset:g}"
        reset += "" if n.v_subtract is None else f" by {n.v_subtract:g}"
        tau = "" if n.family == "if" else f", tau {n.tau:g}"
        tau += "" if n.family == "if" or n.decay_input else ", input not decayed"
        more = f", {self.generated} generated channels" if self.generated else ""
        return f"{n.family}{tau}, threshold {n.v_threshold:g} ({n.fire}), {reset}{more}"


@dataclass(frozen=True)
class Pool(Node):
    """A window sliding over a map; floor division at the far border."""

    kernel: Pair
    stride: Pair
    padding: Pair = (0, 0)

    def output_shape(self, inputs: Sequence[Shape]) -> Shape:
        shape = inputs[0]
        if len(shape) != 3:
            raise UsageError(f"{self.name}: pooling needs a (C, H, W) input, got {shape}")
        if any(2 * self.padding[i] > self.kernel[i] for i in (0, 1)):
            raise UsageError(
                f"{self.name}: padding {self.padding} is more than half the kernel {self.kernel}"
            )
        sides = tuple(
            (shape[1 + i] + 2 * self.padding[i] - self.kernel[i]) // self.stride[i] + 1
            for i in (0, 1)
        )
        return (shape[0], *_positive(self.name, sides, shape))

    def describe(self) -> str:
        return f"{self.kernel[0]}×{self.kernel[1]}, stride {self.stride[0]}×{self.stride[1]}"


@dataclass(frozen=True)
class MaxPool(Pool):
    """Maximum over a window; of spikes: OR."""

    op: ClassVar[str] = "max_pool"


@dataclass(frozen=True)
class AvgPool(Pool):
    """Mean over a window (padding counts as zeros); composed into the next projection."""

    op: ClassVar[str] = "avg_pool"

    def output_edge(self, inputs: Sequence[Edge]) -> Edge:
        return ANALOG


@dataclass(frozen=True)
class AdaptiveAvgPool(Node):
    """Mean over windows that tile the input to a given output size."""

    op: ClassVar[str] = "adaptive_avg_pool"
    size: Pair

    def output_shape(self, inputs: Sequence[Shape]) -> Shape:
        if len(inputs[0]) != 3:
            raise UsageError(f"{self.name}: pooling needs a (C, H, W) input, got {inputs[0]}")
        return (inputs[0][0], *_positive(self.name, self.size, inputs[0]))

    def output_edge(self, inputs: Sequence[Edge]) -> Edge:
        return ANALOG

    def describe(self) -> str:
        return f"to {self.size[0]}×{self.size[1]}"


@dataclass(frozen=True)
class Flatten(Node):
    """(C, H, W) to (C·H·W,), channel-major."""

    op: ClassVar[str] = "flatten"

    def output_shape(self, inputs: Sequence[Shape]) -> Shape:
        size = 1
        for side in inputs[0]:
            size *= side
        return (size,)


@dataclass(frozen=True)
class Merge(Node):
    """Two or more branches, element by element: what residual networks do.

    add   their sum: of spikes a graded edge (0 .. number of branches), of currents a current
    and   their product; spikes only
    iand  identity · (1 - branch), the first input times the inverse of the second; spikes only

    Spike-element-wise functions of SEW-ResNet (Fang et al., NeurIPS 2021, table 1).
    """

    op: ClassVar[str] = "merge"
    arity: ClassVar[int | None] = None
    function: MergeFunction

    def output_shape(self, inputs: Sequence[Shape]) -> Shape:
        if self.function not in ("add", "and", "iand"):
            raise UsageError(f"{self.name}: function {self.function!r}; valid: add, and, iand")
        if len(inputs) < 2 or (self.function == "iand" and len(inputs) != 2):
            raise UsageError(f"{self.name}: {self.function} of {len(inputs)} branches")
        if len(set(inputs)) != 1:
            raise UsageError(f"{self.name}: its branches have different shapes {list(inputs)}")
        return inputs[0]

    def output_edge(self, inputs: Sequence[Edge]) -> Edge:
        if self.function == "add":
            if any(edge.kind == "analog" for edge in inputs):
                return ANALOG
            return Edge("graded", sum(edge.bound or 0 for edge in inputs))
        if any(edge.kind != "spike" for edge in inputs):
            kinds = ", ".join(edge.kind for edge in inputs)
            raise UsageError(f"{self.name}: {self.function} needs spikes, its inputs are {kinds}")
        return SPIKE

    def describe(self) -> str:
        return f"{self.function} of {len(self.inputs)} branches"


@brief
@dataclass(frozen=True)
class Scatter(Node):
    """Channels of a narrow branch put where they belong in a wide stream, zeros elsewhere.

    index  the place of each input channel among `channels`; ascending
    """

    op: ClassVar[str] = "scatter"
    channels: int
    index: tuple[int, ...]

    def output_shape(self, inputs: Sequence[Shape]) -> Shape:
        (shape,) = inputs
        inside = all(0 <= place < self.channels for place in self.index)
        if shape[0] != len(self.index) or not inside or list(self.index) != sorted(set(self.index)):
            raise UsageError(
                f"{self.name}: {shape[0]} channels cannot go to places {self.index} of "
                f"{self.channels}"
            )
        return (self.channels, *shape[1:])

    def describe(self) -> str:
        return f"{len(self.index)} of {self.channels} channels"


@dataclass(frozen=True)
class Readout(Node):
    """Class scores from spikes: sum first, scale last.

    Over time and space the spikes are summed to integers; `linear`, if any, weighs them; the
    scale 1 / (T · H · W · votes) and the bias come last. Per step, T is 1.

    classes  number of scores
    linear   whether a weight (classes, C) is applied to the sums over space
    bias     whether a bias (classes,) is added at the end
    votes    without `linear`: neurons per class, averaged (6Conv2FC: 10)
    """

    op: ClassVar[str] = "readout"
    classes: int
    linear: bool = True
    bias: bool = True
    votes: int = 1

    def output_shape(self, inputs: Sequence[Shape]) -> Shape:
        if self.classes < 1 or self.votes < 1:
            raise UsageError(f"{self.name}: {self.classes} classes of {self.votes} votes")
        if not self.linear and inputs[0][0] != self.classes * self.votes:
            raise UsageError(
                f"{self.name}: {inputs[0][0]} sums for {self.classes} classes of {self.votes} votes"
            )
        return (self.classes,)

    def output_edge(self, inputs: Sequence[Edge]) -> Edge:
        return ANALOG

    def divisor(self, shape: Shape, time_steps: int) -> int:
        """T · H · W · votes for an input of `shape`."""
        space = shape[1] * shape[2] if len(shape) == 3 else 1
        return time_steps * space * self.votes

    def describe(self) -> str:
        kind = "linear head" if self.linear else f"vote of {self.votes} neurons a class"
        return f"mean over time and space, {kind}, {self.classes} classes"


OPS: dict[str, type[Node]] = {
    cls.op: cls
    for cls in (
        Input,
        Convolution,
        Linear,
        Population,
        MaxPool,
        AvgPool,
        AdaptiveAvgPool,
        Flatten,
        Merge,
        Readout,
        Scatter,
    )
}


def _positive(name: str, sides: tuple[int, ...], shape: Shape) -> tuple[int, ...]:
    if min(sides) < 1:
        raise UsageError(f"{name}: an input of {shape} leaves no output position")
    return sides
