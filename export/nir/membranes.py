"""Membrane read-outs in NIR: LI, I and CubaLI as a graph's last node, and neurons that are read so.

One step of forward Euler, dt seconds, with k = dt/tau:

LI      v + k · (v_leak - v + r · x) = (1 - k) · v + k · r · x + k · v_leak
I       v + dt · r · x
CubaLI  i + dt/tau_syn · (w_in · x - i), then LI on r · i

What x is multiplied by, and k · v_leak, go into the head's rows and bias, so that decays are left:
one for all neurons, or one each. Membranes start at 0.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import numpy as np

from soul_deploy import ir
from soul_deploy.base import Array, brief, dispatch, errors, files
from soul_deploy.export.nir import neuron, package
from soul_deploy.lowering import deploy
from soul_deploy.runtime.dynamics.equation import DynamicsEquation, Number
from soul_deploy.runtime.dynamics.parallel import ParallelEquation
from soul_deploy.runtime.dynamics.snntorch import RESETS
from soul_deploy.runtime.equations import Equation, NeuronEquation

ReadRule = Literal["spikes", "membrane", "membrane_no_reset"]
"""What of a last population is put out: spikes; the membrane after each step; the membrane of
neurons that never reset, which other tools write as if they did."""
READ_RULES: tuple[ReadRule, ...] = get_args(ReadRule)
NO_RESET: Mapping[str, Any] = {"v_reset": None, "v_subtract": 0.0}
NUMBERS = "numbers"  # key of a node's metadata
INSTEAD = "export event or onnx"


@brief
@dataclass(frozen=True, eq=False)
class Integrator:
    """Neurons behind a head, read from a NIR node.

    neuron   without a reset; tensors: by name, its numbers of each neuron
    gain     what their input is multiplied by, shift: what is added then; (n,) float64
    """

    neuron: ir.NeuronSpec
    gain: Array
    shift: Array
    tensors: Mapping[str, Array] = field(default_factory=dict)


def from_node(key: str, node: Any, dt: float) -> Integrator:
    """The Euler step of an LI, I or CubaLI. Raises UnsupportedGraphError for what has no sense."""
    kind = type(node).__name__
    values = {name: np.asarray(getattr(node, name), np.float64) for name in FIELDS[kind]}
    if any(not np.isfinite(array).all() for array in values.values()):
        raise errors.UnsupportedGraphError(f"{key}: a NIR {kind} with numbers that are not finite")
    if any(array.ndim > 1 for array in values.values()):
        sides = max((array.shape for array in values.values()), key=len)
        raise errors.UnsupportedGraphError(
            f"{key}: a NIR {kind} of {sides}; class scores need a vector"
        )
    for name in ("tau", "tau_mem", "tau_syn"):
        if name in values and not (values[name] / dt >= 1 - neuron.TOLERANCE).all():
            raise errors.UnsupportedGraphError(
                f"{key}: {name} {values[name].min():g} s must be at least one step of {dt:g} s"
            )
    return MAKERS[kind](key, values, dt)


def _leaky(key: str, values: Mapping[str, Array], dt: float) -> Integrator:
    """Of one tau the forms of LIF, without a reset, by r as populations are read."""
    steps = np.maximum(values["tau"] / dt, 1.0)
    r, leak = np.broadcast_arrays(values["r"], values["v_leak"])
    shift = leak / steps
    if np.unique(steps).size == 1:
        divided = bool(np.allclose(r, 1.0, rtol=neuron.TOLERANCE, atol=0))
        whole = bool(np.allclose(r, steps, rtol=neuron.TOLERANCE, atol=0))
        tau = float(str(np.float32(steps.flat[0])))
        spec = ir.NeuronSpec("lif", tau=tau, decay_input=divided, form="spikingjelly", **NO_RESET)
        gain = np.ones_like(r) if divided or whole else r / steps
        return Integrator(spec, gain, shift * steps if divided else shift)
    spec = _family("snn_leaky", "beta")
    return Integrator(spec, r / steps, shift, {"beta": _single(1 - 1 / steps)})


def _pure(key: str, values: Mapping[str, Array], dt: float) -> Integrator:
    gain = values["r"] * dt
    gain = np.where(np.isclose(gain, 1.0, rtol=neuron.TOLERANCE, atol=0), 1.0, gain)
    return Integrator(ir.NeuronSpec("if", **NO_RESET), gain, np.zeros_like(gain))


def _synaptic(key: str, values: Mapping[str, Array], dt: float) -> Integrator:
    """With tau_syn = dt the current lasts one step, and what is left is an LI."""
    share, gain = dt / values["tau_syn"], values["w_in"] * values["r"]
    if np.allclose(share, 1.0, rtol=neuron.TOLERANCE, atol=0):
        return _leaky(key, {"tau": values["tau_mem"], "r": gain, "v_leak": values["v_leak"]}, dt)
    if values["v_leak"].any():
        raise errors.UnsupportedGraphError(
            f"{key}: a CubaLI with v_leak other than 0, which is no part of its input; supported "
            "is 0, or tau_syn = dt"
        )
    leak = dt / values["tau_mem"]
    sides = np.broadcast_shapes(share.shape, leak.shape, gain.shape)
    decays = {"alpha": np.broadcast_to(1 - share, sides), "beta": np.broadcast_to(1 - leak, sides)}
    gain = np.broadcast_to(gain * share * leak, sides)
    if all(np.unique(decay).size == 1 for decay in decays.values()):
        numbers = {name: float(_single(decay).flat[0]) for name, decay in decays.items()}
        return Integrator(_family("snn_synaptic", **numbers), gain, np.zeros(sides))
    tensors = {name: _single(decay) for name, decay in decays.items()}
    return Integrator(_family("snn_synaptic", *tensors), gain, np.zeros(sides), tensors)


def _family(family: str, *per_neuron: str, **numbers: float) -> ir.NeuronSpec:
    settings = {"reset": RESETS["none"], **numbers}
    kinds: Any = tuple((name, "channel") for name in per_neuron)
    return ir.NeuronSpec(family, settings=tuple(settings.items()), tensors=kinds)


def _single(values: Array) -> Array:
    return np.ascontiguousarray(np.atleast_1d(values), np.float32)


FIELDS = {
    "LI": ("tau", "r", "v_leak"),
    "I": ("r",),
    "CubaLI": ("tau_syn", "tau_mem", "r", "v_leak", "w_in"),
}
MAKERS = {"LI": _leaky, "I": _pure, "CubaLI": _synaptic}


def stored_neuron(key: str, node: Any, found: Integrator, dt: float) -> Integrator:
    """The neurons as they were before export, if the node's metadata say.

    Raises FileFormatError unless they are the ones that the node's numbers say.
    """
    text = node.metadata.get(package.POPULATION)
    if text is None:
        return found
    try:
        stored = files.parse_json(text, f"{key}: its metadata")
        spec = ir.node_from_json(stored, ir.Readout).neuron
        held = files.parse_json(node.metadata.get(NUMBERS, "{}"), f"{key}: its metadata")
        tensors = {str(name): np.array(value, np.float32) for name, value in held.items()}
    except (KeyError, TypeError, ValueError, AttributeError, errors.UsageError) as error:
        raise errors.FileFormatError(f"{key}: its metadata cannot be read ({error!r})") from error
    named = set() if spec is None else {*dict(spec.tensors), *(("w",) if spec.learned else ())}
    if spec is None or set(tensors) != named:
        raise errors.FileFormatError(f"{key}: its metadata describe no neurons of a readout")
    classes = int(node.output_type["output"][0])
    state = {f"{key}.{name}": array for name, array in tensors.items()}
    equation = deploy.deployed_neuron(spec, key, 1, state)
    expected = to_node(equation, package.nir_package(), key, classes, dt)
    if not _same_numbers(expected, node):
        raise errors.FileFormatError(
            f"{key}: its numbers are not those of the neurons in its metadata at dt {dt:g}; remove "
            "the metadata if they were changed on purpose"
        )
    nothing = np.zeros(classes)
    return Integrator(spec, nothing + 1, nothing, tensors)


def _same_numbers(expected: Any, node: Any) -> bool:
    kind = type(expected).__name__
    return kind == type(node).__name__ and all(
        np.shape(getattr(node, name)) == np.shape(getattr(expected, name))
        and np.allclose(getattr(node, name), getattr(expected, name), rtol=neuron.TOLERANCE, atol=0)
        for name in FIELDS[kind]
    )


@dispatch.operation_table(Equation)
def to_node(equation: Equation, nir: Any, name: str, classes: int, dt: float) -> Any:
    """The NIR node whose Euler step of `dt` seconds is `equation`, of so many neurons.

    Raises UnsupportedGraphError for neurons that reset, and for families that NIR does not have.
    """
    raise to_node.unknown(equation)


to_node.refuse(
    ParallelEquation,
    error=lambda equation: errors.UnsupportedGraphError("the membrane of a PSN: it has none"),
)


@to_node.on(NeuronEquation)
def _(equation: NeuronEquation, nir: Any, name: str, classes: int, dt: float) -> Any:
    if equation.v_reset is not None or equation.target or "late" in equation.charge:
        raise _resets(name)
    if equation.charge == "integrate":
        return nir.I(r=np.full(classes, 1 / dt))
    steps = neuron.time_constant(equation)
    r = 1.0 if equation.charge in neuron.DIVIDES else steps
    return _li(nir, np.full(classes, steps), r, dt)


@to_node.on(DynamicsEquation)
def _(equation: DynamicsEquation, nir: Any, name: str, classes: int, dt: float) -> Any:
    if equation.family not in ("snn_leaky", "snn_synaptic"):
        raise errors.UnsupportedGraphError(
            f"{name}: the membrane of {equation.family}; NIR has LI, I and CubaLI. "
            f"{INSTEAD.capitalize()}"
        )
    named = equation.named
    if named["taken"] != 0 or named["kept"] != 1 or named["before"] != 1 or named["zeroed"] != 0:
        raise _resets(name)
    leak = 1 - _of_each(named["beta"], classes)
    if not (leak > 0).all():
        raise errors.UnsupportedGraphError(
            f"{name}: beta 1, which NIR's leaky integrators cannot have. {INSTEAD.capitalize()}"
        )
    steps = 1 / leak
    if equation.family == "snn_leaky":
        return _li(nir, steps, steps, dt)
    synaptic = 1 / (1 - _of_each(named["alpha"], classes))
    return nir.CubaLI(
        tau_syn=synaptic * dt, tau_mem=steps * dt, r=steps, v_leak=np.zeros(classes), w_in=synaptic
    )


def _li(nir: Any, steps: Array, r: Array | float, dt: float) -> Any:
    full = np.broadcast_to(np.asarray(r, np.float64), steps.shape).copy()
    return nir.LI(tau=steps * dt, r=full, v_leak=np.zeros(len(steps)))


def _of_each(number: Number, classes: int) -> Array:
    return np.broadcast_to(np.asarray(number, np.float64).reshape(-1), (classes,))


def _resets(name: str) -> errors.UnsupportedGraphError:
    return errors.UnsupportedGraphError(
        f"{name}: the membrane of neurons that fire and reset; NIR puts out what they send, and "
        f"its integrators never reset. {INSTEAD.capitalize()}"
    )


def describe_in(node: Any, readout: ir.Readout, state: Mapping[str, Array]) -> None:
    """Put into a node's metadata what its numbers do not say to the last bit."""
    prefix = f"{readout.neurons_name}."
    held = {name.removeprefix(prefix): a for name, a in state.items() if name.startswith(prefix)}
    node.metadata[package.POPULATION] = json.dumps(ir.node_to_json(readout))
    node.metadata[NUMBERS] = json.dumps({name: array.tolist() for name, array in held.items()})


def read_as(name: str, spec: ir.NeuronSpec, read: ReadRule) -> tuple[ir.NeuronSpec, float]:
    """A last population's neurons, whose membrane is read, and the factor on their input.

    A threshold that comes off a step later (v_subtract beyond the threshold, as populations are
    read) does so in the membrane that is read, too: snnTorch's.
    """
    if read == "membrane_no_reset":
        if spec.dynamics is not None:
            settings = dict(spec.settings) | {"reset": RESETS["none"]}
            return replace(spec, settings=tuple(settings.items())), 1.0
        if spec.v_reset:
            raise errors.UnsupportedGraphError(
                f"{name}: v_reset {spec.v_reset:g} of neurons that never reset; supported is 0"
            )
        return replace(spec, **NO_RESET), 1.0
    if spec.v_subtract is None or spec.dynamics is not None:
        return spec, 1.0
    gain = 1 / spec.tau if spec.decay_input else 1.0
    late = replace(spec, v_subtract=None, decay_input=False, form="snntorch")
    return late, gain
