"""Recurrent connections, synaptic currents, numbers of each neuron: snnTorch's files, and ours."""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

from soul_deploy import ir
from soul_deploy.base import Array
from soul_deploy.base.errors import LimitError, UnsupportedGraphError
from soul_deploy.cli.main import root
from soul_deploy.export.nir.read import import_nir
from soul_deploy.export.nir.write import build_nir
from soul_deploy.ir import NeuronSpec, SpikingGraph
from soul_deploy.model.file import save
from soul_deploy.model.model import Model

nir = pytest.importorskip("nir", reason="the package nir is the extra `nir`")
T, BATCH, WIDTH = 30, 8, 20
Build = Callable[[Any, int, bool], Any]


def of_each(n: int, low: float, high: float) -> Tensor:
    return torch.linspace(low, high, n)


def synaptic(snn: Any, n: int, last: bool) -> Any:
    decays = {"alpha": torch.full((n,), 0.8), "beta": torch.full((n,), 0.9)}
    return snn.Synaptic(**decays, threshold=torch.ones(n), init_hidden=True, output=last)


def synaptic_of_each(snn: Any, n: int, last: bool) -> Any:
    decays = {"alpha": of_each(n, 0.5, 0.9), "beta": of_each(n, 0.95, 0.3)}
    threshold = of_each(n, 0.8, 1.4)
    return snn.Synaptic(**decays, threshold=threshold, init_hidden=True, output=last)


def synaptic_at_once(snn: Any, n: int, last: bool) -> Any:
    decays = {"alpha": torch.full((n,), 0.8), "beta": torch.full((n,), 0.9)}
    reset: dict[str, Any] = {"reset_mechanism": "zero", "reset_delay": False}
    return snn.Synaptic(**decays, threshold=torch.ones(n), init_hidden=True, output=last, **reset)


def leaky_of_each(snn: Any, n: int, last: bool) -> Any:
    numbers = {"beta": of_each(n, 0.5, 0.95), "threshold": of_each(n, 0.8, 1.3)}
    return snn.Leaky(**numbers, init_hidden=True, output=last)


def recurrent(kind: str, *, own: bool) -> Build:
    """own: each neuron sees its own last spike, else those of all."""

    def build(snn: Any, n: int, last: bool) -> Any:
        weights: dict[str, Any] = {"linear_features": n}
        if own:
            weights = {"all_to_all": False, "V": of_each(n, -0.5, 0.8)}
        decays = {"alpha": torch.full((n,), 0.7)} if kind == "RSynaptic" else {}
        return getattr(snn, kind)(
            **decays,
            beta=torch.full((n,), 0.9),
            threshold=torch.ones(n),
            init_hidden=True,
            output=last,
            **weights,
        )

    return build


THEIRS: dict[str, tuple[Build, str]] = {
    "Synaptic": (synaptic, "subtract"),
    "Synaptic, numbers of each neuron": (synaptic_of_each, "subtract"),
    "Synaptic, reset to zero at once": (synaptic_at_once, "zero"),
    "Leaky, numbers of each neuron": (leaky_of_each, "subtract"),
    "RLeaky": (recurrent("RLeaky", own=False), "subtract"),
    "RLeaky, a weight for each neuron": (recurrent("RLeaky", own=True), "subtract"),
    "RSynaptic": (recurrent("RSynaptic", own=False), "subtract"),
    "RSynaptic, a weight for each neuron": (recurrent("RSynaptic", own=True), "subtract"),
}


def written(build: Build) -> tuple[Any, Tensor, list[Tensor]]:
    """snnTorch's graph of a network of two layers, an input, and its own spikes of both."""
    snn = pytest.importorskip("snntorch", reason="the writer under test")
    writer = pytest.importorskip("snntorch.export_nir", reason="the writer under test")
    torch.manual_seed(1)
    first, second = nn.Linear(WIDTH, 30), nn.Linear(30, 10)
    network = nn.Sequential(first, build(snn, 30, False), second, build(snn, 10, True))
    x, sent = torch.rand(T, BATCH, WIDTH), list[list[Tensor]]()
    hooks = []
    for place in (1, 3):
        own: list[Tensor] = []
        sent.append(own)
        hooks.append(
            network[place].register_forward_hook(
                lambda _m, _i, out, own=own: own.append(out[0] if type(out) is tuple else out)
            )
        )
    importlib.import_module("snntorch.utils").reset(network)
    with torch.no_grad():
        first.weight.mul_(4)
        second.weight.mul_(4)
        for frame in x:
            network(frame)
    for hook in hooks:
        hook.remove()
    graph = writer.export_to_nir(network, x[0, :1], ignore_dims=[0])
    return graph, x, [torch.stack(own).detach() for own in sent]


