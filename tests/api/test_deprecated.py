"""Names of 0.1.0 go on working; each warns at the caller's own line with what it is called now."""

import inspect
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
from places import FIXTURES
from test_smoke import small_model

import soul_deploy
from soul_deploy.ir import NeuronSpec
from soul_deploy.runtime import network
from soul_deploy.zoo import registry

T = TypeVar("T")
OLD = FIXTURES / "v0_1_0"
OPTIONS = registry.NetworkOptions((1, 12, 12), 10, NeuronSpec(), 3, hidden=8)


def warned(call: Callable[[], T], text: str) -> T:
    """What `call`, a lambda of this file, gives; it must warn once, with its own line."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        outcome = call()
    ((kind, message, file, line),) = [
        (w.category, str(w.message), w.filename, w.lineno) for w in caught
    ]
    assert kind is DeprecationWarning and text in message
    assert (file, line) == (__file__, inspect.getsourcelines(call)[1])
    return outcome


def test_load_model_and_save_model(tmp_path: Path) -> None:
    model, path = small_model(), tmp_path / "m.safetensors"
    warned(lambda: soul_deploy.save_model(path, model), "is soul_deploy.save(model, path) now")
    again = warned(
        lambda: soul_deploy.load_model(path), "soul_deploy.load_model is soul_deploy.load"
    )
    assert again.graph == model.graph == soul_deploy.load(path).graph


def test_trace() -> None:
    module, graph = registry.create("spikingvgg5", OPTIONS)
    traced = warned(
        lambda: soul_deploy.trace(module, (1, 12, 12), 3), "is soul_deploy.from_torch(…).graph now"
    )
    assert traced == graph


def test_create_with_options() -> None:
    module, graph = warned(
        lambda: soul_deploy.create("spikingvgg5", OPTIONS),
        "create(name, input_shape=, classes=, …)",
    )
    model = soul_deploy.create(
        "spikingvgg5", input_shape=(1, 12, 12), classes=10, time_steps=3, hidden=8
    )
    assert model.graph == graph
    assert {n: a.shape for n, a in model.state.items()} == {
        n: tuple(t.shape) for n, t in module.state_dict().items()
    }


def test_load_of_an_event_network() -> None:
    path = OLD / "compact.event.safetensors"
    loaded = warned(lambda: network.load(path, 1), "network.load is soul_deploy.load_network now")
    images = np.load(OLD / "images.npy", allow_pickle=False)
    scores = np.load(OLD / "scores.npy", allow_pickle=False)
    np.testing.assert_allclose(loaded.run(images), scores, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["load_model", "save_model", "trace"])
def test_an_old_name_is_not_listed(name: str) -> None:
    assert name not in dir(soul_deploy) and callable(getattr(soul_deploy, name))
