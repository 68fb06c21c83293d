"""Model files: one .safetensors with weights, masks and the graph; it reloads without its class.

Also reads other people's weights (`.pt`, `.pth`, `.ckpt`), through `torch.load(weights_only=True)`.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from soul_deploy.base import Array, container, errors, files, pixel_rule
from soul_deploy.base.file_kinds import MODEL_FORMATS, reads
from soul_deploy.ir import ChannelNorm, Shape, SpikingGraph
from soul_deploy.model.model import Model, ModelInfo, Normalization, State, Validity
from soul_deploy.model.state_dict import COUNT, Weights, read_weights, with_whole_counts
from soul_deploy.nn.graph_module import GraphModule

WEIGHT = "weight:"
PARTS = {
    WEIGHT: "state",
    "channel_mask:": "channel_masks",
    "neuron_mask:": "neuron_masks",
    "alpha:": "alphas",
}
"""What a tensor's name begins with -> the field of Model that it belongs to."""


def save(model: Model, path: Path | str) -> None:
    """Write a model file atomically."""
    held = {prefix: getattr(model, part) for prefix, part in PARTS.items()}
    tensors = {prefix + n: array for prefix, part in held.items() for n, array in part.items()}
    document = {
        "format": format_of(model.graph),
        "digest": files.digest(tensors),
        "graph": model.graph.to_json(),
        "info": asdict(model.info),
    }
    files.write_tensors(path, tensors, document)


def format_of(graph: SpikingGraph) -> str:
    """The first format that has all that a network needs."""
    return MODEL_FORMATS[graph.integers if graph.input.events is None else 2]


@reads("model")
def load(file: files.File, *, max_memory: int | None = None) -> Model:
    """Read a model file; its graph, shapes, digest and values are checked.

    max_memory: bytes that its description may take; None: DESCRIPTION_BYTES of
    soul_deploy/base/json_text.py. Raises MissingFileError, FileFormatError, LimitError.
    """
    found = files.read_tensors(file, max_memory=max_memory)
    path = found.path
    document = found.document(*MODEL_FORMATS)
    intact = files.digest(found.tensors) == document.get("digest")
    errors.require(intact, f"{path}: its tensors do not match their digest; the file is damaged")
    try:
        graph = SpikingGraph.from_json(document.get("graph"))
        info = info_from_json(document["info"])
        check_info(graph, info)
    except errors.FileFormatError as error:
        raise errors.FileFormatError(f"{path}: {error}") from error
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise errors.FileFormatError(
            f"{path}: its description cannot be read ({str(error)[:200]})"
        ) from error
    parts = {part: _under(prefix, found.tensors) for prefix, part in PARTS.items()}
    model = Model(graph, parts.pop("state"), info=info, **parts)
    surplus = sorted(name for name in found.tensors if not name.startswith(tuple(PARTS)))
    told = ", ".join(surplus[:3])
    errors.require(not surplus, f"{path}: tensors that belong to nothing: {told}")
    check_state(graph, model.state, str(path))
    _check_names(graph, path)
    _check_masks(model, path)
    _check_alphas(model, path)
    return model


def _under(prefix: str, tensors: Mapping[str, Array]) -> dict[str, Array]:
    return {name.removeprefix(prefix): a for name, a in tensors.items() if name.startswith(prefix)}


def expected_shapes(graph: SpikingGraph) -> dict[str, Shape]:
    """Name and shape of every tensor in the state dict of `graph`'s module."""
    shapes: dict[str, Shape] = {}
    for node in graph.nodes:
        inputs = [graph.shapes[source] for source in node.inputs]
        shapes |= node.tensors(inputs, graph.time_steps)
    return shapes


def _check_names(graph: SpikingGraph, path: Path) -> None:
    """Raise FileFormatError for names that a PyTorch module cannot have side by side."""
    owners = [node.name for node in graph.nodes]
    owners += [node.norm.name for node in graph.projections if node.norm is not None]
    try:
        with torch.device("meta"):
            found = set(GraphModule(graph).state_dict())
    except (KeyError, AttributeError, TypeError, ValueError, RuntimeError) as error:
        raise errors.FileFormatError(
            f"{path}: its layers' names cannot be used ({error})"
        ) from error
    apart = len(set(owners)) == len(owners) and found == set(expected_shapes(graph))
    errors.require(apart, f"{path}: two layers' names are in each other's way")


