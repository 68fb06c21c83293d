"""Neurons that run without a division compute the bits of those that divide."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from soul_deploy.runtime.equations import CHARGE, ChargeForm, NeuronEquation
from soul_deploy.runtime.kernels.neurons import update_kernel
from soul_deploy.runtime.kernels.quotients import MULTIPLYING, without_division
from soul_deploy.runtime.kernels.steps import form_of, numbers_of

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)


def neuron_of(charge: ChargeForm, constant: float, v_reset: float | None = 0.0) -> NeuronEquation:
    return NeuronEquation(charge, constant, 1.0, v_reset, "gt")


@given(
    st.sampled_from(sorted(MULTIPLYING)), st.integers(-120, 120), st.lists(FLOATS, min_size=1),
    st.lists(FLOATS, min_size=1), st.sampled_from([0.0, -0.25, 0.3]),
)  # fmt: skip
def test_the_bits_are_those_of_a_division(
    charge: ChargeForm, power: int, v: list[float], x: list[float], reset: float
) -> None:
    dividing = neuron_of(charge, 2.0**power, reset)
    multiplying = without_division(dividing)
    assert multiplying.charge == MULTIPLYING[charge]
    potential, arriving = np.meshgrid(np.array(v, np.float32), np.array(x, np.float32))
    found = []
    for neuron in (dividing, multiplying):
        constant, rest = np.float32(neuron.constant), np.float32(neuron.rest)
        threshold = np.float32(neuron.v_threshold)
        with np.errstate(all="ignore"):
            found.append(CHARGE[neuron.charge](potential, arriving, constant, rest, threshold))
    np.testing.assert_array_equal(*found)  # 0 and -0 are equal


@pytest.mark.parametrize(
    "neuron",
    [
        *(neuron_of("soul_lif", constant) for constant in (3.0, 2.0000002, 1.9999999, 2.0**-128)),
        *(neuron_of("decay_divide", 1.5), neuron_of("decay_multiply", 0.5)),
        *(neuron_of("integrate", 2.0), neuron_of("soul_lif_decay", 2.0**127)),
    ],
)
def test_others_run_as_they_are(neuron: NeuronEquation) -> None:
    """Another constant, a factor that is no normal number, an equation without a division."""
    assert without_division(neuron) is neuron


@pytest.mark.parametrize("charge", sorted(MULTIPLYING))
@pytest.mark.parametrize("v_reset", [0.0, None, -0.5])
def test_kernels_fire_as_the_equation_says(charge: ChargeForm, v_reset: float | None) -> None:
    neuron, rng = neuron_of(charge, 2.0, v_reset), np.random.default_rng(5)
    current = rng.normal(0.5, 1.0, (6, 300)).astype(np.float32)
    v, spikes = np.empty(300, np.float32), np.zeros((6, 300), np.uint8)
    update_kernel(form_of(neuron), 0)(current, numbers_of(neuron, 1), False, v, spikes, 0, 300)
    state = np.full(300, neuron.rest, np.float32)
    for t, arriving in enumerate(current):
        numbers = np.float32(2.0), np.float32(neuron.rest), np.float32(neuron.v_threshold)
        charged = CHARGE[charge](state, arriving, *numbers)
        fires = (charged > np.float32(1.0)).astype(np.float32)
        np.testing.assert_array_equal(spikes[t], fires)
        kept = np.float32(neuron.target)
        state = charged - fires * (charged if v_reset is not None else kept)
        state = state + fires * kept if v_reset is not None else state
    assert 0 < spikes.mean() < 1
    np.testing.assert_array_equal(v, state)
