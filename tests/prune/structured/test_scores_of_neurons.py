"""SCA's scores of neurons that send integers, keep several variables, or mix the steps; by hand."""

import numpy as np
import pytest
import torch

from soul_deploy import ir
from soul_deploy.nn.graph_module import GraphModule
from soul_deploy.prune.structured.scores import ChannelStatistics, Score

NORM_1 = (("norm", 1.0),)
CASES: dict[str, tuple[ir.NeuronSpec, list[float], float, float]] = {
    # v 2.4 sends 2, leaves 0.4; then 0.4 sends nothing
    "intlif": (ir.NeuronSpec("intlif", tau=1.0, settings=NORM_1), [2.4, 0], 1.0, 0.4),
    # v -1 sends -1, leaves 0; then 0.4 sends nothing
    "tlif": (ir.NeuronSpec("tlif", settings=NORM_1), [-1, 0.4], 0.5, 0.2),
    # 4 x: 2 sends 2, of which the potential keeps 2; then -4 sends nothing
    "ielif": (ir.NeuronSpec("ielif"), [0.5, -1], 1.0, 3.0),
    # v 2 fires, is set to 0, the threshold rises to 1.2; then v is 0.5
    "rplif": (ir.NeuronSpec("rplif", decay_input=False), [2, 0.5], 0.5, 0.25),
    # v 2 fires, w rises to 3; a step later v = 0 + (1 + 1 · 0.1 · -0.8 - 3) / 2 = -1.04
    "izhikevich": (ir.NeuronSpec("izhikevich", settings=(("b", 3.0),)), [4.08, 1], 0.5, 0.52),
    # potentials W x + b: 0.5 fires, -1 does not
    "psn": (ir.NeuronSpec("psn"), [1, 1], 0.5, 0.75),
}
"""Neurons, their input of two steps; the means of what is sent and of the membrane's size."""


def module_of(spec: ir.NeuronSpec) -> GraphModule:
    nodes = (
        ir.Input("input", (), (1, 1, 1)),
        ir.Population("s", ("input",), spec),
        ir.Flatten("flat", ("s",)),
        ir.Readout("head", ("flat",), 1),
    )
    module = GraphModule(ir.SpikingGraph(nodes, time_steps=2))
    if spec.parallel:
        state = {"s.weight": [[1.0, 0.0], [1.0, -2.0]], "s.bias": [[-0.5], [0.0]]}
        module.load_state_dict({k: torch.tensor(v) for k, v in state.items()}, strict=False)
    return module


@pytest.mark.parametrize("family", CASES)
@pytest.mark.parametrize("kind", ["spike", "membrane", "spike_membrane"])
def test_a_score_is_that_of_the_hand(family: str, kind: Score) -> None:
    spec, x, sent, membrane = CASES[family]
    statistics = ChannelStatistics(["s"], kind, "epoch", "epoch", masks=[])
    statistics.forward(module_of(spec), torch.tensor(x, dtype=torch.float32).reshape(2, 1, 1, 1, 1))
    expected = {"spike": sent, "membrane": membrane, "spike_membrane": sent + membrane}[kind]
    np.testing.assert_allclose(statistics.scores()["s"], [expected], rtol=1e-6)
