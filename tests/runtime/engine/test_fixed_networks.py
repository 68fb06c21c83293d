"""Fixed-point networks: every population, membrane and score equals the naive twin's integers."""

import itertools

import fixed_events
import numpy as np
import pytest

from soul_deploy.base import Array
from soul_deploy.base.errors import ValidityError
from soul_deploy.runtime.engine.inputs import by_step
from soul_deploy.runtime.engine.network import Network
from soul_deploy.runtime.format.network import EventNetwork
from soul_deploy.runtime.plan.forms import possible_forms

MAKERS = {"chain": fixed_events.chain, "branches": fixed_events.branches}


def expected(network: EventNetwork, x: Array) -> tuple[dict[str, Array], Array]:
    """By population (T, B, ...), and scores; x (B, ...) or (T, B, ...)."""
    static = x.ndim == len(network.input_shape) + 1
    samples = x[:, None] if static else x.swapaxes(0, 1)
    found = [fixed_events.read(network, sample) for sample in samples]
    spikes = {}
    for layer in network.populations:
        channels = layer.out_shape[0]
        maps = np.stack([held[layer.name] for held, _ in found])
        spikes[layer.name] = by_step(maps.reshape(*maps.shape[:2], -1, channels), layer.out_shape)
    return spikes, np.stack([scores for _, scores in found])


def require_equal(running: Network, x: Array) -> None:
    spikes, scores = expected(running.events, x)
    found = running.run_recorded(x)
    for name, wanted in spikes.items():
        np.testing.assert_array_equal(found.spikes[name], wanted, err_msg=name)
        assert wanted.any() and not wanted.all(), f"{name} says nothing"
    np.testing.assert_array_equal(found.logits, scores)
    np.testing.assert_array_equal(running.run(x), scores)
    steps = running.run_steps(x)
    assert steps.shape == (running.time_steps, *scores.shape)


def all_forms(network: EventNetwork) -> list[dict[str, str]]:
    """Each form of each layer at least once."""
    options = {layer.name: possible_forms(layer) for layer in network.projected}
    rows = itertools.zip_longest(*options.values())
    return [
        {name: form or options[name][0] for name, form in zip(options, row, strict=True)}
        for row in rows
    ]


@pytest.mark.parametrize("steps", [1, 4, 5])
@pytest.mark.parametrize("make", MAKERS)
def test_integers_equal_the_twin_in_every_form(make: str, steps: int) -> None:
    network, drawn = MAKERS[make](steps, steps)
    for forms in all_forms(network):
        require_equal(Network(network, 1, forms=forms), drawn.inputs(2))
        require_equal(Network(network, 1, forms=forms), drawn.inputs(2, steps=steps))


@pytest.mark.parametrize("make", MAKERS)
def test_threads_batches_and_streams_change_no_integer(make: str) -> None:
    network, drawn = MAKERS[make](7)
    x, moving = drawn.inputs(5), drawn.inputs(2, steps=4)
    _, scores = expected(network, x)
    for threads in (1, 2, 3, 4):
        running = Network(network, threads)
        np.testing.assert_array_equal(running.run(x), scores)
        np.testing.assert_array_equal(running.run(x[:1]), scores[:1])
    running = Network(network, 1)
    by_steps = running.run_steps(x)
    streamed = [running.step(x if t == 0 else None) for t in range(4)]
    np.testing.assert_array_equal(np.stack(streamed), by_steps)
    running.reset()
    streamed = [running.step(frame) for frame in moving]
    np.testing.assert_array_equal(np.stack(streamed), running.run_steps(moving))


@pytest.mark.parametrize("over_time", ["mean", "sum", "last", "max"])
def test_scores_are_integers_until_one_multiplication(over_time: str) -> None:
    network, drawn = fixed_events.branches(3)
    network = fixed_events.with_readout(network, over_time=over_time)
    require_equal(Network(network, 1), drawn.inputs(3))


def test_pixels_lose_their_channels_zero() -> None:
    network, drawn = fixed_events.chain(1)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 9, 10)).astype(np.uint8)
    zero = np.array(drawn.integers.zero, np.int16).reshape(3, 1, 1)
    running = Network(network, 1)
    np.testing.assert_array_equal(running.run(pixels), running.run(pixels - zero))
    with pytest.raises(ValidityError, match="fixed-point"):
        running.run(pixels / np.float32(255))
