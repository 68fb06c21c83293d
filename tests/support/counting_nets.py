"""A fixed-point network for counts, a few numbers large."""

import numpy as np

from soul_deploy import NeuronSpec, ir
from soul_deploy.base import Array
from soul_deploy.model.model import Model, ModelInfo
from soul_deploy.runtime.dynamics.form import Granularity

HIGH, INPUTS = 3, 2 * 5 * 4


def counting_network() -> Model:
    """A convolution, a linear layer with few weights, and a vote, for counts up to HIGH."""
    each: Granularity = "layer"
    neuron = NeuronSpec(
        "fixed",
        settings=(("shift", 1.0), ("reset", 0.0)),
        tensors=(("threshold", each), ("unit", each)),
    )
    nodes = (
        ir.IntegerInput("input", (), (2, 5, 4), 0, HIGH),
        ir.Convolution("conv", ("input",), False, None, 2, 3, (3, 3), padding=(1, 1)),
        ir.Population("sn", ("conv",), neuron),
        ir.Flatten("flat", ("sn",)),
        ir.Linear("fc", ("flat",), False, None, 60, 6),
        ir.Population("sn2", ("fc",), neuron),
        ir.Readout("vote", ("sn2",), 3, False, False, 2, unit=1.0),
    )
    rng = np.random.default_rng(0)
    weight = rng.integers(-9, 20, (3, 2, 3, 3)).astype(np.int8)
    few = rng.integers(-20, 60, (6, 60)) * (rng.random((6, 60)) < 0.2)
    state = {"conv.weight": weight, "fc.weight": few.astype(np.int8)}
    for name, threshold in (("sn", 40), ("sn2", 50)):
        state[f"{name}.threshold"] = np.array(threshold, np.int32)
        state[f"{name}.unit"] = np.array(1, np.float32)
    return Model(ir.SpikingGraph(nodes, 3), state, info=ModelInfo(input_kind="counts"))


def inputs() -> Array:
    return np.random.default_rng(1).integers(0, HIGH + 1, (2, 2, 5, 4)).astype(np.int16)
