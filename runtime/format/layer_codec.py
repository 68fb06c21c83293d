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
from soul_deploy.runtime.format import layers, map_layers, validate
from soul_deploy.runtime.format.layer import Layer, MapLayer
from soul_deploy.runtime.format.synapses import (
    ConvSynapses,
    DenseRows,
    MatrixSynapses,
    Rows,
    SparseRows,
    Synapses,
)

Entry = Mapping[str, Any]
"""A layer's JSON data."""
Tensors = Mapping[str, Array]
"""All arrays of a file, by name."""

SUBTRACT = "subtract"
ROWS: tuple[type[Rows], ...] = (DenseRows, SparseRows)


def arrays_of(part: Any) -> dict[str, Array]:
    """The arrays among a dataclass's fields, and among those of the dataclasses in it."""
    found: dict[str, Array] = {}
    for item in fields(part):
        content = getattr(part, item.name)
        if isinstance(content, np.ndarray):
            found[item.name] = content
        elif is_dataclass(content):
            found |= arrays_of(content)
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


@dispatch.operation_table(Layer)
def header_of(layer: Layer) -> dict[str, Any]:
    """A layer as JSON data."""
    raise header_of.unknown(layer)


@header_of.on(MapLayer)
def _(layer: MapLayer) -> dict[str, Any]:
    return {"operation": layer.operation, **plain(layer)}


@header_of.on(layers.PopulationLayer)
def _(layer: layers.PopulationLayer) -> dict[str, Any]:
    return {"operation": layer.operation, **plain(layer), **_firing_counts(layer)}


@header_of.on(layers.SpikingLayer)
def _(layer: layers.SpikingLayer) -> dict[str, Any]:
    return _synaptic_header(layer, _firing_counts(layer))


@header_of.on(layers.CurrentLayer)
def _(layer: layers.CurrentLayer) -> dict[str, Any]:
    return _synaptic_header(layer, _live_count(layer))


def _synaptic_header(layer: layers.Synaptic, counts: dict[str, int | None]) -> dict[str, Any]:
    synapses = layer.synapses
    return {
        "operation": layer.operation + synapses.kind,
        "rows": synapses.rows.kind,
        **plain(layer),
        **plain(synapses),
        "synapses": synapses.rows.synapses,
        **counts,
        "alternatives": [asdict(item) for item in layer.alternatives],
    }


def _live_count(layer: layers.Synaptic | layers.Firing) -> dict[str, int | None]:
    return {"live": None if layer.live is None else int(layer.live.sum())}


def _firing_counts(layer: layers.Firing) -> dict[str, int | None]:
    return _live_count(layer) | {"generators": layer.generated or None}


def read_entry(entry: Entry, tensors: Tensors) -> Layer:
    """The layer of an entry. Raises what `load_event_network` catches."""
    name, operation = v.text(entry["name"]), entry["operation"]
    kinds = {kind.operation: kind for kind in read_layer.kinds if issubclass(kind, layers.Synaptic)}
    known = {kind.operation: kind for kind in read_layer.kinds if kind not in kinds.values()}
    synapses = {kind.kind: kind for kind in read_synapses.kinds}
    named = {prefix + key: kind for prefix, kind in kinds.items() for key in synapses} | known
    validate.require(
        isinstance(operation, str) and operation in named,
        f"{name}: operation {operation!r}; known: {', '.join([*synapses, *known])}",
    )
    return read_layer.of(named[operation])(name, entry, tensors)


@dispatch.operation_table(Layer)
def read_layer(name: str, entry: Entry, tensors: Tensors) -> Layer:
    """The layer of an entry; the table is asked by class, `read_layer.of`."""
    raise NotImplementedError(f"{read_layer.name}: {entry['operation']!r}")


@read_layer.on(map_layers.PoolLayer)
def _(name: str, entry: Entry, tensors: Tensors) -> Layer:
    pairs = [v.pair(entry[key]) for key in ("kernel", "stride", "padding")]
    return map_layers.PoolLayer(name, v.text(entry["source"]), *_shapes(entry), *pairs)


