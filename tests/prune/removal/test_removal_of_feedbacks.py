"""Channels that feed back to their own population: what goes takes rows and columns along, and what
only looks silent stays.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from recurrent import KINDS, T, images, masked, network

from soul_deploy import ir
from soul_deploy.base import Array
from soul_deploy.equivalence.engines import compare
from soul_deploy.export.verify.event_run import verify_counts
from soul_deploy.model.model import Model
from soul_deploy.prune.removal.apply import remove
from soul_deploy.prune.removal.planner import plan_removal


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", KINDS)
def test_a_compact_network_gives_the_spikes_of_the_masked_one(kind: str, seed: int) -> None:
    random = np.random.default_rng(seed)
    model = masked(network(kind, seed=seed), seed) if seed % 2 else network(kind, seed=seed)
    state = dict(model.state)
    for name in ("p.back.weight",):
        if name in state:
            thinned = state[name] * (random.random(state[name].shape) > 0.5)
            state[name] = np.where(random.random(thinned.shape[1:]) > 0.3, thinned, 0).astype("f4")
    keep = {"p": random.random(model.graph.shapes["p"][0]) > 0.4, "q": random.random(8) > 0.3}
    keep["p"][:2], keep["q"][:4] = (True, False), True
    model = replace(model, state=state, channel_masks=keep)
    plan = plan_removal(model)
    compact = remove(model, plan)
    channels = compact.graph.shapes["p"][0]
    assert channels < model.graph.shapes["p"][0]
    if kind in ("linear", "convolution"):
        assert compact.state["p.back.weight"].shape[:2] == (channels, channels)
        assert compact.state["p.back.bias"].shape == (channels,)
    x = torch.from_numpy(images(model, 8, steps=T))
    compared = compare(model, compact, x, plan.kept_channels, allow_silent=True)
    assert compared.verdict.value == "passed"
    assert verify_counts(compact, x).verdict.value != "failed"


def chain(weight: Array, first: Array, bias: Array | None = None) -> Model:
    """IF neurons (threshold 1, `gt`) fed by `first` (n, 1) and back by `weight`; all are read."""
    n = len(weight)
    back = ir.Linear("back", ("p",), bias is not None, None, n, n)
    nodes = (
        ir.Input("input", (), (1,)),
        ir.Linear("first", ("input",), False, None, 1, n),
        ir.Population("p", ("first",), ir.NeuronSpec("if"), feedback=back),
        ir.Linear("second", ("p",), False, None, n, 2),
        ir.Population("q", ("second",), ir.NeuronSpec("if")),
        ir.Readout("head", ("q",), 2),
    )
    state = {
        "first.weight": first.astype(np.float32),
        "back.weight": weight.astype(np.float32),
        "second.weight": np.ones((2, n), np.float32),
        "head.weight": np.eye(2, dtype=np.float32),
        "head.bias": np.zeros(2, np.float32),
    }
    if bias is not None:
        state["back.bias"] = bias.astype(np.float32)
    return Model(ir.SpikingGraph(nodes, 4), state)


def removed(model: Model) -> dict[int, str]:
    layer = plan_removal(model).layer("p")
    assert layer is not None
    return dict(layer.removed)


def test_channels_that_only_feed_one_another_are_silent() -> None:
    """0 has input; 1 and 2 have none, and feed each other; 3 is fed by 0."""
    weight = np.zeros((4, 4))
    weight[1, 2] = weight[2, 1] = weight[1, 1] = weight[3, 0] = 2
    first = np.array([[2], [0], [0], [0]])
    assert removed(chain(weight, first)) == {1: "silent", 2: "silent"}
    weight[2, 0] = 0.25  # now 0 wakes 2, and 2 wakes 1
    assert removed(chain(weight, first)) == {}


def test_the_bias_of_a_feedback_makes_neurons_fire() -> None:
    first, nothing = np.array([[2], [0], [0]]), np.zeros((3, 3))
    assert removed(chain(nothing, first, np.array([0, 0.5, -1]))) == {2: "silent"}


def test_what_fires_by_itself_wakes_its_neighbour() -> None:
    """1 fires from its bias, and 2 from 1's spikes; neither is a constant, for 2 waits a step."""
    weight, first = np.zeros((3, 3)), np.array([[2], [0], [0]])
    weight[2, 1] = 2
    assert removed(chain(weight, first, np.array([0, 2, 0]))) == {}


def test_a_channel_that_only_feeds_what_nobody_reads_goes() -> None:
    """The next layer reads 0; 1 feeds 0; 2 and 3 feed each other."""
    weight = np.zeros((4, 4))
    weight[0, 1] = weight[2, 3] = weight[3, 2] = 1
    model = chain(weight, np.full((4, 1), 2))
    second = np.zeros((2, 4), np.float32)
    second[:, 0] = 1
    model = replace(model, state={**model.state, "second.weight": second})
    assert removed(model) == {2: "unread", 3: "unread"}


def test_channels_fed_back_in_groups_stay() -> None:
    model = network("convolution")
    population = model.graph["p"]
    assert isinstance(population, ir.Population) and population.feedback is not None
    grouped = replace(population.feedback, groups=2)  # type: ignore[call-arg]
    graph = model.graph.with_nodes({"p": replace(population, feedback=grouped)})
    weight = model.state["p.back.weight"][:, :2]
    keep = {"p": np.array([True, False, True, True])}
    model = Model(graph, {**model.state, "p.back.weight": weight}, keep)
    layer = plan_removal(model).layer("p")
    assert layer is not None and layer.tied == "fed back by a grouped convolution"
    assert remove(model).graph.shapes["p"] == (4, 5, 5)
