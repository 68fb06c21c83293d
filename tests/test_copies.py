"""Copies and worker processes: what a copy computes is what the original computes."""

import copy
import multiprocessing
import pickle
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from typing import Any

import joblib
import numpy as np
import pytest
import torch
from chains import ChainSpec, build, chains, images, pruned, random_masks, random_neuron_masks
from deployed import SHAPE, STEPS, small_model
from hypothesis import given, settings
from hypothesis import strategies as st
from residual import ResidualSpec, masked, residual_images, residual_model, residuals

from soul_deploy.base import Array, errors
from soul_deploy.base.errors import RemovalError, UsageError, ValidityError
from soul_deploy.export.event.build import build_event_network
from soul_deploy.model.model import Model, Validity
from soul_deploy.nn.graph_module import GraphModule
from soul_deploy.prune.removal.apply import remove
from soul_deploy.prune.removal.planner import plan_removal
from soul_deploy.prune.unstructured.loss import coefficients
from soul_deploy.prune.unstructured.masks import MaskStart, make_masks
from soul_deploy.prune.unstructured.search import SearchStoppedError
from soul_deploy.runtime.engine.network import Network
from soul_deploy.runtime.engine.thread_team import ThreadTeam
from soul_deploy.runtime.ops.counted_run import count, fan_out
from soul_deploy.training.state import TrainingCursor

Copy = Callable[[Any], Any]
PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)


def pickled(protocol: int) -> Copy:
    return lambda found: pickle.loads(pickle.dumps(found, protocol))


COPIES: dict[str, Copy] = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "copy of a copy": lambda found: copy.deepcopy(copy.copy(found)),
    **{f"pickle {protocol}": pickled(protocol) for protocol in PROTOCOLS},
}
each_copy = pytest.mark.parametrize("made", COPIES.values(), ids=COPIES)


def inputs(batch: int = 8, seed: int = 0) -> Array:
    drawn: Array = np.random.default_rng(seed).normal(size=(batch, *SHAPE)).astype(np.float32)
    return drawn


def network_of(threads: int) -> Network:
    """It has run, streamed and looked up its layers, so all that it keeps is there."""
    network = Network(build_event_network(small_model()), threads)
    network.run(inputs(5, seed=9))
    network.run(inputs(1, seed=8))
    network.run(np.stack([inputs(2, seed=t) for t in range(STEPS)]))
    count(network, inputs(1))
    network.step(inputs(2))
    network.reset()
    return network


@pytest.mark.parametrize("threads", [1, 2])
@each_copy
def test_a_copy_of_a_network_that_has_run_reads_its_input(threads: int, made: Copy) -> None:
    network = network_of(threads)
    x = inputs()
    want = network.run(x)
    assert len(np.unique(want, axis=0)) > 5
    other = made(network)
    np.testing.assert_array_equal(other.run(x), want)
    np.testing.assert_array_equal(other.run(x[:1]), want[:1])
    assert other.threads == threads and count(other, x[:2]) == count(network, x[:2])
    np.testing.assert_array_equal(network.run(x), want)  # and the original goes on as before


def test_a_used_network_takes_no_more_bytes_than_a_new_one() -> None:
    new = Network(build_event_network(small_model()), 1)
    assert len(pickle.dumps(network_of(1))) <= len(pickle.dumps(new)) + 4096


@each_copy
def test_a_running_stream_goes_on_in_a_copy_and_in_the_original_apart(made: Copy) -> None:
    network = network_of(1)
    shown = [inputs(2, seed=t) for t in range(STEPS)]
    want = []
    for frame in shown:
        want.append(network.step(frame))
    network.reset()
    np.testing.assert_array_equal(network.step(shown[0]), want[0])
    other = made(network)
    for frame, scores in zip(shown[1:], want[1:], strict=True):
        np.testing.assert_array_equal(other.step(frame), scores)
    for frame, scores in zip(shown[1:], want[1:], strict=True):
        np.testing.assert_array_equal(network.step(frame), scores)


