"""Counts, liveness and connectivity of networks whose branches meet, small enough to do by hand."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from soul_deploy.analysis.connectivity import measure_connectivity
from soul_deploy.analysis.synops import count_model
from soul_deploy.export.event.build import build_event_network
from soul_deploy.ir import (
    ANALOG,
    AdaptiveAvgPool,
    AvgPool,
    Convolution,
    Edge,
    Input,
    Linear,
    MaxPool,
    Merge,
    MergeFunction,
    NeuronSpec,
    Node,
    Population,
    Readout,
    Scatter,
    SpikingGraph,
)
from soul_deploy.lowering.deploy import lower
from soul_deploy.lowering.fan_out import live_targets
from soul_deploy.model.model import Model
from soul_deploy.nn.graph_module import Signal
from soul_deploy.runtime.engine.network import Network
from soul_deploy.runtime.format.network import CurrentLayer, PopulationLayer
from soul_deploy.runtime.ops.counted_run import count
from soul_deploy.runtime.ops.counters import LayerCounts

IF, STEPS = NeuronSpec("if"), 3
ONE = torch.ones(1, 1)


def linear(name: str, source: str, inputs: int, outputs: int) -> Linear:
    return Linear(name, (source,), False, None, inputs, outputs)


def model_of(nodes: list[Node], **weights: Any) -> Model:
    state = {f"{name}.weight": np.array(w, np.float32) for name, w in weights.items()}
    state["head.bias"] = np.zeros(2, np.float32)
    return Model(SpikingGraph(tuple(nodes), STEPS), state)


def spikes_meet(function: MergeFunction) -> Model:
    """Per step "p" fires at neuron 0, "q" at both; "r" has three synapses, fan-outs 2 and 1."""
    return model_of(
        [
            Input("input", (), (1,)),
            linear("cp", "input", 1, 2),
            Population("p", ("cp",), IF),
            linear("cq", "input", 1, 2),
            Population("q", ("cq",), IF),
            Merge("m", ("q", "p"), function),
            linear("cr", "m", 2, 3),
            Population("r", ("cr",), IF),
            Readout("head", ("r",), 2),
        ],
        cp=[[2], [0]],
        cq=[[2], [2]],
        cr=[[1, 0], [1, 0], [0, 1]],
        head=[[1, 1, 1], [0, 0, 0]],
    )


# Per step the merge holds (2, 1), (1, 0) or (0, 1).
BY_HAND = {
    "add": LayerCounts(6, 9, 9, 15, 9, 0, 9),
    "and": LayerCounts(3, 3, 6, 6, 6, 0, 9),
    "iand": LayerCounts(3, 3, 3, 3, 3, 0, 9),
}


@pytest.mark.parametrize("function", BY_HAND)
def test_a_graded_event_counts_once_and_its_value_too(function: MergeFunction) -> None:
    model = spikes_meet(function)
    bound = 2 if function == "add" else 1
    assert model.graph.edges["m"] == Edge("graded" if function == "add" else "spike", bound)
    counts = count_model(model, ONE)
    assert replace(counts["cr"], spikes_out=0) == BY_HAND[function]
    assert count(Network(build_event_network(model)), ONE.numpy()) == counts


def test_a_graded_readout_counts_values() -> None:
    model = spikes_meet("add")
    nodes = [node for node in model.graph.nodes if node.name not in ("cr", "r", "head")]
    graph = SpikingGraph((*nodes, Readout("head", ("m",), 2)), STEPS)
    state = {**model.state, "head.weight": np.array([[1, 0], [1, 1]], np.float32)}
    model = Model(graph, {name: array for name, array in state.items() if name != "cr.weight"})
    counts = count_model(model, ONE)["head"]
    # Sums over three steps: (6, 3); fan-outs (2, 1).
    assert counts == LayerCounts(2, 9, 3, 15, 2)
    network = Network(build_event_network(model))
    assert count(network, ONE.numpy())["head"] == counts
    np.testing.assert_array_equal(network.run(ONE.numpy()), [[2, 3]])


def currents_meet() -> Model:
    """The current of "stem" goes to "a" and to the merge; "again" weighs it once, "short" the sum.

    The stem is (2, 3) at every step, "a" fires everywhere, its synapses add (1, 0).
    """
    return model_of(
        [
            Input("input", (), (1,)),
            linear("stem", "input", 1, 2),
            linear("again", "stem", 2, 2),
            Population("a", ("stem",), IF),
            linear("ca", "a", 2, 2),
            Merge("m", ("ca", "again"), "add"),
            linear("short", "m", 2, 1),
            Population("b", ("short",), IF),
            Population("c", ("m",), IF),
            Readout("head", ("c",), 2),
        ],
        stem=[[2], [3]],
        again=[[1, 1], [0, 1]],
        ca=[[1, 0], [0, 0]],
        short=[[1, 1]],
        head=[[1, 0], [0, 1]],
    )


def test_analog_edges_count_each_step_unless_they_are_static() -> None:
    model = currents_meet()
    assert model.graph.edges["m"] == ANALOG
    counts = count_model(model, ONE)
    assert counts["stem"] == LayerCounts(macs_effective=2)
    assert counts["again"] == LayerCounts(macs_effective=3)  # static: once
    assert counts["short"].macs_effective == 2 * STEPS  # it changes over time
    assert counts["ca"] == LayerCounts(6, 6, 3, 3, 3)
    assert counts["a"] == LayerCounts(neuron_updates=6, spikes_out=6)
    assert counts["c"].neuron_updates == 6
    assert list(counts) == ["stem", "again", "ca", "short", "a", "c", "head"]
    sequence = count_model_of_sequence(model)
    assert sequence["stem"].macs_effective == 2 * STEPS
    assert sequence["again"].macs_effective == 3 * STEPS


def count_model_of_sequence(model: Model) -> dict[str, LayerCounts]:
    return count(Network(build_event_network(model)), np.ones((STEPS, 1, 1), np.float32))


def test_static_currents_stay_single() -> None:
    """Nothing reads "b": none of its neurons is live, none of the synapses onto it counts."""
    model = currents_meet()
    network = Network(build_event_network(model))
    assert network.events.static == {"input", "stem", "again"}
    kinds = [type(network.events.by_name[name]) for name in ("stem", "a", "c")]
    assert kinds == [CurrentLayer, PopulationLayer, PopulationLayer]
    assert network.run_layer("again", np.array([[2, 3]], np.float32)).shape == (1, 2)
    counts = count(network, ONE.numpy())
    assert counts == count_model(lower(model).trimmed.model, ONE)
    assert counts["short"] == LayerCounts()


def test_neurons_that_only_zero_weights_read_are_not_live() -> None:
    model = spikes_meet("add")
    state = {**model.state, "cr.weight": np.array([[1, 0], [1, 0], [0, 0]], np.float32)}
    live = lower(replace(model, state=state)).live_neurons
    assert live["p"].tolist() == live["q"].tolist() == [True, False]


POOLINGS: list[Node] = [
    AdaptiveAvgPool("pool", ("p",), (2, 2)),
    AdaptiveAvgPool("pool", ("p",), (3, 3)),
    AvgPool("pool", ("p",), (2, 2), (2, 2)),
    AvgPool("pool", ("p",), (3, 3), (1, 1)),
    MaxPool("pool", ("p",), (2, 2), (2, 2)),
    MaxPool("pool", ("p",), (3, 3), (2, 2), (1, 1)),
]


@pytest.mark.parametrize("pool", POOLINGS, ids=lambda node: node.describe())
def test_neurons_are_live_if_one_pooled_value_that_a_merge_adds_is_read(pool: Node) -> None:
    """All but the first neuron behind the merge are masked: leaving out what is dead changes no
    score, and the pooling's own windows live."""
    shape = pool.output_shape([(1, 4, 4)])
    nodes: list[Node] = [
        Input("input", (), (1, 4, 4)),
        Convolution("cp", ("input",), False, None, 1, 1, (1, 1)),
        Population("p", ("cp",), IF),
        pool,
        Convolution("side", ("p",), False, None, 1, 1, (5 - shape[1], 5 - shape[2])),
        Merge("m", ("pool", "side"), "add"),
        Population("r", ("m",), NeuronSpec("if", v_threshold=0.3)),
        Readout("head", ("r",), 2),
    ]
    model = model_of(nodes, cp=[[[[1.5]]]], side=np.zeros((1, 1, 5 - shape[1], 5 - shape[2])))
    head = {"head.weight": np.array([[1.0], [-1.0]], np.float32)}
    keep = np.zeros(shape, bool)
    keep[0, 0, 0] = True
    model = replace(model, state={**model.state, **head}, neuron_masks={"r": keep})
    x = torch.ones(1, 1, 4, 4)
    scores = model.module()(x)
    assert scores.abs().sum() > 0 and torch.equal(lower(model).trimmed.model.module()(x), scores)
    found = lower(model).live_neurons
    np.testing.assert_array_equal(found["r"], keep)
    for place in np.ndindex(4, 4):
        alone = torch.zeros(STEPS, 1, 1, 4, 4)
        alone[:, :, :, *place] = 1
        pooled = model.module().evaluate({"p": Signal(alone, False)}, ["pool"])["pool"].tensor
        assert found["p"][0][place] or pooled[0, 0, 0, 0, 0] == 0  # nothing of a dead one arrives


