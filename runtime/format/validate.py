"""Checks of all assumptions of the event runtime; kernels index without checks."""

import math
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from soul_deploy.base import Array, dispatch, errors
from soul_deploy.runtime.dynamics.equation import DYNAMICS, DynamicsEquation
from soul_deploy.runtime.dynamics.form import BINARY
from soul_deploy.runtime.dynamics.parallel import ParallelEquation
from soul_deploy.runtime.equations import (
    CHARGE,
    FIRE,
    FIXED_RESETS,
    MOST_SHIFT,
    Equation,
    FixedEquation,
    NeuronEquation,
)

Shape = tuple[int, ...]

MAX_NEURONS = (1 << 31) - 1
MAX_SYNAPSES = (1 << 32) - 1
MAX_SIDE = 1 << 16  # of a map
MAX_STEPS = (1 << 16) - 1
MAX_THREADS = 256  # of any engine
MAX_VALUES = 1 << 31  # steps · neurons of one layer
MAX_KERNEL_REACH = 1 << 20
MAX_GRADED = 255  # events carry their value in one byte

MAX_SIGNED = 127  # the same with a sign
MAX_MEMBRANE = 1 << 29  # of a fixed-point membrane

EdgeKind = Literal["spike", "graded", "signed", "analog"]
Edge = tuple[EdgeKind, int | None]
"""What travels, and the largest value (signed, analog: magnitude) where these are integers: analog
values are those in fixed-point networks.
"""


def edge_between(low: int, high: int) -> Edge:
    """The edge of integers from `low` to `high`."""
    if low < 0:
        return "signed", max(-low, high)
    return ("spike", 1) if high == 1 else ("graded", high)


def require_array(name: str, array: Array | None, dtype: npt.DTypeLike, shape: Shape) -> None:
    """Raise FileFormatError unless `array` has this dtype and shape and only finite values.

    None: an array that the layer does without.
    """
    if array is None:
        return
    errors.require(
        array.dtype == np.dtype(dtype) and array.shape == shape,
        f"{name} is {array.dtype}{array.shape}, expected {np.dtype(dtype)}{shape}",
    )
    errors.require(array.flags.c_contiguous, f"{name} is not contiguous")
    if array.dtype.kind == "f":
        errors.require(np.isfinite(array).all(), f"{name} holds values that are not finite")


def require_weights(name: str, array: Array | None, shape: Shape) -> None:
    """As `require_array`, of float32 or of int8 from -127 to 127."""
    if array is None or array.dtype != np.int8:
        require_array(name, array, np.float32, shape)
        return
    require_array(name, array, np.int8, shape)
    errors.require(array.min(initial=0) >= -MAX_SIGNED, f"{name} hold -128; int8 from -127 to 127")


def require_shape(name: str, shape: Shape) -> None:
    """Raise unless `shape` is (C, H, W) or (N,) with positive sides and a bounded size."""
    errors.require(len(shape) in (1, 3), f"{name} {shape} is neither (C, H, W) nor (N,)")
    errors.require(min(shape) >= 1, f"{name} {shape} has an empty side")
    if len(shape) == 3 and max(shape[1:]) > MAX_SIDE:
        raise errors.LimitError(f"{name} {shape} is a map of more than {MAX_SIDE} positions a side")
    if math.prod(shape) > MAX_NEURONS:
        raise errors.LimitError(
            f"{name} {shape} is {math.prod(shape)} neurons; the limit is {MAX_NEURONS}"
        )


def require_pair(name: str, pair: tuple[int, int], low: int) -> None:
    """Raise FileFormatError unless `pair` is two numbers from `low` to MAX_KERNEL_REACH."""
    errors.require(
        len(pair) == 2 and all(low <= side <= MAX_KERNEL_REACH for side in pair),
        f"{name} {pair} must be two numbers from {low} to {MAX_KERNEL_REACH}",
    )


@dispatch.operation_table(Equation)
def require_neuron(neuron: Equation, name: str) -> None:
    """Raise FileFormatError unless the equation has known forms and usable float32 numbers."""
    raise require_neuron.unknown(neuron)


