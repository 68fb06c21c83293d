"""Small files that ask for much: refused before it is taken, in bounded time and memory.

Every file here is signed, so that nothing but its size is wrong with it.
"""

import itertools
import json
import math
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bounded import bounded
from click.testing import CliRunner

from soul_deploy.base import Array
from soul_deploy.base.errors import LimitError
from soul_deploy.base.json_text import DESCRIPTION_BYTES, json_bytes
from soul_deploy.base.memory import WORK_BYTES
from soul_deploy.cli.main import root
from soul_deploy.ir import Convolution as GraphConvolution
from soul_deploy.ir import MaxPool as GraphMaxPool
from soul_deploy.ir import NeuronSpec, Population, SpikingGraph
from soul_deploy.lowering.footprint import require_planning
from soul_deploy.runtime.bench.scipy_engine import ScipyEngine
from soul_deploy.runtime.engine import network
from soul_deploy.runtime.equations import NeuronEquation
from soul_deploy.runtime.format.file import load_event_network, save_event_network
from soul_deploy.runtime.format.network import (
    ConvSynapses,
    DenseRows,
    EdgeKind,
    EventNetwork,
    Layer,
    MatrixSynapses,
    PoolLayer,
    ReadoutLayer,
    SparseRows,
    SpikingLayer,
)
from soul_deploy.runtime.format.tap_tables import gather_table, tap_count, tap_incidence, tap_table
from soul_deploy.runtime.io.inspect import describe_file
from soul_deploy.runtime.ops.counted_run import count, fan_out
from soul_deploy.runtime.plan.estimate import (
    counting_bytes,
    require_counting,
    require_products,
    require_running,
    running_bytes,
)
from soul_deploy.zoo.registry import NetworkOptions, create

NEURON = NeuronEquation("integrate", 1.0, 1.0, 0.0, "ge")


def chain(
    *layers: Layer, shape: tuple[int, ...], steps: int = 2, fixed: bool = False
) -> EventNetwork:
    """An event network of these layers; its readout votes with all neurons of the last."""
    size = math.prod(layers[-1].out_shape)
    weight = np.ones((1, size), np.float32)
    readout = ReadoutLayer(
        "out", layers[-1].name, layers[-1].out_shape, 1, False, weight, None, 1, 1
    )
    return EventNetwork("input", shape, steps, layers, readout, fixed_steps=fixed)


