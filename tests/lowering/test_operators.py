"""Linear operators by hand: what they count, the limits of what is composed, and their fan-outs."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from soul_deploy import ir
from soul_deploy.base.errors import LimitError, UnsupportedGraphError
from soul_deploy.export.event.storage_format import represent
from soul_deploy.lowering import linear_operators as linear
from soul_deploy.lowering.fan_out import (
    CountedLayer,
    CountedPooling,
    CountedPopulation,
    arrivals,
    fanout,
    needed_values,
)
from soul_deploy.lowering.fold_batch_norm import DeployedWeights, fold
from soul_deploy.model.file import expected_shapes
from soul_deploy.nn.graph_module import GraphModule, Signal

LIF = ir.NeuronSpec()


def convolution(groups: int = 1) -> linear.ConvOperator:
    """2 channels of 7 × 8 to 4 of 5 × 7, kernel 3 × 2, all weights 1."""
    weight = np.ones((4, 2 // groups, 3, 2), np.float32)
    return linear.ConvOperator(
        weight, None, (1, 1), (0, 0), (1, 1), groups, (2, 7, 8), (4, 5, 7), (7, 8)
    )


@pytest.mark.parametrize(("groups", "most"), [(1, 24), (2, 12)])
def test_an_input_in_the_middle_reaches_as_many_targets_as_any_can(groups: int, most: int) -> None:
    operator = convolution(groups)
    assert operator.most_targets == fanout(operator).max() == most
    synapses, _ = represent(operator, None, None, "implicit")
    assert synapses.most_targets == most


def test_a_matrix_reaches_all_its_targets() -> None:
    ones = np.ones((6, 5), np.float32)
    operator = linear.MatrixOperator(ones, None, (5,), (6,))
    assert operator.most_targets == operator.targets(None) == fanout(operator).max() == 6
    live = np.array([1, 0, 0, 1, 1, 0], bool)
    assert operator.targets(live) == 3 and fanout(operator, live).tolist() == [3] * 5


def test_biased_targets_are_live_ones_of_channels_with_a_bias() -> None:
    operator = linear.MatrixOperator(
        np.ones((12, 5), np.float32), np.array([0, 2, -1], np.float32), (5,), (3, 2, 2)
    )
    live = np.zeros((3, 2, 2), bool)
    live[0] = live[1, 0] = live[2, 1, 1] = True
    assert operator.biased(None) == 8 and operator.biased(live) == 3
    assert convolution().biased(None) == 0


@pytest.mark.parametrize("space", [True, False])
def test_a_readouts_outputs_are_its_weights_rows_or_its_votes(space: bool) -> None:
    weight, bias = np.ones((3, 6 if space else 24), np.float32), np.array([0, 1, 2], np.float32)
    operator = linear.ReadoutOperator(weight, 1, bias, 1.0, space, (6, 2, 2))
    assert operator.out_shape == (3,) and operator.readout is operator
    assert operator.targets(None) == operator.targets(np.zeros(3, bool)) == 3
    assert operator.biased(np.zeros(3, bool)) == 2
    votes = linear.ReadoutOperator(None, 2, None, 1.0, space, (6, 2, 2))
    assert votes.out_shape == ((3,) if space else (12,))
    assert votes.targets(None) == 0 and votes.biased(None) == 0
    assert fanout(votes).shape == ((6,) if space else (6, 2, 2)) and not fanout(votes).any()
    assert convolution().readout is None


# Limits: elements that each composed operator has, and not one more.


def graph_of(*nodes: ir.Node, votes: int = 0, side: int = 6) -> ir.SpikingGraph:
    """Spikes (2, side, side + 2), `nodes`, a readout of 2 classes behind the last."""
    first = (ir.Input("input", (), (2, side, side + 2)), ir.Population("s", ("input",), LIF))
    how = {"linear": False, "votes": votes} if votes else {}
    head = ir.Readout("head", (nodes[-1].name,), 2, **how)  # type: ignore[arg-type]
    return ir.SpikingGraph((*first, *nodes, head), 2)


def behind(pool: ir.Node, projection: ir.Node) -> ir.SpikingGraph:
    return graph_of(pool, projection, ir.Population("q", (projection.name,), LIF))


def lowered(graph: ir.SpikingGraph, name: str) -> linear.LinearProjection:
    shapes = expected_shapes(graph)
    folded = {}
    for node in (*graph.projections, graph.readout):
        if f"{node.name}.weight" in shapes:
            weight = np.ones(shapes[f"{node.name}.weight"], np.float32)
            folded[node.name] = DeployedWeights(weight, None)
    return linear.lower_projection(graph, folded, name)


TILES = ir.AvgPool("pool", ("s",), (2, 2), (2, 2))
OVERLAPS = ir.AvgPool("pool", ("s",), (2, 2), (1, 1))
CONVOLUTION = ir.Convolution("p", ("pool",), False, None, 2, 3, (2, 2))
DILATED = ir.Convolution("p", ("pool",), False, None, 2, 3, (2, 2), dilation=(2, 2))
ADAPTIVE = ir.AdaptiveAvgPool("pool", ("s",), (4, 4))
FLAT = ir.Flatten("flat", ("pool",))
LIMITS: dict[str, tuple[ir.SpikingGraph, str, int]] = {
    # 3 · 2 kernels of (2 · 2) × (2 · 2) positions
    "tiles": (behind(TILES, CONVOLUTION), "p", 3 * 2 * 16),
    # a dilated kernel is 3 × 3 wide, zeros included
    "dilated": (behind(TILES, DILATED), "p", 3 * 2 * 36),
    # pooled to 5 × 7: outputs 3 · 4 · 6, and inputs 2 · 6 · 8 of the map before
    "overlapping": (behind(OVERLAPS, CONVOLUTION), "p", (3 * 4 * 6) * (2 * 6 * 8)),
    # pooled to 4 × 4: outputs 3 · 3 · 3
    "adaptive": (behind(ADAPTIVE, CONVOLUTION), "p", (3 * 3 * 3) * (2 * 6 * 8)),
    # the pooling's own matrix is 35 × 48: larger than that of the one neuron behind it
    "pooling": (
        graph_of(
            OVERLAPS, FLAT, ir.Linear("p", ("flat",), False, None, 70, 1),
            ir.Population("q", ("p",), LIF),
        ),
        "p",
        35 * 48,
    ),
    "linear": (
        graph_of(
            TILES, FLAT, ir.Linear("p", ("flat",), False, None, 24, 50),
            ir.Population("q", ("p",), LIF),
        ),
        "p",
        50 * 96,
    ),
    "votes": (graph_of(TILES, FLAT, votes=12), "head", 12 * 48),
    "readout": (graph_of(TILES), "head", 12 * 48),
}  # fmt: skip


@pytest.mark.parametrize("case", LIMITS)
def test_what_is_composed_may_have_as_many_elements_as_the_limit_and_no_more(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph, name, elements = LIMITS[case]
    monkeypatch.setattr(linear, "MAX_ELEMENTS", elements)
    operator = lowered(graph, name).operator
    assert operator.in_shape == (2, 6, 8)
    monkeypatch.setattr(linear, "MAX_ELEMENTS", elements - 1)
    with pytest.raises(LimitError, match=rf"^{name}: composing its average pooling needs a \d+ × "):
        lowered(graph, name)


def test_the_real_limit_is_a_gibibyte_of_float32() -> None:
    assert linear.MAX_ELEMENTS * 4 == 1 << 30
    with pytest.raises(LimitError, match="at most 268435456 elements are supported"):
        linear.as_matrix(
            linear.ConvOperator(
                np.ones((1, 1, 1, 1), np.float32), None, (1, 1), (0, 0), (1, 1), 1,
                (1, 128, 129), (1, 128, 129), (128, 129),
            )
        )  # fmt: skip


# What is composed computes what the layers compute. No two sides, strides or paddings are equal.


def pool(kernel: ir.Pair, stride: ir.Pair, padding: ir.Pair = (0, 0)) -> ir.AvgPool:
    return ir.AvgPool("pool", ("s",), kernel, stride, padding)


def conv(
    source: str, kernel: ir.Pair, stride: ir.Pair = (1, 1), padding: ir.Pair = (0, 0),
    dilation: ir.Pair = (1, 1), groups: int = 1,
) -> ir.Convolution:  # fmt: skip
    """2 channels to 4."""
    how = stride, padding, dilation, groups
    return ir.Convolution("p", (source,), True, None, 2, 4, kernel, *how)


def dense(inputs: int) -> tuple[ir.Node, ir.Node]:
    return FLAT, ir.Linear("p", ("flat",), True, None, inputs, 3)


COMPOSED: dict[str, tuple[ir.Node, ...]] = {
    "alone": (conv("s", (3, 2), (2, 1), (1, 2), (1, 2)),),
    "groups": (conv("s", (2, 3), (1, 2), (2, 1), (2, 1), groups=2),),
    "tiles": (pool((3, 2), (3, 2)), conv("pool", (2, 3), (1, 2), (1, 2))),
    "dilated tiles": (pool((2, 1), (2, 1)), conv("pool", (2, 2), (2, 3), (1, 0), (2, 3))),
    "incomplete tiles": (pool((4, 3), (4, 3)), conv("pool", (1, 2), (1, 1), (1, 1))),
    "even": (
        ir.AdaptiveAvgPool("pool", ("s",), (3, 2)),
        conv("pool", (3, 2), (1, 1), (1, 0), groups=2),
    ),
    "uneven": (ir.AdaptiveAvgPool("pool", ("s",), (4, 3)), conv("pool", (3, 2), (2, 1), (1, 1))),
    "one side uneven": (ir.AdaptiveAvgPool("pool", ("s",), (4, 8)), conv("pool", (2, 2))),
    "larger": (ir.AdaptiveAvgPool("pool", ("s",), (7, 9)), conv("pool", (2, 3), (3, 2))),
    "overlapping": (pool((3, 2), (2, 1), (1, 0)), conv("pool", (2, 3), (1, 2), (0, 1))),
    "padded": (pool((2, 3), (2, 3), (1, 1)), conv("pool", (2, 2))),
    "gaps": (pool((1, 2), (2, 3)), conv("pool", (2, 2))),
    "twice": (
        pool((2, 2), (1, 2)),
        ir.AvgPool("again", ("pool",), (1, 2), (2, 1)),
        conv("again", (2, 2)),
    ),
    "linear": (pool((2, 3), (2, 2), (0, 1)), *dense(2 * 3 * 4)),
    "linear, tiles": (pool((2, 4), (2, 4)), *dense(2 * 3 * 2)),
}


CONVOLUTIONS = ("alone", "groups", "tiles", "dilated tiles", "incomplete tiles", "even")
"""Behind windows that tile the map a convolution stays one."""


def drawn(graph: ir.SpikingGraph) -> tuple[GraphModule, dict[str, DeployedWeights]]:
    """The graph's module in float64, with small whole numbers as weights."""
    rng = np.random.default_rng(5)
    module = GraphModule(graph).double()
    state = {
        name: rng.integers(-4, 5, tensor.shape).astype(np.float32)
        for name, tensor in module.state_dict().items()
    }
    module.load_state_dict({name: torch.from_numpy(array) for name, array in state.items()})
    return module, fold(graph, state, {})


