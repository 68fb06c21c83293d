"""What channels cost: by hand, against a recount after really removing them, and measured."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from blocks import LIF, conv, model_of, ms, sew
from hypothesis import given, settings
from hypothesis import strategies as st
from priced import data_of, known_spikes
from searching import small_graph

from soul_deploy import ir
from soul_deploy.analysis.connectivity import connectivity
from soul_deploy.analysis.synops import count_model
from soul_deploy.data.datasets import Data, load_data
from soul_deploy.lowering.deploy import lower
from soul_deploy.nn.graph_module import GraphModule
from soul_deploy.prune.channel_groups import Residual
from soul_deploy.prune.removal.apply import parameters, remove
from soul_deploy.prune.structured.costs import Costs, PairCosts, pair_sums
from soul_deploy.prune.structured.masks import open_masks
from soul_deploy.prune.structured.metering import Meter
from soul_deploy.prune.structured.selection import pruning_units
from soul_deploy.prune.target import Quantity
from soul_deploy.training.state import join_tree, split_tree

DIGITS = (1, 8, 8)


def meter_of(
    module: GraphModule, data: Data, quantity: Quantity, residual: Residual = "internal"
) -> Meter:
    units = pruning_units(module.graph, residual)
    open_masks(module, [mask for unit in units for mask in unit.masks])
    return Meter(module, data, units, quantity, "coupled" if residual != "scatter" else residual)


def flags(*values: int) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    return np.array(values, np.bool_)


def test_marginal_costs_of_two_layers_by_hand() -> None:
    """b gets 2 + 2 + 0 spikes by 2 synapses each, the head 2 + 0 by 2; a sees analog values."""
    meter = meter_of(known_spikes().module(), data_of(torch.ones(1, 2)), "synops")
    reading = meter.measure()
    assert reading.cost == 12 and reading.costs.by_part(meter.keep) == {"b": 8, "head": 4}
    marginal = reading.costs.marginal(meter.keep)
    assert marginal["sa"].tolist() == [4, 4, 0]  # two spikes each, to two neurons
    assert marginal["sb"].tolist() == [4 + 4, 4 + 0]  # what comes in, and what goes out
    less = {"sa": flags(0, 1, 1), "sb": flags(1, 0)}
    assert reading.costs.total(less) == 2 + 4
    assert reading.costs.marginal(less)["sa"].tolist() == [2, 2, 0]
    assert reading.costs.marginal(less)["sb"].tolist() == [2 + 4, 2 + 0]
    assert reading.costs.outgoing(less)["sa"].tolist() == [2, 2, 0]


def test_static_costs_of_two_layers_by_hand() -> None:
    data = data_of(torch.ones(1, 2))
    synapses = meter_of(known_spikes().module(), data, "connectivity").measure()
    assert (synapses.cost, synapses.dense) == (12, 12)  # 3 · 2 and 2 · 3, the head not among them
    every = synapses.costs.all_open()
    assert synapses.costs.marginal(every)["sa"].tolist() == [4, 4, 4]
    assert synapses.costs.marginal(every)["sb"].tolist() == [3, 3]
    values = meter_of(known_spikes().module(), data, "params").measure()
    assert values.costs.total(every) == 6 + 6 + 2 + 4 + 2
    assert values.costs.marginal(every)["sb"].tolist() == [3 + 1 + 2] * 2  # a bias, a column


def test_a_channel_that_reads_itself_is_counted_once() -> None:
    """A unit that is input and output of one projection, as in a residual stream."""
    pairs = np.array([[5.0, 2.0], [3.0, 7.0]])
    part = PairCosts("p", pairs, np.array([1.0, 1.0]), "u", {"u": np.ones(2)})
    costs = Costs((part,), {"u": 2})
    for keep in (flags(1, 1), flags(1, 0), flags(0, 0)):
        for i, found in enumerate(costs.marginal({"u": keep})["u"]):
            other = keep.copy()
            other[i] = ~other[i]
            change = costs.total({"u": keep}) - costs.total({"u": other})
            assert found == abs(change), (keep, i)


def random_images(shape: ir.Shape, count: int = 70) -> torch.Tensor:
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(2)) * 2


def grouped() -> ir.SpikingGraph:
    nodes = (
        ir.Input("input", (), (2, 6, 6)),
        conv("a", "input", 2, 4),
        ir.Population("sa", ("a",), LIF),
        ir.Convolution("b", ("sa",), True, None, 4, 6, (3, 3), (2, 2), (1, 1), (1, 1), 2),
        ir.Population("sb", ("b",), LIF),
        ir.AvgPool("pool", ("sb",), (3, 3), (3, 3)),
        ir.Flatten("flat", ("pool",)),
        ir.Linear("c", ("flat",), True, None, 6, 5),
        ir.Population("sc", ("c",), LIF),
        ir.Readout("head", ("sc",), 3, linear=True),
    )
    return ir.SpikingGraph(nodes, 3)


GRAPHS = [small_graph(), sew("add", "add"), sew("iand"), ms(), grouped()]


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("residual", ["internal", "coupled", "scatter"])
def test_the_measured_cost_is_that_of_count_model(
    graph: ir.SpikingGraph, residual: Residual
) -> None:
    """To the integer, dense and masked, with neuron masks and zero weights, over two chunks."""
    images = random_images(graph.input.shape)
    model = model_of(graph, 1)
    first = graph.projections[1].name
    model.state[f"{first}.weight"][..., 0] = 0
    name = graph.populations[0].name
    single = np.random.default_rng(0).random(graph.shapes[name]) < 0.7
    module = replace(model, neuron_masks={name: single}).module()
    meter = meter_of(module, data_of(images, graph.readout.classes), "synops", residual)
    rng = np.random.default_rng(3)
    for _ in range(2):
        reading = meter.measure()
        counts = count_model(meter.model(), images)
        total = sum(layer.synops for layer in counts.values())
        assert total > 0 and reading.cost * len(images) == pytest.approx(total, abs=1e-6)
        assert round(reading.costs.total(meter.keep)) == total
        for unit in meter.units:
            keep = torch.from_numpy(rng.random(unit.channels) < 0.6).float()
            for mask in unit.masks:
                module.channel_masks[mask].keep = keep


@pytest.mark.parametrize("graph", GRAPHS[:-1])
def test_static_costs_are_those_of_the_network_after_the_removal(graph: ir.SpikingGraph) -> None:
    """Every open channel is alive. What a grouped convolution reads is only masked."""
    data = data_of(random_images(graph.input.shape, 4), graph.readout.classes)
    module = model_of(graph, 2).module()
    meters = {q: meter_of(module, data, q, "coupled") for q in ("params", "connectivity")}
    rng = np.random.default_rng(5)
    for unit in meters["params"].units:
        keep = torch.from_numpy(rng.permutation(unit.channels) > 0).float()
        for mask in unit.masks:
            module.channel_masks[mask].keep = keep
    masked = meters["params"].model()
    compact = remove(masked)
    assert compact.channel_masks == {}
    planned = {q: meter.measure().costs.total(meter.keep) for q, meter in meters.items()}
    assert planned["params"] == parameters(compact.state)
    assert planned["connectivity"] == connectivity(masked).live == connectivity(compact).live


@given(st.integers(0, 2**31), st.sampled_from(range(len(GRAPHS))))
@settings(max_examples=15, deadline=None)
def test_pairs_add_up_to_the_fan_out(seed: int, which: int) -> None:
    """Each column is what one channel delivers, whatever the masks of single neurons."""
    graph = GRAPHS[which]
    rng = np.random.default_rng(seed)
    masks = {node.name: rng.random(graph.shapes[node.name]) < 0.7 for node in graph.populations}
    lowered = lower(replace(model_of(graph, seed), neuron_masks=masks))
    for layer in lowered.layers:
        operator = layer.linear.operator
        delivered = torch.from_numpy(rng.integers(0, 5, operator.in_shape).astype(np.float64))
        live = None if layer.live is None else torch.from_numpy(layer.live.astype(np.float64))
        pairs = pair_sums(operator, delivered, live)
        reach = torch.from_numpy(layer.fanout)
        values = delivered.sum((1, 2)) if delivered.dim() > reach.dim() else delivered
        by_channel = (values * reach).reshape(operator.in_shape[0], -1).sum(1)
        assert pairs.sum(0).tolist() == by_channel.tolist()


def test_what_a_closed_channel_last_delivered_stands_for_it() -> None:
    module = known_spikes().module()
    meter = meter_of(module, data_of(torch.ones(1, 2)), "synops")
    meter.measure()
    module.channel_masks["sa"].keep = torch.tensor([0.0, 1.0, 1.0])
    reading = meter.measure()
    assert reading.cost == 8  # one of the two still drives sb
    assert reading.costs.marginal(meter.keep)["sa"].tolist() == [4, 4, 0]
    fresh = meter_of(known_spikes().module(), data_of(torch.ones(1, 2)), "synops")
    fresh.restore(join_tree(*split_tree(meter.state())))
    assert fresh.known.keys() == meter.known.keys()
    assert all(torch.equal(fresh.known[name], kept) for name, kept in meter.known.items())


def test_training_mode_and_statistics_stay_as_they_were() -> None:
    whole = load_data("digits", Path("."))
    data = replace(whole, validation=whole.validation.select(torch.arange(20)))
    graph = sew("add", shape=DIGITS, classes=10)
    module = model_of(graph, 1).module().train()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    meter_of(module, data, "synops").measure()
    assert module.training
    assert all(torch.equal(before[n], value) for n, value in module.state_dict().items())
