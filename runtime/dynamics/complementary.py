"""CLIF and ILIF: a leaky membrane whose reset depends on what it did before (Soul; CLIF also in
SpikingJelly's arithmetic)."""

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

READS = ("tau", "decay_input", "v_threshold", "v_reset")


def _leaky(settings: Settings, op: Operations) -> Mapping[str, Value]:
    """The numbers as Soul computes them, in double precision before they meet a tensor.

    After a spike the membrane is kept · v - taken: 0, or v less the threshold.
    """
    tau, reset = settings["tau"], settings["v_reset"]
    return {
        "leak": 1 - 1.0 / tau,
        "divisor": tau if settings["decay_input"] else 1.0,
        "tau": tau,
        "threshold": settings["v_threshold"],
        "kept": 1.0 if reset is None else 0.0,
        "taken": settings["v_threshold"] if reset is None else 0.0,
    }


def _check(settings: Settings) -> str | None:
    """Soul adds v_reset in another order in the first step than in the others."""
    if settings["v_reset"] not in (None, 0.0):
        return f"v_reset {settings['v_reset']:g}; supported are 0 and none (soft reset)"
    return None if settings["tau"] >= 1 else f"tau {settings['tau']:g} must be at least 1 step"


def _clif(op: Operations) -> Parts:
    sigmoid, choose = op.sigmoid, op.choose

    @register_jitable
    def charge(x: Value, state: State, c: Constants) -> State:
        v, m = state
        leak, divisor, tau, _threshold, _kept, _taken = c
        v = v * leak + x / divisor
        return v, m * sigmoid(v / tau)

    @register_jitable
    def decide(state: State, c: Constants) -> tuple[Value, Value]:
        return state[0], c[3]

    @register_jitable
    def settle(s: Value, state: State, c: Constants) -> State:
        v, m = state
        m = m + s
        return choose(s, c[4] * v - c[5], v) - s * sigmoid(m), m

    return Parts(charge, decide, settle)


CLIF = Dynamics(
    name="clif",
    source="soul/neuron/CLIF.py (Huang et al., ICML 2024)",
    state=("v", "m"),
    constants=("leak", "divisor", "tau", "threshold", "kept", "taken"),
    start=(0.0, 0.0),
    parts=_clif,
    resolve=_leaky,
    settings={},
    reads=READS,
    check=_check,
)


def _complementary(op: Operations) -> Parts:
    sigmoid = op.sigmoid

    @register_jitable
    def charge(x: Value, state: State, c: Constants) -> State:
        v, m = state
        v = v - v / c[0] + x
        return v, m * sigmoid(v / c[0])

    @register_jitable
    def decide(state: State, c: Constants) -> tuple[Value, Value]:
        return state[0], c[1]

    @register_jitable
    def settle(s: Value, state: State, c: Constants) -> State:
        v, m = state
        m = m + s
        return v - s * (c[1] + sigmoid(m)), m

    return Parts(charge, decide, settle)


def _check_complementary(settings: Settings) -> str | None:
    if settings["v_reset"] is not None:
        return f"v_reset {settings['v_reset']:g}; SpikingJelly's CLIF has soft reset only: none"
    return None if settings["tau"] >= 1 else f"tau {settings['tau']:g} must be at least 1 step"


COMPLEMENTARY_LIF = Dynamics(
    name="complementary_lif",
    source="SpikingJelly's ComplementaryLIFNode (Huang et al., ICML 2024)",
    state=("v", "m"),
    constants=("tau", "threshold"),
    start=(0.0, 0.0),
    parts=_complementary,
    resolve=lambda settings, op: {"tau": settings["tau"], "threshold": settings["v_threshold"]},
    settings={},
    reads=("tau", "v_threshold", "v_reset"),
    check=_check_complementary,
)


def _ilif(op: Operations) -> Parts:
    sigmoid, relu, choose = op.sigmoid, op.relu, op.choose

    @register_jitable
    def charge(x: Value, state: State, c: Constants) -> State:
        """before: the input of the last step, if it spiked."""
        v, inhibition, before, memory = state
        leak, divisor, share = c[0], c[1], c[6]
        inhibition = share * (inhibition + before)
        v = v * leak + (x - relu(inhibition)) / divisor
        return v, inhibition, x, memory

    @register_jitable
    def decide(state: State, c: Constants) -> tuple[Value, Value]:
        return state[0], c[3]

    @register_jitable
    def settle(s: Value, state: State, c: Constants) -> State:
        v, inhibition, x, memory = state
        v = choose(s, c[4] * v - c[5], v)
        memory = memory + s * v
        return v - s * sigmoid(memory), inhibition, x * s, memory

    return Parts(charge, decide, settle)


def _ilif_constants(settings: Settings, op: Operations) -> Mapping[str, Value]:
    return {**_leaky(settings, op), "share": settings["inhibition"]}


ILIF = Dynamics(
    name="ilif",
    source="soul/neuron/ILIF.py (Lei et al., IJCAI 2025)",
    state=("v", "inhibition", "before", "memory"),
    constants=("leak", "divisor", "tau", "threshold", "kept", "taken", "share"),
    start=(0.0, 0.0, 0.0, 0.0),
    parts=_ilif,
    resolve=_ilif_constants,
    settings={"inhibition": 0.03},
    reads=READS,
    check=_check,
)
