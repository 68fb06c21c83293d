"""Neurons that mix all steps (PSN), in ONNX: one matrix product over the axis of time."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from onnx import TensorProto

from soul_deploy.runtime.dynamics.parallel import ParallelEquation

if TYPE_CHECKING:
    from soul_deploy.export.onnx.nodes import OnnxBuilder

WEIGHT, BIAS = "weight", "bias"


def attributes(equation: ParallelEquation) -> dict[str, np.ndarray]:
    """The arrays of a file, by constant: (T, T) and (T, 1)."""
    return {WEIGHT: equation.weight, BIAS: equation.bias.reshape(-1, 1)}


def append_parallel(
    b: "OnnxBuilder", name: str, equation: ParallelEquation, current: str, output: str,
    stored: Callable[[str], str],
) -> str:  # fmt: skip
    """Spikes (T·batch, ...) of a current of the same shape; stored: a constant's name."""
    steps = equation.steps
    for key, array in attributes(equation).items():
        b.constant(stored(key), array)
    shape = b.op("Shape", [current], f"{name}.current_shape")
    rows = b.reshape(current, f"{name}.rows_shape", f"{name}.rows", steps, -1)
    mixed = b.op("MatMul", [stored(WEIGHT), rows], f"{name}.mixed")
    potential = b.op("Add", [mixed, stored(BIAS)], f"{name}.potential")
    zero = b.constant(f"{name}.zero", np.zeros(1, np.float32))
    kind = "Greater" if equation.fire == "gt" else "GreaterOrEqual"
    above = b.op(kind, [potential, zero], f"{name}.above")
    spikes = b.op("Cast", [above], f"{name}.rows_fired", to=TensorProto.FLOAT)
    return b.op("Reshape", [spikes, shape], output)
