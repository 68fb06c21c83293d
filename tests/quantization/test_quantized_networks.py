"""Fixed-point networks: PyTorch, the naive twin, ONNX and the event runtime: equal integers."""

from dataclasses import replace
from pathlib import Path

import chains
import naive_fixed
import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given as drawing
from hypothesis import settings
from hypothesis import strategies as st
from residual import calibrated

from soul_deploy import (
    Model,
    NeuronSpec,
    compare,
    create,
    export_event,
    export_onnx,
    ir,
    load,
    save,
    verify,
)
from soul_deploy.base import Array, errors
from soul_deploy.base.files import read_tensors
from soul_deploy.data.given import images_for
from soul_deploy.export.event.build import build_event_network
from soul_deploy.export.onnx.model import build_onnx
from soul_deploy.export.verify.verify import Kind
from soul_deploy.lowering import bounds, deploy
from soul_deploy.model.model import ModelInfo, Normalization
from soul_deploy.quantization import network, units
from soul_deploy.runtime.engine.network import Network

NORM = Normalization((0.5, 0.4, 0.3), (0.25, 0.2, 0.3))


def pixels(shape: tuple[int, ...], seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def narrowed(graph: ir.SpikingGraph, share: int = 8) -> ir.SpikingGraph:
    """A network of convolutions with a share of its channels."""
    changed: dict[str, ir.Node] = {}
    for node in graph.of_type(ir.Convolution):
        first = graph.input.name in node.inputs
        inner = node.in_channels if first else node.in_channels // share
        changed[node.name] = replace(node, in_channels=inner, channels=node.channels // share)
    return graph.with_nodes(changed)


def zoo_model(name: str, neuron: NeuronSpec, side: int) -> tuple[Model, Array]:
    """A network of the zoo, narrow, that fires on the pixels."""
    shape = (3, side, side)
    made = create(name, input_shape=shape, classes=5, neuron=neuron, time_steps=3, hidden=64)
    graph, given = narrowed(made.graph), pixels((2, *shape))
    info = ModelInfo(normalization=NORM)
    images, _ = images_for(Model(graph, {}, info=info), given)
    return replace(calibrated(graph, images, 0), info=info), given


def integers(model: Model, choice: units.UnitChoice | None = None) -> Model:
    return network.integer_network(network.make_plan(model, choice or units.UnitChoice()))


def assert_same(model: Model, given: Array) -> naive_fixed.NaiveRun:
    """PyTorch's spikes, membranes and scores are the naive twin's; every population fires."""
    module, naive = model.module(), naive_fixed.run(model, given)
    images, _ = images_for(model, given)
    last: dict[str, Array] = {}
    sent: dict[str, list[Array]] = {name: [] for name in naive.spikes}

    def observe(name: str, t: int, spikes: torch.Tensor, membrane: torch.Tensor) -> None:
        last[name] = membrane.numpy()

    scores = module.forward_observed(images, observe)
    for name, spikes in module.record(images).spikes.items():
        np.testing.assert_array_equal(spikes.numpy(), naive.spikes[name], name)
        np.testing.assert_array_equal(last[name], naive.membranes[name], name)
    assert scores.dtype == torch.float32 and sent
    np.testing.assert_array_equal(scores.numpy(), naive.scores)
    return naive


@pytest.mark.parametrize(
    ("name", "neuron", "side"),
    [
        ("spikingvgg9", NeuronSpec("lif"), 16),
        ("sewresnet18", NeuronSpec("if", v_reset=None, fire="ge"), 16),
        ("spikingvgg5", NeuronSpec("plif", decay_input=False), 16),
    ],
)
@pytest.mark.parametrize("scale", units.SCALES)
def test_networks_of_the_zoo(name: str, neuron: NeuronSpec, side: int, scale: units.Scale) -> None:
    model, given = zoo_model(name, neuron, side)
    found = assert_same(integers(model, units.UnitChoice(scale=scale)), given)
    assert all(spikes.any() for spikes in found.spikes.values())


def drawn_model(spec: chains.ChainSpec) -> tuple[Model, Array]:
    """A random chain that takes pixels; the values in [-1, 1] that it fires on are theirs."""
    model = chains.build(spec)
    side = spec.input_shape[0]
    norm = Normalization((0.5,) * side, (0.5,) * side)
    info = replace(model.info, normalization=norm)
    values = chains.images(spec).numpy()
    return replace(model, info=info), np.rint((values + 1) * 127.5).astype(np.uint8)


@settings(max_examples=10, deadline=None)
@drawing(chains.chains(), st.sampled_from(units.SCALES), st.sampled_from(units.CLIPS))
def test_random_networks_are_the_same_everywhere(
    spec: chains.ChainSpec, scale: units.Scale, clip: units.Clip
) -> None:
    """PyTorch, the naive twin and ONNX Runtime; what has no form is named."""
    model, given = drawn_model(spec)
    try:
        found = integers(model, units.UnitChoice(scale=scale, clip=clip))
    except errors.UnsupportedGraphError as error:
        assert any(name in str(error) for name in model.graph.by_name), error
        return
    naive = assert_same(found, given)
    session = onnxruntime.InferenceSession(
        build_onnx(found, outputs="spikes").SerializeToString(), providers=["CPUExecutionProvider"]
    )
    scores, *spikes = session.run(None, {found.graph.input.name: given})
    np.testing.assert_array_equal(scores, naive.scores)
    for node, sent in zip(found.graph.populations, spikes, strict=True):
        np.testing.assert_array_equal(sent, naive.spikes[node.name], node.name)


@pytest.mark.parametrize("kind", ["onnx", "event"])
def test_verify_allows_nothing(kind: Kind, tmp_path: Path) -> None:
    """A file passes with equal integers, as is printed; one with another threshold fails."""
    model, given = zoo_model("spikingvgg5", NeuronSpec("lif"), 16)
    found, path = integers(model), tmp_path / kind
    other = {name: array.copy() for name, array in found.state.items()}
    name = f"{found.graph.populations[-1].name}.threshold"
    other[name] += 1
    export = export_onnx if kind == "onnx" else export_event
    export(found, path)
    report = verify(found, path, given, kind=kind)
    assert report.passed and "integers: no tolerance" in report.text()
    assert report.to_dict()["logit_limit"] == 0
    changed = verify(replace(found, state=other), path, given, kind=kind)
    assert not changed.passed and name.rpartition(".")[0] in " ".join(changed.problems)


def test_a_spike_that_differs_by_one_unit_is_no_rounding() -> None:
    """An execution whose membranes are off by 1 is not explained by anything."""
    model, _ = zoo_model("spikingvgg5", NeuronSpec("lif"), 16)
    found = integers(model)
    other = {name: array.copy() for name, array in found.state.items()}
    for node in found.graph.populations:
        other[f"{node.name}.threshold"] += 40
    images, _ = images_for(found, pixels((8, 3, 16, 16)))
    outcome = compare(found, replace(found, state=other), images)
    assert outcome.end_to_end.unexplained and not outcome.passed


def test_files_of_integers_come_back_and_older_programs_refuse_them(tmp_path: Path) -> None:
    model, _ = zoo_model("spikingvgg5", NeuronSpec("lif"), 16)
    found, path = integers(model), tmp_path / "net.safetensors"
    save(found, path)
    again = load(path)
    assert again.graph == found.graph and again.input_rule == found.input_rule
    assert {n: a.dtype for n, a in again.state.items()} == {
        n: a.dtype for n, a in found.state.items()
    }
    with pytest.raises(errors.FileFormatError, match="soul-deploy/model/2"):
        read_tensors(path).document("soul-deploy/model/1")


@pytest.mark.parametrize(
    ("tensor", "value", "told"),
    [
        ("features.0.conv.0.weight", np.int8(-128), "from -127 to 127"),
        ("features.0.sn.threshold", np.int32(-1), "outside of 0"),
        ("features.0.sn.threshold", np.int32(40000), "outside of 0"),
        ("features.0.sn.unit", np.float32(0), "not above 0"),
    ],
)
def test_readers_refuse_what_no_network_of_integers_holds(
    tensor: str, value: np.generic, told: str, tmp_path: Path
) -> None:
    model, _ = zoo_model("spikingvgg5", NeuronSpec("lif"), 16)
    found = integers(model)
    state = {name: array.copy() for name, array in found.state.items()}
    state[tensor].flat[0] = value
    save(replace(found, state=state), tmp_path / "net.safetensors")
    with pytest.raises(errors.FileFormatError, match=told):
        load(tmp_path / "net.safetensors")


def test_float_images_are_refused() -> None:
    model, given = zoo_model("spikingvgg5", NeuronSpec("lif"), 16)
    found = integers(model)
    with pytest.raises(errors.ValidityError, match="takes uint8 pixels"):
        images_for(found, given.astype(np.float32))
    with pytest.raises(errors.ValidityError, match="integers from"):
        images_for(found, given.astype(np.int32) + 200)
    zero = found.input_rule.integers
    assert zero is not None and zero.zero == (128, 102, 76)
    np.testing.assert_array_equal(
        images_for(found, given)[0].numpy(),
        given.astype(np.int16) - np.array(zero.zero).reshape(3, 1, 1),
    )


@pytest.mark.parametrize(
    ("neuron", "told"),
    [
        (NeuronSpec("clif", decay_input=False), "family clif"),
        (NeuronSpec("psn"), "family psn"),
        (NeuronSpec("ltmd"), "family ltmd"),
        (NeuronSpec("intlif"), "family intlif"),
    ],
)
def test_other_neurons_are_refused_by_name(neuron: NeuronSpec, told: str) -> None:
    shape = (1, 8, 8)
    made = create("spikingvgg5", input_shape=shape, classes=5, neuron=neuron, hidden=8)
    with pytest.raises(errors.UnsupportedGraphError, match=told):
        network.make_plan(made, units.UnitChoice())


def one_layer(weights: list[int], bias: int, least: int = 1) -> Model:
    """A linear layer of one neuron on spikes, and a vote."""
    count = len(weights)
    tensors = (("threshold", "layer"), ("unit", "layer"))
    settings = (("multiplier", 1.0), ("shift", 1.0))
    neuron = NeuronSpec("fixed", settings=settings, tensors=tensors)  # type: ignore[arg-type]
    nodes = (
        ir.IntegerInput("input", (), (count,), 0, least),
        ir.Linear("fc", ("input",), True, None, count, 1),
        ir.Population("sn", ("fc",), neuron),
        ir.Readout("vote", ("sn",), 1, False, False, unit=1.0),
    )
    state: dict[str, Array] = {
        "fc.weight": np.array([weights], np.int8),
        "fc.bias": np.array([bias], np.int32),
        "sn.threshold": np.array(10, np.int32),
        "sn.unit": np.array(1, np.float32),
    }
    info = ModelInfo(input_kind="spikes" if least == 1 else "counts")
    return Model(ir.SpikingGraph(nodes, 2), state, info=info)


@pytest.mark.parametrize(
    ("bias", "kind"), [(32767 - 127 * 200, "int16"), (32768 - 127 * 200, "int32")]
)
@pytest.mark.parametrize("sign", [1, -1])
def test_the_accumulator_follows_from_the_weights(bias: int, kind: str, sign: int) -> None:
    """At the largest sum that int16 holds, and one above it; both sums are right."""
    model = one_layer([127 * sign] * 200, bias * sign)
    events = build_event_network(model)
    (layer,) = events.projected
    bound = bounds.current_bounds(deploy.lower(model))["fc"]
    assert layer.accumulator == kind and int(bound[0]) == 127 * 200 + bias
    given = np.ones((1, 200), np.uint8)
    naive = assert_same(model, given)
    recorded = Network(events).run_recorded(given)
    np.testing.assert_array_equal(recorded.logits, naive.scores)
    assert naive.spikes["sn"].any() == (sign > 0)


def test_currents_beyond_the_definition_are_refused() -> None:
    most = (1 << 30) - 1
    bounds.current_bounds(deploy.lower(one_layer([127], most - 127)))
    with pytest.raises(errors.UnsupportedGraphError, match="integers reach 1073741824"):
        bounds.current_bounds(deploy.lower(one_layer([127], most - 126)))


def test_counts_are_taken_as_they_are() -> None:
    """Above 127 the ONNX file weighs two digits; beyond what the file states, they are refused."""
    model = one_layer([3, -2, 127], -7, 255)
    given = np.array([[255, 128, 127], [0, 1, 2]], np.int64)
    naive = assert_same(model, given)
    session = onnxruntime.InferenceSession(
        build_onnx(model, outputs="spikes").SerializeToString(), providers=["CPUExecutionProvider"]
    )
    scores, spikes = session.run(None, {"input": given.astype(np.uint8)})
    np.testing.assert_array_equal(scores, naive.scores)
    np.testing.assert_array_equal(spikes, naive.spikes["sn"])
    with pytest.raises(errors.ValidityError, match="from 0 to 255"):
        images_for(model, given + 1)
    with pytest.raises(errors.ValidityError, match="not whole"):
        images_for(model, given + np.float32(-0.5) * (given > 0))


def test_a_pooling_that_does_not_tile_in_front_of_one_that_does_is_named() -> None:
    """Its values are summed before a projection weighs them: no weights can hold it."""
    neuron = NeuronSpec("lif")
    nodes = (
        ir.Input("input", (), (2, 7, 8)),
        ir.Convolution("first", ("input",), False, None, 2, 2, (1, 1)),
        ir.Population("sn", ("first",), neuron),
        ir.AvgPool("overlapping", ("sn",), (2, 3), (1, 1), (0, 0)),
        ir.AvgPool("tiles", ("overlapping",), (2, 2), (2, 2), (0, 0)),
        ir.Convolution("second", ("tiles",), False, None, 2, 2, (3, 3)),
        ir.Population("sn2", ("second",), neuron),
        ir.Readout("vote", ("sn2",), 2, False, True, 1),
    )
    rng = np.random.default_rng(0)
    state = {
        "first.weight": rng.normal(size=(2, 2, 1, 1)).astype(np.float32),
        "second.weight": rng.normal(size=(2, 2, 3, 3)).astype(np.float32),
    }
    with pytest.raises(errors.UnsupportedGraphError, match="overlapping: an average pooling"):
        integers(Model(ir.SpikingGraph(nodes, 2), state))


def test_a_pooling_with_a_rest_is_the_same_in_onnx() -> None:
    """7×9 positions in windows of 2×2: a row and a column are left out."""
    neuron = NeuronSpec("lif")
    nodes = (
        ir.Input("input", (), (2, 7, 9)),
        ir.Convolution("first", ("input",), False, None, 2, 3, (1, 1)),
        ir.Population("sn", ("first",), neuron),
        ir.AvgPool("mean", ("sn",), (2, 2), (2, 2), (0, 0)),
        ir.Convolution("second", ("mean",), False, None, 3, 2, (3, 3)),
        ir.Population("sn2", ("second",), neuron),
        ir.Flatten("flatten", ("sn2",)),
        ir.Readout("head", ("flatten",), 3),
    )
    rng = np.random.default_rng(4)
    state = {
        "first.weight": np.abs(rng.normal(size=(3, 2, 1, 1))),
        "second.weight": rng.normal(0.5, 1, size=(2, 3, 3, 3)),
        "head.weight": rng.normal(size=(3, 4)),
        "head.bias": rng.normal(size=3),
    }
    single = {name: array.astype(np.float32) for name, array in state.items()}
    model = integers(Model(ir.SpikingGraph(nodes, 3), single))
    given = pixels((6, 2, 7, 9))
    naive = assert_same(model, given)
    assert all(spikes.any() for spikes in naive.spikes.values())
    session = onnxruntime.InferenceSession(
        build_onnx(model, outputs="spikes").SerializeToString(), providers=["CPUExecutionProvider"]
    )
    scores, *spikes = session.run(None, {"input": given})
    np.testing.assert_array_equal(scores, naive.scores)
    for name, found in zip(naive.spikes, spikes, strict=True):
        np.testing.assert_array_equal(found, naive.spikes[name], name)
