"""Event networks in files: one safetensors file, memory-mapped, readable with numpy alone.

The metadata (JSON under `soul_deploy`) lists the layers in order; a layer's arrays are called
`<layer>/weight`, `<layer>/starts`, `<layer>/targets`, `<layer>/bias`, `<layer>/live`,
`<layer>/pattern` (eventnet.py and synapses.py say what they hold). The digest covers all arrays. A
layer's fields `live` and `generators` say how many live neurons and generated channels it has, and
are null where all neurons are live, and where nothing is generated.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from soul_deploy.runtime.checks import require
from soul_deploy.runtime.equations import NeuronEquation
from soul_deploy.runtime.errors import FileFormatError, LimitError
from soul_deploy.runtime.eventnet import (
    Alternative,
    Convolution,
    DenseRows,
    EventNetwork,
    Layer,
    Matrix,
    Normalization,
    PoolLayer,
    ReadoutLayer,
    Rows,
    SparseRows,
    SpikingLayer,
    Synapses,
)
from soul_deploy.runtime.files import Array, digest, read_tensors, write_tensors

FORMAT = "soul-deploy/event/1"
T = TypeVar("T")


def save_event_network(path: Path, network: EventNetwork) -> None:
    """Write an event network atomically."""
    tensors = _tensors(network)
    write_tensors(path, tensors, {"format": FORMAT, "digest": digest(tensors), **_header(network)})


def load_event_network(path: Path) -> EventNetwork:
    """Read an event network; its digest, shapes, index ranges and values are checked.

    Raises MissingFileError, FileFormatError (naming the file and what is wrong in it), or
    LimitError for sizes beyond the runtime's.
    """
    opened = read_tensors(path)
    document = opened.document(FORMAT)
    if digest(opened.tensors) != document.get("digest"):
        raise FileFormatError(f"{path}: its tensors do not match their digest; the file is damaged")
    try:
        return _Reader(opened.tensors).network(document)
    except FileFormatError as error:
        raise FileFormatError(f"{path}: {error}") from error
    except LimitError as error:
        raise LimitError(f"{path}: {error}") from error
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise FileFormatError(f"{path}: its description cannot be read ({error!r})") from error


def _tensors(network: EventNetwork) -> dict[str, Array]:
    tensors: dict[str, Array] = {}
    for layer in network.spiking_layers:
        rows = layer.synapses.rows
        found = {"bias": layer.synapses.bias, "weight": rows.weight}
        found |= {"live": layer.live, "pattern": layer.pattern}
        if isinstance(rows, SparseRows):
            found |= {"starts": rows.starts, "targets": rows.targets}
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
        "classes": list(network.classes),
        "source_sha256": network.source_sha256,
        "layers": [_layer_header(layer) for layer in network.layers],
        "readout": _plain(network.readout),
    }


def _layer_header(layer: Layer) -> dict[str, Any]:
    if isinstance(layer, PoolLayer):
        return {"operation": "max_pool", **_plain(layer)}
    header = _plain(layer)
    synapses = header.pop("synapses")
    rows = "dense" if isinstance(layer.synapses.rows, DenseRows) else "sparse"
    operation = "convolution" if isinstance(layer.synapses, Convolution) else "matrix"
    extra = {
        "synapses": layer.synapses.rows.synapses,
        "live": None if layer.live is None else int(layer.live.sum()),
        "generators": layer.generated or None,
        "alternatives": [asdict(item) for item in layer.alternatives],
    }
    return {"operation": operation, "rows": rows, **header, **synapses, **extra}


def _plain(value: Any) -> Any:
    """A dataclass as JSON data; arrays are left out, they are tensors of the file."""
    found: dict[str, Any] = {}
    for item in fields(value):
        content = getattr(value, item.name)
        if isinstance(content, NeuronEquation | Convolution | Matrix):
            found[item.name] = _plain(content)
        elif isinstance(content, tuple):
            found[item.name] = list(content)
        elif content is None or isinstance(content, str | int | float):
            found[item.name] = content
    return found


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
            digest=_text(document["digest"]),
        )
        surplus = sorted(set(self.tensors) - set(_tensors(network)))
        require(not surplus, f"tensors that belong to no layer: {', '.join(surplus[:3])}")
        return network

    def layer(self, entry: Mapping[str, Any]) -> Layer:
        name, source = _text(entry["name"]), _text(entry["source"])
        operation = entry["operation"]
        if operation == "max_pool":
            return PoolLayer(
                name,
                source,
                _integers(entry["in_shape"]),
                _integers(entry["out_shape"]),
                *(_pair(entry[key]) for key in ("kernel", "stride", "padding")),
            )
        require(
            operation in ("convolution", "matrix"),
            f"{name}: operation {operation!r}; known: convolution, matrix, max_pool",
        )
        live, pattern = (self.tensors.get(f"{name}/{key}") for key in ("live", "pattern"))
        try:
            synapses = self.synapses(name, entry)
        except (FileFormatError, LimitError) as error:
            raise type(error)(f"{name}: {error}") from error
        require(
            entry["synapses"] == synapses.rows.synapses,
            f"{name}: {synapses.rows.synapses} synapses stored, {entry['synapses']!r} announced",
        )
        layer = SpikingLayer(
            name=name,
            projection=_text(entry["projection"]),
            source=source,
            edge=entry["edge"],
            bound=_optional(_integer, entry["bound"]),
            synapses=synapses,
            neuron=_neuron(entry["neuron"]),
            grid=_optional(_integer, entry["grid"]),
            live=live,
            pattern=pattern,
            alternatives=tuple(_alternative(item) for item in _list(entry["alternatives"])),
        )
        self._check_announced(layer, entry)
        return layer

    def _check_announced(self, layer: SpikingLayer, entry: Mapping[str, Any]) -> None:
        """The description says how many neurons are live and how many channels generated."""
        found = {
            "live": None if layer.live is None else int(layer.live.sum()),
            "generators": layer.generated or None,
        }
        for key, count in found.items():
            require(
                entry[key] == count,
                f"{layer.name}: {key} is {count} by its tensors, {entry[key]!r} announced",
            )

    def synapses(self, name: str, entry: Mapping[str, Any]) -> Synapses:
        shapes = _integers(entry["in_shape"]), _integers(entry["out_shape"])
        rows, bias = self.rows(name, entry["rows"]), self.tensors.get(f"{name}/bias")
        if entry["operation"] == "matrix":
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
    return NeuronEquation(
        charge=entry["charge"],
        constant=_float(entry["constant"]),
        v_threshold=_float(entry["v_threshold"]),
        v_reset=_optional(_float, entry["v_reset"]),
        fire=entry["fire"],
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
