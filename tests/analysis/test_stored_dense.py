"""Stored synapses are never more than the dense ones: every report, table and file."""

import contextlib
import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from chains import ChainSpec, ConvSpec, PoolSpec, build, chains, images, pruned, random_neuron_masks
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from residual import ResidualSpec, masked, residual_images, residual_model, residuals

from soul_deploy import ir
from soul_deploy.analysis.connectivity import Connectivity, dense_synapses, measure_connectivity
from soul_deploy.analysis.measure import Measured, count, original_of
from soul_deploy.analysis.report import OpsReport
from soul_deploy.base import Array
from soul_deploy.base.errors import RemovalError, UsageError
from soul_deploy.cli.main import root
from soul_deploy.export.event.build import build_event_network
from soul_deploy.export.event.storage_format import CHOICES, Choice
from soul_deploy.lowering.fold_batch_norm import fold
from soul_deploy.model.file import save
from soul_deploy.model.model import Model, ModelInfo, arrays_of
from soul_deploy.nn.graph_module import GraphModule
from soul_deploy.prune.removal.apply import remove
from soul_deploy.prune.removal.planner import plan_removal
from soul_deploy.runtime.format.network import ConvSynapses as EventConvolution
from soul_deploy.runtime.format.network import DenseRows
from soul_deploy.runtime.format.tap_tables import tap_incidence, taps_met
from soul_deploy.runtime.io.inspect import describe_event

LIF = ir.NeuronSpec()
AVERAGED = ChainSpec(
    input_shape=(1, 3, 3),
    time_steps=1,
    batch=1,
    convolutions=(
        ConvSpec(
            1, (1, 1), (1, 1), (0, 0), (1, 1), 1, bias=False, norm=False,
            neuron=ir.NeuronSpec(tau=2.0, decay_input=False), pool=PoolSpec("adaptive", (1, 1)),
        ),
    ),
    flatten=False,
    linears=(),
    classes=2,
    votes=0,
    head_bias=False,
    dyadic=False,
    seed=0,
)  # fmt: skip
"""A head that reads nine neurons through an average: the draw that was counted as 9 + 2."""


def report_of(model: Model, x: torch.Tensor, original: Model | None = None) -> OpsReport:
    before = original_of("original", model if original is None else original)
    return count(model, x, original=before, measured=Measured(data={"name": "random"}))


def connectivity_of(model: Model, dense: dict[str, int]) -> Connectivity:
    folded = fold(model.graph, model.state, model.channel_masks)
    weights = {node.name: folded[node.name].weight for node in model.graph.projections}
    return measure_connectivity(model.graph, weights, model.neuron_masks, dense)


def assert_bounded(report: OpsReport, dense: dict[str, int]) -> None:
    for layer in report.layers:
        assert layer.synapses <= layer.synapses_dense == dense.get(layer.name, 0), layer.name
        assert layer.weights_nz <= layer.weights, layer.name
    structure = report.structure()
    assert structure["synapses"] <= structure["synapses_dense"] == sum(dense.values())


def assert_never_more(original: Model, x: torch.Tensor, choice: Choice) -> None:
    """Of a network, of what is left of it, of its event networks and of what inspect says."""
    dense = dense_synapses(original.graph, head=True)
    found = [original]
    with contextlib.suppress(RemovalError):  # one that would lose a whole layer
        found.append(remove(original, plan_removal(original, residual="scatter")))
    for model in found:
        assert_bounded(report_of(model, x, original), dense)
        connectivity = connectivity_of(model, dense_synapses(original.graph))
        assert connectivity.share <= 1
        assert all(layer.live <= layer.dense for layer in connectivity.layers)
        rows = describe_event(build_event_network(model, representation=choice))["layers"]
        stored = {row["projection"] or row["layer"]: row["synapses"] for row in rows}
        assert all(stored[name] <= count for name, count in dense.items()), (stored, dense)


@settings(max_examples=40)
@given(
    st.one_of(chains(), residuals()), st.integers(0, 2**16), st.booleans(), st.sampled_from(CHOICES)
)
def test_stored_is_never_more_than_dense(
    spec: ChainSpec | ResidualSpec, seed: int, neurons: bool, choice: Choice
) -> None:
    if isinstance(spec, ResidualSpec):
        assert_never_more(
            masked(residual_model(spec), seed, neurons=neurons), residual_images(spec), choice
        )
        return
    model = pruned(build(spec), seed)
    if neurons:
        model = replace(model, neuron_masks=random_neuron_masks(model, seed))
    assert_never_more(model, images(spec), choice)