def check_state(graph: SpikingGraph, state: State, where: str) -> None:
    """Raise FileFormatError unless names, shapes and dtypes are the graph's and batch norm's
    variances, with eps, are above 0.
    """
    expected = expected_shapes(graph)
    missing, unknown = set(expected) - set(state), set(state) - set(expected)
    for kind, names in (("lacks", sorted(missing)), ("has unknown", sorted(unknown))):
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        told = f"{kind} weights {', '.join(names[:3])}{more}"
        errors.require(not names, f"{where}: {told}; they do not belong to this network")
    dtypes = integer_dtypes(graph)
    for name, shape in expected.items():
        has, what = state[name], f"{where}: weight {name}"
        fits = has.shape == shape
        errors.require(fits, f"{what} has shape {has.shape}, the network needs {shape}")
        kinds, needed = "f", "floating point"
        if name.endswith(COUNT):
            kinds, needed = "iu", "an integer"
        fits = has.dtype.kind in kinds
        if name in dtypes:
            needed = dtypes[name]
            fits = has.dtype == needed
        errors.require(fits, f"{what} is {has.dtype}, the network needs {needed}")
    norms = [node.norm for node in graph.projections if node.norm is not None]
    for norm in [*norms, *(node.norm for node in graph.of_type(ChannelNorm))]:
        variance = state[f"{norm.name}.running_var"]
        odd = (variance < 0).any() or (variance + norm.eps <= 0).any()
        told = "a variance that is not above 0, or a negative variance"
        errors.require(not odd, f"{where}: {norm.name} holds {told}")
    for name in [f"{node.name}.pattern" for node in graph.populations]:
        plain = name not in state or np.isin(state[name], (0, 1)).all()
        errors.require(plain, f"{where}: {name} holds other than 0 and 1")
    if graph.integers:
        for told in _integer_problems(graph, state):
            raise errors.FileFormatError(f"{where}: {told}")


def integer_dtypes(graph: SpikingGraph) -> dict[str, str]:
    """Of a fixed-point network: the tensors that hold integers, and their dtypes."""
    if not graph.integers:
        return {}
    rows = [node.row_tensors for node in (*graph.projections, graph.readout)]
    numbers = ("threshold", "subtract")
    neurons = [f"{node.name}.{number}" for node in graph.populations for number in numbers]
    kinds = {".weight": "int8", ".bias": "int32"}
    weighed = {name: kinds[name[name.rindex(".") :]] for names in rows for name in names}
    return weighed | dict.fromkeys(neurons, "int32")


def _integer_problems(graph: SpikingGraph, state: State) -> Iterator[str]:
    """What no fixed-point network can hold (docs/fixed-point.md)."""
    for name, dtype in integer_dtypes(graph).items():
        if dtype == "int8" and (state[name] == -128).any():
            yield f"{name} holds -128; weights are from -127 to 127"
    for node in graph.populations:
        high, least = dict(node.neuron.settings)["high"], int(node.neuron.fire == "ge")
        for number, lowest in (("threshold", least), ("subtract", 0)):
            values = state.get(f"{node.name}.{number}", np.full(1, least, np.int32))
            if (values < lowest).any() or (values > high).any():
                yield f"{node.name}.{number} is outside of {lowest} to {high:.0f}"
        if not (state[f"{node.name}.unit"] > 0).all():
            yield f"{node.name}.unit holds numbers that are not above 0"


def _check_masks(model: Model, path: Path) -> None:
    graph = model.graph
    populations = {node.name for node in graph.populations}
    fed = {name for name in populations if graph[graph.masked_projection(name)].projects}
    fed |= {node.name for node in graph.projections}
    for name, keep in (*model.channel_masks.items(), *model.neuron_masks.items()):
        on_spikes = model.neuron_masks.get(name) is keep
        known = name in (populations if on_spikes else fed)
        errors.require(known, f"{path}: a mask for {name!r}, which is no layer of its graph")
        needed = graph.shapes[name if on_spikes else graph.masked_projection(name)]
        needed = needed if on_spikes else needed[:1]
        has, fits = f"{keep.dtype}{keep.shape}", keep.shape == needed and keep.dtype == np.bool_
        errors.require(fits, f"{path}: mask of {name} is {has}, needs bool{needed}")


def _check_alphas(model: Model, path: Path) -> None:
    graph = model.graph
    shapes = {node.name: node.weight_shape for node in graph.projections}
    shapes |= {node.name: graph.shapes[node.name] for node in graph.populations}
    for name, alpha in model.alphas.items():
        needed, has = shapes.get(name), f"{alpha.dtype}{alpha.shape}"
        fits = alpha.shape == needed and alpha.dtype == np.float32
        told = f"mask parameters of {name} are {has}, need float32{needed}"
        errors.require(fits, f"{path}: {told}")


