"""NIR, there and back: other tools' readers give the same spikes, other tools' graphs come in."""

import contextlib
import importlib
import io
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from chains import ChainSpec, build, chains, images
from click.testing import CliRunner
from hypothesis import assume, given, settings
from residual import ResidualSpec, residual_images, residual_model, residuals
from torch import Tensor, nn

from soul_deploy.base.errors import (
    FileFormatError,
    MissingFileError,
    UnsupportedGraphError,
    UsageError,
    ValidityError,
)
from soul_deploy.cli.main import root
from soul_deploy.equivalence.engines import Comparer, ModelExecution
from soul_deploy.equivalence.reference import ReferenceModel
from soul_deploy.export.event.build import build_event_network
from soul_deploy.export.nir.package import DEFAULT_DT
from soul_deploy.export.nir.read import import_nir, read_nir
from soul_deploy.export.nir.write import build_nir, export_nir
from soul_deploy.export.onnx.model import build_onnx
from soul_deploy.export.verify.onnx import OnnxExecution
from soul_deploy.export.verify.verify import nir_problems, verify
from soul_deploy.frontend.from_torch import trace
from soul_deploy.ir import Merge, NeuronSpec, Population, Readout
from soul_deploy.model.file import load, save
from soul_deploy.model.model import Model, ModelInfo, Normalization, Validity, from_module
from soul_deploy.nn import layers
from soul_deploy.nn.graph_module import GraphModule, Signal
from soul_deploy.nn.neuron import SpikingNeuron
from soul_deploy.runtime.engine.network import Network

nir = pytest.importorskip("nir", reason="the package nir is the extra `nir`")
STEPS = 12
SHAPE = (2, 8, 8)


def model_of(network: nn.Module, shape: tuple[int, ...], time_steps: int, **info: Any) -> Model:
    module = GraphModule(trace(network.eval(), shape, time_steps))
    module.load_state_dict(network.state_dict())
    return from_module(module, ModelInfo(**info))


def scaled(network: nn.Module, factor: float) -> nn.Module:
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(factor).add_(0.05)
    return network


def convolutional(neuron: NeuronSpec, time_steps: int = STEPS) -> Model:
    """Convolutions, batch norm, average pooling, flattening, linear, head; every layer spikes."""
    torch.manual_seed(4)
    network = nn.Sequential(
        layers.Conv2d(2, 6, 3, padding=1),
        layers.BatchNorm2d(6),
        SpikingNeuron(neuron, time_steps),
        layers.AvgPool2d(2),
        layers.Conv2d(6, 8, 3, stride=2, padding=1),
        SpikingNeuron(neuron, time_steps),
        layers.Flatten(),
        nn.Linear(32, 10),
        SpikingNeuron(neuron, time_steps),
        layers.RateReadout(10, 3),
    )
    return model_of(scaled(network, 4), SHAPE, time_steps)


