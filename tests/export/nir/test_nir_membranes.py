"""LI, I and CubaLI as last nodes, and last spiking neurons whose membrane is read."""

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from leaky_nets import settled, snn
from torch import Tensor, nn

from soul_deploy import ir
from soul_deploy.base import Array
from soul_deploy.base.errors import FileFormatError, UnsupportedGraphError, UsageError
from soul_deploy.cli.main import root
from soul_deploy.equivalence.verdict import Verdict
from soul_deploy.export.nir.read import import_nir, read_nir
from soul_deploy.export.nir.write import build_nir, export_nir
from soul_deploy.export.verify.verify import verify
from soul_deploy.ir import NeuronSpec
from soul_deploy.model.file import load
from soul_deploy.model.model import Model, ModelInfo

nir: Any = pytest.importorskip("nir", reason="the extra nir")
T, DT = 6, 1e-4
RNG = np.random.default_rng(3)
HIDDEN = RNG.normal(0, 2, (6, 5)).astype(np.float32)
HEAD, BIAS = RNG.normal(0, 1, (4, 6)).astype(np.float32), RNG.normal(0, 1, 4).astype(np.float32)
NO_RESET: Any = {"v_reset": None, "v_subtract": 0.0}
OF_EACH: Any = tuple((name, "channel") for name in ("alpha", "beta"))


def full(value: float, size: int = 4) -> Array:
    return np.full(size, value)


def frames() -> Tensor:
    return 3 * torch.randn(T, 3, 5, generator=torch.Generator().manual_seed(4))


def graph_of(*last: Any, bias: bool = True) -> Any:
    """Spikes of six neurons, weighed, into the last nodes."""
    hidden = nir.LIF(full(2e-4, 6), full(1.0, 6), full(0.0, 6), full(1.0, 6), full(0.0, 6))
    head = nir.Affine(HEAD, BIAS) if bias else nir.Linear(HEAD)
    nodes = (nir.Linear(HIDDEN), hidden, head, *last)
    return nir.NIRGraph.from_list(*nodes, type_check=False)


def by_euler(node: Any, current: Array) -> Array:
    """Membranes (T, B, 4) of currents, as NIR's equations say, a step of DT at a time."""
    v = i = np.zeros(current.shape[1:])
    found = []
    for x in current:
        kind = type(node).__name__
        if kind == "I":
            v = v + DT * node.r * x
        elif kind == "LI":
            v = v + DT / node.tau * (node.v_leak - v + node.r * x)
        else:
            i = i + DT / node.tau_syn * (node.w_in * x - i)
            v = v + DT / node.tau_mem * (node.v_leak - v + node.r * i)
        found.append(v)
    return np.stack(found)


TAUS = np.array([2e-4, 3e-4, 1e-4, 5e-4])
NODES: dict[str, tuple[Any, str]] = {
    "LI": (nir.LI(full(2e-4), full(1.0), full(0.0)), "lif"),
    "LI that leaks elsewhere": (nir.LI(full(3e-4), full(3.0), full(0.5)), "lif"),
    "LI, r 2": (nir.LI(full(3e-4), full(2.0), np.array([0.1, 0.0, -0.2, 0.3])), "lif"),
    "LI, each its own": (nir.LI(TAUS, np.array([1.0, 2.0, 3.0, 0.5]), full(0.1)), "snn_leaky"),
    "I": (nir.I(full(1 / DT)), "if"),
    "I, each its own": (nir.I(np.array([1e4, 2e4, 5e3, 1e4])), "if"),
    "CubaLI": (nir.CubaLI(full(3e-4), full(2e-4), full(2.0), full(0.0), full(1.5)), "snn_synaptic"),
    "CubaLI, each": (nir.CubaLI(full(3e-4), TAUS, full(2.0), full(0.0), full(1.5)), "snn_synaptic"),
    "CubaLI of one step": (
        nir.CubaLI(full(DT), TAUS, full(2.0), full(0.3), full(1.5)),
        "snn_leaky",
    ),
}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", NODES)
def test_integrators_are_eulers_steps(name: str, bias: bool, tmp_path: Path) -> None:
    node, family = NODES[name]
    path = tmp_path / "theirs.nir"
    nir.write(path, graph_of(node, bias=bias))
    model = import_nir(path, time_steps=T, over_time="sum")
    record = model.module().record(frames())
    (spikes,) = record.spikes.values()
    assert 0.1 < spikes.double().mean() < 0.9
    expected = by_euler(node, spikes.double().numpy() @ HEAD.T + (BIAS if bias else 0))
    np.testing.assert_allclose(record.logits, expected.sum(0), rtol=1e-5, atol=1e-5)
    assert model.graph.readout.neuron is not None
    assert model.graph.readout.neuron.family == family
    assert verify(model, path, frames()).verdict is Verdict.PASSED


