"""Layers as JSON data and arrays: what an event file holds of each.

A layer's fields `live` and `generators` say how many live neurons and generated channels it has,
and are null where all neurons are live, and where nothing is generated. Operations: `convolution`
and `matrix` with a population behind, `current_convolution` and `current_matrix` without one,
`population`, `recurrent`, `max_pool`, `merge`, `scatter`. The entry of `recurrent` neurons holds
that of their synapses to themselves, `feedback`, whose arrays are called by its own name.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, fields, is_dataclass
from functools import partial
from typing import Any

import numpy as np

from soul_deploy.base import Array, dispatch, errors
from soul_deploy.runtime.dynamics.equation import DYNAMICS, DynamicsEquation
from soul_deploy.runtime.dynamics.form import SEND_RULES
from soul_deploy.runtime.dynamics.parallel import ParallelEquation
from soul_deploy.runtime.equations import Equation, FixedEquation, NeuronEquation
from soul_deploy.runtime.format import json_values as v
from soul_deploy.runtime.format import layers, map_layers
from soul_deploy.runtime.format.recurrent_layer import RecurrentLayer
from soul_deploy.runtime.format.synapses import ROWS, ConvSynapses, MatrixSynapses, Rows, Synapses

Entry = Mapping[str, Any]
"""A layer's JSON data."""
Tensors = Mapping[str, Array]
"""All arrays of a file, by name."""

SUBTRACT = "subtract"
PSN = "psn"
FIXED = "fixed"
FIXED_NUMBERS = ("multiplier", "shift", "lowest", "highest", "fire", "reset")
NEURON = "neuron."  # in front of the names of arrays that are a neuron's numbers


def layer_arrays(part: Any) -> dict[str, Array]:
    """The arrays among a dataclass's fields, and among those of the dataclasses in it."""
    found: dict[str, Array] = {}
    for item in fields(part):
        content = getattr(part, item.name)
        if isinstance(content, np.ndarray):
            found[item.name] = content
        elif isinstance(content, DynamicsEquation):
            found |= {f"{NEURON}{name}": array for name, array in content.arrays.items()}
        elif isinstance(content, FixedEquation):
            numbers = {"threshold": content.threshold, "subtract": content.subtract}
            found |= {f"{NEURON}{name}": array for name, array in numbers.items()}
        elif isinstance(content, ParallelEquation):
            found |= {f"{NEURON}weight": content.weight, f"{NEURON}bias": content.bias}
        elif is_dataclass(content) and not isinstance(content, layers.Layer):
            found |= layer_arrays(content)
    return found


def plain(part: Any) -> dict[str, Any]:
    """A dataclass as JSON data; arrays are left out, they are tensors of the file."""
    found: dict[str, Any] = {}
    for item in fields(part):
        content = getattr(part, item.name)
        if isinstance(content, Equation):
            found[item.name] = neuron_header(content)
        elif isinstance(content, tuple):
            found[item.name] = list(content)
        elif content is None or isinstance(content, str | int | float):
            found[item.name] = content
    return found


@dispatch.operation_table(Equation)
def neuron_header(neuron: Equation) -> dict[str, Any]:
    """A neuron as JSON data."""
    raise neuron_header.unknown(neuron)


@neuron_header.on(DynamicsEquation)
def _dynamics_header(neuron: DynamicsEquation) -> dict[str, Any]:
    """Its family and the numbers by name; null: a tensor of the layer."""
    numbers = {n: None if isinstance(c, np.ndarray) else c for n, c in neuron.named.items()}
    sent = {"send": neuron.send, "low": neuron.low, "high": neuron.high}
    return {"family": neuron.family, "constants": numbers, **sent}


@neuron_header.on(ParallelEquation)
def _parallel_header(neuron: ParallelEquation) -> dict[str, Any]:
    """Its numbers are tensors of the layer."""
    return {"family": PSN, "fire": neuron.fire}


@neuron_header.on(FixedEquation)
def _fixed_header(neuron: FixedEquation) -> dict[str, Any]:
    """Threshold and what is subtracted are tensors of the layer."""
    return {"family": FIXED, **{name: getattr(neuron, name) for name in FIXED_NUMBERS}}


@neuron_header.on(NeuronEquation)
def _leaky_header(neuron: NeuronEquation) -> dict[str, Any]:
    """What a spike takes off, if it isn't the threshold, stands in the place of v_reset, so that a
    reader that does not know of it refuses the file.
    """
    found = asdict(neuron)
    taken = found.pop("v_subtract")
    return found if taken is None else found | {"v_reset": {SUBTRACT: taken}}


