"""What a NIR graph does not say: said by flags, or assumed aloud, or refused; by the command."""

import importlib
import json
import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

from soul_deploy.base.errors import FileFormatError, UnsupportedGraphError, UsageError
from soul_deploy.cli.main import root
from soul_deploy.export.event.build import build_event_network
from soul_deploy.export.nir.read import import_nir
from soul_deploy.export.nir.write import export_nir
from soul_deploy.export.onnx.model import build_onnx
from soul_deploy.export.verify.onnx import OnnxExecution
from soul_deploy.frontend.from_torch import trace
from soul_deploy.ir import NeuronSpec, Population, node_from_json, node_to_json
from soul_deploy.model.file import load
from soul_deploy.model.model import Model, ModelInfo, from_module
from soul_deploy.nn import layers
from soul_deploy.nn.graph_module import GraphModule
from soul_deploy.nn.neuron import SpikingNeuron
from soul_deploy.runtime.bench.scipy_engine import ScipyEngine
from soul_deploy.runtime.engine.network import Network
from soul_deploy.runtime.engine.network import load as load_network
from soul_deploy.runtime.equations import NeuronEquation
from soul_deploy.runtime.format.layers import PopulationLayer, SpikingLayer

nir = pytest.importorskip("nir", reason="the package nir is the extra `nir`")
T, BATCH = 20, 4


def invoke(*words: object) -> Any:
    return CliRunner().invoke(root, [str(word) for word in words])


def imported(path: Path, *flags: object) -> tuple[Model, list[str]]:
    """The model that the command makes of a file, and its lines on standard error."""
    target = path.with_suffix(".safetensors")
    result = invoke("import", "nir", path, "-o", target, "-T", T, *flags)
    assert result.exit_code == 0, result.output
    return load(target), result.stderr.splitlines()


def refused(path: Path, *flags: object) -> str:
    target = path.with_suffix(".safetensors")
    result = invoke("import", "nir", path, "-o", target, "-T", T, *flags)
    assert result.exit_code == 1, result.output
    assert not target.exists()
    return str(result.stderr)


def from_snntorch(reset: str, folder: Path) -> tuple[Path, Tensor, list[Tensor]]:
    """A file by snnTorch's exporter, an input and snnTorch's own spikes of both populations."""
    snntorch = pytest.importorskip("snntorch", reason="the writer under test")
    writer = pytest.importorskip("snntorch.export_nir", reason="the writer under test")
    utils = importlib.import_module("snntorch.utils")
    torch.manual_seed(1)

    def leaky(count: int, **more: Any) -> Any:
        numbers = {"beta": torch.full((count,), 0.9), "threshold": torch.ones(count)}
        return snntorch.Leaky(**numbers, init_hidden=True, reset_mechanism=reset, **more)

    network = nn.Sequential(nn.Linear(64, 50), leaky(50), nn.Linear(50, 10), leaky(10, output=True))
    with torch.no_grad():
        network.get_parameter("0.weight").mul_(4)
        network.get_parameter("2.weight").mul_(4)
    x = torch.rand(T, BATCH, 64)
    hidden: list[Tensor] = []
    hook = network[1].register_forward_hook(lambda _m, _i, out: hidden.append(out.detach().clone()))
    utils.reset(network)
    with torch.no_grad():
        out = torch.stack([network(frame)[0] for frame in x])
    hook.remove()
    utils.reset(network)
    path = folder / "snntorch.nir"
    nir.write(path, writer.export_to_nir(network, torch.rand(64)))
    return path, x, [torch.stack(hidden), out]


def spikes_of(model: Model, x: Tensor) -> list[Tensor]:
    recorded = model.module().record(x).spikes
    return [recorded[node.name].float() for node in model.graph.populations]


