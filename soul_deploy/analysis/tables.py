"""Reports of operations and energy as text, CSV and Markdown; per inference, from exact sums."""

import csv
import io
from collections.abc import Sequence
from fractions import Fraction
from typing import TYPE_CHECKING

from soul_deploy.base import tables, terminal
from soul_deploy.runtime.ops.counters import COUNTERS
from soul_deploy.runtime.ops.energy import MEMORY, UNITS, arithmetic, memory_energy, ops_energy

if TYPE_CHECKING:
    from soul_deploy.analysis.report import LayerReport, OpsReport

CONVENTIONS_LINE = (
    "SynOps: valid targets, nonzero deployed weights, live neurons, multiplicity-weighted, first "
    "analog layer excluded (MACs listed, once per image), summed over T"
)
LAYER_COLUMNS = (
    *("layer", "kind", "events in", "firing rate", "synapses", "SynOps", "MACs", "dense MACs"),
    *("effective/dense", "touched", "updates", "pool ops", "ops, nJ", "memory, nJ"),
)
PAPER_COLUMNS = (
    *(
        "Dataset",
        "Arch",
        "T",
        "Acc %",
        "Params nz (M)",
        "W sparsity %",
        "Neurons live %",
        "Conn. %",
    ),
    *("SynOps (M)", "Ratio", "MACs (M)", "E_ops (µJ)", "E_mem (µJ)", "Footprint (MB)"),
)


def report_parts(report: "OpsReport") -> list[tables.Table | str]:
    """Tables for people: layers, totals, estimates with their constants, other tools' rules."""
    rows = [_layer_row(report, layer) for layer in report.layers]
    rows.append(_total_row(report))
    title = f"{report.path} ({report.stage}), per inference, mean of {report.samples:,} samples"
    parts: list[tables.Table | str] = [tables.Table(title, LAYER_COLUMNS, rows), *_facts(report)]
    parts.append(tables.Table("Energy, estimated", ["model", "per inference", "constants"], [
        *([f"ops45 {e.preset}", _energy(e.picojoules / report.samples), _constants(e.preset)]
          for e in report.ops),
        *([e.memory, _energy(e.value / 10 / report.samples), _levels(e.memory)]
          for e in report.memory),
    ]))  # fmt: skip
    if report.memory:
        parts.append(_placement(report))
    parts.append(tables.Table("By other tools' rules", ["rule", "per inference"], _compat(report)))
    return [*parts, CONVENTIONS_LINE]


def _layer_row(report: "OpsReport", layer: "LayerReport") -> list[object]:
    c, n = layer.counts, report.samples
    dense = layer.dense_totals(n, report.time_steps)["macs_dense"]
    work = c.synops + c.macs_effective
    kind = layer.op if layer.edge is None else f"{layer.op}, {layer.edge.kind}"
    ops = ops_energy({layer.name: layer.activity}).picojoules
    memory = "eie45" if not report.memory else report.memory[0].memory
    stored = memory_energy({layer.name: layer.activity}, {layer.name: layer.arrays}, memory).value
    return [
        layer.name,
        kind.replace("_", " "),
        _mean(c.events_in, n),
        _share(*layer.activation),
        layer.synapses or "",
        _mean(c.synops, n),
        _mean(c.macs_effective, n),
        _mean(dense, n),
        _share(work, dense),
        _mean(c.touched, n),
        _mean(c.neuron_updates, n),
        _mean(c.pool_ops, n),
        f"{ops / n / 1e3:.4g}",
        f"{stored / 10 / n / 1e3:.4g}",
    ]


def _total_row(report: "OpsReport") -> list[object]:
    t, n = report.totals, report.samples
    fired, slots = (sum(layer.activation[k] for layer in report.layers) for k in (0, 1))
    ops = report.ops[0].picojoules / n / 1e3 if report.ops else 0.0
    memory = report.memory[0].value / 10 / n / 1e3 if report.memory else 0.0
    return [
        *("total", "", _mean(t["events_in"], n), _share(fired, slots)),
        *(report.structure()["synapses"], _mean(t["synops"], n), _mean(t["macs_effective"], n)),
        *(_mean(t["macs_dense"], n), _share(t["synops"] + t["macs_effective"], t["macs_dense"])),
        *(_mean(t["touched"], n), _mean(t["neuron_updates"], n), _mean(t["pool_ops"], n)),
        *(f"{ops:.4g}", f"{memory:.4g}"),
    ]


def _facts(report: "OpsReport") -> list[str]:
    s, t, n = report.structure(), report.totals, report.samples
    fired, slots = (sum(layer.activation[k] for layer in report.layers) for k in (0, 1))
    rate = fired / slots * report.time_steps if slots else 0.0
    reached = t["synops"] / n / s["synapses"] if s["synapses"] else 0.0
    return [
        f"Structure: {s['synapses']:,} of {s['synapses_dense']:,} synapses "
        f"({_share(s['synapses'], s['synapses_dense'])}), {s['weights_nz']:,} of {s['weights']:,} "
        f"weights, {s['neurons_live']:,} of {s['neurons']:,} neurons; {s['footprint_bytes']:,} "
        f"bytes of parameters",
        f"Firing rates and shares are of {report.original}",
        f"Spikes per neuron and inference (T · firing rate): {rate:.4g}; SynOps per synapse: "
        f"{reached:.4g}; MACs if the first layer ran at every step: "
        f"{_mean(t['macs_if_repeated'], n)}",
    ]


