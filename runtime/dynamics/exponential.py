"""EIF: a membrane that runs away exponentially above a threshold of its own (SpikingJelly)."""

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


def _eif(op: Operations) -> Parts:
    exp, choose = op.exp, op.choose

    @register_jitable
    def charge(x: Value, state: State, c: Constants) -> State:
        v, tau, rest, sharpness, rheobase = state[0], c[0], c[1], c[2], c[3]
        return (v + (x + rest - v + sharpness * exp((v - rheobase) / sharpness)) / tau,)

    @register_jitable
    def decide(state: State, c: Constants) -> tuple[Value, Value]:
        return state[0], c[4]

    @register_jitable
    def settle(s: Value, state: State, c: Constants) -> State:
        return (choose(s, c[5] * state[0] - c[6], state[0]),)

    return Parts(charge, decide, settle)


def _resolve(settings: Settings, op: Operations) -> Mapping[str, Value]:
    return {
        "tau": settings["tau"],
        "rest": settings["v_rest"],
        "sharpness": settings["delta_T"],
        "rheobase": settings["theta_rh"],
        **reset_constants(settings),
    }


def _check(settings: Settings) -> str | None:
    if not settings["tau"] >= 1:
        return f"tau {settings['tau']:g} must be at least 1 step"
    sharpness = settings["delta_T"]
    return None if sharpness > 0 else f"delta_T {sharpness:g} must be above 0"


EIF = Dynamics(
    name="eif",
    source="SpikingJelly's EIFNode (Fourcaud-Trocmé et al., J. Neurosci. 2003)",
    state=("v",),
    constants=("tau", "rest", "sharpness", "rheobase", "threshold", "kept", "taken", "start"),
    start=("start",),
    parts=_eif,
    resolve=_resolve,
    settings={"theta_rh": 0.8, "v_rest": 0.0, "delta_T": 1.0},
    reads=("tau", "v_threshold", "v_reset"),
    check=_check,
)