@pytest.mark.parametrize(("reset", "counts"), [("subtract", (1040, 151)), ("zero", (830, 117))])
def test_snntorch_by_both_resets(reset: str, counts: tuple[int, int], tmp_path: Path) -> None:
    path, x, expected = from_snntorch(reset, tmp_path)
    model, _ = imported(path, "--reset", reset)
    for mine, theirs, count in zip(spikes_of(model, x), expected, counts, strict=True):
        assert int(theirs.sum()) == count
        assert torch.equal(mine, theirs)


def test_snntorchs_subtraction_leaves_as_every_format(tmp_path: Path) -> None:
    """Event network and ONNX, three gates each, and the event network's own scores."""
    path, x, expected = from_snntorch("subtract", tmp_path)
    model, _ = imported(path, "--reset", "subtract")
    target = path.with_suffix(".safetensors")
    for kind in ("event", "onnx"):
        result = invoke("export", kind, target, "--input", "random", "--samples", 8)
        assert result.exit_code == 0, result.output
        assert "Verified: yes" in result.output
    event = load_network(tmp_path / "snntorch.event.safetensors")
    np.testing.assert_allclose(event.run(x.numpy()), expected[1].mean(0), atol=1e-6)
    (hidden, _) = model.graph.populations
    assert (hidden.neuron.form, hidden.neuron.v_reset) == ("snntorch", None)
    shown = invoke("inspect", tmp_path / "snntorch.event.safetensors")
    assert "0.9" in shown.output


@pytest.mark.parametrize("beta", [0.95, 0.7, 0.55, 0.3, 0.05])
def test_snntorchs_subtraction_to_the_last_bit(beta: float, tmp_path: Path) -> None:
    """Currents that meet the threshold: threshold / beta that comes off at once fires elsewhere."""
    snntorch = pytest.importorskip("snntorch", reason="the writer under test")
    writer = pytest.importorskip("snntorch.export_nir", reason="the writer under test")
    steps, width = 60, 40
    numbers = {"beta": torch.full((width,), beta), "threshold": torch.ones(width)}
    neuron = snntorch.Leaky(**numbers, init_hidden=True, output=True)
    network = nn.Sequential(nn.Linear(width, width, bias=False), neuron)
    with torch.no_grad():
        network.get_parameter("0.weight").copy_(torch.eye(width))
    x = torch.from_numpy(np.random.default_rng(1).integers(-2, 7, (steps, 3, width)) / 4).float()
    path = tmp_path / "theirs.nir"
    nir.write(path, writer.export_to_nir(network, torch.rand(width)))
    importlib.import_module("snntorch.utils").reset(network)
    with torch.no_grad():
        theirs = torch.stack([network(frame)[0] for frame in x])
    model = import_nir(path, time_steps=steps, reset="subtract")
    (mine,) = spikes_of(model, x)
    assert torch.equal(mine, theirs)
    (population,) = model.graph.populations
    assert np.float32(1 - 1 / population.neuron.tau) == np.float32(beta)


@pytest.mark.parametrize("dt", [1e-4, 1e-3])
def test_spikingjelly_by_its_own_exporter(dt: float, tmp_path: Path) -> None:
    """On a grid of currents that meet the threshold, where it fires and NIR's equation does not."""
    exchange = pytest.importorskip(
        "spikingjelly.activation_based.nir_exchange", reason="the writer under test"
    )
    sj = importlib.import_module("spikingjelly.activation_based")
    torch.manual_seed(2)
    network = nn.Sequential(
        *(nn.Linear(8, 12), sj.neuron.LIFNode(tau=2.0, decay_input=False)),
        *(nn.Linear(12, 6), sj.neuron.IFNode()),
    )
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_((torch.randn_like(parameter) * 4).round() / 4)
    x = (torch.rand(T, BATCH, 8, generator=torch.Generator().manual_seed(9)) * 4).round() / 4
    path = tmp_path / "spikingjelly.nir"
    exchange.export_to_nir(network, x[0], save_path=path, dt=dt)
    sj.functional.reset_net(network)
    heard: list[Tensor] = []
    hook = network[1].register_forward_hook(lambda _m, _i, out: heard.append(out))
    with torch.no_grad():
        out = torch.stack([network(frame) for frame in x])
    hook.remove()
    if dt != 1e-4:
        assert f"--dt {dt:g} fits" in refused(path, "--fire", "ge")
    model, _ = imported(path, "--fire", "ge", "--dt", dt)
    for mine, theirs in zip(spikes_of(model, x), (torch.stack(heard), out), strict=True):
        assert theirs.mean() > 0.1
        assert torch.equal(mine, theirs)
    model, _ = imported(path, "--dt", dt)
    assert not torch.equal(spikes_of(model, x)[0], torch.stack(heard))


