"""Edge kinds and neuron models: what travels in a spiking graph, and what fires."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from soul_deploy.base.errors import UsageError
from soul_deploy.runtime.equations import ChargeForm, FireRule, NeuronEquation, reset_target

NeuronFamily = Literal["if", "lif", "plif"]
SurrogateName = Literal["atan", "sigmoid", "rectangle"]
FormName = Literal["soul", "spikingjelly", "spikingjelly_0", "snntorch"]
FORMS: tuple[FormName, ...] = get_args(FormName)


@dataclass(frozen=True)
class Edge:
    """What values an edge can hold: "spike" (0/1), "graded" (0..bound), or "analog"."""

    kind: Literal["spike", "graded", "analog"]
    bound: int | None = None


LARGEST, SMALLEST = 3.4e38, 1.2e-38  # of float32, in which every engine computes
SPIKE, ANALOG = Edge("spike", 1), Edge("analog")


@dataclass(frozen=True)
class NeuronSpec:
    """A population's neuron model as trained. The fields' defaults are Soul's LIF.

    family          "if", "lif", "plif" (tau is learned: parameter `<population>.w`)
    tau             membrane time constant in steps (> 1 for plif: its initial value)
    decay_input     the input current is divided by tau too
    v_threshold     firing threshold (> 0)
    v_reset         value after a spike, or None: soft reset, the threshold is subtracted
    fire            "gt": fires above the threshold (Soul); "ge": also at it (SpikingJelly)
    surrogate, surrogate_alpha, detach_reset   training only
    v_subtract      with soft reset, what a spike takes off at once, instead of the threshold; None:
                    the threshold; 0: no reset
    form            whose arithmetic the charge is, to the last bit: "soul"; "spikingjelly" (2.x);
                    "spikingjelly_0" (0.0.0.0.14 and before, in evaluation); "snntorch" (Leaky:
                    beta is 1 - 1/tau, or 1 for "if"; soft reset takes the threshold off a step
                    after the spike, behind decay and input)
    """

    family: NeuronFamily = "lif"
    tau: float = 2.0
    decay_input: bool = True
    v_threshold: float = 1.0
    v_reset: float | None = 0.0
    fire: FireRule = "gt"
    surrogate: SurrogateName = "atan"
    surrogate_alpha: float = 2.0
    detach_reset: bool = True
    form: FormName = "soul"
    v_subtract: float | None = None

    def __post_init__(self) -> None:
        if self.family not in ("if", "lif", "plif"):
            raise UsageError(f"neuron family {self.family!r}; valid: if, lif, plif")
        for name in ("tau", "v_threshold", "surrogate_alpha", "v_reset"):
            number = getattr(self, name)
            if number is not None and not abs(number) <= LARGEST:
                raise UsageError(f"{name} {number} must be finite in float32")
        if not self.v_threshold >= SMALLEST:
            raise UsageError(f"v_threshold {self.v_threshold} must be above 0")
        if self.v_reset is not None and not self.v_reset < self.v_threshold:
            raise UsageError(f"v_reset {self.v_reset} must be below v_threshold {self.v_threshold}")
        if self.v_subtract is not None and self.v_reset is not None:
            raise UsageError(
                f"v_subtract {self.v_subtract} with v_reset {self.v_reset}; it is for soft reset"
            )
        if self.v_subtract and not SMALLEST <= self.v_subtract <= LARGEST:
            raise UsageError(f"v_subtract {self.v_subtract} must be 0 or more, finite in float32")
        if self.family == "lif" and not self.tau >= 1:
            raise UsageError(f"tau {self.tau} must be at least 1 step")
        if self.family == "plif" and not self.tau > 1:
            raise UsageError(f"init_tau {self.tau} must be above 1 step")
        if self.fire not in ("gt", "ge"):
            raise UsageError(f"fire {self.fire!r}; valid: gt (v > threshold), ge (v >= threshold)")
        if self.surrogate not in ("atan", "sigmoid", "rectangle"):
            raise UsageError(f"surrogate {self.surrogate!r}; valid: atan, sigmoid, rectangle")
        if self.form not in FORMS:
            raise UsageError(f"form {self.form!r}; valid: {', '.join(FORMS)}")
        if self.form == "snntorch" and (self.learned or self.decay_input or self.v_reset):
            raise UsageError(
                "form 'snntorch' is of families if and lif, with decay_input False and v_reset 0 "
                "or None"
            )

    @property
    def learned(self) -> bool:
        """Whether the decay is a parameter `w` (decay = sigmoid(w))."""
        return self.family == "plif"

    @property
    def late_reset(self) -> bool:
        """Whether the charge of the next step takes the threshold off, and the spike nothing."""
        return self.form == "snntorch" and self.v_reset is None and self.v_subtract is None

    @property
    def charge(self) -> ChargeForm:
        """The form of the charge: soul/neuron/LIF.py and PLIF.py, SpikingJelly's or snnTorch's."""
        if self.late_reset:
            return "leak_multiply_late"
        if self.family == "if":
            return "integrate"
        if self.learned:
            if self.decay_input:
                return "decay_multiply"
            subtracted = self.form == "spikingjelly" or self.v_reset
            return "leak_subtract_multiply" if subtracted else "leak_multiply"
        if self.form == "snntorch":
            return "leak_multiply"
        if self.form == "soul":
            return "soul_lif_decay" if self.decay_input else "soul_lif"
        if self.decay_input:
            return "decay_divide"
        scaled = self.form == "spikingjelly_0" and self.v_reset is None
        return "leak_multiply" if scaled else "leak_subtract_divide"

    def equation(self, decay: float | None = None) -> NeuronEquation:
        """The neuron as deployed. `decay` = sigmoid(w) in float32, for `plif` only."""
        if self.learned:
            assert decay is not None, "a plif needs its learned decay"
            one_minus = float(np.float32(1) - np.float32(decay))
            constant = one_minus if self.charge == "leak_multiply" else decay
        else:
            constant = self.fixed_constant
        return NeuronEquation(
            self.charge, constant, self.v_threshold, self.v_reset, self.fire, self._taken
        )

    @property
    def reset_target(self) -> float:
        """As `NeuronEquation.target`."""
        return reset_target(self.v_threshold, self.v_reset, self._taken)

    @property
    def _taken(self) -> float | None:
        """As `NeuronEquation.v_subtract`."""
        return 0.0 if self.late_reset else self.v_subtract

    @property
    def fixed_constant(self) -> float:
        """The form's constant of a neuron that does not learn it (rounded to float32 in use)."""
        if self.charge not in ("leak_multiply", "leak_multiply_late"):
            return self.tau
        return 1.0 if self.family == "if" else 1.0 - 1.0 / self.tau


SOUL_NEURONS: Mapping[NeuronFamily, NeuronSpec] = {
    "lif": NeuronSpec("lif"),
    "plif": NeuronSpec("plif", decay_input=False),
    "if": NeuronSpec("if"),
}
"""Each neuron as Soul sets it (soul/config/neuron/lif.yaml, plif.yaml): what flags that are not
given stand for. Soul has no IF; its threshold, reset and surrogate are LIF's."""


def constant_text(value: object) -> str:
    """A neuron's constant as people write it: 2, yes, none (soft reset), gt."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return "none"
    return f"{value:g}" if isinstance(value, float) else str(value)
