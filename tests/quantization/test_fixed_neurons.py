"""One step of a fixed-point neuron: cases computed by hand; three implementations agree."""

import naive_fixed
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from soul_deploy import NeuronSpec
from soul_deploy.base import errors
from soul_deploy.nn import fixed
from soul_deploy.quantization import neurons as real
from soul_deploy.runtime.equations import FIXED_RESETS, leak_numbers

WIDE = {"low": -32768, "high": 32767}


def spec(reset: str = "hard", fire: str = "gt", **numbers: int) -> NeuronSpec:
    number = list[str](FIXED_RESETS).index(reset)
    settings = {"multiplier": 1, "shift": 1, **WIDE, "reset": number}
    tensors = ["threshold", *(["subtract"] if reset in ("soft", "late") else []), "unit"]
    return NeuronSpec(
        "fixed",
        fire=fire,  # type: ignore[arg-type]
        settings=tuple((n, float(v)) for n, v in (settings | numbers).items()),
        tensors=tuple((name, "layer") for name in tensors),
    )


def run(
    neuron: NeuronSpec, currents: list[int], threshold: int, subtract: int = 0
) -> tuple[list[int], list[int]]:
    """Spikes and membranes after each step, equal in PyTorch, the equation and the naive twin."""
    held = {"threshold": np.array(threshold, np.int32), "unit": np.array(1, np.float32)}
    held |= (
        {"subtract": np.array(subtract, np.int32)} if dict(neuron.tensors).get("subtract") else {}
    )
    tensors = {name: torch.from_numpy(array).double() for name, array in held.items()}
    membranes: list[int] = []
    sent = fixed.simulate(
        neuron, tensors, torch.tensor(currents).double().reshape(-1, 1, 1), len(currents),
        static=False, observe=lambda t, s, v: membranes.append(int(v)),
    )  # fmt: skip
    spikes = [int(s) for s in sent.flatten()]
    equation = fixed.deployed(neuron, {n: torch.from_numpy(a) for n, a in held.items()})
    state, told = (np.zeros(1, np.int32),), []
    for x in currents:
        spike, state = equation.advance(state, np.array([x], np.int32))
        told.append((int(spike[0]), int(state[0][0])))
    naive, last = naive_fixed.population(neuron, held, np.array(currents).reshape(-1, 1, 1))
    assert told == list(zip(spikes, membranes, strict=True))
    assert naive.flatten().tolist() == spikes and int(last[0, 0]) == membranes[-1]
    return spikes, membranes


@pytest.mark.parametrize(
    ("neuron", "currents", "threshold", "subtract", "spikes", "membranes"),
    [
        # tau 2 is a shift: 7 -> 3 + 7 = 10, fires above 9, back to 0
        (spec(), [7, 7, 7], 9, 0, [0, 1, 0], [7, 0, 7]),
        # below 0 the floor is towards minus infinity: -1 stays -1, -7 -> -4
        (spec(), [-7, 0, 0, 0, 0], 9, 0, [0] * 5, [-7, -4, -2, -1, -1]),
        # tau 3: 21845 / 2^15 of 300 is 199.99, of -300 it is -200
        (spec(multiplier=21845, shift=15), [300, 0], 400, 0, [0, 0], [300, 199]),
        (spec(multiplier=21845, shift=15), [-300, 0], 400, 0, [0, 0], [-300, -200]),
        # tau 4
        (spec(multiplier=3, shift=2), [10, 0, 0], 99, 0, [0, 0, 0], [10, 7, 5]),
        # at the threshold: gt is silent, ge fires
        (spec(), [9], 9, 0, [0], [9]),
        (spec(fire="ge"), [9], 9, 0, [1], [0]),
        # no leak, soft reset: 8 + 8 - 9, 7 + 8 - 9, ...
        (spec("soft", multiplier=1, shift=0), [8, 8, 8], 9, 9, [0, 1, 1], [8, 7, 6]),
        # a step later: h stays, then comes off behind the leak
        (spec("late"), [12, 0, 0], 9, 9, [1, 0, 0], [12, -3, -2]),
        (spec("late", multiplier=1, shift=0), [12, 10, 0], 9, 9, [1, 1, 0], [12, 13, 4]),
        (spec("none", multiplier=1, shift=0), [12, 10, -20], 9, 0, [1, 1, 0], [12, 22, 2]),
        # saturation at both ends; what fires at the upper end is reset from there
        (spec("none", multiplier=1, shift=0), [-30000, -30000, 5], 9, 0, [0] * 3,
         [-30000, -32768, -32763]),
        (spec("soft", multiplier=1, shift=0), [30000, 30000], 32000, 32000, [0, 1], [30000, 767]),
        # the charge is clamped behind the late reset, not in front of it
        (spec("late", multiplier=1, shift=0), [32767, 32767], 9, 32767, [1, 1], [32767, 32767]),
    ],
)  # fmt: skip
def test_steps_computed_by_hand(
    neuron: NeuronSpec, currents: list[int], threshold: int, subtract: int, spikes: list[int],
    membranes: list[int],
) -> None:  # fmt: skip
    assert run(neuron, currents, threshold, subtract) == (spikes, membranes)