def test_what_nobody_says_is_a_line_each_and_in_the_model(tmp_path: Path) -> None:
    path, _, _ = from_snntorch("subtract", tmp_path)
    model, lines = imported(path)
    kept = model.info.provenance["assumptions"]
    assert lines[: len(kept)] == [f"Assumed: {sentence}" for sentence in kept]
    for start, flag in (
        ("a time step is dt = 0.0001 s of forward Euler", "--dt"),
        ("a spike sets the membrane to v_reset", "--reset subtract"),
        ("neurons fire above their threshold", "--fire ge"),
        (
            "the class scores are the mean over T of the output of '3', its spikes; where the",
            "--read membrane, or membrane_no_reset if it never resets; where they are their sum",
        ),
    ):
        (found,) = [sentence for sentence in kept if sentence.startswith(start)]
        assert flag in found
    result = invoke("import", "nir", path, "-T", T, "--format", "json")
    assert json.loads(result.stdout)["assumptions"] == kept


def test_what_is_said_is_not_assumed(tmp_path: Path) -> None:
    path, _, _ = from_snntorch("zero", tmp_path)
    model, _ = imported(path, "--reset", "zero", "--dt", "1e-4", "--fire", "gt")
    (scores,) = model.info.provenance["assumptions"]
    assert scores.startswith("the class scores are")
    assert model.info.provenance["nir"] == {"dt": 1e-4, "fire": "gt", "reset": "zero"}
    model, _ = imported(path, "--reset", "subtract", "--dt", "1e-4", "--fire", "gt")
    timing, once, _ = model.info.provenance["assumptions"]
    assert timing.startswith("a spike takes the threshold off in the next step")
    assert once.startswith("a neuron sends one spike a step at most")


@pytest.mark.parametrize("over_time", ["mean", "sum", "last", "max"])
def test_what_becomes_of_the_steps_is_said(over_time: str, tmp_path: Path) -> None:
    """snnTorch's networks give spikes, which its losses and accuracies count (a sum over time)."""
    path, x, spikes = from_snntorch("zero", tmp_path)
    model, _ = imported(path, "--over_time", over_time, "--dt", "1e-4")
    assert model.graph.readout.over_time == over_time
    (told,) = [s for s in model.info.provenance["assumptions"] if s.startswith("the class scores")]
    assert "--over_time" not in told and "mean" not in told
    theirs = spikes[-1]
    expected = {
        "mean": theirs.mean(0),
        "sum": theirs.sum(0),
        "last": theirs[-1],
        "max": theirs.amax(0),
    }[over_time]
    assert expected.sum() > 0
    assert torch.equal(model.module()(x), expected)


def test_what_our_files_say_of_the_steps_is_not_contradicted(tmp_path: Path) -> None:
    _, path = own_file(tmp_path)
    result = invoke("import", "nir", path, "--over_time", "sum")
    assert result.exit_code == 2
    assert "the graph's metadata say that its scores are the mean over time" in result.stderr


def own_file(folder: Path) -> tuple[Model, Path]:
    torch.manual_seed(0)
    network = nn.Sequential(
        layers.Conv2d(2, 4, 3, padding=1), SpikingNeuron(NeuronSpec(), T), layers.RateReadout(4, 3)
    )
    module = GraphModule(trace(network.eval(), (2, 4, 4), T))
    module.load_state_dict(network.state_dict())
    path = folder / "own.nir"
    model = from_module(module, ModelInfo(provenance={"seed": 3}))
    export_nir(model, path)
    return model, path


