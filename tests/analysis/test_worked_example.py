"""Every integer of the worked example, by our rule and by others, and what each mistake would give.

The figures were worked out by hand (docs/counting.md shows how), not by this code.
"""

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from naive import targets_of
from worked import (
    EVENTS,
    WEIGHT,
    added,
    before_pooling,
    compat_of,
    counts_of,
    events,
    layer_of,
    pooled,
    without_bias,
    worked_model,
)

from soul_deploy.analysis.measure import count
from soul_deploy.analysis.other_tools import CompatCounts, dense_ops
from soul_deploy.analysis.report import OpsReport
from soul_deploy.analysis.synops import count_model
from soul_deploy.base.errors import VerificationError
from soul_deploy.export.event.build import build_event_network
from soul_deploy.lowering.fan_out import fanout
from soul_deploy.lowering.linear_operators import ConvOperator
from soul_deploy.model.model import Model
from soul_deploy.runtime.engine.inputs import to_channel_last
from soul_deploy.runtime.engine.network import Network
from soul_deploy.runtime.format.network import SpikingLayer
from soul_deploy.runtime.ops.counted_run import count_run
from soul_deploy.runtime.ops.counting import projection_steps
from soul_deploy.runtime.ops.energy import MEMORY, Activity, accesses, ops_energy
from soul_deploy.runtime.ops.fan_out import fanout_map

FANOUT = [
    [[3, 6, 6, 4], [5, 6, 8, 4], [5, 8, 7, 5], [4, 5, 5, 2]],
    [[3, 5, 6, 4], [5, 7, 8, 5], [6, 8, 8, 5], [4, 5, 5, 3]],
]


def stored(model: Model) -> SpikingLayer:
    """The convolution in an event network."""
    layer = build_event_network(model, representation="implicit").by_name["q"]
    assert isinstance(layer, SpikingLayer)
    return layer


def test_ours() -> None:
    counts = counts_of(worked_model(), events())
    assert (counts.events_in, counts.spikes_in) == (5, 5)
    assert counts.synops == counts.synops_events == 25
    assert counts.touched == 21
    assert counts.neuron_updates == counts.bias_adds == 58
    assert counts.spikes_out == 3
    assert counts.macs_effective == counts.pool_ops == 0


def test_every_convention() -> None:
    compat = compat_of(worked_model(), events())
    assert compat.upr_sops == 25
    assert compat.neurobench_acs == 31
    assert compat.neurobench_macs == 0
    assert compat.neurobench_dense == 800
    assert compat.spikingjelly_synops == 64
    assert compat.spikingjelly_macs == 0
    border_ignored = sum(np.count_nonzero(WEIGHT[:, c]) for _, c, _, _ in EVENTS)
    assert border_ignored == 42


def test_fanout_is_the_rows_of_the_event_network() -> None:
    for model, total in ((worked_model(), 170), (worked_model(masked=False), 192)):
        ours = layer_of(model).fanout
        layer = stored(model)
        np.testing.assert_array_equal(fanout_map(layer.synapses, layer.updated), ours)
        assert ours.sum() == total
        explicit = build_event_network(model, representation="explicit").by_name["q"]
        assert isinstance(explicit, SpikingLayer)
        lengths = explicit.synapses.rows.lengths
        np.testing.assert_array_equal(np.moveaxis(lengths.reshape(4, 4, 2), -1, 0), ours)
    np.testing.assert_array_equal(layer_of(worked_model()).fanout, FANOUT)
    dense = worked_model(weight=np.ones_like(WEIGHT), masked=False)
    assert layer_of(dense).fanout.sum() == dense_ops(dense.graph)["p"].valid == 400
    assert dense_ops(dense.graph)["p"].padded == 576


def test_the_event_runtime_counts_the_same_step_by_step() -> None:
    layer, held = stored(worked_model()), events().numpy().astype(np.uint8)
    found = projection_steps(layer, np.swapaxes(to_channel_last(held, (2, 4, 4)), 0, 1))
    assert found.values["synops"].tolist() == [[15], [10]]
    assert found.values["touched"].tolist() == [[12], [9]]
    assert found.total().bias_adds == 58


def test_memory_accesses_are_292() -> None:
    activity = Activity(counts_of(worked_model(), events()))
    found = accesses(activity)
    assert list(found.values())[:7] == [5, 10, 50, 50, 116, 58, 3]
    assert sum(found.values()) == 292
    assert sum(found.values()) * MEMORY["eie45"].level(4096)[1] == 14600
    assert ops_energy({"p": activity}).value == 225
    assert accesses(activity, "implicit")["syn_read"] == 25
    assert accesses(activity, lazy=True)["v_sweep"] == 42


@pytest.mark.parametrize(
    ("stride", "padding", "ours", "unmasked", "valid"), [(2, 1, 7, 9, 16), (1, 0, 8, 12, 24)]
)
def test_strides_and_paddings(
    stride: int, padding: int, ours: int, unmasked: int, valid: int
) -> None:
    model = without_bias(worked_model(stride=stride, padding=padding))
    assert counts_of(model, events()).synops == ours
    compat = compat_of(model, events())
    assert compat.upr_sops == ours
    assert compat.neurobench_acs == unmasked
    assert compat.spikingjelly_synops == valid


def test_a_sum_of_spikes() -> None:
    """The last event has value 2: it costs its 8 synapses twice, or once."""
    x = events((1, 1, 1, 1, 2))
    counts, compat = counts_of(added(), x), compat_of(added(), x)
    assert (counts.synops, counts.synops_events, counts.spikes_in) == (33, 25, 6)
    assert compat.upr_sops == 33
    assert compat_of(added(masked=False), x).upr_sops == 40
    assert (compat.neurobench_acs, compat.neurobench_macs) == (0, 31)
    assert (compat.spikingjelly_synops, compat.spikingjelly_macs) == (0, 1152)
    graded = ops_energy({"p": Activity(counts, graded=True)}, optional=("graded",))
    assert graded.terms["synops"] == 9 * 33
    assert graded.value == 46 * 25