def _compat(report: "OpsReport") -> list[list[object]]:
    c, n = report.compat, report.samples
    return [
        ["NeuroBench Effective_ACs", _mean(c.neurobench_acs, n)],
        ["NeuroBench Effective_MACs", _mean(c.neurobench_macs, n)],
        ["NeuroBench Dense", _mean(c.neurobench_dense, n)],
        ["SpikingJelly SynOps (its MACs)", f"{_mean(c.spikingjelly_synops, n)} "
         f"({_mean(c.spikingjelly_macs, n)})"],
        ["SOPs of Shi et al. 2024", f"{float(c.upr_sops) / n:,.1f}"],
    ]  # fmt: skip


def _placement(report: "OpsReport") -> tables.Table:
    rows: list[list[object]] = []
    for energy in report.memory:
        for layer, arrays in energy.placement.items():
            stored = ", ".join(f"{a} {size:,} B {at}" for a, (at, size) in arrays.items() if size)
            if stored:
                rows.append([layer, energy.memory, stored])
    return tables.Table("Where arrays stand (bytes)", ["layer", "model", "what"], rows)


def _constants(preset: str) -> str:
    costs = arithmetic(preset)
    parts = UNITS[costs.unit]
    return f"{costs.mac / parts:g} pJ/MAC, {costs.ac / parts:g} pJ/AC"


def _levels(memory: str) -> str:
    hierarchy = MEMORY[memory]
    named = [f"{name} {cost / 10:g}" for _, name, cost in hierarchy.levels]
    return ", ".join([*named, f"DRAM {hierarchy.dram / 10:g}"]) + " pJ per 32 bits"


def _energy(picojoules: float) -> str:
    return f"{picojoules / 1e6:.4g} µJ" if picojoules >= 1e6 else f"{picojoules / 1e3:.4g} nJ"


def _mean(total: int, samples: int) -> str:
    mean = total / samples
    return f"{mean:,.0f}" if mean >= 100 or mean == int(mean) else f"{mean:.1f}"


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.2f} %" if whole else ""


def paper_row(report: "OpsReport", dense_synops: Fraction | None) -> list[str]:
    """Cells in the papers' column order; dense_synops: of the dense network, per inference."""
    s, t, n = report.structure(), report.totals, report.samples
    ratio = f"{float(dense_synops * n / t['synops']):.2f}" if dense_synops and t["synops"] else ""
    correct = report.data.get("correct")
    ops = f"{report.ops[0].picojoules / n / 1e6:.4f}" if report.ops else ""
    memory = f"{report.memory[0].value / 10 / n / 1e6:.4f}" if report.memory else ""
    return [
        str(report.data.get("name", "")),
        str(report.data.get("arch", "")),
        str(report.time_steps),
        "" if correct is None else f"{100 * correct / n:.2f}",
        f"{s['weights_nz'] / 1e6:.4f}",
        f"{100 * (1 - s['weights_nz'] / s['weights']):.2f}" if s["weights"] else "",
        f"{100 * s['neurons_live'] / s['neurons']:.2f}" if s["neurons"] else "",
        f"{100 * s['synapses'] / s['synapses_dense']:.2f}" if s["synapses_dense"] else "",
        f"{t['synops'] / n / 1e6:.4f}",
        ratio,
        f"{t['macs_effective'] / n / 1e6:.4f}",
        *(ops, memory, f"{s['footprint_bytes'] / 1e6:.4f}"),
    ]


def markdown(reports: Sequence["OpsReport"]) -> str:
    """One row per network, in the papers' column order."""
    dense = Fraction(reports[0].totals["synops"], reports[0].samples) if reports else None
    lines = [["File", *PAPER_COLUMNS], ["---"] * (1 + len(PAPER_COLUMNS))]
    lines += [[report.path, *paper_row(report, dense)] for report in reports]
    table = [terminal.one_line("| " + " | ".join(cells) + " |") for cells in lines]
    return "\n".join([*table, "", CONVENTIONS_LINE + ". Energy is an estimate."])


def csv_text(reports: Sequence["OpsReport"]) -> str:
    """One line per layer and network with exact sums; the last line of each is the total."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    extra = ("macs_dense", "macs_if_repeated", "dense_ops_valid", "dense_ops_padded")
    head = ["file", "stage", "samples", "T", "layer", "op", "edge", "synapses", *COUNTERS, *extra]
    writer.writerow(head)
    for report in reports:
        start = [report.path, report.stage, report.samples, report.time_steps]
        for layer in report.layers:
            dense = layer.dense_totals(report.samples, report.time_steps)
            edge = "" if layer.edge is None else layer.edge.kind
            counts = [getattr(layer.counts, name) for name in COUNTERS]
            sums = [*counts, *(dense[name] for name in extra)]
            writer.writerow([*start, layer.name, layer.op, edge, layer.synapses, *sums])
        sums = [report.totals[name] for name in (*COUNTERS, *extra)]
        writer.writerow([*start, "total", "", "", report.structure()["synapses"], *sums])
    return buffer.getvalue().rstrip("\n")