def test_our_own_files_say_everything(tmp_path: Path) -> None:
    model, path = own_file(tmp_path)
    result = invoke("import", "nir", path, "-o", tmp_path / "back.safetensors")
    assert result.exit_code == 0, result.output
    assert "Assumed" not in result.stderr
    back = load(tmp_path / "back.safetensors")
    assert back.info == replace(model.info, provenance={"seed": 3, "imported": "nir"})
    assert back.graph.populations == model.graph.populations


@pytest.mark.parametrize(
    ("flag", "value", "says"), [("fire", "ge", "gt"), ("reset", "subtract", "zero")]
)
def test_flags_that_the_metadata_deny_are_refused(
    flag: str, value: str, says: str, tmp_path: Path
) -> None:
    _, path = own_file(tmp_path)
    result = invoke("import", "nir", path, "-o", tmp_path / "x.safetensors", f"--{flag}", value)
    assert result.exit_code == 2, result.output
    assert f"1: --{flag} {value}, but its metadata say {says}" in result.stderr
    assert invoke("import", "nir", path, f"--{flag}", says).exit_code == 0


WEIGHT = np.random.default_rng(3).normal(size=(6, 5)).astype(np.float32) * 4
HEAD = np.random.default_rng(4).normal(size=(3, 6)).astype(np.float32)
X = torch.rand(T, BATCH, 5, generator=torch.Generator().manual_seed(7))


def written(neuron: Any, folder: Path) -> Path:
    """Synapses, the neurons under test and a head, as other tools write them: no metadata."""
    graph = nir.NIRGraph.from_list(nir.Linear(WEIGHT), neuron, nir.Linear(HEAD), type_check=False)
    path = folder / "theirs.nir"
    nir.write(path, graph)
    return path


def full(value: float) -> Any:
    return np.full(6, value)


def lif(tau: float, r: float = 1.0, threshold: float = 1.0) -> Any:
    return nir.LIF(full(tau), full(r), full(0.0), full(threshold), full(0.0))


def integrator(r: float) -> Any:
    """As sinabs writes its IAF."""
    return nir.IF(full(r), full(1.0))


def stepped(step: Callable[[Any, Any], Any], reset: Callable[[Any, Any], Any]) -> Any:
    """Spikes (T, B, 6) of a tool's own step in float64: v after charging, v after its reset."""
    v, spikes = np.zeros((BATCH, 6)), []
    for current in X.double().numpy() @ WEIGHT.astype(np.float64).T:
        v = step(v, current)
        spikes.append(v > 1)
        v = reset(v, spikes[-1])
    assert np.mean(spikes) > 0.02
    return np.array(spikes)


def zeroed(v: Any, spike: Any) -> Any:
    return np.where(spike, 0.0, v)


def lowered(v: Any, spike: Any) -> Any:
    return v - spike


def same_spikes(path: Path, expected: Any, *flags: object) -> None:
    model, _ = imported(path, *flags)
    (found,) = spikes_of(model, X)
    np.testing.assert_array_equal(found.numpy(), expected)


def test_integrators_of_sinabs(tmp_path: Path) -> None:
    path = written(integrator(1.0), tmp_path)
    text = refused(path)
    assert "if: an IF with r = 1, whose input would be multiplied by 0.0001" in text
    assert "give the step that the tool ran with; --dt 1 fits" in text
    same_spikes(path, stepped(lambda v, x: v + x, zeroed), "--dt", 1)
    for reset in ("subtract", "subtract_at_once"):
        same_spikes(path, stepped(lambda v, x: v + x, lowered), "--dt", 1, "--reset", reset)


