"""STBIF: an integrator that starts half way to its threshold (Soul)."""

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


def _stbif(op: Operations) -> Parts:
    @register_jitable
    def charge(x: Value, state: State, c: Constants) -> State:
        return (state[0] + x / c[0],)

    @register_jitable
    def decide(state: State, c: Constants) -> tuple[Value, Value]:
        return state[0], c[1]

    @register_jitable
    def settle(s: Value, state: State, c: Constants) -> State:
        return (state[0] - s,)

    return Parts(charge, decide, settle)


def _check(settings: Settings) -> str | None:
    unit = settings["q_threshold"]
    return None if unit > 0 else f"q_threshold {unit:g} must be above 0"


STBIF = Dynamics(
    name="stbif",
    source="soul/neuron/STBIF.py (You et al., CVPR 2025)",
    state=("q",),
    constants=("q_threshold", "level"),
    start=(0.5,),
    parts=_stbif,
    resolve=lambda settings, op: {"q_threshold": settings["q_threshold"], "level": 1.0},
    settings={"q_threshold": 1.0},
    reads=(),
    check=_check,
    rules=("ge",),
    unit=lambda settings: settings["q_threshold"],
)
"""As Soul runs it, whose `level` and `sym` nothing reads: it sends 0 or 1, never -1."""
