"""KLIF: a leaky neuron; a learned k scales its membrane, which 0 cuts (SpikingJelly)."""

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


def _klif(op: Operations) -> Parts:
    relu, choose = op.relu, op.choose

    @register_jitable
    def charge(x: Value, state: State, c: Constants) -> State:
        v, tau, rest, decayed, direct, k = state[0], c[0], c[1], c[2], c[3], c[4]
        return (relu(k * (v + (decayed * x - (v - rest)) / tau + direct * x)),)

    @register_jitable
    def decide(state: State, c: Constants) -> tuple[Value, Value]:
        return state[0], c[6]

    @register_jitable
    def settle(s: Value, state: State, c: Constants) -> State:
        v = state[0] / c[5]
        return (choose(s, c[7] * v - c[8], v),)

    return Parts(charge, decide, settle)


def _resolve(settings: Settings, op: Operations) -> Mapping[str, Value]:
    """decayed, direct: where the input enters, 1 and 0 or 0 and 1; what is not there adds 0.

    scale: what the membrane is divided by before it is reset, k or 1.
    """
    decays, k = bool(settings["decay_input"]), settings["k"]
    scale = k if settings["scale_reset"] else 1.0
    reset = reset_constants(settings)
    return {
        "tau": settings["tau"],
        "rest": reset["start"],
        "decayed": float(decays),
        "direct": float(not decays),
        "k": k,
        "scale": scale,
        **reset,
        "taken": reset["taken"] if settings["v_reset"] is not None else reset["taken"] / scale,
    }


def _check(settings: Settings) -> str | None:
    if not settings["tau"] >= 1:
        return f"tau {settings['tau']:g} must be at least 1 step"
    scaled = settings["scale_reset"]
    return None if scaled in (0, 1) else f"scale_reset {scaled:g}; valid: 0, 1"


KLIF = Dynamics(
    name="klif",
    source="SpikingJelly's KLIFNode (Jiang and Zhang, 2023, arXiv:2302.09238)",
    state=("v",),
    constants=(
        *("tau", "rest", "decayed", "direct", "k", "scale", "threshold", "kept", "taken", "start"),
    ),
    start=("start",),
    parts=_klif,
    resolve=_resolve,
    settings={"k": 1.0, "scale_reset": 0.0},
    reads=("tau", "decay_input", "v_threshold", "v_reset"),
    check=_check,
    tensors={"k": "layer"},
)