def test_scattered_neurons_are_live_where_their_place_is_read() -> None:
    model = scattered()
    state = {**model.state, "head.weight": np.array([[0, 1, 0], [0, 0, 0]], np.float32)}
    model = replace(model, state=state)
    assert lower(model).live_neurons["p"].tolist() == [False, True]
    values = lower(model).trimmed.live_values["wide"]
    assert values is not None
    assert values.tolist() == [False, True, False]


def scattered() -> Model:
    return model_of(
        [
            Input("input", (), (1,)),
            linear("cp", "input", 1, 2),
            Population("p", ("cp",), IF),
            Scatter("wide", ("p",), 3, (0, 1)),
            Readout("head", ("wide",), 2),
        ],
        cp=[[2], [2]],
        head=[[1, 1, 1], [0, 0, 0]],
    )


@pytest.mark.parametrize(
    ("function", "expected"), [("add", None), ("and", [False, True]), ("iand", [True, False])]
)
def test_where_a_merge_can_be_nonzero(function: MergeFunction, expected: list[bool] | None) -> None:
    masks = {"p": np.array([False, True])}
    if function == "iand":
        masks["q"] = np.array([True, False])
    values = lower(replace(spikes_meet(function), neuron_masks=masks)).live_values["m"]
    assert (None if values is None else values.tolist()) == expected


