"""Operations, energy and other tools' numbers of one network on some samples, as one report.

Everything is an exact sum over the samples; dividing is left to whoever prints. Rates and
sparsities are relative to the *original* network, since a compact one looks busier otherwise.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from importlib.metadata import version
from typing import Any

from soul_deploy.analysis import other_tools
from soul_deploy.base import brief, terminal
from soul_deploy.base.tables import Shown, Table
from soul_deploy.ir import Edge
from soul_deploy.runtime.ops import counters, energy

NO_OPS = other_tools.DenseOps(0, 0)
SCHEMA = "soul-deploy/ops-report/2"
CONVENTIONS = {
    "border": "valid",
    "zero_weights": "skipped",
    "dead_targets": "skipped",
    "graded": "multiplicity",
    "first_layer": "mac_once",
    "bn": "folded",
    "avgpool": "fused",
}
INTEGERS_LINE = (
    f"A fixed-point network: ops45 {energy.FIXED_POINT} is its estimate (weights of 8 bits, sums "
    "and membranes of 32); ops45 int8 would add in 8 bits. Memory is counted as if each "
    "number took 32 bits"
)
CONVENTIONS_LINE = (
    "SynOps: valid targets, nonzero deployed weights, live neurons, multiplicity-weighted, first "
    "analog layer excluded (MACs listed, once per image), summed over T"
)
DENSE_TOTALS = ("macs_dense", "macs_if_repeated", "dense_ops_valid", "dense_ops_padded")
COUNTED = (*counters.COUNTERS, *DENSE_TOTALS)
LAYER_COLUMNS = (
    *("layer", "kind", "events in", "firing rate", "synapses", "SynOps", "MACs", "dense MACs"),
    *("effective/dense", "touched", "updates", "pool ops", "ops, nJ", "memory, nJ"),
)
PAPER_COLUMNS = (
    *("Dataset", "Arch", "T", "Acc %", "Params nz (M)", "W sparsity %"),
    *("Neurons live %", "Conn. %"),
    *("SynOps (M)", "Ratio", "MACs (M)", "E_ops (µJ)", "E_mem (µJ)", "Footprint (MB)"),
)


@brief
@dataclass(frozen=True, kw_only=True)
class LayerReport:
    """One entry: a projection with its population, a population alone, a pooling, the readout.

    synapses       nonzero ones between live neurons; synapses_dense: of the same operator with
                   no weight 0, never fewer
    executions     executed steps × samples; 0 where there are no synapses
    neurons        live; neurons_original: of the population behind in the original network
    activation     (nonzero, all) outputs of the population, all of the original's
    """

    name: str
    op: str
    counts: counters.LayerCounts
    activity: energy.Activity
    arrays: energy.Arrays
    neurons: int
    neurons_original: int
    activation: tuple[int, int]
    edge: Edge | None = None
    static: bool = False
    executions: int = 0
    dense: other_tools.DenseOps = NO_OPS
    synapses: int = 0
    synapses_dense: int = 0
    weights_nz: int = 0
    weights: int = 0

    def totals(self, samples: int, time_steps: int) -> dict[str, int]:
        """All counts, and DENSE_TOTALS: they follow from the graph and the number of executions."""
        repeated = time_steps if self.static else 1
        return asdict(self.counts) | {
            "macs_dense": self.executions * self.dense.valid,
            "macs_if_repeated": self.counts.macs_effective * repeated,
            "dense_ops_valid": samples * time_steps * self.dense.valid,
            "dense_ops_padded": samples * time_steps * self.dense.padded,
        }


@brief
@dataclass(frozen=True, kw_only=True)
class OpsReport(Shown):
    """The report of one network; `original` names the network of the denominators."""

    path: str
    sha256: str
    stage: str
    data: Mapping[str, Any]
    samples: int
    time_steps: int
    original: str
    layers: tuple[LayerReport, ...]
    compat: other_tools.CompatCounts
    footprint: int
    artifact_bytes: int
    integers: bool
    ops: tuple[energy.OpsEnergy, ...]
    memory: tuple[energy.MemoryEnergy, ...]

    @property
    def activation(self) -> tuple[int, int]:
        """(nonzero, all) outputs of all populations, all of the original's."""
        nonzero, every = zip(*(layer.activation for layer in self.layers), strict=True)
        return sum(nonzero), sum(every)

    @property
    def totals(self) -> dict[str, int]:
        """Counters, dense equivalents and repeated multiplications of the whole network."""
        every = [layer.totals(self.samples, self.time_steps) for layer in self.layers]
        return {key: sum(totals[key] for totals in every) for key in COUNTED}

    def structure(self) -> dict[str, int]:
        """Sizes, summed over layers."""
        names = ("synapses", "synapses_dense", "weights_nz", "weights")
        sums = {name: sum(getattr(layer, name) for layer in self.layers) for name in names}
        return sums | {
            "neurons_live": sum(layer.neurons for layer in self.layers),
            "neurons": sum(layer.neurons_original for layer in self.layers),
            "footprint_bytes": self.footprint,
            "artifact_bytes": self.artifact_bytes,
        }

    def parts(self) -> list[Table | str]:
        """Layers, totals, estimates with their constants, other tools' rules; per inference."""
        n, rows = self.samples, [_layer_row(self, layer) for layer in self.layers]
        title = f"{self.path} ({self.stage}), per inference, mean of {n:,} samples"
        ops = [
            [f"ops45 {e.preset}", _energy(e.picojoules / n), _constants(e.preset)] for e in self.ops
        ]
        memory = [[e.memory, _energy(e.value / 10 / n), _levels(e.memory)] for e in self.memory]
        return [
            Table(title, LAYER_COLUMNS, [*rows, _total_row(self)]),
            *_facts(self),
            Table("Energy, estimated", ["model", "per inference", "constants"], [*ops, *memory]),
            *([INTEGERS_LINE] if self.integers else []),
            *([_placement(self)] if self.memory else []),
            Table("By other tools' rules", ["rule", "per inference"], _compat(self)),
            CONVENTIONS_LINE,
        ]

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON data of SCHEMA: exact sums over the samples."""
        return {
            "schema": SCHEMA,
            "artifact": {
                "path": self.path,
                "sha256": self.sha256,
                "weights_dtype": "int8" if self.integers else "float32",
                "graph_stage": self.stage,
            },
            "original": self.original,
            "dataset": {**self.data, "n_samples": self.samples},
            "T": self.time_steps,
            "conventions": CONVENTIONS,
            "totals": self.totals,
            "structure": self.structure(),
            "layers": [self._layer_json(layer) for layer in self.layers],
            "compat": self._compat_json(),
            "energy": [*(e.to_json() for e in self.ops), *(e.to_json() for e in self.memory)],
            "env": {"torch": version("torch"), "device": "cpu", "dtype_count": "float64"},
        }

    def _layer_json(self, layer: LayerReport) -> dict[str, Any]:
        return {
            "name": layer.name,
            "op": layer.op,
            "edge": None if layer.edge is None else layer.edge.kind,
            "static_reuse": layer.static,
            "counts": layer.totals(self.samples, self.time_steps),
            "synapses": layer.synapses,
            "synapses_dense": layer.synapses_dense,
            "neurons_live": layer.neurons,
            "neurons": layer.neurons_original,
            "activation_nonzero": layer.activation[0],
            "activation_total": layer.activation[1],
        }

    def _compat_json(self) -> dict[str, Any]:
        c = self.compat
        (nonzero, every), structure = self.activation, self.structure()
        kept, weights = structure["weights_nz"], structure["weights"]
        return {
            "neurobench": {
                "Effective_ACs": c.neurobench_acs,
                "Effective_MACs": c.neurobench_macs,
                "Dense": c.neurobench_dense,
                "ActivationSparsity": fraction_json(Fraction(every - nonzero, max(every, 1))),
                "ConnectionSparsity": fraction_json(Fraction(weights - kept, max(weights, 1))),
                "Footprint": self.footprint,
            },
            "upr_sops": fraction_json(c.upr_sops),
            "sj_synop": c.spikingjelly_synops,
            "sj_mac": c.spikingjelly_macs,
        }


def fraction_json(value: Fraction) -> dict[str, int]:
    """An exact fraction."""
    return {"num": value.numerator, "den": value.denominator}


def _layer_row(report: OpsReport, layer: LayerReport) -> list[object]:
    kind = layer.op if layer.edge is None else f"{layer.op}, {layer.edge.kind}"
    memory = "eie45" if not report.memory else report.memory[0].memory
    activity, arrays = {layer.name: layer.activity}, {layer.name: layer.arrays}
    ops = energy.ops_energy(activity).picojoules
    stored = energy.memory_energy(activity, arrays, memory).value
    totals = layer.totals(report.samples, report.time_steps)
    cells = _cells(report.samples, totals, layer.activation, layer.synapses or "", ops, stored / 10)
    return [layer.name, kind.replace("_", " "), *cells]


def _total_row(report: OpsReport) -> list[object]:
    ops = report.ops[0].picojoules if report.ops else 0.0
    memory = report.memory[0].value / 10 if report.memory else 0.0
    synapses = report.structure()["synapses"]
    cells = _cells(report.samples, report.totals, report.activation, synapses, ops, memory)
    return ["total", "", *cells]


def _cells(
    samples: int, totals: Mapping[str, int], fired: tuple[int, int], synapses: object, *spent: float
) -> list[object]:
    """LAYER_COLUMNS from `events in` on; spent: pJ."""
    mean = {key: counters.mean_text(count, samples) for key, count in totals.items()}
    work, dense = totals["synops"] + totals["macs_effective"], totals["macs_dense"]
    events = [mean["events_in"], _share(*fired), synapses, mean["synops"]]
    against_dense = [mean["macs_effective"], mean["macs_dense"], _share(work, dense)]
    others = [mean[key] for key in ("touched", "neuron_updates", "pool_ops")]
    energies = [f"{picojoules / samples / 1e3:.4g}" for picojoules in spent]
    return [*events, *against_dense, *others, *energies]


def _facts(report: OpsReport) -> list[str]:
    s, t, n = report.structure(), report.totals, report.samples
    fired, slots = report.activation
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
        f"{counters.mean_text(t['macs_if_repeated'], n)}",
    ]


def _compat(report: OpsReport) -> list[list[object]]:
    c, n = report.compat, report.samples
    return [
        ["NeuroBench Effective_ACs", counters.mean_text(c.neurobench_acs, n)],
        ["NeuroBench Effective_MACs", counters.mean_text(c.neurobench_macs, n)],
        ["NeuroBench Dense", counters.mean_text(c.neurobench_dense, n)],
        ["SpikingJelly SynOps (its MACs)", f"{counters.mean_text(c.spikingjelly_synops, n)} "
         f"({counters.mean_text(c.spikingjelly_macs, n)})"],
        ["SOPs of Shi et al. 2024", f"{float(c.upr_sops) / n:,.1f}"],
    ]  # fmt: skip


def _placement(report: OpsReport) -> Table:
    rows: list[list[object]] = []
    for estimate in report.memory:
        for layer, arrays in estimate.placement.items():
            stored = ", ".join(f"{a} {size:,} B {at}" for a, (at, size) in arrays.items() if size)
            if stored:
                rows.append([layer, estimate.memory, stored])
    return Table("Where arrays stand (bytes)", ["layer", "model", "what"], rows)


def _constants(preset: str) -> str:
    costs = energy.arithmetic(preset)
    parts = energy.UNITS[costs.unit]
    return f"{costs.mac / parts:g} pJ/MAC, {costs.ac / parts:g} pJ/AC"


def _levels(memory: str) -> str:
    hierarchy = energy.MEMORY[memory]
    named = [f"{name} {cost / 10:g}" for _, name, cost in hierarchy.levels]
    return ", ".join([*named, f"DRAM {hierarchy.dram / 10:g}"]) + " pJ per 32 bits"


def _energy(picojoules: float) -> str:
    return f"{picojoules / 1e6:.4g} µJ" if picojoules >= 1e6 else f"{picojoules / 1e3:.4g} nJ"


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.2f} %" if whole else ""


def paper_row(report: OpsReport, dense_synops: Fraction | None) -> list[str]:
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


def markdown(reports: Sequence[OpsReport]) -> str:
    """One row per network, in the papers' column order."""
    dense = Fraction(reports[0].totals["synops"], reports[0].samples) if reports else None
    lines = [["File", *PAPER_COLUMNS], ["---"] * (1 + len(PAPER_COLUMNS))]
    lines += [[report.path, *paper_row(report, dense)] for report in reports]
    table = [terminal.one_line("| " + " | ".join(cells) + " |") for cells in lines]
    return "\n".join([*table, "", CONVENTIONS_LINE + ". Energy is an estimate."])


def csv_text(reports: Sequence[OpsReport]) -> str:
    """One line per layer and network with exact sums; the last line of each is the total."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    head = ["file", "stage", "samples", "T", "layer", "op", "edge", "synapses"]
    writer.writerow([*head, *COUNTED])
    for report in reports:
        start = [report.path, report.stage, report.samples, report.time_steps]
        for layer in report.layers:
            edge = "" if layer.edge is None else layer.edge.kind
            counts = layer.totals(report.samples, report.time_steps).values()
            writer.writerow([*start, layer.name, layer.op, edge, layer.synapses, *counts])
        whole = [report.structure()["synapses"], *report.totals.values()]
        writer.writerow([*start, "total", "", "", *whole])
    return buffer.getvalue().rstrip("\n")
