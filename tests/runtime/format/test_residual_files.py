"""Event files of residual networks: what is written comes back, and damage is refused by name."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from residual import BlockSpec, ResidualSpec, masked, residual_images, residual_model

from soul_deploy.base.errors import FileFormatError, LimitError, UsageError, ValidityError
from soul_deploy.base.files import METADATA_KEY, digest, read_tensors, write_tensors
from soul_deploy.cli.output import drawn
from soul_deploy.export.event.build import export_event
from soul_deploy.export.verify.event import event_problems
from soul_deploy.ir import NeuronSpec
from soul_deploy.model.model import Model
from soul_deploy.runtime.engine.network import Network, load
from soul_deploy.runtime.format.file import FORMAT, load_event_network
from soul_deploy.runtime.format.map_layers import MergeLayer
from soul_deploy.runtime.io.inspect import describe_file
from soul_deploy.runtime.io.inspect_tables import inspect_report
from soul_deploy.runtime.ops.counted_run import count, fan_out

Document = dict[str, Any]
Tensors = dict[str, Any]
BLOCK = BlockSpec(branches=2, stride=2, channels=4, kernel=3, neuron=NeuronSpec())


def spec_of(style: str) -> ResidualSpec:
    """Analog pooling, a shortcut convolution, a scattered branch; a 3-way merge."""
    return ResidualSpec(
        style=style,
        connect="add",
        input_shape=(2, 9, 8),
        time_steps=3,
        batch=2,
        stem_channels=3,
        pool=True,
        scattered=True,
        blocks=(BLOCK, BLOCK),
        ending="linear",
        classes=3,
        norm=True,
        bias=False,
        neuron=NeuronSpec(),
        dyadic=False,
        seed=3,
    )


def model_of(style: str) -> Model:
    return masked(residual_model(spec_of(style)), 5, neurons=True)


@pytest.mark.parametrize("style", ["sew", "ms"])
def test_round_trip(tmp_path: Path, style: str) -> None:
    path = tmp_path / "net.safetensors"
    built = export_event(model_of(style), path, representation="explicit")
    loaded, x = load(path), residual_images(spec_of(style)).numpy()
    assert loaded.events.edges == built.edges
    assert [type(a) for a in loaded.events.layers] == [type(a) for a in built.layers]
    np.testing.assert_array_equal(loaded.run(x), Network(built).run(x))
    assert count(loaded, x) == count(Network(built), x)


def test_the_layers_are_shown(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    export_event(model_of("ms"), path)
    found = describe_file(path)
    rows = {row["layer"]: row for row in found["layers"]}
    assert rows["b0.merge"]["source"] == "b0.0.conv1, b0.1.wide, b0.short"
    assert [rows[n]["operation"] for n in ("stem", "pool", "b0.1.wide", "b0.merge", "last_sn")] == [
        "convolution",
        "max_pool",
        "scatter",
        "merge",
        "population",
    ]
    assert rows["stem"]["neurons"] == 0
    assert rows["last_sn"]["neuron"] is not None
    text = drawn(inspect_report(found))
    assert "b0.merge" in text
    assert "population" in text


Change = Callable[[Document, Tensors], None]


def entry(name: str, key: str, value: Any) -> Change:
    def change(document: Document, tensors: Tensors) -> None:
        (found,) = [item for item in document["layers"] if item["name"] == name]
        assert key in found
        found[key] = value

    return change


def tensor(name: str, change_array: Callable[[Any], Any]) -> Change:
    def change(document: Document, tensors: Tensors) -> None:
        tensors[name] = change_array(tensors[name])

    return change


def without(name: str) -> Change:
    def change(document: Document, tensors: Tensors) -> None:
        del tensors[name]

    return change


DAMAGE: dict[str, tuple[str, Change, str]] = {
    "function": ("sew", entry("b0.merge", "function", "or"), "b0.merge: function 'or'; known: add"),
    "branches": ("sew", entry("b0.merge", "sources", ["pool"]), "b0.merge: add of 1 branches"),
    "iand of three": ("sew", entry("b0.merge", "function", "iand"), "iand of 3 branches"),
    "unknown branch": (
        "sew",
        entry("b0.merge", "sources", ["nobody", "pool"]),
        "b0.merge: its source 'nobody' is not there",
    ),
    "shape of a merge": ("sew", entry("b0.merge", "shape", [4, 3, 3]), r"b0.merge: takes \(4, 3,"),
    "graded bound": ("sew", entry("b1.0.sn1", "bound", 2), "a graded edge from b0.merge with boun"),
    "index missing": ("ms", without("b0.1.wide/index"), "tensor b0.1.wide/index is missing"),
    "index type": (
        "ms",
        tensor("b0.1.wide/index", lambda a: a.astype(np.int64)),
        "b0.1.wide: index is int64",
    ),
    "index range": ("ms", tensor("b0.1.wide/index", lambda a: a + 4), "do not go to rising places"),
    "scattered shape": ("ms", entry("b0.1.wide", "out_shape", [4, 9, 9]), "b0.1.wide: 3 channels"),
    "neurons on spikes": (
        "ms",
        entry("last_sn", "source", "b1.0.sn1"),
        "last_sn: takes|neurons ta",
    ),
    "live neurons": ("ms", entry("last_sn", "live", 1), "last_sn: live is .* announced"),
    "population live": ("ms", tensor("last_sn/live", lambda a: a[:-1]), "last_sn: live is bool"),
    "threshold": (
        "ms",
        entry(
            "last_sn",
            "neuron",
            {
                "charge": "integrate",
                "constant": 1.0,
                "v_threshold": -1.0,
                "v_reset": 0.0,
                "fire": "gt",
            },
        ),
        "last_sn: v_threshold -1.0 is not above 0",
    ),
    "pooled padding": ("ms", entry("pool", "padding", [2, 1]), "pool: (output|padding)"),
    "current's operation": ("ms", entry("stem", "operation", "current_"), "operation 'current_'"),
    "current's edge": ("ms", entry("stem", "edge", "spike"), "stem: a spike edge with bound None"),
}


@pytest.fixture(scope="module", name="paths")
def _paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("residual")
    made = {style: folder / f"{style}.safetensors" for style in ("sew", "ms")}
    for style, path in made.items():
        export_event(model_of(style), path)
    return made


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_named(tmp_path: Path, paths: dict[str, Path], name: str) -> None:
    style, change, text = DAMAGE[name]
    opened = read_tensors(paths[style])
    document = json.loads(opened.metadata[METADATA_KEY])
    tensors: Tensors = dict(opened.tensors)
    change(document, tensors)
    document |= {"format": FORMAT, "digest": digest(tensors)}
    target = tmp_path / "changed.safetensors"
    write_tensors(target, tensors, document)
    with pytest.raises((FileFormatError, LimitError), match=text):
        load_event_network(target)


def test_an_and_of_graded_values_is_refused() -> None:
    layer = MergeLayer("m", ("a", "b"), "and", (2,))
    with pytest.raises(FileFormatError, match="m: and takes spikes only"):
        layer.edge_of([("spike", 1), ("graded", 2)])


def test_wrong_inputs_of_a_layer_are_refused(paths: dict[str, Path]) -> None:
    network = load(paths["sew"])
    shape = network.events.by_name["b0.merge"].in_shape
    spikes = np.zeros((3, 1, *shape), np.uint8)
    with pytest.raises(UsageError, match=r"b0.merge: 1 inputs given; it takes 3: b0.down_sn, b0"):
        network.run_layer("b0.merge", spikes)
    with pytest.raises(ValidityError, match=r"b0.merge: inputs must be whole numbers from 0 to 1"):
        network.run_layer("b0.merge", spikes, spikes, spikes + 2)
    with pytest.raises(UsageError, match=r"b0.merge is a merge; it has no synapses"):
        fan_out(network, "b0.merge")
    analog = load(paths["ms"])
    current = np.full((1, *analog.events.by_name["last_sn"].in_shape), np.inf, np.float32)
    with pytest.raises(ValidityError, match="last_sn: inputs that are not finite"):
        analog.run_layer("last_sn", current)


Edit = Callable[[Any], dict[str, Any]]
TAMPERED: dict[str, tuple[str, str, Edit, str]] = {
    "order of branches": (
        "sew",
        "b0.merge",
        lambda layer: {"sources": layer.sources[::-1]},
        "b0.merge: sources is",
    ),
    "place of a channel": (
        "ms",
        "b0.1.wide",
        lambda layer: {"index": np.array([0, 1, 3], np.uint32)},
        "b0.1.wide: index: 1 of 3 entries differ",
    ),
    "pooling": ("ms", "pool", lambda layer: {"kernel": (3, 4)}, "pool: kernel, stride, padding"),
    "neuron": (
        "ms",
        "last_sn",
        lambda layer: {"neuron": replace(layer.neuron, fire="ge")},
        "last_sn: neuron is",
    ),
    "live neurons": ("ms", "last_sn", lambda layer: {"live": None}, "last_sn: live neurons: miss"),
    "bias of a current": (
        "ms",
        "b0.short",
        lambda layer: {"synapses": replace(layer.synapses, bias=layer.synapses.bias + 1)},
        "b0.short: bias: 4 of 4 entries differ",
    ),
}


@pytest.mark.parametrize("name", TAMPERED)
def test_gate_1_sees_another_structure(paths: dict[str, Path], name: str) -> None:
    style, layer_name, edit, text = TAMPERED[name]
    events = load(paths[style]).events
    layers = [
        replace(layer, **edit(layer)) if layer.name == layer_name else layer
        for layer in events.layers
    ]
    model = model_of(style)
    assert event_problems(model, Network(events)) == ()
    problems = event_problems(model, Network(replace(events, layers=tuple(layers))))
    assert len(problems) == 1
    assert problems[0].startswith(text), problems
