"""The page's sections: which tables and figures stand where."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from soul_deploy.base.tables import Table
from soul_deploy.reporting import activity, charts, content, network_drawing
from soul_deploy.reporting import documents as kinds
from soul_deploy.reporting.networks import Network

if TYPE_CHECKING:
    from soul_deploy.reporting.report import Report

SIGNS = {"passed": "✓ passed", "failed": "✗ FAILED", "inconclusive": "? inconclusive"}


@dataclass(frozen=True)
class Part:
    """A piece of a section; what its value is follows from its kind (page.html.j2)."""

    kind: Literal["table", "line", "heading", "verdict", "charts", "network", "layers"]
    value: Any


@dataclass(frozen=True)
class Section:
    """A section of the page; name: what links lead to."""

    name: str
    title: str
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class LayerCard:
    """An operation of a drawing, and its numbers in every network of that structure."""

    anchor: str
    name: str
    told: str
    table: Table


def sections_of(report: "Report") -> list[Section]:
    """Those that have something to show, in the order of the page."""
    made = (
        ("networks", "Networks", _networks(report)),
        ("learning", "Learning", _learning(report)),
        ("layers", "Layers", _layers(report)),
        ("drawing", "The network", _drawings(report.networks)),
        ("removal", "What was removed", _removed(report)),
        ("spikes", "Spikes", _spikes(report)),
        ("verification", "Verification", _verified(report.of(kinds.Verified))),
        ("times", "Times", _times(report)),
        ("fixed-point", "Fixed point", _quantized(report.of(kinds.Quantized))),
        ("notes", "Notes", (Part("line", line) for line in report.notes)),
    )
    found = [Section(name, title, tuple(parts)) for name, title, parts in made]
    return [section for section in found if section.parts]


def _networks(report: "Report") -> Iterator[Part]:
    if report.networks:
        yield Part("table", content.summary(report.networks))
        for line in (content.accuracy_line(report.networks), content.energy_line(report.networks)):
            if line:
                yield Part("line", line)
        yield Part("charts", charts.against_cost(report.networks))


def _learning(report: "Report") -> Iterator[Part]:
    found = report.of(kinds.Learned)
    if found:
        yield Part("table", content.learned(found))
        yield Part("charts", charts.learning(found))


def _layers(report: "Report") -> Iterator[Part]:
    if content.layer_names(report.networks):
        yield Part("charts", charts.by_layer(report.networks))
        yield Part("table", content.layers(report.networks))


def _drawings(networks: Sequence[Network]) -> Iterator[Part]:
    for number, group in enumerate(network_drawing.structures(networks)):
        labels = ", ".join(network.label for network in group)
        yield Part("line", f"{labels}. A box leads to its numbers; its border is thick where many "
                   "SynOps are caused.")  # fmt: skip
        drawn = network_drawing.draw(group, number)
        yield Part("network", (drawn, list(_cards(group, number))))


def _cards(group: Sequence[Network], number: int) -> Iterator[LayerCard]:
    """One for each operation that boxes lead to."""
    first = group[0].model
    assert first is not None
    graph, cards = first.graph, network_drawing.cards(group)
    for index, node in enumerate(graph.nodes):
        if cards[node.name] != index:
            continue
        mine = [other for other in graph.nodes if cards[other.name] == index]
        sizes = {n.name: "×".join(map(str, graph.shapes[n.name])) for n in mine}
        told = [f"{n.op.replace('_', ' ')} {sizes[n.name]}" for n in mine]
        reads = f", reads {', '.join(node.inputs)}" if node.inputs else ""
        name = ", ".join(other.name for other in mine)
        table = _card_table(group, node.name)
        yield LayerCard(f"layer-{number}-{index}", name, f"{', '.join(told)}{reads}", table)


def _card_table(group: Sequence[Network], layer: str) -> Table:
    """A row for each network; columns that are empty in all of them are left out."""
    columns = ["network", "channels", "rate", "SynOps", "MACs", "synapses", "of dense", "µs"]
    rows: list[list[object]] = []
    for network in group:
        found, model = content.numbers(network, layer), network.model
        shown = found is not None and (found.synapses_dense or content.layer_time(network, layer))
        if not shown or found is None or model is None or layer not in model.graph.shapes:
            continue
        time, share = content.layer_time(network, layer), content.connected(found)
        rows.append(
            [
                *(network.label, model.graph.shapes[layer][0]),
                "" if found.rate is None else f"{found.rate:.2%}",
                *(round(found.synops) or "", round(found.macs) or "", found.synapses or ""),
                "" if share is None else f"{share:.2%}",
                "" if time is None else f"{time:.1f}",
            ]
        )
    used = [i for i in range(len(columns)) if any(row[i] != "" for row in rows)]
    return Table(layer, [columns[i] for i in used], [[row[i] for i in used] for row in rows])


def _removed(report: "Report") -> Iterator[Part]:
    found = report.of(kinds.Removed)
    if found:
        yield Part("charts", charts.removed(found))
        yield Part("table", content.removed(found))


def _spikes(report: "Report") -> Iterator[Part]:
    for title, drawings in activity.samples(report.recorded):
        yield Part("heading", title)
        yield Part("charts", drawings)


def _verified(found: Sequence[kinds.Verified]) -> Iterator[Part]:
    for number, item in enumerate(found):
        yield Part("heading", item.artifact)
        kind = item.verdict if item.verdict in SIGNS else "failed"
        yield Part("verdict", (kind, SIGNS.get(item.verdict, item.verdict)))
        for line in content.verdict_lines(item):
            yield Part("line", line)
        yield Part("charts", charts.flips(item, f"verify{number}"))
        if item.layers:
            yield Part("table", content.verified(item))
        if item.flips:
            yield Part("table", content.flips(item))


def _times(report: "Report") -> Iterator[Part]:
    found = report.of(kinds.Benched)
    if found:
        yield Part("table", content.times(found, report.networks))
        for machine in dict.fromkeys(bench.machine for bench in found):
            yield Part("line", machine)


def _quantized(found: Sequence[kinds.Quantized]) -> Iterator[Part]:
    for item in found:
        yield Part("table", content.quantized(item))
