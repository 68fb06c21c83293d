"""Live neurons by trial: one spike at each place in turn, and whether what counts sees it."""

from collections.abc import Mapping
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_operators import COMPOSED, FLAT, LIF, conv, graph_of, pool

from soul_deploy import ir
from soul_deploy.base import Array
from soul_deploy.lowering.fan_out import live_targets, population_behind
from soul_deploy.lowering.fold_batch_norm import fold
from soul_deploy.lowering.linear_operators import lower_projection
from soul_deploy.lowering.liveness import live_neurons, live_values
from soul_deploy.nn.graph_module import GraphModule, Signal

SHAPE = (2, 6, 8)


def state_of(graph: ir.SpikingGraph) -> dict[str, Array]:
    """Weights of 1, most of them pruned, and no biases."""
    rng = np.random.default_rng(11)
    state = {}
    for name, tensor in GraphModule(graph).state_dict().items():
        shape = tuple(tensor.shape)
        kept = rng.random(shape) < 0.25
        state[name] = np.zeros(shape, np.float32) if name.endswith("bias") else 1.0 * kept
    return {name: array.astype(np.float32) for name, array in state.items()}


def found_live(
    graph: ir.SpikingGraph, state: Mapping[str, Array], masks: Mapping[str, Array]
) -> dict[str, Array]:
    return live_neurons(graph, partial(lower_projection, graph, fold(graph, state, {})), masks)


def seen_at(graph: ir.SpikingGraph, state: Mapping[str, Array], node: str) -> Array:
    """What `node` holds after one spike of "s" at each step, place by place: (96, ...)."""
    module = GraphModule(graph).double()
    module.load_state_dict({name: torch.from_numpy(array) for name, array in state.items()})
    spikes = torch.eye(96, dtype=torch.float64).reshape(1, 96, *SHAPE).expand(2, -1, -1, -1, -1)
    with torch.no_grad():
        value = module.evaluate({"s": Signal(spikes, False)}, [node])[node].tensor
    return np.asarray(value.numpy() if node == "head" else value[0].numpy())


MAXIMA: dict[str, tuple[ir.Node, ...]] = {
    "maxima": (ir.MaxPool("pool", ("s",), (2, 3), (2, 2)), conv("pool", (2, 2))),
    "overlapping maxima": (
        ir.MaxPool("pool", ("s",), (3, 2), (1, 1), (1, 0)),
        conv("pool", (3, 1)),
    ),
    "padded maxima": (ir.MaxPool("pool", ("s",), (3, 4), (3, 2), (1, 2)), conv("pool", (2, 1))),
    "maxima with gaps": (ir.MaxPool("pool", ("s",), (1, 2), (2, 4)), conv("pool", (1, 2))),
    "maxima of averages": (
        pool((2, 2), (1, 2)),
        ir.MaxPool("again", ("pool",), (2, 1), (2, 1)),
        conv("again", (2, 2)),
    ),
}


@pytest.mark.parametrize("case", [*COMPOSED, *MAXIMA])
def test_a_neuron_is_live_if_a_live_one_behind_it_sees_its_spike(case: str) -> None:
    graph = graph_of(*(COMPOSED | MAXIMA)[case], ir.Population("q", ("p",), LIF))
    state, rng = state_of(graph), np.random.default_rng(12)
    state["head.weight"][:] = 1
    masks = {"s": rng.random(SHAPE) < 0.8, "q": rng.random(graph.shapes["q"]) < 0.3}
    masks["q"].flat[0] = True
    live = found_live(graph, state, masks)
    np.testing.assert_array_equal(live["q"], masks["q"])
    seen = (seen_at(graph, state, "p").reshape(96, -1) != 0)[:, masks["q"].reshape(-1)].any(1)
    assert seen.any()
    np.testing.assert_array_equal(live["s"], seen.reshape(SHAPE) & masks["s"])


