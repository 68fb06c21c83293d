"""Fixed-point networks: PyTorch and the naive twin give the same integers."""

from dataclasses import replace

import naive_fixed
import numpy as np
import pytest
import torch
from residual import calibrated

from soul_deploy import Model, NeuronSpec, create, ir
from soul_deploy.base import Array
from soul_deploy.data.given import images_for
from soul_deploy.model.model import ModelInfo, Normalization
from soul_deploy.quantize import network, units

NORM = Normalization((0.5, 0.4, 0.3), (0.25, 0.2, 0.3))


def pixels(shape: tuple[int, ...], seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def narrowed(graph: ir.SpikingGraph, share: int = 8) -> ir.SpikingGraph:
    """A network of convolutions with a share of its channels."""
    changed: dict[str, ir.Node] = {}
    for node in graph.of_type(ir.Convolution):
        first = graph.input.name in node.inputs
        inner = node.in_channels if first else node.in_channels // share
        changed[node.name] = replace(node, in_channels=inner, channels=node.channels // share)
    return graph.with_nodes(changed)


def zoo_model(name: str, neuron: NeuronSpec, side: int) -> tuple[Model, Array]:
    """A network of the zoo, narrow, that fires on the pixels."""
    shape = (3, side, side)
    made = create(name, input_shape=shape, classes=5, neuron=neuron, time_steps=3, hidden=64)
    graph, given = narrowed(made.graph), pixels((2, *shape))
    info = ModelInfo(normalization=NORM)
    images, _ = images_for(Model(graph, {}, info=info), given)
    return replace(calibrated(graph, images, 0), info=info), given


def integers(model: Model, choice: units.UnitChoice | None = None) -> Model:
    return network.integer_network(network.make_plan(model, choice or units.UnitChoice()))


def assert_same(model: Model, given: Array) -> naive_fixed.NaiveRun:
    """PyTorch's spikes, membranes and scores are the naive twin's; every population fires."""
    module, naive = model.module(), naive_fixed.run(model, given)
    images, _ = images_for(model, given)
    last: dict[str, Array] = {}
    sent: dict[str, list[Array]] = {name: [] for name in naive.spikes}

    def observe(name: str, t: int, spikes: torch.Tensor, membrane: torch.Tensor) -> None:
        last[name] = membrane.numpy()

    scores = module.forward_observed(images, observe)
    for name, spikes in module.record(images).spikes.items():
        np.testing.assert_array_equal(spikes.numpy(), naive.spikes[name], name)
        np.testing.assert_array_equal(last[name], naive.membranes[name], name)
    assert scores.dtype == torch.float32 and sent
    np.testing.assert_array_equal(scores.numpy(), naive.scores)
    return naive


@pytest.mark.parametrize(
    ("name", "neuron", "side"),
    [
        ("spikingvgg9", NeuronSpec("lif"), 16),
        ("sewresnet18", NeuronSpec("if", v_reset=None, fire="ge"), 16),
        ("spikingvgg5", NeuronSpec("plif", decay_input=False), 16),
    ],
)
@pytest.mark.parametrize("scale", units.SCALES)
def test_networks_of_the_zoo(name: str, neuron: NeuronSpec, side: int, scale: units.Scale) -> None:
    model, given = zoo_model(name, neuron, side)
    found = assert_same(integers(model, units.UnitChoice(scale=scale)), given)
    assert all(spikes.any() for spikes in found.spikes.values())
