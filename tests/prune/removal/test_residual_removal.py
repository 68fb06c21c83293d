"""Removal on residual networks: rules by hand, compact = masked on drawn ones and the zoo's."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from blocks import LIF, Keep, conv, double, kept, masked, model_of, ms, sew, with_weights
from hypothesis import given, settings
from hypothesis import strategies as st

from soul_deploy import ir
from soul_deploy.base.errors import RemovalError, UnknownNameError
from soul_deploy.lowering.fold_batch_norm import fold
from soul_deploy.model.file import load, save
from soul_deploy.model.model import Model, Validity
from soul_deploy.nn.neuron import SpikingNeuron
from soul_deploy.prune.channel_groups import Residual, channel_groups
from soul_deploy.prune.removal.apply import parameters, remove
from soul_deploy.prune.removal.connections import columns_used
from soul_deploy.prune.removal.plan import LayerRemoval
from soul_deploy.prune.removal.planner import plan_removal
from soul_deploy.zoo import registry as zoo


def assert_same(
    model: Model, compact: Model, layers: Iterable[LayerRemoval], seed: int = 0
) -> None:
    """Logits, and every spike of a channel that is left."""
    torch.manual_seed(seed)
    x = torch.rand(3, *model.input_shape, dtype=torch.float64) * 2
    before, after = double(model).record(x), double(compact).record(x)
    populations = {node.name for node in model.graph.populations}
    for layer in layers:
        if layer.population in populations:
            expected = before.spikes[layer.population][:, :, list(layer.outputs)]
            assert torch.equal(after.spikes[layer.population], expected), layer.population
    torch.testing.assert_close(after.logits, before.logits, rtol=0, atol=1e-12)


def checked(model: Model, residual: Residual = "coupled") -> tuple[dict[str, LayerRemoval], Model]:
    """Entries of the plan by name, and the compact network, found to give the same."""
    plan = plan_removal(model, residual=residual)
    compact = remove(model, plan)
    assert_same(model, compact, plan.layers)
    return {layer.population: layer for layer in plan.layers}, compact


def test_groups_are_found_from_the_graph() -> None:
    groups = {group.name: group for group in channel_groups(sew("add", "add"))}
    stream = groups["stem"]
    assert stream.nodes == ("stem", "s0", "b0.conv2", "b0.sn2", "b0", "b1.conv2", "b1.sn2", "b1")
    assert stream.readers == (("s0", "b0.conv1"), ("b0", "b1.conv1"), ("b1", "head"))
    assert stream.whole is None and not stream.free and groups["b0.conv1"].free
    assert groups["input"].whole == "the network's input is part of it"


def test_a_stream_channel_goes_from_all_members_if_all_are_masked() -> None:
    keep = kept(0, 2, 3)
    model = masked(model_of(sew("add", "add")), s0=keep, b0__sn2=keep, b1__sn2=keep)
    layers, compact = checked(model)
    assert [layers[name].removed for name in ("s0", "b0.sn2", "b1.sn2")] == [{1: "masked"}] * 3
    assert layers["s0"].stream == "b0" and layers["b0.sn1"].stream is None
    shapes = {name: array.shape for name, array in compact.state.items()}
    assert shapes["stem.weight"][0] == shapes["b0.conv2.weight"][0] == 3
    assert shapes["b0.conv1.weight"] == (5, 3, 3, 3) and shapes["head.weight"] == (3, 3)
    np.testing.assert_array_equal(compact.state["head.weight"], model.state["head.weight"][:, keep])


def test_a_stream_channel_stays_if_one_member_is_active() -> None:
    model = masked(model_of(sew("add", "add")), s0=kept(0, 2, 3), b1__sn2=kept(0, 2, 3))
    layers, compact = checked(model)
    assert all(not layer.removed for layer in layers.values())
    np.testing.assert_array_equal(compact.channel_masks["s0"], kept(0, 2, 3))


def test_a_stream_channel_goes_if_no_reader_anywhere_weighs_it() -> None:
    def unread(weight: Any) -> None:
        weight[:, 2] = 0

    changes = {"b0__conv1__weight": unread, "b1__conv1__weight": unread}
    partly = with_weights(model_of(sew("add", "add")), **changes)
    assert checked(partly)[0]["s0"].removed == {}
    wholly = with_weights(partly, head__weight=unread)
    assert checked(wholly)[0]["b1.sn2"].removed == {2: "unread"}


def test_and_is_zero_where_either_factor_is() -> None:
    """Block 1 reads the stream behind the zero, block 0 before it."""
    model = masked(model_of(sew("and", "add")), b0__sn2=kept(0, 1, 2), b1__sn2=kept(0, 1, 2))
    assert checked(model)[0]["s0"].removed == {}  # b0.conv1 reads channel 3 of the stem

    def unread(weight: Any) -> None:
        weight[:, 3] = 0

    layers, _ = checked(with_weights(model, b0__conv1__weight=unread))
    assert layers["s0"].removed == {3: "unread"} and layers["b1.sn2"].removed == {3: "unread"}


def test_and_behind_a_projection_loses_the_channel_with_either_factor() -> None:
    nodes = list(sew("and").nodes)
    nodes[3:3] = [conv("ds", "s0", 4, 4), ir.Population("ds_sn", ("ds",), LIF)]
    merge = next(node for node in nodes if isinstance(node, ir.Merge))
    nodes[nodes.index(merge)] = replace(merge, inputs=("ds_sn", "b0.sn2"))
    graph = ir.SpikingGraph(tuple(nodes), 4)
    for name in ("ds_sn", "b0__sn2"):
        layers, _ = checked(masked(model_of(graph), **{name: kept(0, 2)}))
        assert layers["ds_sn"].removed == layers["b0.sn2"].removed == {1: "masked", 3: "masked"}
        assert layers["s0"].removed == {}


def test_iand_passes_through_a_zero_branch_and_is_zero_with_the_identity() -> None:
    branch = masked(model_of(sew("iand")), b0__sn2=kept(1, 2, 3))
    assert checked(branch)[0]["b0.sn2"].removed == {}
    identity = masked(model_of(sew("iand")), s0=kept(1, 2, 3))
    assert checked(identity)[0]["b0.sn2"].removed == {0: "masked"}


@pytest.mark.parametrize("function", ["add", "iand"])
def test_a_scattered_branch_loses_rows_and_the_stream_none(function: ir.MergeFunction) -> None:
    model = masked(model_of(sew(function)), b0__sn2=kept(1, 3))
    layers, compact = checked(model, "scatter")
    assert layers["b0.sn2"].removed == {0: "scattered", 2: "scattered"}
    assert layers["b0.sn2"].columns == (0, 1, 2, 3) and layers["s0"].removed == {}
    assert compact.graph["b0.sn2.scatter"] == ir.Scatter("b0.sn2.scatter", ("b0.sn2",), 4, (1, 3))
    assert compact.graph["b0"].inputs == ("s0", "b0.sn2.scatter")
    assert compact.state["b0.conv2.weight"].shape == (2, 5, 3, 3)
    assert compact.state["head.weight"].shape == (3, 4) and compact.channel_masks == {}
    assert parameters(model.state) - parameters(compact.state) == 2 * (5 * 9 + 1)


def test_scatter_places_count_in_the_stream_that_is_left() -> None:
    model = masked(model_of(sew("add")), s0=kept(0, 1, 3), b0__sn2=kept(1, 3))
    layers, compact = checked(model, "scatter")
    assert layers["b0.sn2"].removed == {0: "scattered", 2: "masked"}
    scatter = compact.graph["b0.sn2.scatter"]
    assert isinstance(scatter, ir.Scatter) and (scatter.channels, scatter.index) == (3, (1, 2))


def test_neither_an_identity_that_is_read_nor_an_and_is_scattered() -> None:
    masks = {"s0": kept(0, 1, 2), "b0__sn2": kept(0, 1, 2)}
    layers, _ = checked(masked(model_of(sew("and")), b0__sn2=masks["b0__sn2"]), "scatter")
    assert "scattered" not in layers["b0.sn2"].removed.values()
    layers, _ = checked(masked(model_of(sew("add")), s0=masks["s0"]), "scatter")
    assert layers["s0"].removed == {}


def test_a_branch_that_is_read_apart_from_the_merge_is_not_scattered() -> None:
    nodes = list(sew("add").nodes)[:-1]
    nodes += [conv("side", "b0.sn2", 4, 4), ir.Population("side_sn", ("side",), LIF)]
    nodes += [ir.Merge("last", ("b0", "side_sn"), "add"), ir.Readout("head", ("last",), 3)]
    model = masked(model_of(ir.SpikingGraph(tuple(nodes), 4)), b0__sn2=kept(1, 3))
    assert checked(model, "scatter")[0]["b0.sn2"].removed == {}


def test_a_branch_that_is_silent_altogether_keeps_one_channel() -> None:
    model = masked(model_of(sew("add", "add")), b0__sn2=kept())
    layers, compact = checked(model, "scatter")
    assert len(layers["b0.sn2"].kept) == 1
    np.testing.assert_array_equal(compact.channel_masks["b0.sn2"], [False])


def test_a_dead_block_is_no_error_but_a_dead_stream_is() -> None:
    model = masked(model_of(sew("add", "add")), b0__sn1=kept(of=5))
    assert checked(model)[0]["b0.sn1"].kept == (0,)
    dead = masked(model_of(sew("and")), b0__sn2=kept(), b0__sn1=kept(1, of=5))
    with pytest.raises(RemovalError, match=r"b0\.sn1: all of its remaining channels could go"):
        plan_removal(dead)
    nothing = masked(model_of(sew("add")), s0=kept(), b0__sn2=kept())
    with pytest.raises(RemovalError, match="b0: none of its channels ever spikes"):
        plan_removal(nothing, residual="internal")


def test_a_stream_of_currents_goes_with_the_neurons_that_read_it() -> None:
    keep = kept(0, 3)
    model = masked(model_of(ms()), stem=keep, b0__conv2=keep, b1__conv2=keep)
    layers, compact = checked(model)
    assert layers["b0.sn1"].projection == "stem" and layers["b1.sn1"].projection is None
    for name in ("b0.conv2", "b1.conv2", "b0.sn1", "b1.sn1", "sn"):
        assert layers[name].removed == {1: "masked", 2: "masked"}
    assert compact.graph.shapes["sn"] == (2, 4, 4) and compact.channel_masks == {}


def test_deployed_weights_of_a_projection_masked_by_its_own_name_are_0() -> None:
    model = masked(model_of(ms()), b0__conv2=kept(0, 3), b0__sn2=kept(1, 2, of=5))
    folded = fold(model.graph, model.state, model.channel_masks)
    rows = {name: synapses.weight.any(axis=(1, 2, 3)) for name, synapses in folded.items()
            if name != "head"}  # fmt: skip
    np.testing.assert_array_equal(rows["b0.conv2"], kept(0, 3))
    np.testing.assert_array_equal(rows["b0.conv1"], kept(1, 2, of=5))
    assert rows["stem"].all() and rows["b1.conv2"].all()


def test_a_current_that_one_row_still_feeds_stays() -> None:
    model = masked(model_of(ms()), stem=kept(0, 3), b0__conv2=kept(0, 1, 3))
    assert checked(model)[0]["sn"].removed == {}


@pytest.mark.parametrize(("bias", "gone"), [(0.2, True), (0.45, False)])
def test_constants_of_merged_currents_add_up(bias: float, gone: bool) -> None:
    """Three rows without weights give 3 · bias: silent below the threshold of 1, else spiking."""

    def only_bias(array: Any) -> None:
        array[1] = bias if array.ndim == 1 else 0

    names = [f"{name}__{part}" for name in ("stem", "b0__conv2", "b1__conv2")
             for part in ("weight", "bias")]  # fmt: skip
    model = with_weights(model_of(ms()), **dict.fromkeys(names, only_bias))
    layers, _ = checked(model)
    assert layers["sn"].removed == ({1: "silent"} if gone else {})


def test_what_is_silent_only_within_t_is_valid_for_t_only() -> None:
    def nearly(array: Any) -> None:
        array[1] = 1.05 if array.ndim == 1 else 0  # v_4 = 1.05 · 15/16 < 1 < v_5

    graph = sew("add")
    stem = graph["stem"]
    assert isinstance(stem, ir.Convolution)
    graph = graph.with_nodes({"stem": replace(stem, bias=True)})
    changes = {"b0__conv2__weight": nearly, "b0__conv2__bias": nearly}
    model = masked(with_weights(model_of(graph), **changes), s0=kept(0, 2, 3))
    plan = plan_removal(model)
    assert plan.layer("b0.sn2").removed == {1: "masked"}  # type: ignore[union-attr]
    assert plan.validity.time_steps == 4
    alone = with_weights(model_of(graph), **changes)
    assert plan_removal(alone).validity.time_steps is None
    assert plan_removal(alone, residual="scatter").validity.time_steps == 4


def nearly_silent(array: Any) -> None:
    """Row 1: v_4 = 1.05 · 15/16 < 1 < v_5."""
    array[1] = 1.05 if array.ndim == 1 else 0


def biased_sew(function: ir.MergeFunction) -> ir.SpikingGraph:
    graph = sew(function)
    stem = graph["stem"]
    assert isinstance(stem, ir.Convolution)
    return graph.with_nodes({"stem": replace(stem, bias=True)})


@pytest.mark.parametrize(
    ("function", "nearly", "masked_too", "steps"),
    [
        ("add", "stem", "b0.sn2", 4),
        ("add", "b0.conv2", "s0", 4),
        ("and", "stem", None, 4),
        ("and", "b0.conv2", None, 4),
        ("and", "stem", "b0.sn2", None),  # one factor that is 0 for ever is enough
        ("and", "b0.conv2", "s0", None),
        ("iand", "stem", None, 4),
        ("iand", "stem", "b0.sn2", 4),
        ("iand", "b0.conv2", "s0", None),
    ],
)
def test_where_branches_meet_silence_lasts_as_long_as_what_makes_it(
    function: ir.MergeFunction, nearly: str, masked_too: str | None, steps: int | None
) -> None:
    """Only the head, behind the merge, reads channel 1."""

    def unread(weight: Any) -> None:
        weight[:, 1] = 0

    changes = {f"{nearly.replace('.', '__')}__{part}": nearly_silent for part in ("weight", "bias")}
    model = with_weights(model_of(biased_sew(function)), b0__conv1__weight=unread, **changes)
    if masked_too is not None:
        model = replace(model, channel_masks={masked_too: kept(0, 2, 3)})
    plan = plan_removal(model)
    assert 1 in plan.layers[0].removed
    assert plan.validity == Validity(steps, steps is not None)
    if steps is None:
        compact = remove(model, plan)
        assert_same(model.with_time_steps(11), compact.with_time_steps(11), plan.layers)


def test_what_stands_on_a_stream_that_is_silent_within_t_is_valid_for_t_only() -> None:
    """The stream stays whole; a channel inside the block reads nothing but its silence."""

    def only_channel_1(weight: Any) -> None:
        weight[0, [0, 2, 3]], weight[0, 1] = 0, 2

    def inhibited(bias: Any) -> None:
        bias[0] = -1

    changes = {"b0__conv1__weight": only_channel_1, "b0__conv1__bias": inhibited}
    changes |= {"stem__weight": nearly_silent, "stem__bias": nearly_silent}
    model = with_weights(model_of(biased_sew("add")), **changes)
    layers, _ = checked(model, "internal")
    assert layers["s0"].removed == {} and layers["b0.sn1"].removed == {0: "silent"}
    assert plan_removal(model, residual="internal").validity == Validity(4, True)
    longer = model.with_time_steps(9).module().record(torch.rand(2, *model.input_shape))
    assert longer.spikes["b0.sn1"][:, :, 0].any()


def test_a_masked_row_is_silent_for_ever_whatever_it_reads() -> None:
    """It reads only what is silent within T = 4."""

    def nearly(array: Any) -> None:
        array[1] = 1.05 if array.ndim == 1 else 0

    def only_channel_1(weight: Any) -> None:
        weight[0, [0, 2, 3]] = 0

    graph = sew("add")
    stem = graph["stem"]
    assert isinstance(stem, ir.Convolution)
    graph = graph.with_nodes({"stem": replace(stem, bias=True)})
    changes = {"stem__weight": nearly, "stem__bias": nearly, "b0__conv1__weight": only_channel_1}
    model = masked(with_weights(model_of(graph), **changes), b0__sn1=kept(1, 2, 3, 4, of=5))
    plan = plan_removal(model, residual="internal")
    assert plan.layer("b0.sn1").removed == {0: "masked"}  # type: ignore[union-attr]
    assert plan.validity.time_steps is None


def test_a_stream_stays_whole_where_a_grouped_convolution_reads_it() -> None:
    graph = sew("add")
    first = graph["b0.conv1"]
    assert isinstance(first, ir.Convolution)
    graph = graph.with_nodes(
        {
            "b0.conv1": replace(first, channels=4, groups=2),
            "b0.conv2": conv("b0.conv2", "b0.sn1", 4, 4, bias=True),
        }
    )
    keep = kept(0, 1)
    layers, compact = checked(masked(model_of(graph), s0=keep, b0__sn2=keep, b0__sn1=keep))
    assert layers["s0"].tied == layers["b0.sn2"].tied == "read by a grouped convolution"
    assert layers["b0.sn1"].tied == "fed by a grouped convolution"
    np.testing.assert_array_equal(compact.channel_masks["s0"], keep)


def test_columns_of_a_grouped_convolution_belong_to_its_group() -> None:
    weight = np.ones((4, 1, 3, 3), np.float32)
    weight[3] = 0
    expected = [[True, False], [True, False], [False, True], [False, False]]
    np.testing.assert_array_equal(columns_used(weight, 2, 2), expected)


def test_what_only_masked_neurons_read_is_unread() -> None:
    def only_row_1(weight: Any) -> None:
        weight[[0, 2, 3], 2] = 0

    model = with_weights(model_of(sew("add")), b0__conv2__weight=only_row_1)
    spikes = np.ones((4, 4, 4), bool)
    spikes[1] = False
    spikes[2, 0, 0] = False
    layers, compact = checked(replace(model, neuron_masks={"b0.sn2": spikes}), "scatter")
    assert layers["b0.sn1"].removed == {2: "unread"}
    assert layers["b0.sn2"].removed == {1: "scattered"} and layers["b0.sn2"].masked_neurons == 1
    np.testing.assert_array_equal(compact.neuron_masks["b0.sn2"], spikes[[0, 2, 3]])


def test_internal_leaves_streams_alone() -> None:
    keep = kept(0, 1)
    model = masked(model_of(sew("add")), s0=keep, b0__sn2=keep, b0__sn1=kept(0, 1, 4, of=5))
    layers, _ = checked(model, "internal")
    assert layers["s0"].tied == "part of a residual stream (residual internal)"
    assert layers["s0"].removed == {} and layers["b0.sn1"].kept == (0, 1, 4)
    with pytest.raises(UnknownNameError, match="residual 'all'"):
        plan_removal(model, residual="all")  # type: ignore[arg-type]


def test_round_to_holds_for_streams_and_branches() -> None:
    keep = kept(0, 1, 2)
    model = masked(model_of(sew("add")), s0=keep, b0__sn2=kept(1))
    plan = plan_removal(model, residual="scatter", round_to=2)
    layers = {layer.population: layer for layer in plan.layers}
    assert len(layers["s0"].kept) == 4 and layers["b0.sn2"].kept == (0, 1)
    compact = remove(model, plan)
    assert_same(model, compact, plan.layers)
    np.testing.assert_array_equal(compact.channel_masks["b0.sn2"], [False, True])


def test_the_plan_says_who_shares_channels_and_counts_scattered_ones() -> None:
    text = plan_removal(masked(model_of(sew("add")), b0__sn2=kept(1)), residual="scatter").text()
    assert "scattered" in text and "s0, b0.sn2 share their channels." in text


def test_a_scattered_network_reloads_and_is_not_scattered_again(tmp_path) -> None:  # type: ignore[no-untyped-def]
    model = masked(model_of(sew("add", "add")), b0__sn2=kept(1, 3), b0__sn1=kept(1, 2, of=5))
    _, compact = checked(model, "scatter")
    save(compact, tmp_path / "compact.safetensors")
    loaded = load(tmp_path / "compact.safetensors")
    assert loaded.graph == compact.graph
    layers, again = checked(loaded, "scatter")
    assert again.graph == compact.graph
    assert layers["b0.sn2"].tied == "it holds a scattered branch already"


# Drawn residual networks


@dataclass(frozen=True)
class Block:
    """branches 2: a three-way addition; stride 2 or another width: with a projection."""

    function: ir.MergeFunction
    branches: int
    stride: int
    width: int


@dataclass(frozen=True)
class Drawn:
    graph: ir.SpikingGraph
    seed: int


@st.composite
def residual_networks(draw: st.DrawFn, *, dyadic: bool = False) -> Drawn:
    """SEW or MS, up to three blocks; dyadic ones have no batch norm and exact neurons."""
    neuron = ir.NeuronSpec(
        family=draw(st.sampled_from(["if", "lif"] if dyadic else ["if", "lif", "plif"])),
        tau=2.0 if dyadic else draw(st.sampled_from([2.0, 3.0, 1.7])),
        decay_input=draw(st.booleans()),
        v_reset=draw(st.sampled_from([0.0, None, -0.25])),
        fire=draw(st.sampled_from(["gt", "ge"])),
    )
    spikes = draw(st.booleans())
    blocks: list[Block] = []
    for _ in range(draw(st.integers(1, 3))):
        functions: list[ir.MergeFunction] = ["add", "and", "iand"] if spikes else ["add"]
        function = draw(st.sampled_from(functions))
        branches = draw(st.integers(1, 2)) if function == "add" else 1
        graded = any(block.function == "add" for block in blocks)
        stride = 2 if function != "add" and graded else draw(st.integers(1, 2))
        blocks.append(Block(function, branches, stride, draw(st.integers(2, 5))))
    build = _Builder(neuron, norm=not dyadic and draw(st.booleans()), spikes=spikes)
    return Drawn(build.graph(blocks, draw(st.integers(1, 5))), draw(st.integers(0, 9999)))


class _Builder:
    def __init__(self, neuron: ir.NeuronSpec, *, norm: bool, spikes: bool) -> None:
        self.neuron, self.norm, self.spikes = neuron, norm, spikes
        self.nodes: list[ir.Node] = []

    def graph(self, blocks: list[Block], time_steps: int) -> ir.SpikingGraph:
        self.nodes = [ir.Input("input", (), (2, 6, 6))]
        width = 3
        last = self._conv("stem", "input", 2, width)
        if self.spikes:
            last = self._fire("s0", last)
        last = self._add(ir.MaxPool("pool", (last,), (2, 2), (1, 1)))
        for i, block in enumerate(blocks):
            last = self._block(f"b{i}", last, width, block)
            width = block.width if block.stride == 2 else width
        if not self.spikes:
            last = self._fire("sn", last)
        return ir.SpikingGraph((*self.nodes, ir.Readout("head", (last,), 3)), time_steps)

    def _block(self, name: str, last: str, width: int, block: Block) -> str:
        out = block.width if block.stride == 2 else width
        ends = []
        for b in range(block.branches):
            inner = f"{name}.{b}"
            source = last if self.spikes else self._fire(f"{inner}.sn1", last)
            first = self._conv(f"{inner}.conv1", source, width, 4, block.stride)
            end = self._conv(f"{inner}.conv2", self._fire(f"{inner}.mid", first), 4, out)
            ends.append(self._fire(f"{inner}.sn2", end) if self.spikes else end)
        identity = last
        if block.stride == 2:
            identity = self._conv(f"{name}.down", last, width, out, 2)
            identity = self._fire(f"{name}.down_sn", identity) if self.spikes else identity
        return self._add(ir.Merge(name, (identity, *ends), block.function))

    def _conv(self, name: str, source: str, inputs: int, outputs: int, stride: int = 1) -> str:
        norm = ir.BatchNorm(f"{name}_norm") if self.norm else None
        sides = {"bias": not self.norm, "norm": norm, "stride": (stride, stride)}
        return self._add(conv(name, source, inputs, outputs, **sides))

    def _fire(self, name: str, source: str) -> str:
        return self._add(ir.Population(name, (source,), self.neuron))

    def _add(self, node: ir.Node) -> str:
        self.nodes.append(node)
        return node.name


def randomly_masked(model: Model, seed: int, *, together: bool) -> Model:
    """Random masks and zeroed rows; `together`: one mask for all members of a stream."""
    rng = np.random.default_rng(seed)
    masks: dict[str, Keep] = {}
    state = {name: array.copy() for name, array in model.state.items()}
    for group in channel_groups(model.graph):
        shared = rng.random(group.channels) < 0.6
        for name in group.projections:
            own = rng.random(group.channels) < 0.6
            users = model.graph.consumers[name]
            key = users[0] if isinstance(model.graph[users[0]], ir.Population) else name
            masks[key] = shared if together or group.free else own | shared
            if rng.random() < 0.3:
                state[f"{name}.weight"][rng.integers(group.channels)] = 0
    spikes = {}
    for node in model.graph.populations:
        if rng.random() < 0.3:
            spikes[node.name] = rng.random(model.graph.shapes[node.name]) < 0.8
            spikes[node.name][rng.integers(len(spikes[node.name]))] = False
    return replace(model, channel_masks=masks, state=state, neuron_masks=spikes)


@settings(max_examples=60)
@given(residual_networks(), st.booleans(), st.sampled_from(["internal", "coupled", "scatter"]))
def test_compact_equals_masked_in_float64(drawn: Drawn, together: bool, how: Residual) -> None:
    model = randomly_masked(model_of(drawn.graph, drawn.seed), drawn.seed, together=together)
    try:
        plan = plan_removal(model, residual=how)
    except RemovalError:
        return  # a drawn network whose output does not depend on its input
    if plan.bias:
        return  # a folded bias is rounded to float32
    assert_same(model, remove(model, plan), plan.layers)


def late(model: Model, seed: int) -> Model:
    """Some rows without weights, each with a bias that first makes a neuron fire after T steps."""
    rng, steps = np.random.default_rng(seed), model.graph.time_steps
    state = {name: array.copy() for name, array in model.state.items()}
    tried = torch.linspace(0.02, 3, 400)
    for node in model.graph.populations:
        source = model.graph[node.inputs[0]]
        if isinstance(source, ir.Merge | ir.MaxPool) or f"{source.name}.bias" not in state:
            continue
        neuron = model.module().get_submodule(node.name)
        assert isinstance(neuron, SpikingNeuron)
        longer = SpikingNeuron(neuron.spec, LATER * steps)
        longer.load_state_dict(neuron.state_dict())
        fired = longer.simulate(tried[:, None], static=True)[..., 0]
        fits = tried[(fired[:steps].sum(0) == 0) & (fired.sum(0) > 0)]
        for row in np.flatnonzero(rng.random(len(state[f"{source.name}.bias"])) < 0.4):
            if len(fits):
                state[f"{source.name}.weight"][row] = 0
                state[f"{source.name}.bias"][row] = float(fits[rng.integers(len(fits))])
    return replace(model, state=state)


LATER = 3


@settings(max_examples=60)
@given(residual_networks(), st.booleans(), st.sampled_from(["internal", "coupled", "scatter"]))
def test_what_is_valid_for_any_number_of_steps_is(
    drawn: Drawn, together: bool, how: Residual
) -> None:
    model = randomly_masked(model_of(drawn.graph, drawn.seed), drawn.seed, together=together)
    model = late(model, drawn.seed)
    try:
        plan = plan_removal(model, residual=how)
    except RemovalError:
        return
    if plan.validity.time_steps is None and not plan.bias:
        steps = LATER * model.graph.time_steps
        longer = remove(model, plan).with_time_steps(steps)
        assert_same(model.with_time_steps(steps), longer, plan.layers)


@settings(max_examples=40)
@given(residual_networks(dyadic=True), st.booleans(), st.sampled_from(["coupled", "scatter"]))
def test_dyadic_networks_stay_the_same_to_the_bit(
    drawn: Drawn, together: bool, how: Residual
) -> None:
    model = model_of(drawn.graph, drawn.seed, grid=2.0**-6)
    model = randomly_masked(model, drawn.seed, together=together)
    try:
        plan = plan_removal(model, residual=how)
    except RemovalError:
        return
    compact = remove(model, plan)
    x = torch.round(torch.rand(3, 2, 6, 6) * 32) / 16
    before, after = model.module().record(x), compact.module().record(x)
    for layer in plan.layers:
        if layer.population in after.spikes:
            expected = before.spikes[layer.population][:, :, list(layer.outputs)]
            assert torch.equal(after.spikes[layer.population], expected)
    assert torch.equal(after.logits, before.logits)


NETWORKS = [("sewresnet18", "add"), ("sewresnet18", "and"), ("sewresnet18", "iand"),
            ("msresnet18", "add")]  # fmt: skip


@pytest.mark.parametrize(("name", "function"), NETWORKS)
@pytest.mark.parametrize("how", ["coupled", "scatter"])
def test_networks_of_the_zoo_shrink(name: str, function: ir.MergeFunction, how: Residual) -> None:
    options = zoo.NetworkOptions((3, 8, 8), 10, LIF, 2, connect=function, stem="small")
    _, graph = zoo.create(name, options)
    model = model_of(graph)
    model = randomly_masked(model, 0, together=how == "coupled" or function == "and")
    plan = plan_removal(model, residual=how)
    compact = remove(model, plan)
    share = parameters(compact.state) / parameters(model.state)
    scattered = sum(len(layer.scattered) for layer in plan.layers)
    assert share < (0.45 if how == "coupled" else 0.75)
    assert (scattered > 0) == (how == "scatter" and function in ("add", "iand") and "sew" in name)
    assert_same(model, compact, plan.layers)