def test_leaky_neurons_of_sinabs(tmp_path: Path) -> None:
    """Its decay is exp(-1/tau), which one Euler step of tau · (1 - exp(-1/tau)) is exactly."""
    path = written(lif(tau=20.0), tmp_path)
    text = refused(path)
    assert "lif: its input would be divided by 200000 (tau = 20 s, r = 1, dt = 0.0001 s" in text
    assert "--dt 1 fits" in text
    alpha = math.exp(-1 / 20)
    expected = stepped(lambda v, x: alpha * v + (1 - alpha) * 1.0 * x, lowered)
    flags = ("--dt", 20 * (1 - alpha), "--reset", "subtract_at_once")
    same_spikes(path, expected, *flags)


def test_neurons_of_rockpool_are_refused(tmp_path: Path) -> None:
    """r as its exporter writes it; a LIF that is one Euler step of the same numbers comes in."""
    tau, dt = 0.02, 1e-3
    path = written(lif(tau, r=tau * math.exp(-dt / tau) / dt), tmp_path)
    text = refused(path, "--dt", dt)
    assert "lif: r = 19.0246 is tau·exp(-dt/tau)/dt (tau = 0.02 s, dt = 0.001 s)" in text
    same_spikes(
        written(lif(tau, r=tau / dt), tmp_path),
        stepped(lambda v, x: v - v / 20 + x, zeroed),
        *("--dt", dt),
    )


@pytest.mark.parametrize("batch", [(5,), (1,)])
def test_an_input_may_have_the_shape_of_a_batch(batch: tuple[int, ...], tmp_path: Path) -> None:
    nodes = {
        "input": nir.Input(np.array((*batch, 5))),
        "0": nir.Linear(WEIGHT),
        "lif": lif(2e-4),
        "output": nir.Output(np.array((*batch, 6))),
    }
    edges = list(pairwise(nodes))
    path = tmp_path / "batch.nir"
    nir.write(path, nir.NIRGraph(nodes, edges, type_check=False))
    model, _ = imported(path)
    assert model.graph.input.shape == (5,)
    (told,) = [s for s in model.info.provenance["assumptions"] if s.startswith("input: ")]
    assert told.startswith(
        f"input: an input of {(*batch, 5)} is a batch of {batch[0]}, each of (5,)"
    )


@pytest.mark.parametrize("tau", [1e-5, 1e-2])
def test_leaky_neurons_of_norse(tau: float, tmp_path: Path) -> None:
    """tau 1e-2 s by default, and 1e-5 where its exporter scaled time by 1e-3; ten steps in both."""
    path = written(lif(tau), tmp_path)
    dt = tau / 10
    if tau < 1e-4:
        text = refused(path)
        assert "lif: tau 0.1 must be at least 1 step (tau = 1e-05 s, dt = 0.0001 s" in text
        assert "--dt 1e-06 fits" in text
    assert "--dt" in refused(path, "--dt", 2 * tau)
    same_spikes(path, stepped(lambda v, x: v + 0.1 * (x - v), zeroed), "--dt", dt)


def test_a_step_that_fits_all_neurons_is_named(tmp_path: Path) -> None:
    def two(first: Any, second: Any) -> Path:
        nodes = (nir.Linear(WEIGHT), first, nir.Linear(np.ones((6, 6))), second)
        path = tmp_path / "two.nir"
        nir.write(path, nir.NIRGraph.from_list(*nodes, nir.Linear(HEAD), type_check=False))
        return path

    assert "--dt 1e-06 fits" in refused(two(lif(5e-5), lif(1e-5)))
    assert "--dt 0.5 fits" in refused(two(lif(4.0), integrator(2.0)))
    text = refused(two(integrator(2.0), integrator(4.0)))
    assert "give the step that the tool ran with as --dt" in text and "fits" not in text
    assert "at most --dt 1e-05, the smallest tau" in refused(two(lif(1e-5), integrator(4.0)))
    assert "--dt 0.1 fits" in refused(two(lif(20.0, r=20 / 0.1), lif(30.0, r=30 / 0.1)))


def test_fast_synapses_name_the_step(tmp_path: Path) -> None:
    numbers = (full(v) for v in (3e-5, 2e-4, 1.0, 0.0, 1.0))
    text = refused(written(nir.CubaLIF(*numbers), tmp_path))
    assert "tau_syn 3e-05 s is shorter than a step of 0.0001 s" in text
    assert "--dt 3e-05" in text


