"""A network whose SynOps can be counted by hand, and data of any values: for tests of costs."""

import numpy as np
import torch

from soul_deploy import ir
from soul_deploy.data.datasets import Data, Split
from soul_deploy.model.model import Model

IF = ir.NeuronSpec("if", v_threshold=0.5)


def two_layers() -> ir.SpikingGraph:
    """Two inputs, three neurons, two neurons, a head of two classes; T = 2."""
    return ir.SpikingGraph(
        (
            ir.Input("input", (), (2,)),
            ir.Linear("a", ("input",), False, None, 2, 3),
            ir.Population("sa", ("a",), IF),
            ir.Linear("b", ("sa",), True, None, 3, 2),
            ir.Population("sb", ("b",), IF),
            ir.Readout("head", ("sb",), 2, linear=True),
        ),
        2,
    )


def known_spikes() -> Model:
    """With input (1, 1), sa fires 2, 2 and 0 times, sb 2 and 0 times; every synapse exists."""
    state = {
        "a.weight": np.array([[1, 1], [0.5, 0.5], [-1, -1]], np.float32),
        "b.weight": np.array([[1, 1, 1], [-1, -1, -1]], np.float32),
        "b.bias": np.zeros(2, np.float32),
        "head.weight": np.ones((2, 2), np.float32),
        "head.bias": np.zeros(2, np.float32),
    }
    return Model(two_layers(), state)


def data_of(images: torch.Tensor, classes: int = 2) -> Data:
    """All three splits are these samples, which are taken as they are."""
    split = Split(images, torch.zeros(len(images), dtype=torch.long))
    return Data(
        "values", split, split, split, tuple("0123456789"[:classes]), None, input_kind="values"
    )