@pytest.mark.parametrize("case", COMPOSED)
def test_what_is_composed_computes_what_the_layers_do(case: str) -> None:
    graph = graph_of(*COMPOSED[case], ir.Population("q", ("p",), LIF))
    module, folded = drawn(graph)
    found = linear.lower_projection(graph, folded, "p")
    operator = found.operator
    assert found.source == "s" and operator.in_shape == (2, 6, 8)
    assert isinstance(operator, linear.ConvOperator) is (case in CONVOLUTIONS)
    if isinstance(operator, linear.ConvOperator):
        operator = linear.as_matrix(operator)
    assert isinstance(operator, linear.MatrixOperator)
    assert operator.out_shape == graph.shapes["p"]
    spikes = torch.from_numpy(np.random.default_rng(6).random((5, 2, 6, 8)) < 0.5).double()
    with torch.no_grad():
        expected = module.evaluate({"s": Signal(spikes, True)}, ["p"])["p"].tensor.numpy()
    current = spikes.flatten(1).numpy() @ operator.weight.astype(np.float64).T
    assert operator.bias is not None
    current += np.repeat(operator.bias, expected[0, 0].size)
    np.testing.assert_allclose(current, expected.reshape(5, -1), rtol=0, atol=1e-5)


READOUTS: dict[str, tuple[tuple[ir.Node, ...], ir.Readout]] = {
    "sums": ((), ir.Readout("head", ("s",), 3)),
    "pooled sums": ((pool((2, 3), (2, 3)),), ir.Readout("head", ("pool",), 3)),
    "flat": ((pool((3, 2), (2, 1)), FLAT), ir.Readout("head", ("flat",), 3)),
    "votes": (
        (pool((3, 2), (3, 2)), FLAT),
        ir.Readout("head", ("flat",), 4, linear=False, votes=4),
    ),
    "adaptive": ((ir.AdaptiveAvgPool("pool", ("s",), (4, 3)),), ir.Readout("head", ("pool",), 3)),
}