@read_layer.on(map_layers.MergeLayer)
def _(name: str, entry: Entry, tensors: Tensors) -> Layer:
    sources = tuple(v.text(source) for source in v.items(entry["sources"]))
    return map_layers.MergeLayer(name, sources, entry["function"], v.integers(entry["shape"]))


@read_layer.on(map_layers.ScatterLayer)
def _(name: str, entry: Entry, tensors: Tensors) -> Layer:
    (index,) = _required(name, tensors, ("index",))
    return map_layers.ScatterLayer(name, v.text(entry["source"]), *_shapes(entry), index)


@read_layer.on(layers.PopulationLayer)
def _(name: str, entry: Entry, tensors: Tensors) -> Layer:
    layer = layers.PopulationLayer(
        name,
        v.text(entry["source"]),
        v.integers(entry["in_shape"]),
        _neuron(entry["neuron"]),
        live=tensors.get(f"{name}/live"),
        pattern=tensors.get(f"{name}/pattern"),
    )
    _check_announced(name, _firing_counts(layer), entry)
    return layer


@read_layer.on(layers.SpikingLayer)
def _(name: str, entry: Entry, tensors: Tensors) -> Layer:
    layer = layers.SpikingLayer(
        **_projection(name, entry, tensors),
        projection=v.text(entry["projection"]),
        neuron=_neuron(entry["neuron"]),
        pattern=tensors.get(f"{name}/pattern"),
    )
    _check_announced(name, _firing_counts(layer), entry)
    return layer


@read_layer.on(layers.CurrentLayer)
def _(name: str, entry: Entry, tensors: Tensors) -> Layer:
    layer = layers.CurrentLayer(**_projection(name, entry, tensors))
    _check_announced(name, _live_count(layer), entry)
    return layer


def _projection(name: str, entry: Entry, tensors: Tensors) -> dict[str, Any]:
    """The fields that all layers with synapses have."""
    operation = entry["operation"].removeprefix(layers.CurrentLayer.operation)
    (kind,) = (kind for kind in read_synapses.kinds if kind.kind == operation)
    source = v.text(entry["source"])
    try:
        rows, bias = _rows(name, entry["rows"], tensors), tensors.get(f"{name}/bias")
        synapses = read_synapses.of(kind)(entry, rows, bias)
    except (errors.FileFormatError, errors.LimitError) as error:
        raise type(error)(f"{name}: {error}") from error
    validate.require(
        entry["synapses"] == synapses.rows.synapses,
        f"{name}: {synapses.rows.synapses} synapses stored, {entry['synapses']!r} announced",
    )
    return {
        "name": name,
        "source": source,
        "edge": entry["edge"],
        "bound": v.optional(v.integer, entry["bound"]),
        "synapses": synapses,
        "grid": v.optional(v.integer, entry["grid"]),
        "live": tensors.get(f"{name}/live"),
        "alternatives": tuple(_alternative(item) for item in v.items(entry["alternatives"])),
    }


def _check_announced(name: str, found: Mapping[str, int | None], entry: Entry) -> None:
    """The description says how many neurons are live and how many channels generated."""
    for key, count in found.items():
        validate.require(
            entry[key] == count,
            f"{name}: {key} is {count} by its tensors, {entry[key]!r} announced",
        )


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
    validate.require(found, f"rows {kind!r}; known: {', '.join(rows.kind for rows in ROWS)}")
    return found[0](*_required(name, tensors, [item.name for item in fields(found[0])]))


def _required(name: str, tensors: Tensors, keys: Sequence[str]) -> list[Array]:
    for key in keys:
        validate.require(f"{name}/{key}" in tensors, f"tensor {name}/{key} is missing")
    return [tensors[f"{name}/{key}"] for key in keys]


def _shapes(entry: Entry) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return v.integers(entry["in_shape"]), v.integers(entry["out_shape"])


def _alternative(entry: Entry) -> layers.Alternative:
    return layers.Alternative(
        v.text(entry["kind"]),
        v.integer(entry["bytes"]),
        v.integer(entry["additions"]),
        v.truth(entry["chosen"]),
    )


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
