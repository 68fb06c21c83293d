"""SpikingJelly up to 0.0.0.0.12, whose package was called `clock_driven`: what its classes are.

A neuron takes one step at each call, or, where its name says MultiStep, a whole sequence. There are
no step modes, and the layers are PyTorch's. Arithmetic: 0.0.0.0.12, `clock_driven/neuron.py`, which
has one for training and evaluation. Classes are known by where they are defined and what they are
called; the package is never imported.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import nn

from soul_deploy.base.errors import UnsupportedGraphError

ROOT = "spikingjelly.clock_driven"
MULTI_STEP = "MultiStep"
NEURONS = ("IFNode", "LIFNode", "ParametricLIFNode", "QIFNode", "EIFNode")
KINDS: Mapping[str, str] = {
    **{prefix + name: name for name in NEURONS for prefix in ("", MULTI_STEP)},
    **{prefix + name: name for name in ("Dropout", "Dropout2d") for prefix in ("", MULTI_STEP)},
    **{f"{MULTI_STEP}ThresholdDependentBatchNorm{n}d": f"BatchNorm{n}d" for n in (1, 2)},
    **{name: name for name in ("MultiStepContainer", "SeqToANNContainer", "VotingLayer")},
    "VoltageScaler": "VoltageScaler",
}
"""Class name: the kind of module that it is (module_kinds)."""
OPEN = ("ConvBatchNorm2d",)
"""Layers that are looked into, for they call others."""
CLOSED = ("layer", "neuron", "ann2snn", "encoding", "rnn", "model.parametric_lif_net.VotingLayer")
NUMBERS = ("v_threshold", "v_reset")
"""What a neuron keeps with its state, though no step changes it."""

_PORT = "SpikingJelly 2.x has no other way to write it that comes in; train without it"
REFUSED: Mapping[str, str] = {
    "LIAFNode": "it sends act(membrane), which are no spikes; train with a LIFNode",
    **dict.fromkeys(
        ("GeneralNode", "MultiStepGeneralNode"),
        "0.0.0.0.12 cannot run it (its constructor drops a, b and c); train with a LIFNode",
    ),
    **dict.fromkeys(
        ("ElementWiseRecurrentContainer", "LinearRecurrentContainer"),
        "a recurrent connection of 0.0.0.0.12 does not come in; make the network of "
        "spikingjelly.activation_based, where it has the same name, and load the weights there",
    ),
    "NeuNorm": f"it keeps a sum of spikes over time; {_PORT}",
    "SynapseFilter": f"it sends filtered spikes, which are no spikes; {_PORT}",
    "DropConnectLinear": f"it draws weights at random in evaluation too; {_PORT}",
    "MultiStepTemporalWiseAttention": f"its weights depend on all steps; {_PORT}",
}
"""Class name: why there is no node of it, and what to do."""


def is_of(cls: type) -> bool:
    """Whether a class is SpikingJelly's of that time."""
    return cls.__module__ == ROOT or cls.__module__.startswith(f"{ROOT}.")


def kind_of(cls: type) -> str | None:
    """The kind of a class that is known here; None for all others."""
    return KINDS.get(cls.__name__) if is_of(cls) else None


def is_closed(cls: type) -> bool:
    """Whether a class without a kind is not looked into."""
    place = f"{cls.__module__}.{cls.__name__}".removeprefix(f"{ROOT}.")
    own = any(place.startswith(f"{name}.") for name in CLOSED)
    return is_of(cls) and own and cls.__name__ not in OPEN


def step_mode(module: nn.Module) -> str | None:
    """As SpikingJelly's later `step_mode`: "m" of a neuron that is given whole sequences, "s" of
    one that is given steps; None of other modules.
    """
    for cls in type(module).__mro__:
        if is_of(cls) and KINDS.get(cls.__name__) in NEURONS:
            return "m" if cls.__name__.startswith(MULTI_STEP) else "s"
    return None


def check_known(path: str, module: nn.Module) -> None:
    """Raise UnsupportedGraphError for a module that is known not to fit."""
    cls = type(module)
    if not is_of(cls):
        return
    if cls.__name__ in REFUSED:
        raise UnsupportedGraphError(f"module {path!r} ({cls.__name__}): {REFUSED[cls.__name__]}")
    if step_mode(module) is None:
        return
    if "_memories" not in vars(module):
        raise UnsupportedGraphError(
            f"module {path!r} ({cls.__name__}) is of SpikingJelly up to 0.0.0.0.4; make the "
            "network with one of 0.0.0.0.6 to 0.0.0.0.12, where it has the same name, and load the "
            "weights there"
        )
    if getattr(module, "backend", "torch") == "lava":
        raise UnsupportedGraphError(
            f"module {path!r} ({cls.__name__}) has the backend lava, which computes with integers; "
            "make it with backend='torch'"
        )


def check_first_step(path: str, module: Any) -> None:
    """Raise UnsupportedGraphError for a QIFNode whose first step rounds otherwise than the others.

    Until its first step a membrane is a number in float64, and so is its product with itself.
    """
    start = 0.0 if module.v_reset is None else module.v_reset
    numbers = module.a0, start, module.v_rest, module.v_c
    double, single = (
        np.float32(a0 * (v - rest) * (v - critical))
        for a0, v, rest, critical in (numbers, map(np.float32, numbers))
    )
    if double != single:
        raise UnsupportedGraphError(
            f"{path}: QIFNode of {ROOT} whose first step is computed in float64 and is another one "
            f"in the last bit for v_reset {module.v_reset}, v_rest {module.v_rest:g}, "
            f"v_c {module.v_c:g}; v_reset = v_rest or v_reset=None with v_rest=0 are the same, and "
            "so is QIFNode of spikingjelly.activation_based"
        )
