"""snnTorch's neurons: called once a step, on a current and their membrane.

`spikes, mem = lif(current, mem)`, or with `init_hidden=True` `spikes = lif(current)`. The membrane
of the last call also stays in the module (`lif.mem`), and a call without one takes it from there.
snnTorch is never imported: classes are known by where they are defined and what they are called.

While a forward is traced, the membranes are out of reach: stand-ins tell where each came from.
"""

import inspect
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from soul_deploy.base.errors import NetworkWarning, UnsupportedGraphError, UsageError
from soul_deploy.frontend.sizes import Refusal
from soul_deploy.ir import NeuronSpec
from soul_deploy.ir.neurons import LARGEST

SNNTORCH = "snntorch"
LEAKY = "Leaky"
RESETS = {"_base_sub": "subtract", "_base_zero": "zero", "_base_int": "none"}
"""What Leaky computes by (snntorch/_neurons/leaky.py, 1.0.0), and the reset_mechanism it means."""
LEFT_ALONE = {"inhibition": False, "state_quant": False}


def is_leaky(cls: type) -> bool:
    """Whether a class is snnTorch's Leaky itself."""
    return _is_of_snntorch(cls) and cls.__name__ == LEAKY


def is_stepped(module: nn.Module) -> bool:
    """Whether a module is one of snnTorch's neurons, or made of one."""
    bases = type(module).__mro__
    return any(_is_of_snntorch(base) and base.__name__ == "SpikingNeuron" for base in bases)


def _is_of_snntorch(cls: type) -> bool:
    return cls.__module__.split(".")[0] == SNNTORCH


def leaky_spec(path: str, module: Any) -> NeuronSpec:
    """The neuron of a Leaky, exactly as it computes (`NeuronSpec.form` "snntorch").

    A Leaky that is reset to zero tells from its membrane whether it fired, a step later; resetting
    it at once is the same. Raises UnsupportedGraphError for what changes its arithmetic.
    """
    mechanism = _mechanism(path, module)
    for name, usual in LEFT_ALONE.items():
        if getattr(module, name) is not usual:
            raise UnsupportedGraphError(f"{path}: {name} = {getattr(module, name)!r} is not known")
    if not torch.equal(module.graded_spikes_factor, torch.ones_like(module.graded_spikes_factor)):
        raise UnsupportedGraphError(f"{path}: graded_spikes_factor other than 1 is not supported")
    beta = min(max(_number(path, module, "beta"), 0.0), 1.0)
    if beta == 0:
        raise UnsupportedGraphError(f"{path}: beta 0, which leaves nothing of a membrane")
    surrogate, alpha = _surrogate(path, module.spike_grad)
    try:
        return NeuronSpec(
            family="if" if beta == 1 else "lif",
            tau=2.0 if beta == 1 else min(1.0 / (1.0 - beta), LARGEST),
            decay_input=False,
            v_threshold=_number(path, module, "threshold"),
            v_reset=0.0 if mechanism == "zero" else None,
            v_subtract=0.0 if mechanism == "none" else None,
            surrogate="sigmoid" if surrogate == "sigmoid" else "atan",
            surrogate_alpha=alpha,
            form="snntorch",
        )
    except UsageError as error:
        raise UnsupportedGraphError(f"{path}: {error}") from error


