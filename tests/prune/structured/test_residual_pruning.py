"""Pruning of residual networks: units, their scores, coefficients through merges, the command."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from blocks import LIF, conv, model_of, ms, sew
from click.testing import CliRunner, Result

from soul_deploy import ir
from soul_deploy.base.errors import UnknownNameError
from soul_deploy.cli.main import root
from soul_deploy.data.datasets import READERS, Data, load_data
from soul_deploy.data.sampler import share_of
from soul_deploy.distributed import Group
from soul_deploy.model.file import load
from soul_deploy.model.model import ModelInfo, from_module
from soul_deploy.nn.graph_module import GraphModule
from soul_deploy.prune.channel_groups import Residual, reaches_readout
from soul_deploy.prune.removal.apply import parameters, remove
from soul_deploy.prune.removal.planner import plan_removal
from soul_deploy.prune.structured.config import PruneSchedule, ScaConfig
from soul_deploy.prune.structured.masks import open_masks
from soul_deploy.prune.structured.sca import ChannelPruning
from soul_deploy.prune.structured.scores import ChannelStatistics
from soul_deploy.prune.structured.selection import PruningUnit, pruning_units, voters
from soul_deploy.prune.unstructured.loss import CoefficientRule, coefficients
from soul_deploy.prune.unstructured.masks import maskable_neurons
from soul_deploy.training.objective import Objective
from soul_deploy.training.trainer import TrainConfig, backward
from soul_deploy.zoo.registry import NetworkOptions, create

DIGITS = (1, 8, 8)


def zoo_graph(name: str) -> ir.SpikingGraph:
    return create(name, NetworkOptions((3, 32, 32), 10, LIF, 4, stem="small"))[1]


def test_internal_units_are_the_populations_inside_blocks() -> None:
    for graph in (sew("add", "add"), ms()):
        inner = list(pruning_units(graph, "internal"))
        ends = ["b0.sn1", "b1.sn1"] if "s0" in graph.by_name else ["b0.sn2", "b1.sn2"]
        assert inner == [PruningUnit(name, 5, (name,), (name,)) for name in ends]


def test_a_coupled_stream_is_one_unit_in_its_place() -> None:
    members = ("s0", "b0.sn2", "b1.sn2")
    first, *rest = pruning_units(sew("add", "add"), "coupled")
    assert first == PruningUnit("b0", 4, members, members)
    assert [unit.name for unit in rest] == ["b0.sn1", "b1.sn1"]


def test_a_stream_of_currents_is_masked_by_projection_and_scored_by_its_readers() -> None:
    unit = pruning_units(ms(), "coupled")[0]
    assert unit.masks == ("stem", "b0.conv2", "b1.conv2")
    assert unit.populations == ("b0.sn1", "b1.sn1", "sn")


def test_scatter_units_are_branches_of_additions() -> None:
    names = [unit.name for unit in pruning_units(sew("add", "add"), "scatter")]
    assert names == ["b0.sn1", "b0.sn2", "b1.sn1", "b1.sn2"]
    assert [u.name for u in pruning_units(sew("and"), "scatter")] == ["b0.sn1"]
    assert [u.name for u in pruning_units(sew("iand"), "scatter")] == ["b0.sn1", "b0.sn2"]


def test_resnet_units_are_counted() -> None:
    graph = zoo_graph("sewresnet18")
    counts = {how: len(pruning_units(graph, how)) for how in ("internal", "coupled", "scatter")}
    assert counts == {"internal": 8, "coupled": 8 + 4, "scatter": 8 + 8 + 3}
    chosen = pruning_units(graph, "coupled", ["layer2.1.sn2"])
    assert [unit.name for unit in chosen] == ["layer2.0.merge"]


@pytest.mark.parametrize(
    ("function", "closed", "reached"),
    [
        ("add", ["b0.conv1"], True),
        ("iand", ["b0.conv2"], True),
        ("and", ["b0.conv1"], False),
        ("add", ["stem"], False),
        ("iand", ["s0"], False),
        ("add", [], True),
    ],
)
def test_what_goes_around_a_block(
    function: ir.MergeFunction, closed: list[str], reached: bool
) -> None:
    assert reaches_readout(sew(function), closed) == reached


def test_authors_coefficients_add_the_fan_out_of_all_readers_of_a_stream() -> None:
    """sn1 feeds two blocks of stage 1 (64·9 each), stage 2 and its projection (128·10 / 4)."""
    costs = coefficients(zoo_graph("sewresnet18"), "authors").neurons
    assert costs["sn1"] == 2 * 576 + 288 + 32
    assert costs["layer1.0.sn2"] == 576 + 288 + 32 and costs["layer1.1.sn2"] == 288 + 32
    assert costs["layer2.0.sn2"] == costs["layer2.0.downsample_sn"] == 1152 + 576 + 64
    assert costs["layer2.0.sn1"] == 1152 and costs["layer4.1.sn2"] == 0


def test_exact_coefficients_count_synapses_through_merges() -> None:
    """4×4 maps, 3×3 padded: 100 of 16·9 taps are inside; 5 channels a reader, per 16 positions."""
    costs = coefficients(sew("add", "add"), "exact").neurons
    per_reader = 100 * 5 / 16
    assert costs["s0"] == 2 * per_reader and costs["b0.sn2"] == per_reader
    assert costs["b1.sn2"] == 0 and costs["b0.sn1"] == 100 * 4 / 16
    current = coefficients(ms(), "exact").neurons
    assert current["b0.sn1"] == per_reader and current["sn"] == 0


@pytest.mark.parametrize("rule", ["authors", "exact"])
def test_a_projection_that_a_population_reaches_on_two_ways_costs_it_once(
    rule: CoefficientRule,
) -> None:
    """The stream goes around a pooling and meets it again."""
    nodes = (
        ir.Input("input", (), (1, 4, 4)),
        conv("stem", "input", 1, 2),
        ir.Population("s", ("stem",), LIF),
        ir.MaxPool("pool", ("s",), (3, 3), (1, 1), (1, 1)),
        ir.Merge("both", ("s", "pool"), "add"),
        conv("c", "both", 2, 5),
        ir.Population("q", ("c",), LIF),
        ir.Readout("head", ("q",), 5),
    )
    costs = coefficients(ir.SpikingGraph(nodes, 2), rule).neurons
    assert costs["s"] == (5 * 9 if rule == "authors" else 5 * 100 / 16) and costs["q"] == 0


def test_neurons_of_the_last_block_can_be_masked_but_not_the_output() -> None:
    assert maskable_neurons(sew("add")) == ("s0", "b0.sn1", "b0.sn2")
    assert maskable_neurons(ms()) == ("b0.sn1", "b0.sn2", "b1.sn2")


@pytest.fixture(scope="module")
def digits() -> Data:
    whole = load_data("digits", Path("."))
    few = torch.arange(60)
    parts = {name: getattr(whole, name).select(few) for name in ("train", "validation", "test")}
    return replace(whole, **parts)


def fresh(graph: ir.SpikingGraph) -> GraphModule:
    return model_of(graph, 1).module()


@pytest.mark.parametrize("how", ["internal", "coupled", "scatter"])
@pytest.mark.parametrize("graph", [sew("add", "add", shape=DIGITS, classes=10),
                                   ms(shape=DIGITS, classes=10)])  # fmt: skip
def test_the_loop_masks_whole_units(graph: ir.SpikingGraph, how: Residual, digits: Data) -> None:
    module = fresh(graph)
    names = tuple(node.name for node in graph.populations)
    sca = ScaConfig(PruneSchedule(0.4, 0.1, epochs=3, finetune_epochs=1), residual=how)
    steps = list(ChannelPruning(module, digits, TrainConfig(batch_size=20), sca, names).run())
    plan = steps[1].plan
    assert plan is not None and plan.kept == 6 * plan.total // 10
    units = {unit.name: unit for unit in pruning_units(graph, how)}
    assert set(module.channel_masks) == {mask for unit in units.values() for mask in unit.masks}
    for layer in plan.layers:
        for mask in units[layer.name].masks:
            keep = module.channel_masks[mask].keep
            assert keep.bool().tolist() == layer.keep.tolist(), mask
    masked = from_module(module.eval(), ModelInfo())
    removal = plan_removal(masked, residual="scatter" if how == "scatter" else "coupled")
    compact = remove(masked, removal)
    assert compact.channel_masks == {}
    images = digits.normalise(digits.test.images)
    torch.testing.assert_close(compact.module()(images), module(images), rtol=0, atol=1e-5)
    scattered = any(isinstance(node, ir.Scatter) for node in compact.graph.nodes)
    assert scattered == (how == "scatter" and "s0" in graph.by_name)


def test_a_stream_is_scored_by_the_mean_and_regrown_by_the_mean_gradient(digits: Data) -> None:
    """One batch, scored before its step: the plan's scores are those of its members, averaged."""
    graph = sew("add", "add", shape=DIGITS, classes=10)
    names = tuple(node.name for node in graph.populations)
    single, coupled = fresh(graph), fresh(graph)
    recipe = TrainConfig(batch_size=100, learning_rate=1e-3)
    apart = ScaConfig(PruneSchedule(0.4, 0.1, epochs=1))
    together = replace(apart, residual="coupled")
    statistics = ChannelStatistics(names, "spike_membrane", "epoch", "epoch")

    open_masks(single, names)
    share = share_of(digits.train, Group())
    backward(single.train(), digits, share, statistics, Objective("ce"))
    (step,) = ChannelPruning(coupled, digits, recipe, together, names).run()
    assert step.plan is not None
    stream = next(layer for layer in step.plan.layers if layer.name == "b0")
    members = ("s0", "b0.sn2", "b1.sn2")
    for found, by_member in (
        (stream.score, statistics.scores()),
        (stream.gradient, statistics.gradients()),
    ):
        expected = np.mean([by_member[name] for name in members], axis=0)
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_wrong_names_of_residual_handling() -> None:
    with pytest.raises(UnknownNameError, match="unknown residual 'all'; valid: internal"):
        ScaConfig(residual="all")  # type: ignore[arg-type]


