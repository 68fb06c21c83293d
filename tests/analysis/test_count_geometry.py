"""Counts of every small convolution against plain loops; the same networks exported and verified.

Where kernel, stride and padding leave all of a window beside the map, nothing arrives, and that is
a count like any other.
"""

import itertools
import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from naive import targets_of

from soul_deploy import ir
from soul_deploy.analysis.measure import count
from soul_deploy.analysis.synops import count_model
from soul_deploy.base import Array
from soul_deploy.cli.main import root
from soul_deploy.export.event.build import export_event
from soul_deploy.export.onnx.model import export_onnx
from soul_deploy.export.verify.event_run import verify_counts
from soul_deploy.export.verify.verify import verify
from soul_deploy.lowering.deploy import lower
from soul_deploy.lowering.fan_out import CountedLayer
from soul_deploy.model.file import save
from soul_deploy.model.model import Model, ModelInfo
from soul_deploy.nn.graph_module import Signal

LIF = ir.NeuronSpec()
STEPS = 3
BESIDE = ((1, 1, 5, 2, 1), (1, 1, 5, 2, 2))
"""Map, kernel, stride, padding, dilation: the only output lies beside the map."""

Axis = tuple[int, int, int, int, int]
AXES: tuple[Axis, ...] = tuple(
    (size, kernel, stride, padding, dilation)
    for size, kernel, stride, padding, dilation in itertools.product(
        (1, 2, 3, 4), (1, 2, 3, 4), (1, 2, 3, 4, 5), (0, 1, 2, 3), (1, 2)
    )
    if size + 2 * padding - dilation * (kernel - 1) >= 1
)


def geometries() -> Iterator[tuple[int, Axis, Axis]]:
    """(number, rows, columns): each axis geometry with itself, then with another one."""
    for number, axis in enumerate(AXES):
        yield number, axis, axis if number % 3 else AXES[(number * 7 + 3) % len(AXES)]
    for axis in BESIDE:
        yield 0, axis, axis


def network(rows: Axis, columns: Axis) -> ir.SpikingGraph:
    """A 1×1 convolution of the map, its neurons, the convolution b, its neurons."""
    sizes, kernel, stride, padding, dilation = zip(rows, columns, strict=True)
    return ir.SpikingGraph(
        (
            ir.Input("input", (), (1, *sizes)),
            ir.Convolution("a", ("input",), False, None, 1, 2, (1, 1)),
            ir.Population("sa", ("a",), LIF),
            ir.Convolution("b", ("sa",), True, None, 2, 3, kernel, stride, padding, dilation),
            ir.Population("sb", ("b",), LIF),
            ir.Readout("head", ("sb",), 2),
        ),
        STEPS,
    )


def network_beside(axis: Axis, stem: int = 1) -> ir.SpikingGraph:
    """The same with a convolution of stem×stem first, and a branch that does read its neurons."""
    nodes = list(network(axis, axis).nodes)
    return ir.SpikingGraph(
        (
            ir.Input("input", (), (1, stem, stem)),
            ir.Convolution("a", ("input",), False, None, 1, 2, (stem, stem)),
            *nodes[2:-1],
            ir.Convolution("c", ("sa",), False, None, 2, 3, (1, 1)),
            ir.Population("sc", ("c",), LIF),
            ir.Merge("merge", ("sb", "sc"), "add"),
            ir.Readout("head", ("merge",), 2),
        ),
        STEPS,
    )


def model_of(graph: ir.SpikingGraph, number: int) -> Model:
    """Both populations fire whatever arrives; a third of b's weights are 0, some of its neurons
    masked.
    """
    rng = np.random.default_rng(number)
    shape = (3, 2, *kernel_of(graph, "b"))
    state: dict[str, Array] = {
        "a.weight": np.full((2, 1, *kernel_of(graph, "a")), 1.5, np.float32),
        "b.weight": np.where(rng.random(shape) < 1 / 3, 0, 0.25).astype(np.float32),
        "b.bias": np.array([2.5, 0, -0.5], np.float32),
        "head.weight": rng.integers(-8, 9, (2, 3)).astype(np.float32) / 8,
        "head.bias": np.zeros(2, np.float32),
    }
    if "c" in graph.by_name:
        state["c.weight"] = np.full((3, 2, 1, 1), 2, np.float32)
    keep = rng.random(graph.shapes["sb"]) < 0.8
    keep[0, 0, 0] = True
    return Model(graph, state, neuron_masks={"sb": keep}, info=ModelInfo())


