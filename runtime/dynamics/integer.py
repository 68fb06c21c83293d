"""INTLIF, TLIF and IELIF: neurons that send integers (Soul); their fractions are units of these.

I-LIF of SpikingJelly, which sends integers as they are.
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

CARRY = (
    "1 (the membrane is carried from step to step), 0 (each step starts at v_reset, as Soul's "
    "module runs: it takes all steps of a sequence for one)"
)


def _integer(op: Operations) -> Parts:
    held = op.held

    @register_jitable
    def charge(x: Value, state: State, c: Constants) -> State:
        return ((state[0] * c[2] + c[3]) / c[0] + x,)

    @register_jitable
    def decide(state: State, c: Constants) -> tuple[Value, Value]:
        return state[0], c[1]

    @register_jitable
    def settle(s: Value, state: State, c: Constants) -> State:
        return (state[0] - held(s) * c[1],)

    return Parts(charge, decide, settle)


def _leaky(settings: Settings, op: Operations) -> Mapping[str, Value]:
    """again: what each step starts at, if the membrane is not carried."""
    start, carry = settings["v_reset"] or 0.0, settings["carry"]
    return {
        "tau": settings["tau"],
        "taken": settings["v_threshold"],
        "carry": carry,
        "again": 0.0 if carry else start,
        "start": start,
    }


def _without_leak(settings: Settings, op: Operations) -> Mapping[str, Value]:
    return {**_leaky({**settings, "tau": 1.0}, op)}


def _check_sent(settings: Settings) -> str | None:
    if settings["carry"] not in (0, 1):
        return f"carry {settings['carry']:g}; valid: {CARRY}"
    return None if settings["norm"] > 0 else f"norm {settings['norm']:g} must be above 0"


def _check_top(settings: Settings) -> str | None:
    top = settings["top"]
    fits = 1 <= top <= 255 and top == int(top)
    return None if fits else f"top {top:g} must be an integer from 1 to 255"


def _check_leaky(settings: Settings) -> str | None:
    if not settings["tau"] >= 1:
        return f"tau {settings['tau']:g} must be at least 1 step"
    return _check_top(settings) or _check_sent(settings)


INTLIF = Dynamics(
    name="intlif",
    source="soul/neuron/INTLIF.py, soul/utils/surrogate/quantize.py (Luo et al., ECCV 2024)",
    state=("v",),
    constants=("tau", "taken", "carry", "again", "start"),
    start=("start",),
    parts=_integer,
    resolve=_leaky,
    settings={"norm": 8.0, "top": 8.0, "carry": 1.0},
    reads=("tau", "v_threshold", "v_reset"),
    check=_check_leaky,
    bounds=lambda settings: (0, int(settings["top"])),
    rules=("round",),
    unit=lambda settings: 1.0 / settings["norm"],
)

TLIF = Dynamics(
    name="tlif",
    source="soul/neuron/TLIF.py, soul/utils/surrogate/ternary.py (Guo et al., AAAI 2024)",
    state=("v",),
    constants=("tau", "taken", "carry", "again", "start"),
    start=("start",),
    parts=_integer,
    resolve=_without_leak,
    settings={"norm": 8.0, "carry": 1.0},
    reads=("v_threshold", "v_reset"),
    check=_check_sent,
    bounds=lambda settings: (-1, 1),
    rules=("round",),
    unit=lambda settings: 1.0 / settings["norm"],
)


def _counted(op: Operations) -> Parts:
    held = op.held

    @register_jitable
    def charge(x: Value, state: State, c: Constants) -> State:
        return (state[0] * c[0] - c[1] * state[0] / c[2] + x,)

    @register_jitable
    def decide(state: State, c: Constants) -> tuple[Value, Value]:
        return state[0] / c[3], c[3]

    @register_jitable
    def settle(s: Value, state: State, c: Constants) -> State:
        return (state[0] - held(s) * c[3],)

    return Parts(charge, decide, settle)


def _leaking(settings: Settings, op: Operations) -> Mapping[str, Value]:
    """Of a sequence at a time v leaks by v · (1 - 1 / tau), of a step at a time by v - v / tau.

    SpikingJelly rounds these differently; what the other one has is 1 or 0 and changes no bit.
    """
    tau, single = settings["tau"], bool(settings["single"])
    return {
        "factor": 1.0 if single else 1 - 1 / tau,
        "leaks": float(single),
        "tau": tau,
        "taken": settings["v_threshold"],
    }


def _check_counted(settings: Settings) -> str | None:
    if not settings["tau"] >= 1:
        return f"tau {settings['tau']:g} must be at least 1 step"
    if settings["v_reset"] is not None:
        return f"v_reset {settings['v_reset']:g}; I-LIF has soft reset only: none"
    if settings["single"] not in (0, 1):
        return f"single {settings['single']:g}; valid: 0 (step mode 'm'), 1 (step mode 's')"
    return _check_top(settings)


INTEGER_LIF = Dynamics(
    name="integer_lif",
    source="SpikingJelly's ILIFNode (I-LIF: Luo et al., ECCV 2024)",
    state=("v",),
    constants=("factor", "leaks", "tau", "taken"),
    start=(0.0,),
    parts=_counted,
    resolve=_leaking,
    settings={"top": 4.0, "single": 0.0},
    reads=("tau", "v_threshold", "v_reset"),
    check=_check_counted,
    bounds=lambda settings: (0, int(settings["top"])),
    rules=("round",),
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


def _check_lens(settings: Settings) -> str | None:
    lens = settings["lens"]
    return None if lens == 4 else f"lens {lens:g}; supported is 4, of which gradients are, no spike"


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
    check=_check_lens,
    bounds=lambda settings: (0, 4),
    rules=("round_up",),
    unit=lambda settings: 0.25,
)
"""Soul multiplies by 4, clamps to 4 and divides by 4, whatever `lens` is; `lens` bounds gradients.
"""
