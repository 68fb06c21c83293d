"""Neurons with a number for each of them, or with a current that outlasts a step, in NIR.

One step of forward Euler, dt seconds, of a CubaLIF with r = tau_mem/dt and w_in = tau_syn/dt, and
of a LIF, beta = 1 - dt/tau:

    i = (1 - dt/tau_syn) · i + x,   v = (1 - dt/tau_mem) · v + i
    v = beta · v + x

The equations do not say whether membranes see a step's own current or that of the step before.
snnTorch's do, and write these numbers; others that do not (norse) write others, which are refused.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from soul_deploy import ir
from soul_deploy.base import Array, brief, errors
from soul_deploy.export.nir.neuron import TOLERANCE, Conventions, beta_of, close
from soul_deploy.runtime.dynamics.snntorch import RESETS
from soul_deploy.runtime.equations import FireRule

FIELDS = {
    "LIF": ("tau", "r", "v_leak", "v_threshold", "v_reset"),
    "IF": ("r", "v_threshold", "v_reset"),
    "CubaLIF": ("tau_syn", "tau_mem", "r", "v_leak", "w_in", "v_threshold", "v_reset"),
}


@brief
@dataclass(frozen=True, eq=False)
class Neurons:
    """A population as it is read.

    tensors   by name, a number for each neuron
    gain      what the input current is multiplied by, one number or one for each neuron
    """

    neuron: ir.NeuronSpec
    gain: Array
    tensors: Mapping[str, Array] = field(default_factory=dict)


def needed(node: Any, dt: float) -> bool:
    """Whether it takes more than one number for all neurons, or a current that lasts."""
    kind = type(node).__name__
    names = FIELDS[kind]
    several = any(np.unique(np.asarray(getattr(node, name))).size > 1 for name in names)
    if kind != "CubaLIF":
        return several
    return not np.allclose(np.asarray(node.tau_syn, np.float64), dt, rtol=TOLERANCE, atol=0)


def read(
    key: str, node: Any, shape: ir.Shape, said: Conventions, own_weight: Array | None = None
) -> Neurons:
    """The neurons of a NIR LIF, IF or CubaLIF of a population of this shape.

    own_weight: what each neuron's last spike adds to its own current. Raises
    UnsupportedGraphError, by name, for numbers that ours cannot have.
    """
    kind, dt = type(node).__name__, said.dt
    values = {name: _full(key, name, getattr(node, name), shape) for name in FIELDS[kind]}
    for name in ("v_leak", "v_reset"):
        if name in values and values[name].any():
            raise errors.UnsupportedGraphError(
                f"{key}: {name} other than 0 of neurons with a number for each, or with a current "
                "that outlasts a step; supported is 0"
            )
    for name in ("tau", "tau_mem", "tau_syn"):
        if name in values and not (values[name] / dt >= 1 - TOLERANCE).all():
            raise errors.UnsupportedGraphError(
                f"{key}: {name} {values[name].min():g} s is shorter than a step of {dt:g} s; "
                "supported is at least one step: give the step that the tool ran with, at most "
                f"--dt {values[name].min():g}"
            )
    said.require_integrator(key, node)
    numbers, gain = MAKERS[kind](key, values, dt)
    numbers["threshold"] = values["v_threshold"]
    family = "snn_synaptic" if "alpha" in numbers else "snn_leaky"
    if own_weight is not None:
        numbers["V"] = own_weight * gain
        family = {"snn_synaptic": "snn_rsynaptic", "snn_leaky": "snn_rleaky"}[family]
    fire = said.fire_of(key, node)
    settings = _resets(key, said, fire)
    tensors: dict[str, Array] = {}
    for name, array in numbers.items():
        single = array.astype(np.float32)
        if np.unique(single).size == 1:
            settings[name] = float(str(single.flat[0]))
        else:
            tensors[name] = np.ascontiguousarray(single)
    try:
        spec = ir.NeuronSpec(
            family,
            fire=fire,
            settings=tuple(settings.items()),
            tensors=tuple((name, "neuron") for name in tensors),
        )
    except errors.UsageError as error:
        raise errors.UnsupportedGraphError(f"{key}: {error}") from error
    return Neurons(spec, gain, tensors)


def _resets(key: str, said: Conventions, fire: FireRule) -> dict[str, float]:
    """How they reset, in the family's settings."""
    rule = said.reset_of(leaks=True)
    if rule == "subtract_at_once":
        raise errors.UnsupportedGraphError(
            f"{key}: --reset subtract_at_once for neurons with a number for each, or with a "
            "current that outlasts a step; supported are subtract (snnTorch's) and zero"
        )
    if rule == "subtract" and fire == "ge":
        raise errors.UnsupportedGraphError(
            f"{key}: --fire ge with --reset subtract for neurons with a number for each, or with a "
            "current that outlasts a step; snnTorch's, which reset so, fire above their threshold"
        )
    return {"reset": RESETS[rule], "delay": 1.0 if rule == "subtract" else 0.0}


