"""Random fixed-point networks: the naive twin, PyTorch, ONNX Runtime and the event runtime in forms
drawn at random, on 1 to 4 threads, in batches and as a stream: equal integers, no tolerance.
"""

import os
from collections import Counter
from collections.abc import Callable
from typing import Any

import naive_fixed
import numpy as np
import onnxruntime
import pytest
from drawn_fixed import FixedCase, draw_fixed
from torch import Tensor

from soul_deploy.base import Array, errors
from soul_deploy.data.given import images_for
from soul_deploy.export.event.build import build_event_network
from soul_deploy.export.onnx.model import build_onnx
from soul_deploy.export.onnx.nodes import spikes_name
from soul_deploy.export.onnx.step import build_step, states_of
from soul_deploy.lowering import deploy
from soul_deploy.runtime.engine.network import Network
from soul_deploy.runtime.format.layers import Firing, SpikingLayer
from soul_deploy.runtime.plan.buffers import Buffers
from soul_deploy.runtime.plan.forms import possible_forms

equal = np.testing.assert_array_equal


def is_still(case: FixedCase) -> bool:
    return bool(case.given.ndim == len(case.model.input_shape) + 1)


def frames(case: FixedCase) -> list[Array]:
    steps = case.model.graph.time_steps
    return [case.given if is_still(case) else case.given[t] for t in range(steps)]


def pytorch_agrees(case: FixedCase, naive: naive_fixed.NaiveRun) -> None:
    module, last = case.model.module(), {}
    images, _ = images_for(case.model, case.given)

    def observe(name: str, t: int, spikes: Tensor, membrane: Tensor) -> None:
        last[name] = membrane.numpy()

    scores = module.forward_observed(images, observe)
    for name, spikes in module.record(images).spikes.items():
        equal(spikes.numpy(), naive.spikes[name], name)
        equal(last[name], naive.membranes[name], name)
    equal(scores.numpy(), naive.scores)


def session(made: Any) -> onnxruntime.InferenceSession:
    text = made.SerializeToString()
    return onnxruntime.InferenceSession(text, providers=["CPUExecutionProvider"])


def onnx_agrees(case: FixedCase, naive: naive_fixed.NaiveRun) -> None:
    """All steps in one file, and a file of one step, whose states are the membranes."""
    model, graph = case.model, case.model.graph
    mode: Any = "static" if is_still(case) else "sequence"
    whole = session(build_onnx(model, input_mode=mode, outputs="spikes"))
    names = [node.name for node in graph.populations]
    asked = ["logits", *(spikes_name(name) for name in names)]
    scores, *sent = whole.run(asked, {graph.input.name: case.given.astype(np.uint8)})
    equal(scores, naive.scores)
    for name, spikes in zip(names, sent, strict=True):
        equal(spikes, naive.spikes[name], name)
    one, states = session(build_step(model)), states_of(model)
    held = {
        item.name: np.zeros((len(scores), *item.shape[1:]) if item.shape else (), np.int32)
        for item in one.get_inputs()
        if item.name != graph.input.name
    }
    held = {name: a.astype(np.int64) if name == "t_in" else a for name, a in held.items()}
    outputs = [item.name for item in one.get_outputs()]
    for frame in frames(case):
        found = dict(
            zip(
                outputs,
                one.run(None, held | {graph.input.name: frame.astype(np.uint8)}),
                strict=True,
            )
        )
        held = {name: found[name.removesuffix("_in") + "_out"] for name in held}
    for state in states:
        equal(held[state.input], naive.membranes[state.population], state.population)


def event_agrees(case: FixedCase, rng: np.random.Generator) -> None:
    """The event network leaves out neurons that nothing reads: so does the twin here."""
    model = deploy.lower(case.model).trimmed.model
    naive = naive_fixed.run(model, case.given)
    network = build_event_network(case.model)
    for threads in (1, int(rng.integers(2, 5))):
        forms = {layer.name: str(rng.choice(possible_forms(layer))) for layer in network.projected}
        running = Network(network, threads, forms=forms)
        found = running.run_recorded(case.given)
        for name, spikes in found.spikes.items():
            equal(spikes, naive.spikes[name], f"{name}: {forms}")
        equal(found.logits, naive.scores)
        equal(running.run(case.given), naive.scores)
        first, second = np.split(case.given, 2, axis=0 if is_still(case) else 1)
        equal(np.concatenate([running.run(first), running.run(second)]), naive.scores)
        for frame in frames(case):
            running.step(frame)
        _membranes_agree(running, naive)


def _membranes_agree(running: Network, naive: naive_fixed.NaiveRun) -> None:
    for sample, buffers in enumerate(running._stream.samples):
        for layer in running.events.populations:
            assert isinstance(layer, Firing)
            ours = np.moveaxis(naive.membranes[layer.name][sample], 0, -1).reshape(-1)
            updated = np.ones(ours.shape, bool) if layer.updated is None else layer.updated
            theirs = _in_order(layer, buffers)
            if len(theirs) == len(ours):
                theirs = theirs[updated]  # else the layer keeps no others
            equal(theirs, ours[updated], layer.name)


def _in_order(layer: Firing, buffers: Buffers) -> Array:
    """Membranes by position, then channel. On bit planes they are kept (C, lanes), a row of the
    map `pitch` lanes behind the one before.
    """
    held = buffers.membranes[layer.name]
    if held.ndim == 1:
        return held
    assert isinstance(layer, SpikingLayer)
    (_, height, width), pitch = layer.out_shape, buffers.words[layer.source].frame.pitch
    lanes = np.arange(height)[:, None] * pitch + np.arange(width)
    return np.moveaxis(held[:, lanes], 0, -1).reshape(-1)


def _compared(name: str, check: Callable[..., None], *given: Any) -> str:
    """What was compared, or what an engine refuses by name."""
    try:
        check(*given)
    except errors.SoulDeployError as error:
        return f"{name}: {type(error).__name__}"
    return name


def parity(networks: int, seed: int) -> Counter[str]:
    """How many networks were compared with what, and how many populations fired."""
    rng, counts = np.random.default_rng(seed), Counter[str]()
    for case in draw_fixed(networks, seed):
        naive = naive_fixed.run(case.model, case.given)
        pytorch_agrees(case, naive)
        counts["PyTorch"] += 1
        counts[_compared("ONNX Runtime", onnx_agrees, case, naive)] += 1
        counts[_compared("event runtime", event_agrees, case, rng)] += 1
        counts["populations"] += len(naive.spikes)
        counts["fired"] += sum(bool(spikes.any()) for spikes in naive.spikes.values())
    return counts


def test_some_networks_are_the_same_everywhere() -> None:
    counts = parity(8, seed=100)
    assert counts["ONNX Runtime"] > 4 and counts["event runtime"] > 4, counts
    assert counts["fired"] > counts["populations"] / 2


@pytest.mark.soak
@pytest.mark.parametrize("part", range(10))
def test_a_thousand_networks_are_the_same_everywhere(part: int) -> None:
    counts = parity(100, seed=200 + part + 10 * int(os.environ.get("SOAK_SEED", "0")))
    print(dict(counts))
    assert counts["ONNX Runtime"] > 50 and counts["event runtime"] > 50, counts