@pytest.fixture
def few_digits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The data set digits with 60 images in each part; files go to a folder of the test's own."""
    whole = load_data("digits", Path("."))
    few = {n: getattr(whole, n).select(torch.arange(60)) for n in ("train", "validation", "test")}
    monkeypatch.setitem(READERS, "digits", lambda *_: replace(whole, **few))
    monkeypatch.chdir(tmp_path)


def call(*words: str) -> Result:
    return CliRunner().invoke(root, list(words))


TINY = ["-dataset", "digits", "-T", "1", "-b", "60", "--prune_epochs", "1"]


@pytest.mark.parametrize(
    ("network", "how"),
    [("SEWResNet18", "coupled"), ("sewresnet18", "scatter"), ("msresnet18", "Coupled")],
)
@pytest.mark.usefixtures("few_digits")
def test_the_command_prunes_residual_networks(network: str, how: str) -> None:
    words = ["-m", network, *TINY, "-epochs", "1", "--residual", how, "--prune_ratio", "0.5"]
    result = call("prune", "structured", *words, "--format", "json")
    assert result.exit_code == 0, result.output
    files = json.loads(result.stdout)["files"]
    masked, compact = (
        load(Path(files[what]["path"])) for what in ("Masked model", "Compact model")
    )
    before, after = parameters(masked.state), parameters(compact.state)
    assert after < (0.5 if how.lower() == "coupled" else 0.75) * before
    scattered = [node for node in compact.graph.nodes if isinstance(node, ir.Scatter)]
    assert bool(scattered) == (how == "scatter")
    assert compact.info.provenance["sca"]["residual"] == how.lower()
    again = call("prune", "compact", files["Masked model"]["path"], "--residual", how, "--dry_run")
    assert again.exit_code == 0 and f"{before:,} → {after:,}" in again.output


