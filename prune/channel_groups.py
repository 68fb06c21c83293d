"""Channel groups: nodes whose channel dimension is one and the same, found from the graph.

A neuron, a pooling and a merge keep the channels of what they read, a projection makes new ones.
Where branches meet, all of them have the same channels: a *stream group*, such as a stage of a
residual network. Every other group is *free*: one projection and the population behind it.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from typing import Literal, get_args

from soul_deploy.base.errors import UnknownNameError
from soul_deploy.ir.graph import (
    AdaptiveAvgPool,
    Convolution,
    Flatten,
    Input,
    Merge,
    Node,
    Pool,
    Population,
    Projection,
    Readout,
    Scatter,
    SpikingGraph,
)

Residual = Literal["internal", "coupled", "scatter"]
"""What may change in a stream group: nothing, the whole group at once, or single branches too."""
RESIDUAL: tuple[Residual, ...] = get_args(Residual)
REMOVAL_HELP = (
    "What may go from residual streams at removal: nothing (internal), channels of all their "
    "members (coupled), silent channels of single branches too (scatter)."
)


def residual_name(given: str) -> Residual:
    """One of RESIDUAL, case-insensitive. Raises UnknownNameError."""
    for name in RESIDUAL:
        if name == given.lower():
            return name
    raise UnknownNameError("residual", given, RESIDUAL)


@dataclass(frozen=True)
class ChannelGroup:
    """Nodes that share `channels` channels, in execution order; the first one names the group.

    readers  (node of the group, projection or linear readout that weighs it)
    free     one projection whose current only one population reads, and no merge
    whole    why its channels cannot be removed; None if they can
    """

    nodes: tuple[str, ...]
    channels: int
    projections: tuple[str, ...]
    populations: tuple[str, ...]
    merges: tuple[str, ...]
    readers: tuple[tuple[str, str], ...]
    free: bool = False
    whole: str | None = None

    @property
    def name(self) -> str:
        return self.nodes[0]

    @property
    def title(self) -> str:
        """What a message calls it: its population, or where branches first meet."""
        if self.free:
            return self.populations[0]
        return self.merges[0] if self.merges else self.name


def channel_groups(graph: SpikingGraph) -> tuple[ChannelGroup, ...]:
    """All groups, by the execution order of their first nodes; the readout is in none."""
    parent: dict[str, str] = {}
    for node in graph.nodes[:-1]:
        parent[node.name] = node.name
        for source in node.inputs if keeps_channels(graph, node) else ():
            parent[_root(parent, source)] = _root(parent, node.name)
    collected: dict[str, list[Node]] = {}
    for node in graph.nodes[:-1]:
        collected.setdefault(_root(parent, node.name), []).append(node)
    return tuple(_group(graph, nodes) for nodes in collected.values())


def keeps_channels(graph: SpikingGraph, node: Node) -> bool:
    """Whether a node's channels are those of its inputs.

    A flattening does for whoever weighs it (a column block per channel), for nobody else.
    """
    if isinstance(node, Flatten):
        users = [graph[name] for name in graph.consumers[node.name]]
        return all(isinstance(user, Projection) or _weighs(user) for user in users)
    if isinstance(node, Population):
        return node.generated == 0
    return isinstance(node, Pool | AdaptiveAvgPool | Merge)


def reaches_readout(graph: SpikingGraph, closed: Collection[str]) -> bool:
    """Whether what comes in can reach the readout when the nodes `closed` give nothing.

    An addition needs one of its branches, an `and` all, an iand its identity.
    """
    reached = {graph.input.name}.difference(closed)
    for node in graph.nodes[1:]:
        needed = [name in reached for name in node.inputs]
        if isinstance(node, Merge) and node.function == "add":
            passes = any(needed)
        else:
            passes = (
                needed[0] if isinstance(node, Merge) and node.function == "iand" else all(needed)
            )
        if passes and node.name not in closed:
            reached.add(node.name)
    return graph.readout.name in reached


def scatter_branches(graph: SpikingGraph, group: ChannelGroup) -> tuple[str, ...]:
    """Populations of a stream that only a merge reads, where a zero of theirs changes nothing else.

    Any branch of an addition; the second one of an iand, identity · (1 - branch). A zero in an
    `and` is a zero in the stream.
    """
    found = []
    for name in group.populations:
        node = graph[name]
        source = graph[node.inputs[0]]
        readers = [graph[user] for user in graph.consumers[name]]
        if len(readers) != 1 or not _own(graph, source, name):
            continue
        merge = readers[0]
        if isinstance(merge, Merge) and merge.inputs.count(name) == 1:
            second = merge.function == "iand" and merge.inputs[1] == name
            if merge.function == "add" or second:
                found.append(name)
    return tuple(found)


def _own(graph: SpikingGraph, source: Node, population: str) -> bool:
    grouped = isinstance(source, Convolution) and source.groups != 1
    mine = isinstance(source, Projection) and graph.consumers[source.name] == (population,)
    return mine and not grouped


def _weighs(node: Node) -> bool:
    return isinstance(node, Readout) and node.linear


def _root(parent: dict[str, str], name: str) -> str:
    while parent[name] != name:
        name = parent[name]
    return name


def _group(graph: SpikingGraph, nodes: list[Node]) -> ChannelGroup:
    readers = [
        (node.name, user)
        for node in nodes
        for user in graph.consumers[node.name]
        if isinstance(graph[user], Projection) or _weighs(graph[user])
    ]
    group = ChannelGroup(
        tuple(node.name for node in nodes),
        graph.shapes[nodes[0].name][0],
        _names(node for node in nodes if isinstance(node, Projection)),
        _names(node for node in nodes if isinstance(node, Population)),
        _names(node for node in nodes if isinstance(node, Merge)),
        tuple(readers),
    )
    fed = [graph.consumers[name] for name in group.projections]
    free = fed == [group.populations] and len(group.populations) == 1 and not group.merges
    return replace(group, free=free, whole=_whole(graph, nodes, group))


def _names(nodes: Iterable[Node]) -> tuple[str, ...]:
    return tuple(node.name for node in nodes)


def _whole(graph: SpikingGraph, nodes: list[Node], group: ChannelGroup) -> str | None:
    """Why the channels of a group cannot be removed; None if they can."""
    users = [graph[user] for node in nodes for user in graph.consumers[node.name]]
    if any(isinstance(node, Input) for node in nodes):
        return "the network's input is part of it"
    if any(isinstance(node, Population) and node.generated for node in (*nodes, *users)):
        return "it holds generated channels already"
    if any(isinstance(node, Scatter) for node in (*nodes, *users)):
        return "it holds a scattered branch already"
    if any(_grouped(node) for node in nodes):
        return "fed by a grouped convolution"
    if any(_grouped(user) for user in users):
        return "read by a grouped convolution"
    inside = set(group.nodes)
    if any(
        not isinstance(u, Projection) and not _weighs(u) and u.name not in inside for u in users
    ):
        return "read without weights"
    return None


def _grouped(node: Node) -> bool:
    return isinstance(node, Convolution) and node.groups != 1
