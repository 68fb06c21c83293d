"""snnTorch's neurons as NeuronSpec: what each module computes, read from its attributes."""

import inspect
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from soul_deploy.base.errors import NetworkWarning, UnsupportedGraphError, UsageError
from soul_deploy.frontend.stepped import SNNTORCH, STATES, type_name
from soul_deploy.ir import NeuronSpec, SurrogateName
from soul_deploy.ir.neurons import LARGEST
from soul_deploy.runtime.dynamics import snntorch
from soul_deploy.runtime.dynamics.form import Granularity

RESETS = {"_base_sub": "subtract", "_base_zero": "zero", "_base_int": "none"}
"""What neurons compute by (snntorch/_neurons, 1.0.0), and the reset_mechanism it means."""
LEFT_ALONE = {"inhibition": False, "state_quant": False}


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
        "v_threshold": 1.0 if _by_neuron(module, "threshold") else _number(module, "threshold"),
        "surrogate": surrogate,
        "surrogate_alpha": alpha,
        "fire": "gt",
    }
    try:
        return SPECS[type_name(module)](path, module, mechanism, shared)
    except UsageError as error:
        raise UnsupportedGraphError(f"{path}: {error}") from error


def _leaky(path: str, module: Any, mechanism: str, shared: dict[str, Any]) -> NeuronSpec:
    """`NeuronSpec.form` "snntorch"; of a family with more state where a reset at once subtracts,
    since a membrane that stays above its threshold then resets the next step.
    """
    several = _by_neuron(module, "beta") or _by_neuron(module, "threshold")
    if several or (mechanism == "subtract" and not module.reset_delay):
        return _of_family("snn_leaky", module, mechanism, shared, "beta")
    beta = _decay(module, "beta")
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
    return _of_family("snn_leaky", module, mechanism, shared, "beta")


def _synaptic(path: str, module: Any, mechanism: str, shared: dict[str, Any]) -> NeuronSpec:
    return _of_family("snn_synaptic", module, mechanism, shared, "alpha", "beta")


def _lapicque(path: str, module: Any, mechanism: str, shared: dict[str, Any]) -> NeuronSpec:
    return _of_family("snn_lapicque", module, mechanism, shared, "R", "C", "time_step")


def _of_family(
    family: str, module: Any, mechanism: str, shared: dict[str, Any], *names: str, **fixed: float
) -> NeuronSpec:
    """A neuron of `runtime.dynamics.snntorch`: the module's numbers `names`, and `fixed` ones.

    Those that differ from neuron to neuron are tensors of the state dict.
    """
    several = [name for name in (*names, "threshold") if _by_neuron(module, name)]
    numbers = fixed | {
        name: _decay(module, name) if name in DECAYS else _number(module, name)
        for name in (*names, "threshold")
        if name not in several
    }
    numbers |= {
        "reset": snntorch.RESETS[mechanism],
        "delay": float(getattr(module, "reset_delay", True)),
    }
    tensors: tuple[tuple[str, Granularity], ...] = tuple((name, "neuron") for name in several)
    return NeuronSpec(family=family, settings=tuple(numbers.items()), tensors=tensors, **shared)


def _rleaky(path: str, module: Any, mechanism: str, shared: dict[str, Any]) -> NeuronSpec:
    names, fixed = _own_weight(module)
    return _of_family("snn_rleaky", module, mechanism, shared, "beta", *names, **fixed)


def _rsynaptic(path: str, module: Any, mechanism: str, shared: dict[str, Any]) -> NeuronSpec:
    if not module.reset_delay:
        raise UnsupportedGraphError(
            f"{path}: RSynaptic with reset_delay=False, which snnTorch 1.0.0 itself cannot run; "
            "give reset_delay=True"
        )
    names, fixed = _own_weight(module)
    return _of_family("snn_rsynaptic", module, mechanism, shared, "alpha", "beta", *names, **fixed)


def _own_weight(module: Any) -> tuple[tuple[str, ...], dict[str, float]]:
    """V of a neuron that sees its own last spike; of one that sees all others' the weights are a
    feedback of its population (`recurrent_layer`), and V is 0.
    """
    return ((), {"V": 0.0}) if module.all_to_all else (("V",), {})


SPECS: Mapping[str, Callable[[str, Any, str, dict[str, Any]], NeuronSpec]] = {
    "RLeaky": _rleaky,
    "RSynaptic": _rsynaptic,
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


DECAYS = ("alpha", "beta")


def _by_neuron(module: Any, name: str) -> bool:
    """Whether a number is a tensor of one for each neuron."""
    value: Tensor = getattr(module, name)
    return value.numel() != 1


def check_place(path: str, module: Any, shape: tuple[int, ...]) -> None:
    """Raise UnsupportedGraphError for numbers that are not one for all, or one for each, of neurons
    of this shape; snnTorch would spread them over an axis.
    """
    names = ("beta", "threshold", "alpha", "V", "R", "C", "time_step")
    for name in names if type_name(module) in STATES else ():
        value = getattr(module, name, None)
        if isinstance(value, Tensor) and value.numel() != 1 and tuple(value.shape) != shape:
            raise UnsupportedGraphError(
                f"{path}: {name} of shape {tuple(value.shape)} for neurons {shape}; supported is "
                "one number for all of them, or a tensor of their shape"
            )


def _number(module: Any, name: str) -> float:
    value: Tensor = getattr(module, name)
    return float(value.detach().float())


def _decay(module: Any, name: str) -> float:
    """As snnTorch clamps it."""
    return min(max(_number(module, name), 0.0), 1.0)


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
