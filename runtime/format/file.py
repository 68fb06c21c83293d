"""Event networks in files: one safetensors file, memory-mapped, readable with numpy alone.

The metadata (JSON under `soul_deploy`) lists the layers in order; a layer's arrays are called
`<layer>/weight`, `<layer>/starts`, `<layer>/targets`, `<layer>/bias`, `<layer>/live`,
`<layer>/pattern`, `<layer>/index` (layers.py, map_layers.py and synapses.py say what they
hold). The digest covers all arrays. How each layer is written and read stands in layer_codec.py.

Three objects may be missing: `rates`, layer names to the expected share of nonzero values per step
(0 to 1), `active`, the same names to the expected share of neurons that give one at any step, and
`forms`, names of layers with synapses to how these shall run (plan/forms.py).

Format 3 is format 2 of fixed-point networks (docs/fixed-point.md): weights int8, biases int32,
neurons of integers, `accumulator` in layers with synapses, `unit` in the readout, and `integers`,
what the network takes.

Format 2 is format 1 with `over_time` in the readout: "sum", "last" or "max" over the steps. A
network whose scores are the mean over time, as they all are in format 1, is written in format 1.

Format 4 is format 2 with `neuron` in the readout, written as a layer's: neurons behind the head,
whose membrane is read. Over time there is then the mean too.

Format 5 has `bound` in the input: the largest value of the events that come in. `over_time` is
there, the mean too; the rest is as in the formats before, `integers` and `neuron` where they are.
"""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from soul_deploy.base import Array, errors, files, pixel_rule, reduction
from soul_deploy.base.file_kinds import reads
from soul_deploy.runtime.format import json_values as v
from soul_deploy.runtime.format import layer_codec
from soul_deploy.runtime.format.network import EventNetwork, Layer, PixelNormalization, ReadoutLayer

FORMAT = "soul-deploy/event/1"
FORMAT_OVER_TIME = "soul-deploy/event/2"
FORMAT_FIXED = "soul-deploy/event/3"
FORMAT_MEMBRANE = "soul-deploy/event/4"
FORMAT_EVENTS = "soul-deploy/event/5"
FORMATS = (FORMAT, FORMAT_OVER_TIME, FORMAT_FIXED, FORMAT_MEMBRANE, FORMAT_EVENTS)
OF_OLD_FILES: reduction.OverTime = "mean"


def save_event_network(path: Path | str, network: EventNetwork) -> None:
    """Write an event network atomically."""
    tensors = _tensors(network)
    told = {"format": format_of(network), "digest": files.digest(tensors), **_header(network)}
    files.write_tensors(path, tensors, told)


def format_of(network: EventNetwork) -> str:
    """The first format that has all that a network needs."""
    if network.input_bound is not None:
        return FORMAT_EVENTS
    if network.readout.neuron is not None:
        return FORMAT_MEMBRANE
    if network.integers is not None:
        return FORMAT_FIXED
    return FORMAT if network.readout.over_time == OF_OLD_FILES else FORMAT_OVER_TIME


@reads("event")
def load_event_network(file: files.File, *, max_memory: int | None = None) -> EventNetwork:
    """Read an event network; its digest, shapes, index ranges and values are checked.

    max_memory: bytes that its description may take; None: DESCRIPTION_BYTES of json_text.py.
    Raises MissingFileError, FileFormatError (naming the file and what is wrong in it), or
    LimitError for sizes beyond the runtime's.
    """
    opened = files.read_tensors(file, max_memory=max_memory)
    path = opened.path
    document = opened.document(*FORMATS)
    if files.digest(opened.tensors) != document.get("digest"):
        raise errors.FileFormatError(
            f"{path}: its tensors do not match their digest; the file is damaged"
        )
    try:
        return _network(document, opened.tensors)
    except (errors.FileFormatError, errors.LimitError) as error:
        raise type(error)(f"{path}: {error}") from error
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise errors.FileFormatError(
            f"{path}: its description cannot be read ({error!r})"
        ) from error


def _tensors(network: EventNetwork) -> dict[str, Array]:
    parts: tuple[Layer | ReadoutLayer, ...]
    parts = (*network.layers, *network.feedbacks, network.readout)
    found = ((part.name, layer_codec.layer_arrays(part)) for part in parts)
    return {f"{name}/{key}": array for name, arrays in found for key, array in arrays.items()}