def test_average_pooling_before() -> None:
    """Eleven spikes pooled to values of .25 .5 .75 1 .25: fused they cost 49."""
    x = before_pooling()
    counts, compat = counts_of(pooled(), x), compat_of(pooled(), x)
    assert (counts.events_in, counts.synops, counts.synops_events) == (11, 49, 49)
    assert compat.upr_sops == Fraction(49, 4)
    assert compat.neurobench_macs == 31
    assert (compat.spikingjelly_synops, compat.spikingjelly_macs) == (0, 1152)


# One wrong count each: the rules that are most easily got wrong.


def by_hand(model: Model, source: torch.Tensor) -> int:
    """SynOps by plain loops over every synapse of every event."""
    op, mask = layer_of(model).linear.operator, model.neuron_masks.get("q")
    assert isinstance(op, ConvOperator)
    geometry = (op.stride, op.padding, op.dilation, op.groups, op.out_shape, op.reach)
    total = 0
    for t, b, c, y, x in source.nonzero().tolist():
        for o, oy, ox, w in targets_of(c, y, x, op.weight, *geometry):
            if w != 0 and (mask is None or mask[o, oy, ox]):
                total += int(source[t, b, c, y, x])
    return total


def test_a_rule_left_out_is_seen() -> None:
    """Each rule changes the count of the example, so leaving one out cannot pass."""
    border_ignored = sum(np.count_nonzero(WEIGHT[:, c]) for _, c, _, _ in EVENTS)
    zeros_counted = worked_model(weight=np.ones_like(WEIGHT))
    dead_counted = worked_model(masked=False)
    assert border_ignored == 42
    assert counts_of(dead_counted, events()).synops == by_hand(dead_counted, events()) == 31
    assert counts_of(zeros_counted, events()).synops == by_hand(zeros_counted, events()) > 25


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("padding", [0, 1, 2])
def test_against_plain_loops(stride: int, groups: int, padding: int) -> None:
    weight = WEIGHT[:, : 2 // groups]
    model = worked_model(weight=weight, stride=stride, groups=groups, padding=padding)
    assert counts_of(model, events()).synops == by_hand(model, events())
    layer = stored(model)
    np.testing.assert_array_equal(fanout_map(layer.synapses, layer.updated), layer_of(model).fanout)


def test_groups_are_not_full_connections() -> None:
    """Two groups: an event reaches one output channel, which halves everything."""
    model = worked_model(weight=np.ones((2, 1, 3, 3), np.float32), groups=2, masked=False)
    assert counts_of(model, events()).synops == 32
    assert dense_ops(model.graph)["p"].valid == 200
    assert compat_of(model, events()).spikingjelly_synops == 32


def test_average_pooling_composed_and_by_loops() -> None:
    x = before_pooling()
    assert by_hand(pooled(), x) == counts_of(pooled(), x).synops == 49


def test_a_static_image_is_counted_once() -> None:
    """Without the spikes before it, the image is convolved: once, not at each of T = 2 steps."""
    model = worked_model()
    first, _, projection, *rest = model.graph.nodes
    nodes = (first, replace(projection, inputs=("input",)), *rest)
    model = replace(model, graph=replace(model.graph, nodes=nodes))
    image = events()[:, 0].sum(0)[None]
    counts = count_model(model, image)["p"]
    assert counts.macs_effective == 25
    assert counts.bias_adds == 29
    assert counts.synops == counts.events_in == 0
    assert count_run(Network(build_event_network(model)), image.numpy()).counts["p"] == counts
    report = measured(model, image)
    assert report.totals["macs_effective"] == 25
    assert report.totals["macs_if_repeated"] == 50
    assert report.totals["macs_dense"] == 400 + 4
    assert report.totals["dense_ops_valid"] == 2 * (400 + 4)
    assert report.totals["dense_ops_padded"] == 2 * (576 + 4)


def measured(model: Model, images: torch.Tensor) -> OpsReport:
    """Its report, as its own original."""
    return count(model, images)


def test_values_that_an_edge_cannot_hold_are_refused() -> None:
    with pytest.raises(VerificationError, match="whole numbers from 0 to 1"):
        counts_of(worked_model(), events((1, 1, 1, 1, 2)))
    with pytest.raises(VerificationError, match=r"values from 0 to 2\.5 arrived"):
        counts_of(added(), events((1, 1, 1, 1, 2.5)))
    with pytest.raises(VerificationError, match="values from -1 to 1 arrived"):
        counts_of(worked_model(), events((1, 1, 1, 1, -1)))
    layer, held = stored(worked_model()), events((1, 1, 1, 1, 2)).numpy().astype(np.uint8)
    with pytest.raises(VerificationError, match="whole numbers from 0 to 1"):
        projection_steps(layer, np.swapaxes(to_channel_last(held, (2, 4, 4)), 0, 1))


def test_other_tools_counts_add_up() -> None:
    one = compat_of(worked_model(), events())
    assert (one + CompatCounts()).upr_sops == 25
    assert (one + one).neurobench_acs == 62


def test_fanout_ignores_what_lies_beyond_reach() -> None:
    """An incomplete last window of a pooling is dropped: nothing leaves those inputs."""
    model = worked_model(side=4)
    op = layer_of(model).linear.operator
    assert isinstance(op, ConvOperator)
    assert fanout(op).sum() == 192
