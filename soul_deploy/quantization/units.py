"""Units of currents: which currents meet, and what 1 of them stands for (docs/fixed-point.md)."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from soul_deploy import ir
from soul_deploy.base import Array, brief, errors
from soul_deploy.quantization.neurons import RealNeuron
from soul_deploy.quantization.structure import RealForm, RealWeights

Scale = Literal["channel", "layer"]
SCALES: tuple[Scale, ...] = get_args(Scale)
Clip = Literal["mse", "percentile", "max"]
CLIPS: tuple[Clip, ...] = get_args(Clip)
LARGEST_WEIGHT = 127
LARGEST_THRESHOLD = 1 << 13
"""Of an int16 membrane: what is left above it are three thresholds."""
LARGEST_BIAS = 1 << 28
SHARES = np.linspace(1.0, 0.3, 36)
"""Of the largest weight: what is tried for the smallest error."""


@dataclass(frozen=True)
class UnitChoice:
    """How a unit is chosen: one per channel or layer; which weight becomes 127.

    clip: "max": the largest; "percentile": that percentile of the weights that are not 0;
    "mse": the one that makes the squared error of all weights smallest.
    """

    scale: Scale = "channel"
    clip: Clip = "mse"
    percentile: float = 99.9

    def __post_init__(self) -> None:
        errors.require_known("scale", self.scale, SCALES)
        errors.require_known("clip", self.clip, CLIPS)
        if not 50 <= self.percentile <= 100:
            raise errors.UsageError(f"percentile {self.percentile:g}; it is from 50 to 100")


@brief
@dataclass(frozen=True)
class Meeting:
    """Currents that meet: nodes whose values have one unit, populations that they charge.

    moves: channels of some of them are at other places than in the others.
    """

    nodes: tuple[str, ...]
    populations: tuple[str, ...]
    moves: bool


def meetings(form: RealForm, start: str) -> list[Meeting]:
    """Which currents meet. start: the input. Raises UnsupportedGraphError for numbers that meet in
    different units."""
    group: dict[str, set[str]] = {}
    for node in form.nodes[:-1]:
        currents = [name for name in node.inputs if name in group]
        if node.fires or node.projects:
            group |= {node.name: {node.name}} if node.projects else {}
            if node.fires and not currents:
                raise errors.UnsupportedGraphError(
                    f"{node.name}: its input {node.inputs[0]!r} is no current; put a convolution "
                    "or a linear layer in between"
                )
            continue
        if (currents and len(currents) < len(node.inputs)) or start in node.inputs:
            if isinstance(node, ir.Flatten | ir.SumPool) and not currents:
                continue
            raise errors.UnsupportedGraphError(
                f"{node.name}: currents meet spikes, or pixels anything, in {node.op}; in fixed "
                "point they have different units. Put a projection in between"
            )
        if currents:
            joined = set[str]({node.name}).union(*(group[name] for name in currents))
            group |= dict.fromkeys(joined, joined)
    return [_meeting(form, nodes) for nodes in {id(g): g for g in group.values()}.values()]


def _meeting(form: RealForm, names: set[str]) -> Meeting:
    nodes = [node for node in form.nodes if node.name in names]
    fed = [n.name for n in form.nodes if n.fires and n.inputs[0] in names]
    moves = any(isinstance(node, ir.Scatter | ir.Flatten) for node in nodes)
    return Meeting(tuple(node.name for node in nodes), tuple(fed), moves)


@brief
@dataclass(frozen=True)
class Unit:
    """values: (C,) or (), float64. gain: what the populations multiply their currents by."""

    values: Array
    gain: float


def unit_of(
    meeting: Meeting,
    weights: Mapping[str, RealWeights],
    neurons: Mapping[str, RealNeuron],
    choice: UnitChoice,
) -> Unit:
    """The unit of currents that meet. Raises UnsupportedGraphError if their neurons multiply them
    differently."""
    charged = [neurons[name] for name in meeting.populations]
    gains = {real.gain for real in charged}
    if len(gains) > 1:
        names = ", ".join(meeting.populations)
        raise errors.UnsupportedGraphError(
            f"{names}: a current that they share is multiplied differently by them (tau with "
            "decay_input); in fixed point it has one unit"
        )
    gain = gains.pop() if gains else 1.0
    fed = [weights[name] for name in meeting.nodes if name in weights]
    rows = (
        np.concatenate([w.weight.reshape(len(w.weight), -1) for w in fed], axis=1)
        if (len({len(w.weight) for w in fed}) == 1 and not meeting.moves)
        else np.concatenate([w.weight.reshape(-1) for w in fed])[None]
    )
    if choice.scale == "layer":
        rows = rows.reshape(1, -1)
    scales = _scales(np.abs(rows) * gain, choice)
    highest = max((real.height for real in charged), default=1.0)
    taken = max((real.subtract or 0.0 for real in charged), default=0.0)
    least: Array = np.array(max(highest, taken) / LARGEST_THRESHOLD)
    biases = [np.abs(w.bias * gain / LARGEST_BIAS) for w in fed if w.bias is not None]
    for bias in biases:
        least = np.maximum(least, bias if len(scales) == len(bias) else bias.max(initial=0))
    values = np.maximum(scales, least)
    # Of float32, in which the file says it; what has no weights is as fine as can be.
    values = values.astype(np.float32).astype(np.float64)
    return Unit(values if len(values) > 1 else values.reshape(()), gain)


def _scales(sizes: Array, choice: UnitChoice) -> Array:
    """What 1 stands for in each row of absolute weights; 0 where they are all 0."""
    largest: Array = sizes.max(axis=1, initial=0.0)
    if choice.clip == "max":
        return largest / LARGEST_WEIGHT
    if choice.clip == "percentile":
        rows = (row[row > 0] for row in sizes)
        found = [np.percentile(row, choice.percentile) if row.size else 0.0 for row in rows]
        return np.array(found) / LARGEST_WEIGHT
    best, least = largest / LARGEST_WEIGHT, np.full(len(sizes), np.inf)
    for share in SHARES:
        tried = largest * share / LARGEST_WEIGHT
        error = _squared_errors(sizes, np.where(tried > 0, tried, 1.0)[:, None])
        best, least = np.where(error < least, tried, best), np.minimum(error, least)
    return best


def _squared_errors(sizes: Array, scales: Array) -> Array:
    """Of each row, if its weights become integers of its scale."""
    whole = np.minimum(np.rint(sizes / scales), LARGEST_WEIGHT)
    found: Array = np.square(sizes - whole * scales).sum(axis=1)
    return found


def head_unit(head: RealWeights, choice: UnitChoice) -> float:
    """The one unit of a head's classes, whose scores are compared."""
    scale = float(_scales(np.abs(head.weight).reshape(1, -1), choice)[0])
    return float(np.float32(scale)) if scale else 1.0


def in_units(values: Array, unit: Array | float) -> Array:
    """The nearest integers to values in a unit (C,) or (), ties to the even one; float64."""
    per_row = np.reshape(unit, (-1, *[1] * (values.ndim - 1)))
    return np.asarray(np.rint(values / per_row))


def int8(weight: Array, unit: Array | float) -> Array:
    """Weights as integers from -127 to 127."""
    return in_units(weight, unit).clip(-LARGEST_WEIGHT, LARGEST_WEIGHT).astype(np.int8)


def silent(names: Iterable[str], fired: Mapping[str, int]) -> tuple[str, ...]:
    """Those that never fired."""
    return tuple(name for name in names if not fired[name])
