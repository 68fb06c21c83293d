"""RPLIF: a leaky neuron whose threshold rises with each spike (Soul)."""

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


def _rplif(op: Operations) -> Parts:
    choose, minimum = op.choose, op.minimum

    @register_jitable
    def charge(x: Value, state: State, c: Constants) -> State:
        v, threshold = state
        tau, reset, decayed, direct = c[0], c[1], c[2], c[3]
        return v + (reset - v + decayed * x) / tau + direct * x, threshold

    @register_jitable
    def decide(state: State, c: Constants) -> tuple[Value, Value]:
        return state

    @register_jitable
    def settle(s: Value, state: State, c: Constants) -> State:
        v, threshold = state
        return choose(s, c[1], v), choose(s, threshold * c[5], minimum(threshold, c[4]))

    return Parts(charge, decide, settle)


def _resolve(settings: Settings, op: Operations) -> Mapping[str, Value]:
    """decayed, direct: where the input enters, 1 and 0 or 0 and 1; what is not there adds 0."""
    decays = bool(settings["decay_input"])
    return {
        "tau": settings["tau"],
        "reset": settings["v_reset"],
        "decayed": float(decays),
        "direct": float(not decays),
        "threshold": settings["v_threshold"],
        "alpha": settings["alpha"],
    }


def _check(settings: Settings) -> str | None:
    if settings["v_reset"] is None:
        return "v_reset none; Soul's RPLIF cannot run with soft reset, give a number"
    if not settings["tau"] >= 1:
        return f"tau {settings['tau']:g} must be at least 1 step"
    return None if settings["alpha"] > 0 else f"alpha {settings['alpha']:g} must be above 0"


RPLIF = Dynamics(
    name="rplif",
    source="soul/neuron/RPLIF.py",
    state=("v", "threshold"),
    constants=("tau", "reset", "decayed", "direct", "threshold", "alpha"),
    start=("reset", "threshold"),
    parts=_rplif,
    resolve=_resolve,
    settings={"alpha": 1.2},
    reads=("tau", "decay_input", "v_threshold", "v_reset"),
    check=_check,
)
