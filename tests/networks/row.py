"""One row of docs/networks.md: somebody's network, how it comes in, and what its own tool gives."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from soul_deploy.model.model import Model


@dataclass(frozen=True)
class Own:
    """What the tool itself gives on the row's input.

    sent    what each population sends, (T, B, ...), by our name of it
    scores  the class scores (B, classes)
    """

    sent: Mapping[str, Tensor]
    scores: Tensor


@dataclass(frozen=True)
class Made:
    """A network that was made, with its input.

    x      (B, ...) shown at every step, or (T, B, ...)
    own    the tool's own run on x; None where no tool runs it: then it has to be refused
    taken  the network as a model of ours; raises what refuses it
    names  the network's modules, as its own tool names them
    """

    x: Tensor
    own: Callable[[], Own] | None
    taken: Callable[[], Model]
    names: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Row:
    """way: what takes it in. light: measured by `make test` too.

    differs: why spikes can't be equal, where nothing says so to whom reads the network.
    """

    network: str
    neuron: str
    make: Callable[[], Made]
    way: str = "from_torch"
    light: bool = False
    differs: str = ""
