"""The golden cases of the neurons that are taken, as NeuronSpec and run by each of our engines."""

from collections.abc import Mapping
from typing import Any, get_args

import numpy as np
import torch
from golden import Golden
from torch import Tensor

from soul_deploy.base import Array
from soul_deploy.ir import SOUL_NEURONS, FormName, NeuronSpec, SurrogateName
from soul_deploy.nn import dynamics
from soul_deploy.nn.neuron import SpikingNeuron
from soul_deploy.nn.surrogate import DEFAULT_ALPHA
from soul_deploy.runtime.dynamics.equation import DYNAMICS, DynamicsEquation
from soul_deploy.runtime.kernels.dynamics import constants_of, dynamics_kernel

SPIKINGJELLY: Mapping[str, str] = {
    "IFNode": "if",
    "LIFNode": "lif",
    "ParametricLIFNode": "plif",
    "QIFNode": "qif",
    "EIFNode": "eif",
    "IzhikevichNode": "izhikevich",
    "KLIFNode": "klif",
    "CUBALIFNode": "cubalif",
    "ComplementaryLIFNode": "complementary_lif",
    "GatedLIFNode": "glif",
    "ILIFNode": "integer_lif",
}
"""SpikingJelly's names of the families."""
DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "QIFNode": {"v_reset": -0.1},
    "EIFNode": {"v_reset": -0.1},
    "ILIFNode": {
        "tau": 4 / 3,
        "v_reset": None,
        "decay_input": False,
        "surrogate_function": "MultiLevelSpikeCount:4",
    },
    "CUBALIFNode": {"v_threshold": 0.5, "surrogate_function": "Rect"},
    "ComplementaryLIFNode": {"v_reset": None, "surrogate_function": "Rect"},
}
"""SpikingJelly's arguments where their defaults differ from NeuronSpec's."""
SURROGATES: Mapping[str, SurrogateName] = {
    "ATan": "atan",
    "Sigmoid": "sigmoid",
    "Rect": "rectangle",
    "MultiLevelSpikeCount": "atan",  # unused
}
FORMS_OF: Mapping[str, FormName] = {
    "spikingjelly_2": "spikingjelly",
    "spikingjelly_0": "spikingjelly_0",
    "clock_driven": "clock_driven",
}
FIELDS = ("tau", "v_threshold", "v_reset", "decay_input", "detach_reset")
UNTAKEN = (
    *("psn", "PSN", "MaskedPSN", "SlidingPSN", "LIAFNode"),
    *("NonSpikingIFNode", "NonSpikingLIFNode"),
)
"""Neurons of the golden cases that are none of ours."""


def spec_of(case: Golden) -> NeuronSpec:
    """The neuron of a case. Raises UsageError where NeuronSpec refuses it."""
    made = _soul_spec if case.tool == "soul" else _spikingjelly_spec
    return made(case)


def _numbers(family: str, fields: Mapping[str, Any]) -> tuple[tuple[str, float], ...]:
    known = DYNAMICS[family].settings if family in DYNAMICS else {}
    return tuple((name, float(fields[name])) for name in known if name in fields)


def _soul_spec(case: Golden) -> NeuronSpec:
    f, family = dict(case.fields), case.fields["neuron"]
    f["detach_reset"] = SOUL_NEURONS[family].detach_reset and f.get("detach_reset", True)
    if family in ("intlif", "tlif"):
        f["carry"] = 0 if case.name.startswith(f"{family}_asshipped") else 1
    if f["surrogate"] == "quant4":  # it sends quarters of 0 to 4, which the membrane loses too
        f |= {"top": 4, "norm": 4 * f["norm"], "v_threshold": f["v_threshold"] / 4}
    known: tuple[SurrogateName, ...] = () if family == "ltmd" else get_args(SurrogateName)
    surrogate: SurrogateName = next((n for n in known if n == f["surrogate"]), "rectangle")
    given = {name: f[name] for name in FIELDS if name in f}
    return NeuronSpec(
        family,
        **given,
        fire="ge" if family == "stbif" else "gt",
        surrogate=surrogate,
        surrogate_alpha=DEFAULT_ALPHA[surrogate],
        settings=_numbers(family, f),
    )


