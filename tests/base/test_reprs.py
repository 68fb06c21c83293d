"""repr() of what users hold: one short line without weights, whatever the size of the network."""

import importlib
import pkgutil
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from chains import random_masks, random_neuron_masks
from deployed import SHAPE, Files, make_files, small_model

import soul_deploy
from soul_deploy.analysis.measure import Measured, count, original_of
from soul_deploy.analysis.reference_network import ReferenceNetwork, reference_model
from soul_deploy.base import brief
from soul_deploy.base.brief import brief_text
from soul_deploy.data.datasets import load_data
from soul_deploy.export.event.build import build_event_network
from soul_deploy.export.verify.verify import verify
from soul_deploy.ir import Scatter
from soul_deploy.model.file import load
from soul_deploy.model.model import Model
from soul_deploy.prune.removal.apply import remove
from soul_deploy.prune.removal.planner import plan_removal
from soul_deploy.runtime.engine.network import Network
from soul_deploy.runtime.engine.network import load as load_network
from soul_deploy.runtime.ops.counted_run import count_recorded

LIMIT = 1500
"""Characters; an array's numbers, names of all layers, or a table would go far beyond."""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return make_files(tmp_path_factory.mktemp("files"))


def large() -> Model:
    model = reference_model(ReferenceNetwork(density=0.3, width=16, hidden=64, image=(3, 16, 16)))
    model = replace(model, channel_masks=random_masks(model, 3))
    return replace(model, neuron_masks=random_neuron_masks(model, 4))


def held(model: Model) -> Iterator[Any]:
    """What a user of this model gets into the hands."""
    network = Network(build_event_network(model), 1)
    x = np.random.default_rng(0).normal(size=(2, *model.input_shape)).astype(np.float32)
    network.step(x)
    yield from (network, network.events, network.events.rule, network.run_recorded(x))
    yield from (count_recorded(network, x)[2], network._stream, network.__getstate__()[2])
    yield from network.events.layers
    yield from (layer.synapses for layer in network.events.projected)
    yield from (layer.synapses.rows for layer in network.events.projected)
    yield from network._plans.values()
    yield from (network.events.readout, network._build(input_steps=1, steps=1, carry=False))
    yield from (model, model.graph, model.info, model.graph.input, *model.graph.nodes)
    module = model.module()
    yield from (module.record(torch.from_numpy(x)), *module.channel_masks.values())
    yield from module.neuron_gates.values()
    plan = plan_removal(model)
    yield from (plan, *plan.layers)


def numbers_of(model: Model) -> set[str]:
    """Weights as Python and numpy write them."""
    found = [array.reshape(-1)[:50] for array in model.state.values() if array.dtype.kind == "f"]
    return {str(value) for array in found for value in array if len(str(value)) > 6}


@pytest.mark.parametrize("model", [small_model(), large()], ids=["small", "large"])
def test_what_users_hold_is_shown_in_a_short_line(model: Model) -> None:
    weights, seen = numbers_of(model), 0
    for item in held(model):
        text = repr(item)
        assert len(text) < LIMIT, (type(item), len(text), text[:300])
        assert "\n" not in text and "array(" not in text and "tensor(" not in text, text
        assert not weights & set(re.findall(r"-?\d+\.\d+(?:e-?\d+)?", text)), text
        assert str(item) == text
        seen += 1
    assert seen > 30


def test_a_network_says_what_it_is(files: Files) -> None:
    network = load_network(files.compact_event, 2)
    text = repr(network)
    assert (
        len(text) < 100 and text.startswith("Network(events=EventNetwork") and "threads=2" in text
    )
    text = repr(network.events)
    assert f"input_shape={SHAPE}" in text and "time_steps=3" in text and "PoolLayer" in text
    model = load(files.compact)
    assert "'0.weight': float32(6, 3, 3, 3)" in repr(small_model())
    assert repr(model).startswith("Model(graph=SpikingGraph(nodes=")


def test_reports_are_short(files: Files) -> None:
    model = load(files.compact)
    x = torch.randn(2, *SHAPE)
    report = verify(model, files.compact_event, x)
    assert report.passed and len(repr(report)) < LIMIT
    measured = Measured(path="x", sha256="0" * 64, artifact_bytes=1)
    ops = count(model, x, original=original_of("x", model), measured=measured)
    assert len(repr(ops)) < LIMIT
    assert all(len(repr(layer)) < LIMIT for layer in ops.layers)


def test_data_and_samples_are_shapes() -> None:
    data = load_data("digits", Path())
    assert "images=uint8(1257, 1, 8, 8)" in repr(data) and len(repr(data)) < LIMIT
    assert repr(data.test) == "Split(images=uint8(360, 1, 8, 8), labels=int64(360,))"


def test_a_compact_model_keeps_its_line() -> None:
    model = large()
    assert len(repr(remove(model, plan_removal(model)))) < LIMIT


ARRAYS = re.compile(r"ndarray|\bArray\b|\bTensor\b|\bParameter\b")


def public_classes() -> Iterator[type[Any]]:
    for found in pkgutil.walk_packages(soul_deploy.__path__, "soul_deploy."):
        if found.name.endswith("__main__"):
            continue
        module = importlib.import_module(found.name)
        for name, item in vars(module).items():
            if not isinstance(item, type) or item.__module__ != module.__name__:
                continue
            if is_dataclass(item) and not name.startswith("_"):
                kind: type[Any] = item
                yield kind


def test_every_public_class_that_holds_arrays_shows_shapes() -> None:
    seen = 0
    for cls in public_classes():
        shown = [str(item.type) for item in fields(cls) if item.repr]
        if any(ARRAYS.search(text) for text in shown):
            seen += 1
            assert cls.__repr__.__module__ == "soul_deploy.base.brief", cls
    assert seen > 40


@brief
@dataclass
class Held:
    a: Any
    hidden: int = field(default=0, repr=False)


def test_texts_of_values() -> None:
    array = np.zeros((2, 3), np.float32)
    assert repr(Held(array, 7)) == "Held(a=float32(2, 3))"
    assert repr(Held(torch.zeros(4, dtype=torch.int64))) == "Held(a=int64(4,))"
    assert brief_text([1, 2, 3, 4]) == "[1, 2, 3, … 4 in all]"
    assert brief_text(()) == "()" and brief_text((8,)) == "(8,)"
    assert brief_text({"x": array}) == "{'x': float32(2, 3)}"
    assert brief_text({"x": [array] * 9}) == (
        "{'x': [float32(2, 3), float32(2, 3), float32(2, 3), … 9 in all]}"
    )
    assert brief_text("y" * 1000) == "str(1000 items)"
    assert brief_text(Held(["z" * 200] * 3)) == "Held(a=list(3 items))"
    assert brief_text(Scatter("s", ("a",), 99, tuple(range(90)))) == (
        "Scatter(name='s', inputs=('a',), channels=99, index=(0, 1, 2, … 90 in all))"
    )
    assert brief_text(Path("a/b")) == repr(Path("a/b"))
    assert brief_text(object()) == "object(…)"
    empty = Held.__new__(Held)  # as a debugger sees it while it is copied
    assert repr(empty) == "Held()"