class Residual(nn.Module):
    """Two spike-domain additions in a row, then one of currents; mean over the map at the end."""

    def __init__(self, time_steps: int) -> None:
        super().__init__()
        neuron = NeuronSpec()
        self.convolutions = nn.ModuleList(
            layers.Conv2d(2 if k == 0 else 4, 4, 3, padding=1) for k in range(5)
        )
        self.neurons = nn.ModuleList(SpikingNeuron(neuron, time_steps) for _ in range(4))
        self.merges = nn.ModuleList(layers.Merge("add") for _ in range(3))
        self.head = layers.RateReadout(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        conv, fire, add = self.convolutions, self.neurons, self.merges
        stem = fire[0](conv[0](x))
        one = add[0](stem, fire[1](conv[1](stem)))
        two = add[1](one, fire[2](conv[2](one)))
        last: Tensor = self.head(fire[3](add[2](conv[3](two), conv[4](stem))))
        return last


def residual(time_steps: int = STEPS) -> Model:
    torch.manual_seed(5)
    return model_of(scaled(Residual(time_steps), 1.8), SHAPE, time_steps)


def frames(shape: tuple[int, ...] = SHAPE, batch: int = 1, time_steps: int = STEPS) -> Tensor:
    seeded = torch.Generator().manual_seed(7)
    return torch.rand((time_steps, batch, *shape), generator=seeded) * 2


def written(model: Model, folder: Path) -> Path:
    path = folder / "network.nir"
    export_nir(model, path)
    return path


def run_elsewhere(module: Any, x: Tensor, names: list[str]) -> tuple[dict[str, Tensor], Tensor]:
    """Step by step in a reader's module: spikes of the named nodes and the output."""
    seen: dict[str, list[Tensor]] = {name: [] for name in names}
    hooks = []
    for name, child in module.named_modules():
        if name in seen:

            def hook(_m: Any, _i: Any, output: Any, name: str = name) -> None:
                seen[name].append(output[0] if isinstance(output, tuple) else output)

            hooks.append(child.register_forward_hook(hook))
    state, outputs = None, []
    with torch.no_grad():
        for frame in x:
            output, state = module(frame) if state is None else module(frame, state)
            outputs.append(output)
    for hook_handle in hooks:
        hook_handle.remove()
    return {name: torch.stack(found) for name, found in seen.items()}, torch.stack(outputs)


def read_by_spikingjelly(path: Path) -> Any:
    exchange = pytest.importorskip(
        "spikingjelly.activation_based.nir_exchange", reason="the reader under test"
    )
    return exchange.import_from_nir(str(path))


def read_by_snntorch(path: Path) -> Any:
    reader = pytest.importorskip("snntorch.import_nir", reason="the reader under test")
    with contextlib.redirect_stdout(io.StringIO()):  # it prints that it scales thresholds
        return reader.import_from_nir(nir.read(path))


READERS = {"spikingjelly": read_by_spikingjelly, "snntorch": read_by_snntorch}
DECAYS = {
    "input decays": NeuronSpec(tau=2.0),
    "input does not decay": NeuronSpec(tau=1.7, decay_input=False),
}


@pytest.mark.parametrize("neuron", DECAYS.values(), ids=DECAYS)
@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
def test_other_readers_give_the_same_spikes(
    read: Callable[[Path], Any], neuron: NeuronSpec, tmp_path: Path
) -> None:
    """Batch 1, dt 1e-4, since snnTorch flattens the batch too and knows no other dt."""
    model, x = convolutional(neuron), frames()
    recorded = model.module().record(x)
    found, output = run_elsewhere(read(written(model, tmp_path)), x, list(recorded.spikes))
    for name, spikes in recorded.spikes.items():
        assert spikes.sum() > STEPS, name
        assert torch.equal(found[name].reshape(spikes.shape).bool(), spikes), name
    logits = output.reshape(STEPS, 1, 3).mean(0)
    assert torch.allclose(logits, recorded.logits, atol=1e-5)


@pytest.mark.parametrize(
    "neuron",
    [
        NeuronSpec("if", v_threshold=0.7, fire="ge"),
        NeuronSpec("plif", tau=1.6, v_reset=-0.2, fire="ge"),
        NeuronSpec("plif", tau=1.6, decay_input=False, fire="ge"),
        NeuronSpec("lif", tau=3.0, v_reset=0.1, decay_input=False, form="spikingjelly", fire="ge"),
    ],
    ids=str,
)
def test_spikingjelly_reads_every_family(neuron: NeuronSpec, tmp_path: Path) -> None:
    model, x = convolutional(neuron), frames(batch=3)
    recorded = model.module().record(x)
    found, _ = run_elsewhere(
        read_by_spikingjelly(written(model, tmp_path)), x, list(recorded.spikes)
    )
    for name, spikes in recorded.spikes.items():
        assert spikes.any(), name
        assert torch.equal(found[name].bool(), spikes), name


def test_a_sum_is_edges_into_what_reads_it(tmp_path: Path) -> None:
    model, x = residual(), frames(batch=2)
    path = written(model, tmp_path)
    edges = read_nir(path).edges
    assert sorted(a for a, b in edges if b == "neurons_3") == ["convolutions_3", "convolutions_4"]
    assert [a for a, b in edges if b == "convolutions_3"] == ["neurons_0", "neurons_1", "neurons_2"]
    recorded = model.module().record(x)
    keys = {name: name.replace(".", "_") for name in recorded.spikes}
    found, output = run_elsewhere(read_by_spikingjelly(path), x, list(keys.values()))
    for name, spikes in recorded.spikes.items():
        assert spikes.any(), name
        assert torch.equal(found[keys[name]].bool(), spikes), name
    assert torch.allclose(output.mean(0), recorded.logits, atol=1e-5)


def test_a_branch_that_comes_twice_is_scaled_by_one_on_the_way() -> None:
    model = residual(time_steps=3)
    merge = model.graph["merges.1"]
    assert isinstance(merge, Merge)
    doubled = replace(merge, inputs=("merges.0", "neurons.2", "merges.0"))
    twice = replace(model, graph=model.graph.with_nodes({"merges.1": doubled}))
    graph = build_nir(twice)
    kinds = [type(node).__name__ for node in graph.nodes.values()]
    assert kinds.count("Scale") == 2
    x = frames(batch=2, time_steps=3)
    expected, found = twice.module().record(x), import_nir(graph).module().record(x)
    assert torch.equal(found.spikes["neurons.3"], expected.spikes["neurons.3"])


def hard(neuron: NeuronSpec) -> NeuronSpec:
    return replace(neuron, v_reset=0.0, v_subtract=None) if neuron.v_reset is None else neuron


def readable(spec: ChainSpec) -> ChainSpec:
    """The chain with what NIR cannot hold replaced: max pooling by average, soft reset by hard."""

    convolutions = tuple(
        replace(
            conv,
            kernel=(min(conv.kernel), min(conv.kernel)),  # the package nir knows no others
            neuron=hard(conv.neuron),
            pool=None if conv.pool is None else replace(conv.pool, kind="avg"),
        )
        for conv in spec.convolutions
    )
    linears = tuple(replace(linear, neuron=hard(linear.neuron)) for linear in spec.linears)
    return replace(spec, convolutions=convolutions, linears=linears)


@given(chains(dyadic=True, max_groups=1))
def test_there_and_back_is_the_same_network(spec: ChainSpec) -> None:
    model, x = build(readable(spec)), images(spec)
    back = import_nir(build_nir(model))
    assert not list(nir_problems(model, back))
    neurons = [node.neuron for node in model.graph.populations]
    assert [node.neuron for node in back.graph.populations] == neurons
    assert back.graph.readout.describe() == model.graph.readout.describe()
    expected, found = model.module().record(x), back.module().record(x)
    assert torch.equal(found.logits, expected.logits)
    for name, spikes in expected.spikes.items():
        assert torch.equal(found.spikes[name], spikes), name


@given(chains(max_groups=1))
def test_there_and_back_with_batch_norm(spec: ChainSpec) -> None:
    pools = [conv.pool for conv in spec.convolutions if conv.pool is not None]
    assume(all(pool.kind != "adaptive" for pool in pools))
    model, x = build(readable(spec)), images(spec)
    back = import_nir(build_nir(model))
    comparer, execution = Comparer(ReferenceModel(model)), ModelExecution(back)
    assert comparer.forced(execution, x, 4).passed
    assert comparer.end_to_end(execution, x, 4).passed


@given(residuals())
@settings(max_examples=25)
def test_residual_networks_there_and_back(spec: ResidualSpec) -> None:
    blocks = tuple(replace(block, neuron=hard(block.neuron)) for block in spec.blocks)
    spec = replace(
        spec, connect="add", pool=False, scattered=False, blocks=blocks, neuron=hard(spec.neuron)
    )
    model, x = residual_model(spec), residual_images(spec)
    back = import_nir(build_nir(model))
    assert not list(nir_problems(model, back))
    comparer, execution = Comparer(ReferenceModel(model)), ModelExecution(back)
    assert comparer.forced(execution, x, 4).passed
    assert comparer.end_to_end(execution, x, 4).passed


def test_what_stands_beside_the_nodes_comes_back(tmp_path: Path) -> None:
    info = ModelInfo(
        "compact",
        Normalization((0.5, 0.25), (0.2, 0.5)),
        ("ant", "bee", "cat"),
        {"data": "digits", "seed": 3},
        Validity(STEPS, True),
    )
    model = replace(convolutional(NeuronSpec()), info=info)
    graph = read_nir(written(model, tmp_path))
    assert graph.metadata["time_steps"] == "12"
    assert graph.metadata["dt"] == "0.0001"
    assert graph.metadata["fire"] == "v > v_threshold"
    assert "mean of the output" in graph.metadata["decode"]
    assert graph.nodes["2"].tau.shape == (6, 8, 8)
    assert graph.nodes["2"].metadata["fire"] == "v > v_threshold"
    back = import_nir(graph)
    assert back.info == replace(info, provenance={**info.provenance, "imported": "nir"})
    with pytest.raises(ValidityError, match="silent only within"):
        import_nir(graph, time_steps=5)


def test_votes_and_even_adaptive_pooling() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        layers.Conv2d(2, 4, 3, padding=1),
        SpikingNeuron(NeuronSpec(), 4),
        layers.AdaptiveAvgPool2d((2, 4)),
        layers.Flatten(),
        nn.Linear(32, 6),
        SpikingNeuron(NeuronSpec(), 4),
        layers.VoteReadout(3, 2),
    )
    scaled(network, 4)
    network.get_parameter("4.bias").data.normal_(1.0)
    model = model_of(network, SHAPE, 4)
    back = import_nir(build_nir(model))
    assert back.graph.readout == model.graph.readout
    x = frames(time_steps=4)
    expected = model.module().record(x)
    assert expected.logits.any()
    assert torch.equal(back.module().record(x).logits, expected.logits)


