"""The engine `scipy-csr`: the same scores as the event runtime, on exact networks to the bit."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from chains import ChainSpec, build, chains, images, random_neuron_masks
from deployed import SHAPE, make_files
from hypothesis import given, settings
from hypothesis import strategies as st
from residual import ResidualSpec, masked, residual_images, residual_model, residuals

from soul_deploy.base import Array
from soul_deploy.base.errors import ValidityError
from soul_deploy.export.event.build import build_event_network
from soul_deploy.runtime.bench.scipy_engine import ScipyEngine, pool, product_of
from soul_deploy.runtime.engine.network import Network
from soul_deploy.runtime.format.network import (
    ConvSynapses,
    DenseRows,
    EventNetwork,
    PoolLayer,
    SparseRows,
)


def scores(network: EventNetwork, x: Array) -> Array:
    engine = ScipyEngine(Path("none"), 1)
    engine.prepare(network)
    return engine.infer(x)


@given(chains(dyadic=True), st.booleans(), st.booleans())
@settings(max_examples=30)
def test_chains_with_strides_groups_and_dead_neurons(
    spec: ChainSpec, sequence: bool, dead: bool
) -> None:
    model, x = build(spec), images(spec)
    if dead:
        model = replace(model, neuron_masks=random_neuron_masks(model, spec.seed))
    if sequence:
        x = torch.stack([x.roll(t, dims=-1) for t in range(spec.time_steps)])
    network = build_event_network(model)
    np.testing.assert_array_equal(scores(network, x.numpy()), Network(network).run(x.numpy()))


@given(residuals(dyadic=True), st.booleans())
@settings(max_examples=20)
def test_residual_networks(spec: ResidualSpec, neurons: bool) -> None:
    model = masked(residual_model(spec), spec.seed, neurons=neurons)
    x, network = residual_images(spec).numpy(), build_event_network(model)
    np.testing.assert_array_equal(scores(network, x), Network(network).run(x))


def test_a_grouped_convolution_by_hand() -> None:
    """Two groups of one channel, kernel (1, 2), stored mirrored; the right border sees a zero."""
    weight = np.array([[[[1.0], [10.0]]], [[[2.0], [20.0]]]], np.float32)
    synapses = ConvSynapses(
        (2, 1, 2),
        (2, 1, 2),
        DenseRows(weight),
        np.array([0.5, 0.0], np.float32),
        kernel=(1, 2),
        stride=(1, 2),
        padding=(0, 1),
        dilation=(1, 1),
        groups=2,
        reach=(1, 2),
    )
    values = np.array([3, 5, 7, 11], np.float32)  # channel 0: 3, 7; channel 1: 5, 11
    # The kernels are (10, 1) and (20, 2); they stand at columns -1 and 1.
    expected = [1 * 3 + 0.5, 2 * 5, 10 * 7 + 0.5, 20 * 11]
    assert product_of(synapses).currents(values).tolist() == expected
    sparse = SparseRows(
        np.arange(5, dtype=np.uint32), np.array([0, 0, 1, 1], np.uint32), weight.reshape(-1)
    )
    alike = replace(synapses, rows=sparse)
    assert product_of(alike).currents(values).tolist() == expected


def test_padding_never_is_the_maximum() -> None:
    layer = PoolLayer("pool", "input", (1, 2, 2), (1, 2, 2), (2, 2), (2, 2), (1, 1))
    values = np.array([-1, -2, -3, -4], np.float32)
    assert pool(layer, values, analog=True).tolist() == [-1, -2, -3, -4]
    assert pool(layer, np.zeros(4, np.float32), analog=False).tolist() == [0, 0, 0, 0]


def test_another_shape_is_refused(tmp_path: Path) -> None:
    engine = ScipyEngine(make_files(tmp_path).compact_event, 1)
    engine.load()
    assert engine.infer(np.zeros((2, *SHAPE), np.float32)).shape == (2, 4)
    with pytest.raises(ValidityError, match="this network takes"):
        engine.infer(np.zeros((2, 1, 8, 10), np.float32))
