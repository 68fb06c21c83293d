"""Synaptic and Lapicque: neurons whose reset comes a step after the spike (snnTorch).

A spike is told to the next step, which takes the threshold off or clears what it has computed. The
membrane is the one before that, as snnTorch returns it.
"""

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


def _synaptic(op: Operations) -> Parts:
    choose = op.choose

    @register_jitable
    def charge(x: Value, state: State, c: Constants) -> State:
        v, synapse, fired = state
        synapse = c[0] * synapse + x
        v = c[1] * v + synapse
        return choose(fired, v - (c[3] + c[4] * v), v), synapse, fired

    @register_jitable
    def decide(state: State, c: Constants) -> tuple[Value, Value]:
        return state[0], c[2]

    @register_jitable
    def settle(s: Value, state: State, c: Constants) -> State:
        return state[0], state[1], s

    return Parts(charge, decide, settle)


def _lapicque(op: Operations) -> Parts:
    choose = op.choose

    @register_jitable
    def charge(x: Value, state: State, c: Constants) -> State:
        v, fired = state
        v = x * c[0] * c[1] * c[2] + c[3] * v
        return choose(fired, v - (c[5] + c[6] * v), v), fired

    @register_jitable
    def decide(state: State, c: Constants) -> tuple[Value, Value]:
        return state[0], c[4]

    @register_jitable
    def settle(s: Value, state: State, c: Constants) -> State:
        return state[0], s

    return Parts(charge, decide, settle)


def _reset(settings: Settings) -> dict[str, float]:
    """taken, cleared: what comes off the membrane is taken + cleared · membrane; one of them, or
    both, are 0 and add nothing.
    """
    subtracts, resets = settings["v_reset"] is None, bool(settings["resets"])
    return {
        "threshold": settings["v_threshold"],
        "taken": settings["v_threshold"] if resets and subtracts else 0.0,
        "cleared": float(resets and not subtracts),
    }


def _resolve(names: tuple[str, ...], settings: Settings, op: Operations) -> Mapping[str, Value]:
    return {**{name: settings[name] for name in names}, **_reset(settings)}


def _check(settings: Settings) -> str | None:
    if settings["v_reset"] not in (None, 0.0):
        return f"v_reset {settings['v_reset']:g}; valid: none (the threshold is subtracted) and 0"
    if settings["resets"] not in (0, 1):
        return f"resets {settings['resets']:g}; valid: 1, or 0 (a spike resets nothing)"
    for name in ("alpha", "beta"):
        if not 0 <= settings.get(name, 0.0) <= 1:
            return f"{name} {settings[name]:g} must be from 0 to 1"
    return None


DECAYS = ("alpha", "beta")
SYNAPTIC = Dynamics(
    name="synaptic",
    source="snntorch/_neurons/synaptic.py (1.0.0)",
    state=("v", "synapse", "fired"),
    constants=(*DECAYS, "threshold", "taken", "cleared"),
    start=(0.0, 0.0, 0.0),
    parts=_synaptic,
    resolve=lambda settings, op: _resolve(DECAYS, settings, op),
    settings={"alpha": 0.9, "beta": 0.8, "resets": 1.0},
    reads=("v_threshold", "v_reset"),
    check=_check,
)
CIRCUIT = ("resistance", "rate", "time_step", "decay")
LAPICQUE = Dynamics(
    name="lapicque",
    source="snntorch/_neurons/lapicque.py (1.0.0)",
    state=("v", "fired"),
    constants=(*CIRCUIT, "threshold", "taken", "cleared"),
    start=(0.0, 0.0),
    parts=_lapicque,
    resolve=lambda settings, op: _resolve(CIRCUIT, settings, op),
    settings={"resistance": 1.0, "rate": 0.1, "time_step": 1.0, "decay": 0.9, "resets": 1.0},
    reads=("v_threshold", "v_reset"),
    check=_check,
)
"""rate is 1 / (R · C), decay 1 - time_step / (R · C), as snnTorch rounds them."""
