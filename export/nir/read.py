"""A NIR graph, from any tool, as a Model: pruned, exported and verified like any other.

Sums (several edges into one node) become merges, constant factors (scalings, sum pooling, the
resistance of neurons) go into the weights beside them, a last affine node becomes the readout's
head. What cannot be said that way is refused with the node's name.
"""

from collections.abc import Mapping
from dataclasses import replace
from graphlib import CycleError, TopologicalSorter
from typing import Any

from soul_deploy.base import Array, errors, files, input_rule
from soul_deploy.export.nir import metadata, neuron, package
from soul_deploy.export.nir.nodes import Reader, read_node
from soul_deploy.ir import SpikingGraph
from soul_deploy.model.file import check_state
from soul_deploy.model.model import Model, with_input_kind
from soul_deploy.runtime.equations import FireRule

MAX_TURNS = 1 << 27


def read_nir(file: files.File) -> Any:
    """The `nir.NIRGraph` in a file.

    Raises MissingFileError, UsageError if the package nir is missing, and FileFormatError.
    """
    with files.opened(file) as source:
        nir, path = package.nir_package(), source.path
        package.check_sizes(source)
        package.try_reading(source)
        graph = _graph(nir, source)
    if not isinstance(graph, nir.NIRGraph):
        raise errors.FileFormatError(
            f"{path} holds a single {type(graph).__name__}, not a NIR graph"
        )
    return graph


def _graph(nir: Any, source: files.OpenFile) -> Any:
    try:
        with source.again() as stream:
            return nir.read(stream, type_check=False)
    except Exception as error:  # h5py and nir fail in a dozen ways on foreign bytes
        first = (str(error).strip().splitlines() or [repr(error)])[0]
        raise errors.FileFormatError(f"{source} is not an intact NIR file ({first})") from error


def import_nir(
    graph: Any,
    *,
    time_steps: int | None = None,
    dt: float | None = None,
    fire: FireRule | None = None,
    reset: neuron.ResetRule | None = None,
    input_kind: input_rule.InputKind | None = None,
) -> Model:
    """The model of a NIR file, or of a `nir.NIRGraph`.

    time_steps: T. dt: seconds per step. fire: "gt" or "ge". reset: "zero" (a spike sets the
    membrane to v_reset), "subtract" (it takes the threshold off in the next step, after the decay,
    as snnTorch does), "subtract_at_once" (it takes it off at once). What is None comes from the
    graph's metadata; what these do not say is assumed as NIR says it, with dt 1e-4, "gt" and
    "zero", and stands as sentences in the model's `info.provenance["assumptions"]`. Graphs that
    this package wrote leave nothing to assume.
    input_kind: what the input is; None: as in the metadata, or "images".

    Raises what `read_nir` raises, UsageError if T is neither given nor stored or the metadata
    contradict what is given, UnsupportedGraphError with the node's name, also where the assumed dt
    makes no sense, FileFormatError for metadata or shapes that do not fit together, ValidityError
    for a T that the stored network is not valid for, LimitError for more nodes and edges than can
    be walked.
    """
    if isinstance(graph, files.File):
        graph = read_nir(graph)
    turns = len(graph.nodes) * len(graph.edges)
    if turns > MAX_TURNS:
        raise errors.LimitError(
            f"{len(graph.nodes)} nodes and {len(graph.edges)} edges; their product may be at most "
            f"{MAX_TURNS}, since the edges are walked for every node"
        )
    described = metadata.described_graph(graph.metadata, time_steps, dt)
    known = described.dt is not None
    said = neuron.Conventions(
        package.DEFAULT_DT if described.dt is None else described.dt, known, fire, reset
    )
    reader = Reader(graph, said)
    for key in _ordered(graph):
        _read(reader, key)
    model = _model(reader, described).with_time_steps(described.time_steps)
    kind = input_kind or model.info.input_kind
    return replace(model, info=with_input_kind(model.info, kind))


