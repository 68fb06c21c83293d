"""A fixed-point network, from docs/fixed-point.md alone: plain loops over int64 arrays.

It reads a model's graph and tensors, and none of the product's functions computes anything here.
"""

from dataclasses import dataclass

import numpy as np

from soul_deploy import ir
from soul_deploy.base import Array
from soul_deploy.model.model import Model

RESETS = ("hard", "soft", "late", "none")


@dataclass(frozen=True)
class NaiveRun:
    """Spikes (T, B, ...) and last membranes (B, ...) by population, integer and float32 scores."""

    spikes: dict[str, Array]
    membranes: dict[str, Array]
    integers: Array
    scores: Array


def population(
    spec: ir.NeuronSpec, tensors: dict[str, Array], current: Array
) -> tuple[Array, Array]:
    """Spikes (T, B, C, ...) and last membranes (B, C, ...) of currents (T, B, C, ...)."""
    n = {name: int(value) for name, value in spec.settings}
    reset = RESETS[n["reset"]]
    sides = [1] * (current.ndim - 3)
    threshold, subtract = (
        tensors.get(name, np.zeros(1, np.int32)).astype(np.int64).reshape(-1, *sides)
        for name in ("threshold", "subtract")
    )
    u = np.zeros(current.shape[1:], np.int64)
    fired = np.zeros(u.shape, bool)
    spikes = np.zeros(current.shape, np.int64)
    for t in range(len(current)):
        h = (u * n["multiplier"]) // 2 ** n["shift"] + current[t]
        if reset == "late":
            h = np.where(fired, h - subtract, h)
        h = np.where(h < n["low"], n["low"], np.where(h > n["high"], n["high"], h))
        fired = h >= threshold if spec.fire == "ge" else h > threshold
        after = {"hard": np.zeros_like(h), "soft": h - subtract, "late": h, "none": h}[reset]
        u = np.where(fired, after, h)
        spikes[t] = fired
    return spikes, u


def convolution(node: ir.Convolution, weight: Array, bias: Array | None, x: Array) -> Array:
    """Of (N, C, H, W), tap by tap."""
    (ph, pw), (sh, sw), (dh, dw) = node.padding, node.stride, node.dilation
    padded = np.pad(x, ((0, 0), (0, 0), (ph, ph), (pw, pw)))
    kh, kw = node.kernel
    rows = (padded.shape[2] - dh * (kh - 1) - 1) // sh + 1
    columns = (padded.shape[3] - dw * (kw - 1) - 1) // sw + 1
    out = np.zeros((len(x), node.channels, rows, columns), np.int64)
    inner, share = node.in_channels // node.groups, node.channels // node.groups
    for g in range(node.groups):
        into, first = slice(g * share, (g + 1) * share), g * inner
        for y, i in np.ndindex(kh, kw):
            window = padded[
                :, first : first + inner,
                y * dh : y * dh + sh * (rows - 1) + 1 : sh,
                i * dw : i * dw + sw * (columns - 1) + 1 : sw,
            ]  # fmt: skip
            taps = weight[into, :, y, i].astype(np.int64)
            out[:, into] += np.tensordot(window, taps, axes=(1, 1)).transpose(0, 3, 1, 2)
    return out if bias is None else out + bias.astype(np.int64).reshape(-1, 1, 1)


def pooled(x: Array, kernel: ir.Pair, stride: ir.Pair, padding: ir.Pair, largest: bool) -> Array:
    """Of (N, C, H, W): maximum (of what is inside) or sum."""
    (kh, kw), (sh, sw), (ph, pw) = kernel, stride, padding
    fill = np.iinfo(np.int64).min if largest else 0
    padded = np.pad(x, ((0, 0), (0, 0), (ph, ph), (pw, pw)), constant_values=fill)
    rows, columns = (padded.shape[2] - kh) // sh + 1, (padded.shape[3] - kw) // sw + 1
    out = np.zeros((*x.shape[:2], rows, columns), np.int64)
    for y, i in np.ndindex(rows, columns):
        window = padded[:, :, y * sh : y * sh + kh, i * sw : i * sw + kw]
        out[:, :, y, i] = window.max(axis=(2, 3)) if largest else window.sum(axis=(2, 3))
    return out


