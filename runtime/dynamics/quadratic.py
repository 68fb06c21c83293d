"""QIF: a membrane whose leak is quadratic. Izhikevich: with a second, adapting variable."""

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
    reset_constants,
)


def _qif(op: Operations) -> Parts:
    choose = op.choose

    @register_jitable
    def charge(x: Value, state: State, c: Constants) -> State:
        v, tau, critical, a0, rest = state[0], c[0], c[1], c[2], c[3]
        return (v + (x + a0 * (v - rest) * (v - critical)) / tau,)

    @register_jitable
    def decide(state: State, c: Constants) -> tuple[Value, Value]:
        return state[0], c[4]

    @register_jitable
    def settle(s: Value, state: State, c: Constants) -> State:
        return (choose(s, c[5] * state[0] - c[6], state[0]),)

    return Parts(charge, decide, settle)


def _quadratic(settings: Settings, op: Operations) -> Mapping[str, Value]:
    return {
        "tau": settings["tau"],
        "critical": settings["v_c"],
        "a0": settings["a0"],
        "rest": settings["v_rest"],
        **reset_constants(settings),
    }


def _check(settings: Settings) -> str | None:
    if not settings["tau"] >= 1:
        return f"tau {settings['tau']:g} must be at least 1 step"
    return None if settings["a0"] > 0 else f"a0 {settings['a0']:g} must be above 0"


QIF = Dynamics(
    name="qif",
    source="SpikingJelly's QIFNode",
    state=("v",),
    constants=("tau", "critical", "a0", "rest", "threshold", "kept", "taken", "start"),
    start=("start",),
    parts=_qif,
    resolve=_quadratic,
    settings={"v_c": 0.8, "a0": 1.0, "v_rest": 0.0},
    reads=("tau", "v_threshold", "v_reset"),
    check=_check,
)


def _izhikevich(op: Operations) -> Parts:
    choose = op.choose

    @register_jitable
    def charge(x: Value, state: State, c: Constants) -> State:
        v, w = state
        tau, critical, a0, rest, per_tau_w, tau_w, a = c[0], c[1], c[2], c[3], c[4], c[5], c[6]
        v = v + (x + a0 * (v - rest) * (v - critical) - w) / tau
        return v, w + per_tau_w * (a * (v - rest) - w) / tau_w

    @register_jitable
    def decide(state: State, c: Constants) -> tuple[Value, Value]:
        return state[0], c[8]

    @register_jitable
    def settle(s: Value, state: State, c: Constants) -> State:
        v, w = state
        return choose(s, c[9] * v - c[10], v), w + c[7] * s

    return Parts(charge, decide, settle)


def _adapting(settings: Settings, op: Operations) -> Mapping[str, Value]:
    """Soul and SpikingJelly 0.0.0.0.14 multiply by 1 / tau_w, SpikingJelly 2.x divides by tau_w.

    The one that does not is 1, which changes no bit.
    """
    divides = settings["form"] == "spikingjelly"
    return {
        **_quadratic(settings, op),
        **{name: settings[name] for name in ("a", "b", "w_rest")},
        "per_tau_w": 1.0 if divides else 1.0 / settings["tau_w"],
        "tau_w": settings["tau_w"] if divides else 1.0,
    }


def _check_adapting(settings: Settings) -> str | None:
    tau = settings["tau_w"]
    return _check(settings) if tau >= 1 else f"tau_w {tau:g} must be at least 1 step"


IZHIKEVICH = Dynamics(
    name="izhikevich",
    source="soul/neuron/Izhikevich.py; SpikingJelly's IzhikevichNode",
    state=("v", "w"),
    constants=(
        *("tau", "critical", "a0", "rest", "per_tau_w", "tau_w", "a", "b"),
        *("threshold", "kept", "taken", "start", "w_rest"),
    ),
    start=("start", "w_rest"),
    parts=_izhikevich,
    resolve=_adapting,
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
    check=_check_adapting,
)
