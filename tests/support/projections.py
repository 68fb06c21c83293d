"""Projections and neurons as tests draw them, and the layers that they become."""

import math
from dataclasses import dataclass
from typing import Any, get_args

import naive
import numpy as np
from hypothesis import strategies as st

from soul_deploy.base import Array
from soul_deploy.runtime.equations import FIRE, ChargeForm, NeuronEquation
from soul_deploy.runtime.format.network import (
    ConvSynapses,
    DenseRows,
    EdgeKind,
    MatrixSynapses,
    Rows,
    Shape,
    SparseRows,
    SpikingLayer,
    Synapses,
)
from soul_deploy.runtime.plan.regions import Region, run_calls

SILENT = NeuronEquation("integrate", 1.0, 1e30, 0.0, "gt")


@dataclass(frozen=True)
class Case:
    """A projection as drawn: weights in PyTorch's layout, values (T, C, H, W) or (T, N)."""

    weight: Array
    bias: Array | None
    values: Array
    kind: EdgeKind
    sparse: bool
    geometry: dict[str, Any]


def values_of(kind: EdgeKind, shape: Shape, rng: np.random.Generator) -> Array:
    """Dyadic values of an edge kind, zeros among them."""
    present = rng.random(shape) < 0.5
    if kind == "analog":
        return (rng.integers(-64, 64, shape) / 64 * present).astype(np.float32)
    return (rng.integers(1, 2 if kind == "spike" else 5, shape) * present).astype(np.uint8)


def dyadic(shape: Shape, rng: np.random.Generator, density: float = 1.0) -> Array:
    values = rng.integers(-255, 256, shape) / 256 * (rng.random(shape) < density)
    return values.astype(np.float32)


def stored(rows: list[list[tuple[int, Any]]], shape: Shape, *, sparse: bool) -> Rows:
    """Naive rows in one of the two representations."""
    if not sparse:
        return DenseRows(np.array([[w for _, w in row] for row in rows], np.float32).reshape(shape))
    kept = [[(k, w) for k, w in row if w != 0] for row in rows]
    starts = np.cumsum([0, *map(len, kept)]).astype(np.uint32)
    flat = [pair for row in kept for pair in row]
    targets = np.array([k for k, _ in flat], np.uint32)
    return SparseRows(starts, targets, np.array([w for _, w in flat], np.float32))


def layer_of(case: Case, neuron: NeuronEquation = SILENT) -> SpikingLayer:
    in_shape, out_shape = case.values.shape[1:], case.geometry["out_shape"]
    synapses: Synapses
    if "stride" not in case.geometry:
        listed = naive.matrix_rows(case.weight, in_shape, out_shape)
        rows = stored(listed, (len(listed), math.prod(out_shape)), sparse=case.sparse)
        order = naive.channel_last(out_shape)
        bias = None if case.bias is None else np.ascontiguousarray(case.bias[order])
        synapses = MatrixSynapses(in_shape, out_shape, rows, bias)
    else:
        g = case.geometry
        kernel = case.weight.shape[2:]
        listed = naive.convolution_rows(case.weight, g["groups"])
        shape = (in_shape[0], *kernel, out_shape[0] // g["groups"])
        rows = stored(listed, shape, sparse=case.sparse)
        synapses = ConvSynapses(
            in_shape, out_shape, rows, case.bias, (kernel[0], kernel[1]), g["stride"],
            g["padding"], g["dilation"], g["groups"], g["reach"],
        )  # fmt: skip
    bound = {"spike": 1, "graded": 4, "analog": None}[case.kind]
    return SpikingLayer("p", "c", "s", case.kind, bound, synapses, neuron)


def run_in_turn(region: Region) -> None:
    """All parts, last first: their order must not matter."""
    for calls in reversed(region):
        run_calls(calls)


@st.composite
def equations(draw: st.DrawFn) -> NeuronEquation:
    charge = draw(st.sampled_from(get_args(ChargeForm)))
    constant = draw(st.sampled_from((2.0, 1.7, 4 / 3, 3.0, 0.37)))
    threshold = draw(st.sampled_from((1.0, 0.5, 0.7)))
    reset = draw(st.sampled_from((None, 0.0, -0.3, 0.2)))
    return NeuronEquation(charge, constant, threshold, reset, draw(st.sampled_from(tuple(FIRE))))
