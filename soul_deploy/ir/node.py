"""What every operation of a spiking graph is, and what is asked of any of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from soul_deploy.base.errors import UnsupportedGraphError, UsageError
from soul_deploy.ir.neurons import Edge

if TYPE_CHECKING:
    from soul_deploy.ir.nodes import Readout

Shape = tuple[int, ...]
Pair = tuple[int, int]


NORM_PARTS = ("weight", "bias", "running_mean", "running_var")


@dataclass(frozen=True)
class BatchNorm:
    """Batch normalisation of a projection's output, until it is folded; `name` owns its state.

    momentum  of the running statistics in training; None: they are the mean over all batches
    """

    name: str
    eps: float = 1e-5
    momentum: float | None = 0.1


@dataclass(frozen=True)
class Node:
    """One operation; `name` is the dotted name of the module it came from.

    An operation says of itself:
    fires           its values are the spikes of neurons, which remember earlier steps
    projects        it makes a current out of weights
    composable      linear without weights: part of the projection or readout behind it
    reshapes        its values are those of its input, in another shape
    scatters        its channels are those of its input and others, which are 0
    rescales        it multiplies or shifts each channel by numbers of its own
    keeps_zero      it gives 0 for a channel that is 0
    gives           its output's edge kind; None: that of its first input
    keeps_channels  each of its channels depends on that channel of its inputs only, but for what
                    is `generated`
    """

    op: ClassVar[str] = ""
    arity: ClassVar[int | None] = 1  # how many inputs it has; None: two or more
    fires: ClassVar[bool] = False
    projects: ClassVar[bool] = False
    composable: ClassVar[bool] = False
    reshapes: ClassVar[bool] = False
    scatters: ClassVar[bool] = False
    rescales: ClassVar[bool] = False
    keeps_zero: ClassVar[bool] = False
    keeps_channels: ClassVar[bool] = False
    gives: ClassVar[Edge | None] = None
    name: str
    inputs: tuple[str, ...]

    @property
    def weighs(self) -> bool:
        """Whether it has a weight tensor, a column or more for each channel that it reads."""
        return self.projects

    @property
    def groups(self) -> int:
        """Into how many groups its weights split the channels."""
        return 1

    @property
    def generated(self) -> int:
        """How many of its channels, the last, fire a stored pattern."""
        return 0

    @property
    def integers(self) -> bool | None:
        """Whether it is of fixed-point networks alone (True), of others alone, or both (None)."""
        return None

    @property
    def feedback(self) -> "Node | None":
        """What its own values of the step before go through, onto its input."""
        return None

    def output_shape(self, inputs: Sequence[Shape]) -> Shape:
        """The output's shape without time and batch. Raises UsageError if the inputs don't fit."""
        raise NotImplementedError

    def output_edge(self, inputs: Sequence[Edge]) -> Edge:
        """The output's edge kind."""
        return self.gives or inputs[0]

    def tensors(self, inputs: Sequence[Shape], time_steps: int) -> Mapping[str, Shape]:
        """Name and shape of what it owns in a state dict, for inputs of these shapes."""
        return {}

    def passes(self, given: Sequence[bool]) -> bool:
        """Whether something gets through when only the inputs marked in `given` are not 0."""
        return all(given)

    def spares(self, branch: str) -> bool:
        """Whether its output is that of the other inputs where input `branch` is 0."""
        return False

    def averages_all(self, in_shape: Shape) -> bool:
        """Whether it is the mean over the whole map."""
        return False

    def denominator(self, in_shape: Shape) -> int | None:
        """A number that makes its output for whole numbers whole; None: there is no small one."""
        return 1

    @property
    def pads(self) -> bool:
        """Whether its windows see zeros around the map, which a bias in front would change."""
        return False

    @property
    def row_tensors(self) -> tuple[str, ...]:
        """The tensors with one row per output channel."""
        return ()

    def magnitude(self) -> "Node":
        """The operation with the absolute values of its constants, its tensors aside."""
        return self

    def with_norm(self, norm: BatchNorm) -> "Node | None":
        """The operation with a batch norm on its output; None if it cannot have one (more)."""
        return None

    def as_head(self, source: str) -> "Readout | None":
        """The readout that reads `source`, where the operation can be its head."""
        return None

    def describe(self) -> str:
        """One line for tables."""
        return ""


def no_entry(node: Node, walker: str) -> UnsupportedGraphError:
    """What a table over nodes raises for an operation that nobody entered."""
    return UnsupportedGraphError(f"{node.name}: {walker} does not know the operation {node.op!r}")


def slid(name: str, shape: Shape, window: Shape, stride: Pair, padding: Pair) -> Shape:
    """(H, W) of the places of a window on a map of `shape`; raises as `positive`."""
    sides = tuple((shape[1 + i] + 2 * padding[i] - window[i]) // stride[i] + 1 for i in (0, 1))
    return positive(name, sides, shape)


def positive(name: str, sides: tuple[int, ...], shape: Shape) -> tuple[int, ...]:
    """`sides`, of the output for an input of `shape`. Raises UsageError if one is below 1."""
    if min(sides) < 1:
        raise UsageError(f"{name}: an input of {shape} leaves no output position")
    return sides