def chain_graph(*nodes: Any, **metadata: str) -> Any:
    """A NIR graph of nodes in a row, of other tools' making: without metadata of ours."""
    graph = nir.NIRGraph.from_list(*nodes, type_check=False)
    graph.metadata = dict(metadata)
    return graph


def lif(shape: tuple[int, ...], tau: float = 2e-4, r: float = 1.0, **other: float) -> Any:
    numbers = {"v_leak": 0.0, "v_threshold": 1.0, "v_reset": 0.0} | other
    arrays = {name: np.full(shape, value) for name, value in numbers.items()}
    return nir.LIF(tau=np.full(shape, tau), r=np.full(shape, r), **arrays)


def integer_weights(*shape: int) -> Any:
    rng = np.random.default_rng(sum(shape))
    return rng.integers(-4, 6, shape).astype(np.float32) / 4


def euler(x: np.ndarray, tau: float, r: float, threshold: float, dt: float = DEFAULT_DT) -> Any:
    """NIR's own equation on currents (T, N), in float64."""
    v, spikes = np.zeros(x.shape[1:]), []
    for current in x.astype(np.float64):
        v = v + dt / tau * (0.0 - v + r * current)
        spikes.append(v > threshold)
        v = np.where(spikes[-1], 0.0, v)
    return np.array(spikes)


