"""Fixed-point networks: every population, membrane and score equals the naive twin's integers."""

import itertools

import fixed_events
import naive_events
import numpy as np
import pytest

from soul_deploy.base import Array
from soul_deploy.base.errors import ValidityError
from soul_deploy.base.pixel_rule import EVENT_KINDS
from soul_deploy.runtime.engine.inputs import by_step
from soul_deploy.runtime.engine.network import Network
from soul_deploy.runtime.format.network import EventNetwork
from soul_deploy.runtime.ops.counted_run import count_run
from soul_deploy.runtime.plan.forms import possible_forms

MAKERS = {"chain": fixed_events.chain, "branches": fixed_events.branches, "wide": fixed_events.wide}


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


CASES = [
    ("wide", 2, 4),
    ("chain", 0, 4),
    ("chain", 3, 2),
    ("chain", 5, 7),
    ("branches", 2, 4),
    ("branches", 6, 1),
]
"""Networks, seeds, steps: words of 8, 16 and 32 bits; every leak and reset."""


@pytest.mark.parametrize(("make", "seed", "steps"), CASES)
def test_integers_equal_the_twin_in_every_form(make: str, seed: int, steps: int) -> None:
    network, drawn = MAKERS[make](seed, steps)
    for forms in all_forms(network):
        require_equal(Network(network, 1, forms=forms), drawn.inputs(2))
        require_equal(Network(network, 1, forms=forms), drawn.inputs(2, steps=steps))


@pytest.mark.parametrize("make", ["chain", "branches"])
def test_threads_batches_and_streams_change_no_integer(make: str) -> None:
    network, drawn = MAKERS[make]({"chain": 0, "branches": 2}[make])
    x, moving = drawn.inputs(5), drawn.inputs(2, steps=4)
    _, scores = expected(network, x)
    for threads in (1, 2, 3, 4):
        running = Network(network, threads)
        np.testing.assert_array_equal(running.run(x), scores)
        np.testing.assert_array_equal(running.run(x[:1]), scores[:1])
    running = Network(network, 1)
    by_steps = running.run_steps(x)
    again = x if network.input_kind in EVENT_KINDS else None  # events are of one step
    streamed = [running.step(x if t == 0 else again) for t in range(4)]
    np.testing.assert_array_equal(np.stack(streamed), by_steps)
    running.reset()
    streamed = [running.step(frame) for frame in moving]
    np.testing.assert_array_equal(np.stack(streamed), running.run_steps(moving))


@pytest.mark.parametrize("over_time", ["mean", "sum", "last", "max"])
def test_scores_are_integers_until_one_multiplication(over_time: str) -> None:
    network, drawn = fixed_events.branches(2)
    network = fixed_events.with_readout(network, over_time=over_time)
    require_equal(Network(network, 1), drawn.inputs(3))


def test_counts_are_those_of_the_integers() -> None:
    """SynOps: what arrives, times the nonzero weights onto live neurons."""
    network, drawn = fixed_events.chain(0)
    x = drawn.inputs(2)
    found = count_run(Network(network, 1), x).counts
    held = [fixed_events.read(network, sample[None])[0] for sample in x]
    for layer in network.spiking_layers:
        synapses = (naive_events.matrix_of(layer.synapses) != 0).astype(np.int64)
        live = np.ones(synapses.shape[1]) if layer.updated is None else layer.updated
        arrived = sum(values[layer.source].sum(axis=0) for values in held)
        counts = found[layer.projection]
        if layer.edge == "spike":
            assert counts.synops == int(arrived @ (synapses @ live)) > 0
        assert counts.spikes_out > 0 and counts.neuron_updates == 2 * 4 * layer.neurons


def test_poolings_between_words_give_words() -> None:
    network, _ = fixed_events.chain(0)
    with_planes = Network(network, 1, forms={"b": "planes"})
    with with_planes._buffers(1, 1) as buffers:
        assert "pool" in buffers.words and "b" not in buffers.values


def test_pixels_lose_their_channels_zero() -> None:
    network, drawn = fixed_events.chain(0)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 9, 10)).astype(np.uint8)
    zero = np.array(drawn.integers.zero, np.int16).reshape(3, 1, 1)
    running = Network(network, 1)
    np.testing.assert_array_equal(running.run(pixels), running.run(pixels - zero))
    with pytest.raises(ValidityError, match="fixed-point"):
        running.run(pixels / np.float32(255))