READOUTS: dict[str, tuple[Callable[[], Any], str]] = {
    "infinite threshold": (
        lambda: lif(2e-4, threshold=np.inf),
        "lif_1: v_threshold is infinite: neurons that never fire",
    ),
    "threshold out of reach": (
        lambda: lif(2e-4, threshold=1e9),
        "its threshold is 1e+09: where its membrane is the output, give --read membrane",
    ),
}


@pytest.mark.parametrize("name", READOUTS)
def test_membrane_readouts_are_refused_by_name(name: str, tmp_path: Path) -> None:
    make, text = READOUTS[name]
    nodes = (nir.Linear(WEIGHT), lif(2e-4), nir.Linear(np.ones((6, 6), np.float32)), make())
    path = tmp_path / "readout.nir"
    nir.write(path, nir.NIRGraph.from_list(*nodes, type_check=False))
    assert text in refused(path)


@pytest.mark.parametrize(("bias", "threshold"), [(0.0, 1.0), (0.5, 1.0), (0.0, 1e9)])
def test_a_readout_of_maps_fires_by_whole_windows(
    bias: float, threshold: float, tmp_path: Path
) -> None:
    """One tap of the last convolution stays below the threshold, the whole window reaches it."""

    def neurons(channels: int, level: float) -> Any:
        numbers = (np.full((channels, 6, 6), v) for v in (2e-4, 1.0, 0.0, level, 0.0))
        return nir.LIF(*numbers)

    def convolution(weight: Any, offset: float) -> Any:
        same = {"stride": (1, 1), "padding": (1, 1), "dilation": (1, 1), "groups": 1}
        biases = np.full(len(weight), offset, np.float32)
        return nir.Conv2d(input_shape=(6, 6), weight=weight, bias=biases, **same)

    side, path = np.array([6, 6]), tmp_path / "maps.nir"
    nodes = (
        *(convolution(np.ones((2, 1, 3, 3), np.float32), 0.0), neurons(2, 1.0)),
        *(convolution(np.full((5, 2, 3, 3), 0.02, np.float32), bias), neurons(5, threshold)),
        nir.AvgPool2d(side, side, np.array([0, 0])),
        nir.Flatten({"input": np.array([5, 1, 1])}, 0, -1),
        nir.Affine(np.ones((3, 5), np.float32), np.zeros(3, np.float32)),
    )
    nir.write(path, nir.NIRGraph.from_list(*nodes, type_check=False))
    if threshold > 7.2:
        assert "its membrane stays below 7.2 in 20 steps" in refused(path)
    else:
        model, _ = imported(path)
        assert [node.op for node in model.graph.nodes][-2:] == ["population", "readout"]


def test_what_subtraction_cannot_be_is_refused(tmp_path: Path) -> None:
    assert "lif: reset by subtraction a step later with tau of one step" in refused(
        written(lif(1e-4), tmp_path), "--reset", "subtract"
    )
    resting = nir.LIF(full(2e-4), full(1.0), full(0.1), full(1.0), full(0.1))
    for reset in ("subtract", "subtract_at_once"):
        text = refused(written(resting, tmp_path), "--reset", reset)
        assert "lif: reset by subtraction with v_leak 0.1 and v_reset 0.1; supported is 0" in text


def test_a_file_of_others_verifies_against_what_was_read_from_it(tmp_path: Path) -> None:
    path = written(integrator(1.0), tmp_path)
    imported(path, "--dt", 1, "--reset", "subtract", "--fire", "ge")
    result = invoke(
        "verify", path.with_suffix(".safetensors"), path, "--input", "random", "--samples", 8
    )
    assert result.exit_code == 0, result.output
    assert "Verified: yes" in result.output


