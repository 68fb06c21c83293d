"""The removal plan by hand on small chains, and compact = masked on drawn ones."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from soul_deploy.graph import (
    AvgPool,
    BatchNorm,
    Convolution,
    Flatten,
    Input,
    Linear,
    MaxPool,
    NeuronSpec,
    Node,
    Population,
    Readout,
    SpikingGraph,
)
from soul_deploy.modelfile import Model, arrays_of, load_model, save_model
from soul_deploy.module import GraphModule
from soul_deploy.prune.plan import plan_removal
from soul_deploy.prune.remove import parameters, remove
from soul_deploy.runtime.errors import RemovalError, ValidityError

LIF = NeuronSpec()


def chain(neuron: NeuronSpec = LIF, *, groups: int = 1, time_steps: int = 4) -> SpikingGraph:
    """Input 2×6×6, conv+norm 4, pool, conv 6 (bias), flatten, linear 5, readout of 3 classes."""
    nodes: tuple[Node, ...] = (
        Input("input", (), (2, 6, 6)),
        Convolution("a", ("input",), False, BatchNorm("a_norm"), 2, 4, (3, 3), padding=(1, 1)),
        Population("sa", ("a",), neuron),
        MaxPool("pool", ("sa",), (2, 2), (2, 2)),
        Convolution("b", ("pool",), True, None, 4, 6, (2, 2), groups=groups),
        Population("sb", ("b",), neuron),
        Flatten("flat", ("sb",)),
        Linear("c", ("flat",), True, None, 24, 5),
        Population("sc", ("c",), neuron),
        Readout("head", ("sc",), 3),
    )
    return SpikingGraph(nodes, time_steps)


def model_of(graph: SpikingGraph, seed: int = 0) -> Model:
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
        (1.2, None, None),  # v_3 = 1.2 · 7/8 > 1: it fires
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
    text = plan_removal(model).table()
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


def test_a_compact_file_rebuilds_its_own_architecture(tmp_path) -> None:  # type: ignore[no-untyped-def]
    model = replace(model_of(chain()), channel_masks={"sa": np.array([True, False, True, True])})
    compact = remove(model, plan_removal(model))
    save_model(tmp_path / "compact.safetensors", compact)
    loaded = load_model(tmp_path / "compact.safetensors")
    assert loaded.graph == compact.graph and loaded.info == compact.info
    x = torch.rand(2, 2, 6, 6)
    assert torch.equal(loaded.module()(x), compact.module()(x))
    assert parameters(compact.state) < parameters(model.state)


@st.composite
def masked_models(draw: st.DrawFn) -> Model:
    neuron = NeuronSpec(
        family=draw(st.sampled_from(["if", "lif", "plif"])),
        tau=draw(st.sampled_from([2.0, 3.0, 1.7])),
        decay_input=draw(st.booleans()),
        v_reset=draw(st.sampled_from([0.0, None, -0.25])),
        fire=draw(st.sampled_from(["gt", "ge"])),
    )
    graph = chain(neuron, time_steps=draw(st.integers(1, 8)))
    if draw(st.booleans()):
        graph = graph.with_nodes({"pool": AvgPool("pool", ("sa",), (2, 2), (2, 2))})
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