def _spikingjelly_spec(case: Golden) -> NeuronSpec:
    kind = case.fields["neuron"].removeprefix("MultiStep")
    f = {"surrogate_function": "Sigmoid", **DEFAULTS.get(kind, {}), **case.fields}
    family = SPIKINGJELLY[kind]
    kind_of, _, top = f["surrogate_function"].partition(":")
    if family == "integer_lif":
        f |= {"top": int(top), "single": f.get("_step_mode") == "s"}
    surrogate = SURROGATES[kind_of]
    given = {name: f[name] for name in FIELDS if name in f}
    if family == "plif":
        given["tau"] = 1 / case.parameters["w"].double().sigmoid().item()
    channelwise = "alpha" in case.parameters and case.parameters["alpha"].dim() > 0
    return NeuronSpec(
        family,
        **{"detach_reset": False, **given},
        fire="ge",
        surrogate=surrogate,
        surrogate_alpha=DEFAULT_ALPHA[surrogate],
        form=FORMS_OF[case.tool],
        settings=() if family == "glif" else _numbers(family, f),  # what its tensors began with
        tensors=tuple(
            (name, "step_channel" if name == "conduct" else "channel")
            for name in (DYNAMICS["glif"].tensors if channelwise else ())
        ),
    )


def neuron_of(case: Golden) -> SpikingNeuron:
    """The neuron in PyTorch, with the case's parameters."""
    made = SpikingNeuron(spec_of(case), len(case.input), tuple(case.input.shape[2:]))
    made.load_state_dict(dict(case.parameters))
    return made


def equation_of(case: Golden) -> DynamicsEquation:
    found = dynamics.deployed(spec_of(case), case.parameters, case.input.dim() - 2)
    assert isinstance(found, DynamicsEquation)
    return found


def in_numpy(equation: DynamicsEquation, x: Tensor) -> tuple[Array, dict[str, Array]]:
    """What is sent and the state after each step, (T, B, ...): `equation.advance`."""
    current = x.numpy()
    state = tuple(np.full_like(current[0], value) for value in equation.start)
    sent, states = [], []
    with np.errstate(over="ignore", invalid="ignore"):
        for t, now in enumerate(current):
            s, state = equation.advance(state, now, t)
            sent.append(s)
            states.append(state)
    names = equation.state
    return np.stack(sent), {n: np.stack([s[k] for s in states]) for k, n in enumerate(names)}


def in_kernel(equation: DynamicsEquation, x: Tensor) -> Array:
    """What the compiled update sends, (T, B, ...): each sample's neurons one after the other."""
    steps, batch, *shape = x.shape
    numbers = constants_of(equation, tuple(shape), None)
    wide = numbers.shape[2] > 1
    update = dynamics_kernel(equation.family, equation.send, False, wide)
    start = np.array(equation.start, np.float32)
    sent = np.empty(x.shape, np.float32)
    for b in range(batch):
        last = np.moveaxis(x[:, b].numpy(), 1, -1)
        current = np.ascontiguousarray(last).reshape(steps, -1)
        count = current.shape[1]
        out = np.zeros((steps, count), np.int16)
        state = np.empty((len(start), count), np.float32)
        bounds = np.float32(equation.low), np.float32(equation.high)
        update(current, numbers, *bounds, start, False, state, out, 0, count)
        sent[:, b] = np.moveaxis(out.reshape(last.shape), -1, 1)
    return sent


def states_of(case: Golden) -> dict[str, Tensor]:
    """The case's states by our names, the membrane as it is after the reset.

    Soul's STBIF has more than one that nothing reads; its LTMD shows the membrane before the reset.
    """
    found, neuron = dict(case.states), case.fields["neuron"]
    if neuron == "stbif":
        return {"q": found["q"]}
    if neuron == "ltmd":
        return {"v": found["u"] * (1 - case.output)}
    if neuron == "ilif":
        found["before"] = found.pop("prev_input") * found.pop("prev_spike")
    names = {"u": "v", "v_th": "threshold", "inhibitory_memory": "memory"}
    return {names.get(name, name): value for name, value in found.items()}


def in_torch(neuron: SpikingNeuron, x: Tensor) -> tuple[Tensor, Tensor]:
    """What is sent and the first state variable after each step."""
    seen: list[Tensor] = []
    with torch.no_grad():
        sent = neuron.simulate(x, static=False, observe=lambda t, s, v: seen.append(v))
    return sent, torch.stack(seen)
