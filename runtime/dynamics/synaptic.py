"""CUBALIF: a leaky membrane behind a synaptic current that leaks too (SpikingJelly)."""

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


def _cubalif(op: Operations) -> Parts:
    choose = op.choose

    @register_jitable
    def charge(x: Value, state: State, c: Constants) -> State:
        v, current = state
        current = current * c[0] + x
        return v * c[1] + current, current

    @register_jitable
    def decide(state: State, c: Constants) -> tuple[Value, Value]:
        return state[0], c[2]

    @register_jitable
    def settle(s: Value, state: State, c: Constants) -> State:
        v, current = state
        return choose(s, c[3] * v - c[4], v), current

    return Parts(charge, decide, settle)


def _resolve(settings: Settings, op: Operations) -> Mapping[str, Value]:
    own = {name: settings[name] for name in ("c_decay", "v_decay")}
    return {**own, **reset_constants(settings)}


CUBALIF = Dynamics(
    name="cubalif",
    source="SpikingJelly's CUBALIFNode",
    state=("v", "c"),
    constants=("c_decay", "v_decay", "threshold", "kept", "taken", "start"),
    start=("start", 0.0),
    parts=_cubalif,
    resolve=_resolve,
    settings={"c_decay": 0.5, "v_decay": 0.75},
    reads=("v_threshold", "v_reset"),
)
"""The decays are factors a step, of which any number is taken."""