@pytest.mark.parametrize(
    ("tau", "r"), [(2e-4, 1.0), (4e-4, 4.0), (4e-4, 3.0), (2e-4, 0.5), (1e-4, 1.0)]
)
def test_neurons_of_others_follow_nir(tau: float, r: float) -> None:
    """A resistance that is no form of ours goes into the weights."""
    weight = integer_weights(7, 5)
    model = import_nir(chain_graph(nir.Linear(weight), lif((7,), tau, r)), time_steps=9)
    x = frames((5,), 3, 9)
    expected = euler((x.numpy() @ weight.T).reshape(9, -1), tau, r, 1.0).reshape(9, 3, 7)
    found = model.module().record(x).spikes["lif"].numpy()
    assert expected.any()
    np.testing.assert_array_equal(found, expected)


def test_integrators_and_fast_synapses() -> None:
    weight, x = integer_weights(7, 5), frames((5,), 3, 9)
    full = np.ones(7)
    integrator = nir.IF(r=full / DEFAULT_DT, v_threshold=full, v_reset=0 * full)
    synaptic = nir.CubaLIF(
        tau_syn=1e-4 * full, tau_mem=2e-4 * full, r=full, v_leak=0 * full, v_threshold=full,
        v_reset=0 * full, w_in=3 * full,
    )  # fmt: skip
    for node, expected in ((integrator, ("if", 1.0)), (synaptic, ("lif", 3.0))):
        model = import_nir(chain_graph(nir.Linear(weight), node), time_steps=9)
        (population,) = model.graph.populations
        assert population.neuron.family == expected[0]
        np.testing.assert_array_equal(model.state["linear.weight"], weight * expected[1])
    assert model.module().record(x).spikes[population.name].any()


def test_constant_factors_go_into_the_weights_beside_them() -> None:
    """Scaled input, sum pooling, and a scaling between synapses and neuron."""
    kernel = integer_weights(4, 2, 3, 3)
    graph = chain_graph(
        nir.Input(input_type={"input": np.array(SHAPE)}),
        nir.Scale(np.full(SHAPE, 0.5)),
        nir.Conv2d((8, 8), kernel, 1, "same", 1, 1, np.ones(4)),
        nir.Scale(np.full((4, 8, 8), 3.0)),
        lif((4, 8, 8)),
        nir.SumPool2d(np.array([2, 2]), np.array([2, 2]), np.array([0, 0])),
        nir.Flatten(input_type={"input": np.array((4, 4, 4))}, start_dim=0, end_dim=-1),
        nir.Affine(integer_weights(5, 64), np.ones(5)),
        lif((5,), v_threshold=2.0),
    )
    model = import_nir(graph, time_steps=4)
    np.testing.assert_array_equal(model.state["conv2d.weight"], kernel * 1.5)
    np.testing.assert_array_equal(model.state["conv2d.bias"], np.full(4, 3.0))
    np.testing.assert_array_equal(model.state["affine.weight"], integer_weights(5, 64) * 4)
    np.testing.assert_array_equal(model.state["affine.bias"], np.ones(5))
    assert model.module().record(frames(time_steps=4)).logits.any()


