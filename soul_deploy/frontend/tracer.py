"""Running a network's `forward` on symbols (torch.fx): what is a step of it, what is looked into.

SpikingJelly's containers are entered with a mark before and after, because they change what the
leading axes mean. While the network is traced, the state of its neurons is out of reach: a forward
that reads it is refused. Shapes are answered (`sides_of`), values of tensors are not.

A graph has no memory, only values. `z = y; z += y` changes y too, and whoever reads y afterwards
gets the changed numbers; a graph would give them the old ones. Where nobody reads the memory under
a name that is older than the change, the operation is the same as one that is not in place
(`TensorMemory`).
"""

import operator
import re
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NoReturn

import torch
from torch import fx, nn
from torch.fx.graph import inplace_methods

from soul_deploy.base.errors import UnsupportedGraphError
from soul_deploy.frontend import hidden_state, module_kinds, stepped
from soul_deploy.frontend.module_kinds import takes_steps
from soul_deploy.frontend.sizes import Refusal, Side, Sides
from soul_deploy.frontend.spiking_nodes import NEURONS

SUPPORTED = (
    "Conv2d, Linear, BatchNorm1d/2d, tdBN, ann2snn's scalers, spiking neurons (SpikingNeuron; "
    f"SpikingJelly's {', '.join(NEURONS)}, and at the end NonSpikingIFNode, NonSpikingLIFNode; "
    f"snnTorch's {', '.join(stepped.STATES)}), MaxPool2d, "
    "AvgPool2d, AdaptiveAvgPool2d, Flatten, Merge, Dropout, Identity, RateReadout, VoteReadout, "
    "SpikingJelly's layers of these names and its MultiStepContainer, SeqToANNContainer, "
    "LinearRecurrentContainer, ElementWiseRecurrentContainer, VotingLayer; in forward: +, x * y "
    "and x * (1 - y) of spikes, x * c and x / c by constants, flatten and views that only merge "
    "axes, permute and back, the mean over time or space, the sum, the maximum or the last step of "
    "time, adaptive_avg_pool2d, max_pool2d, unsqueeze(0) and repeat over time; with snnTorch's "
    "neurons loops over time, x[t], and torch.stack of all steps"
)
Takes = Literal["image", "sequence", "step"]
_FRAME = re.compile(r'File "(.*)", line (\d+), in \S+\n\s*(.*)')
_WANTS_NUMBERS = re.compile(
    r"_Symbol|Proxy|BatchSize|argument of type|^(new_)?(zeros|ones|empty|full|randn?)\(\) takes"
)
_HIDDEN = ("__setattr__", "__getattr__")  # of modules with state: the line that uses it counts
_INTERNAL = (str(Path(torch.__file__).parent), str(Path(__file__).parent))
SidesOf = Callable[[fx.Node], tuple[Side, ...]]


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

    @property
    def shape(self) -> Sides:
        sides: Sides = self.tracer.sides_of(self.node)  # type: ignore[attr-defined]
        return sides

    def size(self, dim: int | None = None) -> Any:
        return self.shape if dim is None else self.shape[dim]

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def dim(self) -> int:
        return len(self.shape)

    ndimension = dim

    def unsqueeze_(self, dim: int) -> "_Symbol":
        """Only what this name stands for gets another shape: it is a new value from here on."""
        self.node = self.unsqueeze(dim).node
        return self

    def numel(self) -> Side:
        return self.shape.numel()

    def __iter__(self) -> Iterator[Any]:
        return self.tracer.iter(self)

    def __len__(self) -> int:
        return operator.index(self.shape[0])

    def _as_number(self) -> NoReturn:
        raise Refusal("it makes a number of a tensor's values (float(x), int(x))")

    __float__ = __int__ = __index__ = __complex__ = _as_number


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

    def __init__(self, sides_of: SidesOf) -> None:
        super().__init__()
        self.failed_in: str | None = None
        self._sides_of, self._asking = sides_of, False

    def sides_of(self, node: fx.Node) -> Sides:
        """The shape of a value that was traced."""
        self._asking = True
        try:
            return Sides(self._sides_of(node))
        finally:
            self._asking = False

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """What a module's attribute is; a forward that reads weights leaves a trace of it."""
        if self._asking:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def create_proxy(self, kind: str, *args: Any, **kwargs: Any) -> Any:
        """A value; arguments of forward that have a default, but the first, are what it is."""
        default = args[1] if kind == "placeholder" else ()
        if default and any(node.op == "placeholder" for node in self.graph.nodes):
            return default[0]
        return super().create_proxy(kind, *args, **kwargs)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Symbol(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return module_kinds.module_kind(m) is not None or module_kinds.is_closed(m)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:  # fmt: skip
        kind, path = module_kinds.module_kind(m), self.path_of_module(m)
        if kind in module_kinds.CONTAINERS:
            return self._enter(m, str(kind), *args)
        try:
            if kind in stepped.STATES:
                args, kwargs = stepped.arguments(path, m, args, kwargs), {}
                called = super().call_module(m, forward, args, kwargs)
                return stepped.results(m, called)
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

    def to_bool(self, obj: fx.Proxy) -> bool:
        raise Refusal("it has a condition on a tensor's values; only shapes can be asked for")

    def iter(self, obj: Any) -> Iterator[Any]:
        neurons = any(stepped.is_stepped(m) or takes_steps(m) for m in self.root.modules())
        steps = obj.shape[0] if neurons else None
        if isinstance(steps, int):  # a loop over time
            return iter([obj[t] for t in range(steps)])
        raise Refusal(
            "it takes a tensor apart (a loop over time or samples, or `a, b = layer(x)`); layers "
            "are given whole sequences, and return one tensor"
        )

    def keys(self, obj: fx.Proxy) -> Any:
        return self.iter(obj)

    def create_arg(self, a: Any) -> Any:
        if isinstance(a, hidden_state.State):
            a.refuse()
        if isinstance(a, stepped.Membrane):
            mark: Any = stepped.rest if a.place is None else stepped.kept
            return self.create_node("call_function", mark, a.place or (), {})
        return super().create_arg(a)


def _through(container: Any, x: Any) -> Any:
    for module in container:
        x = module(x)
    return x


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """The network in evaluation mode; afterwards each module is in the mode it was in."""
    with ExitStack() as after:
        for module in network.modules():
            after.callback(setattr, module, "training", module.training)
        network.eval()
        yield


class ForwardError(UnsupportedGraphError):
    """A forward that raised an error of its own while it was traced."""


CONSTANT = "constant"
"""Where an operation keeps a tensor that forward made: the network holds it during tracing only."""


def run_symbolically(network: nn.Module, sides_of: SidesOf) -> fx.Graph:
    """The operations of `network.forward`, in order. `sides_of` says what shape a value has.

    Raises UnsupportedGraphError naming the module and the code line that depend on data.
    """
    tracer = Tracer(sides_of)
    try:
        with evaluating(network), hidden_state.hidden(network):
            operations = tracer.trace(network)
            for node in operations.nodes:
                if node.op == "get_attr" and hasattr(network, str(node.target)):
                    node.meta[CONSTANT] = getattr(network, str(node.target))
            return operations
    except Refusal as error:
        raise UnsupportedGraphError(
            f"{type(network).__name__}: its forward cannot be traced: {error} "
            f"({_place(tracer, error)}); supported: {SUPPORTED}"
        ) from error
    except UnsupportedGraphError:
        raise
    except Exception as error:  # forward is somebody else's code: it can fail in any way
        raise ForwardError(
            f"{type(network).__name__}: its forward cannot be traced: {_cause(error)} "
            f"({_place(tracer, error)}); supported: {SUPPORTED}"
        ) from error


def _cause(error: Exception) -> str:
    """What went wrong, without torch.fx's words."""
    lines = str(error).strip().splitlines()
    said = lines[0].rstrip(".") if lines else ""
    if "module is not installed as a submodule" in said:
        return "it calls a module that it does not own (kept in a list? nn.ModuleList holds it)"
    if _WANTS_NUMBERS.search(said):
        said = re.sub("_Symbol|Proxy", "a traced tensor", said).replace("BatchSize", "B")
        return (
            "a tensor's values, or the number of samples, are needed as numbers while there are "
            f"none yet ({said})"
        )
    kind = type(error).__name__
    return f"{kind}: {said}" if said else kind


def _place(tracer: Tracer, error: BaseException) -> str:
    raised = traceback.extract_tb(error.__traceback__)
    shown = [(f.filename, f.lineno, f.line) for f in raised if f.name not in _HIDDEN]
    return _where(tracer.failed_in, shown)


def owner_of(node: fx.Node) -> str:
    """Dotted name of the module whose forward a traced operation is in; "" for the network."""
    stack = node.meta.get("nn_module_stack") or {}
    owners = [str(entry[0]) for entry in stack.values()]
    return owners[-1] if owners else ""


def place_of(node: fx.Node) -> str:
    """Module and code line that a traced operation comes from."""
    return _where(
        owner_of(node), [found.groups() for found in _FRAME.finditer(node.stack_trace or "")]
    )


def _where(module: str | None, frames: Iterable[tuple[Any, ...]]) -> str:
    """The module and the last of the code lines (file, number, code) that is not PyTorch's."""
    where = f"in module {module!r}" if module else "in the network itself"
    own = [frame for frame in frames if not frame[0].startswith(_INTERNAL)]
    if not own:
        return where
    file, number, code = own[-1]
    return f"{where}, {Path(file).name} line {number}: {(code or '').strip()}"


def is_multi_step(network: nn.Module) -> bool:
    """Whether SpikingJelly's modules in it are given whole sequences."""
    return any(
        module_kinds.step_mode(module) == "m"
        or module_kinds.module_kind(module)
        in ("MultiStepContainer", "SeqToANNContainer", *module_kinds.NON_SPIKING)
        for module in network.modules()
    )


def can_take(network: nn.Module, sequence: bool) -> tuple[Takes, ...]:
    """What the network's forward may be given, the likeliest first.

    Networks of SpikingJelly's modules take sequences, or repeat an image themselves, or both; ours
    take what the example is: a `sequence`, or images.
    """
    if any(map(stepped.is_stepped, network.modules())):
        return ("sequence", "image") if sequence else ("image", "sequence")
    multi_step = is_multi_step(network)
    if not multi_step and any(map(module_kinds.is_stateful, network.modules())):
        return ("step",)
    return ("sequence", "image") if multi_step or sequence else ("image",)


LOOPS: tuple[Takes, Takes] = ("sequence", "image")
"""What a forward that loops over time may be given."""


def may_loop(network: nn.Module) -> bool:
    """Whether a forward may call neurons of SpikingJelly in a loop over time: all take steps."""
    return not is_multi_step(network) and any(map(takes_steps, network.modules()))


def changes_in_place(node: fx.Node) -> bool:
    """Whether an operation writes its result into the memory of its first input."""
    if node.op == "call_function" and node.target in _OPERATORS:
        return True
    if node.op not in ("call_function", "call_method"):
        return False
    target: Any = node.target
    name = target if isinstance(target, str) else getattr(target, "__name__", "")
    reserved = getattr(target, "__module__", "") == operator.and_.__module__  # and_, not_, ...
    own = name.endswith("_") and not name.endswith("__") and not reserved
    return bool(own or node.kwargs.get("inplace") is True or "out" in node.kwargs)


_OPERATORS = tuple(getattr(operator, name) for name in inplace_methods)


@dataclass
class TensorMemory:
    """Whose memory each traced value lies in, and who changed it last.

    Operations are told in the order in which they run.
    """

    _owner: dict[fx.Node, fx.Node] = field(default_factory=dict)
    _changed: dict[fx.Node, fx.Node] = field(default_factory=dict)
    _order: dict[fx.Node, int] = field(default_factory=dict)

    def made(self, node: fx.Node, within: fx.Node | None) -> None:
        """A value: in new memory, or in that of `within`."""
        self._order[node] = len(self._order)
        self._owner[node] = node if within is None else self._owner.get(within, within)
        if changes_in_place(node):
            self._changed[self._owner[node]] = node

    def owner(self, node: fx.Node) -> fx.Node:
        """The value that `node`'s memory was made for."""
        return self._owner.get(node, node)

    def stale(self, node: fx.Node) -> fx.Node | None:
        """The change in place of what `node` reads under a name that is older than the change."""
        for name in node.all_input_nodes:
            changed = self._changed.get(self.owner(name))
            if changed is not None and self._order.get(name, -1) < self._order[changed]:
                return changed
        return None