def run(model: Model, given: Array) -> NaiveRun:
    """The network on (B, ...) or (T, B, ...), what `images` are: uint8 pixels, or integers."""
    graph, first = model.graph, model.graph.input
    assert isinstance(first, ir.IntegerInput)
    x = given.astype(np.int64)
    if model.info.input_kind == "images" and given.dtype == np.uint8 and first.zero:
        x = x - np.array(first.zero).reshape(-1, *[1] * (len(first.shape) - 1))
    if x.ndim == len(first.shape) + 1:
        x = np.broadcast_to(x, (graph.time_steps, *x.shape))
    values, spikes, membranes = {first.name: x}, {}, {}
    for node in graph.nodes[1:-1]:
        inputs = [values[name] for name in node.inputs]
        if isinstance(node, ir.Population):
            prefix = f"{node.name}."
            held = {
                k.removeprefix(prefix): v for k, v in model.state.items() if k.startswith(prefix)
            }
            fired, membranes[node.name] = population(node.neuron, held, inputs[0])
            if node.generated:
                shape = (*fired.shape[:2], node.generated, *fired.shape[3:])
                pattern = held["pattern"].astype(np.int64)
                pattern = pattern.reshape(len(fired), 1, -1, *[1] * (fired.ndim - 3))
                fired = np.concatenate([fired, np.broadcast_to(pattern, shape)], axis=2)
            if node.name in model.neuron_masks:
                fired = fired * model.neuron_masks[node.name]
            values[node.name] = spikes[node.name] = fired
        else:
            values[node.name] = _computed(node, model, inputs)
    integers, scores = _scores(model, values[graph.readout.inputs[0]])
    return NaiveRun(spikes, membranes, integers, scores)


def _computed(node: ir.Node, model: Model, inputs: list[Array]) -> Array:
    x = inputs[0]
    merged = x.reshape(-1, *x.shape[2:])
    lead = x.shape[:2]
    if isinstance(node, ir.Merge):
        result = x
        for other in inputs[1:]:
            if node.function == "add":
                result = result + other
            else:
                result = result * (other if node.function == "and" else 1 - other)
        return result
    if isinstance(node, ir.Convolution):
        weight, bias = model.state[f"{node.name}.weight"], model.state.get(f"{node.name}.bias")
        found = convolution(node, weight, bias, merged)
    elif isinstance(node, ir.Linear):
        weight, bias = model.state[f"{node.name}.weight"], model.state.get(f"{node.name}.bias")
        found = merged @ weight.astype(np.int64).T
        found = found if bias is None else found + bias.astype(np.int64)
    elif isinstance(node, ir.Flatten):
        found = merged.reshape(len(merged), -1)
    elif isinstance(node, ir.Scatter):
        found = np.zeros((len(merged), node.channels, *merged.shape[2:]), np.int64)
        found[:, list(node.index)] = merged
    else:
        assert isinstance(node, ir.MaxPool | ir.SumPool), node
        largest = isinstance(node, ir.MaxPool)
        found = pooled(merged, node.kernel, node.stride, node.padding, largest)
    return found.reshape(*lead, *found.shape[1:])


def _scores(model: Model, spikes: Array) -> tuple[Array, Array]:
    node, shape = model.graph.readout, model.graph.shapes[model.graph.readout.inputs[0]]
    assert node.unit is not None
    counts = spikes.sum(axis=(3, 4)) if spikes.ndim == 5 else spikes
    if node.linear:
        steps = counts @ model.state[f"{node.name}.weight"].astype(np.int64).T
        if node.bias:
            steps = steps + model.state[f"{node.name}.bias"].astype(np.int64)
    else:
        steps = counts.reshape(*counts.shape[:2], node.classes, node.votes).sum(axis=3)
    whole = {"last": steps[-1], "max": steps.max(axis=0)}.get(node.over_time, steps.sum(axis=0))
    space = shape[1] * shape[2] if len(shape) == 3 else 1
    divisor = space * node.votes * (len(spikes) if node.over_time == "mean" else 1)
    return whole, whole.astype(np.float32) * np.float32(node.unit / divisor)