@pytest.mark.parametrize(("height", "width"), [(2, 4), (4, 1), (1, 2)])
def test_a_sum_pooling_sums_its_window(height: int, width: int) -> None:
    """What a linear layer behind it hears."""
    sides, pooled = np.array([height, width]), (2, 8 // height, 8 // width)
    weight = integer_weights(5, int(np.prod(pooled)))
    graph = chain_graph(
        nir.Input(input_type={"input": np.array(SHAPE)}),
        nir.SumPool2d(sides, sides, np.array([0, 0])),
        nir.Flatten(input_type={"input": np.array(pooled)}, start_dim=0, end_dim=-1),
        nir.Linear(weight),
        lif((5,)),
    )
    model = import_nir(graph, time_steps=1)
    x = (frames()[0] * 16).round() / 16
    (population,) = model.graph.populations
    source = population.inputs[0]
    found = model.module().evaluate({model.graph.input.name: Signal(x, True)}, [source])
    sums = x.reshape(-1, 2, pooled[1], height, pooled[2], width).sum((3, 5))
    assert torch.equal(found[source].tensor, sums.flatten(1) @ torch.from_numpy(weight).t())


def forked(left: float, right: float, *, shared: bool = False) -> Any:
    """Two branches of synapses, scaled by `left` and `right`, into one population; or `shared`: one
    branch into it and into a second population, which sees it unscaled."""
    nodes = {
        "input": nir.Input(input_type={"input": np.array((5,))}),
        "a": linear(),
        "b": nir.Affine(integer_weights(7, 5) + 0.5, np.ones(7)),
        "sa": nir.Scale(np.full(7, left)),
        "sb": nir.Scale(np.full(7, right)),
        "lif": lif((7,)),
        "other": lif((7,)),
        "head": nir.Linear(integer_weights(3, 7)),
        "output": nir.Output(output_type={"output": np.array((3,))}),
    }
    edges = [("input", "a"), ("input", "b"), ("a", "sa"), ("b", "sb"), ("sa", "lif"), ("sb", "lif")]
    edges += [("lif", "head"), ("head", "output")]
    edges += [("b", "other"), ("other", "head")] if shared else []
    kept = nodes if shared else {name: node for name, node in nodes.items() if name != "other"}
    return nir.NIRGraph(kept, edges, type_check=False)


@pytest.mark.parametrize("factors", [(2.0, 0.5), (2.0, 2.0)])
def test_factors_of_branches_that_meet(factors: tuple[float, float]) -> None:
    model = import_nir(forked(*factors), time_steps=9)
    a, b = (model.state[f"{name}.weight"] for name in "ab")
    np.testing.assert_array_equal(a, integer_weights(7, 5) * factors[0])
    np.testing.assert_array_equal(b, (integer_weights(7, 5) + 0.5) * factors[1])
    np.testing.assert_array_equal(model.state["b.bias"], np.full(7, factors[1]))
    assert model.graph["lif.sum"].inputs == ("a", "b")


def test_a_factor_that_something_else_would_see_is_refused() -> None:
    with pytest.raises(UnsupportedGraphError, match=r"lif: what arrives is scaled by 0.5.*\(b\)"):
        import_nir(forked(1.0, 0.5, shared=True), time_steps=9)
    model = import_nir(forked(1.0, 1.0, shared=True), time_steps=9)
    assert model.graph["head"].inputs == ("head.sum",)


def test_a_last_affine_node_is_the_head_and_a_mean_before_it_too() -> None:
    graph = chain_graph(
        nir.Conv2d((8, 8), integer_weights(4, 2, 3, 3), 1, 1, 1, 1, np.zeros(4)),
        lif((4, 8, 8)),
        nir.AvgPool2d(np.array([8, 8]), np.array([8, 8]), np.array([0, 0])),
        nir.Flatten(input_type={"input": np.array((4, 1, 1))}, start_dim=0, end_dim=-1),
        nir.Affine(integer_weights(3, 4), np.ones(3)),
    )
    model = import_nir(graph, time_steps=4)
    assert model.graph.readout == Readout("affine", ("lif",), 3, linear=True, bias=True)
    x = frames(batch=2, time_steps=4)
    spikes = model.module().record(x).spikes["lif"].float()
    expected = (spikes.mean(dim=(3, 4)) @ torch.tensor(integer_weights(3, 4)).t() + 1).mean(0)
    assert torch.allclose(model.module()(x), expected, atol=1e-6)


def test_a_head_may_weigh_the_flattened_input() -> None:
    flatten = nir.Flatten(input_type={"input": np.array(SHAPE)}, start_dim=0, end_dim=-1)
    model = import_nir(chain_graph(flatten, linear(7, math.prod(SHAPE))), time_steps=3)
    assert [node.op for node in model.graph.nodes] == ["input", "flatten", "readout"]


def leaky(beta: float, *shape: int) -> Any:
    snntorch = pytest.importorskip("snntorch", reason="the writer under test")
    return snntorch.Leaky(
        beta=torch.full(shape, beta),
        threshold=torch.ones(shape),
        init_hidden=True,
        reset_mechanism="zero",
        reset_delay=False,
    )


@pytest.fixture
def from_snntorch(tmp_path: Path) -> Iterator[tuple[Path, Tensor, Tensor]]:
    """A file that snnTorch wrote, frames, and its own output spikes for them."""
    writer = pytest.importorskip("snntorch.export_nir", reason="the writer under test")
    torch.manual_seed(2)
    network = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        leaky(0.8, 4, 8, 8),
        nn.AvgPool2d((2, 2)),
        nn.Flatten(),
        nn.Linear(64, 10),
        leaky(0.9, 10),
        nn.Linear(10, 5),
        leaky(0.5, 5),
    )
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith("weight"):
                parameter.mul_(6)
    x = frames()
    path = tmp_path / "snntorch.nir"
    nir.write(path, writer.export_to_nir(network, x[0], ignore_dims=[0]))
    importlib.import_module("snntorch.utils").reset(network)  # the writer ran it on the sample
    with torch.no_grad():
        yield path, x, torch.stack([network(frame) for frame in x])


