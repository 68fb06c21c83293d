"""A profile as a table, and as a trace that browsers show."""

from collections.abc import Mapping
from typing import Any

from soul_deploy.base import tables

WORK = ("currents", "neurons", "fused", "words", "maps")
"""Kinds of work, as `Work` of runtime/plan/regions.py has them."""


def profile_tables(found: Mapping[str, Any]) -> list[tables.Table]:
    """The time of each layer by kind of work; what it did in that time."""
    times: list[list[object]] = []
    works: list[list[object]] = []
    for row in found["layers"]:
        spent, synops = sum(row["us"].values()), row["synops"]
        each = (f"{took / 1e3:.2f}" if took else "" for took in row["us"].values())
        share = f"{spent / found['total_us']:.0%}"
        times.append([row["layer"], f"{spent / 1e3:.2f}", share, *each])
        works.append(
            [
                *(row["layer"], row["form"] or ""),
                f"{synops:,}" if synops else "",
                f"{1e3 * spent / synops:.2f}" if synops else "",
                "" if row["rate"] is None else f"{row['rate']:.1%}",
                f"{row['bytes'] / 1e3:,.0f}" if row["bytes"] else "",
            ]
        )
    times.append(["total", f"{found['total_us'] / 1e3:.2f}", "100%", *[""] * len(WORK)])
    title = (
        f"The event runtime's time, ms (one sample, one thread, medians of {found['runs']} runs)"
    )
    columns = ["layer", "runs as", "SynOps", "ns/SynOp", "spikes/neuron/step", "rows, kB"]
    return [
        tables.Table(title, ["layer", "all", "share", *WORK], times),
        tables.Table("What it did", columns, works),
    ]


def chrome_trace(found: Mapping[str, Any]) -> dict[str, Any]:
    """The last run in Chrome's "Trace Event Format", which Perfetto shows: complete events.

    See https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU.
    """
    spans = [
        {
            "name": f"{layer}: {work}",
            "cat": work,
            "ph": "X",
            "ts": begin,
            "dur": duration,
            "pid": 1,
            "tid": 1,
        }
        for layer, work, begin, duration in found["spans"]
    ]
    return {"traceEvents": spans, "displayTimeUnit": "ms"}
