"""A network as a drawing whose boxes lead to their layers' numbers."""

import math
from collections.abc import Sequence

import networkx
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from soul_deploy.ir import SpikingGraph
from soul_deploy.reporting import content, svg
from soul_deploy.reporting.charts import label
from soul_deploy.reporting.networks import Network

WIDE, HIGH, GAP = 2.5, 0.42, 0.24  # inches of a box, and between two
SIDE = 0.45  # inches that arrows around boxes take
MOST = 400  # boxes


def structures(networks: Sequence[Network]) -> list[list[Network]]:
    """Networks with model files, those together whose operations the first of them has too."""
    groups: list[tuple[set[str], list[Network]]] = []
    for network in networks:
        if network.model is None:
            continue
        names = {node.name for node in network.model.graph.nodes}
        group = next((members for known, members in groups if names <= known), None)
        if group is None:
            groups.append((names, [network]))
        else:
            group.append(network)
    return [members for _, members in groups]


def cards(group: Sequence[Network]) -> dict[str, int]:
    """For each operation of the first network, the place of the one that it is counted with."""
    network = group[0]
    assert network.model is not None
    graph = network.model.graph
    places = {node.name: i for i, node in enumerate(graph.nodes)}
    counted = {row.name for n in group if n.counted is not None for row in n.counted.layers}
    found = dict(places)
    for node in graph.nodes:
        if node.fires and node.name not in counted and node.inputs[0] in counted:
            found[node.name] = places[node.inputs[0]]
    return found


def draw(group: Sequence[Network], number: int) -> svg.Drawing | None:
    """The first network of a group; darker boxes cause more of its SynOps. None: too large."""
    network = group[0]
    assert network.model is not None
    graph = network.model.graph
    if len(graph.nodes) > MOST:
        return None
    places = _places(graph)
    columns = 1 + max(x for x, _ in places.values())
    rows = 1 + max(y for _, y in places.values())
    around = any(_skips(places[i], places[n.name]) for n in graph.nodes for i in n.inputs)
    left = GAP + SIDE * around
    width, height = left + columns * (WIDE + GAP), rows * (HIGH + GAP) + GAP
    figure, axes = svg.new_figure(width, height)
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.set_axis_off()
    centres = {
        name: (left + WIDE / 2 + x * (WIDE + GAP), GAP + HIGH / 2 + y * (HIGH + GAP))
        for name, (x, y) in places.items()
    }
    figure.set_layout_engine("none")
    axes.set_position((0, 0, 1, 1))
    links: dict[str, str] = {}
    shown = cards(group)
    for node in graph.nodes:
        for source in node.inputs:
            axes.add_patch(_arrow(centres[source], centres[node.name]))
        href, told = f"#layer-{number}-{shown[node.name]}", _told(network, node.name)
        links.setdefault(href, ", ".join(filter(None, (node.name, node.op, told))))
        x, y = centres[node.name]
        axes.add_patch(_box(x, y, _share(network, node.name), href))
        shape = "×".join(map(str, graph.shapes[node.name]))
        axes.text(x, y - 0.09, label(node.name), ha="center", va="center", fontsize=8)
        words = [node.op.replace("_", " "), shape, *([told] if told else [])]
        axes.text(x, y + 0.09, ", ".join(words), ha="center", va="center", fontsize=6.5)
    return svg.drawing(figure, f"net{number}", f"{network.label}: its operations", links)


def _places(graph: SpikingGraph) -> dict[str, tuple[int, int]]:
    """Column and row of each node: rows are generations, of networkx."""
    web = networkx.DiGraph((source, node.name) for node in graph.nodes for source in node.inputs)
    order = {node.name: i for i, node in enumerate(graph.nodes)}
    return {
        name: (column, row)
        for row, names in enumerate(networkx.topological_generations(web))
        for column, name in enumerate(sorted(names, key=order.__getitem__))
    }


def _skips(start: tuple[float, float], end: tuple[float, float]) -> bool:
    """Whether boxes stand between two in one column; places as columns and rows."""
    return math.isclose(start[0], end[0]) and end[1] - start[1] > 1.5


def _arrow(start: tuple[float, float], end: tuple[float, float]) -> FancyArrowPatch:
    """From box to box by their centres: around boxes between, and into the side of a far one."""
    (x, y), (to_x, to_y) = start, end
    far = to_y - y > 1.5 * (HIGH + GAP)
    how, tail, head = "arc3", (x, y + HIGH / 2), (to_x, to_y - HIGH / 2)
    if far and math.isclose(x, to_x):
        how = f"arc3,rad={1.6 * SIDE / (to_y - y):.3f}"
        tail, head = (x - WIDE / 2, y), (to_x - WIDE / 2, to_y)
    elif far:
        head = (to_x + math.copysign(WIDE / 2, x - to_x), to_y)
    return FancyArrowPatch(
        *(tail, head), arrowstyle="-|>", mutation_scale=8, color=svg.FAINT, connectionstyle=how
    )


def _box(x: float, y: float, share: float, href: str) -> FancyBboxPatch:
    box = FancyBboxPatch(
        (x - WIDE / 2, y - HIGH / 2), WIDE, HIGH, boxstyle="round,pad=0,rounding_size=0.06"
    )
    box.set(facecolor=svg.PAPER, edgecolor=svg.INK, linewidth=0.8 + 2.4 * share, url=href)
    return box


def _share(network: Network, name: str) -> float:
    found = content.numbers(network, name)
    if found is None or network.counted is None or not network.counted.synops:
        return 0.0
    return found.synops / network.counted.synops


def _told(network: Network, name: str) -> str:
    share = _share(network, name)
    return f"{share:.0%} of SynOps" if share else ""
