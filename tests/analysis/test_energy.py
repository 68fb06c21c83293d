"""Energy estimates, bounds, and `soul-deploy energy` on small files."""

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from chains import ChainSpec, build, chains, images, pruned, random_neuron_masks
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st

from soul_deploy.analysis.measure import Measured, count, original_of
from soul_deploy.analysis.synops import count_model
from soul_deploy.base.errors import UnknownNameError, UsageError, VerificationError
from soul_deploy.cli.main import root
from soul_deploy.ir import MaxPool
from soul_deploy.lowering.deploy import lower
from soul_deploy.model.file import save
from soul_deploy.model.model import ModelInfo, Normalization
from soul_deploy.prune.removal.apply import remove
from soul_deploy.prune.removal.planner import plan_removal
from soul_deploy.runtime.ops.counters import (
    CountLimits,
    LayerCounts,
    StepCounts,
    require_bounds,
    require_edge_values,
)
from soul_deploy.runtime.ops.energy import ARITHMETIC, Activity, Arrays, memory_energy, ops_energy

MEASURED = Measured(data={"name": "random"})


def activity(synops: int, macs: int = 0) -> dict[str, Activity]:
    return {"layer": Activity(LayerCounts(synops=synops, macs_effective=macs))}


@pytest.mark.parametrize(
    ("acs", "macs", "millijoules"),
    [
        (100_000_000, 140_000_000, 0.734),  # syops-counter's README
        (500_000_000, 2_750_000_000, 13.1),
        (0, 1_820_000_000, 8.372),
        (245_851_200, 5_312_300, 0.2457),  # Spikformer
        (8_500_000, 0, 0.00765),  # Shi et al. 2024
    ],
)
def test_published_sums(acs: int, macs: int, millijoules: float) -> None:
    found = ops_energy(activity(acs, macs))
    assert found.value == 9 * acs + 46 * macs
    assert found.picojoules / 1e9 == pytest.approx(millijoules, rel=1e-3)


def test_presets_are_integers_of_their_unit() -> None:
    values = {p: ops_energy(activity(10, 1), p) for p in ARITHMETIC}
    picojoules = {p: e.picojoules for p, e in values.items()}
    assert picojoules == {"fp32": 13.6, "int8": 0.53, "int8w-int32acc": 1.3}
    assert values["int8"].to_json() == {
        "model": "ops45_int8",
        "estimate": True,
        "unit": "0.01pJ",
        "value_int": 53,
        "constants": {"mac": 23, "ac": 3, "mul": 20},
        "terms": {"synops": 30, "macs": 23, "bias": 0, "neurons": 0, "graded": 0},
        "included": ["synops", "macs"],
    }


def test_fixed_point_networks_add_in_32_bits() -> None:
    """Horowitz, ISSCC 2014: 8 bits multiply for 0.2 pJ, 32 bits for 3.1, and add for 0.1."""
    counts = LayerCounts(synops=1000, neuron_updates=10, spikes_out=2, macs_effective=100)
    found = ops_energy({"a": Activity(counts, leaky=True)}, "int8w-int32acc", ("neurons",))
    assert found.picojoules == pytest.approx(1000 * 0.1 + 100 * 0.3 + 12 * 0.1 + 10 * 3.1)


def test_optional_terms_stand_apart_until_asked_for() -> None:
    counts = LayerCounts(
        synops_events=3, synops=5, neuron_updates=10, spikes_out=2, bias_adds=4, macs_effective=1
    )
    layers = {"a": Activity(counts, graded=True, leaky=True), "b": Activity(counts)}
    plain, full = ops_energy(layers), ops_energy(layers, "fp32", ("bias", "neurons", "graded"))
    assert plain.terms == full.terms
    assert plain.value == 2 * (9 * 5 + 46)
    assert plain.terms["bias"] == 2 * 9 * 4
    assert plain.terms["neurons"] == 2 * 9 * 12 + 37 * 10
    assert plain.terms["graded"] == 46 * 3 - 9 * 5
    assert full.value == sum(plain.terms.values())


def test_unknown_names() -> None:
    with pytest.raises(UnknownNameError, match="unknown energy preset 'fp8'; valid: fp32, int8"):
        ops_energy({}, "fp8")
    with pytest.raises(UsageError, match=r"'fp16' was dropped; valid: fp32, int8, .* 1\.5 pJ"):
        ops_energy({}, "fp16")
    with pytest.raises(UnknownNameError, match="unknown energy term 'leak'; valid: bias, neurons"):
        ops_energy({}, "fp32", ("leak",))
    with pytest.raises(UnknownNameError, match="unknown memory model 'hbm'; valid: eie45"):
        memory_energy({}, {}, "hbm")


