"""Running a network's `forward` on symbols (torch.fx): what is a step of it, what is looked into.

SpikingJelly's containers are entered with a mark before and after, because they change what the
leading axes mean. While the network is traced, the state of its neurons is out of reach: a forward
that reads it is refused.
"""

import operator
import re
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import fx, nn
from torch.fx.graph import inplace_methods

from soul_deploy.base.errors import UnsupportedGraphError
from soul_deploy.frontend import module_kinds

SUPPORTED = (
    "Conv2d, Linear, BatchNorm1d/2d right after them, spiking neurons (SpikingNeuron; "
    "SpikingJelly's IFNode, LIFNode, ParametricLIFNode), MaxPool2d, AvgPool2d, AdaptiveAvgPool2d, "
    "Flatten, Merge, Dropout, Identity, RateReadout, VoteReadout, SpikingJelly's layers of these "
    "names and its MultiStepContainer, SeqToANNContainer, VotingLayer; in forward: +, x * y and "
    "x * (1 - y) of spikes, flatten and views that only merge axes, the mean over time or space, "
    "adaptive_avg_pool2d, unsqueeze(0) and repeat over time"
)
_FRAME = re.compile(r'File "(.*)", line (\d+), in \S+\n\s*(.*)')
_HIDDEN = ("__setattr__", "__getattr__")  # of modules with state: the line that uses it counts
_INTERNAL = (str(Path(torch.__file__).parent), str(Path(__file__)))


def fold_time(x: Any) -> Any:
    """Mark: (T, B, ...) is one batch of T·B from here on."""
    return x


def each_step(x: Any) -> Any:
    """Mark: from here on one step (B, ...) at a time."""
    return x


def whole_sequence(x: Any) -> Any:
    """Mark: (T, B, ...) again."""
    return x


class _Symbol(fx.Proxy):
    """A value of a traced forward. `y += x` is recorded as what it is: Python would make it y + x,
    and what else stands for y would not be seen to change.
    """