@pytest.mark.parametrize("case", READOUTS)
def test_a_composed_readout_scores_as_the_layers_do(case: str) -> None:
    between, head = READOUTS[case]
    first = ir.Input("input", (), (2, 6, 8)), ir.Population("s", ("input",), LIF)
    graph = ir.SpikingGraph((*first, *between, head), 3)
    module, folded = drawn(graph)
    found = linear.lower_projection(graph, folded, "head")
    operator = found.operator.readout
    assert operator is not None and found.source == "s" and operator.in_shape == (2, 6, 8)
    spikes = torch.from_numpy(np.random.default_rng(6).random((3, 5, 2, 6, 8)) < 0.5).double()
    with torch.no_grad():
        expected = module.evaluate({"s": Signal(spikes, False)}, ["head"])["head"].tensor.numpy()
    counts = spikes.sum(0).sum((2, 3)) if operator.space else spikes.sum(0).flatten(1)
    assert operator.weight is not None
    scores = operator.scale * (counts.numpy() @ operator.weight.astype(np.float64).T)
    scores += 0 if operator.bias is None else operator.bias
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-5)
    assert operator.out_shape == (head.classes,)


def test_what_is_no_pooling_is_not_composed() -> None:
    graph = graph_of(*COMPOSED["tiles"], ir.Population("q", ("p",), LIF))
    _, folded = drawn(graph)
    operator = linear.base_operator(graph["p"], graph, folded["p"])
    with pytest.raises(UnsupportedGraphError, match="q: population cannot be composed into a"):
        linear.compose_behind(graph["q"], operator, (2, 6, 8), "p")