def test_a_graph_that_snntorch_wrote_comes_in(from_snntorch: tuple[Path, Tensor, Tensor]) -> None:
    path, x, expected = from_snntorch
    model = import_nir(read_nir(path), time_steps=STEPS)
    assert expected.sum() > STEPS
    assert torch.equal(model.module().per_step(x), expected)
    assert torch.allclose(model.module()(x), expected.mean(0), atol=1e-6)


def test_an_imported_network_leaves_like_any_other(
    from_snntorch: tuple[Path, Tensor, Tensor],
) -> None:
    path, x, expected = from_snntorch
    model = import_nir(read_nir(path), time_steps=STEPS)
    onnx = OnnxExecution(build_onnx(model, input_mode="sequence"), model)
    assert torch.allclose(onnx.run(x).logits, expected.mean(0), atol=1e-6)
    event = Network(build_event_network(model))
    np.testing.assert_allclose(event.run(x.numpy()), expected.mean(0), atol=1e-6)


def conv_of(groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        layers.Conv2d(2, 4, 3, padding=1, groups=groups),
        SpikingNeuron(NeuronSpec(), 2),
        layers.RateReadout(4, 3),
    )


def with_pool(pool: nn.Module) -> nn.Sequential:
    network = conv_of()
    return nn.Sequential(network[0], network[1], pool, network[2])


def with_neuron(neuron: NeuronSpec) -> nn.Sequential:
    network = conv_of()
    return nn.Sequential(network[0], SpikingNeuron(neuron, 2), network[2])


