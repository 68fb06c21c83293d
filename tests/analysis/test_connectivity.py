"""Connectivity and penalty coefficients: hand-countable cases and published values."""

import numpy as np
import pytest

from soul_deploy import ir
from soul_deploy.analysis.connectivity import dense_synapses, measure_connectivity
from soul_deploy.base import Array
from soul_deploy.prune.unstructured.loss import coefficients
from soul_deploy.zoo.registry import NetworkOptions, create

LIF = ir.NeuronSpec()


OPTIONS = NetworkOptions((3, 32, 32), 10, LIF, 4)


def ones(graph: ir.SpikingGraph) -> dict[str, Array]:
    return {node.name: np.ones(node.weight_shape, np.float32) for node in graph.projections}


def test_6conv2fc_has_the_published_number_of_weights_and_synapses() -> None:
    """36,715,264 weights; 1,614,720,000 synapses (Shi et al., `model.connects()`)."""
    _, graph = create("cifar10net", OPTIONS)
    sizes = [int(np.prod(node.weight_shape)) for node in graph.projections]
    assert sum(sizes) == 36_715_264
    synapses = dense_synapses(graph)
    assert list(synapses.values()) == [
        *(6_786_048, 579_076_096, 579_076_096),
        *(138_674_176, 138_674_176, 138_674_176),
        *(33_554_432, 204_800),
    ]
    assert sum(synapses.values()) == 1_614_720_000


def test_the_authors_coefficients_on_6conv2fc() -> None:
    """Shi et al., published code: e_w 1024, 256, 1; e_n 2304 (conv1 to conv4), 2048 (conv5)."""
    _, graph = create("cifar10net", OPTIONS)
    found = coefficients(graph, "authors")
    assert list(found.weights.values()) == [1024, 1024, 1024, 256, 256, 256, 1, 1]
    assert list(found.neurons.values())[1:6] == [2304, 2304, 2304, 2304, 2048]


def test_the_exact_coefficients_follow_the_real_graph() -> None:
    """SpikingVGG9: fc1 has one output position although 4×4 is stretched to 7×7 before it."""
    _, graph = create("spikingvgg9", OPTIONS)
    exact = coefficients(graph, "exact")
    assert exact.weights["pre_logits.fc1.0"] == 1
    last = graph.populations[5]
    assert graph.shapes[last.name] == (256, 8, 8)
    assert exact.neurons[last.name] == 2048 * 256 * 16 / (256 * 64)
    authors = coefficients(graph, "authors")
    assert authors.neurons[last.name] == 2048 * 49
    assert list(authors.neurons.values())[1:5] == [1152, 2304, 2304, 2304]


def small_graph() -> ir.SpikingGraph:
    """1×4×4 input, 3×3 convolution (padding 1) to 2, max pool 2×2, 1×1 convolution to 1."""
    return ir.SpikingGraph(
        (
            ir.Input("input", (), (1, 4, 4)),
            ir.Convolution("a", ("input",), False, None, 1, 2, (3, 3), padding=(1, 1)),
            ir.Population("sa", ("a",), LIF),
            ir.MaxPool("pool", ("sa",), (2, 2), (2, 2)),
            ir.Convolution("b", ("pool",), False, None, 2, 1, (1, 1)),
            ir.Population("sb", ("b",), LIF),
            ir.Readout("head", ("sb",), 1),
        ),
        1,
    )


def test_borders_are_counted_exactly() -> None:
    found = measure_connectivity(small_graph(), ones(small_graph()), {})
    assert [layer.live for layer in found.layers] == [2 * 100, 2 * 4]  # 10 · 10 valid taps
    assert found.share == 1


def test_a_masked_neuron_takes_its_synapses_on_both_sides() -> None:
    keep = np.ones((2, 4, 4), bool)
    keep[0, :2, :2] = False  # a whole pooling window: corner 4, edges 6 + 6, centre 9 synapses
    found = measure_connectivity(small_graph(), ones(small_graph()), {"sa": keep})
    assert [layer.live for layer in found.layers] == [200 - 25, 8 - 1]
    keep[0, :2, :2] = [[False, False], [False, True]]  # max pooling: one of four is enough
    found = measure_connectivity(small_graph(), ones(small_graph()), {"sa": keep})
    assert [layer.live for layer in found.layers] == [200 - 16, 8]


def test_a_neuron_without_synapses_from_the_input_is_not_reachable() -> None:
    weights = ones(small_graph())
    weights["a"][1] = 0
    found = measure_connectivity(small_graph(), weights, {})
    assert [layer.live for layer in found.layers] == [100, 4]


def test_one_pruned_kernel_weight_takes_its_valid_positions() -> None:
    weights = ones(small_graph())
    weights["a"][0, 0, 0, 0] = 0  # the top left tap is valid at 3 × 3 of 4 × 4 positions
    found = measure_connectivity(small_graph(), weights, {})
    assert found.layers[0].live == 200 - 9


def test_the_table_shows_shares() -> None:
    text = measure_connectivity(small_graph(), ones(small_graph()), {}).text()
    assert "100.00 %" in text and "208" in text


def test_a_small_input_is_refused() -> None:
    with pytest.raises(Exception, match="too small for two poolings"):
        create("cifar10net", NetworkOptions((1, 3, 8), 10, LIF, 4))
