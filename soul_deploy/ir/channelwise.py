"""Operations that multiply or shift a map channel by channel, without synapses of their own."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from soul_deploy.base import brief
from soul_deploy.base.errors import UsageError
from soul_deploy.ir import neurons, node


@dataclass(frozen=True)
class Scale(node.Node):
    """Its input times a constant.

    factor  one number for all channels; None: one for each, the tensor `<name>.scale` (C,)

    Linear without synapses: part of the projection or readout behind it. Behind a current in front
    of a neuron or a merge, it is part of the projection before it (lowering/compose_currents.py).
    """

    op: ClassVar[str] = "scale"
    composable: ClassVar[bool] = True
    rescales: ClassVar[bool] = True
    keeps_zero: ClassVar[bool] = True
    keeps_channels: ClassVar[bool] = True
    gives: ClassVar[neurons.Edge | None] = neurons.ANALOG
    factor: float | None

    @property
    def integers(self) -> bool | None:
        return False

    def output_shape(self, inputs: Sequence[node.Shape]) -> node.Shape:
        if self.factor is not None and not is_usable(self.factor):
            raise UsageError(
                f"{self.name}: a multiplication by {self.factor}; it must be finite in float32, "
                "and not 0"
            )
        return inputs[0]

    def tensors(self, inputs: Sequence[node.Shape], time_steps: int) -> Mapping[str, node.Shape]:
        return {} if self.factor is not None else {f"{self.name}.scale": inputs[0][:1]}

    @property
    def row_tensors(self) -> tuple[str, ...]:
        return () if self.factor is not None else (f"{self.name}.scale",)

    def denominator(self, in_shape: node.Shape) -> int | None:
        """Of a factor such as 0.75 its 4; None where whole numbers become no simple fractions."""
        if self.factor is None:
            return None
        bottom = self.factor.as_integer_ratio()[1]
        return bottom if bottom <= MOST_PARTS else None

    def magnitude(self) -> "Scale":
        return self if self.factor is None else replace(self, factor=abs(self.factor))

    def describe(self) -> str:
        return "channel by channel" if self.factor is None else f"times {self.factor:g}"


@dataclass(frozen=True)
class ChannelNorm(node.Node):
    """Batch norm that does not directly follow a projection: before one, or behind a pooling.

    norm  its settings; the tensors are `<name>.weight`, bias, running_mean, running_var

    Behind a current that nothing else reads, it becomes part of the projection before it; before a
    projection without padding, of that one. Padding does not see its bias, so that in front of a
    padded convolution it is an operation of its own (lowering/compose_currents.py).
    """

    op: ClassVar[str] = "batch_norm"
    rescales: ClassVar[bool] = True
    keeps_channels: ClassVar[bool] = True
    gives: ClassVar[neurons.Edge | None] = neurons.ANALOG
    norm: node.BatchNorm

    @property
    def integers(self) -> bool | None:
        return False

    def output_shape(self, inputs: Sequence[node.Shape]) -> node.Shape:
        if self.norm.name != self.name:
            raise UsageError(f"{self.name}: its batch norm is called {self.norm.name!r}")
        return inputs[0]

    def tensors(self, inputs: Sequence[node.Shape], time_steps: int) -> Mapping[str, node.Shape]:
        shapes = dict.fromkeys(self.row_tensors, inputs[0][:1])
        return shapes | {f"{self.name}.num_batches_tracked": ()}

    @property
    def row_tensors(self) -> tuple[str, ...]:
        return tuple(f"{self.name}.{part}" for part in node.NORM_PARTS)

    def describe(self) -> str:
        return "of its own"


@brief
@dataclass(frozen=True)
class Scatter(node.Node):
    """Channels of a narrow branch put where they belong in a wide stream, zeros elsewhere.

    index  the place of each input channel among `channels`; ascending
    """

    op: ClassVar[str] = "scatter"
    scatters: ClassVar[bool] = True
    channels: int
    index: tuple[int, ...]

    def output_shape(self, inputs: Sequence[node.Shape]) -> node.Shape:
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


MOST_PARTS = 1 << 16
"""The largest denominator of a factor that leaves whole numbers fractions to be counted by."""


def is_usable(factor: object) -> bool:
    """Whether a number can be the factor of a Scale: finite in float32, and not 0."""
    if isinstance(factor, bool) or not isinstance(factor, int | float):
        return False
    return math.isfinite(factor) and neurons.SMALLEST <= abs(factor) <= neurons.LARGEST
