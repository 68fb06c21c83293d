"""SpikingJelly's neurons as NeuronSpec: what each class computes, read from its attributes.

They are known by what they are called. Arithmetic: spikingjelly 2.0.0, `_ops` and
`activation_based/functional/neuron.py`; 0.0.0.0.14, `activation_based/neuron.py`; 0.0.0.0.12,
`clock_driven/neuron.py`.
"""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from soul_deploy import ir
from soul_deploy.base.errors import UnsupportedGraphError
from soul_deploy.frontend import clock_driven, parallel, soul

Given = dict[str, Any]
"""Arguments of NeuronSpec."""


def _plain(path: str, module: Any) -> Given:
    """What most neurons have."""
    return {
        "tau": _number(path, module, "tau") if hasattr(module, "tau") else 2.0,
        "decay_input": bool(getattr(module, "decay_input", True)),
        "v_threshold": _number(path, module, "v_threshold"),
        "v_reset": None if module.v_reset is None else _number(path, module, "v_reset"),
        "detach_reset": module.detach_reset,
    }


def _number(path: str, module: Any, name: str) -> float:
    """One number of all neurons. Raises UnsupportedGraphError where they have one each."""
    value = getattr(module, name)
    if isinstance(value, Tensor) and value.numel() != 1:
        raise UnsupportedGraphError(
            f"{path}: {name} is a tensor of {tuple(value.shape)}; of {type(module).__name__} one "
            "number of all neurons is supported"
        )
    return float(value)


def _own(*names: str) -> Callable[[str, Any], Given]:
    """A reader of a neuron with more numbers of these names."""

    def read(path: str, module: Any) -> Given:
        numbers = tuple((name, _number(path, module, name)) for name in names)
        return {**_plain(path, module), "settings": numbers}

    return read


def _learned_decay(path: str, module: Any) -> Given:
    """tau is 1 / sigmoid(w), which only describes the parameter w."""
    w = module.w.detach()
    if w.dim():
        raise UnsupportedGraphError(
            f"{path}: w is a tensor of {tuple(w.shape)}; one number of all neurons is supported"
        )
    return {**_plain(path, module), "tau": float(1.0 / w.double().sigmoid())}


def _adapting(path: str, module: Any) -> Given:
    """w starts at what a reset puts there; w_rest is only what that was at construction."""
    given = _own("v_c", "a0", "v_rest", "tau_w", "a", "b")(path, module)
    start = module._memories_rv["w"]
    return {**given, "settings": (*given["settings"], ("w_rest", float(start)))}


def _scaled(path: str, module: Any) -> Given:
    """k is a tensor of the state dict."""
    if module.k.dim():
        raise UnsupportedGraphError(
            f"{path}: k is a tensor of {tuple(module.k.shape)}; one number of all neurons is "
            "supported"
        )
    return _own("scale_reset")(path, module)


def _complementary(path: str, module: Any) -> Given:
    return {**_plain(path, module), "v_reset": None, "detach_reset": False}


def _counting(path: str, module: Any) -> Given:
    """Its two step modes round differently."""
    top = float(module.surrogate_function.max_spike_count)
    settings = (("top", top), ("single", float(module.step_mode == "s")))
    return {**_plain(path, module), "v_reset": None, "decay_input": False, "settings": settings}


def _gated(path: str, module: Any) -> Given:
    """Every number is a parameter, one of all neurons or one per channel, conduct one per step."""
    kinds: list[tuple[str, str]] = []
    for name in ir.NeuronSpec("glif").dynamics.tensors:  # type: ignore[union-attr]
        channels = getattr(module, name).dim() - (name == "conduct")
        per = ("layer", "channel") if name != "conduct" else ("step", "step_channel")
        kinds.append((name, per[channels]))
    return {"detach_reset": False, "tensors": tuple(kinds)}


NEURONS: Mapping[str, tuple[ir.NeuronFamily, Callable[[str, Any], Given]]] = {
    "IFNode": ("if", _plain),
    "LIFNode": ("lif", _plain),
    "ParametricLIFNode": ("plif", _learned_decay),
    "QIFNode": ("qif", _own("v_c", "a0", "v_rest")),
    "EIFNode": ("eif", _own("theta_rh", "v_rest", "delta_T")),
    "IzhikevichNode": ("izhikevich", _adapting),
    "KLIFNode": ("klif", _scaled),
    "CUBALIFNode": ("cubalif", _own("c_decay", "v_decay")),
    "ComplementaryLIFNode": ("complementary_lif", _complementary),
    "GatedLIFNode": ("glif", _gated),
    "ILIFNode": ("integer_lif", _counting),
    **dict.fromkeys(parallel.KINDS, ("psn", parallel.read)),
}
"""Class name: the family, and what reads its numbers."""

REFUSED: Mapping[str, str] = {
    "LIAFNode": (
        "it sends act(membrane), which are no spikes (and in spikingjelly 2.0.0 in step mode 'm' "
        "the spikes of a LIFNode); train with a LIFNode"
    )
}
"""Class name: why there is no spec of it, and what to do."""


def spec_of(path: str, module: Any, kind: str, **common: Any) -> ir.NeuronSpec:
    """The neuron as it computes: a key of NEURONS. `common`: form and surrogate. SpikingJelly fires
    at the threshold.

    Raises UnsupportedGraphError for what is not supported, UsageError for numbers that are not.
    """
    family, read = NEURONS[kind]
    if family == "klif" and common["form"] == "spikingjelly_0" and module.v_reset is None:
        raise UnsupportedGraphError(
            f"{path}: KLIFNode without v_reset, which spikingjelly 0.0.0.0.14 cannot run; give a "
            "v_reset, or load the network in spikingjelly 2.x"
        )
    if family == "qif" and common["form"] == "clock_driven":
        clock_driven.check_first_step(path, module)
    return ir.NeuronSpec(family=family, fire="ge", **read(path, module), **common)


def check_place(path: str, module: Any, kind: str, shape: ir.Shape, time_steps: int) -> None:
    """Raise UnsupportedGraphError where a neuron does not compute what it is meant to.

    shape: of the neurons. SpikingJelly's gated neuron runs as many steps as it was made for, and
    reads its parameters as (1, C, 1, 1), whatever its input is.
    """
    soul.check_place(path, module, time_steps)
    if kind in parallel.KINDS:
        parallel.check_place(path, module, kind, time_steps)
    if type(module).__name__ != "GatedLIFNode" or soul.name_of(module) is not None:
        return
    if time_steps != module.T:
        raise UnsupportedGraphError(
            f"{path}: GatedLIFNode(T={module.T}) in a network of {time_steps} time steps; it runs "
            f"{module.T} steps of any sequence, so give time_steps={module.T} or make it anew"
        )
    channels = module.alpha.numel() if module.alpha.dim() else None
    if len(shape) != 3 or channels not in (None, shape[0]):
        made = "one number of all" if channels is None else f"inplane={channels}"
        raise UnsupportedGraphError(
            f"{path}: GatedLIFNode with {made} on neurons of {shape}; it takes its parameters for "
            "(1, C, 1, 1) and is right behind a convolution of inplane channels only"
        )
