"""Removal on every small geometry: masked = compact in float64, and folded only where seen whole.

Each network holds channels of every kind: live, masked, silent, unread, spiking at every step (to
be folded, or generated where a window of the reader lies partly outside), and spiking now and then
(generated). What "whole" means is written down anew here, as loops over exact fractions.
"""

import itertools
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from blocks import double
from click.testing import CliRunner

from soul_deploy import ir
from soul_deploy.base import Array
from soul_deploy.cli.main import root
from soul_deploy.model.file import load, save
from soul_deploy.model.model import Model, arrays_of
from soul_deploy.nn.graph_module import GraphModule
from soul_deploy.prune.removal.apply import remove
from soul_deploy.prune.removal.plan import RemovalPlan
from soul_deploy.prune.removal.planner import plan_removal

LIF = ir.NeuronSpec()
STEPS = 3
LIVE, MASKED, SILENT, UNREAD, ALWAYS, SOMETIMES = (0, 1), 2, 3, 4, 5, 6
CURRENTS = {SILENT: -1.0, ALWAYS: 9.0, SOMETIMES: 1.2}  # of channels without a live input
PATTERN = (False, False, True)  # v_t = 1.2 · (1 - 2^-t), fires above 1

AxisPool = tuple[str, int, int, int]  # kind, kernel (or size), stride, padding
AxisConv = tuple[int, int, int, int]  # kernel, stride, padding, dilation
POOLS: tuple[AxisPool, ...] = (
    ("none", 1, 1, 0),
    *(("max", *window) for window in ((2, 1, 0), (2, 2, 1), (3, 2, 1), (1, 3, 0))),
    *(("avg", *window) for window in ((2, 2, 0), (3, 1, 0), (2, 1, 1), (3, 3, 1), (1, 2, 0))),
    *(("adaptive", size, 1, 0) for size in (1, 2, 3)),
)
CONVS: tuple[AxisConv, ...] = tuple(itertools.product((1, 2, 3), (1, 2, 3), (0, 1, 2), (1, 2)))


def pooled_size(size: int, pool: AxisPool) -> int:
    kind, kernel, stride, padding = pool
    return kernel if kind == "adaptive" else (size + 2 * padding - kernel) // stride + 1


def convolved_size(size: int, conv: AxisConv) -> int:
    kernel, stride, padding, dilation = conv
    return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


def axes_of(pool: AxisPool) -> list[tuple[int, AxisConv]]:
    """(map size, convolution) along one axis: all that leave an output position."""
    return [
        (size, conv)
        for size, conv in itertools.product((1, 2, 3, 4), CONVS)
        if pooled_size(size, pool) > 0 and convolved_size(pooled_size(size, pool), conv) > 0
    ]


def pool_node(source: str, pool: AxisPool) -> ir.Node | None:
    kind, kernel, stride, padding = pool
    if kind == "none":
        return None
    if kind == "adaptive":
        return ir.AdaptiveAvgPool("pool", (source,), (kernel, kernel))
    sides = (kernel, kernel), (stride, stride), (padding, padding)
    return (ir.MaxPool if kind == "max" else ir.AvgPool)("pool", (source,), *sides)