def info_from_json(data: Any) -> ModelInfo:
    """The ModelInfo of `asdict`'s data. Raises KeyError, TypeError or ValueError."""
    if data["stage"] not in ("dense", "masked", "compact"):
        raise ValueError(f"stage {data['stage']!r}")
    steps, reset = data["validity"]["time_steps"], data["validity"]["reset_per_sample"]
    if steps is not None and (isinstance(steps, bool) or not isinstance(steps, int) or steps < 1):
        raise ValueError(f"validity for T = {steps!r}")
    classes, made = data["classes"], data["provenance"]
    if not isinstance(classes, list | tuple) or not all(isinstance(c, str) for c in classes):
        raise ValueError(f"classes {classes!r} are not names")
    if not isinstance(reset, bool) or not isinstance(made, dict):
        raise ValueError(f"reset_per_sample {reset!r}, provenance {made!r}")
    kind = data.get("input_kind", pixel_rule.KIND_OF_OLD_FILES)
    if not pixel_rule.is_input_kind(kind):
        raise ValueError(f"input_kind {kind!r}; known: {', '.join(pixel_rule.INPUT_KINDS)}")
    norm = data["normalization"]
    normalization = None if norm is None else _normalization(norm["mean"], norm["std"])
    return ModelInfo(
        data["stage"], normalization, tuple(classes), dict(made), Validity(steps, reset), kind
    )


def _normalization(mean: Any, std: Any) -> Normalization:
    """Raises ValueError unless there are as many finite means as deviations above 0."""
    numbers = [*mean, *std]
    if not all(isinstance(n, int | float) and math.isfinite(n) for n in numbers):
        raise ValueError(f"normalization {mean!r}, {std!r}: not finite numbers")
    if len(mean) != len(std) or not all(deviation > 0 for deviation in std):
        raise ValueError(f"normalization {mean!r}, {std!r}: as many, std above 0")
    return Normalization(tuple(map(float, mean)), tuple(map(float, std)))


def check_info(graph: SpikingGraph, info: ModelInfo) -> None:
    """Raise ValueError unless a description fits its graph."""
    if info.validity.time_steps not in (None, graph.time_steps):
        raise ValueError(f"valid for T = {info.validity.time_steps}, but T = {graph.time_steps}")
    if len(info.classes) not in (0, graph.readout.classes):
        raise ValueError(f"{len(info.classes)} names for {graph.readout.classes} classes")
    most, kind = graph.input.events, info.input_kind
    if most is not None and (kind not in pixel_rule.EVENT_KINDS or (kind == "spikes" and most > 1)):
        raise ValueError(f"events up to {most} for an input of {kind}")
    norm = info.normalization
    if norm is not None and info.input_kind != "images":
        raise ValueError(f"a normalization of pixels for an input of {info.input_kind}")
    if norm is not None and len(norm.mean) not in (1, graph.input.shape[0]):
        raise ValueError(f"normalization of {len(norm.mean)} channels for {graph.input.shape}")


@reads("weights", "model")
def load_weights(file: files.File) -> Weights:
    """The weights in a model file, bare safetensors, or a `.pt`, `.pth` or `.ckpt` file.

    A state dict that stands under 'state_dict', 'model', 'net' and the like (WEIGHT_KEYS of
    soul_deploy/base/torch_file.py) is found. Pickles go through `torch.load(weights_only=True)`,
    which refuses everything but tensors and plain values; an argparse.Namespace is let through.
    Batch norm's counts are integers (`with_whole_counts`). Raises MissingFileError, LimitError, or
    FileFormatError that says why there are none.
    """
    with files.opened(file) as source:
        if not _is_safetensors(source):
            return with_whole_counts(read_weights(source))
        found = files.read_tensors(source)
    document = found.description()
    if document is not None:
        found.document(*MODEL_FORMATS)
    state = _under(WEIGHT, found.tensors) or dict(found.tensors)
    return with_whole_counts(Weights(found.path, state))


def load_state_dict(file: files.File) -> dict[str, Array]:
    """The state dict of `load_weights`. Raises as that."""
    return dict(load_weights(file).state)


def _is_safetensors(source: files.OpenFile) -> bool:
    if source.path.suffix == ".safetensors":
        return True
    try:
        container.read_header(source)
    except errors.FileFormatError:
        return False
    return True
