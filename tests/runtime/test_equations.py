"""One step of every charge and reset, to the last bit, against the definition in `naive`."""

from typing import get_args

import naive
import numpy as np
import pytest
import torch

from soul_deploy.runtime.equations import ChargeForm, NeuronEquation

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