@pytest.mark.usefixtures("few_digits")
@pytest.mark.parametrize("network", ["sewresnet18", "msresnet18"])
def test_weights_and_neurons_of_residual_networks_are_pruned(network: str) -> None:
    words = ["-m", network, *TINY[:-2], "-epochs", "1", "--penalty_lmbda", "1e-7"]
    result = call("prune", "unstructured", *words, "--residual", "scatter")
    assert result.exit_code == 0, result.output
    masked, compact = (
        load(Path(f"saved_models/pruned_{network}_lif_digits_T1_2025{end}.safetensors"))
        for end in ("", "_compact")
    )
    first = masked.graph.populations[0].name
    assert set(masked.neuron_masks) == set(maskable_neurons(masked.graph)) - {first}
    assert parameters(compact.state) < 0.9 * parameters(masked.state)


@pytest.mark.usefixtures("few_digits")
def test_the_command_builds_the_variants() -> None:
    words = ["-m", "sewresnet50", "-dataset", "digits", "-T", "1", "-epochs", "1", "-b", "60"]
    variant = ["--connect_function", "IAND", "--groups", "2", "--base_width", "8"]
    result = call("train", *words, *variant, "--stem", "Small", "--format", "json")
    assert result.exit_code == 0, result.output
    path = json.loads(result.stdout)["model"]
    graph = load(Path(path)).graph
    grouped = graph["layer1.0.conv2.0"]
    stem = graph["conv1.0"]
    assert isinstance(grouped, ir.Convolution) and (grouped.groups, grouped.channels) == (2, 16)
    assert isinstance(stem, ir.Convolution) and stem.kernel == (3, 3)
    assert graph["layer1.0.merge"].function == "iand"  # type: ignore[attr-defined]
    made = load(Path(path)).info.provenance
    assert (made["connect_function"], made["stem"], made["width_per_group"]) == ("iand", "small", 8)
    loaded = ["prune", "structured", "--mode", "load", "--model_path", path, "-dataset", "digits"]
    refused = call(*loaded, "--connect_function", "ADD")
    assert refused.exit_code == 2
    assert "--connect_function add given, but" in refused.output and "iand" in refused.output
    assert call(*loaded, "--connect_function", "iand", "--dry_run").exit_code == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--connect_function", "or"], "unknown connect_function 'or'; valid: add, and, iand"),
        (["--stem", "tiny"], "unknown stem 'tiny'; valid: soul, small"),
        (["--groups", "0"], "groups 0 must be at least 1"),
        (["--groups", "2"], "sewresnet18 has basic blocks: groups 2 and width_per_group 64"),
        (["--base_width", "32"], "width_per_group 32 are for sewresnet50"),
        (["-m", "msresnet34", "--groups", "2"], "msresnet34 has basic blocks"),
        (["--residual", "all"], "unknown residual 'all'; valid: internal, coupled, scatter"),
        (["-nodes", "0 2"], "sn1, layer1.0.sn2 cannot be pruned by channel"),
        (
            ["-nodes", "0 2"],
            "Valid here, with --residual internal: 1 (layer1.0.sn1), 3 (layer1.1.sn1), 5 (layer2",
        ),
        (["-nodes", "0", "--residual", "scatter"], "2 (layer1.0.sn2), 3 (layer1.1.sn1), 4 (layer"),
        (["-nodes", "99"], "has 20 spiking layers, 0 to 19; valid are 1, 3, 5, 8, 10, 13, 15, 18"),
    ],
)
def test_the_command_refuses_what_it_does_not_know(words: list[str], message: str) -> None:
    result = call("prune", "structured", "-m", "sewresnet18", "-dataset", "digits", *words)
    assert result.exit_code == 2, result.output
    assert message in " ".join(result.output.split())