def kernel_of(graph: ir.SpikingGraph, name: str) -> ir.Pair:
    node = graph[name]
    assert isinstance(node, ir.Convolution)
    return node.kernel


def images_of(graph: ir.SpikingGraph, number: int) -> torch.Tensor:
    """Two images of multiples of 1/4 from 0 to 2, each with a value that makes its neuron fire."""
    rng = np.random.default_rng(number + 1)
    x = rng.integers(0, 9, (2, *graph.input.shape)) / 4
    x[:, 0, 0, 0] = 2
    return torch.from_numpy(x.astype(np.float32))


def synapses_of(model: Model) -> list[list[tuple[int, int, int]]]:
    """For each input neuron of b, channel-major: its nonzero synapses onto unmasked neurons."""
    node, live = model.graph["b"], model.neuron_masks["sb"]
    assert isinstance(node, ir.Convolution)
    in_shape, weight = model.graph.shapes["sa"], model.state["b.weight"]
    (channels, height, width), out_shape = in_shape, model.graph.shapes["b"]
    sides = node.stride, node.padding, node.dilation, 1, out_shape, (height, width)
    return [
        [
            (o, oy, ox)
            for o, oy, ox, w in targets_of(c, y, x, weight, *sides)
            if w != 0 and live[o, oy, ox]
        ]
        for c, y, x in itertools.product(range(channels), range(height), range(width))
    ]


def counted_naively(spikes: Array, synapses: list[list[tuple[int, int, int]]]) -> tuple[int, int]:
    """(SynOps, touched targets over steps and images) of spikes (T, B, inputs)."""
    synops, touched = 0, set()
    for step, image, neuron in np.argwhere(spikes):
        synops += len(synapses[neuron])
        touched |= {(step, image, *target) for target in synapses[neuron]}
    return synops, len(touched)


def test_every_geometry_is_counted_as_plain_loops_count() -> None:
    beside = 0
    for number, rows, columns in geometries():
        graph = network(rows, columns)
        model, x = model_of(graph, number), images_of(graph, number)
        spikes = model.module().record(x).spikes["sa"].flatten(2).numpy()
        synapses = synapses_of(model)
        layer = lower(model).counted[1]
        assert isinstance(layer, CountedLayer)
        assert layer.fanout.reshape(-1).tolist() == [len(targets) for targets in synapses]
        counts = count_model(model, x)["b"]
        synops, touched = counted_naively(spikes, synapses)
        assert spikes.any() and counts.events_in == spikes.sum(), (rows, columns)
        assert (counts.synops, counts.synops_events) == (synops, synops), (rows, columns)
        assert counts.touched == touched, (rows, columns)
        beside += not any(synapses)
    assert beside >= 2


def pooled_network(rows: Axis, columns: Axis, kind: int) -> ir.SpikingGraph:
    """`network` with an average pooling to the map: tiles, tiles that drop the last, adaptive."""
    nodes = list(network(rows, columns).nodes)
    height, width = rows[0], columns[0]
    pool: ir.Node = ir.AvgPool("pool", ("sa",), (2, 2), (2, 2))
    sides = (2 * height + kind % 2, 2 * width + kind % 2)
    if kind == 2:
        pool, sides = ir.AdaptiveAvgPool("pool", ("sa",), (height, width)), (height + 1, width + 2)
    b = replace(nodes[3], inputs=("pool",))
    return ir.SpikingGraph(
        (ir.Input("input", (), (1, *sides)), *nodes[1:3], pool, b, *nodes[4:]), STEPS
    )


