"""NIR nodes read one by one, sources first, into nodes and weights of ours."""

from collections.abc import Callable
from typing import Any

import numpy as np

from soul_deploy import ir
from soul_deploy.base import errors
from soul_deploy.export.nir import membranes
from soul_deploy.export.nir.populations import population, uniform
from soul_deploy.export.nir.projections import PROJECTIONS, integers, pair
from soul_deploy.export.nir.recurrence import NEURONS
from soul_deploy.export.nir.values import NirValue, Reader

SUPPORTED = (
    "Input, Output, Affine, Linear, Conv2d, AvgPool2d, SumPool2d, Flatten, Scale by one number or "
    "one a channel, LIF, IF, CubaLIF, synapses from these to themselves; last LI, I, CubaLI"
)


def read_node(reader: Reader, key: str) -> None:
    """Turn the NIR node `key`, whose sources have been read, into ours.

    Raises UnsupportedGraphError or FileFormatError with the node's name.
    """
    node = reader.graph.nodes[key]
    kind = type(node).__name__
    if kind not in READERS:
        text = f"{key}: NIR {kind} is not supported; supported: {SUPPORTED}"
        raise errors.UnsupportedGraphError(text)
    value = READERS[kind](reader, key, node)
    if value is not None:
        reader.values[key] = value


def _input(r: Reader, key: str, node: Any) -> NirValue:
    if r.made:
        raise errors.UnsupportedGraphError(f"{key}: a second input; supported is one")
    shape = _without_batch(r, key, integers(node.input_type["input"]))
    if len(shape) not in (1, 3):
        raise errors.UnsupportedGraphError(
            f"{key}: an input of {shape}; supported: (C, H, W) and (N,), without time and batch"
        )
    return r.put(ir.Input(r.name(key), (), shape))


def _without_batch(r: Reader, key: str, shape: ir.Shape) -> ir.Shape:
    """norse and rockpool write the shape of the batch that they were given to export with."""
    if len(shape) not in (2, 4):
        return shape
    r.conventions.assumed["batch"] = (
        f"{key}: an input of {shape} is a batch of {shape[0]}, each of {shape[1:]}, as norse and "
        "rockpool write it"
    )
    return shape[1:]


def _output(r: Reader, key: str, node: Any) -> None:
    if r.last is not None:
        raise errors.UnsupportedGraphError(f"{key}: a second output; supported is one")
    r.last = r.settled(key, r.arriving(key))


def _integrator(r: Reader, key: str, node: Any) -> NirValue:
    """A last node, behind a linear or affine one: its numbers that multiply or shift go there."""
    readers = [type(r.graph.nodes[b]).__name__ for a, b in r.graph.edges if a == key]
    if readers != ["Output"]:
        raise errors.UnsupportedGraphError(
            f"{key}: a NIR {type(node).__name__} inside the network, whose membrane is no spikes; "
            "supported is one whose membrane is the output"
        )
    found = membranes.from_node(key, node, r.conventions.dt)
    r.conventions.require_integrator(key, node)
    charging = r.settled(key, r.arriving(key))
    if not isinstance(r.made[charging], ir.Linear) or r.readers(charging) != 1:
        raise errors.UnsupportedGraphError(
            f"{key}: a NIR {type(node).__name__} behind {charging!r}; supported is one that a "
            "linear or affine node alone feeds"
        )
    r.charged = membranes.stored_neuron(key, node, found, r.conventions.dt)
    r.weigh_rows(charging, found.gain, found.shift)
    return NirValue(charging)


def _projection(r: Reader, key: str, node: Any) -> NirValue:
    source = r.arriving(key)
    made, weight, bias = PROJECTIONS[type(node).__name__](key, r.name(key), source.name, node)
    return r.put(made, weight=(weight * source.factor).astype(np.float32), bias=bias)


def _avg_pool(r: Reader, key: str, node: Any) -> NirValue:
    source = r.arriving(key)
    sides = pair(node.kernel_size), pair(node.stride), pair(node.padding)
    return NirValue(r.put(ir.AvgPool(r.name(key), (source.name,), *sides)).name, source.factor)


def _sum_pool(r: Reader, key: str, node: Any) -> NirValue:
    """A mean times the window's size."""
    mean = _avg_pool(r, key, node)
    height, width = pair(node.kernel_size)
    return NirValue(mean.name, mean.factor * height * width)


def _flatten(r: Reader, key: str, node: Any) -> NirValue:
    source = r.arriving(key)
    sides = len(r.shapes[source.name])
    first, last = int(node.start_dim) % sides, int(node.end_dim) % sides
    if first == last:
        return source
    if (first, last) != (0, sides - 1):
        raise errors.UnsupportedGraphError(
            f"{key}: flattens axes {first} to {last} of {r.shapes[source.name]}; supported is all"
        )
    return NirValue(r.put(ir.Flatten(r.name(key), (source.name,))).name, source.factor)


def _scale(r: Reader, key: str, node: Any) -> NirValue:
    """One number is a factor, which goes into weights; one a channel is an operation of ours."""
    source, scale = r.arriving(key), np.asarray(node.scale, np.float64)
    shape = r.shapes[source.name]
    if np.unique(scale).size <= 1 or scale.shape != shape:
        return NirValue(source.name, source.factor * uniform(key, "scale", scale))
    by_channel = scale.reshape(shape[0], -1)
    usable = np.isfinite(by_channel).all() and (by_channel != 0).all()
    if not usable or (by_channel != by_channel[:, :1]).any():
        raise errors.UnsupportedGraphError(
            f"{key}: a scale with {np.unique(scale).size} values from {scale.min():g} to "
            f"{scale.max():g}; supported are finite numbers but 0, one for each channel"
        )
    values = (by_channel[:, 0] * source.factor).astype(np.float32)
    return r.put(ir.Scale(r.name(key), (source.name,), None), scale=values)


READERS: dict[str, Callable[[Reader, str, Any], NirValue | None]] = {
    "Input": _input,
    "Output": _output,
    **dict.fromkeys(PROJECTIONS, _projection),
    "AvgPool2d": _avg_pool,
    "SumPool2d": _sum_pool,
    "Flatten": _flatten,
    "Scale": _scale,
    **dict.fromkeys(NEURONS, population),
    **dict.fromkeys(("LI", "I", "CubaLI"), _integrator),
}