class Conjunction(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = layers.Conv2d(2, 4, 1), layers.Conv2d(2, 4, 1)
        self.one, self.two = SpikingNeuron(NeuronSpec(), 2), SpikingNeuron(NeuronSpec(), 2)
        self.both, self.head = layers.Merge("and"), layers.RateReadout(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(self.both(self.one(self.left(x)), self.two(self.right(x))))
        return scores


REFUSED: dict[str, tuple[nn.Module, str]] = {
    "max pooling": (with_pool(layers.MaxPool2d(2)), "^2: max pooling; NIR has none"),
    "uneven windows": (
        with_pool(layers.AdaptiveAvgPool2d(3)),
        "^2: adaptive pooling of 8×8 to 3×3, whose windows differ in size",
    ),
    "soft reset": (with_neuron(NeuronSpec(v_reset=None)), "^1: soft reset"),
    "groups": (conv_of(groups=2), "^0: a convolution of 2 groups; readers of NIR refuse groups"),
    "kernels that the package nir misreads": (
        nn.Sequential(layers.Conv2d(2, 4, (3, 1)), *list(conv_of())[1:]),
        r"^0: a kernel of 3×1, whose output the package nir .* takes for \(4, 6, 6\), not",
    ),
    "and": (Conjunction(), "^both: and of spikes; NIR can only add"),
}


@pytest.mark.parametrize(("network", "text"), REFUSED.values(), ids=REFUSED)
def test_what_nir_cannot_hold_is_refused_by_name(
    network: nn.Module, text: str, tmp_path: Path
) -> None:
    with pytest.raises(UnsupportedGraphError, match=text):
        export_nir(model_of(network, SHAPE, 2), tmp_path / "x.nir")
    assert not list(tmp_path.iterdir())


def test_a_branch_that_nothing_reads_is_refused_by_name() -> None:
    model = residual(time_steps=3)
    merge = model.graph["merges.1"]
    unread = model.graph.with_nodes({"merges.1": replace(merge, inputs=("merges.0", "neurons.0"))})
    with pytest.raises(UnsupportedGraphError, match=r"^neurons.2: nothing reads it"):
        build_nir(replace(model, graph=unread))


def test_masked_neurons_and_generated_channels_are_refused_by_name() -> None:
    model = model_of(conv_of(), SHAPE, 2)
    masked = replace(model, neuron_masks={"1": np.ones((4, 8, 8), np.bool_)})
    with pytest.raises(UnsupportedGraphError, match=r"^1: masked neurons"):
        build_nir(masked)
    population = model.graph["1"]
    assert isinstance(population, Population)
    conv, head = model.graph["0"], model.graph["2"]
    fewer = model.graph.with_nodes(
        {
            "0": replace(conv, channels=3),  # type: ignore[call-arg]
            "1": replace(population, generated=1),
            "2": head,
        }
    )
    state = dict(model.state) | {"1.pattern": np.ones((2, 1), np.float32)}
    state |= {"0.weight": state["0.weight"][:3], "0.bias": state["0.bias"][:3]}
    with pytest.raises(UnsupportedGraphError, match=r"^1: 1 channels generated from a stored"):
        build_nir(replace(model, graph=fewer, state=state))


def linear(out: int = 7, width: int = 5) -> Any:
    return nir.Linear(integer_weights(out, width))


def heterogeneous() -> Any:
    node = lif((7,))
    node.v_leak[3] = 0.25
    return node


FOREIGN: dict[str, tuple[Callable[[], tuple[Any, ...]], str]] = {
    "another node": (lambda: (linear(), nir.Threshold(np.ones(7))), "threshold: NIR Threshold is"),
    "per-neuron leak": (
        lambda: (linear(), heterogeneous()),
        "lif: v_leak other than 0 of neurons with a number for each",
    ),
    "a leak of its own": (
        lambda: (linear(), lif((7,), v_leak=0.3)),
        "lif: v_leak 0.3 and v_reset 0 differ",
    ),
    "a reset above the threshold": (
        lambda: (linear(), lif((7,), v_leak=3.0, v_reset=3.0)),
        "lif: v_reset 3.0 must be below v_threshold 1.0",
    ),
    "too short a tau": (
        lambda: (linear(), lif((7,), tau=5e-5)),
        "lif: tau 0.5 must be at least 1 step",
    ),
    "slow synapses": (
        lambda: (linear(), nir.CubaLIF(*(np.full(7, v) for v in (3e-4, 2e-4, 1.0, 0.0, 1.0)))),
        "cubalif: a CubaLIF whose synaptic current outlasts a step of 0.0001 s, with r = 1",
    ),
    "a factor without a place": (
        lambda: (nir.Scale(np.full(7, 2.0)), lif((7,))),
        "lif: what arrives is scaled by 2, and there are no synapses before it",
    ),
    "scaling by several numbers": (
        lambda: (linear(), nir.Scale(np.arange(7.0)), lif((7,))),
        "scale: a scale with 7 values from 0 to 6",
    ),
    "some axes flattened": (
        lambda: (
            nir.Input(input_type={"input": np.array(SHAPE)}),
            nir.Flatten(input_type={"input": np.array(SHAPE)}, start_dim=1, end_dim=-1),
            lif((2, 64)),
        ),
        r"flatten: flattens axes 1 to 2 of \(2, 8, 8\); supported is all",
    ),
    "uneven padding": (
        lambda: (
            nir.Conv2d((8, 8), integer_weights(4, 2, 2, 2), 1, "same", 1, 1, np.zeros(4)),
            lif((4, 8, 8)),
        ),
        "conv2d: padding 'same' with stride",
    ),
    "a map as output": (
        lambda: (
            nir.Conv2d((8, 8), integer_weights(4, 2, 1, 1), 1, 0, 1, 1, np.zeros(4)),
            lif((4, 8, 8)),
        ),
        r"lif: an output of \(4, 8, 8\); class scores need a vector",
    ),
}


@pytest.mark.parametrize(("nodes", "text"), FOREIGN.values(), ids=FOREIGN)
def test_what_our_graph_cannot_hold_is_refused_by_name(
    nodes: Callable[[], tuple[Any, ...]], text: str
) -> None:
    with pytest.raises(UnsupportedGraphError, match=text):
        import_nir(chain_graph(*nodes()), time_steps=3)


def test_recurrence_second_inputs_and_missing_parts_are_refused() -> None:
    graph = chain_graph(linear(5, 5), lif((5,)))
    graph.edges.append(("lif", "linear"))
    with pytest.raises(UnsupportedGraphError, match="recurrent connection through l"):
        import_nir(graph, time_steps=3)
    graph = chain_graph(linear(), lif((7,)))
    graph.nodes["other"] = nir.Input(input_type={"input": np.array((5,))})
    with pytest.raises(UnsupportedGraphError, match="a second input"):
        import_nir(graph, time_steps=3)
    graph = chain_graph(linear(), lif((7,)))
    del graph.nodes["output"]
    graph.edges.pop()
    with pytest.raises(UnsupportedGraphError, match="has no output"):
        import_nir(graph, time_steps=3)
    graph.edges.append(("lif", "nowhere"))
    with pytest.raises(FileFormatError, match="an edge to 'nowhere', which is no node"):
        import_nir(graph, time_steps=3)
    graph = chain_graph(linear(7, 5), linear(4, 6), lif((4,)))
    with pytest.raises(FileFormatError, match="does not fit together: linear_1: input"):
        import_nir(graph, time_steps=3)


def test_what_nobody_says_is_asked_for() -> None:
    graph = chain_graph(linear(), lif((7,)))
    with pytest.raises(UsageError, match="does not say how many steps it runs; give --time_step"):
        import_nir(graph)
    with pytest.raises(UsageError, match="dt -1 must be above 0"):
        import_nir(graph, time_steps=3, dt=-1)
    slower = import_nir(graph, time_steps=3, dt=5e-5, fire="ge")
    (population,) = slower.graph.populations
    assert (population.neuron.tau, population.neuron.fire) == (4.0, "ge")


def test_numbers_that_contradict_their_metadata_are_refused(tmp_path: Path) -> None:
    graph = build_nir(convolutional(NeuronSpec()))
    graph.nodes["2"].tau[...] = 3e-4
    with pytest.raises(FileFormatError, match=r"^2: .* are not the numbers of the neuron in its"):
        import_nir(graph)
    del graph.nodes["2"].metadata["population"]
    (first, *_) = import_nir(graph).graph.populations
    assert first.neuron.tau == 3.0
    graph.metadata["time_steps"] = "many"
    with pytest.raises(FileFormatError, match="metadata cannot be read"):
        import_nir(graph)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError):
        read_nir(tmp_path / "none.nir")
    path = tmp_path / "text.nir"
    path.write_text("not HDF5")
    with pytest.raises(FileFormatError, match=r"text.nir is not an intact NIR file"):
        read_nir(path)
    nir.write(path, lif((3,)))
    with pytest.raises(FileFormatError, match="is not an intact NIR file"):
        read_nir(path)


def test_without_the_package_one_clear_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "nir", None)
    with pytest.raises(UsageError, match=r"need the package nir.*pip install nir"):
        export_nir(convolutional(NeuronSpec()), tmp_path / "x.nir")


