"""Layers as JSON data and arrays: what an event file holds of each.

A layer's fields `live` and `generators` say how many live neurons and generated channels it has,
and are null where all neurons are live, and where nothing is generated. Operations: `convolution`
and `matrix` with a population behind, `current_convolution` and `current_matrix` without one,
`population`, `max_pool`, `merge`, `scatter`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from typing import Any

import numpy as np

from soul_deploy.base import Array, dispatch, errors
from soul_deploy.runtime.equations import NeuronEquation
from soul_deploy.runtime.format import json_values as v
from soul_deploy.runtime.format import layers, map_layers
from soul_deploy.runtime.format.synapses import ROWS, ConvSynapses, MatrixSynapses, Rows, Synapses

Entry = Mapping[str, Any]
"""A layer's JSON data."""
Tensors = Mapping[str, Array]
"""All arrays of a file, by name."""

SUBTRACT = "subtract"


def layer_arrays(part: Any) -> dict[str, Array]:
    """The arrays among a dataclass's fields, and among those of the dataclasses in it."""
    found: dict[str, Array] = {}
    for item in fields(part):
        content = getattr(part, item.name)
        if isinstance(content, np.ndarray):
            found[item.name] = content
        elif is_dataclass(content):
            found |= layer_arrays(content)
    return found


def plain(part: Any) -> dict[str, Any]:
    """A dataclass as JSON data; arrays are left out, they are tensors of the file."""
    found: dict[str, Any] = {}
    for item in fields(part):
        content = getattr(part, item.name)
        if isinstance(content, NeuronEquation):
            found[item.name] = _neuron_header(content)
        elif isinstance(content, tuple):
            found[item.name] = list(content)
        elif content is None or isinstance(content, str | int | float):
            found[item.name] = content
    return found


def _neuron_header(neuron: NeuronEquation) -> dict[str, Any]:
    """A neuron as JSON data. What a spike takes off, if it isn't the threshold, stands in the place
    of v_reset, so that a reader that does not know of it refuses the file.
    """
    found = asdict(neuron)
    taken = found.pop("v_subtract")
    return found if taken is None else found | {"v_reset": {SUBTRACT: taken}}


@dispatch.operation_table(layers.Layer)
def header_of(layer: layers.Layer) -> dict[str, Any]:
    """A layer as JSON data."""
    raise header_of.unknown(layer)


@header_of.on(layers.MapLayer, layers.PopulationLayer)
def _(layer: layers.Layer) -> dict[str, Any]:
    return {"operation": layer.operation, **plain(layer), **layer.announced}


@header_of.on(layers.Synaptic)
def _(layer: layers.Synaptic) -> dict[str, Any]:
    synapses = layer.synapses
    return {
        "operation": layer.operation + synapses.kind,
        "rows": synapses.rows.kind,
        **plain(layer),
        **plain(synapses),
        "synapses": synapses.rows.synapses,
        **layer.announced,
        "alternatives": [asdict(item) for item in layer.alternatives],
    }


def read_entry(entry: Entry, tensors: Tensors) -> layers.Layer:
    """The layer of an entry. Raises what `load_event_network` catches."""
    name, operation = v.text(entry["name"]), entry["operation"]
    kinds = {kind.operation: kind for kind in read_layer.kinds if issubclass(kind, layers.Synaptic)}
    known = {kind.operation: kind for kind in read_layer.kinds if kind not in kinds.values()}
    joins = [kind.kind for kind in read_synapses.kinds]
    named = {prefix + key: kind for prefix, kind in kinds.items() for key in joins} | known
    errors.require(
        isinstance(operation, str) and operation in named,
        f"{name}: operation {operation!r}; known: {', '.join([*joins, *known])}",
    )
    layer = read_layer.of(named[operation])(name, entry, tensors)
    for key, count in layer.announced.items():
        errors.require(
            entry[key] == count,
            f"{name}: {key} is {count} by its tensors, {entry[key]!r} announced",
        )
    return layer


@dispatch.operation_table(layers.Layer)
def read_layer(name: str, entry: Entry, tensors: Tensors) -> layers.Layer:
    """The layer of an entry; the table is asked by class, `read_layer.of`."""
    raise NotImplementedError(f"{read_layer.name}: {entry['operation']!r}")


@read_layer.on(map_layers.PoolLayer)
def _(name: str, entry: Entry, tensors: Tensors) -> layers.Layer:
    pairs = [v.pair(entry[key]) for key in ("kernel", "stride", "padding")]
    return map_layers.PoolLayer(name, v.text(entry["source"]), *_shapes(entry), *pairs)


@read_layer.on(map_layers.MergeLayer)
def _(name: str, entry: Entry, tensors: Tensors) -> layers.Layer:
    sources = tuple(v.text(source) for source in v.items(entry["sources"]))
    return map_layers.MergeLayer(name, sources, entry["function"], v.integers(entry["shape"]))