def reached(model: Model) -> Array:
    """bool (inputs, outputs): where a spike of one neuron changes the current of b."""
    graph = model.graph
    ones = {n: a * 0 + 1 if n == "b.weight" else a * 0 for n, a in model.state.items()}
    ones["b.weight"] *= model.state["b.weight"] != 0
    module = Model(graph, ones).module().double()
    impulses = torch.eye(math.prod(graph.shapes["sa"]), dtype=torch.float64)
    signal = Signal(impulses.reshape(-1, *graph.shapes["sa"]), True)
    with torch.no_grad():
        current = module.evaluate({"sa": signal}, ["b"])["b"].tensor
    live = torch.from_numpy(model.neuron_masks["sb"])
    return np.asarray(((current != 0) & live).flatten(1))


def test_every_geometry_behind_an_average_is_counted_as_impulses_arrive() -> None:
    for number, rows, columns in geometries():
        for kind in range(3) if rows in BESIDE else (number % 3,):
            graph = pooled_network(rows, columns, kind)
            model, x = model_of(graph, number), images_of(graph, number)
            paths = reached(model)
            layer = lower(model).counted[1]
            assert isinstance(layer, CountedLayer)
            assert layer.fanout.reshape(-1).tolist() == paths.sum(axis=1).tolist()
            spikes = model.module().record(x).spikes["sa"].flatten(2).numpy()
            counts = count_model(model, x)["b"]
            arriving = spikes.astype(np.int64) @ paths.astype(np.int64)
            assert counts.synops == arriving.sum(), (rows, columns, kind)
            assert counts.touched == np.count_nonzero(arriving), (rows, columns, kind)


def assert_deployed(model: Model, x: torch.Tensor, folder: Path) -> None:
    """Exported twice, verified with counts, and reported."""
    for name, make in (("net.onnx", export_onnx), ("net.safetensors", export_event)):
        make(model, folder / name)
        found = verify(model, folder / name, x, allow_silent=True)
        assert found.passed, found.text()
        assert found.end_to_end is not None and found.end_to_end.flipped == 0
    check = verify_counts(model, x).to_dict()
    assert check["static"] and check["forced"] and check["end_to_end"] and not check["counter_diff"]
    report = count(model, x)
    (layer,) = (layer for layer in report.layers if layer.name == "b")
    assert layer.counts == count_model(lower(model).trimmed.model, x)["b"]
    assert layer.synapses <= layer.synapses_dense


@pytest.mark.parametrize("number", [*range(0, len(AXES), 23)])
def test_such_networks_export_verify_and_are_reported(number: int, tmp_path: Path) -> None:
    axis, other = AXES[number], AXES[(number * 7 + 3) % len(AXES)]
    graphs = network(axis, axis), network(axis, other), pooled_network(axis, other, number % 3)
    for graph in graphs:
        assert_deployed(model_of(graph, number), images_of(graph, number), tmp_path)


@pytest.mark.parametrize("axis", BESIDE)
def test_an_output_beside_the_map_is_exported_verified_and_reported(
    axis: Axis, tmp_path: Path
) -> None:
    graph = network_beside(axis)
    model = model_of(graph, 0)
    assert not any(synapses_of(model))
    assert_deployed(model, images_of(graph, 0), tmp_path)
    assert_deployed(replace(model, neuron_masks={}), images_of(graph, 0), tmp_path)


@pytest.mark.parametrize("axis", BESIDE)
def test_the_commands_count_an_output_beside_the_map(axis: Axis, tmp_path: Path) -> None:
    """The digits, 8×8, are convolved to 1×1 first."""
    graph = network_beside(axis, stem=8)
    model = replace(model_of(graph, 0), info=ModelInfo(provenance={"data": "digits"}))
    path = tmp_path / "net.safetensors"
    save(model, path)

    def run(*words: object) -> str:
        result = CliRunner().invoke(root, [str(word) for word in words])
        assert result.exit_code == 0, result.output
        return result.stdout

    for kind, suffix in (("event", "event.safetensors"), ("onnx", "onnx")):
        file = tmp_path / f"net.{suffix}"
        run("export", kind, path, "--output", file, "--samples", 8)
        run("verify", path, file, "--samples", 8)
    document = json.loads(run("energy", path, "--samples", 8, "--format", "json"))
    (layer,) = (layer for layer in document["layers"] if layer["name"] == "b")
    assert layer["counts"]["events_in"] > 0
    assert (layer["synapses"], layer["counts"]["synops"], layer["counts"]["touched"]) == (0, 0, 0)
