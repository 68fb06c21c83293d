"""`report`: what is known of some networks as one page to look at."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import torch

from soul_deploy.base import Array, brief, errors, files, tables
from soul_deploy.data.chosen import Chosen
from soul_deploy.data.given import Images, images_for
from soul_deploy.prune.removal import planner
from soul_deploy.reporting import content, spikes
from soul_deploy.reporting import documents as kinds
from soul_deploy.reporting.files import Contents, read_all
from soul_deploy.reporting.networks import Network, networks_of

D = TypeVar("D")
TITLE = "Networks side by side"
NEEDS = ("jinja2", "matplotlib", "networkx")


@brief
@dataclass(frozen=True, kw_only=True)
class Report(tables.Shown):
    """Networks, and everything that was read about them.

    recorded: the spikes of single samples. notes: what has to be known besides.
    """

    title: str
    networks: tuple[Network, ...]
    documents: tuple[kinds.Document, ...]
    recorded: tuple[spikes.Recorded, ...] = ()
    notes: tuple[str, ...] = ()

    def of(self, kind: type[D]) -> list[D]:
        """The documents of one kind."""
        return [item for item in self.documents if isinstance(item, kind)]

    def parts(self) -> list[tables.Table | str]:
        """All tables and lines of the page, without its figures."""
        found: list[tables.Table | str] = []
        if self.networks:
            found += [content.summary(self.networks), content.accuracy_line(self.networks)]
            found.append(content.energy_line(self.networks))
        if self.of(kinds.Learned):
            found.append(content.learned(self.of(kinds.Learned)))
        if content.layer_names(self.networks):
            found.append(content.layers(self.networks))
        if self.of(kinds.Removed):
            found.append(content.removed(self.of(kinds.Removed)))
        for item in self.of(kinds.Verified):
            lines = list(content.verdict_lines(item))
            found += [*lines, *([content.verified(item)] if item.layers else [])]
            found += [content.flips(item)] if item.flips else []
        if self.of(kinds.Benched):
            found.append(content.times(self.of(kinds.Benched), self.networks))
        found += [content.quantized(item) for item in self.of(kinds.Quantized)]
        return [part for part in [*found, *self.notes] if part != ""]

    def to_dict(self) -> dict[str, Any]:
        """Tables and lines as JSON data."""
        shown = [p.to_dict() if isinstance(p, tables.Table) else p for p in self.parts()]
        return {"schema": "soul-deploy/report/1", "title": self.title, "parts": shown}

    def html(self) -> str:
        """One page without any other file. Raises UsageError if its libraries are missing, and
        LimitError if it would have 5 MB or more.
        """
        require_libraries()
        from soul_deploy.reporting import page  # what draws is loaded now

        return page.html(self)

    def markdown(self) -> str:
        """The tables and lines as Markdown, for an issue or a paper."""
        from soul_deploy.reporting import markdown

        return markdown.markdown(self)

    def save(self, path: Path | str) -> None:
        """Write the page atomically; Markdown if the path ends with `.md`."""
        place = Path(path)
        files.write_text(place, self.markdown() if place.suffix == ".md" else self.html())


def report(
    given: Sequence[Path | str],
    *,
    images: Images | None = None,
    labels: torch.Tensor | Array | None = None,
    shown: int = 2,
    title: str = TITLE,
) -> Report:
    """A report of model files, exports and what commands printed with `--format json`, or wrote.

    given: paths; NAME=PATH names a model file. images: as `images_for` takes them; every network
    is counted on all, and the spikes of the first `shown` are drawn. labels: (B,).
    Raises what reading the files and `count` raise, UsageError for values that break a rule.
    """
    found = read_all(given)
    return assembled(found, lambda network: _samples(network, images, labels), shown, title)


def _samples(
    network: Network, images: Images | None, labels: torch.Tensor | Array | None
) -> Chosen | None:
    if images is None or network.model is None:
        return None
    given, axis = images_for(network.model, images)
    known = None if labels is None else torch.as_tensor(labels)
    told = f"{given.shape[axis]} images"
    return Chosen(images=given, labels=known, name="", split="", what=told)


def assembled(found: Contents, samples: Any, shown: int, title: str) -> Report:
    """The report of what was read. samples: gives the Chosen of a network, or None."""
    errors.require_least(0, shown=shown)
    networks = networks_of(found)
    chosen: Mapping[str, Chosen | None] = {n.label: samples(n) for n in networks}
    given = {label: item for label, item in chosen.items() if item is not None}
    recorded: tuple[spikes.Recorded, ...] = ()
    remarks: tuple[str, ...] = ()
    if given:
        networks, recorded, remarks = spikes.run_on(networks, given, shown)
    plans, refused = _plans(networks)
    return Report(
        title=title,
        networks=networks,
        documents=(*found.documents, *plans),
        recorded=recorded,
        notes=(*dict.fromkeys(c.what for c in given.values()), *remarks, *refused),
    )


def _plans(networks: Sequence[Network]) -> tuple[list[kinds.Removed], list[str]]:
    """What removal takes from each masked network, and which removals are refused."""
    plans: list[kinds.Removed] = []
    refused: list[str] = []
    for network in networks:
        if network.model is None or network.stage != "masked":
            continue
        try:
            plan = planner.plan_removal(network.model)
        except (errors.RemovalError, errors.UnsupportedGraphError, errors.LimitError) as error:
            refused.append(f"{network.label}: its removal is refused: {error}")
            continue
        rows = []
        for layer in plan.layers:
            rules = [*layer.removed.values(), *("generated" for _ in layer.generated)]
            gone = {rule: rules.count(rule) for rule in dict.fromkeys(rules)}
            stays = layer.tied or ""
            rows.append((layer.population, layer.channels, len(layer.kept), gone, stays))
        plans.append(kinds.Removed(network.label, tuple(rows)))
    return plans, refused


def require_libraries() -> None:
    """Raise UsageError unless the libraries that draw a page are installed."""
    missing = [name for name in NEEDS if find_spec(name) is None]
    if missing:
        raise errors.UsageError(
            f"a report as HTML needs {', '.join(missing)}, not installed here; pip install "
            f"{' '.join(missing)}, or give --format markdown, which needs none of them"
        )
