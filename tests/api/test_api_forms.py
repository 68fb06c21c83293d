"""Networks with constants, poolings and batch norms around their synapses: trained and pruned."""

from typing import Any

import numpy as np
import pytest
import torch
from test_api_train import arrays

import soul_deploy
from soul_deploy import (
    FinetuneConfig,
    PruneResult,
    PruneSchedule,
    ScaConfig,
    SearchConfig,
    TrainConfig,
    ir,
)
from soul_deploy.analysis.synops import count_model
from soul_deploy.equivalence.verdict import Verdict
from soul_deploy.export.event.build import build_event_network
from soul_deploy.lowering.deploy import lower
from soul_deploy.prune.target import QUANTITIES, Target
from soul_deploy.runtime.engine.network import Network
from soul_deploy.runtime.ops.counted_run import count_run

LIF = ir.NeuronSpec(v_threshold=0.2)
SLOW = TrainConfig(epochs=1, batch_size=16, learning_rate=1e-5)
QUICK = TrainConfig(epochs=1, batch_size=16, learning_rate=5e-3)


def graph() -> ir.SpikingGraph:
    """Scaled and pooled currents, batch norms of their own, a branch of pooled spikes."""
    return ir.SpikingGraph(
        (
            ir.Input("input", (), (2, 6, 6)),
            ir.Convolution("a", ("input",), True, None, 2, 24, (3, 3), padding=(1, 1)),
            ir.Scale("gain", ("a",), 4.0),
            ir.AvgPool("pool", ("gain",), (2, 2), (2, 2)),
            ir.Population("p", ("pool",), LIF),
            ir.Scale("double", ("p",), 2.0),
            ir.Convolution("b", ("double",), True, None, 24, 4, (3, 3), padding=(1, 1)),
            ir.ChannelNorm("norm", ("b",), ir.BatchNorm("norm")),
            ir.Population("q", ("norm",), LIF),
            ir.Convolution("d", ("q",), True, None, 4, 4, (3, 3), padding=(1, 1)),
            ir.Population("s", ("d",), LIF),
            ir.AvgPool("mean", ("q",), (3, 3), (1, 1), (1, 1)),
            ir.Merge("sum", ("s", "mean"), "add"),
            ir.ChannelNorm("before", ("sum",), ir.BatchNorm("before")),
            ir.Flatten("flat", ("before",)),
            ir.Linear("c", ("flat",), True, None, 36, 5),
            ir.ChannelNorm("vector", ("c",), ir.BatchNorm("vector")),
            ir.Population("r", ("vector",), LIF),
            ir.Readout("head", ("r",), 3),
        ),
        2,
    )


def test_it_trains_and_exports(tmp_path: Any) -> None:
    result = soul_deploy.train(graph(), arrays(), QUICK, device="cpu")
    before = float(result.model.state["norm.running_mean"].std())
    assert before > 0  # the statistics moved
    x = torch.from_numpy(arrays(12)[0]).float() / 64
    for name, export in (
        ("net.onnx", soul_deploy.export_onnx),
        ("net.safetensors", soul_deploy.export_event),
    ):
        export(result.model, tmp_path / name)
        assert soul_deploy.verify(result.model, tmp_path / name, x).verdict is not Verdict.FAILED


@pytest.mark.parametrize("quantity", [None, *QUANTITIES])
def test_it_is_pruned_by_channels(quantity: Any) -> None:
    """The channels of the population behind the scaled and pooled current go with its masks."""
    schedule = PruneSchedule(0.25, 0.1, epochs=2, finetune_epochs=0)
    config = ScaConfig(schedule)
    if quantity is not None:
        config = ScaConfig(
            PruneSchedule(0.0, 0.1, epochs=2, finetune_epochs=0), target=Target(quantity, 0.7)
        )
    result = soul_deploy.prune_structured(graph(), arrays(), config, SLOW, device="cpu")
    assert result.masked.channel_masks and result.compact is not None
    assert set(result.masked.channel_masks) <= {"p", "r"}
    checked(result)


def checked(result: PruneResult) -> None:
    x = torch.from_numpy(arrays(12)[0]).float() / 64
    assert result.compact is not None
    with torch.no_grad():
        whole, small = (m.module()(x) for m in (result.masked, result.compact))
    torch.testing.assert_close(whole, small, rtol=0, atol=1e-5)
    for model in (result.masked, result.compact):
        network = Network(build_event_network(model), 1)
        np.testing.assert_allclose(network.run(x.numpy()), whole, atol=0.2)
        counted = count_run(network, x.numpy()).counts
        assert list(counted) == list(count_model(lower(model).trimmed.model, x))


def test_it_is_pruned_by_weights() -> None:
    config = SearchConfig(
        target=Target("connectivity", 0.5),
        temp_scheduler=(5, 200),
        prune_lr=0.02,
        finetune=FinetuneConfig(epochs=1, learning_rate=1e-3),
    )
    result = soul_deploy.prune_unstructured(graph(), arrays(), config, QUICK, device="cpu")
    checked(result)