def _header(network: EventNetwork) -> dict[str, Any]:
    norm = network.normalization
    told = {key: dict(getattr(network, key)) for key in ("rates", "active", "forms")}
    bound = {} if network.input_bound is None else {"bound": network.input_bound}
    return {
        "input": {"name": network.input_name, "shape": list(network.input_shape), **bound},
        "time_steps": network.time_steps,
        "validity": {
            "fixed_steps": network.fixed_steps,
            "reset_per_sample": network.reset_per_sample,
        },
        "normalization": None
        if norm is None
        else {"mean": list(norm.mean), "std": list(norm.std), "applied_by": "caller"},
        "input_kind": network.input_kind,
        **({} if network.integers is None else {"integers": asdict(network.integers)}),
        "classes": list(network.classes),
        "source_sha256": network.source_sha256,
        "layers": [layer_codec.header_of(layer) for layer in network.layers],
        "readout": _readout_header(network),
        **{key: by_name for key, by_name in told.items() if by_name},
    }


def _readout_header(network: EventNetwork) -> dict[str, Any]:
    told = layer_codec.plain(network.readout)
    if network.integers is None:
        del told["unit"]
        if format_of(network) == FORMAT:
            del told["over_time"]
    if network.readout.neuron is None:
        del told["neuron"]
    return told


def _readout(document: Mapping[str, Any], tensors: layer_codec.Tensors) -> ReadoutLayer:
    entry = {"unit": None, **document["readout"]}
    if document["format"] == FORMAT:
        errors.require(
            entry.get("over_time", OF_OLD_FILES) == OF_OLD_FILES,
            f"{entry['name']}: over_time {entry.get('over_time')!r} in a file of {FORMAT}",
        )
        entry["over_time"] = OF_OLD_FILES
    name, neuron = entry["name"], None
    events = document["format"] == FORMAT_EVENTS
    if document["format"] == FORMAT_MEMBRANE or (events and "neuron" in entry):
        neuron = layer_codec.read_neuron(entry["neuron"], name, tensors)
    errors.require(
        neuron is not None or "neuron" not in entry,
        f"{name}: a neuron in a file of {document['format']}",
    )
    readout: ReadoutLayer = layer_codec.read_part(ReadoutLayer, name, entry, tensors, neuron=neuron)
    return readout


def _integers(entry: Mapping[str, Any]) -> pixel_rule.Integers:
    zero = v.items(entry["zero"])
    return pixel_rule.Integers(
        v.integer(entry["low"]), v.integer(entry["high"]), tuple(map(v.integer, zero))
    )


def _network(document: Mapping[str, Any], tensors: layer_codec.Tensors) -> EventNetwork:
    norm, given = document["normalization"], document["input"]
    events = document["format"] == FORMAT_EVENTS
    fixed = document["format"] == FORMAT_FIXED or (events and "integers" in document)
    errors.require(
        events == ("bound" in given),
        f"the input of a file of {document['format']}: {', '.join(sorted(given))}",
    )
    network = EventNetwork(
        input_name=v.text(given["name"]),
        input_shape=v.integers(given["shape"]),
        time_steps=v.integer(document["time_steps"]),
        layers=tuple(layer_codec.read_entry(e, tensors) for e in v.items(document["layers"])),
        readout=_readout(document, tensors),
        fixed_steps=v.truth(document["validity"]["fixed_steps"]),
        reset_per_sample=v.truth(document["validity"]["reset_per_sample"]),
        normalization=None
        if norm is None
        else PixelNormalization(v.numbers(norm["mean"]), v.numbers(norm["std"])),
        classes=tuple(v.text(name) for name in v.items(document["classes"])),
        source_sha256=v.optional(v.text, document["source_sha256"]),
        input_kind=document.get("input_kind", pixel_rule.KIND_OF_OLD_FILES),
        rates=v.by_name(v.number, document.get("rates", {})),
        active=v.by_name(v.number, document.get("active", {})),
        forms=v.by_name(v.text, document.get("forms", {})),
        integers=_integers(document["integers"]) if fixed else None,
        input_bound=v.integer(given["bound"]) if events else None,
        digest=v.text(document["digest"]),
    )
    surplus = sorted(set(tensors) - set(_tensors(network)))
    errors.require(not surplus, f"tensors that belong to no layer: {', '.join(surplus[:3])}")
    return network
