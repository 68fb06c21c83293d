"""Frozen epochs at compact width: what is removed, what is trained, what is written back."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
import torch
from blocks import LIF, conv, kept, masked, model_of, ms, sew
from chains import build as chain_model
from chains import chains, images, pruned
from hypothesis import given
from hypothesis import strategies as st
from residual import ResidualSpec, randomise, residual_images, residual_model, residuals
from residual import masked as residual_masked
from searching import few, network
from torch import Tensor

from soul_deploy import ir
from soul_deploy.base import Array
from soul_deploy.base.errors import FileFormatError
from soul_deploy.data.datasets import Data
from soul_deploy.model.model import Model, ModelInfo, from_module
from soul_deploy.nn.graph_module import GraphModule
from soul_deploy.prune.channel_groups import RESIDUAL, Residual
from soul_deploy.prune.removal.apply import remove
from soul_deploy.prune.removal.planner import plan_removal
from soul_deploy.prune.structured import frozen, sca
from soul_deploy.prune.structured.config import PruneSchedule, ScaConfig
from soul_deploy.prune.structured.masks import open_masks
from soul_deploy.prune.structured.selection import ChannelPlan, prunable
from soul_deploy.training import trainer
from soul_deploy.training.lr_schedules import Schedule
from soul_deploy.training.state import Tree, join_tree, split_tree
from soul_deploy.training.trainer import (
    BatchHooks,
    EpochResult,
    TrainConfig,
    Training,
    copied_state,
)

DIGITS = (1, 8, 8)


@pytest.fixture(scope="module")
def digits() -> Data:
    return few(96)


def copy_of(tree: Tree) -> Tree:
    """As a checkpoint would give it back."""
    arrays, facts = split_tree(tree)
    return join_tree({name: np.array(array) for name, array in arrays.items()}, facts)


def names_of(module: GraphModule) -> tuple[str, ...]:
    return tuple(node.name for node in prunable(module.graph))


def same_function(
    whole: GraphModule, compact: GraphModule, made: frozen.Narrowed, x: Tensor
) -> None:
    """Equal logits to the bit; a channel that is gone never spikes, unless a merge by AND or IAND
    takes its spikes away: where one branch is masked, those of the other reach nothing.
    """
    expected, found = whole.record(x), compact.record(x)
    merges = {n.function for n in whole.graph.nodes if isinstance(n, ir.Merge)}
    taken = bool(merges & {"and", "iand"})
    assert torch.equal(expected.logits, found.logits)
    for name, spikes in found.spikes.items():
        full = expected.spikes[name]
        gone = full.sum() - spikes.sum()
        channels = made.channels.get(name)
        if channels is not None and spikes.shape[2] == len(channels):
            assert torch.equal(full[:, :, torch.from_numpy(channels)], spikes)
            assert gone == 0 or taken


def check_any_weights(
    model: Model, residual: Residual, seed: int, x: Tensor, reserved: float
) -> frozen.Narrowed:
    """Narrow, give what is left other weights, write back: still one function."""
    rng = np.random.default_rng(seed)
    reserve = {name: rng.random(len(keep)) < reserved for name, keep in model.channel_masks.items()}
    whole = model.module()
    made = frozen.narrowed(whole, residual, reserve)
    compact = made.model.module()
    same_function(whole, compact, made, x)
    randomise(compact, rng, dyadic=True)
    for name, mask in compact.channel_masks.items():  # what is reserved may come back
        mask.keep.copy_(torch.from_numpy(rng.random(len(mask.keep)) < 0.7))
        assert len(made.channels[name]) == len(mask.keep)
    made.write_back(compact, whole)
    same_function(whole, compact, made, x)
    return made


@given(residuals(dyadic=True), st.sampled_from(RESIDUAL), st.integers(0, 2**16), st.booleans())
def test_what_the_masks_remove_is_gone_whatever_the_weights_become(
    spec: ResidualSpec, residual: Residual, seed: int, neurons: bool
) -> None:
    model = residual_masked(residual_model(spec), seed, neurons=neurons)
    check_any_weights(model, residual, seed, residual_images(spec), 0.3 * (seed % 2))


@given(chains(dyadic=True), st.integers(0, 2**16), st.booleans())
def test_chains_too_and_what_is_constant_today_stays(
    spec: "object", seed: int, constants: bool
) -> None:
    model = pruned(chain_model(spec), seed, constants=constants)  # type: ignore[arg-type]
    made = check_any_weights(model, "coupled", seed, images(spec), 0.0)  # type: ignore[arg-type]
    for name, keep in model.channel_masks.items():
        assert set(np.flatnonzero(keep)) <= set(made.channels[name].tolist())
    assert all(not node.generated for node in made.model.graph.nodes)


def test_by_hand_only_masked_channels_go_and_the_reserve_stays() -> None:
    """b's row 1 reads nothing and is silent: the full removal takes it, this one does not."""
    nodes = (
        ir.Input("input", (), (2, 4, 4)),
        conv("a", "input", 2, 4),
        ir.Population("sa", ("a",), LIF),
        conv("b", "sa", 4, 3),
        ir.Population("sb", ("b",), LIF),
        ir.Readout("head", ("sb",), 3),
    )
    model = masked(model_of(ir.SpikingGraph(nodes, 2)), sa=kept(0, 3))
    state = dict(model.state)
    state["b.weight"] = state["b.weight"].copy()
    state["b.weight"][1] = 0
    model = replace(model, state=state)
    full = remove(model).graph.shapes
    assert (full["sa"], full["sb"]) == ((2, 4, 4), (2, 4, 4))
    made = frozen.narrowed(model.module(), "coupled", {})
    assert made.model.graph.shapes["sa"] == (2, 4, 4) and made.model.graph.shapes["sb"] == (3, 4, 4)
    assert made.channels["sa"].tolist() == [0, 3] and made.model.channel_masks == {}
    some = frozen.narrowed(model.module(), "coupled", {"sa": kept(1)})
    assert some.channels["sa"].tolist() == [0, 1, 3]
    assert some.model.channel_masks["sa"].tolist() == [True, False, True]
    # 4 input channels of 9 taps a row: row 2 of b, of input 3, tap 5
    assert made.places["b.weight"].shape == (3, 2, 3, 3)
    assert made.places["b.weight"][2, 1, 1, 2] == 2 * 36 + 3 * 9 + 5
    assert made.places["head.weight"].tolist() == np.arange(9).reshape(3, 3).tolist()


