"""Neurons in a few words, for tables."""

from soul_deploy.ir import fixed, neurons
from soul_deploy.runtime.dynamics.form import Dynamics


def described(n: neurons.NeuronSpec) -> str:
    """A neuron in a few words, for tables."""
    if n.dynamics is not None:
        return _described_dynamics(n, n.dynamics)
    if n.integers:
        return fixed.described(dict(n.settings), n.fire)
    if n.parallel:
        sign = ">" if n.fire == "gt" else "≥"
        return f"psn: W x + b over all steps, dense over steps; spike if {sign} 0"
    reset = "soft reset" if n.v_reset is None else f"reset to {n.v_reset:g}"
    if n.family == "ltmd":
        leak = f"leak {neurons.LTMD_LEAK:g}"
        return f"ltmd: learned threshold tanh(w) ({n.fire}), {leak}, {reset}"
    reset += " a step later" if n.late_reset else ""
    reset += "" if n.v_subtract is None else f" by {n.v_subtract:g}"
    reset = "no reset" if n.v_subtract == 0 else reset
    tau = "" if n.family == "if" else f", tau {n.tau:g}"
    tau += "" if n.family == "if" or n.decay_input else ", input not decayed"
    return f"{n.family}{tau}, threshold {n.v_threshold:g} ({n.fire}), {reset}"


def _described_dynamics(n: neurons.NeuronSpec, dynamics: Dynamics) -> str:
    own = {name: getattr(n, name) for name in dynamics.reads} | dict(n.settings)
    numbers = ", ".join(f"{name} {neurons.constant_text(value)}" for name, value in own.items())
    sent = "" if n.edge == neurons.SPIKE else f", sends {n.edge.low} to {n.edge.bound}"
    return f"{n.family}: {numbers}{sent}"
