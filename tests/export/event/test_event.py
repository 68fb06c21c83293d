"""The event network against the PyTorch original: outputs, spikes, counts, streams, refusals."""

import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from chains import ChainSpec, build, chains, images, random_masks
from hypothesis import given, settings
from hypothesis import strategies as st
from places import FIXTURES
from safetensors import safe_open

from soul_deploy import ir
from soul_deploy.analysis.synops import count_batch
from soul_deploy.base import Array
from soul_deploy.base.errors import (
    LimitError,
    UnknownNameError,
    UnsupportedGraphError,
    UsageError,
    ValidityError,
)
from soul_deploy.export.event.build import build_event_network, export_event
from soul_deploy.export.event.storage_format import DENSE_FROM, represent
from soul_deploy.lowering.deploy import lower
from soul_deploy.lowering.fan_out import CountedLayer, fanout
from soul_deploy.lowering.linear_operators import MatrixOperator
from soul_deploy.model.model import Model, ModelInfo, Normalization, Validity, arrays_of
from soul_deploy.nn.graph_module import GraphModule
from soul_deploy.runtime.engine.network import Network, load
from soul_deploy.runtime.format.network import DenseRows, SparseRows
from soul_deploy.runtime.ops.counted_run import count_layer, count_run, fan_out
from soul_deploy.runtime.plan.buffers import Buffers
from soul_deploy.zoo.registry import NetworkOptions, create

SOUL = FIXTURES / "spikingvgg5_lif.safetensors"


def sequence_of(spec: ChainSpec) -> torch.Tensor:
    """(T, B, C, H, W): another image at every step."""
    x = images(spec)
    return torch.stack([x.roll(t, dims=-1) for t in range(spec.time_steps)])