def test_a_head_behind_an_average_has_a_synapse_from_each_neuron_to_each_class() -> None:
    model, x = build(AVERAGED), images(AVERAGED)
    report = report_of(model, x)
    assert [(layer.name, layer.synapses, layer.synapses_dense) for layer in report.layers] == [
        ("0", 9, 9),
        ("3", 18, 18),
    ]
    pruned_model = pruned(model, 1, constants=False)
    whole = replace(pruned_model, neuron_masks=random_neuron_masks(pruned_model, 1))
    assert_never_more(whole, x, "auto")


def head_behind(*between: ir.Node, linear: bool = True) -> int:
    """Dense synapses of a readout of 2 classes behind 4 channels of 4×4, and those nodes."""
    source = between[-1].name if between else "s"
    graph = ir.SpikingGraph(
        (
            ir.Input("input", (), (1, 4, 4)),
            ir.Convolution("a", ("input",), False, None, 1, 4, (1, 1)),
            ir.Population("s", ("a",), LIF),
            *between,
            ir.Readout("head", (source,), 2, linear, False, 1 if linear else 2),
        ),
        1,
    )
    found = dense_synapses(graph, head=True)
    assert found["a"] == 4 * 16 and dense_synapses(graph) == {"a": 64}
    state = arrays_of(GraphModule(graph).state_dict())
    for array in state.values():
        array[...] = 1
    head = report_of(Model(graph, state), torch.ones(1, 1, 4, 4)).layers[-1]
    assert head.name == "head" and head.synapses == head.synapses_dense == found["head"]
    return found["head"]


def test_what_dense_means_for_a_head() -> None:
    """It weighs sums over space, or each neuron behind an average; votes weigh nothing else."""
    assert head_behind() == 2 * 4
    assert head_behind(ir.MaxPool("p", ("s",), (2, 2), (2, 2))) == 2 * 4
    assert head_behind(ir.AdaptiveAvgPool("p", ("s",), (1, 1))) == 2 * 4 * 16
    assert head_behind(ir.AvgPool("p", ("s",), (2, 2), (2, 2))) == 2 * 4 * 16
    assert head_behind(ir.AvgPool("p", ("s",), (3, 3), (3, 3))) == 2 * 4 * 9  # the rest is dropped
    flat = ir.AdaptiveAvgPool("p", ("s",), (2, 2)), ir.Flatten("flat", ("p",))
    assert head_behind(*flat) == 2 * 4 * 16
    assert head_behind(linear=False) == 0
    assert head_behind(ir.AdaptiveAvgPool("p", ("s",), (1, 1)), linear=False) == 4 * 16


def test_average_pooling_is_composed_into_the_dense_synapses_of_a_projection() -> None:
    """A linear layer behind a mean to 2×2 of 4×4 reads sixteen neurons a channel, not four."""
    nodes = (
        ir.Input("input", (), (1, 4, 4)),
        ir.Convolution("a", ("input",), False, None, 1, 3, (1, 1)),
        ir.Population("s", ("a",), LIF),
        ir.AvgPool("p", ("s",), (2, 2), (2, 2)),
        ir.Flatten("flat", ("p",)),
        ir.Linear("b", ("flat",), False, None, 12, 5),
        ir.Population("q", ("b",), LIF),
        ir.Readout("head", ("q",), 2),
    )
    assert dense_synapses(ir.SpikingGraph(nodes, 1), head=True) == {"a": 48, "b": 240, "head": 10}


@pytest.mark.parametrize("choice", ["implicit", "explicit"])
def test_weights_of_a_kernel_that_no_neuron_lies_under_are_no_synapses(choice: Choice) -> None:
    """Of 3×3 weights with padding 1 on a 1×1 map, only the middle one leads anywhere."""
    graph = ir.SpikingGraph(
        (
            ir.Input("input", (), (2, 1, 1)),
            ir.Convolution("a", ("input",), False, None, 2, 3, (3, 3), (1, 1), (1, 1)),
            ir.Population("s", ("a",), LIF),
            ir.Readout("head", ("s",), 2),
        ),
        1,
    )
    state: dict[str, Array] = {"a.weight": np.ones((3, 2, 3, 3), np.float32)}
    state |= {"head.weight": np.ones((2, 3), np.float32), "head.bias": np.zeros(2, np.float32)}
    found = describe_event(build_event_network(Model(graph, state), representation=choice))
    assert [row["synapses"] for row in found["layers"]] == [6, 6]
    assert found["synapses"] == 12


