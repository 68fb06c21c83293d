"""Pruning networks whose scores are a sum, the last step or the maximum over time."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from priced import data_of, known_spikes
from searching import few, network
from torch import nn

import soul_deploy
from soul_deploy import FinetuneConfig, PruneSchedule, ScaConfig, SearchConfig, Target, TrainConfig
from soul_deploy.analysis.synops import count_model
from soul_deploy.base.reduction import OVER_TIME, OverTime
from soul_deploy.data.datasets import Data
from soul_deploy.ir import NeuronSpec, Scale, SpikingGraph
from soul_deploy.model.model import Model, ModelInfo, from_module
from soul_deploy.prune.delivered import delivered, sources, synops_per_sample
from soul_deploy.prune.structured.masks import open_masks
from soul_deploy.prune.structured.metering import Meter
from soul_deploy.prune.structured.selection import pruning_units
from soul_deploy.training.objective import Objective
from soul_deploy.training.state import join_tree, split_tree

every = pytest.mark.parametrize("over_time", OVER_TIME)


def scored(model: Model, over_time: OverTime) -> Model:
    readout = replace(model.graph.readout, over_time=over_time)
    return replace(model, graph=model.graph.with_nodes({readout.name: readout}))


def lively(data: Data, over_time: OverTime) -> Model:
    """A network of convolutions, all of whose populations fire, and whose readout averages space:
    batch norms have the statistics of the data.
    """
    module = network(data)
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.momentum = None
            nn.init.constant_(norm.bias, 0.5)
    module.train()(data.normalise(data.train.images))
    return scored(from_module(module.eval(), ModelInfo()), over_time)


@every
def test_synops_of_the_head_by_hand(over_time: OverTime) -> None:
    """b gets 2 + 2 spikes by 2 synapses each. The head gets 1 spike a step by 2 synapses: of the
    last step it reads one.
    """
    model, data = scored(known_spikes(), over_time), data_of(torch.ones(1, 2))
    head = 2 if over_time == "last" else 4
    assert count_model(model, torch.ones(1, 2))["head"].synops == head
    assert synops_per_sample(model, data, torch.device("cpu")) == 8 + head
    module = model.module()
    units = pruning_units(module.graph, "internal")
    open_masks(module, [mask for unit in units for mask in unit.masks])
    meter = Meter(module, data, units, "synops", "coupled")
    reading = meter.measure()
    assert reading.cost == 8 + head
    assert reading.costs.by_part(meter.keep) == {"b": 8, "head": head}
    assert reading.costs.marginal(meter.keep)["sb"].tolist() == [4 + head, 4 + 0]
    module.channel_masks["sb"].keep = torch.tensor([0.0, 1.0])
    closed = meter.measure()
    assert closed.cost == 4  # sb's first channel gets nothing, and the head neither
    assert closed.costs.marginal(meter.keep)["sb"].tolist() == [4 + head, 4 + 0]  # remembered
    fresh = Meter(module, data, units, "synops", "coupled")
    fresh.restore(join_tree(*split_tree(meter.state())))
    assert fresh.known.keys() == meter.known.keys()


@every
def test_what_is_delivered_gives_the_exact_count(over_time: OverTime) -> None:
    data = few(60)
    model = lively(data, over_time)
    images = data.normalise(data.validation.images)
    counts = count_model(model, images)
    exact = sum(layer.synops for layer in counts.values())
    assert counts[model.graph.readout.name].synops > 100
    found = synops_per_sample(model, data, torch.device("cpu")) * len(images)
    assert exact == pytest.approx(found, rel=1e-12)
    names = sources(model.graph)
    sums = delivered(model.module(), data, data.validation, names)
    assert sums.keys() == set(names)
    assert (model.graph.readout.name in names) == (over_time == "last")


@every
@pytest.mark.parametrize("votes", [0, 1], ids=["head", "votes"])
def test_constants_in_front_of_the_head_change_no_count(over_time: OverTime, votes: int) -> None:
    """The head's weights are halved, or the votes become weights: 1 spike a step by 2 synapses."""
    model = scored(known_spikes(), over_time)
    readout = replace(model.graph.readout, inputs=("half",))
    state = dict(model.state)
    if votes:
        readout = replace(readout, linear=False, bias=False)
        state = {name: array for name, array in state.items() if not name.startswith("head")}
    nodes = *model.graph.nodes[:-1], Scale("half", model.graph.readout.inputs, 0.5), readout
    model = Model(SpikingGraph(nodes, model.graph.time_steps), state)
    data, images = data_of(torch.ones(1, 2)), torch.ones(1, 2)
    counts = count_model(model, images)
    assert counts["head"].synops == (2 if over_time == "last" else 4) // (1 + votes)
    total = sum(layer.synops for layer in counts.values())
    assert synops_per_sample(model, data, torch.device("cpu")) == total
    module = model.module()
    units = pruning_units(module.graph, "internal")
    open_masks(module, [mask for unit in units for mask in unit.masks])
    assert Meter(module, data, units, "synops", "coupled").measure().cost == total


