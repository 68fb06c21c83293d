"""Channel masks act through what stands between a projection and its neurons."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from soul_deploy import ir
from soul_deploy.export.event.build import export_event
from soul_deploy.export.onnx.model import export_onnx
from soul_deploy.export.verify.verify import verify
from soul_deploy.model.file import expected_shapes, load, save
from soul_deploy.model.model import Model
from soul_deploy.prune.removal.apply import remove
from soul_deploy.prune.removal.planner import plan_removal
from soul_deploy.prune.structured.selection import prunable, pruning_units

IF = ir.NeuronSpec("if", v_threshold=1.0, v_reset=None, fire="ge")
BETWEEN: dict[str, tuple[ir.Node, ...]] = {
    "scaled": (ir.Scale("s", ("a",), None),),
    "pooled": (ir.AvgPool("pool", ("a",), (2, 2), (2, 2)),),
    "normed": (ir.ChannelNorm("n", ("a",), ir.BatchNorm("n")),),
    "pooled and normed": (
        ir.AvgPool("pool", ("a",), (3, 3), (1, 1), (1, 1)),
        ir.ChannelNorm("n", ("pool",), ir.BatchNorm("n")),
        ir.Scale("s", ("n",), 0.5),
    ),
    "normed twice": (
        ir.ChannelNorm("n", ("a",), ir.BatchNorm("n")),
        ir.AvgPool("pool", ("n",), (2, 2), (1, 1)),
        ir.ChannelNorm("m", ("pool",), ir.BatchNorm("m")),
    ),
}


def model(name: str) -> Model:
    """Convolution, what stands between, 6 channels of neurons, convolution, neurons, head."""
    between = BETWEEN[name]
    graph = ir.SpikingGraph(
        (
            ir.Input("input", (), (2, 6, 6)),
            ir.Convolution("a", ("input",), True, None, 2, 6, (3, 3), padding=(1, 1)),
            *between,
            ir.Population("p", (between[-1].name,), IF),
            ir.Scale("behind", ("p",), None),
            ir.Convolution("b", ("behind",), True, None, 6, 4, (3, 3)),
            ir.Population("q", ("b",), IF),
            ir.Readout("head", ("q",), 3),
        ),
        3,
    )
    rng = np.random.default_rng(4)
    state: dict[str, Any] = {}
    for tensor, shape in expected_shapes(graph).items():
        state[tensor] = (rng.integers(-1, 4, shape) / 4).astype(np.float32)
        if tensor.endswith("running_var"):
            state[tensor] = rng.choice((0.5, 1.0, 2.0), shape).astype(np.float32)
        if tensor == "b.weight":  # so that its neurons do not fire at every step
            state[tensor] = (rng.integers(-4, 5, shape) / 16).astype(np.float32)
        if tensor.endswith(".scale"):  # none like another
            state[tensor] = np.arange(1, 1 + shape[0], dtype=np.float32) / 4
        if tensor.rsplit(".", 1)[0] in ("n", "m") and tensor.endswith(".bias"):
            state[tensor] += 1.5  # a channel without input would fire for ever
        if tensor.endswith("num_batches_tracked"):
            state[tensor] = np.zeros((), np.int64)
    return Model(graph, state)


@pytest.mark.parametrize("name", BETWEEN)
def test_masked_channels_are_silent_and_go(name: str, tmp_path: Path) -> None:
    whole = model(name)
    keep = np.array([True, False, True, True, False, True])
    masked = replace(whole, channel_masks={"p": keep})
    save(masked, tmp_path / "masked.safetensors")
    masked = load(tmp_path / "masked.safetensors")
    x = torch.from_numpy(np.random.default_rng(0).integers(0, 6, (4, 2, 6, 6)) / 4).float()
    before, spikes = (m.module().record(x).spikes["p"] for m in (whole, masked))
    assert before[:, :, ~keep].any() and spikes[:, :, keep].any()
    assert not spikes[:, :, ~keep].any()
    assert torch.equal(spikes[:, :, keep], before[:, :, keep])
    assert 0.05 < masked.module().record(x).spikes["q"].float().mean() < 0.95
    plan = plan_removal(masked)
    (layer,) = (layer for layer in plan.layers if layer.population == "p")
    assert layer.removed == {1: "masked", 4: "masked"} and layer.projection == "a"
    compact = remove(masked, plan)
    assert compact.graph.shapes["p"][0] == 4 and compact.state["behind.scale"].shape == (4,)
    with torch.no_grad():
        assert torch.equal(compact.module()(x), masked.module()(x))
    for file, export in (("net.onnx", export_onnx), ("net.safetensors", export_event)):
        for stored in (masked, compact):
            export(stored, tmp_path / file)
            report = verify(stored, tmp_path / file, x)
            assert report.passed, report.text()


@pytest.mark.parametrize("name", BETWEEN)
def test_such_populations_are_pruned_by_channels(name: str) -> None:
    graph = model(name).graph
    assert [node.name for node in prunable(graph)] == ["p", "q"]
    (first, _) = pruning_units(graph, "internal")
    assert (first.name, first.masks, first.channels) == ("p", ("p",), 6)
    assert graph.masked_projection("p") == "a" and graph.population_fed_by("a") == "p"


def test_a_batch_norm_that_others_read_takes_no_mask() -> None:
    """Behind it a masked current is no 0 for the other reader."""
    nodes = [
        ir.Input("input", (), (2, 6, 6)),
        ir.Convolution("a", ("input",), True, None, 2, 6, (3, 3)),
        ir.ChannelNorm("n", ("a",), ir.BatchNorm("n")),
        ir.Population("p", ("n",), IF),
        ir.Population("q", ("a",), IF),
        ir.Merge("m", ("p", "q"), "add"),
        ir.Readout("head", ("m",), 3),
    ]
    graph = ir.SpikingGraph(tuple(nodes), 2)
    assert graph.masked_projection("p") == "n" and not graph.masked_norms
    assert prunable(graph) == ()
