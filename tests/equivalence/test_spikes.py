"""Spikes of one population of maps, compared by hand: what is told of each mismatch and in all."""

from dataclasses import replace

import torch
from test_compare import IF, ONES, with_a_pattern
from torch import Tensor, nn

from soul_deploy.equivalence.reference import ReferenceModel
from soul_deploy.equivalence.spikes import compare_population, unseen_population
from soul_deploy.frontend.from_torch import trace
from soul_deploy.model.model import ModelInfo, from_module
from soul_deploy.nn import layers
from soul_deploy.nn.graph_module import GraphModule
from soul_deploy.nn.neuron import SpikingNeuron

IMAGES = torch.tensor([1.0, 0.5]).reshape(2, 1, 1, 1).expand(2, 1, 2, 3).contiguous()
"""Two samples of one channel, 2 high and 3 wide."""


def maps() -> ReferenceModel:
    """Three channels of 2 × 3 neurons, whose current is 0.5, 1.5 and 2.5 times the pixel."""
    network = nn.Sequential(
        layers.Conv2d(1, 3, 1, bias=False), SpikingNeuron(IF, 2), layers.RateReadout(3, 2)
    )
    module = GraphModule(trace(network, (1, 2, 3), 2))
    with torch.no_grad():
        module.get_parameter("0.weight").copy_(torch.tensor([0.5, 1.5, 2.5]).reshape(3, 1, 1, 1))
    return ReferenceModel(from_module(module, ModelInfo()))


def flipped(spikes: Tensor, *places: tuple[int, ...]) -> Tensor:
    other = spikes.clone()
    for place in places:
        other[place] = ~other[place]
    return other


def test_mismatches_of_maps_that_lost_a_channel() -> None:
    reference, keep = maps(), torch.tensor([0, 2])
    values, _ = reference.record(IMAGES)
    ours = values["1"].tensor.bool()[:, :, keep]
    # Channel 2: 2.5 and 1.25 in the first step, so 1.5 and 0.25 above the threshold.
    other = flipped(ours, (0, 1, 1, 1, 2), (1, 1, 1, 1, 2), (0, 0, 1, 0, 1))
    found, firsts = compare_population(reference, "1", values, other, keep)
    assert (found.neurons, found.samples) == (2 * 2 * 3, 2)
    assert (found.golden_spikes, found.other_spikes) == (int(ours.sum()), int(other.sum()))
    assert (found.driven_spikes, found.differing) == (int(ours.sum()), 3)
    assert (found.flipped, found.unexplained, found.passed) == (2, 2, False)
    told = [(f.sample, f.step, f.neuron, f.fired, f.distance) for f in found.flips]
    assert told == [(0, 0, (2, 0, 1), True, 1.5), (1, 0, (2, 1, 2), True, 0.25)]
    assert all(0 < flip.allowance < 1e-4 for flip in found.flips)
    assert set(firsts) == {0, 1} and firsts[1] == found.flips[1]
    later, _ = compare_population(reference, "1", values, other, keep, offset=7)
    assert [flip.sample for flip in later.flips] == [7, 8]
    assert (
        found.compared
        and not found.silent
        and found.flips == tuple(replace(flip, sample=flip.sample - 7) for flip in later.flips)
    )


def test_a_population_that_is_not_shown_is_counted_alone() -> None:
    reference = maps()
    values, _ = reference.record(IMAGES)
    found = unseen_population(reference, "1", values)
    spikes = int(values["1"].tensor.sum())
    assert (found.neurons, found.samples) == (3 * 2 * 3, 2) and not found.compared
    assert (found.golden_spikes, found.other_spikes, found.driven_spikes) == (spikes, 0, spikes)
    assert (found.differing, found.flipped, found.unexplained, found.flips) == (0, 0, 0, ())
    assert "SpikeMismatch(" not in repr(found)


def test_channels_without_neurons_drive_nothing() -> None:
    """Of two channels that fire in all three steps of two samples, one has a neuron."""
    reference = ReferenceModel(with_a_pattern(1, 1, 1))
    values, _ = reference.record(ONES)
    spikes = values["1"].tensor.bool()
    for found in (
        compare_population(reference, "1", values, spikes)[0],
        unseen_population(reference, "1", values),
    ):
        assert (found.golden_spikes, found.driven_spikes) == (12, 6)
