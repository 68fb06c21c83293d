"""snnTorch's neurons: called once a step, on a current and their state.

`spikes, mem = lif(current, mem)`, or with `init_hidden=True` `spikes = lif(current)`. The state of
the last call also stays in the module (`lif.mem`), and a call without one takes it from there.
snnTorch is never imported: classes are known by where they are defined and what they are called.

While a forward is traced, the states are out of reach: stand-ins tell where each came from.
"""

import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from soul_deploy.base.errors import NetworkWarning, UnsupportedGraphError, UsageError
from soul_deploy.frontend.outputs import Key
from soul_deploy.frontend.sizes import Refusal
from soul_deploy.ir import NeuronSpec, SurrogateName
from soul_deploy.ir.neurons import LARGEST
from soul_deploy.runtime.dynamics import snntorch

SNNTORCH = "snntorch"
STATES: Mapping[str, tuple[str, ...]] = {
    "Leaky": ("mem",),
    "Lapicque": ("mem",),
    "Synaptic": ("syn", "mem"),
}
"""The neurons that are known, and their state in the order of arguments and results."""
RESETS = {"_base_sub": "subtract", "_base_zero": "zero", "_base_int": "none"}
"""What neurons compute by (snntorch/_neurons, 1.0.0), and the reset_mechanism it means."""
LEFT_ALONE = {"inhibition": False, "state_quant": False}


def kind_of(cls: type) -> str | None:
    """The name of a class of snnTorch's that is a known neuron."""
    return cls.__name__ if _is_of_snntorch(cls) and cls.__name__ in STATES else None


def states_of(module: nn.Module) -> tuple[str, ...]:
    """The attributes of a neuron that hold its state; of those that are not known, the membrane."""
    kinds = [kind for base in type(module).__mro__ if (kind := kind_of(base)) is not None]
    return STATES[kinds[0]] if kinds else ("mem",)


def is_stepped(module: nn.Module) -> bool:
    """Whether a module is one of snnTorch's neurons, or made of one."""
    bases = type(module).__mro__
    return any(_is_of_snntorch(base) and base.__name__ == "SpikingNeuron" for base in bases)


def _is_of_snntorch(cls: type) -> bool:
    return cls.__module__.split(".")[0] == SNNTORCH


def spec_of(path: str, module: Any) -> NeuronSpec:
    """The neuron of a module of snnTorch's, exactly as it computes.

    A Leaky that is reset to zero tells from its membrane whether it fired, a step later; resetting
    it at once is the same. Raises UnsupportedGraphError for what changes its arithmetic.
    """
    mechanism = _mechanism(path, module)
    for name, usual in LEFT_ALONE.items():
        if getattr(module, name) is not usual:
            raise UnsupportedGraphError(f"{path}: {name} = {getattr(module, name)!r} is not known")
    if not torch.equal(module.graded_spikes_factor, torch.ones_like(module.graded_spikes_factor)):
        raise UnsupportedGraphError(f"{path}: graded_spikes_factor other than 1 is not supported")
    surrogate, alpha = _surrogate(path, module.spike_grad)
    shared = {
        "v_threshold": _number(path, module, "threshold"),
        "surrogate": surrogate,
        "surrogate_alpha": alpha,
        "fire": "gt",
    }
    try:
        return SPECS[type_name(module)](path, module, mechanism, shared)
    except UsageError as error:
        raise UnsupportedGraphError(f"{path}: {error}") from error


def type_name(module: nn.Module) -> str:
    """Which of STATES a known neuron is; a subclass without code of its own is its base."""
    return next(kind for base in type(module).__mro__ if (kind := kind_of(base)) is not None)


def _leaky(path: str, module: Any, mechanism: str, shared: dict[str, Any]) -> NeuronSpec:
    """`NeuronSpec.form` "snntorch"; of a family with more state where a reset at once subtracts,
    since a membrane that stays above its threshold then resets the next step.
    """
    beta = _decay(path, module, "beta")
    if mechanism == "subtract" and not module.reset_delay:
        return _of_family("snn_leaky", module, mechanism, shared, beta=beta)
    if beta == 0:
        raise UnsupportedGraphError(f"{path}: beta 0, which leaves nothing of a membrane")
    return NeuronSpec(
        family="if" if beta == 1 else "lif",
        tau=2.0 if beta == 1 else min(1.0 / (1.0 - beta), LARGEST),
        decay_input=False,
        v_reset=0.0 if mechanism == "zero" else None,
        v_subtract=0.0 if mechanism == "none" else None,
        form="snntorch",
        **shared,
    )