def _full(key: str, name: str, values: Any, shape: ir.Shape) -> Array:
    array = np.asarray(values, np.float64)
    if not np.isfinite(array).all():
        raise errors.UnsupportedGraphError(
            f"{key}: {name} with numbers that are not finite; supported are finite ones"
        )
    if array.size == 1:
        return np.broadcast_to(array.reshape(()), shape)
    if array.shape != shape:
        raise errors.FileFormatError(
            f"{key}: {name} of shape {array.shape} for neurons {shape}; one for each is needed"
        )
    return array


def _leaky(key: str, values: Mapping[str, Array], dt: float) -> tuple[dict[str, Array], Array]:
    gain = values["r"] * dt / values["tau"]
    return {"beta": _decay(values["tau"], dt)}, _near_one(gain)


def _pure(key: str, values: Mapping[str, Array], dt: float) -> tuple[dict[str, Array], Array]:
    return {"beta": np.ones_like(values["r"])}, _near_one(values["r"] * dt)


def _synaptic(key: str, values: Mapping[str, Array], dt: float) -> tuple[dict[str, Array], Array]:
    for name, tau in (("r", "tau_mem"), ("w_in", "tau_syn")):
        wrong = ~np.isclose(values[name] * dt, values[tau], rtol=10 * TOLERANCE, atol=0)
        if wrong.any():
            number, steps = values[name][wrong].flat[0], (values[tau] / dt)[wrong].flat[0]
            raise errors.UnsupportedGraphError(
                f"{key}: a CubaLIF whose synaptic current outlasts a step of {dt:g} s, with {name} "
                f"= {number:g} where {tau}/dt is {steps:g}: a file does not say whether the "
                "membrane sees a step's own current. Supported are r = tau_mem/dt and w_in = "
                "tau_syn/dt, as snnTorch writes them, whose membranes do, and tau_syn = dt (--dt "
                f"{values['tau_syn'].min():g}, if the tool's step is as long)"
            )
    decays = {"alpha": _decay(values["tau_syn"], dt), "beta": _decay(values["tau_mem"], dt)}
    return decays, np.array(1.0)


def _near_one(gain: Array) -> Array:
    """One number where all are the same, 1 where that is the same but for rounding."""
    distinct = np.unique(gain)
    if np.isclose(distinct, 1.0, rtol=10 * TOLERANCE, atol=0).all():
        return np.array(1.0)
    return np.array(distinct[0]) if close(distinct[0], distinct[-1]) else gain


def _decay(tau: Array, dt: float) -> Array:
    """1 - dt/tau, by the shortest decimals."""
    distinct, place = np.unique(tau, return_inverse=True)
    found: Array = np.array([max(0.0, beta_of(float(t), dt)) for t in distinct])
    return found[place].reshape(tau.shape)


MAKERS: Mapping[
    str, Callable[[str, Mapping[str, Array], float], tuple[dict[str, Array], Array]]
] = {"LIF": _leaky, "IF": _pure, "CubaLIF": _synaptic}