def test_where_nothing_can_be_removed_it_says_so(caplog: pytest.LogCaptureFixture) -> None:
    model = masked(model_of(sew("add")), s0=kept(), b0__sn2=kept())
    made = frozen.narrowed(model.module(), "coupled", {})
    assert "frozen masks run at full width: " in caplog.text
    assert made.model.graph == model.graph and made.channels["s0"].tolist() == [0, 1, 2, 3]
    x = torch.rand(3, 2, 4, 4)
    assert torch.equal(made.model.module()(x), model.module()(x))


def loop_of(
    module: GraphModule, data: Data, config: ScaConfig, **recipe: object
) -> sca.ChannelPruning:
    how = {"batch_size": 32, "learning_rate": 2e-3, **recipe}
    names = names_of(module) if config.residual == "internal" else tuple(
        node.name for node in module.graph.populations
    )  # fmt: skip
    return sca.ChannelPruning(module, data, TrainConfig(**how), config, names)  # type: ignore[arg-type]


SCHEDULE = PruneSchedule(0.5, 0.1, epochs=3, finetune_epochs=2)


def on_a_grid(module: GraphModule) -> None:
    """Weights on a grid, so that sums are exact in any order; no batch norm."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_((parameter * 256).round() / 256)


@pytest.mark.parametrize("how", RESIDUAL)
@pytest.mark.parametrize("kind", ["add", "and", "iand", "ms"])
def test_the_masked_network_is_the_compact_one_after_the_frozen_epochs(
    how: Residual, kind: str, digits: Data
) -> None:
    function: ir.MergeFunction = "add" if kind == "ms" else kind  # type: ignore[assignment]
    graph = ms(shape=DIGITS, classes=10) if kind == "ms" else sew(
        function, "add", shape=DIGITS, classes=10
    )  # fmt: skip
    module = model_of(graph, 1).module()
    loop = loop_of(module, digits, ScaConfig(SCHEDULE, residual=how))
    widths, before = [], {}
    for step in loop.run():
        widths.append(sum(p.numel() for p in loop.module.parameters()))
        if step.result.epoch == 1:
            before = copied_state(module)
    assert widths[0] > widths[1] == widths[2]
    compact = loop.module
    moved = False
    for name, mask in module.channel_masks.items():
        row = f"{graph.masked_projection(name)}.weight"
        now, closed = module.state_dict()[row], mask.keep == 0
        if compact.state_dict()[row].shape[0] == int(mask.keep.sum()):
            assert torch.equal(now[closed], before[row][closed]), name
        moved |= not torch.equal(now[~closed], before[row][~closed])
    assert moved or loop._frozen is not None
    images = torch.round(digits.normalise(digits.test.images) * 64) / 64
    on_a_grid(module)
    on_a_grid(compact)
    assert torch.equal(module(images), compact(images))
    whole = from_module(module, ModelInfo())
    streams = "scatter" if how == "scatter" else "coupled"
    removed = remove(whole, plan_removal(whole, residual=streams))  # type: ignore[arg-type]
    assert torch.equal(removed.module()(images), compact(images))


def test_frozen_epochs_run_at_compact_width(digits: Data) -> None:
    """Channels of every layer that is trained, epoch by epoch."""
    module = network(digits)
    loop = loop_of(module, digits, ScaConfig(SCHEDULE))
    names, widths = names_of(module), []
    for _ in loop.run():
        widths.append([loop.module.graph.shapes[name][0] for name in names])
    stay = [int(module.channel_masks[name].keep.sum()) for name in names]
    assert widths == [[64, 128, 8, 8], stay, stay] and sum(stay) == 104
    weight = loop.module.get_parameter("features.0.conv.0.weight")
    assert len(weight) == stay[0]


@pytest.mark.parametrize(
    ("optimizer", "rate", "schedule"),
    [
        ("adam", 1e-3, Schedule()),
        ("sgd", 0.02, Schedule("step", (1, 3))),
        ("adamw", 1e-3, Schedule("warmup")),
        ("rmsprop", 1e-4, Schedule("linear")),
    ],
)
def test_it_learns_what_the_whole_network_would(
    optimizer: str, rate: float, schedule: Schedule, digits: Data
) -> None:
    """The same training went on at full width: losses, rates, then weights."""
    recipe = {"optimizer": optimizer, "learning_rate": rate, "schedule": schedule}
    config = ScaConfig(replace(SCHEDULE, epochs=4, finetune_epochs=3, interval=1))
    module, twin = network(digits), network(digits)
    loop, before = loop_of(module, digits, config, **recipe), {}
    results: list[EpochResult] = []
    for step in loop.run():
        if step.result.epoch == 1:
            before = copy_of(loop.state())
        else:
            results.append(step.result)
            ended = copied_state(loop.module)
    open_masks(twin, names_of(twin))
    how = TrainConfig(batch_size=32, epochs=4, **recipe)  # type: ignore[arg-type]
    full = Training(twin, digits, how)
    full.restore(before["training"])
    for found, expected in zip(results, full.run(), strict=True):
        assert found.epoch == expected.epoch and found.learning_rate == expected.learning_rate
        assert found.loss == pytest.approx(expected.loss, rel=1e-4)
    places = loop._frozen._made.places  # type: ignore[union-attr]
    for name, tensor in ended.items():
        there = twin.state_dict()[name].reshape(-1)[torch.from_numpy(places[name])]
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor, there, rtol=1e-3, atol=1e-4)


class Swap:
    """After each frozen epoch, one channel of a layer goes and one of its reserve comes."""

    def __init__(self, name: str, reserve: list[int]) -> None:
        self.name, self.left = name, list(reserve)
        self.seen: list[list[int]] = []
        self.channels: list[int] = []

    def begin(self, module: GraphModule, channels: Mapping[str, Array]) -> BatchHooks:
        open_masks(module, [self.name])
        self.channels = channels[self.name].tolist()
        return BatchHooks()

    def after_epoch(self, training: Training) -> ChannelPlan | None:
        keep = training.module.channel_masks[self.name].keep
        if not self.left:
            return None
        keep[int(keep.argmax())] = 0
        keep[self.channels.index(self.left.pop(0))] = 1
        self.seen.append([self.channels[i] for i in keep.nonzero().flatten().tolist()])
        return ChannelPlan(())

    def worth(self, accuracy: float) -> float:
        return accuracy

    def state(self) -> Tree:
        return {"left": list(self.left)}

    def restore(self, tree: Tree) -> None:
        self.left = tree["left"]


def corrected(data: Data, name: str) -> tuple[frozen.FrozenEpochs, GraphModule, Swap]:
    module = network(data)
    open_masks(module, [name])
    module.channel_masks[name].keep[:5] = 0
    reserve = np.zeros(len(module.channel_masks[name].keep), bool)
    reserve[[1, 3]] = True
    swap = Swap(name, [3, 1])
    whole = Training(module, data, TrainConfig(epochs=3, batch_size=48, learning_rate=2e-3))
    epochs = frozen.FrozenEpochs(whole, "internal", reserve={name: reserve}, correction=swap)
    return epochs, module, swap


def test_masks_can_be_corrected_within_the_reserve(
    digits: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = iter(range(100))  # every measurement is above the one before
    monkeypatch.setattr(trainer, "accuracy", lambda *ignored: next(steps) / 100)
    epochs, module, swap = corrected(digits, "features.0.sn")
    epochs.begin()
    assert swap.channels == [1, 3, *range(5, 64)]
    plans, accuracies, states = [], [], []
    for result, plan in epochs.run():
        plans.append(plan is not None)
        accuracies.append(result.validation_accuracy)
        states.append(copy_of(epochs.state()))
    assert plans == [True, True, False]
    assert swap.seen == [[3, *range(6, 64)], [1, *range(6, 64)]]
    kept = module.channel_masks[swap.name].keep.nonzero().flatten().tolist()
    assert kept == swap.seen[-1]
    again, other, rest = corrected(digits, swap.name)
    again.restore(states[0])
    assert rest.left == [1] and rest.channels == swap.channels
    list(again.run())
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name
    assert other.channel_masks[swap.name].keep.nonzero().flatten().tolist() == kept
    images = torch.round(digits.normalise(digits.test.images) * 64) / 64
    on_a_grid(module.eval())
    on_a_grid(epochs.module)
    assert torch.equal(module(images), epochs.module(images))


def test_a_reserve_of_another_network_is_refused(digits: Data) -> None:
    epochs, _, swap = corrected(digits, "features.0.sn")
    epochs.begin()
    state = copy_of(epochs.state())
    for odd in ({"x": np.ones(64, bool)}, {swap.name: np.ones(3, bool)}, {swap.name: np.ones(64)}):
        with pytest.raises(FileFormatError, match="does not fit its mask"):
            corrected(digits, swap.name)[0].restore({**state, "reserve": odd})


def test_a_checkpoint_of_an_earlier_version_is_refused(digits: Data) -> None:
    loop = loop_of(network(digits), digits, ScaConfig(SCHEDULE))
    old = copy_of(loop.state()) | {"best": {"epochs": [], "weights": {}}}
    with pytest.raises(FileFormatError, match="earlier version wrote it, which fine-tuned at full"):
        loop_of(network(digits), digits, ScaConfig(SCHEDULE)).restore(old)