def sparsified(model: Model, seed: int) -> Model:
    """A tenth of each layer's weights is kept, at least one, so that rows are stored compressed."""
    rng = np.random.default_rng(seed)

    def thinned(value: Array) -> Array:
        kept = rng.permutation(value.size) < max(1, value.size // 10)
        return np.asarray(value * kept.reshape(value.shape), value.dtype)

    state = {k: thinned(v) if v.ndim > 1 else v for k, v in model.state.items()}
    return Model(model.graph, state, model.channel_masks, model.info)


def layers_of(model: Model) -> tuple[CountedLayer, ...]:
    return lower(model).layers


@given(chains(dyadic=True), st.booleans(), st.booleans(), st.booleans())
@settings(max_examples=40)
def test_dyadic_chains_equal_pytorch_bit_for_bit(
    spec: ChainSpec, sequence: bool, sparse: bool, masked: bool
) -> None:
    model = build(spec)
    if sparse:
        model = sparsified(model, spec.seed)
    if masked:
        model = Model(model.graph, model.state, random_masks(model, spec.seed), model.info)
    x = sequence_of(spec) if sequence else images(spec)
    golden = lower(model).trimmed.model.module().record(x)
    network = Network(build_event_network(model))
    np.testing.assert_array_equal(network.run(x.numpy()), golden.logits.numpy())
    found = network.run_recorded(x.numpy())
    np.testing.assert_array_equal(found.logits, golden.logits.numpy())
    assert set(found.spikes) == set(golden.spikes)
    for name, spikes in golden.spikes.items():
        np.testing.assert_array_equal(found.spikes[name], spikes.numpy(), err_msg=name)


@given(chains(dyadic=True), st.booleans(), st.booleans())
@settings(max_examples=25)
def test_layers_and_counts_teacher_forced(spec: ChainSpec, sequence: bool, sparse: bool) -> None:
    model = build(spec)
    if sparse:
        model = sparsified(model, spec.seed)
    x = sequence_of(spec) if sequence else images(spec)
    model = lower(model).trimmed.model
    module, network = model.module(), Network(build_event_network(model))
    names = [n.name for n in model.graph.nodes if n.op in ("population", "max_pool")]
    with torch.no_grad():
        values = module.evaluate({model.graph.input.name: module.as_signal(x)}, names)
        expected = count_batch(module, lower(model).counted, x)
    held = {model.graph.input.name: x.numpy()}
    held |= {name: signal.tensor.numpy() for name, signal in values.items()}
    for layer in network.events.layers:
        found = network.run_layer(layer.name, *(held[source] for source in layer.sources))
        np.testing.assert_array_equal(found, held[layer.name] != 0, err_msg=layer.name)
    for layer in network.events.spiking_layers:
        found_counts = count_layer(network, layer.projection, held[layer.source])
        assert found_counts == expected[layer.projection], layer.name
    assert count_run(network, x.numpy()).counts == expected


@given(chains(), st.booleans())
@settings(max_examples=25)
def test_fanout_maps_are_the_graphs(spec: ChainSpec, sparse: bool) -> None:
    model = build(spec)
    if sparse:
        model = sparsified(model, spec.seed)
    model = lower(model).trimmed.model
    network, live = Network(build_event_network(model)), lower(model).live_values
    for layer in layers_of(model):
        found = fan_out(network, layer.name)
        assert found.dtype == np.int64
        expected, before = fanout(layer.linear.operator, layer.live), live[layer.linear.source]
        if (
            before is not None and found.shape == before.shape
        ):  # rows of dead neurons may be left out
            found, expected = found * before, expected * before
        np.testing.assert_array_equal(found, expected, err_msg=layer.name)


@given(chains(dyadic=True))
@settings(max_examples=15)
def test_a_stream_is_the_run_step_by_step(spec: ChainSpec) -> None:
    model = build(spec)
    x = sequence_of(spec)
    network = Network(build_event_network(model))
    with torch.no_grad():
        expected = model.module().per_step(x).numpy()
    for _ in range(2):  # the second time after a reset
        scores = np.stack([network.step(frame.numpy()) for frame in x])
        np.testing.assert_array_equal(scores, expected)
        network.reset()


def test_float_chains_agree_within_rounding() -> None:
    @given(chains())
    @settings(max_examples=20)
    def check(spec: ChainSpec) -> None:
        model, x = build(spec), images(spec)
        golden = lower(model).trimmed.model.module().record(x)
        found = Network(build_event_network(model)).run_recorded(x.numpy())
        if all((found.spikes[n] == s.numpy()).all() for n, s in golden.spikes.items()):
            np.testing.assert_allclose(found.logits, golden.logits.numpy(), atol=1e-5)
        else:  # a neuron at its threshold: what came before it must still agree
            first = model.graph.populations[0].name
            assert (found.spikes[first] != golden.spikes[first].numpy()).mean() < 0.05

    check()


def soul_model() -> tuple[Model, dict[str, Any]]:
    """Soul's own SpikingVGG5 with its recorded input, spikes and logits."""
    with safe_open(SOUL, framework="np") as file:
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    spikes = {k.removeprefix("spikes."): v for k, v in arrays.items() if k.startswith("spikes.")}
    weights = {k.removeprefix("weights."): v for k, v in arrays.items() if k.startswith("weights.")}
    first = next(iter(spikes.values()))
    x = arrays["input"]
    shape = x.shape[-3:]
    options = NetworkOptions(
        tuple(shape), len(arrays["logits"][-1]), ir.NeuronSpec(), len(first),
        weights["pre_logits.fc1.0.weight"].shape[0],
    )  # fmt: skip
    _, graph = create("spikingvgg5", options)
    return Model(graph, weights, info=ModelInfo()), arrays


def test_souls_own_numbers() -> None:
    model, arrays = soul_model()
    network = Network(build_event_network(model))
    found = network.run_recorded(arrays["input"])
    for name, spikes in found.spikes.items():
        np.testing.assert_array_equal(spikes, arrays[f"spikes.{name}"] != 0, err_msg=name)
    np.testing.assert_allclose(found.logits, arrays["logits"], atol=1e-5)


def small_graph(*, normed: bool = False) -> ir.SpikingGraph:
    n = ir.NeuronSpec()
    nodes: tuple[ir.Node, ...] = (
        ir.Input("input", (), (2, 5, 5)),
        ir.Convolution("c1", ("input",), True, None, 2, 4, (3, 3), (1, 1), (1, 1)),
        ir.Population("p1", ("c1",), n),
        ir.MaxPool("m1", ("p1",), (2, 2), (2, 2)),
        ir.Flatten("flat", ("m1",)),
        ir.Linear("l1", ("flat",), False, None, 16, 6),
        ir.Population("p2", ("l1",), n),
        ir.Readout("head", ("p2",), 3),
    )
    return ir.SpikingGraph(nodes, 4)


def small_model(graph: ir.SpikingGraph | None = None, info: ModelInfo | None = None) -> Model:
    torch.manual_seed(0)
    graph = graph or small_graph()
    module = GraphModule(graph)
    return Model(graph, arrays_of(module.state_dict()), info=info or ModelInfo())


def test_rows_follow_the_density() -> None:
    """A layer at the threshold's share of nonzero weights is dense, one weight less is not."""
    network = build_event_network(small_model())
    assert all(isinstance(layer.synapses.rows, DenseRows) for layer in network.spiking_layers)
    least = math.ceil(DENSE_FROM * 10 * 10)
    for synapses, kind in ((least, DenseRows), (least - 1, SparseRows)):
        weight = np.zeros((10, 10), np.float32)
        weight.reshape(-1)[:synapses] = 0.5
        operator = MatrixOperator(weight, None, (10,), (10,))
        rows = represent(operator, None, None, "auto")[0].rows
        assert isinstance(rows, kind)
        if isinstance(rows, SparseRows):
            assert rows.synapses == synapses


def test_the_network_carries_its_description(tmp_path: Path) -> None:
    info = ModelInfo(
        normalization=Normalization((0.1, 0.2), (0.3, 0.4)),
        classes=("a", "b", "c"),
        validity=Validity(4, True),
    )
    path = tmp_path / "net.safetensors"
    export_event(small_model(info=info), path, source_sha256="ab" * 32)
    events = load(path).events
    assert events.normalization is not None
    assert events.normalization.mean == (0.1, 0.2)
    assert events.classes == ("a", "b", "c")
    assert (events.fixed_steps, events.reset_per_sample) == (True, True)
    assert events.source_sha256 == "ab" * 32
    assert [layer.name for layer in events.layers] == ["p1", "m1", "p2"]
    assert [layer.projection for layer in events.spiking_layers] == ["c1", "l1"]


def test_runs_do_not_share_state() -> None:
    network = Network(build_event_network(small_model()))
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, 2, 5, 5)).astype(np.float32)
    together = network.run(x)
    for b in range(3):
        np.testing.assert_array_equal(network.run(x[b : b + 1]), together[b : b + 1])
    np.testing.assert_array_equal(network.run(x[:0]), np.zeros((0, 3), np.float32))


