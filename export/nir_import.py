"""A NIR graph, from any tool, as a Model: pruned, exported and verified like any other.

Sums (several edges into one node) become merges, constant factors (scalings, sum pooling, the
resistance of neurons) go into the weights beside them, a last affine node becomes the readout's
head. What cannot be said that way is refused with the node's name.
"""

from dataclasses import replace
from graphlib import CycleError, TopologicalSorter
from typing import Any

from soul_deploy.export.nir_description import Description, describe, with_readout
from soul_deploy.export.nir_library import check_sizes, nir_package
from soul_deploy.export.nir_nodes import Reader, read_node
from soul_deploy.export.nir_trial import try_reading
from soul_deploy.graph import SpikingGraph
from soul_deploy.modelfile import Model, check_state
from soul_deploy.runtime.equations import FireRule
from soul_deploy.runtime.errors import (
    FileFormatError,
    LimitError,
    UnsupportedGraphError,
    UsageError,
)
from soul_deploy.runtime.files import File, OpenFile, opened

MAX_TURNS = 1 << 27


def read_nir(file: File) -> Any:
    """The `nir.NIRGraph` in a file.

    Raises MissingFileError, UsageError if the package nir is missing, and FileFormatError.
    """
    with opened(file) as source:
        nir, path = nir_package(), source.path
        check_sizes(source)
        try_reading(source)
        graph = _graph(nir, source)
    if not isinstance(graph, nir.NIRGraph):
        raise FileFormatError(f"{path} holds a single {type(graph).__name__}, not a NIR graph")
    return graph


def _graph(nir: Any, source: OpenFile) -> Any:
    try:
        with source.again() as stream:
            return nir.read(stream, type_check=False)
    except Exception as error:  # h5py and nir fail in a dozen ways on foreign bytes
        first = (str(error).strip().splitlines() or [repr(error)])[0]
        raise FileFormatError(f"{source} is not an intact NIR file ({first})") from error


def import_nir(
    graph: Any,
    *,
    time_steps: int | None = None,
    dt: float | None = None,
    fire: FireRule | None = None,
) -> Model:
    """The model of a `nir.NIRGraph`.

    time_steps: T. dt: seconds per step. fire: "gt" or "ge", for neurons whose metadata do not say
    when they fire. What is None comes from the graph's metadata, else dt is 1e-4 and a neuron
    fires above its threshold ("gt"), as NIR says.
    Raises UsageError if T is neither given nor stored, UnsupportedGraphError with the node's name,
    FileFormatError for metadata or shapes that do not fit together, ValidityError for a T that the
    stored network is not valid for, LimitError for more nodes and edges than can be walked.
    """
    described = describe(graph.metadata, time_steps, dt, fire)
    turns = len(graph.nodes) * len(graph.edges)
    if turns > MAX_TURNS:
        raise LimitError(
            f"{len(graph.nodes)} nodes and {len(graph.edges)} edges; their product may be at most "
            f"{MAX_TURNS}, since the edges are walked for every node"
        )
    reader = Reader(graph, described.dt, described.fire)
    for key in _ordered(graph):
        _read(reader, key)
    return _model(reader, described).with_time_steps(described.time_steps)


def _read(reader: Reader, key: str) -> None:
    """Read a node. Raises as `read_node`; FileFormatError too for fields of another kind."""
    try:
        read_node(reader, key)
    except (
        *(KeyError, IndexError, TypeError, ValueError, AttributeError),
        *(ArithmeticError, RecursionError),
    ) as error:
        raise FileFormatError(f"{key}: a NIR node that cannot be read ({error!r})") from error


def _model(reader: Reader, described: Description) -> Model:
    if reader.last is None:
        raise UnsupportedGraphError("the NIR graph has no output")
    made, state = tuple(reader.made), reader.state
    nodes, state = with_readout(made, reader.shapes, state, reader.last, described)
    try:
        graph = SpikingGraph(nodes, described.time_steps)
    except UsageError as error:
        raise FileFormatError(f"the NIR graph does not fit together: {error}") from error
    check_state(graph, state, "the NIR graph")
    info = replace(described.info, provenance={**described.info.provenance, "imported": "nir"})
    return Model(graph, state, info=info)


def _ordered(graph: Any) -> list[str]:
    """Node names, sources first. Raises UnsupportedGraphError for a cycle."""
    order: TopologicalSorter[str] = TopologicalSorter(dict.fromkeys(graph.nodes, ()))
    for source, target in graph.edges:
        for end in (source, target):
            if end not in graph.nodes:
                raise FileFormatError(f"the NIR graph has an edge to {end!r}, which is no node")
        order.add(target, source)
    try:
        return list(order.static_order())
    except CycleError as error:
        raise UnsupportedGraphError(
            f"a recurrent connection through {' → '.join(error.args[1])}; supported are "
            "feed-forward networks"
        ) from error