KB, SIZES = 1024, {"events": 8, "pointers": 8, "membranes": 8, "biases": 8, "inputs": 8}


@pytest.mark.parametrize(
    ("size", "eie", "horowitz"),
    [(8 * KB, 50, 50), (8 * KB + 1, 50, 100), (33 * KB, 50, 500), (KB * KB + 1, 6400, 6500)],
)
def test_an_array_stands_in_the_smallest_level_that_holds_it(
    size: int, eie: int, horowitz: int
) -> None:
    layers = {"a": Activity(LayerCounts(synops_events=1, events_in=1))}
    arrays = {"a": Arrays({**SIZES, "synapses": size}, "explicit")}
    for memory, cost in (("eie45", eie), ("horowitz45", horowitz)):
        found = memory_energy(layers, arrays, memory)
        assert found.value == 2 * cost + (1 + 2 + 2) * 50  # event, pointers, membrane read, write
        assert found.counts["syn_read"] == 2
        assert found.placement["a"]["synapses"][1] == size
        assert found.to_json()["placement"]["a"]["synapses"]["bytes"] == size
    assert memory_energy(layers, {"a": replace(arrays["a"], rows="implicit")}).value == eie + 250


def test_analog_layers_without_and_with_reuse() -> None:
    layer = Activity(LayerCounts(macs_effective=100), analog=(10, 20, 30))
    arrays = {"a": Arrays({**SIZES, "synapses": 8}, "implicit")}
    found = memory_energy({"a": layer}, arrays)
    assert found.value == 4600 + (100 + 100 + 20) * 50
    assert found.lower == 4600 + 60 * 50


# Bounds.

LIMITS = CountLimits(slots=2, bound=1, synapses=10, targets=4, fan_out=6)
FINE = LayerCounts(4, 4, 12, 12, 8, 0, 8, 1, 8)


def test_counts_within_their_bounds() -> None:
    require_bounds("c", FINE, LIMITS)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"synops_events": 13}, "synops_events is 13, more than synops, 12"),
        ({"synops": 21}, "synops is 21, more than slots · bound · synapses, 20"),
        ({"events_in": 1}, "synops_events is 12, more than events · fan-out, 6"),
        ({"touched": 9}, "touched is 9, more than slots · live targets, 8"),
        ({"touched": 13}, "touched is 13, more than synops_events, 12"),
        ({"bias_adds": 9}, "bias_adds is 9, more than slots · live targets, 8"),
        ({"macs_effective": 21}, "macs_effective is 21, more than slots · synapses, 20"),
        ({"spikes_out": -1}, "0 is 0, more than spikes_out, -1"),
    ],
)
def test_counts_beyond_their_bounds(wrong: dict[str, int], message: str) -> None:
    with pytest.raises(VerificationError, match=f"c: {message}; the counts are wrong"):
        require_bounds("c", replace(FINE, **wrong), LIMITS)


@pytest.mark.parametrize("value", [-1.0, 2.0, 0.5])
def test_values_that_an_edge_cannot_hold(value: float) -> None:
    text = "c: values from .* arrived on an edge that holds whole numbers from 0 to 1"
    with pytest.raises(VerificationError, match=text):
        require_edge_values("c", np.array([0.0, value, 1.0]), 1)
    require_edge_values("c", np.array([0.0, value, 1.0]), None)
    require_edge_values("c", np.array([0.0, 1.0, 1.0]), 1)
    require_edge_values("c", np.array([0, 2, 1], np.uint8), 2)


def test_step_counts_add_up() -> None:
    a = StepCounts({"synops": np.array([[1, 2], [3, 4]])})
    b = StepCounts({"spikes_out": np.array([[1, 1]])})
    assert (a + b).total() == LayerCounts(synops=10, spikes_out=2)


@given(chains(), st.integers(0, 2**16))
@settings(max_examples=20)
def test_masks_never_add_work_and_reports_add_up(spec: ChainSpec, seed: int) -> None:
    """On the same spikes: ours ≤ without masks ≤ with zeros ≤ events · fan-out; report = counts."""
    model = pruned(build(spec), seed, constants=False)
    model = replace(model, neuron_masks=random_neuron_masks(model, seed))
    x = images(spec)
    report = count(model, x, original=original_of("m", model), measured=MEASURED)
    expected = count_model(lower(model).trimmed.model, x)
    assert {layer.name: layer.counts for layer in report.layers} == expected
    assert report.totals["synops"] == sum(c.synops for c in expected.values())
    others = report.compat
    assert others.upr_sops <= others.neurobench_acs + others.neurobench_macs
    assert report.structure()["synapses"] <= report.structure()["synapses_dense"]