@read_layer.on(map_layers.ScatterLayer)
def _(name: str, entry: Entry, tensors: Tensors) -> layers.Layer:
    (index,) = _required(name, tensors, ("index",))
    return map_layers.ScatterLayer(name, v.text(entry["source"]), *_shapes(entry), index)


@read_layer.on(layers.PopulationLayer)
def _(name: str, entry: Entry, tensors: Tensors) -> layers.Layer:
    source, shape = v.text(entry["source"]), v.integers(entry["in_shape"])
    masks = (tensors.get(f"{name}/{key}") for key in ("live", "pattern"))
    return layers.PopulationLayer(name, source, shape, _neuron(entry["neuron"]), *masks)


@read_layer.on(layers.SpikingLayer)
def _(name: str, entry: Entry, tensors: Tensors) -> layers.Layer:
    return layers.SpikingLayer(
        **_projection(name, entry, tensors),
        projection=v.text(entry["projection"]),
        neuron=_neuron(entry["neuron"]),
        pattern=tensors.get(f"{name}/pattern"),
    )


@read_layer.on(layers.CurrentLayer)
def _(name: str, entry: Entry, tensors: Tensors) -> layers.Layer:
    return layers.CurrentLayer(**_projection(name, entry, tensors))


def _projection(name: str, entry: Entry, tensors: Tensors) -> dict[str, Any]:
    """The fields that all layers with synapses have."""
    operation = entry["operation"].removeprefix(layers.CurrentLayer.operation)
    (kind,) = (kind for kind in read_synapses.kinds if kind.kind == operation)
    source = v.text(entry["source"])
    try:
        rows, bias = _rows(name, entry["rows"], tensors), tensors.get(f"{name}/bias")
        made = read_synapses.of(kind)(entry, rows, bias)
    except (errors.FileFormatError, errors.LimitError) as error:
        raise type(error)(f"{name}: {error}") from error
    errors.require(
        entry["synapses"] == made.rows.synapses,
        f"{name}: {made.rows.synapses} synapses stored, {entry['synapses']!r} announced",
    )
    return {
        "name": name,
        "source": source,
        "edge": entry["edge"],
        "bound": v.optional(v.integer, entry["bound"]),
        "synapses": made,
        "grid": v.optional(v.integer, entry["grid"]),
        "live": tensors.get(f"{name}/live"),
        "alternatives": tuple(_alternative(item) for item in v.items(entry["alternatives"])),
    }


@dispatch.operation_table(Synapses)
def read_synapses(entry: Entry, rows: Rows, bias: Array | None) -> Synapses:
    """The synapses of an entry; the table is asked by class, `read_synapses.of`."""
    raise NotImplementedError(f"{read_synapses.name}: {entry['operation']!r}")


@read_synapses.on(ConvSynapses)
def _(entry: Entry, rows: Rows, bias: Array | None) -> Synapses:
    keys = ("kernel", "stride", "padding", "dilation", "reach")
    pairs = {key: v.pair(entry[key]) for key in keys}
    return ConvSynapses(*_shapes(entry), rows, bias, groups=v.integer(entry["groups"]), **pairs)


@read_synapses.on(MatrixSynapses)
def _(entry: Entry, rows: Rows, bias: Array | None) -> Synapses:
    return MatrixSynapses(*_shapes(entry), rows, bias)


def _rows(name: str, kind: Any, tensors: Tensors) -> Rows:
    found = [rows for rows in ROWS if rows.kind == kind]
    errors.require(found, f"rows {kind!r}; known: {', '.join(rows.kind for rows in ROWS)}")
    return found[0](*_required(name, tensors, [item.name for item in fields(found[0])]))


def _required(name: str, tensors: Tensors, keys: Sequence[str]) -> list[Array]:
    for key in keys:
        errors.require(f"{name}/{key}" in tensors, f"tensor {name}/{key} is missing")
    return [tensors[f"{name}/{key}"] for key in keys]


def _shapes(entry: Entry) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return v.integers(entry["in_shape"]), v.integers(entry["out_shape"])


def _alternative(entry: Entry) -> layers.Alternative:
    kind = v.text(entry["kind"])
    size, additions = (v.integer(entry[key]) for key in ("bytes", "additions"))
    return layers.Alternative(kind, size, additions, v.truth(entry["chosen"]))


def _neuron(entry: Entry) -> NeuronEquation:
    reset = entry["v_reset"]
    taken = v.number(reset[SUBTRACT]) if isinstance(reset, dict) else None
    return NeuronEquation(
        charge=entry["charge"],
        constant=v.number(entry["constant"]),
        v_threshold=v.number(entry["v_threshold"]),
        v_reset=None if taken is not None else v.optional(v.number, reset),
        fire=entry["fire"],
        v_subtract=taken,
    )
