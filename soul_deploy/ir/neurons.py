"""Edge kinds and neuron models: what travels in a spiking graph, and what fires."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from soul_deploy.base.errors import UsageError
from soul_deploy.ir import fixed
from soul_deploy.runtime.dynamics.equation import DYNAMICS, DynamicsEquation, Number
from soul_deploy.runtime.dynamics.form import BINARY, GRANULARITIES, Dynamics, Granularity, SendRule
from soul_deploy.runtime.dynamics.operations import NUMPY
from soul_deploy.runtime.equations import (
    ChargeForm,
    Equation,
    FireRule,
    NeuronEquation,
    reset_target,
)

NeuronFamily = str
"""A name of FAMILIES."""
LEAKY = ("if", "lif", "plif", "ltmd")
PARALLEL = "psn"
FAMILIES = (*LEAKY, *DYNAMICS, PARALLEL)
SurrogateName = Literal["atan", "sigmoid", "rectangle"]
FormName = Literal["soul", "spikingjelly", "spikingjelly_0", "clock_driven", "snntorch"]
FORMS: tuple[FormName, ...] = get_args(FormName)


@dataclass(frozen=True)
class Edge:
    """What values an edge can hold: "spike" (0/1), "graded" (integers from low to bound), or
    "analog"."""

    kind: Literal["spike", "graded", "analog"]
    bound: int | None = None
    low: int = 0

    @property
    def size(self) -> int | None:
        """The largest absolute value of a spike or graded edge."""
        return None if self.bound is None else max(self.bound, -self.low)


LTMD_LEAK = 0.25  # soul/neuron/LTMD.py, state_update
PSN_TENSORS: Mapping[str, Granularity] = {"weight": "step_pair", "bias": "step_column"}
OWN_SETTINGS: Mapping[str, Mapping[str, float]] = {
    "ltmd": {"kappa": 0.5},
    fixed.FIXED: fixed.SETTINGS,
}
"""Numbers of families that are not of runtime.dynamics: kappa is what ltmd's w starts with (Soul's
default)."""
OWN_TENSORS: Mapping[str, Mapping[str, Granularity | None]] = {
    PARALLEL: PSN_TENSORS,
    fixed.FIXED: fixed.TENSORS,
}
LARGEST, SMALLEST = 3.4e38, 1.2e-38  # of float32, in which every engine computes
SPIKE, ANALOG = Edge("spike", 1), Edge("analog")


@dataclass(frozen=True)
class NeuronSpec:
    """A population's neuron model as trained. The fields' defaults are Soul's LIF.

    family          one of FAMILIES, or "fixed", which `quantize` makes of these: of the fields, it
                    reads fire, settings and tensors. "plif" learns its tau, "ltmd" its threshold:
                    parameter `<population>.w`. Of the families of runtime.dynamics, those fields
                    decide that they read
    tau             membrane time constant in steps (> 1 for plif: its initial value)
    decay_input     the input current is divided by tau too
    v_threshold     firing threshold (> 0)
    v_reset         value after a spike, or None: soft reset, the threshold is subtracted
    fire            "gt": fires above the threshold (Soul); "ge": also at it (SpikingJelly)
    surrogate, surrogate_alpha, detach_reset   training only
    v_subtract      with soft reset, what a spike takes off at once, instead of the threshold; None:
                    the threshold; 0: no reset
    settings        numbers that only this family has, by name; those not given are its defaults
    tensors         settings that are tensors of the state dict, and what each is one per
    form            whose arithmetic the charge is, to the last bit: "soul"; "spikingjelly" (2.x);
                    "spikingjelly_0" (0.0.0.0.14, in evaluation); "clock_driven" (SpikingJelly up
                    to 0.0.0.0.12, and 0.0.0.0.14 in training); "snntorch" (Leaky: beta is
                    1 - 1/tau, or 1 for "if"; soft reset takes the threshold off a step after the
                    spike, behind decay and input)
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
    settings: tuple[tuple[str, float], ...] = ()
    tensors: tuple[tuple[str, Granularity], ...] = ()

    def __post_init__(self) -> None:
        if self.family not in (*FAMILIES, fixed.FIXED):
            raise UsageError(f"neuron family {self.family!r}; valid: {', '.join(FAMILIES)}")
        self._check_numbers()
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
        self._check_settings()

    def _check_numbers(self) -> None:
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
        if self.family == "ltmd" and self.v_reset != 0:
            raise UsageError(f"ltmd: v_reset {constant_text(self.v_reset)}; it resets to 0")
        if self.family == "plif" and not self.tau > 1:
            raise UsageError(f"init_tau {self.tau} must be above 1 step")

    def _check_settings(self) -> None:
        """Fill in the family's defaults, in its order. Raises UsageError for what it cannot be."""
        known = OWN_SETTINGS.get(self.family, {})
        if self.dynamics is not None:
            known = self.dynamics.settings
        given = dict(self.settings)
        for name, number in given.items():
            if name not in known:
                raise UsageError(
                    f"{self.family} has no {name!r}; its own numbers: {', '.join(known) or 'none'}"
                )
            if not abs(number) <= LARGEST:
                raise UsageError(f"{name} {number} must be finite in float32")
        filled = tuple((name, float(given.get(name, value))) for name, value in known.items())
        object.__setattr__(self, "settings", filled)
        self._check_tensors()
        wrong = None if self.dynamics is None else self.dynamics.check(self.named)
        if self.integers:
            wrong = fixed.wrong_numbers(dict(self.settings), dict(self.tensors))
        if wrong is not None:
            raise UsageError(f"{self.family}: {wrong}")

    def _check_tensors(self) -> None:
        """Fill in those that the family always has. Raises UsageError for what cannot be one."""
        known = OWN_TENSORS.get(self.family, {})
        known = known if self.dynamics is None else self.dynamics.tensors
        given = dict(self.tensors)
        for name, kind in given.items():
            if name not in known:
                raise UsageError(
                    f"{self.family}: {name!r} cannot be a tensor; those that can: "
                    f"{', '.join(known) or 'none'}"
                )
            if kind not in GRANULARITIES:
                valid = ", ".join(GRANULARITIES)
                raise UsageError(f"{self.family}: {name} per {kind!r}; valid: {valid}")
        filled = ((name, given.get(name, kind)) for name, kind in known.items())
        kept = tuple((name, kind) for name, kind in filled if kind is not None)
        object.__setattr__(self, "tensors", kept)

    def tensor_shapes(
        self, population: str, shape: tuple[int, ...], time_steps: int
    ) -> dict[str, tuple[int, ...]]:
        """Name and shape of what a population of this shape has in a state dict."""
        sides: dict[Granularity, tuple[int, ...]] = {
            "layer": (),
            "channel": shape[:1],
            "neuron": shape,
            "step": (time_steps,),
            "step_channel": (time_steps, *shape[:1]),
            "step_pair": (time_steps, time_steps),
            "step_column": (time_steps, 1),
        }
        own = {f"{population}.{name}": sides[kind] for name, kind in self.tensors}
        return own | ({f"{population}.w": ()} if self.learned else {})

    @property
    def stepwise(self) -> bool:
        """Whether some numbers are those of a step: the neuron is one of T steps only."""
        return any(kind.startswith("step") for _, kind in self.tensors)

    @property
    def parallel(self) -> bool:
        """Whether a step depends on the inputs of all steps."""
        return self.family == PARALLEL

    @property
    def integers(self) -> bool:
        """Whether it is a neuron of a fixed-point network."""
        return self.family == fixed.FIXED

    @property
    def dynamics(self) -> Dynamics | None:
        """The family, where it is one of runtime.dynamics."""
        return DYNAMICS.get(self.family)

    @property
    def named(self) -> dict[str, Any]:
        """All numbers by name, the family's own among them."""
        fields = ("tau", "decay_input", "v_threshold", "v_reset", "fire", "form")
        return {name: getattr(self, name) for name in fields} | dict(self.settings)

    @property
    def reads(self) -> tuple[str, ...]:
        """The fields that decide spikes, apart from `settings`: PLIF has learned its tau."""
        if self.dynamics is not None:
            return (*self.dynamics.reads, *(("fire",) if self.dynamics.rules == BINARY else ()))
        every = "tau", "v_threshold", "v_reset", "decay_input", "fire"
        unread = {"if": ("tau", "decay_input"), "plif": ("tau",), "lif": ()}
        unread |= dict.fromkeys(("ltmd", PARALLEL, fixed.FIXED), every[:4])
        return tuple(name for name in every if name not in unread[self.family])

    @property
    def edge(self) -> Edge:
        """What the neurons send."""
        if self.dynamics is None:
            return SPIKE
        low, high = self.dynamics.bounds(self.named)
        return SPIKE if (low, high) == (0, 1) else Edge("graded", high, low)

    @property
    def unit(self) -> float:
        """What 1 that is sent stands for in the family's own code, which sends fractions."""
        return 1.0 if self.dynamics is None else self.dynamics.unit(self.named)

    @property
    def learned(self) -> bool:
        """Whether a number is a parameter `w`: decay sigmoid(w), or threshold tanh(w) of ltmd."""
        return self.family in ("plif", "ltmd")

    @property
    def first_w(self) -> float:
        """What `w` is before training."""
        if self.family == "ltmd":
            return dict(self.settings)["kappa"]
        return -math.log(self.tau - 1.0)

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
        if self.family == "ltmd":  # 0.25 · u · (1 - s) + x
            return "leak_multiply"
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
        scaled |= self.form == "clock_driven" and not self.v_reset
        return "leak_multiply" if scaled else "leak_subtract_divide"

    def equation(
        self, learned: float | None = None, numbers: tuple[Number, ...] | None = None
    ) -> Equation:
        """The neuron as deployed.

        learned: what `w` stands for, in float32, if there is one. numbers: the family's constants,
        where settings are tensors.
        """
        if self.dynamics is not None:
            return self._of_dynamics(self.dynamics, numbers)
        constant, threshold = self.fixed_constant, self.v_threshold
        if self.learned:
            assert learned is not None, f"{self.family} needs its learned number"
            if self.family == "ltmd":
                threshold = learned
            elif self.charge == "leak_multiply":
                constant = float(np.float32(1) - np.float32(learned))
            else:
                constant = learned
        return NeuronEquation(
            self.charge, constant, threshold, self.v_reset, self.fire, self._taken
        )

    @property
    def send(self) -> SendRule:
        """How a family of runtime.dynamics sends."""
        assert self.dynamics is not None
        return self.fire if self.dynamics.rules == BINARY else self.dynamics.rules[0]

    def _of_dynamics(
        self, dynamics: Dynamics, numbers: tuple[Number, ...] | None
    ) -> DynamicsEquation:
        if numbers is None:
            assert not self.tensors, f"{self.family} needs the numbers that its tensors hold"
            numbers = tuple(map(float, dynamics.numbers(self.named, NUMPY)))
        return DynamicsEquation(self.family, numbers, self.send, *dynamics.bounds(self.named))

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
        if self.family == "ltmd":
            return LTMD_LEAK
        if self.charge not in ("leak_multiply", "leak_multiply_late"):
            return self.tau
        return 1.0 if self.family == "if" else 1.0 - 1.0 / self.tau


