"""The result of `bench`, as data and as tables, and compared with an earlier result."""

import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

from soul_deploy.base import brief, errors, file_kinds, files, json_text, tables
from soul_deploy.runtime.bench.profile_table import profile_tables

Document = Mapping[str, Any]
Key = tuple[str, int, int]
SCHEMA = "soul-deploy/bench/1"
REFERENCES = ("onnxruntime-compact", "onnxruntime-dense")
_INPUT = re.compile(r"(.*), (static|sequence), \d+ samples, (T = \d+)")


def key_of(entry: Document) -> Key:
    """The key that identifies the measurement of one entry."""
    return entry["engine"], entry["threads"], entry["batch_size"]


def is_entry(entry: Any) -> bool:
    """Whether an entry of a file can be compared with."""
    if not isinstance(entry, dict):
        return False
    kinds = {"engine": str, "threads": int, "batch_size": int, "p50_ms": int | float}
    return all(isinstance(entry.get(key), kind) for key, kind in kinds.items()) and (
        entry["p50_ms"] > 0
    )


def differences(document: Document, baseline: Document) -> list[str]:
    """What the two results did not have in common, as far as both say it; most important first.

    The number of samples may differ: it follows the largest batch.
    """
    both = _in_both(document, baseline)
    if not both:
        return [
            f"it has {_named(baseline['entries'])}, and now {_named(document['entries'])} was "
            "measured: nothing to compare"
        ]
    found = [text for before, now in both for text in _network_differs(before, now)]
    found += _whole_differs(document, baseline)
    return list(dict.fromkeys(found))


def _in_both(document: Document, baseline: Document) -> list[tuple[Document, Document]]:
    """The measurements that both have: before and now."""
    earlier = {key_of(entry): entry for entry in baseline["entries"]}
    return [(earlier[key_of(e)], e) for e in document["entries"] if key_of(e) in earlier]


def _named(entries: Sequence[Document]) -> str:
    names = (f"{e} (threads {t}, batch {b})" for e, t, b in map(key_of, entries))
    return ", ".join(dict.fromkeys(names)) or "no entry"


def _network_differs(before: Document, now: Document) -> list[str]:
    """By the model file that the timed file was made from, or else by the timed file's name."""
    engine, sources = now["engine"], (before.get("source_sha256"), now.get("source_sha256"))
    if all(sources):
        if sources[0] == sources[1]:
            return []
        was, this = (f"{str(source)[:16]}…" for source in sources)
        return [f"{engine} ran a network made from model {was}, now from {this}"]
    return [
        f"{engine}: {what} was {before.get(key)}, now {now.get(key)}"
        for key, what in (("file", "the file"), ("file_bytes", "the file's size"))
        if before.get(key) != now.get(key)
    ]


def _whole_differs(document: Document, baseline: Document) -> list[str]:
    """Input, T, the random input's seed, the reference network, the processor."""
    was, this = (_INPUT.fullmatch(str(item.get("input"))) for item in (baseline, document))
    parts = zip(was.groups(), this.groups(), strict=True) if was and this else ()
    differences = [f"the input was {old}, now {new}" for old, new in parts if old != new]
    for key, what in (("seed", "the seed"), ("reference", "the reference network")):
        old, new = baseline.get(key), document.get(key)
        random = str(document.get("input")).startswith("random,") or bool(document.get("reference"))
        if old != new and (key != "seed" or random):
            differences.append(f"{what} was {old}, now {new}")
    cpus = [item.get("environment", {}).get("cpu") for item in (baseline, document)]
    if cpus[0] != cpus[1]:
        differences.append(f"the processor was {cpus[0]}, now {cpus[1]}")
    return differences


@file_kinds.reads("result")
def load_baseline(file: files.File) -> dict[str, Any]:
    """An earlier result. Raises MissingFileError, FileFormatError."""
    path = files.path_of(file)
    with files.opened(file) as source:
        json_text.require_length(str(path), source.size, None)
        document = files.parse_json(source.start(source.size), str(path))
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        raise errors.FileFormatError(
            f"{path} is not a result of bench; needed: a file of schema {SCHEMA}, written with "
            "--output"
        )
    entries = document.get("entries")
    if not isinstance(entries, list) or not all(map(is_entry, entries)):
        raise errors.FileFormatError(
            f"{path} has entries that cannot be read; measure the baseline again"
        )
    return document


def compare_with(document: Document, baseline: Document) -> list[dict[str, Any]]:
    """For each entry that both have: its median before and now, and the speed-up."""
    return [
        {
            **{key: now[key] for key in ("engine", "threads", "batch_size")},
            "before_p50_ms": before["p50_ms"],
            "now_p50_ms": now["p50_ms"],
            "speedup": before["p50_ms"] / now["p50_ms"],
        }
        for before, now in _in_both(document, baseline)
    ]


def reference_engine(entries: Sequence[Document]) -> str | None:
    """The engine that the others are compared with, or None without ONNX Runtime."""
    names = {entry["engine"] for entry in entries}
    return next((name for name in REFERENCES if name in names), None)