def invoke(*words: object) -> Any:
    return CliRunner().invoke(root, [str(word) for word in words])


def test_the_commands_there_and_back(tmp_path: Path) -> None:
    model = tmp_path / "m.safetensors"
    save(residual(time_steps=4), model)
    result = invoke("export", "nir", model, "--input", "random", "--samples", 4)
    assert result.exit_code == 0, result.output
    assert "Verified: yes" in result.stdout
    target = tmp_path / "m.nir"
    result = invoke("verify", model, target, "--input", "random", "--samples", 2)
    assert result.exit_code == 0, result.output
    back = tmp_path / "back.safetensors"
    result = invoke("import", "nir", target, "-o", back)
    assert result.exit_code == 0, result.output
    assert "T = 4" in result.stdout
    x = frames(time_steps=4)
    assert torch.equal(load(back).module()(x), load(model).module()(x))
    result = invoke("import", "nir", target, "-o", target)
    assert result.exit_code == 2
    assert "is the NIR file itself" in result.stderr


def test_verify_sees_a_changed_weight_and_another_source(tmp_path: Path) -> None:
    model = convolutional(NeuronSpec(), 3)
    graph = build_nir(model, source_sha256="a" * 64)
    graph.nodes["7"].weight[2, 3] += 1
    path = tmp_path / "changed.nir"
    nir.write(path, graph)
    report = verify(model, path, frames(time_steps=3), source_sha256="b" * 64)
    assert not report.passed
    assert "7.weight: not the folded numbers of the model" in report.problems
    assert any("made from a file with sha256" in problem for problem in report.problems)