@given(
    *(st.integers(1, 5) for _ in range(3)), st.integers(0, 5), st.integers(1, 3), st.integers(1, 5)
)
def test_the_taps_that_are_met_are_those_of_the_tables(
    size: int, kernel: int, stride: int, padding: int, dilation: int, reach: int
) -> None:
    out = (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
    if out < 1:
        return
    rows = DenseRows(np.ones((1, kernel, 1, 1), np.float32))
    sides = (kernel, 1), (stride, 1), (padding, 0), (dilation, 1)
    made = EventConvolution((1, size, 1), (1, out, 1), rows, None, *sides, 1, (min(reach, size), 1))
    assert taps_met(made, 0).tolist() == tap_incidence(made, 0).any(axis=0).tolist()
    assert taps_met(made, 1).tolist() == [True]


def digits_network(folder: Path) -> Path:
    """As AVERAGED, on the digits."""
    graph = ir.SpikingGraph(
        (
            ir.Input("input", (), (1, 8, 8)),
            ir.Convolution("a", ("input",), False, None, 1, 2, (1, 1)),
            ir.Population("s", ("a",), LIF),
            ir.AdaptiveAvgPool("p", ("s",), (1, 1)),
            ir.Readout("head", ("p",), 10, bias=False),
        ),
        2,
    )
    state: dict[str, Array] = {
        "a.weight": np.full((2, 1, 1, 1), 3, np.float32),
        "head.weight": np.ones((10, 2), np.float32),
    }
    path = folder / "net.safetensors"
    save(Model(graph, state, info=ModelInfo(provenance={"data": "digits"})), path)
    return path


def energy(path: Path, output_format: str) -> str:
    words = ["energy", str(path), "--samples", "5", "--format", output_format]
    result = CliRunner().invoke(root, words)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_command_prints_no_more_than_all(tmp_path: Path) -> None:
    path = digits_network(tmp_path)
    document = json.loads(energy(path, "json"))
    assert [(layer["synapses"], layer["synapses_dense"]) for layer in document["layers"]] == [
        (128, 128),
        (1280, 1280),
    ]
    assert "1,408 of 1,408 synapses (100.00 %)" in energy(path, "text")
    head, _, row = energy(path, "markdown").splitlines()[:3]
    cells = dict(zip(head.split(" | "), row.split(" | "), strict=True))
    assert cells["Conn. %"] == "100.00"
    lines = list(csv.DictReader(io.StringIO(energy(path, "csv"))))
    assert [int(line["synapses"]) for line in lines] == [128, 1280, 1408]


def test_an_original_with_fewer_synapses_is_refused() -> None:
    """Other kernels in layers of the same name and size."""
    x = torch.ones(1, 1, 4, 4)

    def model(kernel: int, padding: int) -> Model:
        sides = (kernel, kernel), (1, 1), (padding, padding)
        graph = ir.SpikingGraph(
            (
                ir.Input("input", (), (1, 4, 4)),
                ir.Convolution("a", ("input",), False, None, 1, 2, *sides),
                ir.Population("s", ("a",), LIF),
                ir.Readout("head", ("s",), 2),
            ),
            1,
        )
        state = arrays_of(GraphModule(graph).state_dict())
        return Model(graph, {name: np.ones_like(array) for name, array in state.items()})

    report_of(model(1, 0), x, model(3, 1))
    with pytest.raises(UsageError, match="has 2 weights in a, and this network 18; firing rates"):
        report_of(model(3, 1), x, model(1, 0))
    other = replace(original_of("other", model(1, 0)), synapses={})
    with pytest.raises(UsageError, match="has no projection 'a'; firing rates and sparsities need"):
        count(model(1, 0), x, original=other)


def test_a_layer_without_synapses_has_no_share() -> None:
    """Its only output lies beside the map."""
    graph = ir.SpikingGraph(
        (
            ir.Input("input", (), (1, 1, 1)),
            ir.Convolution("a", ("input",), True, None, 1, 2, (1, 1), (5, 5), (2, 2)),
            ir.Population("s", ("a",), LIF),
            ir.Readout("head", ("s",), 2),
        ),
        1,
    )
    found = measure_connectivity(graph, {"a": np.ones((2, 1, 1, 1), np.float32)}, {})
    assert (found.live, found.dense, found.share) == (0, 0, 1)
    assert "%" not in found.text()
