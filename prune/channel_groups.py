"""Channel groups: nodes whose channel dimension is one and the same, found from the graph.

A neuron, a pooling and a merge keep the channels of what they read, a projection makes new ones.
Where branches meet, all of them have the same channels: a *stream group*, such as a stage of a
residual network. Every other group is *free*: one projection and the population behind it.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from typing import Literal, get_args

from soul_deploy.ir import Node, SpikingGraph

Residual = Literal["internal", "coupled", "scatter"]
"""What may change in a stream group: nothing, the whole group at once, or single branches too."""
RESIDUAL: tuple[Residual, ...] = get_args(Residual)
REMOVAL_HELP = (
    "What may go from residual streams at removal: nothing (internal), channels of all their "
    "members (coupled), silent channels of single branches too (scatter)."
)


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
    if node.reshapes and not all(graph[name].weighs for name in graph.consumers[node.name]):
        return False
    return node.keeps_channels and not node.generated


def reaches_readout(graph: SpikingGraph, closed: Collection[str]) -> bool:
    """Whether what comes in can reach the readout when the nodes `closed` give nothing."""
    reached = {graph.input.name}.difference(closed)
    for node in graph.nodes[1:]:
        passes = node.passes([name in reached for name in node.inputs])
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
        source = graph[graph.masked_projection(name)]
        own = source.projects and graph.population_fed_by(source.name) == name
        own = own and source.groups == 1
        readers = [graph[user] for user in graph.consumers[name]]
        if own and len(readers) == 1 and readers[0].spares(name):
            found.append(name)
    return tuple(found)


def _root(parent: dict[str, str], name: str) -> str:
    while parent[name] != name:
        name = parent[name]
    return name


def _group(graph: SpikingGraph, nodes: list[Node]) -> ChannelGroup:
    users = [(node.name, user) for node in nodes for user in graph.consumers[node.name]]
    group = ChannelGroup(
        tuple(node.name for node in nodes),
        graph.shapes[nodes[0].name][0],
        _names(node for node in nodes if node.projects),
        _names(node for node in nodes if node.fires),
        _names(node for node in nodes if node.arity is None),
        tuple((source, user) for source, user in users if graph[user].weighs),
    )
    fed = tuple(graph.population_fed_by(name) for name in group.projections)
    free = fed == group.populations and len(fed) == 1 and not group.merges
    return replace(group, free=free, whole=_whole(graph, nodes, group))


def _names(nodes: Iterable[Node]) -> tuple[str, ...]:
    return tuple(node.name for node in nodes)


def _whole(graph: SpikingGraph, nodes: list[Node], group: ChannelGroup) -> str | None:
    """Why the channels of a group cannot be removed; None if they can."""
    users = [graph[user] for node in nodes for user in graph.consumers[node.name]]
    if not all(node.inputs for node in nodes):
        return "the network's input is part of it"
    if any(node.generated for node in (*nodes, *users)):
        return "it holds generated channels already"
    if any(node.scatters for node in (*nodes, *users)):
        return "it holds a scattered branch already"
    if any(node.groups != 1 for node in nodes):
        return "fed by a grouped convolution"
    if any(user.groups != 1 for user in users):
        return "read by a grouped convolution"
    if any(node.feedback is not None and node.feedback.groups != 1 for node in nodes):
        return "fed back by a grouped convolution"
    inside = set(group.nodes)
    if any(not user.weighs and user.name not in inside for user in users):
        return "read without weights"
    return None