def test_the_function_takes_and_checks_the_same() -> None:
    graph = nir.NIRGraph.from_list(nir.Linear(WEIGHT), lif(2e-4), type_check=False)
    model = import_nir(graph, time_steps=T, reset="subtract_at_once")
    (population,) = model.graph.populations
    assert (population.neuron.v_reset, population.neuron.v_subtract) == (None, None)
    with pytest.raises(UsageError, match="reset 'none'; valid: zero, subtract, subtract_at_once"):
        import_nir(graph, time_steps=T, reset="none")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="dt 0 must be above 0"):
        import_nir(graph, time_steps=T, dt=0)
    with pytest.raises(UnsupportedGraphError, match="--dt"):
        import_nir(graph, time_steps=T, dt=3e-4)


@pytest.mark.parametrize("family", ["if", "lif"])
def test_what_a_spike_takes_off_in_every_engine(family: Any) -> None:
    """Against the equation written out; with gradients too, where another loop runs."""
    spec = NeuronSpec(family, v_reset=None, v_threshold=0.75, v_subtract=1.25, decay_input=False)
    current = torch.randn(T, 2, 7, generator=torch.Generator().manual_seed(5)) * 2
    v, expected = torch.zeros(2, 7), []
    for x in current:
        v = v + x if family == "if" else v + (0.0 - v) / 2.0 + x
        expected.append((v > 0.75).float())
        v = v - expected[-1] * 1.25
    spikes = torch.stack(expected)
    assert 0.1 < spikes.mean() < 0.9
    assert torch.equal(SpikingNeuron(spec, T)(current), spikes)
    assert torch.equal(SpikingNeuron(spec, T)(current.clone().requires_grad_()), spikes)
    eye = nn.Linear(7, 7, bias=False)
    nn.init.eye_(eye.weight)
    head = nn.Linear(7, 7, bias=False)
    nn.init.eye_(head.weight)
    network = nn.Sequential(eye, SpikingNeuron(spec, T), head)
    module = GraphModule(trace(network.eval(), (7,), T))
    module.load_state_dict(network.state_dict())
    model = from_module(module, ModelInfo())
    rates = spikes.mean(0).numpy()
    event = Network(build_event_network(model))
    np.testing.assert_allclose(event.run(current.numpy()), rates, atol=1e-6)
    reference = ScipyEngine(Path("none"), 1)
    reference.prepare(build_event_network(model))
    np.testing.assert_allclose(reference.infer(current.numpy()), rates, atol=1e-6)
    onnx = OnnxExecution(build_onnx(model, input_mode="sequence"), model)
    np.testing.assert_allclose(onnx.run(current).logits, rates, atol=1e-6)


def test_what_a_spike_takes_off_is_checked_and_kept() -> None:
    graph = nir.NIRGraph.from_list(nir.Linear(WEIGHT), lif(2e-4), type_check=False)
    model = import_nir(graph, time_steps=T, reset="subtract", fire="ge")
    (population,) = model.graph.populations
    assert population.neuron.v_subtract == 2
    data = json.loads(json.dumps(node_to_json(population)))
    assert node_from_json(data, Population) == population
    plain = replace(population, neuron=replace(population.neuron, v_subtract=None))
    assert "v_subtract" not in node_to_json(plain)["neuron"]  # as earlier versions wrote it
    with pytest.raises(UsageError, match=r"v_subtract 2 with v_reset 0\.0; it is for soft reset"):
        NeuronSpec(v_subtract=2)
    with pytest.raises(UsageError, match=r"v_subtract -1\.0 must be 0 or more"):
        NeuronSpec(v_reset=None, v_subtract=-1.0)
    (neurons,) = build_event_network(model).layers
    assert isinstance(neurons, SpikingLayer | PopulationLayer)
    assert isinstance(neurons.neuron, NeuronEquation)
    for wrong in (replace(neurons.neuron, v_subtract=-1.0), replace(neurons.neuron, v_reset=0.0)):
        with pytest.raises(FileFormatError, match="it is 0 or more, and for soft reset alone"):
            replace(neurons, neuron=wrong)