def reference_speedups(entries: Sequence[Document]) -> dict[tuple[str, int, int], float]:
    """Median time of `reference_engine` over each entry's, same threads and batch size."""
    name = reference_engine(entries)
    reference = {key_of(e)[1:]: e["p50_ms"] for e in entries if e["engine"] == name}
    return {
        key_of(entry): reference[key_of(entry)[1:]] / entry["p50_ms"]
        for entry in entries
        if key_of(entry)[1:] in reference
    }


@brief
@dataclass(frozen=True)
class BenchReport(tables.Shown):
    """Times of engines side by side, as JSON data of the schema SCHEMA.

    percentiles: those that the table shows, in percent.
    """

    document: Document
    percentiles: tuple[float, ...] = (50, 90, 99)

    @property
    def entries(self) -> Sequence[Document]:
        """One for each engine, number of threads and batch size; times in ms."""
        entries: Sequence[Document] = self.document["entries"]
        return entries

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON data."""
        return deepcopy(dict(self.document))

    def against(self, baseline: Document) -> "BenchReport":
        """With speed-ups over an earlier result, and how what it measured differs."""
        more = {
            "comparison": compare_with(self.document, baseline),
            "comparison_differences": differences(self.document, baseline),
        }
        return replace(self, document={**self.document, **more})

    def parts(self) -> list[tables.Table | str]:
        """Times, costs of a fresh process, agreement, the profile, speed-ups over the baseline, the
        machine.
        """
        document = self.document
        shown: list[tables.Table | str] = [_times(self.entries, self.percentiles)]
        if any(entry["load_ms"] is not None for entry in self.entries):
            shown.append(_fresh(self.entries))
        if document["agreement"]:
            shown.append(_agreement(document["agreement"]))
        if document.get("profile"):
            shown += profile_tables(document["profile"])
        if document.get("comparison"):
            shown.append(_comparison(document["comparison"]))
        return [*shown, *_environment(document)]


def _times(entries: Sequence[Document], percentiles: Sequence[float]) -> tables.Table:
    speedups = {key: f"{times:.2f}×" for key, times in reference_speedups(entries).items()}
    shares = [f"p{share:g}" for share in percentiles]
    columns = ["engine", "network", "threads", "batch", *(f"{s} ms" for s in shares)]
    columns += ["items/s", "vs ORT", "runs"]
    rows: list[list[object]] = [
        [
            *(entry[key] for key in ("engine", "network", "threads", "batch_size")),
            *(ms(entry[f"{share}_ms"]) for share in shares),
            f"{entry['items_per_s']:,.0f}",
            speedups.get(key_of(entry), ""),
            entry["runs"],
        ]
        for entry in entries
    ]
    return tables.Table("Time per batch", columns, rows)


def ms(value: float) -> str:
    """Milliseconds with three significant digits."""
    return f"{value:.3f}" if value < 1 else f"{value:.2f}" if value < 100 else f"{value:,.0f}"


def _fresh(entries: Sequence[Document]) -> tables.Table:
    columns = ["engine", "threads", "batch", "import ms", "load ms", "first run ms"]
    rows: list[list[object]] = [
        [
            *key_of(entry),
            *(ms(entry[key]) for key in ("import_ms", "load_ms", "first_ms")),
            "" if entry["rss_mb"] is None else f"{entry['rss_mb']:,.0f}",
            f"{entry['file_bytes'] / 1e6:,.2f}",
        ]
        for entry in entries
    ]
    return tables.Table("In a fresh process", [*columns, "memory MB", "file MB"], rows)


def _agreement(agreement: Sequence[Document]) -> tables.Table:
    columns = ["engine", "against", "same class", "largest score difference"]
    rows: list[list[object]] = [
        [
            *(item["engine"], item["against"], f"{item['classes_agree']}/{item['samples']}"),
            f"{item['max_logit_difference']:.2g}",
        ]
        for item in agreement
    ]
    return tables.Table("Do they agree?", columns, rows)


def _comparison(comparison: Sequence[Document]) -> tables.Table:
    columns = ["engine", "threads", "batch", "p50 ms before", "p50 ms now", "speed-up"]
    medians = "before_p50_ms", "now_p50_ms"
    rows: list[list[object]] = [
        [*key_of(item), *(ms(item[key]) for key in medians), f"{item['speedup']:.2f}×"]
        for item in comparison
    ]
    return tables.Table("Against the baseline", columns, rows)


def _hardware(env: Document) -> str:
    """The widest vectors, caches and cores; an earlier version's result knows of cores only."""
    vectors, caches = env.get("instruction_sets", [])[-1:], env.get("caches", {})
    told = [f"{name} {size / 2**20:g} MiB" for name, size in caches.items() if size >= 2**20]
    return ", ".join([*vectors, *told, f"{env['cores']} cores"])


def _environment(document: Document) -> list[str]:
    env = document["environment"]
    versions = ", ".join(f"{name} {v}" for name, v in env["versions"].items() if v)
    reference = reference_engine(document["entries"])
    load = env["load_average"] or 0.0
    busy = (
        f"The machine was busy before the start (load {load:g}): times are high and scatter; "
        "measure again on a quiet one."
    )
    return [
        *([f"vs ORT: median time of {reference} over this one's."] if reference else []),
        f"Input: {document['input']}.",
        f"{env['cpu']}, {_hardware(env)}, {env['time']}, Python {env['python']}.",
        f"{versions}.",
        *([busy] if load > 0.5 else []),
    ]
