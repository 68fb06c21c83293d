"""snnTorch's neurons: called once a step, on a current and their state.

`spikes, mem = lif(current, mem)`, or with `init_hidden=True` `spikes = lif(current)`. The state of
the last call also stays in the module (`lif.mem`), and a call without one takes it from there.
snnTorch is never imported: classes are known by where they are defined and what they are called.

While a forward is traced, the states are out of reach: stand-ins tell where each came from.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from soul_deploy.frontend.outputs import Key
from soul_deploy.frontend.sizes import Refusal

SNNTORCH = "snntorch"
STATES: Mapping[str, tuple[str, ...]] = {
    "Leaky": ("mem",),
    "Lapicque": ("mem",),
    "Synaptic": ("syn", "mem"),
    "RLeaky": ("spk", "mem"),
    "RSynaptic": ("spk", "syn", "mem"),
}
"""The neurons that are known, and their state in the order of arguments."""
SPIKES = "spk"
"""The state that is what a neuron sent last: the first of its results."""
PARTS = ("RecurrentOneToOne",)
"""Modules inside of these neurons."""


def kind_of(cls: type) -> str | None:
    """The name of a class of snnTorch's that is a known neuron."""
    return cls.__name__ if _is_of_snntorch(cls) and cls.__name__ in STATES else None


def states_of(module: nn.Module) -> tuple[str, ...]:
    """The attributes of a neuron that hold its state; of those that are not known, the membrane."""
    kinds = [kind for base in type(module).__mro__ if (kind := kind_of(base)) is not None]
    return STATES[kinds[0]] if kinds else ("mem",)


def results_of(module: nn.Module) -> tuple[str | None, ...]:
    """Which state each result of a call is; None: its spikes, which are a state of some too."""
    return None, *(state for state in states_of(module) if state != SPIKES)


def recurrent_layer(module: Any) -> nn.Module | None:
    """The layer between a neuron's last spikes and its current; None where each sees its own."""
    if SPIKES not in states_of(module) or not module.all_to_all:
        return None
    layer: nn.Module = module.recurrent
    return layer


def is_stepped(module: nn.Module | None) -> bool:
    """Whether a module is one of snnTorch's neurons, or made of one."""
    bases = type(module).__mro__
    return any(_is_of_snntorch(base) and base.__name__ == "SpikingNeuron" for base in bases)


def _is_of_snntorch(cls: type) -> bool:
    return cls.__module__.split(".")[0] == SNNTORCH


def type_name(module: nn.Module) -> str:
    """Which of STATES a known neuron is; a subclass without code of its own is its base."""
    return next(kind for base in type(module).__mro__ if (kind := kind_of(base)) is not None)


def rest() -> NoReturn:
    """Mark: a membrane at rest."""
    raise NotImplementedError("stands in traces only")


def kept(path: str, state: str) -> NoReturn:
    """Mark: the state that an earlier call of the network left in the neuron `path`."""
    raise NotImplementedError("stands in traces only")


class Membrane:
    """Stands for a state that no traced call made: at rest, or kept from before in the attribute
    `place` = (path, state).
    """

    device = torch.device("cpu")

    def __init__(self, place: tuple[str, str] | None) -> None:
        self.place = place

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> "Membrane":
        """zeros_like of a membrane is one at rest; snntorch.utils.reset makes it so."""
        if function is torch.zeros_like:
            return cls(None)
        raise Refusal("the membrane of a neuron is used outside its neuron; only spikes leave one")

    def detach_(self) -> "Membrane":
        return self


@contextmanager
def hidden(network: nn.Module) -> Iterator[None]:
    """Put stand-ins in place of the membranes of `network`'s neurons, and all back afterwards."""
    changed: list[tuple[dict[str, Any], dict[str, Any]]] = []
    try:
        for path, module in network.named_modules():
            if not is_stepped(module):
                continue
            own = vars(module)
            changed.append((own, dict(own)))
            states, name = states_of(module), type(module).__name__.lower()
            own["_buffers"] = {k: v for k, v in own["_buffers"].items() if k not in states}
            own.update({state: Membrane((path, state)) for state in states})
            own["reset_mem"] = own[f"init_{name}"] = _resetting(own, states)
        yield
    finally:
        for own, before in changed:
            own.clear()
            own.update(before)


