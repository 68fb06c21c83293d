"""Event networks in files: one safetensors file, memory-mapped, readable with numpy alone.

The metadata (JSON under `soul_deploy`) lists the layers in order; a layer's arrays are called
`<layer>/weight`, `<layer>/starts`, `<layer>/targets`, `<layer>/bias`, `<layer>/live`,
`<layer>/pattern`, `<layer>/index` (layers.py, map_layers.py and synapses.py say what they
hold). The digest covers all arrays. A layer's fields `live` and `generators` say how many live
neurons and generated channels it has, and are null where all neurons are live, and where nothing is
generated. Operations: `convolution` and `matrix` with a population behind, `current_convolution`
and `current_matrix` without one, `population`, `max_pool`, `merge`, `scatter`.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from soul_deploy.base.errors import FileFormatError, LimitError
from soul_deploy.base.files import Array, File, digest, read_tensors, write_tensors
from soul_deploy.base.input_rule import KIND_OF_OLD_FILES
from soul_deploy.runtime.equations import NeuronEquation
from soul_deploy.runtime.format.network import (
    Alternative,
    Convolution,
    CurrentLayer,
    DenseRows,
    EventNetwork,
    Layer,
    Matrix,
    MergeLayer,
    Neurons,
    Normalization,
    PoolLayer,
    PopulationLayer,
    ReadoutLayer,
    Rows,
    ScatterLayer,
    SparseRows,
    SpikingLayer,
    Synapses,
    Synaptic,
)
from soul_deploy.runtime.format.validate import require

FORMAT = "soul-deploy/event/1"
T = TypeVar("T")


def save_event_network(path: Path | str, network: EventNetwork) -> None:
    """Write an event network atomically."""
    tensors = _tensors(network)
    write_tensors(path, tensors, {"format": FORMAT, "digest": digest(tensors), **_header(network)})


def load_event_network(file: File, *, max_memory: int | None = None) -> EventNetwork:
    """Read an event network; its digest, shapes, index ranges and values are checked.

    max_memory: bytes that its description may take; None: DESCRIPTION_BYTES of json_text.py.
    Raises MissingFileError, FileFormatError (naming the file and what is wrong in it), or
    LimitError for sizes beyond the runtime's.
    """
    opened = read_tensors(file, max_memory=max_memory)
    path = opened.path
    document = opened.document(FORMAT)
    if digest(opened.tensors) != document.get("digest"):
        raise FileFormatError(f"{path}: its tensors do not match their digest; the file is damaged")
    try:
        return _Reader(opened.tensors).network(document)
    except FileFormatError as error:
        raise FileFormatError(f"{path}: {error}") from error
    except LimitError as error:
        raise LimitError(f"{path}: {error}") from error
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise FileFormatError(f"{path}: its description cannot be read ({error!r})") from error


def _tensors(network: EventNetwork) -> dict[str, Array]:
    tensors: dict[str, Array] = {}
    for layer in network.layers:
        found: dict[str, Array | None] = {}
        if isinstance(layer, Synaptic):
            rows = layer.synapses.rows
            found |= {"bias": layer.synapses.bias, "weight": rows.weight, "live": layer.live}
            if isinstance(rows, SparseRows):
                found |= {"starts": rows.starts, "targets": rows.targets}
        if isinstance(layer, Neurons):
            found |= {"live": layer.live, "pattern": layer.pattern}
        if isinstance(layer, ScatterLayer):
            found["index"] = layer.index
        tensors |= {f"{layer.name}/{key}": a for key, a in found.items() if a is not None}
    readout = network.readout
    for key, array in (("weight", readout.weight), ("bias", readout.bias)):
        if array is not None:
            tensors[f"{readout.name}/{key}"] = array
    return tensors


def _header(network: EventNetwork) -> dict[str, Any]:
    norm = network.normalization
    return {
        "input": {"name": network.input_name, "shape": list(network.input_shape)},
        "time_steps": network.time_steps,
        "validity": {
            "fixed_steps": network.fixed_steps,
            "reset_per_sample": network.reset_per_sample,
        },
        "normalization": None
        if norm is None
        else {"mean": list(norm.mean), "std": list(norm.std), "applied_by": "caller"},
        "input_kind": network.input_kind,
        "classes": list(network.classes),
        "source_sha256": network.source_sha256,
        "layers": [_layer_header(layer) for layer in network.layers],
        "readout": _plain(network.readout),
    }


PLAIN = {
    PoolLayer: "max_pool",
    MergeLayer: "merge",
    ScatterLayer: "scatter",
    PopulationLayer: "population",
}
CURRENT = "current_"  # before the operation of a projection without a population


def _layer_header(layer: Layer) -> dict[str, Any]:
    header = _plain(layer)
    live = getattr(layer, "live", None)
    counts: dict[str, Any] = {"live": None if live is None else int(live.sum())}
    if isinstance(layer, Neurons):
        counts["generators"] = layer.generated or None
    if not isinstance(layer, Synaptic):
        extra = counts if isinstance(layer, PopulationLayer) else {}
        return {"operation": PLAIN[type(layer)], **header, **extra}
    synapses = header.pop("synapses")
    rows = "dense" if isinstance(layer.synapses.rows, DenseRows) else "sparse"
    operation = "convolution" if isinstance(layer.synapses, Convolution) else "matrix"
    operation = (CURRENT if isinstance(layer, CurrentLayer) else "") + operation
    extra = {
        "synapses": layer.synapses.rows.synapses,
        **counts,
        "alternatives": [asdict(item) for item in layer.alternatives],
    }
    return {"operation": operation, "rows": rows, **header, **synapses, **extra}


def _plain(value: Any) -> Any:
    """A dataclass as JSON data; arrays are left out, they are tensors of the file."""
    found: dict[str, Any] = {}
    for item in fields(value):
        content = getattr(value, item.name)
        if isinstance(content, NeuronEquation):
            found[item.name] = _neuron_header(content)
        elif isinstance(content, Convolution | Matrix):
            found[item.name] = _plain(content)
        elif isinstance(content, tuple):
            found[item.name] = list(content)
        elif content is None or isinstance(content, str | int | float):
            found[item.name] = content
    return found


SUBTRACT = "subtract"


def _neuron_header(neuron: NeuronEquation) -> dict[str, Any]:
    """A neuron as JSON data. What a spike takes off, if it isn't the threshold, stands in the place
    of v_reset, so that a reader that does not know of it refuses the file.
    """
    found = asdict(neuron)
    taken = found.pop("v_subtract")
    return found if taken is None else found | {"v_reset": {SUBTRACT: taken}}


@dataclass(frozen=True)
class _Reader:
    """Rebuilds dataclasses from JSON data and tensors; raises KeyError, TypeError, ValueError."""

    tensors: Mapping[str, Array]

    def network(self, document: Mapping[str, Any]) -> EventNetwork:
        norm = document["normalization"]
        network = EventNetwork(
            input_name=_text(document["input"]["name"]),
            input_shape=_integers(document["input"]["shape"]),
            time_steps=_integer(document["time_steps"]),
            layers=tuple(self.layer(entry) for entry in _list(document["layers"])),
            readout=self.readout(document["readout"]),
            fixed_steps=_truth(document["validity"]["fixed_steps"]),
            reset_per_sample=_truth(document["validity"]["reset_per_sample"]),
            normalization=None
            if norm is None
            else Normalization(_floats(norm["mean"]), _floats(norm["std"])),
            classes=tuple(_text(name) for name in _list(document["classes"])),
            source_sha256=_optional(_text, document["source_sha256"]),
            input_kind=document.get("input_kind", KIND_OF_OLD_FILES),
            digest=_text(document["digest"]),
        )
        surplus = sorted(set(self.tensors) - set(_tensors(network)))
        require(not surplus, f"tensors that belong to no layer: {', '.join(surplus[:3])}")
        return network

    def layer(self, entry: Mapping[str, Any]) -> Layer:
        name, operation = _text(entry["name"]), entry["operation"]
        known = ("convolution", "matrix", *PLAIN.values())
        if operation == "merge":
            sources = tuple(_text(source) for source in _list(entry["sources"]))
            return MergeLayer(name, sources, entry["function"], _integers(entry["shape"]))
        source = _text(entry["source"])
        if operation == "population":
            layer = PopulationLayer(
                name,
                source,
                _integers(entry["in_shape"]),
                _neuron(entry["neuron"]),
                live=self.tensors.get(f"{name}/live"),
                pattern=self.tensors.get(f"{name}/pattern"),
            )
            self._check_announced(layer, entry)
            return layer
        if operation in ("max_pool", "scatter"):
            return self._map_layer(name, source, entry)
        require(
            isinstance(operation, str) and operation.removeprefix(CURRENT) in known[:2],
            f"{name}: operation {operation!r}; known: {', '.join(known)}",
        )
        return self._synaptic(name, source, entry)

    def _map_layer(self, name: str, source: str, entry: Mapping[str, Any]) -> Layer:
        shapes = _integers(entry["in_shape"]), _integers(entry["out_shape"])
        if entry["operation"] == "scatter":
            require(f"{name}/index" in self.tensors, f"tensor {name}/index is missing")
            return ScatterLayer(name, source, *shapes, self.tensors[f"{name}/index"])
        pairs = (_pair(entry[key]) for key in ("kernel", "stride", "padding"))
        return PoolLayer(name, source, *shapes, *pairs)

    def _synaptic(self, name: str, source: str, entry: Mapping[str, Any]) -> Synaptic:
        try:
            synapses = self.synapses(name, entry)
        except (FileFormatError, LimitError) as error:
            raise type(error)(f"{name}: {error}") from error
        require(
            entry["synapses"] == synapses.rows.synapses,
            f"{name}: {synapses.rows.synapses} synapses stored, {entry['synapses']!r} announced",
        )
        shared: dict[str, Any] = {
            "name": name,
            "source": source,
            "edge": entry["edge"],
            "bound": _optional(_integer, entry["bound"]),
            "synapses": synapses,
            "grid": _optional(_integer, entry["grid"]),
            "live": self.tensors.get(f"{name}/live"),
            "alternatives": tuple(_alternative(item) for item in _list(entry["alternatives"])),
        }
        layer: Synaptic
        if entry["operation"].startswith(CURRENT):
            layer = CurrentLayer(**shared)
        else:
            layer = SpikingLayer(
                projection=_text(entry["projection"]),
                neuron=_neuron(entry["neuron"]),
                pattern=self.tensors.get(f"{name}/pattern"),
                **shared,
            )
        self._check_announced(layer, entry)
        return layer

    def _check_announced(self, layer: Synaptic | Neurons, entry: Mapping[str, Any]) -> None:
        """The description says how many neurons are live and how many channels generated."""
        found = {"live": None if layer.live is None else int(layer.live.sum())}
        if isinstance(layer, Neurons):
            found["generators"] = layer.generated or None
        for key, count in found.items():
            require(
                entry[key] == count,
                f"{layer.name}: {key} is {count} by its tensors, {entry[key]!r} announced",
            )

    def synapses(self, name: str, entry: Mapping[str, Any]) -> Synapses:
        shapes = _integers(entry["in_shape"]), _integers(entry["out_shape"])
        rows, bias = self.rows(name, entry["rows"]), self.tensors.get(f"{name}/bias")
        if entry["operation"].removeprefix(CURRENT) == "matrix":
            return Matrix(*shapes, rows, bias)
        return Convolution(
            *shapes,
            rows,
            bias,
            kernel=_pair(entry["kernel"]),
            stride=_pair(entry["stride"]),
            padding=_pair(entry["padding"]),
            dilation=_pair(entry["dilation"]),
            groups=_integer(entry["groups"]),
            reach=_pair(entry["reach"]),
        )

    def rows(self, name: str, kind: Any) -> Rows:
        require(kind in ("dense", "sparse"), f"rows {kind!r}; known: dense, sparse")
        keys = ("weight",) if kind == "dense" else ("starts", "targets", "weight")
        for key in keys:
            require(f"{name}/{key}" in self.tensors, f"tensor {name}/{key} is missing")
        arrays = [self.tensors[f"{name}/{key}"] for key in keys]
        return DenseRows(*arrays) if kind == "dense" else SparseRows(*arrays)

    def readout(self, entry: Mapping[str, Any]) -> ReadoutLayer:
        name = _text(entry["name"])
        return ReadoutLayer(
            name=name,
            source=_text(entry["source"]),
            in_shape=_integers(entry["in_shape"]),
            classes=_integer(entry["classes"]),
            space=_truth(entry["space"]),
            weight=self.tensors.get(f"{name}/weight"),
            bias=self.tensors.get(f"{name}/bias"),
            votes=_integer(entry["votes"]),
            divisor=_integer(entry["divisor"]),
        )


def _alternative(entry: Mapping[str, Any]) -> Alternative:
    return Alternative(
        _text(entry["kind"]),
        _integer(entry["bytes"]),
        _integer(entry["additions"]),
        _truth(entry["chosen"]),
    )


def _neuron(entry: Mapping[str, Any]) -> NeuronEquation:
    reset = entry["v_reset"]
    taken = _float(reset[SUBTRACT]) if isinstance(reset, dict) else None
    return NeuronEquation(
        charge=entry["charge"],
        constant=_float(entry["constant"]),
        v_threshold=_float(entry["v_threshold"]),
        v_reset=None if taken is not None else _optional(_float, reset),
        fire=entry["fire"],
        v_subtract=taken,
    )


def _integer(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{value!r} is not an integer")
    return value


def _float(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{value!r} is not a number")
    return float(value)


def _truth(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{value!r} is not true or false")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not text")
    return value


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError(f"{value!r} is not a list")
    return value


def _integers(value: Any) -> tuple[int, ...]:
    found = tuple(_integer(item) for item in _list(value))
    if not found:
        raise ValueError("an empty shape")
    return found


def _pair(value: Any) -> tuple[int, int]:
    first, second = _integers(value)
    return first, second


def _floats(value: Any) -> tuple[float, ...]:
    return tuple(_float(item) for item in _list(value))


def _optional(read: Callable[[Any], T], value: Any) -> T | None:
    return None if value is None else read(value)