def changed(name: str, node: ir.Node) -> ir.SpikingGraph:
    return small_graph().with_nodes({name: node})


@pytest.mark.parametrize(
    ("graph", "text"),
    [
        (
            ir.SpikingGraph(
                (
                    ir.Input("input", (), (2, 4, 4)),
                    ir.AdaptiveAvgPool("a", ("input",), (3, 3)),
                    ir.Population("p", ("a",), ir.NeuronSpec()),
                    ir.Readout("head", ("p",), 2),
                ),
                2,
            ),
            "p: its input 'a' is no projection",
        ),
        (
            ir.SpikingGraph(
                (
                    ir.Input("input", (), (2, 4, 4)),
                    ir.Convolution("c", ("input",), False, None, 2, 2, (1, 1)),
                    ir.Population("p", ("c",), ir.NeuronSpec()),
                    ir.Flatten("a", ("p",)),
                    ir.Merge("m", ("a", "a"), "add"),
                    ir.Linear("d", ("m",), False, None, 32, 2),
                    ir.Population("q", ("d",), ir.NeuronSpec()),
                    ir.Readout("head", ("q",), 2),
                ),
                2,
            ),
            "m: its input 'a' is no projection",
        ),
        (
            ir.SpikingGraph(
                (
                    ir.Input("input", (), (2, 4, 4)),
                    ir.Convolution("c", ("input",), False, None, 2, 2, (1, 1)),
                    ir.Population("p", ("c",), ir.NeuronSpec()),
                    ir.Population("q", ("p",), ir.NeuronSpec()),
                    ir.Readout("head", ("q",), 2),
                ),
                2,
            ),
            "q: its input 'p' is no current but spike values",
        ),
        (
            ir.SpikingGraph(
                (
                    ir.Input("input", (), (2, 4, 4)),
                    ir.Convolution("c", ("input",), False, None, 2, 2, (1, 1)),
                    ir.AvgPool("a", ("c",), (2, 2), (2, 2)),
                    ir.Readout("head", ("a",), 2),
                ),
                2,
            ),
            "head: reads analog values from 'c'",
        ),
    ],
)
def test_what_the_runtime_cannot_run_is_refused(graph: ir.SpikingGraph, text: str) -> None:
    with pytest.raises(UnsupportedGraphError, match=text):
        build_event_network(small_model(graph))


def test_graded_values_beyond_a_byte_are_refused() -> None:
    nodes: list[ir.Node] = [
        ir.Input("input", (), (2, 4, 4)),
        ir.Convolution("c", ("input",), False, None, 2, 2, (1, 1)),
        ir.Population("p", ("c",), ir.NeuronSpec()),
    ]
    doubled = "p"
    for k in range(8):
        nodes.append(ir.Merge(f"m{k}", (doubled, doubled), "add"))
        doubled = f"m{k}"
    graph = ir.SpikingGraph((*nodes, ir.Readout("head", (doubled,), 2)), 2)
    with pytest.raises(LimitError, match="m7: values up to 256; an event carries at most 255"):
        build_event_network(small_model(graph))