@st.composite
def drawn(draw: st.DrawFn) -> tuple[NeuronSpec, list[int], int, int]:
    bits = draw(st.integers(15, 29))
    shift = draw(st.integers(0, min(15, 30 - bits)))
    multiplier = draw(st.integers(0, 2**shift - 1)) if shift else 1
    numbers = {"low": -(2**bits), "high": 2**bits - 1, "multiplier": multiplier, "shift": shift}
    reset, fire = draw(st.sampled_from(FIXED_RESETS)), draw(st.sampled_from(("gt", "ge")))
    most = draw(st.sampled_from((20, 2**bits - 1)))
    currents = draw(st.lists(st.integers(-min(most, 2**29), min(most, 2**29)), min_size=1))
    threshold, subtract = draw(st.integers(1, most)), draw(st.integers(0, most))
    return spec(reset, fire, **numbers), currents, threshold, subtract


@given(drawn())
def test_pytorch_equation_and_naive_twin_agree(
    case: tuple[NeuronSpec, list[int], int, int],
) -> None:
    neuron, currents, threshold, subtract = case
    spikes, membranes = run(neuron, currents, threshold, subtract)
    low, high = (int(dict(neuron.settings)[name]) for name in ("low", "high"))
    assert all(low <= u <= high for u in membranes) and set(spikes) <= {0, 1}


@pytest.mark.parametrize(
    ("numbers", "told"),
    [
        ({"low": -32767}, "a membrane from"),
        ({"high": 2**30 - 1, "low": -(2**30)}, "a membrane from"),
        ({"shift": 16}, "a leak of"),
        ({"shift": 15, "low": -(2**16), "high": 2**16 - 1}, "p \\+ k is at most 30"),
        ({"multiplier": 2}, "a leak of"),
        ({"multiplier": -1}, "a leak of"),
    ],
)
def test_numbers_outside_of_the_definition_are_refused(numbers: dict[str, int], told: str) -> None:
    with pytest.raises(errors.UsageError, match=told):
        spec("hard", "gt", **numbers)


@pytest.mark.parametrize(("reset", "told"), [(1.0, "subtract is a tensor"), (4.0, "reset 4")])
def test_a_reset_has_what_it_takes_off(reset: float, told: str) -> None:
    with pytest.raises(errors.UsageError, match=told):
        NeuronSpec("fixed", settings=(("reset", reset),))


def test_a_leak_is_exact_where_it_can_be() -> None:
    assert leak_numbers(1.0, 15) == (1, 0)
    assert leak_numbers(0.5, 15) == (1, 1)
    assert leak_numbers(0.75, 15) == (3, 2)
    assert leak_numbers(0.0, 15) == (0, 0)
    assert leak_numbers(1 - 1 / 3, 15) == (21845, 15)
    assert leak_numbers(1 - 1 / 3, 25) == (21, 5)  # p + k is at most 30
    assert leak_numbers(0.9999999, 15) == (32767, 15)


@given(
    st.floats(0.01, 100), st.floats(0.001, 10), st.sampled_from(("gt", "ge")), st.integers(-9, 9)
)
def test_an_integer_threshold_decides_as_the_real_one(
    height: float, unit: float, fire: str, away: int
) -> None:
    neuron = real.RealNeuron(0.5, 1.0, float(np.float32(height)), fire, "hard")  # type: ignore[arg-type]
    threshold = int(real.threshold_of(neuron, np.array(unit)))
    h = threshold + away
    above, whole = h > neuron.height / unit, h > threshold
    if fire == "ge":
        above, whole = h >= neuron.height / unit, h >= threshold
    assert above == whole
