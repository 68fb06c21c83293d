"""Operations, energy and other tools' numbers of one network on some samples, as one report.

Everything is an exact sum over the samples; dividing is left to whoever prints. Rates and
sparsities are relative to the *original* network, since a compact one looks busier otherwise.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from fractions import Fraction
from importlib.metadata import version
from typing import Any

from soul_deploy.analysis import dense_ops, other_tools, tables
from soul_deploy.base import brief
from soul_deploy.base.tables import Shown, Table
from soul_deploy.ir import Edge
from soul_deploy.runtime.ops import counters, energy

NO_OPS = dense_ops.DenseOps(0, 0)
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
    dense: dense_ops.DenseOps = NO_OPS
    synapses: int = 0
    synapses_dense: int = 0
    weights_nz: int = 0
    weights: int = 0

    def dense_totals(self, samples: int, time_steps: int) -> dict[str, int]:
        """Counts that follow from the graph and the number of executions."""
        repeated = time_steps if self.static else 1
        return {
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
    ops: tuple[energy.OpsEnergy, ...]
    memory: tuple[energy.MemoryEnergy, ...]

    @property
    def totals(self) -> dict[str, int]:
        """Counters, dense equivalents and repeated multiplications of the whole network."""
        summed = asdict(sum((layer.counts for layer in self.layers), counters.LayerCounts()))
        for layer in self.layers:
            for key, value in layer.dense_totals(self.samples, self.time_steps).items():
                summed[key] = summed.get(key, 0) + value
        return summed

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
        return tables.report_parts(self)

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON data of SCHEMA: exact sums over the samples."""
        return {
            "schema": SCHEMA,
            "artifact": {
                "path": self.path,
                "sha256": self.sha256,
                "weights_dtype": "float32",
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
        counts = asdict(layer.counts)
        return {
            "name": layer.name,
            "op": layer.op,
            "edge": None if layer.edge is None else layer.edge.kind,
            "static_reuse": layer.static,
            "counts": counts | layer.dense_totals(self.samples, self.time_steps),
            "synapses": layer.synapses,
            "synapses_dense": layer.synapses_dense,
            "neurons_live": layer.neurons,
            "neurons": layer.neurons_original,
            "activation_nonzero": layer.activation[0],
            "activation_total": layer.activation[1],
        }

    def _compat_json(self) -> dict[str, Any]:
        c = self.compat
        nonzero, every = map(sum, zip(*(layer.activation for layer in self.layers), strict=True))
        structure = self.structure()
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
