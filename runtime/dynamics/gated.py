"""GLIF: a leaky neuron whose every part a learned gate weighs (Soul, SpikingJelly)."""

import math
from collections.abc import Mapping

from numba.extending import register_jitable

from soul_deploy.runtime.dynamics.form import (
    Constants,
    Dynamics,
    Operations,
    Parts,
    Settings,
    State,
    Value,
)


def _glif(op: Operations) -> Parts:
    @register_jitable
    def charge(x: Value, state: State, c: Constants) -> State:
        """The reset of the last step's spike comes with the next step's charge."""
        v, sent = state
        leak, linear, gain, gamma, taken = c[0], c[1], c[2], c[3], c[4]
        u = leak * v - linear + x * gain
        return u - leak * v * gamma * sent - taken * sent, sent

    @register_jitable
    def decide(state: State, c: Constants) -> tuple[Value, Value]:
        return state[0], c[5]

    @register_jitable
    def settle(s: Value, state: State, c: Constants) -> State:
        return state[0], s

    return Parts(charge, decide, settle)


def _resolve(settings: Settings, op: Operations) -> Mapping[str, Value]:
    """The gates: every tensor goes through a sigmoid first."""
    gate = {name: op.sigmoid(settings[name]) for name in TENSORS}
    alpha, beta, gamma = gate["alpha"], gate["beta"], gate["gamma"]
    return {
        "leak": 1 - alpha * (1 - gate["tau"]),
        "linear": (1 - alpha) * gate["linear_decay"],
        "gain": 1 - beta * (1 - gate["conduct"]),
        "gamma": gamma,
        "taken": (1 - gamma) * gate["v_subreset"],
        "threshold": gate["v_threshold"],
    }


TENSORS = (
    *("alpha", "beta", "gamma", "tau", "v_threshold", "linear_decay", "v_subreset", "conduct"),
)
GATES = ("alpha", "beta", "gamma")


def _initial(settings: Settings, name: str, steps: int) -> tuple[float, float]:
    """Gates from -0.1 to 0.1; else the number whose sigmoid is Soul's initial value.

    linear_decay: v_threshold / (2 T).
    """
    if name in GATES:
        return -0.1, 0.1
    first = {
        "tau": settings["init_tau"],
        "v_threshold": settings["init_v_threshold"],
        "v_subreset": settings["init_v_threshold"],
        "linear_decay": settings["init_v_threshold"] / (2 * steps),
        "conduct": settings["init_conduct"],
    }[name]
    logit = -math.log(1 / first - 1)
    return logit, logit


def _check(settings: Settings) -> str | None:
    for name in ("init_tau", "init_v_threshold", "init_conduct"):
        if not 0 < settings[name] < 1:
            return f"{name} {settings[name]:g} must lie between 0 and 1"
    return None


GLIF = Dynamics(
    name="glif",
    source="soul/neuron/GLIF.py; SpikingJelly's GatedLIFNode (Yao et al., NeurIPS 2022)",
    state=("v", "sent"),
    constants=("leak", "linear", "gain", "gamma", "taken", "threshold"),
    start=(0.0, 0.0),
    parts=_glif,
    resolve=_resolve,
    settings={"init_tau": 0.25, "init_v_threshold": 0.5, "init_conduct": 0.5},
    reads=(),
    check=_check,
    tensors={name: "step" if name == "conduct" else "layer" for name in TENSORS},
    initial=_initial,
)
