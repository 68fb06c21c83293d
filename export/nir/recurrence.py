"""Recurrent connections of NIR graphs: synapses that lead from spiking neurons back to themselves.

Tools write them flat, or as a graph inside the graph (snnTorch, the NIR paper): an input, neurons,
their synapses, an output. A step's spikes arrive in the next step, since nothing else can be.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from soul_deploy.base import brief, errors

NEURONS = ("LIF", "IF", "CubaLIF")
SYNAPSES = ("Linear", "Affine", "Conv2d", "Scale")
MOST_NESTED = 8


@brief
@dataclass(frozen=True, eq=False)
class Graph:
    """A NIR graph without graphs inside and without circles.

    nodes, edges   of execution order
    feedbacks      by the key of spiking neurons: the key of the synapses that weigh their last
                   spikes, and the NIR node
    """

    nodes: Mapping[str, Any]
    edges: tuple[tuple[str, str], ...]
    metadata: Mapping[str, Any]
    feedbacks: Mapping[str, tuple[str, Any]]


def opened(graph: Any) -> Graph:
    """The graph as it is read. Raises UnsupportedGraphError, FileFormatError."""
    nodes, edges = _flat(graph, "", 0)
    for end in {end for edge in edges for end in edge}:
        if end not in nodes:
            raise errors.FileFormatError(f"the NIR graph has an edge to {end!r}, which is no node")
    feedbacks = _feedbacks(nodes, edges)
    back = {key for key, _ in feedbacks.values()}
    return Graph(
        {key: node for key, node in nodes.items() if key not in back},
        tuple(edge for edge in edges if not back.intersection(edge)),
        graph.metadata,
        feedbacks,
    )


def _flat(graph: Any, prefix: str, depth: int) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """Nodes and edges, those of graphs inside under `<key>.`."""
    if depth > MOST_NESTED:
        text = f"{prefix}: NIR graphs inside one another, {depth} deep; at most {MOST_NESTED}"
        raise errors.LimitError(text)
    nodes, edges, doors = {}, [], dict[str, tuple[str, str]]()
    for key, node in graph.nodes.items():
        place = f"{prefix}{key}"
        if type(node).__name__ != "NIRGraph":
            nodes[place] = node
            continue
        inner, lines = _flat(node, f"{place}.", depth + 1)
        found = {kind: _only(place, node, kind) for kind in ("Input", "Output")}
        doors[place] = _entered(place, found, lines)
        nodes |= {k: n for k, n in inner.items() if k not in found.values()}
        edges += [line for line in lines if not set(found.values()).intersection(line)]
    for source, target in graph.edges:
        source, target = f"{prefix}{source}", f"{prefix}{target}"
        edges.append((doors[source][1] if source in doors else source, target))
        if target in doors:
            edges[-1] = (edges[-1][0], doors[target][0])
    return nodes, edges


def _only(place: str, graph: Any, kind: str) -> str:
    keys = [key for key, node in graph.nodes.items() if type(node).__name__ == kind]
    if len(keys) != 1:
        raise errors.UnsupportedGraphError(
            f"{place}: a NIR graph inside the graph with {len(keys)} nodes {kind}; supported is one"
        )
    return f"{place}.{keys[0]}"


def _entered(place: str, found: Mapping[str, str], lines: list[tuple[str, str]]) -> tuple[str, str]:
    """The node that an inner graph's input feeds, and the one that its output reads."""
    entered = [b for a, b in lines if a == found["Input"]]
    left = [a for a, b in lines if b == found["Output"]]
    if len(entered) != 1 or len(left) != 1:
        raise errors.UnsupportedGraphError(
            f"{place}: a NIR graph inside the graph whose input feeds {len(entered)} nodes and "
            f"whose output reads {len(left)}; supported is one each"
        )
    return entered[0], left[0]


def _feedbacks(
    nodes: Mapping[str, Any], edges: list[tuple[str, str]]
) -> dict[str, tuple[str, Any]]:
    """Synapses that read spiking neurons alone and feed them alone, by the neurons' key."""
    sources: dict[str, set[str]] = {key: set() for key in nodes}
    targets: dict[str, set[str]] = {key: set() for key in nodes}
    for source, target in edges:
        sources[target].add(source)
        targets[source].add(target)
    found: dict[str, tuple[str, Any]] = {}
    for key, node in nodes.items():
        if type(node).__name__ not in SYNAPSES or sources[key] != targets[key]:
            continue
        if len(sources[key]) != 1 or type(nodes[next(iter(sources[key]))]).__name__ not in NEURONS:
            continue
        population = next(iter(sources[key]))
        if population in found:
            raise errors.UnsupportedGraphError(
                f"{population}: two recurrent connections, {found[population][0]} and {key}; "
                "supported is one: add their weights"
            )
        found[population] = key, node
    return found
