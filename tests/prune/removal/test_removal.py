"""The removal plan by hand on small chains, and compact = masked on drawn ones."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from soul_deploy import ir
from soul_deploy.base.errors import RemovalError, UnknownNameError, UsageError, ValidityError
from soul_deploy.model.file import load, save
from soul_deploy.model.model import Model, Validity, arrays_of
from soul_deploy.nn.graph_module import GraphModule
from soul_deploy.prune.removal.apply import parameters, remove
from soul_deploy.prune.removal.planner import plan_removal

LIF = ir.NeuronSpec()


def chain(neuron: ir.NeuronSpec = LIF, *, groups: int = 1, time_steps: int = 4) -> ir.SpikingGraph:
    """Input 2×6×6, conv+norm 4, pool, conv 6 (bias), flatten, linear 5, readout of 3 classes."""
    nodes: tuple[ir.Node, ...] = (
        ir.Input("input", (), (2, 6, 6)),
        ir.Convolution(
            "a", ("input",), False, ir.BatchNorm("a_norm"), 2, 4, (3, 3), padding=(1, 1)
        ),
        ir.Population("sa", ("a",), neuron),
        ir.MaxPool("pool", ("sa",), (2, 2), (2, 2)),
        ir.Convolution("b", ("pool",), True, None, 4, 6, (2, 2), groups=groups),
        ir.Population("sb", ("b",), neuron),
        ir.Flatten("flat", ("sb",)),
        ir.Linear("c", ("flat",), True, None, 24, 5),
        ir.Population("sc", ("c",), neuron),
        ir.Readout("head", ("sc",), 3),
    )
    return ir.SpikingGraph(nodes, time_steps)


def model_of(graph: ir.SpikingGraph, seed: int = 0) -> Model:
    """Random weights; batch norm statistics that are not neutral."""
    torch.manual_seed(seed)
    module = GraphModule(graph)
    for name, tensor in module.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 2)
        elif tensor.is_floating_point() and "_norm" in name:
            tensor.copy_(torch.randn_like(tensor) * 0.5 + 0.5)
        elif tensor.is_floating_point():
            tensor.copy_(torch.randn_like(tensor) * 0.7)
    return Model(graph, arrays_of(module.state_dict()))


def with_state(model: Model, **changed: np.ndarray) -> Model:
    state = {k: v.copy() for k, v in model.state.items()}
    for name, value in changed.items():
        state[name.replace("__", ".")] = value
    return replace(model, state=state)


def test_masked_channels_go_with_their_rows_columns_and_batch_norm() -> None:
    keep = np.array([True, False, True, False])
    model = replace(model_of(chain()), channel_masks={"sa": keep})
    plan = plan_removal(model)
    assert plan.layers[0].removed == {1: "masked", 3: "masked"}
    assert plan.validity.time_steps is None
    compact = remove(model, plan)
    assert compact.state["a.weight"].shape == (2, 2, 3, 3)
    np.testing.assert_array_equal(
        compact.state["a_norm.running_mean"], model.state["a_norm.running_mean"][keep]
    )
    np.testing.assert_array_equal(compact.state["b.weight"], model.state["b.weight"][:, keep])
    assert compact.channel_masks == {}
    assert compact.info.stage == "compact"


def test_an_unread_channel_goes_however_active_it_is() -> None:
    model = model_of(chain())
    weight = model.state["c.weight"].copy()
    weight.reshape(5, 6, 4)[:, [0, 4]] = 0  # channel c of sb is columns 4c .. 4c+3
    compact = remove(changed := with_state(model, c__weight=weight), plan := plan_removal(changed))
    assert plan.layers[1].removed == {0: "unread", 4: "unread"}
    assert compact.state["c.weight"].shape == (5, 16)
    np.testing.assert_array_equal(
        compact.state["c.weight"], weight.reshape(5, 6, 4)[:, [1, 2, 3, 5]].reshape(5, 16)
    )


def test_removal_runs_to_the_fixpoint_in_both_directions() -> None:
    """Only channel 0 of sb is read, and it reads only channel 2 of sa."""
    model = model_of(chain())
    linear = np.zeros_like(model.state["c.weight"])
    linear.reshape(5, 6, 4)[:, 0] = 1
    conv = model.state["b.weight"].copy()
    conv[0, [0, 1, 3]] = 0
    plan = plan_removal(with_state(model, c__weight=linear, b__weight=conv))
    assert [layer.kept for layer in plan.layers[:2]] == [(2,), (0,)]


@pytest.mark.parametrize(
    ("bias", "rule", "steps"),
    [
        (-1.0, "silent", None),  # inhibited for ever
        (0.9, "silent", None),  # v tends to 0.9 < 1 and stands still there
        (1.05, "silent", 4),  # v_4 = 1.05 · 15/16 < 1, but v_5 > 1
        (1.2, None, 4),  # v_3 = 1.2 · 7/8 > 1: it fires, so its pattern stays
    ],
)
def test_a_channel_without_inputs_goes_only_if_its_constant_current_is_silent(
    bias: float, rule: str | None, steps: int | None
) -> None:
    """LIF, tau 2, T 4: v_t = I · (1 - 2^-t), fires above 1."""
    model = model_of(chain())
    weight, biases = model.state["b.weight"].copy(), model.state["b.bias"].copy()
    weight[3], biases[3] = 0, bias
    plan = plan_removal(with_state(model, b__weight=weight, b__bias=biases))
    assert plan.layers[1].removed.get(3) == rule
    assert plan.layers[1].generated == ({} if rule else {3: (False, False, True, False)})
    assert plan.validity.time_steps == steps
    assert plan.validity.reset_per_sample == (steps is not None)


def test_what_batch_norm_makes_of_zero_is_not_just_beta() -> None:
    """gamma · (0 - mean) / sqrt(var) + beta = 2 fires although beta alone would not."""
    model = model_of(chain())
    parts = {
        f"a_norm.{p}": model.state[f"a_norm.{p}"].copy()
        for p in ("weight", "bias", "running_mean", "running_var")
    }
    weight = model.state["a.weight"].copy()
    weight[1] = 0
    for name, value in zip(parts, (1.0, 0.5, -1.5, 1.0), strict=True):
        parts[name][1] = value
    state = {**model.state, **parts, "a.weight": weight}
    assert plan_removal(replace(model, state=state)).layers[0].removed == {}
    parts["a_norm.running_mean"][1] = 1.5
    assert plan_removal(replace(model, state=state)).layers[0].removed == {1: "silent"}


def test_the_last_channel_of_a_layer_stays_and_the_layer_is_named() -> None:
    model = replace(model_of(chain()), channel_masks={"sb": np.zeros(6, bool)})
    with pytest.raises(
        RemovalError, match=r"sb: all of its remaining channels could go \(masked\)"
    ):
        plan_removal(model)


def test_a_grouped_layer_stays_whole_and_keeps_its_mask() -> None:
    keep = np.array([True, False, True, True])
    masks = {"sa": keep, "sb": np.array([True] * 5 + [False])}
    model = replace(model_of(chain(groups=2)), channel_masks=masks)
    plan = plan_removal(model)
    assert plan.layers[0].tied == "read by a grouped convolution"
    assert plan.layers[1].tied == "fed by a grouped convolution"
    compact = remove(model, plan)
    np.testing.assert_array_equal(compact.channel_masks["sa"], keep)
    x = torch.rand(3, 2, 6, 6)
    assert torch.equal(compact.module()(x), model.module()(x))


def test_the_plan_prints_a_row_a_layer_and_the_totals() -> None:
    model = replace(model_of(chain()), channel_masks={"sa": np.array([True, False, True, True])})
    text = plan_removal(model).text()
    for word in ("Removal plan", "sa", "sb", "sc", "masked", "total", "15", "14"):
        assert word in text


def test_a_compact_network_refuses_another_number_of_steps_when_that_matters() -> None:
    model = model_of(chain())
    weight, biases = model.state["b.weight"].copy(), model.state["b.bias"].copy()
    weight[3], biases[3] = 0, 1.05
    changed = with_state(model, b__weight=weight, b__bias=biases)
    compact = remove(changed, plan_removal(changed))
    with pytest.raises(ValidityError, match="T = 6 asked, but channels were removed"):
        compact.with_time_steps(6)
    assert compact.with_time_steps(4).graph.time_steps == 4
    assert model.with_time_steps(6).graph.time_steps == 6


def test_a_second_removal_keeps_what_the_first_made_necessary() -> None:
    """The first one is valid for T = 4 steps from rest; the second needs neither."""
    model = constant_channel(chain(), 1.05)
    first = remove(model, plan_removal(model))
    assert first.info.validity == Validity(4, True)
    masked = replace(first, channel_masks={"sa": np.array([True, False, True, True])})
    plan = plan_removal(masked)
    assert plan.layers[0].removed == {1: "masked"} and plan.validity == Validity(None, False)
    assert remove(masked, plan).info.validity == Validity(4, True)


def test_what_reads_only_a_channel_that_is_silent_within_t_is_silent_within_t_only() -> None:
    """The channel itself stays, since its layer is grouped; what it feeds goes."""
    model = constant_channel(chain(groups=2), 1.05)
    weight, bias = model.state["c.weight"].copy(), model.state["c.bias"].copy()
    weight.reshape(5, 6, 4)[1, [0, 1, 2, 4, 5]] = 0
    weight.reshape(5, 6, 4)[1, 3] = 2.0
    bias[1] = -1.0
    changed = with_state(model, c__weight=weight, c__bias=bias)
    plan = plan_removal(changed)
    assert plan.layers[1].removed == {} and plan.layers[2].removed == {1: "silent"}
    assert plan.validity == Validity(4, True)
    x, longer = torch.rand(3, 2, 6, 6), changed.with_time_steps(9)
    assert longer.module().record(x).spikes["sc"][:, :, 1].any()


@pytest.mark.parametrize("tau", [2.0, 50.0, 200.0])
@pytest.mark.parametrize("form", ["soul", "spikingjelly"])
def test_below_the_threshold_a_slow_neuron_is_proven_silent_too(
    tau: float, form: ir.FormName
) -> None:
    """Its membrane tends to 0.5 over hundreds of steps, and stands still there."""
    model = constant_channel(chain(ir.NeuronSpec(tau=tau, form=form)), 0.5)
    plan = plan_removal(model)
    assert plan.layers[1].removed[3] == "silent"
    assert plan.validity == Validity(None, False)


def test_a_compact_file_rebuilds_its_own_architecture(tmp_path) -> None:  # type: ignore[no-untyped-def]
    model = replace(model_of(chain()), channel_masks={"sa": np.array([True, False, True, True])})
    compact = remove(model, plan_removal(model))
    save(compact, tmp_path / "compact.safetensors")
    loaded = load(tmp_path / "compact.safetensors")
    assert loaded.graph == compact.graph and loaded.info == compact.info
    x = torch.rand(2, 2, 6, 6)
    assert torch.equal(loaded.module()(x), compact.module()(x))
    assert parameters(compact.state) < parameters(model.state)


def constant_channel(graph: ir.SpikingGraph, bias: float) -> Model:
    """Channel 3 of sb has no incoming weight and this bias."""
    model = model_of(graph)
    weight, biases = model.state["b.weight"].copy(), model.state["b.bias"].copy()
    weight[3], biases[3] = 0, bias
    return with_state(model, b__weight=weight, b__bias=biases)


def assert_same_outputs(model: Model, compact: Model) -> None:
    x = torch.rand(5, 2, 6, 6, dtype=torch.float64) * 2
    expected, found = double(model)(x), double(compact)(x)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)  # a folded bias is float32


@pytest.mark.parametrize("pool", [ir.MaxPool, ir.AvgPool])
def test_a_constant_channel_that_fires_now_and_then_becomes_a_generator(
    pool: type[ir.MaxPool | ir.AvgPool],
) -> None:
    """Its pattern F F T F stays behind the kept channels; its synapses and neuron go."""
    graph = chain()
    nodes = [n for n in graph.nodes if n.name not in ("flat", "c")]
    nodes[6:6] = [
        pool("pool2", ("sb",), (2, 2), (2, 2)),
        ir.Flatten("flat", ("pool2",)),
        ir.Linear("c", ("flat",), True, None, 6, 5),
    ]
    graph = ir.SpikingGraph(tuple(nodes), 4)
    model = constant_channel(graph, 1.2)
    plan = plan_removal(model)
    assert plan.layers[1].generated == {3: (False, False, True, False)}
    assert plan.layers[1].outputs == (0, 1, 2, 4, 5, 3)
    assert plan.validity.time_steps == 4
    compact = remove(model, plan)
    assert compact.state["b.weight"].shape[0] == 5
    np.testing.assert_array_equal(compact.state["sb.pattern"], [[0], [0], [1], [0]])
    assert parameters(model.state) - parameters(compact.state) == 4 * 2 * 2 + 1  # nobody trains it
    assert compact.graph.shapes["sb"] == (6, 2, 2)
    x = torch.rand(5, 2, 6, 6) * 2
    before, after = model.module().record(x), compact.module().record(x)
    assert torch.equal(after.spikes["sb"][:, :, 5], before.spikes["sb"][:, :, 3])
    assert_same_outputs(model, compact)


def test_a_channel_that_fires_at_every_step_is_folded_into_its_consumers_bias() -> None:
    model = constant_channel(chain(), 2.5)  # v_1 = 1.25 > 1 at every step
    plan = plan_removal(model)
    assert plan.layers[1].removed == {3: "folded"}
    assert plan.layers[1].generated == {} and plan.validity.time_steps is None
    compact = remove(model, plan)
    expected = model.state["c.bias"] + model.state["c.weight"].reshape(5, 6, 4)[:, 3].sum(axis=1)
    np.testing.assert_allclose(compact.state["c.bias"], expected, rtol=1e-6)
    assert_same_outputs(model, compact)


def test_a_fold_into_batch_norm_moves_its_mean() -> None:
    graph = chain()
    linear = graph["c"]
    assert isinstance(linear, ir.Linear)
    graph = graph.with_nodes({"c": replace(linear, bias=False, norm=ir.BatchNorm("c_norm"))})
    model = constant_channel(graph, 2.5)
    compact = remove(model, plan_removal(model))
    shift = compact.state["c_norm.running_mean"] - model.state["c_norm.running_mean"]
    added = model.state["c.weight"].reshape(5, 6, 4)[:, 3].sum(axis=1)
    np.testing.assert_allclose(shift, -added, rtol=1e-5)
    assert_same_outputs(model, compact)


def test_a_fold_into_a_layer_without_bias_gives_it_one() -> None:
    graph = chain()
    linear = graph["c"]
    assert isinstance(linear, ir.Linear)
    model = constant_channel(graph.with_nodes({"c": replace(linear, bias=False)}), 2.5)
    compact = remove(model, plan_removal(model))
    assert compact.state["c.bias"].shape == (5,)
    assert_same_outputs(model, compact)


def test_padding_forbids_the_fold_so_the_channel_becomes_a_generator() -> None:
    graph = chain()
    conv = graph["b"]
    assert isinstance(conv, ir.Convolution)
    padded = replace(conv, padding=(1, 1))
    linear = ir.Linear("c", ("flat",), True, None, 6 * 16, 5)
    graph = graph.with_nodes({"b": padded, "c": linear})
    model = model_of(graph)
    bias, weight = model.state["a_norm.bias"].copy(), model.state["a.weight"].copy()
    mean = model.state["a_norm.running_mean"].copy()
    weight[2], bias[2], mean[2] = 0, 3.0, 0.0
    model = replace(
        model,
        state={**model.state, "a.weight": weight, "a_norm.bias": bias, "a_norm.running_mean": mean},
    )
    plan = plan_removal(model)
    assert plan.layers[0].generated == {2: (True,) * 4}
    assert_same_outputs(model, remove(model, plan))


def test_a_masked_position_forbids_the_fold() -> None:
    spikes = np.ones((6, 2, 2), bool)
    spikes[3, 0, 1] = False
    model = replace(constant_channel(chain(), 2.5), neuron_masks={"sb": spikes})
    plan = plan_removal(model)
    assert plan.layers[1].generated == {3: (True,) * 4}
    compact = remove(model, plan)
    np.testing.assert_array_equal(compact.neuron_masks["sb"][5], spikes[3])
    assert_same_outputs(model, compact)


def test_a_channel_whose_neurons_are_all_masked_goes_and_single_ones_stay_masked() -> None:
    spikes = np.ones((6, 2, 2), bool)
    spikes[1] = False
    spikes[4, 1, 1] = False
    model = replace(model_of(chain()), neuron_masks={"sb": spikes})
    plan = plan_removal(model)
    assert plan.layers[1].removed == {1: "masked"}
    assert plan.layers[1].masked_neurons == 1
    compact = remove(model, plan)
    np.testing.assert_array_equal(compact.neuron_masks["sb"], np.delete(spikes, 1, axis=0))
    assert_same_outputs(model, compact)


def test_a_folded_bias_can_make_the_next_layer_constant_too() -> None:
    """sb channel 3 fires always; channel 1 of sc reads only it, and so fires always or never."""
    model = constant_channel(chain(), 2.5)
    weight, bias = model.state["c.weight"].copy(), model.state["c.bias"].copy()
    by_channel = weight.reshape(5, 6, 4)
    by_channel[1] = 0
    by_channel[1, 3] = -1
    bias[1] = 3.5  # folded: 3.5 - 4 = -0.5, silent; without the fold it would look as if it fired
    model = with_state(model, c__weight=weight, c__bias=bias)
    plan = plan_removal(model)
    assert plan.layers[2].removed == {1: "silent"}
    assert_same_outputs(model, remove(model, plan))


def test_round_to_takes_channels_back_without_changing_the_outputs() -> None:
    keep = np.array([True, False, False, True, False, True])
    model = replace(model_of(chain()), channel_masks={"sb": keep})
    plan = plan_removal(model, round_to=4)
    assert [len(layer.kept) for layer in plan.layers[:2]] == [4, 4]
    compact = remove(model, plan)
    np.testing.assert_array_equal(compact.channel_masks["sb"], [True, False, True, True])
    assert_same_outputs(model, compact)


def descending() -> ir.SpikingGraph:
    """Two linear layers whose names fall; each is the only one of its population."""
    nodes: tuple[ir.Node, ...] = (
        ir.Input("input", (), (5,)),
        ir.Linear("z", ("input",), True, None, 5, 7),
        ir.Population("sz", ("z",), LIF),
        ir.Linear("y", ("sz",), True, None, 7, 6),
        ir.Population("sy", ("y",), LIF),
        ir.Readout("head", ("sy",), 3),
    )
    return ir.SpikingGraph(nodes, 4)


MASKS: dict[str, tuple[ir.SpikingGraph, dict[str, list[int]]]] = {
    "chain": (chain(), {"sa": [1, 0, 1, 1], "sb": [1, 1, 0, 0, 1, 0], "sc": [0, 1, 1, 0, 1]}),
    "grouped": (chain(groups=2), {"sb": [1, 1, 0, 0, 1, 0], "sc": [0, 1, 1, 0, 1]}),
    "descending": (descending(), {"sz": [1, 0, 1, 1, 0, 1, 0], "sy": [0, 1, 1, 1, 1, 0]}),
}


@pytest.mark.parametrize("round_to", [1, 2, 3, 4])
@pytest.mark.parametrize("case", MASKS)
def test_a_plan_counts_the_weights_that_are_there_and_those_that_stay(
    case: str, round_to: int
) -> None:
    """Of each population's projection; kept are multiples of round_to, or all."""
    graph, kept = MASKS[case]
    masks = {name: np.array(keep, bool) for name, keep in kept.items()}
    model = replace(model_of(graph), channel_masks=masks)
    plan = plan_removal(model, round_to=round_to)
    compact = remove(model, plan)
    assert [layer.population for layer in plan.layers] == [p.name for p in graph.populations]
    for layer in plan.layers:
        (name,) = graph[layer.population].inputs
        assert layer.projection == name
        assert layer.synapses == model.state[f"{name}.weight"].size
        assert layer.synapses_after == compact.state[f"{name}.weight"].size
        if layer.population in masks and layer.tied is None:
            keep = masks[layer.population]
            least = -(-int(keep.sum()) // round_to) * round_to
            assert len(layer.kept) == min(least, len(keep))
            back = [c for c in np.flatnonzero(~keep) if c in layer.kept]
            assert back == list(np.flatnonzero(~keep)[: len(back)])  # the lowest come back
    assert_same_scores(model, compact)


def assert_same_scores(model: Model, compact: Model) -> None:
    x = torch.rand(5, *model.graph.input.shape, dtype=torch.float64) * 2
    torch.testing.assert_close(double(compact)(x), double(model)(x), rtol=0, atol=1e-6)


@pytest.mark.parametrize("wrong", [0, -1])
def test_channels_are_rounded_to_at_least_1(wrong: int) -> None:
    with pytest.raises(UsageError, match=f"round_to {wrong} must be at least 1"):
        plan_removal(model_of(chain()), round_to=wrong)
    with pytest.raises(UnknownNameError, match="residual"):
        plan_removal(model_of(chain()), residual="all")  # type: ignore[arg-type]


@st.composite
def masked_models(draw: st.DrawFn) -> Model:
    neuron = ir.NeuronSpec(
        family=draw(st.sampled_from(["if", "lif", "plif"])),
        tau=draw(st.sampled_from([2.0, 3.0, 1.7])),
        decay_input=draw(st.booleans()),
        v_reset=draw(st.sampled_from([0.0, None, -0.25])),
        fire=draw(st.sampled_from(["gt", "ge"])),
    )
    graph = chain(neuron, time_steps=draw(st.integers(1, 8)))
    if draw(st.booleans()):
        graph = graph.with_nodes({"pool": ir.AvgPool("pool", ("sa",), (2, 2), (2, 2))})
    model = model_of(graph, draw(st.integers(0, 10_000)))
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    masks = {}
    for name, count in (("sa", 4), ("sb", 6), ("sc", 5)):
        keep = rng.random(count) < 0.6
        keep[rng.integers(count)] = True
        masks[name] = keep
    return replace(model, channel_masks=masks)


@given(masked_models(), st.integers(1, 5))
def test_compact_equals_masked_in_float64(model: Model, batch: int) -> None:
    try:
        plan = plan_removal(model)
    except RemovalError:
        return  # a drawn network whose output does not depend on its input
    compact = remove(model, plan)
    x = torch.rand(batch, 2, 6, 6, dtype=torch.float64) * 2
    masked_run = double(model).record(x)
    compact_run = double(compact).record(x)
    for layer in plan.layers:
        kept = list(layer.kept)
        assert torch.equal(
            masked_run.spikes[layer.population][:, :, kept], compact_run.spikes[layer.population]
        )
        gone = [c for c, rule in layer.removed.items() if rule != "unread"]
        assert not masked_run.spikes[layer.population][:, :, gone].any()
    torch.testing.assert_close(compact_run.logits, masked_run.logits, rtol=0, atol=1e-12)


def double(model: Model) -> GraphModule:
    module = model.module().double()
    for mask in module.channel_masks.values():
        mask.keep = mask.keep.double()
    return module
