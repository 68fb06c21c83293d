"""What a neuron family consists of, and what an engine must know to run it.

A family is written once, as functions of values and of the few operations beyond + - · / that an
engine has to provide (`Operations`). numpy, numba, PyTorch and the ONNX exporter call the same
functions with their own values; so does the rounding analysis of verification. The families' order
of operations is that of the code that they come from: another order rounds differently.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, get_args

Value: TypeAlias = Any  # a float32 scalar under numba, an array, a tensor, a value of an ONNX graph
State: TypeAlias = tuple[Value, ...]
Constants: TypeAlias = tuple[Value, ...]

SendRule = Literal["gt", "ge", "round", "round_up"]
"""What a neuron sends, of its potential p:

gt, ge     1 where p > level, or p >= level; else 0
round      p between low and high, to the nearest integer, ties to the even one
round_up   the same, ties upwards: floor(p + 0.5)
"""
SEND_RULES: tuple[SendRule, ...] = get_args(SendRule)
BINARY: tuple[SendRule, ...] = ("gt", "ge")


@dataclass(frozen=True, eq=False)
class Operations:
    """What an engine computes with; functions of its values.

    choose: (s, a, b) -> a where s is 1, b where it is 0 or below.
    held: s -> s, through which gradients do not go back where the reset is detached. `choose` does
    the same of its own; whatever else reads s passes gradients on, as the sources do.
    above: (a, b) -> 1 where a > b, else 0; without a gradient.
    send: for each rule a function (potential, level, low, high) -> what is sent.
    """

    sigmoid: Callable[[Value], Value]
    exp: Callable[[Value], Value]
    relu: Callable[[Value], Value]
    minimum: Callable[[Value, Value], Value]
    choose: Callable[[Value, Value, Value], Value]
    held: Callable[[Value], Value]
    above: Callable[[Value, Value], Value]
    send: Mapping[SendRule, Callable[[Value, Value, Value, Value], Value]]


@dataclass(frozen=True)
class Parts:
    """A family's step in three functions.

    charge  (x, state, constants) -> the state before anything is sent
    decide  (state, constants) -> (potential, level), from which the rule says what is sent
    settle  (what was sent, state, constants) -> the state after it
    """

    charge: Callable[[Value, State, Constants], State]
    decide: Callable[[State, Constants], tuple[Value, Value]]
    settle: Callable[[Value, State, Constants], State]


Granularity = Literal[
    "layer", "channel", "neuron", "step", "step_channel", "step_pair", "step_column"
]
"""What there is one number per: the tensor is (), (C,), (C, H, W) or (N,), (T,), (T, C), (T, T) or
(T, 1)."""
GRANULARITIES: tuple[Granularity, ...] = get_args(Granularity)

Settings: TypeAlias = Mapping[str, Any]
"""A neuron's numbers as people give them: fields of NeuronSpec, and the family's own `settings`."""


def _as_set(settings: Settings, name: str, steps: int) -> tuple[float, float]:
    """A tensor that begins with the setting of its name."""
    return settings[name], settings[name]


@dataclass(frozen=True, eq=False)
class Dynamics:
    """A neuron family.

    source     the code (and paper) whose arithmetic it is
    state      names of what a neuron keeps between steps, the membrane potential first
    constants  names of its numbers, in the order in which `parts` takes them
    start      of each state variable the constant, or the number, that it starts with
    parts      the step, for the operations of an engine
    settings   numbers that only this family has, with their defaults
    reads      the fields of NeuronSpec that decide what it computes
    resolve    (settings, operations) -> constants, by name. Settings that the state dict holds are
               values of the operations' engine, (T or 1, C or 1, ...): they broadcast
    check      settings -> what is wrong with them, or None
    bounds     settings -> (least, largest) integer that is sent
    rules      how it can send; the first is the default
    tensors    settings that may be tensors of the state dict, `<population>.<setting>`; those that
               always are, with what they are one per
    initial    (settings, name, T) -> (low, high), between which such a tensor is drawn evenly
    unit       settings -> the number that one unit of what is sent stands for, where the family's
               code sends fractions
    """

    name: str
    source: str
    state: tuple[str, ...]
    constants: tuple[str, ...]
    start: tuple[str | float, ...]
    parts: Callable[[Operations], Parts]
    resolve: Callable[[Settings, Operations], Mapping[str, Value]]
    settings: Mapping[str, float]
    reads: tuple[str, ...]
    check: Callable[[Settings], str | None] = lambda settings: None
    bounds: Callable[[Settings], tuple[int, int]] = lambda settings: (0, 1)
    rules: tuple[SendRule, ...] = BINARY
    tensors: Mapping[str, "Granularity | None"] = field(default_factory=dict)
    initial: Callable[[Settings, str, int], tuple[float, float]] = _as_set
    unit: Callable[[Settings], float] = lambda settings: 1.0

    def numbers(self, settings: Settings, operations: Operations) -> tuple[Value, ...]:
        """The constants in order."""
        resolved = self.resolve(settings, operations)
        return tuple(resolved[name] for name in self.constants)


def reset_constants(settings: Settings) -> dict[str, float]:
    """Constants of a neuron that is reset to v_reset, or, if that is None, by the threshold.

    After a spike the membrane is kept · v - taken; it begins at start.
    """
    threshold, reset = settings["v_threshold"], settings["v_reset"]
    hard = reset is not None
    return {
        "threshold": threshold,
        "kept": 0.0 if hard else 1.0,
        "taken": -reset if hard else threshold,
        "start": reset if hard else 0.0,
    }