def test_what_was_assumed_is_said() -> None:
    model = import_nir(graph_of(NODES["LI"][0]), time_steps=T)
    said = model.info.provenance["assumptions"]
    assert any("dt = 0.0001 s" in text for text in said)
    assert any("the class scores are the mean over T of the output of" in text for text in said)


OURS: dict[str, NeuronSpec] = {
    "I": NeuronSpec("if", **NO_RESET),
    "LI, r 1": NeuronSpec("lif", tau=3.0, form="spikingjelly", **NO_RESET),
    "LI, r tau": NeuronSpec("lif", tau=3.0, decay_input=False, form="snntorch", **NO_RESET),
    "LI, PLIF": NeuronSpec("plif", form="spikingjelly", **NO_RESET),
    "LI, snnTorch": NeuronSpec("snn_leaky", settings=(("reset", 2.0),)),
    "LI, each its own": NeuronSpec("snn_leaky", settings=(("reset", 2.0),), tensors=OF_EACH[1:]),
    "CubaLI": NeuronSpec("snn_synaptic", settings=(("reset", 2.0),)),
    "CubaLI, each": NeuronSpec("snn_synaptic", settings=(("reset", 2.0),), tensors=OF_EACH),
}


def ours(spec: NeuronSpec) -> Model:
    nodes = (
        ir.Input("input", (), (5,)),
        ir.Linear("fc1", ("input",), False, None, 5, 6),
        ir.Population("lif1", ("fc1",), NeuronSpec("lif")),
        ir.Readout("fc2", ("lif1",), 4, over_time="max", neuron=spec),
    )
    state = {"fc1.weight": HIDDEN, "fc2.weight": HEAD, "fc2.bias": BIAS}
    shapes = spec.tensor_shapes("fc2.neuron", (4,), T)
    state |= {n: RNG.uniform(0.1, 0.9, s).astype(np.float32) for n, s in shapes.items()}
    return Model(ir.SpikingGraph(nodes, T), state, info=ModelInfo(input_kind="values"))


@pytest.mark.parametrize("name", OURS)
def test_ours_come_back_to_the_bit(name: str, tmp_path: Path) -> None:
    model, path, x = ours(OURS[name]), tmp_path / "net.nir", frames()
    export_nir(model, path)
    back = import_nir(path)
    assert back.graph.readout == model.graph.readout
    assert torch.equal(back.module()(x), model.module()(x))
    assert verify(model, path, x).verdict is Verdict.PASSED
    graph = read_nir(path)  # as another tool reads it
    last = graph.nodes["fc2_neuron"]
    assert type(last).__name__ == name.split(",")[0]
    (spikes,) = model.module().record(x).spikes.values()
    expected = by_euler(last, spikes.double().numpy() @ HEAD.T + BIAS)
    np.testing.assert_allclose(model.module().per_step(x).detach(), expected, rtol=1e-5, atol=1e-5)


def test_numbers_that_are_not_those_of_the_metadata_are_refused() -> None:
    graph = build_nir(ours(OURS["LI, r 1"]))
    graph.nodes["fc2_neuron"].tau = graph.nodes["fc2_neuron"].tau * 2
    with pytest.raises(FileFormatError, match="its numbers are not those of the neurons in its m"):
        import_nir(graph)
    graph = build_nir(ours(OURS["LI, each its own"]))
    graph.nodes["fc2_neuron"].metadata["numbers"] = "{}"
    with pytest.raises(FileFormatError, match="its metadata describe no neurons of a readout"):
        import_nir(graph)
    graph = build_nir(ours(OURS["LI, r 1"]))
    graph.nodes["fc2_neuron"].metadata.clear()
    graph.nodes["fc2_neuron"].tau = graph.nodes["fc2_neuron"].tau * 2
    with pytest.raises(FileFormatError, match="is not the readout that the metadata describes"):
        import_nir(graph)


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        (NeuronSpec("lif"), "fc2.neuron: the membrane of neurons that fire and reset"),
        (NeuronSpec("snn_leaky"), "fc2.neuron: the membrane of neurons that fire and reset"),
        (NeuronSpec("cubalif", fire="ge"), "fc2.neuron: the membrane of cubalif; NIR has LI"),
    ],
)
def test_what_nir_cannot_put_out_is_refused(spec: NeuronSpec, text: str) -> None:
    with pytest.raises(UnsupportedGraphError, match=text):
        build_nir(ours(spec))


