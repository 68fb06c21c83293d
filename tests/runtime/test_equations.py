"""One step of every charge and reset, to the last bit, against the definition in `naive`."""

from typing import get_args

import naive
import numpy as np
import pytest
import torch

from soul_deploy.runtime.equations import (
    FIXED_RESETS,
    ChargeForm,
    FireRule,
    FixedEquation,
    FixedReset,
    NeuronEquation,
)

F = np.float32


@pytest.mark.parametrize("reset", [0.0, -0.3, None])
@pytest.mark.parametrize("form", get_args(ChargeForm))
def test_the_membrane_has_the_bits_of_its_definition(form: ChargeForm, reset: float | None) -> None:
    """Forms that are equal on paper, such as x - (v - r) and x - v + r, round differently."""
    rng = np.random.default_rng(0)
    v, x = (rng.normal(0, 1, 2000).astype(F) for _ in range(2))
    threshold = 100.0  # it never fires
    if form == "leak_multiply_late":  # it has not fired now, though it did before
        threshold, x = 1.0, x - F(3.7)
        v = np.minimum(v, F(1.5))
    neuron = NeuronEquation(form, 1.7, threshold, reset, "gt")
    rest = F(neuron.rest)
    expected = np.array(
        [naive.charged(form, a, b, F(1.7), rest, F(threshold)) for a, b in zip(v, x, strict=True)]
    )
    spikes, found = neuron.step(v, x)
    assert found.dtype == F and not spikes.any()
    np.testing.assert_array_equal(found, expected)
    _, tensor = neuron.step(torch.from_numpy(v), torch.from_numpy(x))
    np.testing.assert_array_equal(tensor.numpy(), expected)


@pytest.mark.parametrize("reset", [0.0, -0.3, 0.2])
def test_a_membrane_is_at_its_reset_after_a_spike_however_far_it_went(reset: float) -> None:
    neuron = NeuronEquation("integrate", 1.0, 1.0, reset, "ge")
    x = (np.random.default_rng(0).random(1000) * 3 + 2).astype(F)
    spikes, v = neuron.step(np.full(1000, reset, F), x)
    assert spikes.all() and (v == F(reset)).all()


def test_a_soft_reset_takes_the_threshold_away_once() -> None:
    neuron = NeuronEquation("integrate", 1.0, 0.75, None, "ge")
    spikes, v = neuron.step(np.zeros(3, F), np.array([0.5, 0.75, 2.5], F))
    assert spikes.tolist() == [False, True, True] and v.tolist() == [0.5, 0.0, 1.75]


LEAKS = [(1, 0), (1, 1), (3, 2), (21845, 15), (29491, 15)]


@pytest.mark.parametrize("leak", LEAKS)
@pytest.mark.parametrize("reset", FIXED_RESETS)
@pytest.mark.parametrize("fire", ["gt", "ge"])
@pytest.mark.parametrize("bits", [15, 16])
def test_a_fixed_point_neuron_has_the_integers_of_its_definition(
    leak: tuple[int, int], reset: FixedReset, fire: FireRule, bits: int
) -> None:
    """Membranes of both signs, at the threshold, at both ends of their range and beyond it."""
    rng, (low, high) = np.random.default_rng(0), (-(2**bits), 2**bits - 1)
    threshold = rng.integers(1, 40, 5).astype(np.int32)
    neuron = FixedEquation(*leak, low, high, threshold, threshold - 1, fire, reset)
    currents = rng.integers(-60, 61, (12, 5, 40)).astype(np.int32)
    currents[:, :, -5:] = rng.integers(-(2**17), 2**17, (12, 5, 5))
    rule = {"multiplier": leak[0], "shift": leak[1], "low": low, "high": high}
    state: tuple[np.ndarray, ...] = (np.zeros((5, 40), np.int32),)
    fired, reached = 0, {0}
    for x in currents:
        before = state[0]
        spike, state = neuron.advance(state, x)
        for c, i in np.ndindex(5, 40):
            given = int(before[c, i]), int(x[c, i]), int(threshold[c]), int(threshold[c]) - 1
            expected = naive.fixed_step(*given, **rule, fire=fire, reset=reset)
            assert (int(spike[c, i]), int(state[0][c, i])) == expected
        fired, reached = fired + int(spike.sum()), reached | set(state[0].ravel().tolist())
    assert state[0].dtype == np.int32 and fired > 100 and low in reached


def test_fixed_point_neurons_are_equal_by_their_numbers() -> None:
    def neuron(threshold: object, fire: FireRule = "gt") -> FixedEquation:
        return FixedEquation(1, 1, -8, 7, np.array(threshold), np.array(2), fire, "soft")

    assert neuron([3, 4]) == neuron([3, 4]) and neuron([3, 4]) != neuron([3, 5])
    assert neuron(3) != neuron(3, "ge") and hash(neuron(3)) == hash(neuron(4))