def windows(size: int, pool: AxisPool) -> list[list[int]]:
    """The positions that each window of a pooling covers along an axis, padding among them."""
    kind, kernel, stride, padding = pool
    count = pooled_size(size, pool)
    if kind == "adaptive":
        return [list(range(o * size // count, -(-(o + 1) * size // count))) for o in range(count)]
    return [[o * stride - padding + k for k in range(kernel)] for o in range(count)]


def pooled(spikes: list[list[int]], pool: AxisPool) -> list[list[Fraction]]:
    """The map behind a pooling, exactly."""
    height, width = len(spikes), len(spikes[0])

    def value(rows: list[int], columns: list[int]) -> Fraction:
        taps = [
            spikes[y][x] if 0 <= y < height and 0 <= x < width else 0 for y in rows for x in columns
        ]
        return Fraction(
            max(taps) if pool[0] == "max" else sum(taps), len(taps) ** (pool[0] != "max")
        )

    return [
        [value(rows, columns) for columns in windows(width, pool)] for rows in windows(height, pool)
    ]


def seen_whole(spikes: Array, pool: AxisPool, convs: tuple[AxisConv, AxisConv]) -> bool:
    """Whether every tap of every window of the convolution meets a 1."""
    values = pooled(spikes.astype(int).tolist(), pool)
    height, width = len(values), len(values[0])
    taps = []
    for size, (kernel, stride, padding, dilation) in zip((height, width), convs, strict=True):
        count = convolved_size(size, (kernel, stride, padding, dilation))
        taps.append(
            [o * stride - padding + k * dilation for o in range(count) for k in range(kernel)]
        )
    return all(
        0 <= y < height and 0 <= x < width and values[y][x] == 1
        for y, x in itertools.product(*taps)
    )


def conv_b(source: str, convs: tuple[AxisConv, AxisConv], variant: int) -> ir.Convolution:
    """Seven channels to six; with a bias, without one, or with batch norm."""
    kernel, stride, padding, dilation = zip(*convs, strict=True)
    norm = ir.BatchNorm("b_norm") if variant == 2 else None
    return ir.Convolution(
        "b", (source,), variant == 0, norm, 7, 6, kernel, stride, padding, dilation
    )  # fmt: skip


def random_state(graph: ir.SpikingGraph, seed: int) -> dict[str, Array]:
    """Weights on a grid of 1/64, none of them 0; statistics that are not neutral."""
    rng = np.random.default_rng(seed)
    state = arrays_of(GraphModule(graph).state_dict())
    for name, array in state.items():
        if name.endswith("running_var"):
            state[name] = rng.uniform(0.5, 2, array.shape).astype(array.dtype)
        elif np.issubdtype(array.dtype, np.floating):
            grid = np.round(rng.normal(0.1, 0.6, array.shape) * 64)
            state[name] = (np.where(grid == 0, 1, grid) / 64).astype(array.dtype)
    return state


def set_kinds(state: dict[str, Array], *stems: str) -> None:
    """Constant currents for the channels that have one, no weight behind the unread one."""
    for stem in stems:
        for channel, current in CURRENTS.items():
            state[f"{stem}.weight"][channel] = 0
            state[f"{stem}.bias"][channel] = current


def set_rows(state: dict[str, Array]) -> None:
    """Of b: row 2 reads the constant channel alone, row 4 has no reader, row 5 no live input."""
    weight = state["b.weight"]
    weight[:, UNREAD] = 0
    weight[2, [c for c in range(7) if c != ALWAYS]] = 0
    weight[5, [c for c in range(7) if c not in (MASKED, SILENT)]] = 0
    state["head.weight"][:, 4] = 0


def masks_of(stems: tuple[str, ...]) -> dict[str, Array]:
    channels = {stem: np.arange(7) != MASKED for stem in stems}
    return channels | {"sb": np.arange(6) != 3}


def assert_same(model: Model, plan: RemovalPlan, seed: int) -> None:
    """The current of b, spikes and logits, in float64; a folded bias is float32."""
    compact = remove(model, plan)
    torch.manual_seed(seed)
    x = torch.rand(2, *model.input_shape, dtype=torch.float64) * 2
    names = [*(node.name for node in model.graph.populations), "b", "head"]
    with torch.no_grad():
        runs = []
        for module in (double(model), double(compact)):
            values = module.evaluate({"input": module.as_signal(x)}, names)
            runs.append({name: signal.tensor for name, signal in values.items()})
    before, after = runs
    for layer in plan.layers:
        left = before[layer.population][:, :, list(layer.outputs)]
        assert torch.equal(after[layer.population], left), layer.population
    rows = before["b"][:, :, list(plan.layers[-1].kept)]
    torch.testing.assert_close(after["b"], rows, rtol=0, atol=1e-5)
    torch.testing.assert_close(after["head"], before["head"], rtol=0, atol=1e-5)


def checked_kinds(plan: RemovalPlan, whole: bool) -> None:
    """The channels of population sa go as they must."""
    layer = plan.layer("sa")
    assert layer is not None
    rules = {MASKED: "masked", SILENT: "silent", UNREAD: "unread"}
    patterns: dict[int, tuple[bool, ...]] = {SOMETIMES: PATTERN}
    if whole:
        rules[ALWAYS] = "folded"
    else:
        patterns[ALWAYS] = (True,) * STEPS
    assert (layer.removed, layer.generated) == (rules, patterns)


def convolved(
    size: ir.Pair, pool: AxisPool, convs: tuple[AxisConv, AxisConv], variant: int, seed: int
) -> Model:
    """A 1×1 convolution, its neurons, the pooling, convolution b, its neurons, a readout."""
    nodes: list[ir.Node] = [
        ir.Input("input", (), (2, *size)),
        ir.Convolution("a", ("input",), True, None, 2, 7, (1, 1)),
        ir.Population("sa", ("a",), LIF),
    ]
    between = pool_node("sa", pool)
    nodes += [] if between is None else [between]
    nodes += [conv_b(nodes[-1].name, convs, variant), ir.Population("sb", ("b",), LIF)]
    graph = ir.SpikingGraph((*nodes, ir.Readout("head", ("sb",), 3)), STEPS)
    state = random_state(graph, seed)
    set_kinds(state, "a")
    set_rows(state)
    return Model(graph, state, masks_of(("sa",)))


def geometries(pool: AxisPool) -> Iterator[tuple[int, ir.Pair, tuple[AxisConv, AxisConv]]]:
    """(number, map, convolution): each axis geometry with itself, every other with another one."""
    axes = axes_of(pool)
    for number, first in enumerate(axes):
        yield number, (first[0],) * 2, (first[1],) * 2
        if number % 2:
            second = axes[(number * 7 + 3) % len(axes)]
            yield number, (first[0], second[0]), (first[1], second[1])


@pytest.mark.parametrize("pool", POOLS, ids=lambda p: "-".join(map(str, p)))
def test_every_geometry_of_a_convolution(pool: AxisPool) -> None:
    folded = 0
    for number, size, convs in geometries(pool):
        model = convolved(size, pool, convs, number % 3, number)
        plan = plan_removal(model)
        whole = seen_whole(np.ones(size), pool, convs)
        folded += whole
        checked_kinds(plan, whole)
        assert_same(model, plan, number)
    assert folded > 0 or (pool[0] == "avg" and pool[3] > 0)


@pytest.mark.parametrize("pool", POOLS, ids=lambda p: "-".join(map(str, p)))
def test_a_masked_neuron_matters_only_where_a_window_sees_it(pool: AxisPool) -> None:
    """Every fourth geometry, with one neuron of the constant channel masked."""
    for number, size, convs in itertools.islice(geometries(pool), None, None, 4):
        keep = np.ones((7, *size), bool)
        keep[ALWAYS].reshape(-1)[number % (size[0] * size[1])] = False
        if not keep[ALWAYS].any():
            continue
        model = replace(convolved(size, pool, convs, number % 3, number), neuron_masks={"sa": keep})
        plan = plan_removal(model)
        checked_kinds(plan, seen_whole(keep[ALWAYS], pool, convs))
        assert_same(model, plan, number)


@pytest.mark.parametrize("pool", POOLS, ids=lambda p: "-".join(map(str, p)))
def test_every_geometry_before_a_linear_layer(pool: AxisPool) -> None:
    """Behind flattening, each output weighs each position: only an average can cut one."""
    for size in itertools.product((1, 2, 3, 4), (1, 2, 3, 4)):
        if min(pooled_size(side, pool) for side in size) < 1:
            continue
        nodes = list(convolved(size, pool, ((1, 1, 0, 1),) * 2, 0, 0).graph.nodes)
        source = nodes[-4].name
        places = pooled_size(size[0], pool) * pooled_size(size[1], pool)
        nodes[-3:-2] = [
            ir.Flatten("flat", (source,)),
            ir.Linear("b", ("flat",), size[0] % 2 == 0, None, 7 * places, 6),
        ]
        graph = ir.SpikingGraph(tuple(nodes), STEPS)
        state = random_state(graph, size[0] + 4 * size[1])
        set_kinds(state, "a")
        by_channel = {**state, "b.weight": state["b.weight"].reshape(6, 7, places)}
        set_rows(by_channel)
        model = Model(graph, state, masks_of(("sa",)))
        plan = plan_removal(model)
        values = pooled(np.ones(size, int).tolist(), pool)
        checked_kinds(plan, all(value == 1 for row in values for value in row))
        assert_same(model, plan, 0)


@pytest.mark.parametrize("function", ["add", "and", "iand"])
def test_every_geometry_behind_a_merge(function: ir.MergeFunction) -> None:
    """Branches with the same constant channels meet: nothing of them is folded."""
    axes = axes_of(POOLS[0])
    for number, (side, conv) in enumerate(axes):
        other = axes[(number * 7 + 3) % len(axes)]
        stem = (True, None, 2, 7, (1, 1))
        graph = ir.SpikingGraph(
            (
                ir.Input("input", (), (2, side, other[0])),
                ir.Convolution("a", ("input",), *stem),
                ir.Population("sa", ("a",), LIF),
                ir.Convolution("c", ("input",), *stem),
                ir.Population("sc", ("c",), LIF),
                ir.Merge("merge", ("sa", "sc"), function),
                conv_b("merge", (conv, other[1]), number % 3),
                ir.Population("sb", ("b",), LIF),
                ir.Readout("head", ("sb",), 3),
            ),
            STEPS,
        )
        state = random_state(graph, number)
        set_kinds(state, "a", "c")
        set_rows(state)
        model = Model(graph, state, masks_of(("sa", "sc")))
        plan = plan_removal(model, residual="scatter" if number % 2 else "coupled")
        layer = plan.layer("sa")
        assert layer is not None
        assert {MASKED, SILENT, UNREAD} <= set(layer.removed)
        assert "folded" not in layer.removed.values() and not layer.generated
        assert_same(model, plan, number)


def test_the_command_leaves_a_padded_1x1_convolution_as_it_is(tmp_path: Path) -> None:
    """A column of windows on either side holds padding only, which does not spike."""
    model = convolved((3, 3), POOLS[0], ((1, 1, 0, 1), (1, 1, 1, 1)), 1, 0)
    model.state["b.weight"][0, ALWAYS] = 4  # enough to fire where it arrives
    save(model, tmp_path / "net.safetensors")
    result = CliRunner().invoke(root, ["prune", "compact", str(tmp_path / "net.safetensors")])
    assert result.exit_code == 0, result.output
    compact = load(tmp_path / "net_compact.safetensors")
    x = torch.rand(4, 2, 3, 3) * 2
    before, after = model.module().record(x), compact.module().record(x)
    assert torch.equal(after.spikes["sb"][:, :, 0], before.spikes["sb"][:, :, 0])
    torch.testing.assert_close(after.logits, before.logits, rtol=0, atol=1e-5)
    assert compact.graph.shapes["sa"][0] == 2 + 2  # two live channels, two generated
