"""Deployed weights: batch norm folded into its projection, in float64, rounded to float32 once.

Every artefact (ONNX, event network) and every count is made from these, so they agree on which
synapses exist.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from soul_deploy.base import Array, brief, errors
from soul_deploy.ir import BatchNorm, Node, OneToOne, Projection, Readout, Shape, SpikingGraph


@brief
@dataclass(frozen=True)
class DeployedWeights:
    """A projection's deployed weights: weight (out, in, ...) and bias (out,), both float32; int8
    and int32 in a fixed-point network.
    """

    weight: Array
    bias: Array | None


@brief
@dataclass(frozen=True)
class ChannelConstants:
    """What an operation does to each channel, float64 (C,): times `scale`, plus `shift`, if any."""

    scale: Array
    shift: Array | None = None


def fold(
    graph: SpikingGraph, state: Mapping[str, Array], channel_masks: Mapping[str, Array]
) -> dict[str, DeployedWeights]:
    """Deployed weights of every projection, feedback and of the readout's head, by node name.

    `channel_masks`: population or projection -> bool (C,); of a masked channel, row and bias are 0.
    """
    folded = {node.name: _fold_one(node, state) for node in graph.projections}
    for population, back in graph.feedbacks.items():
        folded[back.name] = _of_feedback(back, graph.shapes[population], state)
    for name, keep in channel_masks.items():
        source = graph.masked_projection(name)
        charged = (
            graph.feedbacks[p].name for p in graph.charged_by(source) if p in graph.feedbacks
        )
        for masked in (source, *charged):
            folded[masked] = _masked(folded[masked], keep)
    readout = graph.readout
    if readout.linear:
        folded[readout.name] = DeployedWeights(*_weight_and_bias(readout, state))
    return folded


def _of_feedback(node: Node, shape: Shape, state: Mapping[str, Array]) -> DeployedWeights:
    """Weights of a feedback; of each neuron to itself by channel, beside the map: (C, 1, 1)."""
    if isinstance(node, Projection):
        return DeployedWeights(*_weight_and_bias(node, state))
    assert isinstance(node, OneToOne), node
    return DeployedWeights(np.full(by_channel(shape), node.factor, np.float32), None)


def by_channel(shape: Shape) -> Shape:
    """Sides of one number for each channel that stand beside values of `shape`."""
    return (shape[0], *[1] * (len(shape) - 1))


def _fold_one(node: Projection, state: Mapping[str, Array]) -> DeployedWeights:
    weight, bias = _weight_and_bias(node, state)
    if node.norm is None:
        return DeployedWeights(weight, bias)
    name, (scale, mean, beta) = node.norm.name, norm_constants(node.norm, state)
    offset = 0.0 if bias is None else bias.astype(np.float64)
    folded = weight.astype(np.float64) * scale.reshape(-1, *([1] * (weight.ndim - 1)))
    shift = beta + (offset - mean) * scale
    if max(np.abs(folded).max(initial=0), np.abs(shift).max(initial=0)) > np.finfo(np.float32).max:
        raise errors.UnsupportedGraphError(
            f"{node.name}: with its batch norm {name} folded in, weights or bias leave float32; "
            "its statistics or weights are damaged, or training diverged"
        )
    return DeployedWeights(folded.astype(np.float32), shift.astype(np.float32))


def norm_constants(norm: BatchNorm, state: Mapping[str, Array]) -> tuple[Array, Array, Array]:
    """scale, mean and beta of a batch norm, float64 (C,): it gives beta + (x - mean) · scale."""
    gamma, beta, mean, variance = (
        state[f"{norm.name}.{part}"].astype(np.float64)
        for part in ("weight", "bias", "running_mean", "running_var")
    )
    return gamma / np.sqrt(variance + norm.eps), mean, beta


def _weight_and_bias(
    node: Projection | Readout, state: Mapping[str, Array]
) -> tuple[Array, Array | None]:
    names = (f"{node.name}.weight", f"{node.name}.bias")[: 1 + node.bias]
    weight, *bias = (_deployed(state[name]) for name in names)
    return weight, bias[0] if bias else None


def _deployed(array: Array) -> Array:
    """float32, or the integers of a fixed-point network."""
    return array.copy() if array.dtype.kind == "i" else array.astype(np.float32)


def _masked(synapses: DeployedWeights, keep: Array) -> DeployedWeights:
    mask = keep.astype(synapses.weight.dtype)
    weight = synapses.weight * mask.reshape(-1, *([1] * (synapses.weight.ndim - 1)))
    return DeployedWeights(weight, None if synapses.bias is None else synapses.bias * mask)


def with_shift(bias: Array | None, added: Array | None, share: float) -> Array | None:
    """The bias of a step's scores, and what a constant in front adds to them: `share` of it."""
    if added is None:
        return bias
    before = 0.0 if bias is None else bias.astype(np.float64)
    return np.asarray(before + share * added.astype(np.float64), np.float32)