def _read(reader: Reader, key: str) -> None:
    """Read a node. Raises as `read_node`; FileFormatError too for fields of another kind."""
    try:
        read_node(reader, key)
    except (
        *(KeyError, IndexError, TypeError, ValueError, AttributeError),
        *(ArithmeticError, RecursionError),
    ) as error:
        raise errors.FileFormatError(
            f"{key}: a NIR node that cannot be read ({error!r})"
        ) from error


def _model(reader: Reader, described: metadata.Description) -> Model:
    if reader.last is None:
        raise errors.UnsupportedGraphError("the NIR graph has no output")
    made, state = tuple(reader.made), reader.state
    nodes, state = metadata.with_readout(made, reader.shapes, state, reader.last, described)
    try:
        graph = SpikingGraph(nodes, described.time_steps)
    except errors.UsageError as error:
        raise errors.FileFormatError(f"the NIR graph does not fit together: {error}") from error
    check_state(graph, state, "the NIR graph")
    if described.readout is None:  # our own files say that their last neurons spike
        _require_reachable(graph, state)
    made_so = {**described.info.provenance, "imported": "nir", **_read_how(reader, described)}
    return Model(graph, state, info=replace(described.info, provenance=made_so))


def _require_reachable(graph: SpikingGraph, state: Mapping[str, Array]) -> None:
    """Raise UnsupportedGraphError for an output population that no spikes before it can make fire:
    a threshold out of reach is how a membrane readout is written as spiking neurons.
    """
    neurons = {node.name: node for node in graph.populations}
    synapses_of = {node.name: node for node in graph.projections}
    last = neurons.get(graph.readout.inputs[0])
    synapses = None if last is None else synapses_of.get(last.inputs[0])
    bound = None if synapses is None else graph.edges[synapses.inputs[0]].bound
    if last is None or synapses is None or bound is None:
        return
    largest = bound * state[f"{synapses.name}.weight"].clip(min=0).sum(axis=1)
    if synapses.bias:
        largest = largest + state[f"{synapses.name}.bias"]
    reach = graph.time_steps * max(0.0, float(largest.max()))
    if reach < last.neuron.v_threshold:
        raise errors.UnsupportedGraphError(
            f"{last.name}: its membrane stays below {reach:g} in {graph.time_steps} steps, its "
            f"threshold is {last.neuron.v_threshold:g}: output neurons that never fire, whose "
            "membrane is read, are not supported; supported outputs are spikes, and an affine node "
            "that weighs spikes"
        )


def _read_how(reader: Reader, described: metadata.Description) -> dict[str, Any]:
    """What was assumed, and what a graph of another tool was read with."""
    said = reader.conventions
    found: dict[str, Any] = {}
    if described.readout is None:
        said.assumed["scores"] = _scores(reader)
        found["nir"] = {"dt": said.dt, "fire": said.fire or "gt", "reset": said.reset or "zero"}
    assumed = list(said.assumed.values())
    return found | ({"assumptions": assumed} if assumed else {})


def _scores(reader: Reader) -> str:
    last = next(node for node in reader.made if node.name == reader.last)
    text = f"the class scores are the mean over T of the output of {last.name!r}"
    if not last.fires:
        return text
    return (
        f"{text}, its spikes; a neuron that never resets, whose membrane the tool reads, looks the "
        "same in NIR and is not supported"
    )


def _ordered(graph: Any) -> list[str]:
    """Node names, sources first. Raises UnsupportedGraphError for a cycle."""
    order: TopologicalSorter[str] = TopologicalSorter(dict.fromkeys(graph.nodes, ()))
    for source, target in graph.edges:
        for end in (source, target):
            if end not in graph.nodes:
                raise errors.FileFormatError(
                    f"the NIR graph has an edge to {end!r}, which is no node"
                )
        order.add(target, source)
    try:
        return list(order.static_order())
    except CycleError as error:
        raise errors.UnsupportedGraphError(
            f"a recurrent connection through {' → '.join(error.args[1])}; supported are "
            "feed-forward networks"
        ) from error