def _mechanism(path: str, module: Any) -> str:
    function = getattr(module, "state_function", None)
    mechanism = RESETS.get(getattr(function, "__name__", ""))
    if mechanism is None or not hasattr(module, "reset_delay"):
        raise UnsupportedGraphError(
            f"{path}: a Leaky of another version of snnTorch than 1.0.0, the one that is known here"
        )
    said = list(RESETS.values())[int(module.reset_mechanism_val)]
    if said != mechanism:
        raise UnsupportedGraphError(
            f"{path}: it computes reset_mechanism {mechanism!r} and says {said!r}, which was set "
            "after it was made; give reset_mechanism to Leaky(...)"
        )
    if mechanism == "subtract" and not module.reset_delay:
        raise UnsupportedGraphError(
            f"{path}: reset_delay=False with reset by subtraction, which takes nothing off where a "
            "membrane stays above its threshold; supported is reset_delay=True (the default), or "
            'reset_mechanism="zero"'
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


def _surrogate(path: str, function: Any) -> tuple[str, float]:
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
        return name, float(inner["alpha"])
    if name == "sigmoid":
        return name, float(inner["slope"])
    text = (
        f"{path}: surrogate function {name} is not known here; if this network is trained further, "
        "atan (alpha 2) takes its place. Known: atan, sigmoid"
    )
    warnings.warn(NetworkWarning(text), stacklevel=2)
    return "atan", 2.0


def rest() -> NoReturn:
    """Mark: a membrane at rest."""
    raise NotImplementedError("stands in traces only")


def kept(path: str) -> NoReturn:
    """Mark: the membrane that an earlier call of the network left in the neuron `path`."""
    raise NotImplementedError("stands in traces only")


class Membrane:
    """Stands for a membrane that no traced call made: at rest, or kept (`path`) from before."""

    device = torch.device("cpu")

    def __init__(self, path: str | None) -> None:
        self.path = path

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
            own["_buffers"] = {k: v for k, v in own["_buffers"].items() if k != "mem"}
            own["mem"] = Membrane(path)
            own["reset_mem"] = own["init_leaky"] = _resetting(own)
        yield
    finally:
        for own, before in changed:
            own.clear()
            own.update(before)


def _resetting(own: dict[str, Any]) -> Callable[[], Membrane]:
    def reset() -> Membrane:
        own["mem"] = at_rest = Membrane(None)
        return at_rest

    return reset


def arguments(path: str, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The current and the membrane that a call uses: the one it is given, or the neuron's own."""
    given = args[1] if len(args) > 1 else kwargs.get("mem")
    if not 1 <= len(args) <= 2 or kwargs.keys() - {"mem"}:
        raise Refusal(f"neuron {path!r} is called with other than a current and a membrane")
    if given is not None and module.init_hidden:
        raise Refusal(f"neuron {path!r} has init_hidden=True and is given a membrane")
    if isinstance(given, Tensor):
        if given.any():
            raise Refusal(
                f"neuron {path!r} is given a membrane of other values than 0; a graph's neurons "
                "start at rest"
            )
        given = Membrane(None)
    return args[0], vars(module)["mem"] if given is None else given


def results(module: Any, spikes: Any, membrane: Any) -> Any:
    """What a call returns, whose neuron now holds `membrane`."""
    vars(module)["mem"] = membrane
    alone = module.init_hidden and not module.output
    return spikes if alone else (spikes, membrane)


@contextmanager
def from_rest(module: Any) -> Iterator[None]:
    """A neuron at rest for as long as this; then as it was."""
    own = vars(module)
    before, buffers = dict(own), dict(own["_buffers"])
    own["_buffers"] = {**buffers, "mem": torch.zeros(0, device=buffers["mem"].device)}
    try:
        yield
    finally:
        own.clear()
        own.update(before)


def membrane_after(module: Any) -> Tensor:
    """The membrane that a Leaky's last call left, after its reset as `leaky_spec` has it."""
    held: Tensor = module.mem.detach()
    if module.state_function.__name__ != "_base_zero":
        return held.clone()
    return torch.where(held > module.threshold, torch.zeros_like(held), held)


@dataclass(frozen=True)
class Returns:
    """What a forward is given besides its input, and returns besides the class scores.

    scores  which of several values is the class scores; None: the only one
    states  by argument: the neuron whose membrane it is, and which value is its next one
    """

    scores: int | None = None
    states: tuple[tuple[str, int], ...] = ()


NOTHING_MORE = Returns()


class Calls:
    """A network called again and again, each time with the membranes that the last call returned.

    It gives the class scores; a list of all steps as one tensor.
    """

    def __init__(self, network: nn.Module, returns: Returns) -> None:
        self._network, self._returns = network, returns
        neurons: list[Any] = [network.get_submodule(path) for path, _ in returns.states]
        self._held = [neuron.reset_mem() for neuron in neurons]

    def __call__(self, x: Tensor) -> Tensor:
        returned = self._network(x, *self._held)
        self._held = [returned[place] for _, place in self._returns.states]
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