def _in_place(name: str) -> Callable[..., fx.Proxy]:
    target = getattr(operator, name)

    def record(self: fx.Proxy, *args: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", target, (self, *args), {})

    return record


for _name in inplace_methods:
    setattr(_Symbol, f"__{_name}__", _in_place(_name))


class Tracer(fx.Tracer):
    """Known modules are leaves; `failed_in` is the innermost module whose forward failed."""

    record_stack_traces = True

    def __init__(self) -> None:
        super().__init__()
        self.failed_in: str | None = None

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Symbol(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return module_kinds.module_kind(m) is not None or module_kinds.is_closed(m)

    def call_module(
        self,
        m: nn.Module,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        kind, path = module_kinds.module_kind(m), self.path_of_module(m)
        if kind in module_kinds.CONTAINERS:
            return self._enter(m, str(kind), *args)
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception:
            self.failed_in = self.failed_in or path
            raise

    def _enter(self, container: Any, kind: str, x: Any) -> Any:
        marks: tuple[Callable[[Any], Any], ...] = (fold_time, whole_sequence)
        if kind == "MultiStepContainer" or getattr(container, "stateful", False):
            marks = (each_step, whole_sequence)
        if module_kinds.step_mode(container) == "s":
            return _through(container, x)
        inner = _through(container, self.create_proxy("call_function", marks[0], (x,), {}))
        return self.create_proxy("call_function", marks[1], (inner,), {})

    def create_arg(self, a: Any) -> Any:
        if isinstance(a, _State):
            a.refuse()
        return super().create_arg(a)


def _through(container: Any, x: Any) -> Any:
    for module in container:
        x = module(x)
    return x


class _State:
    """Stands for a neuron's state during tracing; whatever is done with it is refused."""

    def __init__(self, path: str) -> None:
        self.path = path

    def refuse(self, *args: Any) -> NoReturn:
        raise UnsupportedGraphError(
            f"the state of {self.path!r} is used outside its neuron; only spikes leave a neuron"
        )

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = refuse
    __lt__ = __gt__ = __le__ = __ge__ = __eq__ = __bool__ = __float__ = refuse
    __hash__ = object.__hash__

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self.refuse()


class _Memories(dict[str, Any]):
    """In place of a neuron's memories: stand-ins, which only a reset may be written to."""

    def __init__(self, path: str, resets: Mapping[str, Any], names: Iterable[str]) -> None:
        super().__init__({name: _State(path) for name in names})
        self._path, self._resets = path, resets

    def __setitem__(self, name: str, value: Any) -> None:
        if not module_kinds.is_reset(value, self._resets.get(name)):
            raise UnsupportedGraphError(
                f"the state of {self._path!r} is set outside its neuron ({name}); a neuron starts "
                "at rest, and only spikes leave it"
            )


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """The network in evaluation mode; afterwards each module is in the mode it was in."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def _hidden_state(network: nn.Module) -> Iterator[None]:
    """SpikingJelly keeps state in `_memories`; put stand-ins there, and the state back after."""
    kept: list[tuple[dict[str, Any], dict[str, Any]]] = []
    for path, module in network.named_modules():
        memories = vars(module).get("_memories") if module_kinds.is_stateful(module) else None
        if isinstance(memories, dict):
            kept.append((vars(module), memories))
            resets = vars(module).get("_memories_rv", {})
            vars(module)["_memories"] = _Memories(path, resets, memories)
    try:
        yield
    finally:
        for attributes, memories in kept:
            attributes["_memories"] = memories


def run_symbolically(network: nn.Module) -> fx.Graph:
    """The operations of `network.forward`, in order.

    Raises UnsupportedGraphError naming the module and the code line that depend on data.
    """
    tracer = Tracer()
    try:
        with warnings.catch_warnings(), evaluating(network), _hidden_state(network):
            warnings.simplefilter("ignore")
            return tracer.trace(network)
    except UnsupportedGraphError as error:
        raise UnsupportedGraphError(
            f"{error} ({_place(network, tracer, error)}); supported: {SUPPORTED}"
        ) from error
    except Exception as error:  # forward is somebody else's code: it can fail in any way
        raise UnsupportedGraphError(
            f"{type(network).__name__}: its forward cannot be traced ({_first_line(error)}; "
            f"{_place(network, tracer, error)}); control flow that depends on data, and operations "
            f"outside layers, are not supported. Supported: {SUPPORTED}"
        ) from error


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


def _place(network: nn.Module, tracer: Tracer, error: BaseException) -> str:
    where = f"in module {tracer.failed_in!r}" if tracer.failed_in else "in the network itself"
    frames = [
        (frame.filename, frame.lineno, frame.line)
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith(_INTERNAL) and frame.name not in _HIDDEN
    ]
    return f"{where}, {_line(*frames[-1])}" if frames else where


def owner_of(node: fx.Node) -> str:
    """Dotted name of the module whose forward a traced operation is in; "" for the network."""
    stack = node.meta.get("nn_module_stack") or {}
    owners = [str(entry[0]) for entry in stack.values()]
    return owners[-1] if owners else ""


def place_of(node: fx.Node) -> str:
    """Module and code line that a traced operation comes from."""
    owner = owner_of(node)
    where = f"in module {owner!r}" if owner else "in the network itself"
    frames = [
        match.groups()
        for match in _FRAME.finditer(node.stack_trace or "")
        if not match.group(1).startswith(_INTERNAL)
    ]
    if not frames:
        return where
    file, line, code = frames[-1]
    return f"{where}, {_line(file, line, code)}"


def _line(file: str, number: Any, code: str | None) -> str:
    return f"{Path(file).name} line {number}: {(code or '').strip()}"


def takes_steps(network: nn.Module) -> bool:
    """Whether SpikingJelly's modules of this network all run one step at a time."""
    modes = {
        module_kinds.step_mode(module)
        for module in network.modules()
        if module_kinds.is_stateful(module)
    }
    return bool(modes) and not is_multi_step(network)


def is_multi_step(network: nn.Module) -> bool:
    """Whether any SpikingJelly module takes whole sequences."""
    return any(module_kinds.step_mode(module) == "m" for module in network.modules())