@pytest.mark.parametrize(("function", "live"), [("add", 3), ("and", 1), ("iand", 3)])
def test_what_a_merge_reaches(function: MergeFunction, live: int) -> None:
    """Population "p" is masked at neuron 0: an AND then carries neuron 1 only."""
    model = spikes_meet(function)
    weights = {name: model.state[f"{name}.weight"] for name in ("cp", "cq", "cr")}
    weights["cp"] = np.ones_like(weights["cp"])
    masks = {"p": np.array([False, True])}
    found = {c.projection: c.live for c in measure_connectivity(model.graph, weights, masks).layers}
    assert found == {"cp": 1, "cq": 2, "cr": live}


def test_iand_reaches_what_its_identity_does() -> None:
    model = spikes_meet("iand")
    weights = {name: model.state[f"{name}.weight"] for name in ("cp", "cq", "cr")}
    masks = {"q": np.array([False, True])}
    found = {c.projection: c.live for c in measure_connectivity(model.graph, weights, masks).layers}
    assert found["cr"] == 1


def test_synapses_behind_meeting_currents_are_counted_not_paths() -> None:
    model = currents_meet()
    weights = {p.name: model.state[f"{p.name}.weight"] for p in model.graph.projections}
    layers = measure_connectivity(model.graph, weights, {"a": np.array([True, False])}).layers
    assert {c.projection: c.live for c in layers} == {"stem": 2, "again": 3, "ca": 1, "short": 2}


def test_targets_are_live_if_a_neuron_behind_the_merge_is() -> None:
    model = currents_meet()
    half = np.array([True, False])
    assert live_targets(model.graph, {"c": half}, "ca") is None  # "short" reads the sum
    nodes = [n for n in model.graph.nodes if n.name not in ("short", "b")]
    graph = SpikingGraph(tuple(nodes), STEPS)
    found = live_targets(graph, {"c": half}, "ca")
    assert found is not None
    assert found.tolist() == [True, False]
    state = {name: array for name, array in model.state.items() if name != "short.weight"}
    masked = Model(graph, state, neuron_masks={"c": half})
    counts = count_model(masked, ONE)
    assert counts["again"] == LayerCounts(macs_effective=2)
    assert counts["c"].neuron_updates == STEPS
    found_counts = count(Network(build_event_network(masked)), ONE.numpy())
    assert found_counts == count_model(lower(masked).trimmed.model, ONE)


@pytest.mark.parametrize("first", ["p", "q"])
def test_a_current_is_live_where_any_of_its_readers_is(first: str) -> None:
    """Its three targets: one that only p needs, one that only q needs, one that neither does."""
    second = {"p": "q", "q": "p"}[first]
    model = model_of(
        [
            Input("input", (), (1,)),
            linear("cu", "input", 1, 3),
            Population("u", ("cu",), IF),
            replace(linear("c", "u", 3, 3), bias=True),
            Population(first, ("c",), IF),
            Population(second, ("c",), IF),
            Merge("m", ("p", "q"), "add"),
            Readout("head", ("m",), 2),
        ],
        cu=[[1.5], [1.5], [1.5]],
        c=np.eye(3),
        head=np.ones((2, 3)),
    )
    masks = {"p": np.array([True, False, False]), "q": np.array([False, True, False])}
    state = {**model.state, "c.bias": np.ones(3, np.float32)}
    model = replace(model, state=state, neuron_masks=masks)
    live = live_targets(model.graph, model.neuron_masks, "c")
    assert live is not None and live.tolist() == [True, True, False]
    assert lower(model).live_neurons["u"].tolist() == [True, True, False]
    counts = count_model(model, ONE)["c"]
    assert (counts.spikes_in, counts.synops, counts.bias_adds) == (3 * STEPS, 2 * STEPS, 2 * STEPS)