@pytest.mark.parametrize(("build", "reset"), THEIRS.values(), ids=THEIRS)
def test_snntorchs_neurons_come_in_with_their_spikes(
    build: Build, reset: str, tmp_path: Path
) -> None:
    graph, x, theirs = written(build)
    nir.write(tmp_path / "theirs.nir", graph)
    target = tmp_path / "mine.safetensors"
    words = ["import", "nir", tmp_path / "theirs.nir", "-o", target, "-T", T, "--reset", reset]
    result = CliRunner().invoke(root, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    model = import_nir(tmp_path / "theirs.nir", time_steps=T, reset=reset)  # type: ignore[arg-type]
    mine = model.module().record(x).spikes
    for node, spikes in zip(model.graph.populations, theirs, strict=True):
        assert T * BATCH < spikes.sum() < spikes.numel() / 1.2, node.name
        assert torch.equal(mine[node.name].float(), spikes), node.name


def test_a_graph_inside_the_graph_is_the_same() -> None:
    """As the NIR paper and snnTorch's own reader have it: input, neurons, synapses, output."""
    graph, x, theirs = written(recurrent("RSynaptic", own=False))
    nodes, edges = dict(graph.nodes), list(graph.edges)
    for layer in ("1", "3"):
        inner = {key: nodes.pop(f"{layer}.{key}") for key in ("lif", "w_rec")}
        sides = np.array(inner["lif"].v_threshold.shape)
        inner["input"] = nir.Input(input_type={"input": sides})
        inner["output"] = nir.Output(output_type={"output": sides})
        circle = [("input", "lif"), ("lif", "w_rec"), ("w_rec", "lif"), ("lif", "output")]
        nodes[layer] = nir.NIRGraph(inner, circle, type_check=False)
        names = {f"{layer}.lif": layer, f"{layer}.w_rec": layer}
        edges = [(names.get(a, a), names.get(b, b)) for a, b in edges]
    edges = [(a, b) for a, b in edges if a != b]
    nested = nir.NIRGraph(nodes, edges, type_check=False)
    model = import_nir(nested, time_steps=T, reset="subtract")
    mine = model.module().record(x).spikes
    for node, spikes in zip(model.graph.populations, theirs, strict=True):
        assert torch.equal(mine[node.name].float(), spikes), node.name


def ours(feedback: ir.Node, *, bias: bool = False) -> Model:
    drawn = np.random.default_rng(3)
    spec = NeuronSpec("lif", tau=4.0, decay_input=False)
    nodes = (
        ir.Input("input", (), (WIDTH,)),
        ir.Linear("fc1", ("input",), True, None, WIDTH, 30),
        ir.Population("lif1", ("fc1",), spec, feedback=feedback),
        ir.Linear("fc2", ("lif1",), False, None, 30, 10),
        ir.Population("lif2", ("fc2",), spec),
        ir.Readout("readout", ("lif2",), 10, linear=False, bias=False),
    )
    state: dict[str, Array] = {
        "fc1.weight": drawn.normal(0, 1, (30, WIDTH)),
        "fc1.bias": drawn.normal(0, 1, 30),
        "fc2.weight": drawn.normal(0, 1, (10, 30)),
    }
    if isinstance(feedback, ir.Linear):
        state["back.weight"] = drawn.normal(0, 0.4, (30, 30))
    if bias:
        state["back.bias"] = drawn.normal(0, 0.4, 30)
    return Model(SpikingGraph(nodes, T), {k: a.astype(np.float32) for k, a in state.items()})


@pytest.mark.parametrize("bias", [False, True])
def test_a_feedback_goes_out_and_comes_back_verified(bias: bool, tmp_path: Path) -> None:
    model = ours(ir.Linear("back", ("lif1",), bias, None, 30, 30), bias=bias)
    graph = build_nir(model)
    assert {("lif1", "back"), ("back", "lif1")} < set(graph.edges)
    save(model, tmp_path / "net.safetensors")
    words = ["export", "nir", str(tmp_path / "net.safetensors"), "--input", "random"]
    result = CliRunner().invoke(root, words)
    assert result.exit_code == 0, result.output
    assert "Verified: yes" in result.output


def test_each_neurons_own_spike_is_a_scale() -> None:
    model = ours(ir.OneToOne("back", ("lif1",), -0.7))
    again = import_nir(build_nir(model))
    assert again.graph.feedbacks == model.graph.feedbacks
    assert again.info.provenance.get("assumptions") is None


def refusal(graph: Any, **said: Any) -> str:
    with pytest.raises(UnsupportedGraphError) as found:
        import_nir(graph, time_steps=T, **{"reset": "subtract", **said})
    return str(found.value)


def test_what_a_file_does_not_say_is_refused_by_name() -> None:
    graph, _, _ = written(synaptic)
    for key in ("1", "3"):  # norse's numbers: membranes see the current of the step before
        graph.nodes[key].r = np.ones_like(graph.nodes[key].r)
    text = refusal(graph)
    assert "1: a CubaLIF whose synaptic current outlasts a step" in text
    assert "whether the membrane sees a step's own current" in text


def test_resets_that_snntorch_does_not_have_are_refused() -> None:
    graph, _, _ = written(synaptic)
    assert "1: --reset subtract_at_once" in refusal(graph, reset="subtract_at_once")
    assert "1: --fire ge with --reset subtract" in refusal(graph, fire="ge")


def test_two_recurrent_connections_are_refused() -> None:
    graph, _, _ = written(recurrent("RLeaky", own=False))
    graph.nodes["more"] = nir.Linear(np.eye(30, dtype=np.float32))
    graph.edges += [("1.lif", "more"), ("more", "1.lif")]
    assert "1.lif: two recurrent connections" in refusal(graph)


def test_a_circle_through_two_populations_is_refused() -> None:
    graph, _, _ = written(synaptic)
    graph.nodes["back"] = nir.Linear(np.ones((30, 10), np.float32))
    graph.edges += [("3", "back"), ("back", "1")]
    assert "a recurrent connection through" in refusal(graph)


def test_graphs_without_end_are_refused() -> None:
    graph, _, _ = written(synaptic)
    for _ in range(12):
        sides = {"input": np.array([WIDTH])}
        nodes = {"input": nir.Input(input_type=sides), "in": graph}
        nodes["output"] = nir.Output(output_type={"output": np.array([10])})
        graph = nir.NIRGraph(nodes, [("input", "in"), ("in", "output")], type_check=False)
    with pytest.raises(LimitError, match="at most 8"):
        import_nir(graph, time_steps=T)
