"""Whether an earlier result of `bench` measured the same: what differs, in words."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

Document = Mapping[str, Any]
Key = tuple[str, int, int]
_INPUT = re.compile(r"(.*), (static|sequence), \d+ samples, (T = \d+)")


def key_of(entry: Document) -> Key:
    """The key that identifies the measurement of one entry."""
    return entry["engine"], entry["threads"], entry["batch_size"]


def is_entry(entry: Any) -> bool:
    """Whether an entry of a file can be compared with."""
    if not isinstance(entry, dict):
        return False
    engine, threads, size, median = (
        entry.get(key) for key in ("engine", "threads", "batch_size", "p50_ms")
    )
    return (
        isinstance(engine, str)
        and isinstance(threads, int)
        and isinstance(size, int)
        and isinstance(median, int | float)
        and median > 0
    )


def differences(document: Document, baseline: Document) -> list[str]:
    """What the two results did not have in common, as far as both say it; most important first.

    The number of samples may differ: it follows the largest batch.
    """
    earlier = {key_of(entry): entry for entry in baseline["entries"]}
    both = [(earlier[key_of(e)], e) for e in document["entries"] if key_of(e) in earlier]
    if not both:
        return [
            f"it has {_named(baseline['entries'])}, and now {_named(document['entries'])} was "
            "measured: nothing to compare"
        ]
    found = [text for before, now in both for text in _network_differs(before, now)]
    found += _whole_differs(document, baseline)
    return list(dict.fromkeys(found))


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
    was, this = (
        _INPUT.fullmatch(str(differences.get("input"))) for differences in (baseline, document)
    )
    parts = (
        [] if was is None or this is None else list(zip(was.groups(), this.groups(), strict=True))
    )
    differences = [f"the input was {old}, now {new}" for old, new in parts if old != new]
    for key, what in (("seed", "the seed"), ("reference", "the reference network")):
        old, new = baseline.get(key), document.get(key)
        if old != new and (key != "seed" or _random(document)):
            differences.append(f"{what} was {old}, now {new}")
    cpus = [item.get("environment", {}).get("cpu") for item in (baseline, document)]
    if cpus[0] != cpus[1]:
        differences.append(f"the processor was {cpus[0]}, now {cpus[1]}")
    return differences


def _random(document: Document) -> bool:
    return str(document.get("input")).startswith("random,") or bool(document.get("reference"))