TRAINING = TrainConfig(epochs=1, batch_size=20, learning_rate=5e-3)


LEAKY = NeuronSpec("lif", tau=3.0, v_reset=None, v_subtract=0.0)
SPIKING = NeuronSpec("lif", decay_input=False, v_reset=None, form="snntorch")


def charging(model: Model, neuron: NeuronSpec | None) -> Model:
    """With neurons behind the head, whose membrane makes the scores."""
    readout = replace(model.graph.readout, neuron=neuron)
    return replace(model, graph=model.graph.with_nodes({readout.name: readout}))


@pytest.mark.parametrize("method", ["sca", "search"])
@pytest.mark.parametrize(
    ("over_time", "neuron"),
    [*((over_time, None) for over_time in OVER_TIME), ("max", LEAKY), ("last", SPIKING)],
    ids=[*OVER_TIME, "membrane", "membrane of spiking neurons"],
)
def test_both_methods_prune_the_whole_way(
    over_time: OverTime, neuron: NeuronSpec | None, method: str, tmp_path: Any
) -> None:
    """Trained, pruned, removed, exported, verified; the target of the search is in SynOps."""
    data = few(60)
    start = soul_deploy.train(charging(lively(data, over_time), neuron), data, TRAINING).model
    if method == "sca":
        schedule = PruneSchedule(ratio=0.4, epochs=2, finetune_epochs=1)
        result: Any = soul_deploy.prune_structured(start, data, ScaConfig(schedule), TRAINING)
    else:
        config = SearchConfig(
            target=Target("synops", 0.6),
            temp_scheduler=(5, 100),
            prune_lr=0.05,
            finetune=FinetuneConfig(epochs=1, learning_rate=1e-3),
        )
        result = soul_deploy.prune_unstructured(start, data, config, TRAINING)
    assert result.compact.graph.readout.over_time == over_time
    assert result.compact.graph.readout.neuron == neuron
    images = data.normalise(data.validation.images[:8])
    for kind in ("m.onnx", "m.safetensors"):
        export = soul_deploy.export_onnx if kind == "m.onnx" else soul_deploy.export_event
        export(result.compact, tmp_path / kind)
        report = soul_deploy.verify(result.compact, tmp_path / kind, images, allow_silent=True)
        assert report.passed, report.text()


def test_tet_takes_the_scores_that_the_readout_makes() -> None:
    steps = torch.tensor([[[2.0, 0.0]], [[0.0, 1.0]], [[0.0, 1.5]]])
    labels, objective = torch.tensor([0]), Objective("ce", tet=True)
    found = {how: objective.loss(steps, labels, how)[1].tolist() for how in OVER_TIME}
    assert found["sum"] == [[2.0, 2.5]] and found["last"] == [[0.0, 1.5]]
    assert found["max"] == [[2.0, 1.5]]
    assert found["mean"][0] == pytest.approx([2 / 3, 2.5 / 3])
    losses = {how: float(objective.loss(steps, labels, how)[0]) for how in OVER_TIME}
    assert len(set(losses.values())) == 1  # of single steps, whatever becomes of them


def test_counts_of_spikes_are_trained_by_cross_entropy() -> None:
    """A vote's rates by MSE; their sum is no rate."""
    model = known_spikes()
    votes = replace(model.graph.readout, linear=False, bias=False)
    found = {}
    for over_time in OVER_TIME:
        graph = model.graph.with_nodes({"head": replace(votes, over_time=over_time)})
        found[over_time] = Objective().decided(graph).criterion
        assert ("MSE" in Objective().reason(graph)) == (found[over_time] == "mse")
    assert found == {"mean": "mse", "sum": "ce", "last": "mse", "max": "mse"}