@require_neuron.on(DynamicsEquation)
def _dynamics(neuron: DynamicsEquation, name: str) -> None:
    known = ", ".join(DYNAMICS)
    errors.require(neuron.family in DYNAMICS, f"{name}: neuron {neuron.family!r}; known: {known}")
    family = neuron.dynamics
    valid = BINARY if family.rules == BINARY else family.rules
    errors.require(
        neuron.send in valid,
        f"{name}: {neuron.family} sends by {', '.join(valid)}, not {neuron.send!r}",
    )
    count = len(family.constants)
    errors.require(
        len(neuron.constants) == count,
        f"{name}: {len(neuron.constants)} numbers of {neuron.family}, which has {count}",
    )
    for called, constant in neuron.named.items():
        with np.errstate(over="ignore"):
            finite = np.isfinite(np.asarray(constant, np.float32)).all()
        errors.require(finite, f"{name}: the neuron's {called} is not finite in float32")
    binary = neuron.send in BINARY
    errors.require(
        (neuron.low, neuron.high) == (0, 1) if binary else neuron.low <= 0 < neuron.high,
        f"{name}: {neuron.family} that sends {neuron.low} to {neuron.high}",
    )
    require_edge(name, *edge_between(neuron.low, neuron.high))


@require_neuron.on(ParallelEquation)
def _parallel(neuron: ParallelEquation, name: str) -> None:
    errors.require(neuron.fire in FIRE, f"{name}: fire {neuron.fire!r}; known: {', '.join(FIRE)}")
    steps = neuron.bias.size
    errors.require(1 <= steps <= MAX_STEPS, f"{name}: a neuron of {steps} steps")
    require_array(f"{name}: neuron bias", neuron.bias, np.float32, (steps,))
    require_array(f"{name}: neuron weight", neuron.weight, np.float32, (steps, steps))


@require_neuron.on(FixedEquation)
def _fixed(neuron: FixedEquation, name: str) -> None:
    """Thresholds are above rest, the product of the leak and every sum fit 32 bits."""
    n, one = neuron, np.int64(neuron.fire == "ge")
    errors.require(n.fire in FIRE, f"{name}: fire {n.fire!r}; known: {', '.join(FIRE)}")
    known = ", ".join(FIXED_RESETS)
    errors.require(n.reset in FIXED_RESETS, f"{name}: reset {n.reset!r}; known: {known}")
    errors.require(
        0 <= n.shift <= MOST_SHIFT and 0 <= n.multiplier <= 1 << n.shift,
        f"{name}: a leak of {n.multiplier} / 2^{n.shift}; the shift is 0 to {MOST_SHIFT}, the "
        "quotient from 0 to 1",
    )
    errors.require(
        -MAX_MEMBRANE <= n.lowest <= 0 < n.highest < MAX_MEMBRANE,
        f"{name}: a membrane from {n.lowest} to {n.highest}; 0 lies between, both within 2^29",
    )
    most = max(-n.lowest, n.highest) * n.multiplier
    errors.require(
        most < 1 << 31,
        f"{name}: a membrane from {n.lowest} to {n.highest} times {n.multiplier} exceeds 32 bits",
    )
    for called, number in (("threshold", n.threshold), ("subtract", n.subtract)):
        errors.require(
            number.dtype == np.int32 and number.ndim <= 1 and number.size > 0,
            f"{name}: {called} is {number.dtype}{number.shape}, expected int32 () or (C,)",
        )
    errors.require(
        (n.threshold >= one).all(),
        f"{name}: a threshold of {n.threshold.min()}, at which a neuron at rest fires",
    )
    errors.require(
        (n.subtract >= 0).all() and (n.subtract <= -n.lowest).all(),
        f"{name}: a spike takes off {n.subtract.min()} to {n.subtract.max()}; it is from 0 to "
        f"{-n.lowest}, the membrane's lowest value without its sign",
    )