@pytest.mark.parametrize("case", COMPOSED)
def test_fan_outs_and_arrivals_are_those_of_the_dense_matrix(case: str) -> None:
    graph = graph_of(*COMPOSED[case], ir.Population("q", ("p",), LIF))
    _, folded = drawn(graph)
    operator = linear.lower_projection(graph, folded, "p").operator
    assert isinstance(operator, linear.Operator)
    matrix = operator.weight
    if isinstance(operator, linear.ConvOperator):
        matrix = linear.as_matrix(operator).weight
    rng = np.random.default_rng(7)
    live = rng.random(operator.out_shape) < 0.6
    live.flat[0], live.flat[-1] = True, False
    for mask in (None, live):
        rows = matrix if mask is None else matrix[mask.reshape(-1)]
        found = fanout(operator, mask)
        assert found.dtype == np.int64 and found.shape == operator.in_shape
        np.testing.assert_array_equal(found.reshape(-1), np.count_nonzero(rows, axis=0))
        assert operator.targets(mask) == len(rows)
    events = torch.from_numpy(rng.random((3, *operator.in_shape)) < 0.5)
    expected = events.flatten(1).double().numpy() @ (matrix != 0).T
    np.testing.assert_array_equal(arrivals(operator, events).flatten(1).numpy(), expected)
    assert operator.bias is not None
    biased = np.repeat(operator.bias != 0, live[0].size).reshape(live.shape)
    assert (operator.biased(None), operator.biased(live)) == (biased.sum(), (biased & live).sum())


def test_a_readouts_fan_out_counts_the_classes_that_weigh_an_input() -> None:
    weight = np.array([[0, 1, -1, 0], [2, 0, -1, 0], [1, 0, 1, 0]], np.float32)
    wide = linear.ReadoutOperator(weight, 1, None, 1.0, False, (2, 1, 2))
    assert fanout(wide).tolist() == [[[2, 1]], [[3, 0]]]
    spaced = linear.ReadoutOperator(weight, 1, None, 1.0, True, (4, 3, 3))
    assert fanout(spaced).tolist() == [2, 1, 3, 0]


def test_events_arrive_through_the_padding_of_a_map_narrower_than_its_channels() -> None:
    rng = np.random.default_rng(8)
    operator = linear.ConvOperator(
        rng.integers(-1, 2, (3, 7, 3, 3)).astype(np.float32), None, (1, 1), (1, 1), (1, 1), 1,
        (7, 2, 3), (3, 2, 3), (2, 3),
    )  # fmt: skip
    events = torch.from_numpy(rng.random((4, 7, 2, 3)) < 0.5)
    matrix = linear.as_matrix(operator).weight
    expected = events.flatten(1).double().numpy() @ (matrix != 0).T
    np.testing.assert_array_equal(arrivals(operator, events).flatten(1).numpy(), expected)


def test_an_entry_is_counted_from_what_feeds_it_and_its_population() -> None:
    assert needed_values(CountedPopulation("p", (3,))) == ("p",)
    assert needed_values(CountedPooling("m", "s", (2, 2), (2, 2), (0, 0))) == ("s",)
    matrix = linear.MatrixOperator(np.ones((2, 3), np.float32), None, (3,), (2,))
    entry = CountedLayer("c", linear.LinearProjection("s", matrix), ir.SPIKE, "q")
    assert needed_values(entry) == ("s", "q")
    assert needed_values(replace(entry, population=None)) == ("s",)
