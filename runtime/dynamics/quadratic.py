"""The Izhikevich neuron: a membrane whose leak is quadratic, and a second, adapting variable."""

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


def _izhikevich(op: Operations) -> Parts:
    choose = op.choose

    @register_jitable
    def charge(x: Value, state: State, c: Constants) -> State:
        v, w = state
        tau, critical, a0, rest, per_tau_w, a = c[0], c[1], c[2], c[3], c[4], c[5]
        v = v + (x + a0 * (v - rest) * (v - critical) - w) / tau
        return v, w + per_tau_w * (a * (v - rest) - w)

    @register_jitable
    def decide(state: State, c: Constants) -> tuple[Value, Value]:
        return state[0], c[7]

    @register_jitable
    def settle(s: Value, state: State, c: Constants) -> State:
        v, w = state
        return choose(s, c[8] * v - c[9], v), w + c[6] * s

    return Parts(charge, decide, settle)


def _resolve(settings: Settings, op: Operations) -> Mapping[str, Value]:
    reset = settings["v_reset"]
    return {
        **{name: settings[name] for name in ("tau", "a0", "a", "b", "w_rest")},
        "critical": settings["v_c"],
        "rest": settings["v_rest"],
        "per_tau_w": 1.0 / settings["tau_w"],
        "threshold": settings["v_threshold"],
        "kept": 1.0 if reset is None else 0.0,
        "taken": settings["v_threshold"] if reset is None else -reset,
        "start": 0.0 if reset is None else reset,
    }


def _check(settings: Settings) -> str | None:
    for name in ("tau", "tau_w"):
        if not settings[name] >= 1:
            return f"{name} {settings[name]:g} must be at least 1 step"
    return None if settings["a0"] > 0 else f"a0 {settings['a0']:g} must be above 0"


IZHIKEVICH = Dynamics(
    name="izhikevich",
    source="soul/neuron/Izhikevich.py; SpikingJelly's IzhikevichNode",
    state=("v", "w"),
    constants=(
        *("tau", "critical", "a0", "rest", "per_tau_w", "a", "b", "threshold", "kept", "taken"),
        *("start", "w_rest"),
    ),
    start=("start", "w_rest"),
    parts=_izhikevich,
    resolve=_resolve,
    settings={
        "v_c": 0.8,
        "a0": 1.0,
        "v_rest": -0.1,
        "w_rest": 0.0,
        "tau_w": 2.0,
        "a": 0.0,
        "b": 0.0,
    },
    reads=("tau", "v_threshold", "v_reset"),
    check=_check,
)