def test_pooling_operations_by_hand() -> None:
    """Three spikes in a 3×3 map under 2×2 windows of stride 1: corner 1, edge 2, middle 4."""
    from soul_deploy.analysis.synops import counted_pooling_steps
    from soul_deploy.lowering.fan_out import CountedPooling

    x = torch.zeros(1, 1, 1, 3, 3)
    x[0, 0, 0, 0, 0] = x[0, 0, 0, 0, 1] = x[0, 0, 0, 1, 1] = 1
    layer = CountedPooling("pool", "s", (2, 2), (1, 1), (0, 0))
    assert counted_pooling_steps(layer, x).values["pool_ops"].tolist() == [[7]]


# The command.


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A dense, a masked and a compact network for the digits data set."""
    from chains import ConvSpec, PoolSpec, random_masks

    from soul_deploy.ir import NeuronSpec

    folder, neuron = tmp_path_factory.mktemp("energy"), NeuronSpec()
    pool = PoolSpec("max", (2, 2), (2, 2))
    blocks = (
        ConvSpec(6, (3, 3), (1, 1), (1, 1), (1, 1), 1, True, True, neuron, pool),
        ConvSpec(8, (3, 3), (1, 1), (1, 1), (1, 1), 1, True, True, neuron, None),
    )
    spec = ChainSpec((1, 8, 8), 3, 4, blocks, True, (), 10, 0, True, False, 7)
    dense = replace(
        build(spec), info=ModelInfo("dense", Normalization((0.5,), (0.5,)), (), {"data": "digits"})
    )
    masked = replace(
        dense, channel_masks=random_masks(dense, 3), info=replace(dense.info, stage="masked")
    )
    compact = remove(masked, plan_removal(masked))
    assert any(isinstance(node, MaxPool) for node in dense.graph.nodes)
    paths = (folder / "dense.safetensors", folder / "masked.safetensors", folder / "c.safetensors")
    for path, model in zip(paths, (dense, masked, compact), strict=True):
        save(model, path)
    return paths


def run(*arguments: object) -> Result:
    return CliRunner().invoke(root, ["energy", *map(str, arguments), "--samples", "6"])


def test_json_of_three_networks(models: tuple[Path, ...]) -> None:
    result = run(*models, "--format", "json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["schema"] == "soul-deploy/ops-report/2"
    dense, masked, compact = document["reports"]
    assert [r["artifact"]["graph_stage"] for r in (dense, masked, compact)] == [
        "dense",
        "masked",
        "compact",
    ]
    for report in (dense, masked, compact):
        assert report["check"] == {
            "verdict": "passed",
            "static": True,
            "forced": True,
            "end_to_end": True,
            "spike_mismatch": 0,
            "counter_diff": {},
            "silent_layers": [],
        }
        layers = report["layers"]
        assert report["totals"]["synops"] == sum(layer["counts"]["synops"] for layer in layers)
        assert report["totals"]["pool_ops"] > 0
        assert report["original"] == str(models[0])
        assert report["structure"]["neurons"] == dense["structure"]["neurons"]
        assert {e["model"] for e in report["energy"]} >= {"ops45_fp32", "mem45_eie"}
        assert all(entry["estimate"] is True for entry in report["energy"])
        fp32 = report["energy"][0]["value_int"]
        totals = report["totals"]
        assert fp32 == 46 * totals["macs_effective"] + 9 * totals["synops"]
        assert totals["macs_if_repeated"] == 3 * totals["macs_effective"]
    # On the same spikes, what is removed was not counted before either.
    assert compact["totals"]["synops"] <= masked["totals"]["synops"] < dense["totals"]["synops"]
    assert compact["totals"]["macs_effective"] == masked["totals"]["macs_effective"]
    for share in ("weights", "synapses_dense"):
        assert (
            compact["structure"][share] == masked["structure"][share] == dense["structure"][share]
        )
    shares = [r["compat"]["neurobench"]["ActivationSparsity"] for r in (masked, compact)]
    assert shares[0]["num"] / shares[0]["den"] <= shares[1]["num"] / shares[1]["den"]


def test_one_network_is_one_report(models: tuple[Path, ...]) -> None:
    document = json.loads(run(models[0], "--format", "json", "--no-check").stdout)
    assert document["schema"] == "soul-deploy/ops-report/2"
    assert document["check"] is None
    assert 0 <= document["dataset"].pop("correct") <= 6
    assert document["dataset"] == {"name": "digits", "split": "test", "arch": "", "n_samples": 6}


def test_text_csv_and_markdown(models: tuple[Path, ...]) -> None:
    text = run(models[0], "--rows", "explicit", "--preset", "fp32", "--memory", "eie45").stdout
    for part in (
        "4.6 pJ/MAC, 0.9 pJ/AC",
        "Energy, estimated",
        "on chip",
        "NeuroBench Effective_ACs",
        "first analog layer excluded (MACs listed",
        "static yes, forced yes, end_to_end yes, spike mismatches 0",
    ):
        assert part in " ".join(text.split())
    rows = list(csv.DictReader(io.StringIO(run(*models[:2], "--format", "csv").stdout)))
    totals = [row for row in rows if row["layer"] == "total"]
    assert len(totals) == 2
    for path, total in zip(models, totals, strict=False):
        parts = [int(r["synops"]) for r in rows if r["file"] == str(path) and r is not total]
        assert sum(parts) == int(total["synops"]) > 0
    table = run(*models, "--format", "markdown").stdout.splitlines()
    assert len(table[0].split("|")) == len(table[2].split("|")) == 17
    assert "| 1.00 |" in table[2]


def test_several_networks_begin_side_by_side(models: tuple[Path, ...]) -> None:
    reports = json.loads(run(*models, "--format", "json").stdout)["reports"]
    lines = run(*models).stdout.splitlines()
    assert lines[0] == "Side by side, per inference"
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines[4:20]]
    cells = {row[0]: row[1:] for row in rows if len(row) == 4}
    assert cells["stage"] == ["dense", "masked", "compact"] and cells["T"] == ["3", "3", "3"]
    assert cells["samples"] == ["6 of digits, test"] * 3
    synops = [report["totals"]["synops"] / 6 for report in reports]
    assert cells["SynOps"] == [
        f"{synops[0]:,.0f}",
        *(f"{value:,.0f} ({value / synops[0]:.1%})" for value in synops[1:]),
    ]
    weights = [report["structure"]["weights_nz"] for report in reports]
    assert cells["nonzero weights"][0] == f"{weights[0]:,}"
    assert cells["nonzero weights"][2] == f"{weights[2]:,} ({weights[2] / weights[0]:.1%})"
    sizes = [path.stat().st_size for path in models]
    assert cells["file, bytes"][1] == f"{sizes[1]:,} ({sizes[1] / sizes[0]:.1%})"
    correct = [report["dataset"]["correct"] for report in reports]
    assert cells["accuracy"] == [f"{count / 6:.2%}" for count in correct]
    picojoules = reports[0]["energy"][0]["value_int"] / 10 / 6 / 1e3
    assert cells["fp32, nJ (estimate)"][0] == f"{picojoules:.4g}"
    assert "Side by side" not in run(models[0]).stdout


def test_denominators_of_another_network(models: tuple[Path, ...]) -> None:
    small = json.loads(run(models[2], "--format", "json").stdout)["structure"]
    large = json.loads(run(models[2], "--original", models[0], "--format", "json").stdout)
    assert small["neurons_live"] == large["structure"]["neurons_live"]
    assert small["neurons"] < large["structure"]["neurons"]


def test_what_is_refused(models: tuple[Path, ...], tmp_path: Path) -> None:
    result = run(models[0], "--dataset_name", "mnist5k")
    assert result.exit_code == 2
    assert "has images of (1, 28, 28), this model takes (1, 8, 8)" in result.output
    result = run(tmp_path / "none.safetensors")
    assert result.exit_code == 2
    result = run(models[2], models[0])
    assert result.exit_code == 2 and "Give it first, or with --original" in result.output
    assert run(models[0], "--preset", "fp8").exit_code == 2
    result = run(models[0], "--preset", "FP16")
    assert result.exit_code == 2 and "0.4 pJ per SynOp" in " ".join(result.output.split())
    with pytest.raises(UsageError, match="has no population '2'; firing rates and sparsities need"):
        from soul_deploy.model.file import load

        model = load(models[0])
        original = replace(original_of("other", model), neurons={})
        count(model, torch.zeros(1, 1, 8, 8), original=original, measured=MEASURED)