def neuron_facts(neuron: Equation) -> dict[str, Any]:
    """A neuron for people and metadata: all fields, null ones too; a family's numbers by name."""
    return asdict(neuron) if isinstance(neuron, NeuronEquation) else neuron_header(neuron)


@dispatch.operation_table(layers.Layer)
def header_of(layer: layers.Layer) -> dict[str, Any]:
    """A layer as JSON data."""
    raise header_of.unknown(layer)


@header_of.on(layers.MapLayer, layers.PopulationLayer)
def _(layer: layers.Layer) -> dict[str, Any]:
    return {"operation": layer.operation, **plain(layer), **layer.announced}


@header_of.on(RecurrentLayer)
def _(layer: RecurrentLayer) -> dict[str, Any]:
    told = {"operation": layer.operation, **plain(layer), **layer.announced}
    return told | {"feedback": header_of(layer.feedback)}


@header_of.on(layers.Synaptic)
def _(layer: layers.Synaptic) -> dict[str, Any]:
    synapses, told = layer.synapses, plain(layer)
    if layer.accumulator is None:  # as files of float32 always were
        del told["accumulator"]
    return {
        "operation": layer.operation + synapses.kind,
        "rows": synapses.rows.kind,
        **told,
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


def read_part(
    kind: type[Any], name: str, entry: Entry, tensors: Tensors, **fields_made: Any
) -> Any:
    """The object of `kind`, a dataclass, that `plain` and `layer_arrays` took apart.

    name: of the layer whose arrays it holds. fields_made: fields that are objects of their own.
    """
    for item in fields(kind):
        if item.name == "neuron" and item.name not in fields_made:
            fields_made[item.name] = read_neuron(entry[item.name], name, tensors)
        elif item.name in FIELDS:
            fields_made[item.name] = FIELDS[item.name](entry[item.name])
        elif item.name not in fields_made:
            key = f"{name}/{item.name}"
            errors.require(item.type != Array or key in tensors, f"tensor {key} is missing")
            fields_made[item.name] = tensors.get(key)
    return kind(**fields_made)


@dispatch.operation_table(Synapses)
def read_synapses(name: str, entry: Entry, tensors: Tensors, *, rows: Rows) -> Synapses:
    """The synapses of an entry; the table is asked by class, `read_synapses.of`."""
    raise NotImplementedError(f"{read_synapses.name}: {entry['operation']!r}")


def _read_projection(
    kind: type[layers.Synaptic], name: str, entry: Entry, tensors: Tensors
) -> layers.Layer:
    operation = entry["operation"].removeprefix(kind.operation)
    (joins,) = (joins for joins in read_synapses.kinds if joins.kind == operation)
    try:
        stored = [rows for rows in ROWS if rows.kind == entry["rows"]]
        known = ", ".join(rows.kind for rows in ROWS)
        errors.require(stored, f"rows {entry['rows']!r}; known: {known}")
        rows = read_part(stored[0], name, entry, tensors)
        synapses = read_synapses.of(joins)(name, entry, tensors, rows=rows)
    except (errors.FileFormatError, errors.LimitError) as error:
        raise type(error)(f"{name}: {error}") from error
    errors.require(
        entry["synapses"] == rows.synapses,
        f"{name}: {rows.synapses} synapses stored, {entry['synapses']!r} announced",
    )
    entry = {"accumulator": None, **entry}
    layer: layers.Layer = read_part(kind, name, entry, tensors, synapses=synapses)
    return layer


def _read_recurrent(name: str, entry: Entry, tensors: Tensors) -> layers.Layer:
    back = read_entry(entry["feedback"], tensors)
    errors.require(isinstance(back, layers.CurrentLayer), f"{name}: feedback by {back.what}")
    layer: layers.Layer = read_part(RecurrentLayer, name, entry, tensors, feedback=back)
    return layer


def _enter(table: dispatch.OperationTable[Any], read: Callable[..., Any], *kinds: type) -> None:
    for kind in kinds:
        table.on(kind)(partial(read, kind))


_enter(read_layer, read_part, map_layers.PoolLayer, map_layers.MergeLayer, map_layers.ScatterLayer)
_enter(read_layer, read_part, layers.PopulationLayer)
read_layer.on(RecurrentLayer)(_read_recurrent)
_enter(read_layer, _read_projection, layers.SpikingLayer, layers.CurrentLayer)
_enter(read_synapses, read_part, ConvSynapses, MatrixSynapses)


def read_neuron(entry: Entry, layer: str, tensors: Tensors) -> Equation:
    """The neuron that `neuron_header` wrote; layer: whose arrays its numbers are among."""
    if not isinstance(entry, dict):
        raise TypeError(f"neuron {entry!r} is not an object")
    if entry.get("family") == PSN:
        return _parallel(entry, layer, tensors)
    if entry.get("family") == FIXED:
        return _fixed(entry, layer, tensors)
    if "family" in entry:
        return _dynamics(entry, layer, tensors)
    given, reset = {**entry, "v_subtract": None}, entry["v_reset"]
    if isinstance(reset, dict):
        given |= {"v_reset": None, "v_subtract": v.number(reset[SUBTRACT])}
    neuron: NeuronEquation = read_part(NeuronEquation, "", given, {})
    return neuron


def _parallel(entry: Entry, layer: str, tensors: Tensors) -> ParallelEquation:
    keys = [f"{layer}/{NEURON}{name}" for name in ("weight", "bias")]
    for key in keys:
        errors.require(key in tensors, f"tensor {key} is missing")
    weight, bias = (tensors[key] for key in keys)
    return ParallelEquation(weight, bias, entry["fire"])


def _fixed(entry: Entry, layer: str, tensors: Tensors) -> FixedEquation:
    keys = [f"{layer}/{NEURON}{name}" for name in ("threshold", "subtract")]
    for key in keys:
        errors.require(key in tensors, f"tensor {key} is missing")
    multiplier, shift, lowest, highest = (v.integer(entry[name]) for name in FIXED_NUMBERS[:4])
    threshold, subtract = (tensors[key] for key in keys)
    return FixedEquation(
        multiplier, shift, lowest, highest, threshold, subtract, entry["fire"], entry["reset"]
    )  # fmt: skip


def _dynamics(entry: Entry, layer: str, tensors: Tensors) -> DynamicsEquation:
    """Raises FileFormatError for an unknown family or other numbers than it has."""
    family = v.text(entry["family"])
    known = ", ".join([*DYNAMICS, PSN, FIXED])
    errors.require(family in DYNAMICS, f"neuron {family!r}; known: {known}")
    names, numbers = DYNAMICS[family].constants, entry["constants"]
    errors.require(
        isinstance(numbers, dict) and set(numbers) == set(names),
        f"{family}: numbers {sorted(numbers)}, expected {sorted(names)}",
    )
    send = entry["send"]
    errors.require(send in SEND_RULES, f"{family}: send {send!r}; known: {', '.join(SEND_RULES)}")
    low, high = (v.integer(entry[name]) for name in ("low", "high"))
    found: list[float | Array] = []
    for name in names:
        key = f"{layer}/{NEURON}{name}"
        errors.require(numbers[name] is not None or key in tensors, f"tensor {key} is missing")
        found.append(tensors[key] if numbers[name] is None else v.number(numbers[name]))
    return DynamicsEquation(family, tuple(found), send, low, high)


FIELDS: Mapping[str, Callable[[Any], Any]] = {
    **dict.fromkeys(("name", "source", "projection", "kind"), v.text),
    **dict.fromkeys(("in_shape", "out_shape", "shape"), v.integers),
    **dict.fromkeys(("kernel", "stride", "padding", "dilation", "reach"), v.pair),
    **dict.fromkeys(("groups", "classes", "votes", "divisor", "bytes", "additions"), v.integer),
    **dict.fromkeys(("bound", "grid"), partial(v.optional, v.integer)),
    **dict.fromkeys(("space", "chosen"), v.truth),
    **dict.fromkeys(("constant", "v_threshold"), v.number),
    **dict.fromkeys(("v_reset", "v_subtract", "unit"), partial(v.optional, v.number)),
    **dict.fromkeys(  # checked by class
        ("edge", "function", "charge", "fire", "over_time", "accumulator"), lambda name: name
    ),
    "sources": lambda names: tuple(map(v.text, v.items(names))),
    "alternatives": lambda entries: tuple(
        read_part(layers.Alternative, "", entry, {}) for entry in v.items(entries)
    ),
}
"""How a field is read from JSON data; the other fields are arrays."""