READ: dict[str, tuple[ir.Node, ...]] = {
    "space": (ir.Readout("head", ("s",), 3),),
    "flat": (ir.Flatten("flat", ("s",)), ir.Readout("head", ("flat",), 3)),
    "pooled": (pool((2, 3), (2, 3)), ir.Readout("head", ("pool",), 3)),
    "pooled, flat": (pool((3, 2), (2, 2)), FLAT, ir.Readout("head", ("flat",), 3)),
    "maxima": (ir.MaxPool("pool", ("s",), (2, 2), (3, 2)), ir.Readout("head", ("pool",), 2)),
    "votes": (ir.Flatten("flat", ("s",)), ir.Readout("head", ("flat",), 4, linear=False, votes=24)),
    "scattered": (ir.Scatter("wide", ("s",), 3, (0, 2)), ir.Readout("head", ("wide",), 2)),
    "scattered, flat": (
        ir.Scatter("wide", ("s",), 4, (1, 3)),
        ir.Flatten("flat", ("wide",)),
        ir.Readout("head", ("flat",), 2),
    ),
}


@pytest.mark.parametrize("case", READ)
def test_a_neuron_is_live_if_a_class_weighs_it(case: str) -> None:
    first = ir.Input("input", (), SHAPE), ir.Population("s", ("input",), LIF)
    graph = ir.SpikingGraph((*first, *READ[case]), 2)
    state = state_of(graph)
    if "head.weight" in state:
        state["head.weight"][:, 1::3] = 0
        state["head.weight"][0, 0] = 1
    seen = (seen_at(graph, state, "head") != 0).any(1).reshape(SHAPE)
    np.testing.assert_array_equal(found_live(graph, state, {})["s"], seen)


POOLS = [
    ir.MaxPool("pool", ("s",), (2, 3), (2, 2)),
    ir.MaxPool("pool", ("s",), (3, 2), (1, 3), (1, 1)),
    ir.MaxPool("pool", ("s",), (1, 3), (3, 1), (0, 1)),
]


@pytest.mark.parametrize("node", POOLS, ids=lambda node: node.describe())
def test_a_maximum_can_be_nonzero_where_its_window_holds_an_unmasked_neuron(
    node: ir.MaxPool,
) -> None:
    graph = graph_of(node, conv("pool", (1, 2)), ir.Population("q", ("p",), LIF))
    mask = np.random.default_rng(13).random(SHAPE) < 0.2
    found = live_values(graph, {"s": mask})
    values = torch.from_numpy(mask.astype(np.float32))
    expected = F.max_pool2d(values, node.kernel, node.stride, node.padding).numpy() > 0
    assert not expected.all() and found["pool"] is not None
    np.testing.assert_array_equal(found["pool"], expected)
    np.testing.assert_array_equal(found["s"], mask)
    assert found["input"] is found["p"] is found["q"] is found["head"] is None
    everywhere = live_values(graph, {"s": np.ones(SHAPE, bool), "q": mask[:, :1, :1]})
    assert everywhere["s"] is everywhere["pool"] is None
    assert everywhere["q"] is not None


def test_targets_are_those_of_the_only_population_or_everything() -> None:
    """ "c" feeds "a" alone; "d" feeds "b" and "e", that goes on to a projection."""
    nodes = (
        ir.Input("input", (), (2,)),
        ir.Linear("c", ("input",), False, None, 2, 3),
        ir.Population("a", ("c",), LIF, generated=1),
        ir.Linear("d", ("a",), False, None, 4, 3),
        ir.Population("b", ("d",), LIF),
        ir.Linear("e", ("d",), False, None, 3, 3),
        ir.Population("f", ("e",), LIF),
        ir.Merge("m", ("b", "f"), "add"),
        ir.Readout("head", ("m",), 2),
    )
    graph = ir.SpikingGraph(nodes, 2)
    assert [population_behind(graph, name) for name in ("c", "d", "e")] == ["a", None, "f"]
    masks = {
        "a": np.array([True, False, True, False]),
        "b": np.array([True, False, False]),
        "f": np.ones(3, bool),
    }
    first = live_targets(graph, masks, "c")
    assert first is not None and first.tolist() == [True, False, True]  # not the pattern's channel
    assert live_targets(graph, masks, "d") is None  # "e" weighs all of it
    assert live_targets(graph, masks, "e") is None  # none is masked
    assert live_targets(graph, {}, "c") is None


