"""Dense totals of published networks, to the unit, from the graph alone."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from soul_deploy import ir
from soul_deploy.analysis.other_tools import dense_ops
from soul_deploy.lowering.fan_out import fanout
from soul_deploy.lowering.fold_batch_norm import DeployedWeights
from soul_deploy.lowering.linear_operators import base_operator
from soul_deploy.zoo.registry import NetworkOptions, create

IF = ir.NeuronSpec("if")


def totals(graph: ir.SpikingGraph, without: tuple[str, ...] = ()) -> tuple[int, int]:
    found = [ops for name, ops in dense_ops(graph).items() if name not in without]
    return sum(ops.valid for ops in found), sum(ops.padded for ops in found)


def test_6conv2fc() -> None:
    """Shi et al., ICLR 2024: what their `model.connects()` prints."""
    _, graph = create("cifar10net", NetworkOptions((3, 32, 32), 10, ir.NeuronSpec(), 8))
    assert totals(graph) == (1_614_720_000, 1_701_781_504)
    first = graph.projections[0].name
    assert totals(graph, (first,)) == (1_607_933_952, 1_694_703_616)
    per_layer = [dense_ops(graph)[p.name] for p in graph.projections]
    assert [ops.valid for ops in per_layer] == [
        6_786_048,
        *[579_076_096] * 2,
        *[138_674_176] * 3,
        33_554_432,
        204_800,
    ]
    assert [ops.padded for ops in per_layer[:6]] == [
        7_077_888,
        *[603_979_776] * 2,
        *[150_994_944] * 3,
    ]


def test_vggsnn_of_48_by_48() -> None:
    """The network for DVS-CIFAR10 of the same paper: average pooling, 10 neurons a class."""
    nodes: list[ir.Node] = [ir.Input("input", (), (2, 48, 48))]
    channels, last = 2, "input"
    for index, width in enumerate([64, 128, 0, 256, 256, 0, 512, 512, 0, 512, 512, 0]):
        if width == 0:
            nodes.append(ir.AvgPool(f"pool{index}", (last,), (2, 2), (2, 2)))
            last = f"pool{index}"
            continue
        conv = ir.Convolution(
            f"conv{index}", (last,), False, None, channels, width, (3, 3), (1, 1), (1, 1)
        )
        nodes += [conv, ir.Population(f"lif{index}", (conv.name,), IF)]
        channels, last = width, f"lif{index}"
    nodes += [ir.Flatten("flat", (last,)), ir.Linear("fc", ("flat",), False, None, 512 * 9, 100)]
    nodes += [ir.Population("out", ("fc",), IF), ir.Readout("vote", ("out",), 10, False, False, 10)]
    graph = ir.SpikingGraph(tuple(nodes), 10)
    assert totals(graph) == (1_238_690_304, 1_362_069_504)
    assert totals(graph, ("conv0",)) == (1_236_109_312, 1_359_415_296)


def test_resnet18_at_224() -> None:
    """The usual 1.82 G multiplications, of which 1.68 G are inside the image."""
    _, graph = create("sewresnet18", NetworkOptions((3, 224, 224), 1000, ir.NeuronSpec(), 4))
    stem, head = graph.projections[0].name, graph.readout.name
    assert totals(graph) == (1_680_390_912, 1_814_073_344)
    assert totals(graph, (stem, head)) == (1_563_664_384, 1_695_547_392)
    assert graph.static == (graph.input.name, stem)


@given(
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
    st.tuples(st.integers(1, 4), st.integers(1, 4)),
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.tuples(st.integers(0, 3), st.integers(0, 3)),
    st.sampled_from([1, 2]),
    st.sampled_from([1, 2]),
)
def test_dense_is_the_fan_out_of_ones(
    size: tuple[int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: int,
    groups: int,
) -> None:
    kernel = (
        min(kernel[0], (size[0] + 2 * padding[0] - 1) // dilation + 1),
        min(kernel[1], (size[1] + 2 * padding[1] - 1) // dilation + 1),
    )
    node = ir.Convolution(
        "c", ("input",), False, None, 4, 6, kernel, stride, padding, (dilation, dilation), groups
    )
    nodes = (ir.Input("input", (), (4, *size)), node, ir.Population("p", ("c",), IF))
    graph = ir.SpikingGraph((*nodes, ir.Readout("head", ("p",), 2)), 1)
    ones = DeployedWeights(np.ones((6, 4 // groups, *kernel), np.float32), None)
    assert dense_ops(graph)["c"].valid == int(fanout(base_operator(node, graph, ones)).sum())


@pytest.mark.parametrize("name", ["spikingvgg5", "cifar10net"])
def test_every_projection_has_an_entry(name: str) -> None:
    _, graph = create(name, NetworkOptions((1, 28, 28), 10, ir.NeuronSpec(), 4, width=8, hidden=8))
    assert set(dense_ops(graph)) == {p.name for p in graph.projections} | {graph.readout.name}
