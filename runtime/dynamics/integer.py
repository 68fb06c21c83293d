"""INTLIF, TLIF and IELIF: neurons that send integers (Soul). Their fractions are units of these."""

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

CARRY = (
    "1 (the membrane is carried from step to step), 0 (each step starts at 0, as Soul's module "
    "runs: it takes all steps of a sequence for one)"
)


def _integer(op: Operations) -> Parts:
    @register_jitable
    def charge(x: Value, state: State, c: Constants) -> State:
        return (state[0] / c[0] * c[2] + x,)

    @register_jitable
    def decide(state: State, c: Constants) -> tuple[Value, Value]:
        return state[0], c[1]

    @register_jitable
    def settle(s: Value, state: State, c: Constants) -> State:
        return (state[0] - s * c[1],)

    return Parts(charge, decide, settle)


def _leaky(settings: Settings, op: Operations) -> Mapping[str, Value]:
    return {"tau": settings["tau"], "taken": settings["v_threshold"], "carry": settings["carry"]}


def _without_leak(settings: Settings, op: Operations) -> Mapping[str, Value]:
    return {**_leaky({**settings, "tau": 1.0}, op)}


def _check_sent(settings: Settings) -> str | None:
    if settings["carry"] not in (0, 1):
        return f"carry {settings['carry']:g}; valid: {CARRY}"
    return None if settings["norm"] > 0 else f"norm {settings['norm']:g} must be above 0"


def _check_leaky(settings: Settings) -> str | None:
    if not settings["tau"] >= 1:
        return f"tau {settings['tau']:g} must be at least 1 step"
    top = settings["top"]
    if not (1 <= top <= 255 and top == int(top)):
        return f"top {top:g} must be an integer from 1 to 255"
    return _check_sent(settings)


INTLIF = Dynamics(
    name="intlif",
    source="soul/neuron/INTLIF.py, soul/utils/surrogate/quantize.py (Luo et al., ECCV 2024)",
    state=("v",),
    constants=("tau", "taken", "carry"),
    start=(0.0,),
    parts=_integer,
    resolve=_leaky,
    settings={"norm": 8.0, "top": 8.0, "carry": 1.0},
    reads=("tau", "v_threshold"),
    check=_check_leaky,
    bounds=lambda settings: (0, int(settings["top"])),
    rules=("round",),
    unit=lambda settings: 1.0 / settings["norm"],
)

TLIF = Dynamics(
    name="tlif",
    source="soul/neuron/TLIF.py, soul/utils/surrogate/ternary.py (Guo et al., AAAI 2024)",
    state=("v",),
    constants=("tau", "taken", "carry"),
    start=(0.0,),
    parts=_integer,
    resolve=_without_leak,
    settings={"norm": 8.0, "carry": 1.0},
    reads=("v_threshold",),
    check=_check_sent,
    bounds=lambda settings: (-1, 1),
    rules=("round",),
    unit=lambda settings: 1.0 / settings["norm"],
)


def _stateless(op: Operations) -> Parts:
    @register_jitable
    def charge(x: Value, state: State, c: Constants) -> State:
        return (c[0] * x,)

    @register_jitable
    def decide(state: State, c: Constants) -> tuple[Value, Value]:
        return state[0], c[0]

    @register_jitable
    def settle(s: Value, state: State, c: Constants) -> State:
        return state

    return Parts(charge, decide, settle)


IELIF = Dynamics(
    name="ielif",
    source="soul/neuron/IELIF.py (Qiu et al., ICLR 2025)",
    state=("v",),
    constants=("lens",),
    start=(0.0,),
    parts=_stateless,
    resolve=lambda settings, op: {"lens": 4.0},
    settings={"lens": 4.0},
    reads=(),
    bounds=lambda settings: (0, 4),
    rules=("round_up",),
    unit=lambda settings: 0.25,
)
"""Soul multiplies by 4, clamps to 4 and divides by 4, whatever `lens` is; `lens` bounds gradients.
"""
