"""snnTorch's neurons (snntorch/_neurons, 1.0.0), also with a current between input and membrane.

A spike resets the membrane a step later, behind decay and input (reset_delay), or at once. What
resets is not the last spike but a membrane that stands above the threshold: after a reset at once
both can differ.
"""

from collections.abc import Callable, Mapping

import numpy as np
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

RESETS = {"subtract": 0.0, "zero": 1.0, "none": 2.0}
"""How a spike resets, by the number of the setting `reset`."""

RESET = ("threshold", "before", "kept", "taken", "zeroed", "at_once")
"""The constants that every family ends with.

before   what the old membrane is multiplied by at a reset: 0 where Leaky sets it to zero
kept, taken  a membrane that is reset is kept · v - taken
zeroed   1 where a reset at once sets the membrane to 0
at_once  1 where it comes at once
"""


def _reset_constants(settings: Settings, *, old: bool = False) -> Mapping[str, Value]:
    """old: resetting to zero is done to the membrane of the step before, as Leaky does."""
    threshold, kind = settings["threshold"], settings["reset"]
    zero = float(kind == RESETS["zero"])
    return {
        "threshold": threshold,
        "before": 0.0 if old and zero else 1.0,
        "kept": 0.0 if zero and not old else 1.0,
        "taken": threshold if kind == RESETS["subtract"] else 0.0,
        "zeroed": zero,
        "at_once": 0.0 if settings["delay"] else 1.0,
    }


def clamped(beta: Value, op: Operations) -> Value:
    """Between 0 and 1, as snnTorch uses a decay."""
    if isinstance(beta, float):
        return min(max(beta, 0.0), 1.0)
    return op.minimum(op.relu(beta), 1.0)


def _after_of(op: Operations) -> Callable[..., State]:
    """(s, v, reset, reset constants) -> the membrane after a reset at once, if it is that, and
    whether it resets the next step.
    """
    choose, above = op.choose, op.above

    @register_jitable
    def after(s: Value, v: Value, reset: Value, c: Constants) -> State:
        threshold, zeroed, at_once = c[0], c[4], c[5]
        taken = c[3]
        more = at_once * (s - reset)
        down = choose(more, (v - zeroed * v) - taken, v)
        v = choose(reset * at_once - s * at_once, v + (zeroed * v + taken), down)
        return v, above(v, threshold)

    return after


def _check(settings: Settings) -> str | None:
    if settings["reset"] not in RESETS.values():
        told = ", ".join(f"{number:g} ({name})" for name, number in RESETS.items())
        return f"reset {settings['reset']:g}; valid: {told}"
    if settings["delay"] not in (0, 1):
        return f"delay {settings['delay']:g}; valid: 1 (a step later), 0 (at once)"
    threshold = settings["threshold"]
    if not isinstance(threshold, float):
        return None
    return None if threshold > 0 else f"threshold {threshold:g} must be above 0"


COMMON = {"threshold": 1.0, "reset": 0.0, "delay": 1.0}
TENSORS = {"beta": None, "threshold": None}


def _leaky(op: Operations) -> Parts:
    choose, after = op.choose, _after_of(op)

    @register_jitable
    def charge(x: Value, state: State, c: Constants) -> State:
        """Also of a membrane that feeds itself: V times its last spike."""
        v, reset, sent = state
        beta, recurrent, before, kept, taken = c[0], c[1], c[3], c[4], c[5]
        v = beta * choose(reset, before * v, v) + x + recurrent * sent
        return choose(reset, kept * v - taken, v), reset, sent

    @register_jitable
    def decide(state: State, c: Constants) -> tuple[Value, Value]:
        return state[0], c[2]

    @register_jitable
    def settle(s: Value, state: State, c: Constants) -> State:
        v, reset = after(s, state[0], state[1], c[2:])
        return v, reset, s

    return Parts(charge, decide, settle)


LEAKY = Dynamics(
    name="snn_leaky",
    source="snntorch/_neurons/leaky.py",
    state=("v", "reset", "sent"),
    constants=("beta", "recurrent", *RESET),
    start=(0.0, 0.0, 0.0),
    parts=_leaky,
    resolve=lambda settings, op: {
        "beta": clamped(settings["beta"], op),
        "recurrent": 0.0,
        **_reset_constants(settings, old=True),
    },
    settings={"beta": 0.9, **COMMON},
    reads=(),
    check=_check,
    tensors=TENSORS,
)