def spec_as_read(path: str, module: Any, spec: NeuronSpec) -> NeuronSpec:
    """The neuron with snnTorch's own membrane after each step, from which class scores are read.

    A Leaky that is reset to zero keeps it up to the next step, in which it is reset.
    """
    mechanism = _mechanism(path, module)
    if type_name(module) != "Leaky" or mechanism != "zero":
        return spec
    shared = {
        name: getattr(spec, name)
        for name in ("v_threshold", "surrogate", "surrogate_alpha", "fire")
    }
    return _of_family("snn_leaky", module, mechanism, shared, beta=_decay(path, module, "beta"))


def _synaptic(path: str, module: Any, mechanism: str, shared: dict[str, Any]) -> NeuronSpec:
    decays = {name: _decay(path, module, name) for name in ("alpha", "beta")}
    return _of_family("snn_synaptic", module, mechanism, shared, **decays)


def _lapicque(path: str, module: Any, mechanism: str, shared: dict[str, Any]) -> NeuronSpec:
    circuit = {name: _number(path, module, name) for name in ("R", "C", "time_step")}
    return _of_family("snn_lapicque", module, mechanism, shared, **circuit)


def _of_family(
    family: str, module: Any, mechanism: str, shared: dict[str, Any], **numbers: float
) -> NeuronSpec:
    """A neuron of `runtime.dynamics.snntorch`."""
    numbers |= {
        "threshold": shared["v_threshold"],
        "reset": snntorch.RESETS[mechanism],
        "delay": float(getattr(module, "reset_delay", True)),
    }
    return NeuronSpec(family=family, settings=tuple(numbers.items()), **shared)


SPECS: Mapping[str, Callable[[str, Any, str, dict[str, Any]], NeuronSpec]] = {
    "Leaky": _leaky,
    "Lapicque": _lapicque,
    "Synaptic": _synaptic,
}


def _mechanism(path: str, module: Any) -> str:
    function = getattr(module, "state_function", None)
    mechanism = RESETS.get(getattr(function, "__name__", ""))
    name = type_name(module)
    if mechanism is None or (name != "Lapicque" and not hasattr(module, "reset_delay")):
        raise UnsupportedGraphError(
            f"{path}: a {name} of another version of snnTorch than 1.0.0, the one that is known "
            "here"
        )
    said = list(RESETS.values())[int(module.reset_mechanism_val)]
    if said != mechanism:
        raise UnsupportedGraphError(
            f"{path}: it computes reset_mechanism {mechanism!r} and says {said!r}, which was set "
            f"after it was made; give reset_mechanism to {name}(...)"
        )
    return mechanism


def _number(path: str, module: Any, name: str) -> float:
    value: Tensor = getattr(module, name)
    if value.numel() != 1:
        raise UnsupportedGraphError(
            f"{path}: {name} of shape {tuple(value.shape)}, a number for each neuron; supported is "
            "one for all of them"
        )
    return float(value.detach().float())


def _decay(path: str, module: Any, name: str) -> float:
    """As snnTorch clamps it."""
    return min(max(_number(path, module, name), 0.0), 1.0)


def _surrogate(path: str, function: Any) -> tuple[SurrogateName, float]:
    """Name and width, which matter only if the network is trained further.

    All that snnTorch defines fire where the membrane is above the threshold.
    """
    name = getattr(function, "__qualname__", "").split(".")[0]
    own = getattr(function, "__module__", "").startswith(f"{SNNTORCH}.")
    if not own:
        raise UnsupportedGraphError(
            f"{path}: spike_grad is no function of snntorch.surrogate: when it fires is not known"
        )
    inner = inspect.getclosurevars(function).nonlocals
    if name == "atan":
        return "atan", float(inner["alpha"])
    if name == "sigmoid":
        return "sigmoid", float(inner["slope"])
    text = (
        f"{path}: surrogate function {name} is not known here; if this network is trained further, "
        "atan (alpha 2) takes its place. Known: atan, sigmoid"
    )
    warnings.warn(NetworkWarning(text), stacklevel=2)
    return "atan", 2.0


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
    states = states_of(module)
    vars(module).update({state: called[1 + i] for i, state in enumerate(states)})
    if module.init_hidden and not module.output:
        return called[0]
    return called[0], *(vars(module)[state] for state in states)


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