def meeting(function: ir.MergeFunction) -> ir.SpikingGraph:
    """Three populations of three neurons (two for an IAND) meet; a linear layer weighs the sum."""
    names = ("a", "b") if function == "iand" else ("a", "b", "c")
    nodes: list[ir.Node] = [ir.Input("input", (), (2,))]
    for name in names:
        nodes.append(ir.Linear(f"to_{name}", ("input",), False, None, 2, 3))
        nodes.append(ir.Population(name, (f"to_{name}",), LIF))
    nodes += [
        ir.Merge("m", names, function),
        ir.Linear("p", ("m",), False, None, 3, 2),
        ir.Population("q", ("p",), LIF),
        ir.Readout("head", ("q",), 2),
    ]
    return ir.SpikingGraph(tuple(nodes), 2)


A, B, C = (np.array(flags, bool) for flags in ([1, 0, 0], [1, 1, 0], [1, 0, 1]))
MEETINGS: list[tuple[ir.MergeFunction, dict[str, Array], list[bool] | None]] = [
    ("add", {"a": A, "b": B, "c": A}, [True, True, False]),
    ("add", {"a": A, "b": A, "c": C}, [True, False, True]),
    ("add", {"a": A, "b": A}, None),  # all of "c"
    ("and", {"a": B, "b": B, "c": C}, [True, False, False]),
    ("and", {"b": C}, [True, False, True]),
    ("and", {}, None),
    ("iand", {"a": B, "b": A}, [True, True, False]),  # the identity's, whatever the branch does
    ("iand", {"b": A}, None),
]


@pytest.mark.parametrize(("function", "masks", "expected"), MEETINGS)
def test_where_a_merge_can_be_nonzero(
    function: ir.MergeFunction, masks: Mapping[str, Array], expected: list[bool] | None
) -> None:
    found = live_values(meeting(function), masks)["m"]
    assert (None if found is None else found.tolist()) == expected


@pytest.mark.parametrize("function", ["add", "and", "iand"])
def test_what_a_merge_is_weighed_at_its_branches_are_live_at(function: ir.MergeFunction) -> None:
    graph = meeting(function)
    state = state_of(graph)
    state["p.weight"] = np.array([[0, 1, 0], [0, 1, 1]], np.float32)
    state["head.weight"][:] = 1
    live = found_live(graph, state, {"b": B})
    assert live["a"].tolist() == [False, True, True] and live["b"].tolist() == [False, True, False]
    live = found_live(graph, state, {"q": np.array([True, False])})
    assert live["a"].tolist() == live["b"].tolist() == [False, True, False]


def test_whole_maps_matter_to_an_adaptive_pooling_that_a_merge_reads() -> None:
    """A merge reads the pooled map itself, so nothing composes it into a projection."""
    first = ir.Input("input", (), (1, 4, 4)), ir.Population("s", ("input",), LIF)
    graph = ir.SpikingGraph(
        (
            *first,
            ir.AdaptiveAvgPool("pool", ("s",), (2, 2)),
            ir.Convolution("side", ("s",), False, None, 1, 1, (3, 3)),
            ir.Merge("m", ("pool", "side"), "add"),
            ir.Population("r", ("m",), LIF),
            ir.Readout("head", ("r",), 2),
        ),
        2,
    )
    state = state_of(graph) | {"side.weight": np.zeros((1, 1, 3, 3), np.float32)}
    state["head.weight"][:] = 1
    keep = np.zeros((1, 2, 2), bool)
    assert not found_live(graph, state, {"r": keep})["s"].any()
    keep[0, 1, 1] = True
    assert found_live(graph, state, {"r": keep})["s"].all()
    assert live_values(graph, {"s": np.zeros((1, 4, 4), bool)})["pool"] is None