RLEAKY = Dynamics(
    name="snn_rleaky",
    source="snntorch/_neurons/rleaky.py (all_to_all False)",
    state=("v", "reset", "sent"),
    constants=("beta", "recurrent", *RESET),
    start=(0.0, 0.0, 0.0),
    parts=_leaky,
    resolve=lambda settings, op: {
        "beta": clamped(settings["beta"], op),
        "recurrent": settings["V"],
        **_reset_constants(settings),
    },
    settings={"beta": 0.9, "V": 1.0, **COMMON},
    reads=(),
    check=_check,
    tensors={**TENSORS, "V": None},
)


def _synaptic(op: Operations) -> Parts:
    choose, after = op.choose, _after_of(op)

    @register_jitable
    def charge(x: Value, state: State, c: Constants) -> State:
        v, reset, sent, syn = state
        alpha, beta, recurrent, kept, taken = c[0], c[1], c[2], c[5], c[6]
        syn = alpha * syn + x + recurrent * sent
        v = beta * v + syn
        return choose(reset, kept * v - taken, v), reset, sent, syn

    @register_jitable
    def decide(state: State, c: Constants) -> tuple[Value, Value]:
        return state[0], c[3]

    @register_jitable
    def settle(s: Value, state: State, c: Constants) -> State:
        v, reset = after(s, state[0], state[1], c[3:])
        return v, reset, s, state[3]

    return Parts(charge, decide, settle)


def _synaptic_constants(settings: Settings, op: Operations) -> Mapping[str, Value]:
    return {
        "alpha": clamped(settings["alpha"], op),
        "beta": clamped(settings["beta"], op),
        "recurrent": settings.get("V", 0.0),
        **_reset_constants(settings),
    }


SYNAPTIC = Dynamics(
    name="snn_synaptic",
    source="snntorch/_neurons/synaptic.py",
    state=("v", "reset", "sent", "syn"),
    constants=("alpha", "beta", "recurrent", *RESET),
    start=(0.0, 0.0, 0.0, 0.0),
    parts=_synaptic,
    resolve=_synaptic_constants,
    settings={"alpha": 0.9, "beta": 0.8, **COMMON},
    reads=(),
    check=_check,
    tensors={**TENSORS, "alpha": None},
)

RSYNAPTIC = Dynamics(
    name="snn_rsynaptic",
    source="snntorch/_neurons/rsynaptic.py (all_to_all False)",
    state=("v", "reset", "sent", "syn"),
    constants=("alpha", "beta", "recurrent", *RESET),
    start=(0.0, 0.0, 0.0, 0.0),
    parts=_synaptic,
    resolve=_synaptic_constants,
    settings={"alpha": 0.9, "beta": 0.8, "V": 1.0, **COMMON},
    reads=(),
    check=_check,
    tensors={**TENSORS, "alpha": None, "V": None},
)


def _lapicque(op: Operations) -> Parts:
    choose, after = op.choose, _after_of(op)

    @register_jitable
    def charge(x: Value, state: State, c: Constants) -> State:
        v, reset = state
        resistance, per_tau, step, decay, kept, taken = c[0], c[1], c[2], c[3], c[6], c[7]
        v = x * resistance * per_tau * step + decay * v
        return choose(reset, kept * v - taken, v), reset

    @register_jitable
    def decide(state: State, c: Constants) -> tuple[Value, Value]:
        return state[0], c[4]

    @register_jitable
    def settle(s: Value, state: State, c: Constants) -> State:
        return after(s, state[0], state[1], c[4:])

    return Parts(charge, decide, settle)


def _lapicque_constants(settings: Settings, op: Operations) -> Mapping[str, Value]:
    """In float32, operation by operation, as snnTorch's tensors compute them."""
    r, c, dt = (_single(settings[name]) for name in ("R", "C", "time_step"))
    return {
        "R": r,
        "per_tau": 1 / (r * c),
        "time_step": dt,
        "decay": 1 - (dt / (r * c)),
        **_reset_constants(settings),
    }


def _single(value: Value) -> Value:
    return np.float32(value) if isinstance(value, float) else value


LAPICQUE = Dynamics(
    name="snn_lapicque",
    source="snntorch/_neurons/lapicque.py",
    state=("v", "reset"),
    constants=("R", "per_tau", "time_step", "decay", *RESET),
    start=(0.0, 0.0),
    parts=_lapicque,
    resolve=_lapicque_constants,
    settings={"R": 1.0, "C": 10.0, "time_step": 1.0, **COMMON},
    reads=(),
    check=_check,
    tensors={"threshold": None, "R": None, "C": None},
)