def convolution(
    shape: tuple[int, int, int], kernel: tuple[int, int], padding: tuple[int, int], **more: Any
) -> ConvSynapses:
    """One channel to one, weights of 1; stride and dilation 1 unless given."""
    stride, dilation = more.get("stride", (1, 1)), more.get("dilation", (1, 1))
    sides = (
        (shape[1 + i] + 2 * padding[i] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1
        for i in (0, 1)
    )
    count = shape[0] * math.prod(kernel)
    rows: Any = DenseRows(np.ones((shape[0], *kernel, 1), np.float32))
    if more.get("sparse"):
        starts = np.arange(count + 1, dtype=np.uint32)
        rows = SparseRows(starts, np.zeros(count, np.uint32), np.ones(count, np.float32))
    return ConvSynapses(
        shape, (1, *sides), rows, None, kernel, stride, padding, dilation, 1, shape[1:]
    )


def spiking(name: str, source: str, synapses: Any, **more: Any) -> SpikingLayer:
    analog = source == "input"
    edge: EdgeKind = "analog" if analog else "spike"
    bound = None if analog else 1
    return SpikingLayer(name, f"{name}.p", source, edge, bound, synapses, NEURON, **more)


def long_kernel(length: int, side: int, *, sparse: bool = False) -> EventNetwork:
    """A 1×1 convolution, and one whose kernel is a column, with padding to see all of it."""
    first = spiking("a", "input", convolution((1, side, 1), (1, 1), (0, 0)))
    tall = convolution((1, side, 1), (length, 1), (length // 2, 0), sparse=sparse)
    return chain(first, spiking("b", "a", tall), shape=(1, side, 1))


def written(folder: Path, made: EventNetwork) -> Path:
    path = folder / "x.safetensors"
    save_event_network(path, made)
    return path


def test_tables_are_those_of_the_definition() -> None:
    """Input p meets kernel index j at output o where p + padding = stride · o + dilation · j."""
    grid = itertools.product((1, 2, 4, 5), (1, 2, 3), (1, 2, 3, 4), (0, 1, 3), (1, 2, 3))
    seen = 0
    for side, kernel, stride, padding, dilation in grid:
        if side + 2 * padding < dilation * (kernel - 1) + 1:
            continue
        seen += 1
        given = {"stride": (stride, 1), "dilation": (dilation, 1)}
        made = convolution((1, side, 1), (kernel, 1), (padding, 0), **given)
        outputs = made.out_shape[1]
        met = [
            (p, kernel - 1 - j, o)
            for p in range(side)
            for j in reversed(range(kernel))
            for o in range(outputs)
            if p + padding == stride * o + dilation * j
        ]
        runs = tap_table(made, 0, merge=False)
        counts: Array = np.diff(runs.first.astype(np.int64))
        table = np.stack([np.repeat(np.arange(side), counts), runs.tap, runs.out], axis=1)
        assert np.array_equal(table, np.array(met).reshape(-1, 3))
        assert tap_count(made, 0, merge=False) == len(met)
        expected = np.full((outputs, kernel), side)
        table = np.zeros((side, kernel))
        for p, tap, o in met:
            expected[o, tap], table[p, tap] = p, 1
        assert np.array_equal(gather_table(made).reshape(outputs, kernel), expected)
        assert np.array_equal(tap_incidence(made, 0), table)
    assert seen > 200


@pytest.mark.parametrize(("sparse", "side"), [(False, 256), (True, 8192)])
def test_a_long_kernel_is_ready_at_once(tmp_path: Path, sparse: bool, side: int) -> None:
    """8192 × 1: 34 kB of weights, which took up to 67 million turns in Python."""
    path = written(tmp_path, long_kernel(8192, side, sparse=sparse))
    with bounded():
        ready = network.load(path, 1)
        ready._build(input_steps=1, steps=2, carry=False)
    x = np.zeros((1, 1, side, 1), np.float32)
    x[0, 0, 7] = 5.0
    fired = np.flatnonzero(ready.run_recorded(x).spikes["b"][0, 0, 0, :, 0])
    reached = min(4104, side + 1)
    assert np.array_equal(fired, np.arange(reached)), "all windows that hold position 7"


def test_a_long_kernel_on_as_many_positions_is_refused(tmp_path: Path) -> None:
    """Dense rows keep all 5·10^7 pairs of a position and a kernel index in their tables."""
    path = written(tmp_path, long_kernel(8192, 8192))
    with bounded(), pytest.raises(LimitError, match="most of all b: "):
        network.load(path)


@pytest.mark.parametrize("sparse", [False, True])
def test_the_longest_kernel_is_refused_or_ready(tmp_path: Path, sparse: bool) -> None:
    """2^20 × 1 on 65,535 positions: 7·10^10 pairs, of which shared sparse rows need one each."""
    path = written(tmp_path, long_kernel(1 << 20, (1 << 16) - 1, sparse=sparse))
    with bounded():
        if sparse:
            network.load(path, 1)._build(input_steps=1, steps=2, carry=False)
        else:
            with pytest.raises(LimitError, match=r"running this network \(most of all b: [\d,]+"):
                network.load(path, 1)


def huge_table() -> EventNetwork:
    """A kernel of 64 × 64 on 1024 × 1024 pixels: 17 kB, and a table of 16 GiB."""
    return chain(
        spiking("a", "input", convolution((1, 1024, 1024), (64, 64), (0, 0), stride=(1, 1))),
        PoolLayer("p", "a", (1, 961, 961), (1, 1, 1), (961, 961), (1, 1), (0, 0)),
        shape=(1, 1024, 1024),
    )


def test_a_table_larger_than_memory_is_refused_before_it_is_made(tmp_path: Path) -> None:
    path = written(tmp_path, huge_table())
    assert path.stat().st_size < 20_000
    needed = sum(running_bytes(load_event_network(path)).values())
    assert needed > 15 << 30
    told = f"needs {needed:,} bytes of memory; allowed are {WORK_BYTES:,}. Raise it with "
    with bounded(), pytest.raises(LimitError) as caught:
        network.load(path)
    assert told + "--max_memory" in str(caught.value)
    assert "most of all a: " in str(caught.value)
    np.save(tmp_path / "x.npy", np.zeros((1, 1, 1024, 1024), np.float32))
    with bounded():
        done = CliRunner().invoke(root, ["run", str(path), str(tmp_path / "x.npy")])
    assert (done.exit_code, told in done.stderr) == (1, True)
    with bounded(), pytest.raises(LimitError, match="on CSR products"):
        ScipyEngine(path, 1).load()
    assert describe_file(path)["kind"] == "event", "looking at it is no run"


def test_the_limit_is_raised_and_lowered(tmp_path: Path) -> None:
    made = long_kernel(64, 32)
    path, needed = written(tmp_path, made), sum(running_bytes(made).values())
    assert network.load(path, 1, max_memory=max(needed, 100_000)).max_memory is not None
    network.Network(made, 1, needed)
    with pytest.raises(LimitError, match=f"needs {needed:,} bytes of memory; allowed are"):
        network.Network(made, 1, needed - 1)
    np.save(tmp_path / "x.npy", np.ones((1, 1, 32, 1), np.float32))
    words = ["run", str(path), str(tmp_path / "x.npy"), "--max_memory"]
    assert CliRunner().invoke(root, [*words, "20MB"]).exit_code == 0
    done = CliRunner().invoke(root, [*words, "100"])
    assert (done.exit_code, "allowed are 100. Raise it with --max_memory" in done.stderr) == (
        1,
        True,
    )


def test_what_is_taken_is_what_was_estimated() -> None:
    """An upper bound, and not a wild one, of what loading and a run take besides the file."""
    side = 512
    shape = (3, side, side)
    rows = DenseRows(np.ones((3, 5, 5, 1), np.float32))
    out = (1, side, side)
    geometry = ((5, 5), (1, 1), (2, 2), (1, 1), 1, shape[1:])
    first = spiking("a", "input", ConvSynapses(shape, out, rows, None, *geometry))
    made = chain(
        first,
        PoolLayer("p", "a", out, (1, 1, 1), (side, side), (1, 1), (0, 0)),
        shape=shape,
        steps=4,
    )
    estimate = sum(running_bytes(made).values())
    tracemalloc.start()  # not the process's own peak, which what was freed before hides
    network.Network(made, 1)._build(input_steps=1, steps=4, carry=False)
    taken = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert taken < estimate + (20 << 20)
    assert estimate < 4 * taken


def test_generated_channels_on_a_large_map_are_refused(tmp_path: Path) -> None:
    """Two bytes of a pattern stand for a channel of 1.6·10^9 neurons."""
    pattern = np.ones((2, 1), np.uint8)
    wide = convolution((1, 20_000, 20_000), (1, 1), (0, 0))
    layer = spiking("a", "input", wide, pattern=pattern)
    pool = PoolLayer("p", "a", (2, 20_000, 20_000), (2, 1, 1), (20_000,) * 2, (1, 1), (0, 0))
    path = written(tmp_path, chain(layer, pool, shape=(1, 20_000, 20_000), fixed=True))
    with bounded(), pytest.raises(LimitError, match="most of all a"):
        network.load(path)


def test_counting_on_long_kernels_is_refused_or_quick(tmp_path: Path) -> None:
    ready = network.load(written(tmp_path, long_kernel(8192, 256)), 1)
    with bounded():
        fanout = fan_out(ready, "b")
    assert fanout[0, 7, 0] == ready.events.layers[1].out_shape[1]
    large = network.load(written(tmp_path, long_kernel(1 << 18, (1 << 16) - 1, sparse=True)), 1)
    for ask in (
        lambda: fan_out(large, "b"),
        lambda: count(large, np.zeros((1, 1, (1 << 16) - 1, 1), np.float32)),
    ):
        with bounded(), pytest.raises(LimitError, match="counting its operations"):
            ask()


def test_fan_outs_onto_live_targets_of_long_kernels_are_quick() -> None:
    synapses = convolution((1, 512, 1), (2048, 1), (1024, 0))
    live = np.zeros(math.prod(synapses.out_shape), np.bool_)
    live[::3] = True
    layer = spiking("b", "a", synapses, live=live)
    first = spiking("a", "input", convolution((1, 512, 1), (1, 1), (0, 0)))
    ready = network.Network(chain(first, layer, shape=(1, 512, 1)), 1)
    with bounded():
        found = fan_out(ready, "b")[0, :, 0]
    outputs = np.flatnonzero(live)
    index = np.arange(512)[:, None] + 1024 - outputs
    assert np.array_equal(found, ((index >= 0) & (index < 2048)).sum(axis=1))


def events_of(graph: SpikingGraph) -> EventNetwork:
    """A chain's event network with weights of zero, which take no memory."""
    layers: list[Any] = []
    for node in graph.nodes:
        if isinstance(node, GraphMaxPool):
            shapes = graph.shapes[node.inputs[0]], graph.shapes[node.name]
            geometry = node.kernel, node.stride, node.padding
            layers.append(PoolLayer(node.name, layers[-1].name, *shapes, *geometry))
        elif isinstance(node, Population):
            layers.append(_zero_layer(graph, node, layers[-1] if layers else None))
    last = layers[-1]
    weight = np.zeros((graph.readout.classes, math.prod(last.out_shape)), np.float32)
    readout = ReadoutLayer(
        "out", last.name, last.out_shape, graph.readout.classes, False, weight, None, 1, 1
    )
    return EventNetwork("input", graph.input.shape, graph.time_steps, tuple(layers), readout)


def _zero_layer(graph: SpikingGraph, node: Population, before: Any) -> SpikingLayer:
    projection = graph[node.inputs[0]]
    source = "input" if before is None else before.name
    shape = graph.input.shape if before is None else before.out_shape
    out = graph.shapes[node.name]
    if isinstance(projection, GraphConvolution):
        rows = DenseRows(np.zeros((shape[0], *projection.kernel, out[0]), np.float32))
        geometry = projection.kernel, projection.stride, projection.padding, projection.dilation
        reach = shape[1], shape[2]
        made: Any = ConvSynapses(shape, out, rows, None, *geometry, 1, reach)
    else:
        size = math.prod(shape), math.prod(out)
        made = MatrixSynapses(shape, out, DenseRows(np.zeros(size, np.float32)), None)
    return spiking(node.name, source, made)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("cifar10net", (3, 32, 32)),
        ("spikingvgg16", (3, 224, 224)),
        ("spikingvgg19", (3, 224, 224)),
        ("sewresnet50", (3, 224, 224)),
    ],
)
def test_large_networks_need_no_option(name: str, shape: tuple[int, int, int]) -> None:
    classes = 10 if shape[1] == 32 else 1000
    with torch.device("meta"):
        _, graph = create(name, NetworkOptions(shape, classes, NeuronSpec(), 4))
    require_planning(graph)
    text = json.dumps(json.dumps(graph.to_json()))
    assert json_bytes(text) < DESCRIPTION_BYTES / 20
    if name.startswith("sew"):
        return  # its merges are no chain; its maps are smaller than VGG's
    made = events_of(graph)
    require_running(made)
    require_counting(made)
    require_products(made)
    assert sum(running_bytes(made).values()) < WORK_BYTES / 2
    assert sum(counting_bytes(made).values()) < WORK_BYTES / 2