@pytest.mark.parametrize(
    ("graph", "text"),
    [
        (
            graph_of(nir.LI(full(2e-4), full(1.0), full(0.0)), nir.Linear(np.eye(4))),
            "a NIR LI inside the network, whose membrane is no spikes",
        ),
        (graph_of(nir.LI(full(0.5e-4), full(1.0), full(0.0))), "tau 5e-05 s must be at least one"),
        (graph_of(nir.I(full(np.inf))), "a NIR I with numbers that are not finite"),
        (
            graph_of(nir.CubaLI(full(3e-4), full(2e-4), full(1.0), full(0.1), full(1.0))),
            "a CubaLI with v_leak other than 0",
        ),
        (
            graph_of(nir.Scale(np.array([1.0, 2.0, 3.0, 4.0])), nir.I(full(1e4))),
            "a NIR I behind .*supported is one that a linear or affine node alone feeds",
        ),
    ],
)
def test_integrators_that_are_no_readout_are_refused(graph: Any, text: str) -> None:
    with pytest.raises(UnsupportedGraphError, match=text):
        import_nir(graph, time_steps=T)


def tutorial(**kind: Any) -> Any:
    """Fully connected, by snnTorch's public API; the last layer gives (spikes, membrane)."""

    def leaky(count: int, beta: float, **more: Any) -> Any:
        numbers = {"beta": torch.full((count,), beta), "threshold": torch.ones(count)}
        return snn.Leaky(**numbers, init_hidden=True, **more)

    layers = nn.Linear(5, 20), leaky(20, 0.9), nn.Linear(20, 4), leaky(4, 0.5, output=True, **kind)
    return settled(nn.Sequential(*layers), 4.0)


@pytest.mark.parametrize(
    ("kind", "read"),
    [({}, "membrane"), ({"reset_mechanism": "none"}, "membrane_no_reset")],
    ids=["subtract", "none"],
)
def test_snntorchs_membranes_through_nir(kind: Any, read: str, tmp_path: Path) -> None:
    """As snnTorch writes a Leaky: r = tau/dt, whatever its reset is."""
    network, path = tutorial(**kind), tmp_path / "theirs.nir"
    writer, utils = map(importlib.import_module, ("snntorch.export_nir", "snntorch.utils"))
    nir.write(path, writer.export_to_nir(network, torch.rand(5)))
    target = tmp_path / "ours.safetensors"
    words = ["import", "nir", str(path), "-o", str(target), "-T", str(T), "--reset", "subtract"]
    words += ["--read", read, "--over_time", "max", "--input_kind", "values"]
    result = CliRunner().invoke(root, words)
    assert result.exit_code == 0, result.output
    model, fired = load(target), []
    utils.reset(network)
    network[1].register_forward_hook(lambda module, inputs, output: fired.append(output.detach()))
    with torch.no_grad():
        membranes = torch.stack([network(frame)[1] for frame in frames()])
    record = model.module().record(frames())
    (spikes,) = record.spikes.values()
    assert torch.equal(spikes.float(), torch.stack(fired))
    torch.testing.assert_close(record.logits, membranes.amax(0), rtol=1e-5, atol=1e-5)
    assert membranes.amax() > 1, "some would fire"
    assert verify(model, path, frames()).verdict is Verdict.PASSED


def test_what_read_cannot_be_is_refused() -> None:
    lif = nir.LIF(full(2e-4), full(1.0), full(0.0), full(np.inf), full(0.0))
    with pytest.raises(UnsupportedGraphError, match=r"v_threshold is infinite: .* give --read m"):
        import_nir(graph_of(lif), time_steps=T)
    model = import_nir(graph_of(lif), time_steps=T, read="membrane_no_reset")
    assert model.graph.readout.neuron == NeuronSpec("lif", form="spikingjelly", **NO_RESET)
    with pytest.raises(UnsupportedGraphError, match="--read membrane given, but the output is 'l"):
        import_nir(graph_of(), time_steps=T, read="membrane")
    with pytest.raises(UsageError, match="read 'spike'; valid: spikes, membrane, membrane_no_re"):
        import_nir(graph_of(lif), time_steps=T, read="spike")  # type: ignore[arg-type]
    resting = nir.LIF(full(2e-4), full(1.0), full(0.1), full(1.0), full(0.1))
    with pytest.raises(UnsupportedGraphError, match=r"v_reset 0\.1 of neurons that never reset"):
        import_nir(graph_of(resting), time_steps=T, read="membrane_no_reset")
