"""Constants in NIR: out as Scale nodes, and back."""

from typing import Any

import numpy as np
import pytest
import torch

from soul_deploy import ir
from soul_deploy.base.errors import UnsupportedGraphError
from soul_deploy.export.nir.read import import_nir
from soul_deploy.export.nir.write import build_nir
from soul_deploy.model.file import expected_shapes
from soul_deploy.model.model import Model

nir = pytest.importorskip("nir")

LIF = ir.NeuronSpec(v_threshold=0.5)


def model(between: ir.Node, behind: ir.Node) -> Model:
    """Convolution, `between`, neurons, `behind`, linear layer, neurons, head; of quarters."""
    graph = ir.SpikingGraph(
        (
            ir.Input("input", (), (2, 4, 4)),
            ir.Convolution("a", ("input",), True, None, 2, 3, (3, 3)),
            between,
            ir.Population("p", (between.name,), LIF),
            behind,
            ir.Flatten("f", (behind.name,)),
            ir.Linear("b", ("f",), True, None, 12, 6),
            ir.Population("q", ("b",), LIF),
            ir.Readout("head", ("q",), 2),
        ),
        4,
    )
    rng = np.random.default_rng(1)
    state: dict[str, Any] = {
        name: np.asarray(rng.integers(-3, 4, shape) / 4, np.float32)
        for name, shape in expected_shapes(graph).items()
    }
    for name in state:
        if name.endswith(".scale"):
            state[name] = np.array((2.0, 0.5, -1.0), np.float32)
        if name.endswith(".running_var"):
            state[name] = np.ones(3, np.float32)
    return Model(graph, state)


@pytest.mark.parametrize("before", [0.5, None])
@pytest.mark.parametrize("after", [-2.0, None])
def test_constants_go_out_and_come_back(before: float | None, after: float | None) -> None:
    given = model(ir.Scale("s", ("a",), before), ir.Scale("t", ("p",), after))
    graph = build_nir(given)
    assert [type(graph.nodes[name]) for name in ("s", "t")] == [nir.Scale, nir.Scale]
    again = import_nir(graph)
    kept = {node.name for node in again.graph.of_type(ir.Scale)}
    assert kept == {name for name, one in (("s", before), ("t", after)) if one is None}
    x = torch.from_numpy(np.random.default_rng(0).integers(-6, 7, (8, 2, 4, 4)) / 4).float()
    mine, theirs = given.module().record(x), again.module().record(x)
    for name, spikes in mine.spikes.items():
        assert torch.equal(spikes, theirs.spikes[name]) and 0.05 < spikes.float().mean() < 0.95
    assert torch.equal(mine.logits, theirs.logits)


def test_batch_norm_of_its_own_is_refused_by_name() -> None:
    norm = ir.ChannelNorm("n", ("a",), ir.BatchNorm("n"))
    with pytest.raises(UnsupportedGraphError, match="n: a batch norm that does not dir"):
        build_nir(model(norm, ir.Scale("t", ("p",), 2.0)))