def test_a_neuron_is_live_for_a_merge_or_for_whoever_reads_it_later() -> None:
    """Behind the merge only the first is weighed; of p, the second by "s" alone."""
    model = model_of(
        [
            Input("input", (), (1,)),
            linear("cp", "input", 1, 2),
            Population("p", ("cp",), IF),
            linear("cq", "input", 1, 2),
            Population("q", ("cq",), IF),
            Merge("m", ("p", "q"), "add"),
            linear("cr", "m", 2, 1),
            Population("r", ("cr",), IF),
            linear("cs", "p", 2, 1),
            Population("s", ("cs",), IF),
            Merge("out", ("r", "s"), "add"),
            Readout("head", ("out",), 2),
        ],
        cp=[[1.5], [1.5]], cq=[[1.5], [1.5]], cr=[[1, 0]], cs=[[0, 1]], head=[[1], [1]],
    )  # fmt: skip
    live = lower(model).live_neurons
    assert live["p"].tolist() == [True, True] and live["q"].tolist() == [True, False]


def test_a_scattered_branch_is_live_at_its_places() -> None:
    model = model_of(
        [
            Input("input", (), (1,)),
            linear("cp", "input", 1, 2),
            Population("p", ("cp",), IF),
            Scatter("wide", ("p",), 3, (1, 2)),
            linear("cq", "input", 1, 3),
            Population("q", ("cq",), IF),
            Merge("m", ("q", "wide"), "and"),
            Readout("head", ("m",), 2),
        ],
        cp=[[1], [1]], cq=[[1], [1], [1]], head=np.ones((2, 3)),
    )  # fmt: skip
    live = lower(replace(model, neuron_masks={"p": np.array([True, False])})).live_values
    assert live["wide"] is not None and live["wide"].tolist() == [False, True, False]
    assert live["m"] is not None and live["m"].tolist() == [False, True, False]


def test_connectivity_counts_whole_synapses_of_neurons_that_the_input_reaches() -> None:
    """Nothing reaches a constant-pattern channel; a pooled map is reached if one neuron of four is,
    once."""
    nodes: list[Node] = [
        Input("input", (), (1, 2, 2)),
        Convolution("cp", ("input",), False, None, 1, 1, (1, 1)),
        Population("p", ("cp",), IF, generated=1),
        AdaptiveAvgPool("pool", ("p",), (1, 1)),
        Convolution("cq", ("input",), False, None, 1, 2, (2, 2)),
        Population("q", ("cq",), IF),
        Merge("m", ("q", "pool"), "add"),
        Convolution("cr", ("m",), False, None, 2, 3, (1, 1)),
        Population("r", ("cr",), IF),
        Readout("head", ("r",), 3),
    ]
    keep = np.zeros((2, 2, 2), bool)
    keep[0, 0, 0] = keep[1] = True
    weights = {"cp": (1, 1, 1, 1), "cq": (2, 1, 2, 2), "cr": (3, 2, 1, 1)}
    ones = {name: np.ones(shape, np.float32) for name, shape in weights.items()}
    masks = {"p": keep, "q": np.zeros((2, 1, 1), bool)}
    found = measure_connectivity(SpikingGraph(tuple(nodes), STEPS), ones, masks)
    assert {layer.projection: layer.live for layer in found.layers} == {"cp": 1, "cq": 0, "cr": 3}


def test_a_pooled_current_keeps_negative_maxima() -> None:
    """Padding is no value: of currents that are all negative, the largest one counts."""
    nodes: list[Node] = [
        Input("input", (), (1, 2, 2)),
        MaxPool("pool", ("input",), (2, 2), (2, 2), (1, 1)),
        Population("p", ("pool",), IF),
        Readout("head", ("p",), 2),
    ]
    model = model_of(nodes, head=[[1], [0]])
    network = Network(build_event_network(model))
    x = -np.arange(1, 5, dtype=np.float32).reshape(1, 1, 2, 2)
    np.testing.assert_array_equal(network.run_layer("pool", x), x)
