"""Composed operators and fan-out maps against PyTorch's own layers, one basis vector at a time."""

import itertools
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from soul_deploy.analysis.synops import layer_steps
from soul_deploy.ir import (
    SPIKE,
    AdaptiveAvgPool,
    AvgPool,
    Convolution,
    Flatten,
    Input,
    Linear,
    NeuronSpec,
    Node,
    Population,
    Readout,
    SpikingGraph,
)
from soul_deploy.lowering.fan_out import CountedLayer, arrivals, fanout
from soul_deploy.lowering.fold_batch_norm import fold
from soul_deploy.lowering.linear_operators import (
    ConvOperator,
    LinearOperator,
    MatrixOperator,
    ReadoutOperator,
    lower_projection,
)
from soul_deploy.model.model import Model, arrays_of
from soul_deploy.nn.graph_module import GraphModule, Signal


def _graph(nodes: list[Node], classes: int = 2) -> SpikingGraph:
    last = nodes[-1].name
    return SpikingGraph((*nodes, Readout("head", (last,), classes)), time_steps=2)


@st.composite
def pooled_projections(draw: st.DrawFn) -> SpikingGraph:
    """Input spikes, an average pooling (or two), then a convolution or a linear layer."""
    side = (draw(st.integers(5, 9)), draw(st.integers(5, 9)))
    nodes: list[Node] = [Input("input", (), (2, *side)), Population("s", ("input",), NeuronSpec())]
    shape: tuple[int, ...] = (2, *side)
    for i in range(draw(st.integers(0, 2))):
        name, source = f"pool{i}", (nodes[-1].name,)
        if draw(st.booleans()):
            kernel = (
                min(draw(st.integers(1, 3)), shape[1]),
                min(draw(st.integers(1, 3)), shape[2]),
            )
            stride = kernel if draw(st.booleans()) else (draw(st.integers(1, 2)), 1)
            padding = draw(st.sampled_from([(0, 0), (kernel[0] // 2, 0)]))
            nodes.append(AvgPool(name, source, kernel, stride, padding))
        else:
            size = (draw(st.integers(1, 7)), draw(st.integers(1, 7)))
            nodes.append(AdaptiveAvgPool(name, source, size))
        shape = nodes[-1].output_shape([shape])
    source = (nodes[-1].name,)
    if draw(st.booleans()):
        sides = (min(draw(st.integers(1, 3)), shape[1]), min(draw(st.integers(1, 3)), shape[2]))
        stride = (draw(st.integers(1, 2)), draw(st.integers(1, 2)))
        padding = (draw(st.integers(0, 2)), draw(st.integers(0, 2)))
        groups, bias = draw(st.sampled_from([1, 2])), draw(st.booleans())
        spans = zip(shape[1:], sides, padding, strict=True)
        fits = [s + 2 * p > 2 * (k - 1) for s, k, p in spans]
        dilation = (1 + (fits[0] and draw(st.booleans())), 1 + (fits[1] and draw(st.booleans())))
        more = sides, stride, padding, dilation, groups
        nodes.append(Convolution("p", source, bias, None, 2, 4, *more))
    else:
        nodes.append(Flatten("flat", source))
        nodes.append(Linear("p", ("flat",), True, None, int(np.prod(shape)), 5))
    return _graph([*nodes, Population("q", ("p",), NeuronSpec())])


def _apply(operator: LinearOperator, x: Tensor) -> Tensor:
    """The operator by its definition, with plain loops."""
    out = np.zeros((len(x), *operator.out_shape))
    if isinstance(operator, MatrixOperator):
        out = (x.flatten(1).double().numpy() @ operator.weight.astype(float).T).reshape(out.shape)
    else:
        assert isinstance(operator, ConvOperator)
        group_in = operator.in_shape[0] // operator.groups
        group_out = operator.out_shape[0] // operator.groups
        for o, y, z in np.ndindex(*operator.out_shape):
            for c, kh, kw in np.ndindex(*operator.weight.shape[1:]):
                iy = y * operator.stride[0] - operator.padding[0] + kh * operator.dilation[0]
                ix = z * operator.stride[1] - operator.padding[1] + kw * operator.dilation[1]
                if 0 <= iy < operator.reach[0] and 0 <= ix < operator.reach[1]:
                    channel = o // group_out * group_in + c
                    out[:, o, y, z] += x[:, channel, iy, ix].numpy() * operator.weight[o, c, kh, kw]
    if operator.bias is not None:
        out += operator.bias.reshape(-1, *([1] * (out.ndim - 2)))
    return torch.from_numpy(out)


@given(pooled_projections(), st.integers(0, 1000))
def test_the_composed_operator_equals_the_layers(graph: SpikingGraph, seed: int) -> None:
    torch.manual_seed(seed)
    module = GraphModule(graph).double()
    folded = fold(graph, arrays_of(module.state_dict()), {})
    module.load_state_dict({k: v.float().double() for k, v in module.state_dict().items()})
    spikes = (torch.rand(3, *graph.shapes["s"]) < 0.4).double()
    linear = lower_projection(graph, folded, "p")
    assert linear.source == "s"
    with torch.no_grad():
        expected = module.evaluate({"s": Signal(spikes, True)}, ["p"])["p"].tensor
    torch.testing.assert_close(_apply(linear.operator, spikes), expected, rtol=0, atol=1e-6)


@given(pooled_projections(), st.integers(0, 1000))
def test_the_fanout_map_counts_every_synapse(graph: SpikingGraph, seed: int) -> None:
    rng = np.random.default_rng(seed)
    module = GraphModule(graph)
    state = arrays_of(module.state_dict())
    state["p.weight"] = state["p.weight"] * (rng.random(state["p.weight"].shape) < 0.5)
    operator = lower_projection(graph, fold(graph, state, {}), "p").operator
    weights_as_ones = _replace_weight(operator)
    basis = torch.eye(int(np.prod(operator.in_shape))).reshape(-1, *operator.in_shape)
    rows = _apply(weights_as_ones, basis).flatten(1).sum(1).numpy()
    np.testing.assert_array_equal(fanout(operator).reshape(-1), rows)


BEFORE_A_READOUT: list[Node] = [
    AvgPool("pool", ("s",), (2, 1), (2, 1)),
    AvgPool("pool", ("s",), (3, 3), (2, 2)),
    AdaptiveAvgPool("pool", ("s",), (3, 2)),
]


@pytest.mark.parametrize("pool", BEFORE_A_READOUT, ids=lambda node: node.describe())
def test_a_readout_behind_a_pooling_is_composed_too(pool: Node) -> None:
    """Class scores of maps, whose counts are summed over space."""
    nodes: list[Node] = [Input("input", (), (2, 6, 6)), Population("s", ("input",), NeuronSpec())]
    graph = _graph([*nodes, pool], classes=3)
    module = GraphModule(graph)
    operator = lower_projection(
        graph, fold(graph, arrays_of(module.state_dict()), {}), "head"
    ).operator
    assert isinstance(operator, ReadoutOperator)
    assert operator.weight is not None and operator.bias is not None
    spikes = (torch.rand(2, 1, 2, 6, 6, generator=torch.Generator().manual_seed(0)) < 0.5).float()
    counts = spikes.sum(0).reshape(-1).numpy()
    found = operator.scale * (operator.weight @ counts) + operator.bias
    with torch.no_grad():
        expected = module.evaluate({"s": Signal(spikes, False)}, ["head"])["head"].tensor[0]
    np.testing.assert_allclose(found, expected.numpy(), rtol=0, atol=1e-5)


def dropping_graphs() -> Iterator[SpikingGraph]:
    """Poolings that drop an incomplete last window, perhaps behind one that overlaps, or none; a
    padded convolution behind them, perhaps dilated."""
    overlapping = AvgPool("pool0", ("s",), (3, 3), (2, 2))
    ends = [((1, 1), (1, 1)), ((2, 1), (1, 1)), ((2, 2), (2, 2))]
    for before, sides, k, (padding, dilation) in itertools.product(
        ((), (overlapping,)), ((7, 7), (9, 8), (10, 7)), (0, 2, 3), ends
    ):
        nodes: list[Node] = [Input("input", (), (2, *sides))]
        nodes += [Population("s", ("input",), NeuronSpec()), *before]
        if k:
            nodes.append(AvgPool("pool1", (nodes[-1].name,), (k, k), (k, k)))
        geometry = (3, 3), (1, 1), padding, dilation
        nodes.append(Convolution("p", (nodes[-1].name,), True, None, 2, 2, *geometry))
        yield _graph([*nodes, Population("q", ("p",), NeuronSpec())])


def test_what_a_pooling_drops_reaches_nothing() -> None:
    """Neither in the operator, nor in the fan-out, nor among what arrives."""
    for graph in dropping_graphs():
        torch.manual_seed(0)
        module = GraphModule(graph).double()
        module.load_state_dict({k: v.float().double() for k, v in module.state_dict().items()})
        operator = lower_projection(
            graph, fold(graph, arrays_of(module.state_dict()), {}), "p"
        ).operator
        basis = torch.eye(int(np.prod(operator.in_shape))).reshape(-1, *operator.in_shape)
        with torch.no_grad():
            values = module.evaluate({"s": Signal(basis.double(), True)}, ["p"])["p"].tensor
            silence = module.evaluate({"s": Signal(0 * basis[:1].double(), True)}, ["p"])[
                "p"
            ].tensor
        torch.testing.assert_close(_apply(operator, basis), values, rtol=0, atol=1e-6)
        reached = (values - silence).abs() > 1e-9
        np.testing.assert_array_equal(fanout(operator).reshape(-1), reached.flatten(1).sum(1))
        assert torch.equal(arrivals(operator, basis).reshape(reached.shape) > 0, reached)


def _replace_weight(operator: LinearOperator) -> LinearOperator:
    from dataclasses import replace

    assert isinstance(operator, ConvOperator | MatrixOperator)
    return replace(operator, weight=(operator.weight != 0).astype(np.float32), bias=None)


WORKED_WEIGHTS = [
    [["x.x", ".x.", "x.x"], ["xxx", "xxx", "xxx"]],
    [["...", "xxx", "..."], ["...", "...", "..."]],
]


def test_the_worked_example_of_the_counting_page() -> None:
    """docs/counting.md, worked example without dead targets: 64 valid, 31 of them nonzero."""
    weight = np.array(
        [[[[c == "x" for c in row] for row in plane] for plane in out] for out in WORKED_WEIGHTS],
        np.float32,
    )
    shape = (2, 4, 4)
    operator = ConvOperator(weight, None, (1, 1), (1, 1), (1, 1), 1, shape, shape, (4, 4))
    spikes = torch.zeros(2, 1, *shape)
    for t, c, y, x in [(0, 0, 0, 0), (0, 0, 1, 1), (0, 1, 0, 2), (1, 0, 3, 3), (1, 1, 2, 2)]:
        spikes[t, 0, c, y, x] = 1
    from soul_deploy.lowering.linear_operators import LinearProjection

    layer = CountedLayer("p", LinearProjection("s", operator), SPIKE, None)
    counts = layer_steps(layer, spikes, None).total()
    assert (counts.events_in, counts.spikes_in) == (5, 5)
    assert counts.synops == counts.synops_events == 31
    dense = ConvOperator(
        np.ones_like(weight), None, (1, 1), (1, 1), (1, 1), 1, shape, shape, (4, 4)
    )
    assert (
        layer_steps(CountedLayer("p", LinearProjection("s", dense), SPIKE, None), spikes, None)
        .total()
        .synops
        == 64
    )
    assert fanout(operator).sum() == 192


def test_the_dense_synapses_of_6conv2fc_are_exact() -> None:
    """1,614,720,000 border-valid synapses (Shi et al., ICLR 2024: `model.connects()`)."""
    total = 0
    for c_in, c_out, side, count in [(3, 256, 32, 1), (256, 256, 32, 2), (256, 256, 16, 3)]:
        weight = np.ones((c_out, c_in, 3, 3), np.float32)
        operator = ConvOperator(
            weight,
            None,
            (1, 1),
            (1, 1),
            (1, 1),
            1,
            (c_in, side, side),
            (c_out, side, side),
            (side, side),
        )
        total += count * int(fanout(operator).sum())
    total += 256 * 64 * 2048 + 2048 * 100
    assert total == 1_614_720_000


def test_a_current_may_be_the_source() -> None:
    graph = _graph(
        [
            Input("input", (), (1, 4, 4)),
            Convolution("a", ("input",), True, None, 1, 2, (3, 3)),
            Convolution("b", ("a",), True, None, 2, 2, (1, 1)),
            Population("s", ("b",), NeuronSpec()),
        ]
    )
    folded = fold(graph, arrays_of(GraphModule(graph).state_dict()), {})
    linear = lower_projection(graph, folded, "b")
    assert linear.source == "a"
    np.testing.assert_array_equal(linear.operator.weight, folded["b"].weight)


def test_a_model_folds_its_masks_into_zero_rows() -> None:
    graph = _graph(
        [
            Input("input", (), (1, 4, 4)),
            Convolution("a", ("input",), True, None, 1, 2, (3, 3)),
            Population("s", ("a",), NeuronSpec()),
        ]
    )
    state = arrays_of(GraphModule(graph).state_dict())
    model = Model(graph, state, {"s": np.array([True, False])})
    folded = fold(graph, model.state, model.channel_masks)["a"]
    assert folded.bias is not None
    assert not folded.weight[1].any() and folded.bias[1] == 0
    np.testing.assert_array_equal(folded.weight[0], state["a.weight"][0])