def check_streams(network: Network, x: Array, copied_after: int) -> None:
    """The copy after so many steps gives what the original gives, whatever comes next."""
    steps = 2 * network.time_steps if not network.events.fixed_steps else network.time_steps
    other = np.roll(x, 1, axis=-1)
    shown = [None if t % 2 else (x, other)[t // 2 % 2] for t in range(steps)]
    copied: Network | None = None
    for t, frame in enumerate(shown):
        if t == max(1, copied_after % steps):
            copied = copy.deepcopy(network)
        scores = network.step(frame)
        if copied is not None:
            np.testing.assert_array_equal(copied.step(frame), scores)
    np.testing.assert_array_equal(network.run(x), Network(network.events, 1).run(x))


@given(chains(max_groups=1), st.integers(1, 6), st.integers(0, 2**16))
@settings(max_examples=25)
def test_streams_of_any_chain_are_copied_whole(spec: ChainSpec, after: int, seed: int) -> None:
    """Compacted and dense populations, constant-pattern channels, removals of one T."""
    thinned = pruned(build(spec), spec.seed)
    try:
        model = remove(thinned, plan_removal(thinned))
    except RemovalError:
        model = thinned
    model = replace(model, neuron_masks=random_neuron_masks(model, seed))
    check_streams(Network(build_event_network(model), 1), images(spec).numpy(), after)


@given(residuals(), st.integers(1, 6), st.integers(0, 2**16), st.booleans())
@settings(max_examples=15)
def test_streams_of_residual_networks_are_copied_whole(
    spec: ResidualSpec, after: int, seed: int, neurons: bool
) -> None:
    model = masked(residual_model(spec), seed, neurons=neurons)
    check_streams(Network(build_event_network(model), 1), residual_images(spec).numpy(), after)


@each_copy
def test_a_copied_stream_knows_its_step(made: Copy) -> None:
    model = small_model()
    model = replace(model, info=replace(model.info, validity=Validity(STEPS)))
    network = Network(build_event_network(model), 1)
    network.step(inputs(2))
    other = made(network)
    for stream in (network, other):
        for t in range(1, STEPS):
            stream.step(inputs(2, seed=t))
        with pytest.raises(ValidityError, match=f"step {STEPS + 1} asked, but this network is"):
            stream.step()


def pools() -> Iterator[tuple[str, Callable[[Callable[[Array], Array], list[Array]], list[Array]]]]:
    def mapped(method: str) -> Any:
        def work(run: Callable[[Array], Array], parts: list[Array]) -> list[Array]:
            with multiprocessing.get_context(method).Pool(2) as pool:
                return pool.map(run, parts)

        return work

    for method in ("spawn", "forkserver", "fork"):
        yield f"multiprocessing {method}", mapped(method)

    def futures(run: Callable[[Array], Array], parts: list[Array]) -> list[Array]:
        with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
            return list(pool.map(run, parts))

    def loky(run: Callable[[Array], Array], parts: list[Array]) -> list[Array]:
        found: list[Array] = joblib.Parallel(2, "loky")(joblib.delayed(run)(x) for x in parts)
        return found

    yield "concurrent.futures", futures
    yield "joblib loky", loky


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("name", "work"), list(pools()), ids=[name for name, _ in pools()])
def test_worker_processes_give_the_same_scores(name: str, work: Any, threads: int) -> None:
    network = network_of(threads)
    parts = [inputs(3, seed=i) for i in range(4)]
    for found, x in zip(work(network.run, parts), parts, strict=True):
        np.testing.assert_array_equal(found, network.run(x))


def test_workers_go_on_with_a_stream() -> None:
    network = network_of(2)
    network.step(inputs(2))
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        found = pool.submit(network.step, inputs(2, seed=1)).result()
    np.testing.assert_array_equal(found, network.step(inputs(2, seed=1)))


def test_buffers_are_not_copied() -> None:
    network = network_of(1)
    (buffers, *_) = next(iter(network._spare.values()))
    for made in COPIES.values():
        with pytest.raises(UsageError, match="copy its network, which builds its own"):
            made(buffers)


@each_copy
def test_a_copied_team_has_threads_of_its_own(made: Copy) -> None:
    team = ThreadTeam(2)
    team.each(lambda thread, barrier: None)
    other, seen = made(team), []
    other.each(lambda thread, barrier: seen.append(thread))
    assert sorted(seen) == [0, 1] and other is not team


def thinned() -> Model:
    model = small_model()
    masks = random_masks(model, seed=3)
    return replace(model, channel_masks=masks, neuron_masks=random_neuron_masks(model, 4))


@each_copy
def test_a_copied_model_computes_the_same(made: Copy) -> None:
    model, x = thinned(), torch.from_numpy(inputs())
    model.graph.consumers["input"]  # the views of the graph are there
    other = made(model)
    assert other.graph == model.graph and other.info == model.info
    assert other.graph.shapes == model.graph.shapes and other.graph.edges == model.graph.edges
    assert dict(other.graph.consumers) == dict(model.graph.consumers)
    with torch.no_grad():
        assert torch.equal(other.module()(x), model.module()(x))
    plan = plan_removal(model)
    copied = made(plan)
    assert copied.layers == plan.layers
    with torch.no_grad():
        assert torch.equal(remove(other, copied).module()(x), remove(model, plan).module()(x))


DEEP = {name: made for name, made in COPIES.items() if name != "copy"}


@pytest.mark.parametrize("made", DEEP.values(), ids=DEEP)
def test_a_module_that_was_trained_is_copied_whole(made: Copy) -> None:
    """A forward pass leaves gains in its masks, which belong to the graph of that pass."""
    module, x = thinned().module().train(), torch.from_numpy(inputs())
    module(x).sum().backward()
    other = made(module).eval()
    module.eval()
    assert any(mask.gain is not None for mask in module.channel_masks.values())
    assert torch.equal(other(x), module(x))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
        for mask in module.channel_masks.values():
            mask.keep.zero_()
    assert not torch.equal(other(x), module(x))


@pytest.mark.parametrize("made", DEEP.values(), ids=DEEP)
def test_a_module_and_its_searched_masks_stay_together(made: Copy) -> None:
    module, x = small_model().module(), torch.from_numpy(inputs())
    names = [node.name for node in module.graph.projections]
    costs = coefficients(module.graph, "exact")
    masks = make_masks(module, names, [], costs, MaskStart(seed=1, weight_std=1.0))
    masks.attach(module)
    before = module(x)
    copied, own = made((module, masks))
    assert isinstance(copied, GraphModule) and torch.equal(copied(x), before)
    with torch.no_grad():
        for mask in own:
            mask.alpha.sub_(20.0)
    assert not torch.equal(copied(x), before)
    assert torch.equal(module(x), before)


@each_copy
def test_progress_is_copied(made: Copy) -> None:
    progress = TrainingCursor(2, 3, 1.5, 7, 0.25)
    other = made(progress)
    progress.next_epoch()
    assert other == TrainingCursor(2, 3, 1.5, 7, 0.25)


def raised() -> list[BaseException]:
    kinds = [
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, errors.SoulDeployError)
    ]
    special = {errors.UnknownNameError}
    return [
        *(kind("what was given; the rule") for kind in kinds if kind not in special),
        errors.UnknownNameError("layer", "a", ["b", "c"]),
        errors.NetworkWarning("a text", "an advice"),
        errors.InterruptedRunError("stopped", 15),
        SearchStoppedError("dead", None),
    ]


@each_copy
@pytest.mark.parametrize("error", raised(), ids=lambda error: type(error).__name__)
def test_errors_survive_the_way_home(error: BaseException, made: Copy) -> None:
    error.add_note("seen in a worker")
    other = made(error)
    assert type(other) is type(error) and str(other) == str(error)
    assert vars(other) == vars(error) and other.args == error.args


def test_a_worker_raises_its_own_error() -> None:
    network = network_of(1)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        with pytest.raises(errors.UnknownNameError, match="unknown layer 'nothing'; valid: "):
            pool.submit(fan_out, network, "nothing").result()
        assert pool.submit(network.run, inputs(1)).result().shape == (1, 4)  # the pool lives on