def zeros(*shape: int) -> Any:
    return np.zeros(shape, np.float32)


@pytest.mark.parametrize(
    ("x", "text"),
    [
        (zeros(1, 2, 5, 6), r"input \(1, 2, 5, 6\) given; this network takes \(batch, 2, 5, 5\)"),
        (zeros(2, 5, 5), r"or \(4, batch, 2, 5, 5\) for a sequence"),
        (zeros(3, 1, 2, 5, 5), "a sequence of 3 steps given; this network runs T = 4"),
        (zeros(1, 2, 5, 5) + np.nan, "values that are not finite"),
        (zeros(1, 2, 5, 5) - np.inf, "values that are not finite"),
        (np.full((1, 2, 5, 5), 1e300), "values that are not finite"),
        ("abc", "an input of <U3 given; give real numbers"),
        (zeros(1, 2, 5, 5) + 1j, "an input of complex64 given"),
        ([[1.0], [1.0, 2.0]], "the input is no array"),
    ],
)
def test_wrong_inputs_are_refused(x: Any, text: str) -> None:
    network = Network(build_event_network(small_model()))
    with pytest.raises(ValidityError, match=text):
        network.run(x)
    if "sequence" not in text and "this network" not in text:
        with pytest.raises(ValidityError, match=text):
            network.step(x)


def test_an_interrupted_step_ends_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some samples have gone on, others have not: nothing may follow from that."""
    network = Network(build_event_network(small_model()), threads=1)
    x = np.random.default_rng(0).random((2, 2, 5, 5), np.float32)
    first, second = network.step(x), network.step(x)
    network.reset()
    np.testing.assert_array_equal(network.step(x), first)
    run, seen = Buffers.run, []

    def interrupted(buffers: Buffers) -> None:
        seen.append(1)
        if len(seen) == 2:
            raise KeyboardInterrupt
        run(buffers)

    monkeypatch.setattr(Buffers, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        network.step(x)
    with pytest.raises(ValidityError, match="the first step of a stream needs an input"):
        network.step()
    np.testing.assert_array_equal(network.step(x), first)
    np.testing.assert_array_equal(network.step(x), second)


def test_buffers_of_one_run_are_kept() -> None:
    network = Network(build_event_network(small_model()), threads=2)
    x = np.zeros((4, 2, 5, 5), np.float32)
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(network.run, [x] * 12))
        list(pool.map(network.run, [x[:1]] * 12))
    assert {key: len(kept) for key, kept in network._spare.items()} == {(1, 1): 2, (1, 2): 1}


def test_wrong_layer_inputs_and_names_are_refused() -> None:
    network = Network(build_event_network(small_model()))
    with pytest.raises(ValidityError, match=r"p2: inputs \(4, 1, 4, 2, 3\) given; it takes"):
        network.run_layer("p2", zeros(4, 1, 4, 2, 3))
    with pytest.raises(ValidityError, match="p2: 3 steps given"):
        network.run_layer("p2", zeros(3, 1, 4, 2, 2))
    with pytest.raises(ValidityError, match="p2: inputs must be whole numbers from 0 to 1"):
        network.run_layer("p2", zeros(4, 1, 4, 2, 2) + 0.5)
    with pytest.raises(ValidityError, match="p2: inputs must be whole numbers from 0 to 1"):
        network.run_layer("p2", zeros(4, 1, 4, 2, 2) + 2)
    with pytest.raises(UnknownNameError, match="unknown layer 'p9'; valid: p1, m1, p2"):
        network.run_layer("p9", zeros(1))
    with pytest.raises(UsageError, match="m1 is a pooling"):
        fan_out(network, "m1")


def test_a_stream_refuses_what_it_is_not_valid_for() -> None:
    network = Network(build_event_network(small_model(info=ModelInfo(validity=Validity(4, True)))))
    x = zeros(2, 2, 5, 5)
    for _ in range(4):
        network.step(x)
    with pytest.raises(ValidityError, match="step 5 asked, but this network is valid for T = 4"):
        network.step(x)
    network.reset()
    network.step(x)
    with pytest.raises(ValidityError, match="a batch of 1 given, but the stream runs 2"):
        network.step(x[:1])
    with pytest.raises(ValidityError, match=r"a step of \(2, 5, 5\) given"):
        network.step(x[0])