_COMPLEMENTARY: Mapping[str, Any] = {
    "decay_input": False,
    "surrogate": "rectangle",
    "surrogate_alpha": 1.0,
    "detach_reset": False,  # their modules have it and do not read it
}
SOUL_NEURONS: Mapping[NeuronFamily, NeuronSpec] = {
    "lif": NeuronSpec("lif"),
    "plif": NeuronSpec("plif", decay_input=False),
    "if": NeuronSpec("if"),
    "clif": NeuronSpec("clif", **_COMPLEMENTARY),
    "glif": NeuronSpec("glif", detach_reset=False),
    "ielif": NeuronSpec("ielif"),
    "ilif": NeuronSpec("ilif", **_COMPLEMENTARY),
    "intlif": NeuronSpec("intlif", tau=4.0, settings=(("carry", 0.0),)),
    "izhikevich": NeuronSpec(
        "izhikevich", surrogate="sigmoid", surrogate_alpha=4.0, detach_reset=False
    ),
    "ltmd": NeuronSpec("ltmd", surrogate="rectangle", surrogate_alpha=1.0, detach_reset=False),
    "psn": NeuronSpec("psn"),
    "rplif": NeuronSpec("rplif"),
    "stbif": NeuronSpec("stbif", fire="ge"),
    "tlif": NeuronSpec("tlif", settings=(("carry", 0.0),)),
}
"""Each neuron as Soul sets it (soul/config/neuron/*.yaml): what flags that are not given stand for.
Soul has no IF; its threshold, reset and surrogate are LIF's. Its INTLIF and TLIF take all steps of
a sequence for one, so that no membrane is carried from step to step."""


def constant_text(value: object) -> str:
    """A neuron's constant as people write it: 2, yes, none (soft reset), gt."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return "none"
    return f"{value:g}" if isinstance(value, float) else str(value)