@require_neuron.on(NeuronEquation)
def _leaky(neuron: NeuronEquation, name: str) -> None:
    errors.require(
        neuron.charge in CHARGE, f"{name}: charge {neuron.charge!r}; known: {', '.join(CHARGE)}"
    )
    errors.require(neuron.fire in FIRE, f"{name}: fire {neuron.fire!r}; known: {', '.join(FIRE)}")
    numbers = [neuron.constant, neuron.v_threshold, neuron.rest, neuron.target]
    with np.errstate(over="ignore"):
        errors.require(
            np.isfinite(np.array(numbers, np.float32)).all(),
            f"{name}: neuron numbers {numbers} are not finite in float32",
        )
    threshold, rest = np.float32(neuron.v_threshold), np.float32(neuron.rest)
    errors.require(threshold > 0, f"{name}: v_threshold {neuron.v_threshold} is not above 0")
    errors.require(
        rest < threshold,
        f"{name}: v_reset {neuron.v_reset} is not below v_threshold {neuron.v_threshold}",
    )
    errors.require(
        neuron.v_subtract is None or (neuron.v_reset is None and np.float32(neuron.target) >= 0),
        f"{name}: v_subtract {neuron.v_subtract} with v_reset {neuron.v_reset}; it is 0 or more, "
        "and for soft reset alone",
    )
    errors.require(np.float32(neuron.constant) != 0, f"{name}: the neuron's constant is 0")


def require_numbers(neuron: Equation, name: str, shape: Shape) -> None:
    """Raise FileFormatError for numbers that neurons of this shape cannot have."""
    if isinstance(neuron, FixedEquation):
        for called, number in (("threshold", neuron.threshold), ("subtract", neuron.subtract)):
            errors.require(
                number.shape in ((), shape[:1]) and number.flags.c_contiguous,
                f"{name}: {called} is {number.dtype}{number.shape}, for neurons {shape}",
            )
    if not isinstance(neuron, DynamicsEquation):
        return
    for called, array in neuron.arrays.items():
        steps, *sides = array.shape or (0,)
        fits = len(sides) == len(shape) and all(
            own in (1, side) for own, side in zip(sides, shape, strict=True)
        )
        errors.require(
            array.dtype == np.float32 and array.flags.c_contiguous and fits and steps >= 1,
            f"{name}: {called} is {array.dtype}{array.shape}, for neurons {shape}",
        )
        errors.require(
            steps in (1, neuron.steps), f"{name}: {called} has {steps} steps, others {neuron.steps}"
        )
        errors.require(
            called not in neuron.dynamics.start,
            f"{name}: {called}, which all neurons start with, is {array.shape}; it is one number",
        )
    _require_finite_step(neuron, name)


def _require_finite_step(neuron: DynamicsEquation, name: str) -> None:
    """A step at rest, without input, gives numbers: nothing is divided by 0."""
    sides = np.broadcast_shapes((1,), *(array.shape[1:] for array in neuron.arrays.values()))
    nothing = np.zeros(sides, np.float32)
    rest = tuple(nothing + np.float32(number) for number in neuron.start)
    with np.errstate(all="ignore"):
        after = [neuron.advance(rest, nothing, step)[1] for step in range(neuron.steps or 1)]
    errors.require(
        all(np.isfinite(values).all() for state in after for values in state),
        f"{name}: {neuron.family} with {_written(neuron)} gives no numbers, even at rest",
    )


def _written(neuron: DynamicsEquation) -> str:
    """Its constants as a reader sees them; arrays by their shape."""
    numbers = {
        called: str(number.shape) if isinstance(number, np.ndarray) else f"{number:g}"
        for called, number in neuron.named.items()
    }
    return ", ".join(f"{name} {number}" for name, number in numbers.items())


def require_edge(name: str, edge: EdgeKind, bound: int | None) -> None:
    """Raise FileFormatError for an edge that cannot be, LimitError for values beyond a byte."""
    errors.require(edge in get_args(EdgeKind), f"{name}: edge {edge!r}")
    some = bound is not None and bound >= 1
    valid = {"spike": bound == 1, "analog": bound is None or some}.get(edge, some)
    errors.require(valid, f"{name}: a {edge} edge with bound {bound}")
    if edge == "analog":
        return
    most = MAX_SIGNED if edge == "signed" else MAX_GRADED
    if bound is not None and bound > most:
        raise errors.LimitError(f"{name}: values up to {bound}; an event carries at most {most}")
