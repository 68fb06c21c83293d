"""An event network on input files: class scores per sample, per step, and operation counts."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from soul_deploy.base import Array, tables
from soul_deploy.runtime.engine.network import Network
from soul_deploy.runtime.format.network import EventNetwork
from soul_deploy.runtime.io.images import Samples
from soul_deploy.runtime.ops import counted_run, counters, energy

SCHEMA = "soul-deploy/run/1"


def step_scores(network: Network, samples: Samples) -> Array:
    """Scores of each step alone, (T, B, classes), run step by step; `run` gives their mean."""
    network.reset()
    values = samples.values
    steps = range(network.time_steps)
    return np.stack([network.step(values[t] if samples.sequence else values) for t in steps])


def result(
    network: Network, groups: Sequence[Samples], *, top: int, stream: bool, counts: bool
) -> dict[str, Any]:
    """Everything that `soul-deploy run` says, as JSON data of the schema SCHEMA.

    top: how many classes per sample. stream: run step by step, and keep each step's scores.
    counts: also count operations, summed over the samples.
    """
    rows: list[dict[str, Any]] = []
    sums: dict[str, counters.LayerCounts] = {}
    additions: dict[str, int] = {}
    for samples in groups:
        steps = step_scores(network, samples) if stream else None
        scores = network.run(samples.values) if steps is None else steps.mean(axis=0)
        for index, name in enumerate(samples.names):
            row = {"input": name, "top": best(network.events, scores[index], top)}
            if steps is not None:
                row["steps"] = steps[:, index].tolist()
            rows.append(row)
        if counts:
            counted = counted_run.count_run(network, samples.values)
            for layer, layer_counts in counted.counts.items():
                sums[layer] = sums.get(layer, counters.LayerCounts()) + layer_counts
                executed = counted.executed.get(layer, layer_counts.synops)
                additions[layer] = additions.get(layer, 0) + executed
    document: dict[str, Any] = {
        "schema": SCHEMA,
        "time_steps": network.time_steps,
        "classes": list(network.events.classes),
        "results": rows,
    }
    if counts:
        document["samples"] = len(rows)
        document["counts"] = {
            layer: {**asdict(layer_counts), "synops_executed": additions[layer]}
            for layer, layer_counts in sums.items()
        }
        activities = {layer: energy.Activity(layer_counts) for layer, layer_counts in sums.items()}
        document["energy"] = [energy.ops_energy(activities).to_json()]
    return document


def best(network: EventNetwork, scores: Array, top: int) -> list[dict[str, Any]]:
    """The `top` classes with the highest scores; among equal scores the lower index first.

    A class is called by its index if the file has no names.
    """
    names = network.classes or [str(index) for index in range(len(scores))]
    order = np.argsort(-scores, kind="stable")[:top].tolist()
    return [{"index": i, "class": names[i], "score": float(scores[i])} for i in order]


COUNT_COLUMNS = {
    "events_in": "events in",
    "synops": "SynOps",
    "synops_executed": "additions executed",
    "macs_effective": "MACs",
    "neuron_updates": "neuron updates",
    "spikes_out": "spikes out",
}


def count_table(counts: Mapping[str, Mapping[str, int]], samples: int) -> tables.Table:
    """Counts per inference, with a row for the whole network."""
    total = {key: sum(found[key] for found in counts.values()) for key in COUNT_COLUMNS}
    rows: list[list[object]] = [
        [layer, *(counters.mean_text(found[key], samples) for key in COUNT_COLUMNS)]
        for layer, found in {**counts, "total": total}.items()
    ]
    columns = ["layer", *COUNT_COLUMNS.values()]
    return tables.Table(f"Per inference (mean of {samples:,})", columns, rows)


def energy_line(entry: Mapping[str, Any], samples: int) -> str:
    """An estimate per inference with its constants, from an entry of the result's `energy`."""
    parts, costs = energy.UNITS[entry["unit"]], entry["constants"]
    nanojoules = entry["value_int"] / parts / samples / 1e3
    return (
        f"Energy, estimated ({entry['model']}: {costs['mac'] / parts:g} pJ/MAC, "
        f"{costs['ac'] / parts:g} pJ/SynOp): {nanojoules:,.4g} nJ per inference"
    )