def _resetting(own: dict[str, Any], states: tuple[str, ...]) -> Callable[[], Any]:
    def reset() -> Any:
        own.update({state: Membrane(None) for state in states})
        found = tuple(own[state] for state in states)
        return found if len(states) > 1 else found[0]

    return reset


def arguments(path: str, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The current and the state that a call uses: what it is given, or the neuron's own."""
    states = states_of(module)
    if not 1 <= len(args) <= 1 + len(states) or kwargs.keys() - states:
        raise Refusal(f"neuron {path!r} is called with other than a current and its state")
    given = {**dict(zip(states, args[1:], strict=False)), **kwargs}
    used = [_used(path, module, state, given.get(state)) for state in states]
    return args[0], *used


def _used(path: str, module: Any, state: str, given: Any) -> Any:
    if given is None:
        return vars(module)[state]
    if module.init_hidden:
        raise Refusal(f"neuron {path!r} has init_hidden=True and is given a membrane")
    if not isinstance(given, Tensor):
        return given
    if given.any():
        raise Refusal(
            f"neuron {path!r} is given a membrane of other values than 0; a graph's neurons start "
            "at rest"
        )
    return Membrane(None)


def results(module: Any, called: Any) -> Any:
    """What a call returns, of `called`: its spikes and the state that its neuron now holds."""
    given = {state or SPIKES: called[i] for i, state in enumerate(results_of(module))}
    vars(module).update({state: given[state] for state in states_of(module)})
    if module.init_hidden and not module.output:
        return called[0]
    return tuple(given.values())


@contextmanager
def from_rest(module: Any) -> Iterator[None]:
    """A neuron at rest for as long as this; then as it was."""
    own = vars(module)
    before, buffers = dict(own), dict(own["_buffers"])
    at_rest = {state: buffers[state].new_zeros(0) for state in states_of(module)}
    own["_buffers"] = {**buffers, **at_rest}
    try:
        yield
    finally:
        own.clear()
        own.update(before)


def membrane_after(module: Any) -> Tensor:
    """The membrane that a neuron's last call left, after its reset as `spec_of` has it."""
    held: Tensor = module.mem.detach()
    if type_name(module) != "Leaky" or module.state_function.__name__ != "_base_zero":
        return held.clone()
    return torch.where(held > module.threshold, torch.zeros_like(held), held)


@dataclass(frozen=True)
class Returns:
    """What a forward is given besides its input, and returns besides the class scores.

    scores  which of several values is the class scores; None: the only one
    states  by argument: the neuron and the state that it is, and which value is its next one
    """

    scores: Key | None = None
    states: tuple[tuple[str, str, Key], ...] = ()


NOTHING_MORE = Returns()


class Calls:
    """A network called again and again, each time with the membranes that the last call returned.

    It gives the class scores; a list of all steps as one tensor.
    """

    def __init__(self, network: nn.Module, returns: Returns) -> None:
        self._network, self._returns = network, returns
        held = [getattr(network.get_submodule(path), state) for path, state, _ in returns.states]
        self._held = [state.new_zeros(0) for state in held]

    def __call__(self, x: Tensor) -> Tensor:
        returned = self._network(x, *self._held)
        self._held = [returned[place] for *_, place in self._returns.states]
        place = self._returns.scores
        scores = returned if place is None else returned[place]
        return scores if isinstance(scores, Tensor) else torch.stack(tuple(scores))


def cast_spikes(network: nn.Module) -> None:
    """Let each neuron of a float64 network give its spikes in float64; snnTorch's are float32."""
    for module in network.modules():
        if is_stepped(module):
            module.register_forward_hook(lambda _, inputs, output: _double(output))


def _double(output: Any) -> Any:
    return tuple(map(_double, output)) if isinstance(output, tuple) else output.double()
