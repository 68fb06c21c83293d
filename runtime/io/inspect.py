"""The contents of a file as JSON data, for every kind of file that a command takes. No PyTorch.

Readers that need other packages are found by dotted name when such a file comes.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from shlex import quote
from typing import Any

import numpy as np

from soul_deploy.base import Array, container, dispatch, errors, file_kinds, files, lazy, pixel_rule
from soul_deploy.runtime.equations import Equation
from soul_deploy.runtime.format import file as eventfile
from soul_deploy.runtime.format import layer_codec, tap_tables
from soul_deploy.runtime.format import network as eventnet
from soul_deploy.runtime.format.layer_codec import neuron_facts
from soul_deploy.runtime.io import other_files
from soul_deploy.runtime.plan.forms import estimated_times, expected_of, forms_of

SCHEMA = "soul-deploy/inspect/1"
WEIGHT, MASK = "weight:", "channel_mask:"
UNTRAINED = ("running_mean", "running_var", "num_batches_tracked", "pattern")
READABLE = (
    "soul-deploy model files and event networks, checkpoints, weights (.safetensors, .pt, .pth, "
    ".ckpt), ONNX and NIR files, NumPy arrays (.npy, .npz), images, results of bench (JSON)"
)


def describe_file(file: files.File, *, max_memory: int | None = None) -> dict[str, Any]:
    """The contents of a file, by what it is: a kind of soul_deploy/base/file_kinds.py.

    max_memory: bytes that its description may take; None: DESCRIPTION_BYTES of json_text.py.
    Raises MissingFileError, LimitError, FileFormatError for anything else or a damaged file, or
    UsageError if a package that its reader needs is not installed.
    """
    with files.opened(file) as source:
        kind = kind_of_file(source, max_memory=max_memory)
        head = {"schema": SCHEMA, "kind": kind, "path": str(source), "bytes": source.size}
        head["sha256"] = source.sha256()
        return head | DESCRIBERS[kind](source, max_memory)


def _event(source: files.OpenFile, max_memory: int | None) -> dict[str, Any]:
    network = eventfile.load_event_network(source, max_memory=max_memory)
    try:
        return describe_event(network)
    except errors.FileFormatError as error:  # a form of rows that the file asks for
        raise errors.FileFormatError(f"{source}: {error}") from error


def _model(source: files.OpenFile, max_memory: int | None) -> dict[str, Any]:
    return describe_model(files.read_tensors(source, max_memory=max_memory))


def _found_by_name(name: str, what: str) -> Callable[[files.OpenFile, int | None], dict[str, Any]]:
    def describe(source: files.OpenFile, max_memory: int | None) -> dict[str, Any]:
        reader = lazy.load_object(name, f"inspecting {what}")
        contents: dict[str, Any] = reader(source, max_memory=max_memory)
        return contents

    return describe


DESCRIBERS: Mapping[str, Callable[[files.OpenFile, int | None], dict[str, Any]]] = {
    "model": _model,
    "event": _event,
    "onnx": _found_by_name("soul_deploy.export.onnx.reader:describe_onnx", "an ONNX file"),
    "nir": _found_by_name("soul_deploy.export.nir.describe:describe_nir", "a NIR file"),
    "weights": other_files.describe_weights,
    "checkpoint": other_files.describe_checkpoint,
    "array": other_files.describe_arrays,
    "arrays": other_files.describe_arrays,
    "image": other_files.describe_image,
    "result": other_files.describe_result,
}


def kind_of_file(file: files.File, *, max_memory: int | None = None) -> str:
    """The kind of the file, a key of KINDS of soul_deploy/base/file_kinds.py: by its content, or
    by its suffix where that is of no kind.

    max_memory: as in `describe_file`. Raises MissingFileError, FileFormatError, LimitError.
    """
    with files.opened(file) as source:
        start, suffix = source.start(9), source.path.suffix
        kind = file_kinds.kind_of(source) or file_kinds.SUFFIXES.get(suffix.lower())
        if kind is not None:
            return kind
        if suffix == ".safetensors" or start[8:9] == b"{":
            _refuse_tensors(files.read_tensors(source, max_memory=max_memory))
        raise errors.FileFormatError(f"{source} is {_guess(start)}; readable: {READABLE}")


def _refuse_tensors(tensor_file: files.TensorFile) -> None:
    """Raise what is wrong with a safetensors file of no known kind."""
    document = tensor_file.description()
    name = document.get("format") if isinstance(document, dict) else None
    raise errors.FileFormatError(
        f"{tensor_file.path} is a safetensors file of format {name!r}; readable: {READABLE}, of "
        f"the formats {', '.join(file_kinds.FORMATS)}"
    )


def is_model_file(file: files.File) -> bool:
    """Whether the file says that it is a model file; no more of it is looked at."""
    try:
        with files.opened(file) as source:
            text = container.read_header(source).metadata.get(files.METADATA_KEY, "")
        document = files.parse_json(text, "its metadata")
    except errors.SoulDeployError:
        return False
    return isinstance(document, dict) and document.get("format") in file_kinds.MODEL_FORMATS


def require_event_network(file: files.File) -> None:
    """Raise FileFormatError for a model file, saying what makes an event network of it."""
    if is_model_file(file):
        path = files.path_of(file)
        raise errors.FileFormatError(
            f"{path} is a model file, which needs PyTorch; `soul-deploy export event "
            f"{quote(str(path))}` makes an event network of it, which this command runs"
        )


def _guess(start: bytes) -> str:
    if not start:
        return "empty"
    if start[:1] == b"\x80" or start[:2] == b"PK":
        return "a pickle or an archive (it was not opened)"
    if all(byte in b"\t\n\r" or 32 <= byte < 127 for byte in start):
        return "a text file"
    return "of an unknown format"


def describe_model(tensor_file: files.TensorFile) -> dict[str, Any]:
    """A model file: its graph as rows, its description, its size. Raises FileFormatError."""
    document = tensor_file.document(*file_kinds.MODEL_FORMATS)
    if files.digest(tensor_file.tensors) != document.get("digest"):
        raise errors.FileFormatError(
            f"{tensor_file.path}: its tensors do not match their digest; the file is damaged"
        )
    try:
        what = "inspecting a model file"
        graph_class = lazy.load_object("soul_deploy.ir.graph:SpikingGraph", what)
        graph = graph_class.from_json(document["graph"])
        info = document["info"]
        return {
            "stage": info["stage"],
            "time_steps": graph.time_steps,
            "input_shape": list(graph.input.shape),
            "layers": _model_layers(graph, tensor_file.tensors),
            **_totals(tensor_file.tensors),
            "input_kind": info.get("input_kind", pixel_rule.KIND_OF_OLD_FILES),
            "input_bound": graph.input.events,
            **{key: info[key] for key in ("classes", "normalization", "provenance")},
            "validity": _validity(graph, info["validity"]),
            "digest": document["digest"],
        }
    except (KeyError, TypeError) as error:
        raise errors.FileFormatError(
            f"{tensor_file.path}: its description cannot be read ({error!r})"
        ) from error


def _validity(graph: Any, removal: Mapping[str, Any]) -> dict[str, Any]:
    """What the file is valid for: by its removal, and by neurons with numbers of each step."""
    stepwise = any(node.neuron.stepwise for node in graph.populations)
    return {**removal, "time_steps": graph.time_steps if stepwise else removal["time_steps"]}


def _model_layers(graph: Any, tensors: Mapping[str, Array]) -> list[dict[str, Any]]:
    """One row per node; `graph` is a soul_deploy.ir.graph.SpikingGraph."""
    rows = []
    for node in graph.nodes:
        norm, mask = getattr(node, "norm", None), tensors.get(MASK + node.name)
        owners = [WEIGHT + part.name for part in (node, norm) if part is not None]
        edge, shape = graph.edges[node.name], graph.shapes[node.name]
        rows.append(
            {
                "layer": node.name,
                "operation": node.op,
                "what": node.describe(),
                "inputs": list(node.inputs),
                "shape": list(shape),
                "edge": "signed" if edge.low else edge.kind,
                "bound": edge.size,
                **_totals({n: a for n, a in tensors.items() if n.rpartition(".")[0] in owners}),
                "channels_kept": None if mask is None else int(mask.sum()),
                "channels": shape[0],
            }
        )
    return rows


def _totals(tensors: Mapping[str, Array]) -> dict[str, int]:
    """Trained values (weights and biases, not statistics or patterns), how many are not 0."""
    trained = [a for n, a in tensors.items() if n.startswith(WEIGHT) and not n.endswith(UNTRAINED)]
    return {
        "parameters": sum(array.size for array in trained),
        "nonzeros": sum(int(np.count_nonzero(array)) for array in trained),
    }


def describe_event(network: eventnet.EventNetwork) -> dict[str, Any]:
    """An event network: its layers as rows and what it is valid for."""
    running = _running(network)
    unjoined: dict[str, Any] = dict.fromkeys(RUNNING)
    layers = [
        layer_row(layer, network.edges[layer.sources[0]]) | running.get(layer.name, unjoined)
        for layer in network.layers
    ]
    norm = network.normalization
    rows = [*layers, _readout_row(network.readout) | unjoined]
    return {
        "time_steps": network.time_steps,
        "input_shape": list(network.input_shape),
        "input_kind": network.input_kind,
        "input_bound": network.input_bound,
        "layers": rows,
        "neurons": sum(row["neurons"] for row in rows),
        "synapses": sum(row["synapses"] for row in rows),
        "classes": list(network.classes),
        "over_time": network.readout.over_time,
        "normalization": None if norm is None else asdict(norm),
        "integers": None if network.integers is None else asdict(network.integers),
        "validity": {
            "time_steps": network.time_steps if network.fixed_steps else None,
            "reset_per_sample": network.reset_per_sample,
        },
        "source_sha256": network.source_sha256,
        "digest": network.digest,
    }


RATES = ("rate", "rate_by", "active", "active_by")
RUNNING = ("runs_as", "runs_as_by", "estimated_us", *RATES)


def _running(network: eventnet.EventNetwork) -> dict[str, dict[str, Any]]:
    """Of each layer with synapses: the form that it runs in and who chose it (the estimate or the
    file), the estimated microseconds of all its forms for a sample on one thread, and the rates
    that they count on.
    """
    forms, times = forms_of(network, {}), estimated_times(network)
    return {
        layer.name: {
            "runs_as": forms[layer.name],
            "runs_as_by": "file" if layer.name in network.forms else "estimate",
            "estimated_us": {form: ns / 1e3 for form, ns in times[layer.name].items()},
            **_rates(network, layer),
        }
        for layer in network.projected
    }


def _rates(network: eventnet.EventNetwork, layer: eventnet.Synaptic) -> dict[str, Any]:
    """The share of the source's neurons that give an event at a step, and at any step: measured at
    export, or assumed. Analog values have none.
    """
    if layer.edge == "analog":
        return dict.fromkeys(RATES)
    expected = expected_of(network, layer)
    return {
        "rate": expected.rate,
        "rate_by": "measured" if layer.source in network.rates else "assumed",
        "active": expected.fires,
        "active_by": "assumed" if expected.active is None else "measured",
    }


@dispatch.operation_table(eventnet.Layer)
def layer_row(layer: eventnet.Layer, edge: eventnet.Edge) -> dict[str, Any]:
    """One layer; edge: what arrives from its first source."""
    raise layer_row.unknown(layer)


@layer_row.on(eventnet.MapLayer)
def _map_row(layer: eventnet.Layer, edge: eventnet.Edge) -> dict[str, Any]:
    row = _plain_row(layer.name, layer.operation, ", ".join(layer.sources), layer.out_shape)
    return row | {"edge": edge[0], "bound": edge[1]}


@layer_row.on(eventnet.PopulationLayer)
def _(layer: eventnet.PopulationLayer, edge: eventnet.Edge) -> dict[str, Any]:
    return _map_row(layer, edge) | _neurons_of(layer)


@layer_row.on(eventnet.RecurrentLayer)
def _(layer: eventnet.RecurrentLayer, edge: eventnet.Edge) -> dict[str, Any]:
    """The synapses are those of the feedback."""
    back = _synaptic_row(layer.feedback)
    kept = ("projection", "representation", "alternatives", "rows", "synapses", "bytes", "grid")
    told = {key: back[key] for key in kept} | {
        "operation": f"{layer.operation}_{back['operation']}"
    }
    return _map_row(layer, edge) | _neurons_of(layer) | told


@layer_row.on(eventnet.SpikingLayer)
def _(layer: eventnet.SpikingLayer, edge: eventnet.Edge) -> dict[str, Any]:
    return _synaptic_row(layer) | _neurons_of(layer)


def _neurons_of(layer: eventnet.Firing) -> dict[str, Any]:
    return {
        "neurons": layer.neurons,
        "generated": layer.generated,
        "neuron": neuron_facts(layer.neuron),
    }


@layer_row.on(eventnet.CurrentLayer)
def _synaptic_row(layer: eventnet.Synaptic, *_: object) -> dict[str, Any]:
    synapses = layer.synapses
    return _plain_row(layer.name, synapses.kind, layer.source, layer.out_shape) | {
        "projection": layer.projection,
        "edge": layer.edge,
        "bound": layer.bound,
        "representation": synapses.rows.kind if synapses.explicit_rows is None else "explicit",
        "alternatives": [asdict(item) for item in layer.alternatives],
        "rows": synapses.row_count,
        "synapses": stored_synapses(synapses),
        "bytes": _bytes(synapses),
        "grid": layer.grid,
        "sums": layer.accumulator,
        "most_current": layer.current_bound,
    }


def _bytes(part: object) -> int:
    return sum(array.nbytes for array in layer_codec.layer_arrays(part).values())


@dispatch.operation_table(eventnet.Synapses)
def stored_synapses(synapses: eventnet.Synapses) -> int:
    """Nonzero weights that lead from neuron to neuron; one that many positions share counts once.

    A kernel that is larger than the map has weights under which no neuron ever lies.
    """
    raise stored_synapses.unknown(synapses)


@stored_synapses.on(eventnet.MatrixSynapses)
def _(matrix: eventnet.MatrixSynapses) -> int:
    return matrix.rows.synapses


@stored_synapses.on(eventnet.ConvSynapses)
def _(convolution: eventnet.ConvSynapses) -> int:
    lengths = convolution.rows.lengths.reshape(convolution.in_shape[0], *convolution.kernel)
    rows, columns = (tap_tables.taps_met(convolution, axis) for axis in (0, 1))
    return int(lengths[:, np.outer(rows, columns)].sum())


def representations(network: eventnet.EventNetwork) -> list[dict[str, Any]]:
    """Per layer with synapses: how they are stored, and what was weighed against it."""
    keys = ("layer", "operation", "representation", "synapses", "bytes", "alternatives")
    rows = (_synaptic_row(layer) for layer in network.projected)
    return [{key: row[key] for key in keys} for row in rows]


def _readout_row(readout: eventnet.ReadoutLayer) -> dict[str, Any]:
    return {
        **_plain_row(readout.name, "readout", readout.source, (readout.classes,)),
        "synapses": 0 if readout.weight is None else int(np.count_nonzero(readout.weight)),
        "bytes": _bytes(readout),
        **({} if readout.neuron is None else _neurons_behind(readout, readout.neuron)),
    }


def _neurons_behind(readout: eventnet.ReadoutLayer, neuron: Equation) -> dict[str, Any]:
    return {"neurons": readout.classes, "neuron": neuron_facts(neuron)}


def _plain_row(name: str, operation: str, source: str, shape: tuple[int, ...]) -> dict[str, Any]:
    return {
        "layer": name,
        "projection": None,
        "operation": operation,
        "source": source,
        "shape": list(shape),
        **dict.fromkeys(("edge", "bound", "representation")),
        "alternatives": [],
        **dict.fromkeys(("neurons", "generated", "rows", "synapses", "bytes"), 0),
        **dict.fromkeys(("neuron", "grid", "sums", "most_current")),
    }