@pytest.mark.parametrize("residual", ["internal", "coupled", "scatter"])
def test_classes_are_no_channels_to_prune(residual: Residual) -> None:
    """A readout without weights counts its source's spikes: each channel is a class's vote."""

    def graph(*between: ir.Node, linear: bool) -> ir.SpikingGraph:
        last = between[-1].name if between else "sb"
        return ir.SpikingGraph(
            (
                ir.Input("input", (), (2, 4, 4)),
                ir.Convolution("a", ("input",), False, None, 2, 4, (3, 3), padding=(1, 1)),
                ir.Population("sa", ("a",), ir.NeuronSpec()),
                ir.Convolution("b", ("sa",), False, None, 4, 4, (3, 3), padding=(1, 1)),
                ir.Population("sb", ("b",), ir.NeuronSpec()),
                *between,
                ir.Readout(
                    "head", (last,), 4 if linear else 2, linear=linear, bias=linear, votes=2
                ),
            ),
            2,
        )

    def named(graph: ir.SpikingGraph) -> list[str]:
        return [unit.name for unit in pruning_units(graph, residual)]

    pool, merge = (
        ir.MaxPool("pool", ("sb",), (2, 2), (2, 2)),
        ir.Merge("sum", ("sb", "sa"), function="add"),
    )
    assert voters(graph(pool, linear=True)) == set()
    assert named(graph(pool, linear=True)) == ["sa", "sb"]
    assert voters(graph(pool, linear=False)) == {"sb"}
    assert named(graph(linear=False)) == named(graph(pool, linear=False)) == ["sa"]
    assert voters(graph(merge, linear=False)) == {"sa", "sb"}
    assert named(graph(merge, linear=False)) == []
