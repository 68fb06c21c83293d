"""How far exp and sigmoid of each engine lie from the exact value: the bounds cover it twice."""

from collections.abc import Callable

import numpy as np
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper

from soul_deploy.base import Array
from soul_deploy.equivalence.rounding import EXP_UNITS, HALF_UNIT, SIGMOID_UNITS, SMALLEST_NORMAL
from soul_deploy.runtime.dynamics.operations import NUMPY, SCALAR
from soul_deploy.runtime.kernels.cache import cached_njit

EVERY = 7919  # of the float32 between the ends one is looked at; a prime


def numbers() -> Array:
    """float32 from -88 to 88, as many in each binade."""
    first, last = (int(np.float32(v).view(np.int32)) for v in (1e-8, 88))
    positive = np.arange(first, last, EVERY, dtype=np.int32).view(np.float32)
    return np.concatenate([-positive[::-1], positive])


def compiled(function: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """As the kernels call it: number by number in a loop."""

    @cached_njit
    def fill(x: Array, out: Array) -> None:
        for i in range(len(x)):
            out[i] = function(x[i])

    def run(x: Array) -> Array:
        out = np.empty_like(x)
        fill(x, out)
        return out

    return run


def in_onnx(kind: str) -> Callable[[Array], Array]:
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in "xy"]
    node = helper.make_node(kind, ["x"], ["y"])
    graph = helper.make_graph([node], "alone", ends[:1], ends[1:])
    opset = [helper.make_opsetid("", 18)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=9)
    session = ort.InferenceSession(model.SerializeToString())

    def run(x: Array) -> Array:
        (y,) = session.run(None, {"x": x})
        return np.asarray(y)

    return run


def in_torch(function: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Array], Array]:
    return lambda x: function(torch.from_numpy(x)).numpy()


EXP = {
    "torch": in_torch(torch.exp),
    "numpy": NUMPY.exp,
    "compiled": compiled(SCALAR.exp),
    "onnxruntime": in_onnx("Exp"),
}
SIGMOID = {
    "torch": in_torch(torch.sigmoid),
    "numpy": NUMPY.sigmoid,
    "compiled": compiled(SCALAR.sigmoid),
    "onnxruntime": in_onnx("Sigmoid"),
}


@pytest.mark.parametrize("engine", EXP)
def test_exp_is_within_half_of_its_bound(engine: str) -> None:
    x = numbers()
    exact = np.exp(x.astype(np.float64))
    away = np.abs(EXP[engine](x).astype(np.float64) - exact) / exact / HALF_UNIT
    normal = exact >= SMALLEST_NORMAL
    assert 0.5 < away[normal].max() <= EXP_UNITS / 2


@pytest.mark.parametrize("engine", SIGMOID)
def test_sigmoid_is_within_half_of_its_bound(engine: str) -> None:
    x = numbers()
    exact = 1 / (1 + np.exp(-x.astype(np.float64)))
    away = np.abs(SIGMOID[engine](x).astype(np.float64) - exact) / HALF_UNIT
    assert 0.5 < away.max() <= SIGMOID_UNITS / 2
