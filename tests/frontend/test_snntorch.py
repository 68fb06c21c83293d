"""Networks written for snnTorch, untouched: same spikes as snnTorch's own."""

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from leaky_nets import Net, T, loop, plain, settled, snn
from torch import Tensor, nn

from soul_deploy import from_torch
from soul_deploy.base.errors import NetworkWarning, UnsupportedGraphError
from soul_deploy.cli.main import root
from soul_deploy.export.event.build import export_event
from soul_deploy.export.onnx.model import export_onnx
from soul_deploy.export.verify.verify import verify
from soul_deploy.frontend.stepped_specs import spec_of
from soul_deploy.model.file import load, save
from soul_deploy.model.model import Model
from soul_deploy.nn.neuron import SpikingNeuron
from soul_deploy.runtime.equations import NeuronEquation

surrogate: Any = importlib.import_module("snntorch.surrogate")
utils: Any = importlib.import_module("snntorch.utils")

LEFT_OUT = (
    "class scores are the spikes that forward returns; its membranes are left out "
    r"\(output= takes another of its values\)"
)
KINDS: dict[str, dict[str, Any]] = {
    "default": {"beta": 0.9},
    "subtract": {"beta": 0.5, "threshold": 0.7},
    "kept-whole": {"beta": 1.0, "threshold": 0.5},
    "zero": {"beta": 0.9, "reset_mechanism": "zero"},
    "zero-at-once": {"beta": 0.8, "reset_mechanism": "zero", "reset_delay": False},
    "none": {"beta": 0.8, "reset_mechanism": "none", "threshold": 1.5},
    "learned": {"beta": 0.95, "learn_beta": True, "threshold": 1.25, "learn_threshold": True},
}


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=15)
@given(steps=st.integers(1, 9), grid=st.sampled_from([None, 8, 4]), seed=st.integers(0, 2**16))
def test_a_neuron_has_the_bits_of_snntorchs(
    kind: str, steps: int, grid: int | None, seed: int
) -> None:
    """Random currents, and currents on a grid, which meet the threshold exactly."""
    theirs = snn.Leaky(**KINDS[kind])
    current = torch.randn(steps, 60, generator=torch.Generator().manual_seed(seed)) * 2
    if grid:
        current = (current * grid).round() / grid
    expected, mem = [], theirs.init_leaky()
    with torch.no_grad():
        for x in current:
            spikes, mem = theirs(x, mem)
            fired = KINDS[kind].get("reset_mechanism") == "zero"
            kept = torch.where(mem > theirs.threshold, 0.0, mem) if fired else mem
            expected.append((spikes, kept))
    ours, seen = SpikingNeuron(spec_of("n", theirs), steps), []
    found = ours.simulate(current, static=False, observe=lambda t, s, v: seen.append(v))
    equation, v = ours.equation(), np.zeros(60, np.float32)
    assert isinstance(equation, NeuronEquation)
    assert np.float32(equation.constant) == theirs.beta.item() or kind == "kept-whole"
    for t, (spikes, kept) in enumerate(expected):
        assert torch.equal(found[t], spikes) and torch.equal(seen[t], kept)
        fired_here, v = equation.step(v, current[t].numpy())
        assert v.dtype == np.float32
        assert (fired_here == spikes.bool().numpy()).all() and (v == kept.numpy()).all()


def test_ties_and_a_membrane_that_stays_above_its_threshold() -> None:
    """By hand, beta 0.5: 2.5 fires; 1.25 - 1 + 1 = 1.25 fires; 0.625 - 1 + 1.375 = 1 does not."""
    spec = spec_of("n", snn.Leaky(beta=0.5))
    current = torch.tensor([2.5, 1.0, 1.375, 0.0]).reshape(4, 1)
    seen: list[float] = []
    spikes = SpikingNeuron(spec, 4).simulate(
        current, static=False, observe=lambda t, s, v: seen.append(v.item())
    )
    assert spikes.flatten().tolist() == [1, 1, 0, 0]
    assert seen == [2.5, 1.25, 1.0, 0.5]


class Tutorial5(nn.Module):
    """Tutorial 5: a fully connected network, whose forward loops over the steps."""

    def __init__(self, **kind: Any) -> None:
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(40, 50), snn.Leaky(**kind)
        self.fc2, self.lif2 = nn.Linear(50, 10), snn.Leaky(**kind)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mem1 = self.lif1.init_leaky()
        mem2 = self.lif2.init_leaky()
        spk2_rec = []
        mem2_rec = []
        for _ in range(T):
            cur1 = self.fc1(x)
            spk1, mem1 = self.lif1(cur1, mem1)
            cur2 = self.fc2(spk1)
            spk2, mem2 = self.lif2(cur2, mem2)
            spk2_rec.append(spk2)
            mem2_rec.append(mem2)
        return torch.stack(spk2_rec, dim=0), torch.stack(mem2_rec, dim=0)


class Tutorial6(nn.Module):
    """Tutorial 6: a convolutional network with max pooling in front of its neurons."""

    def __init__(self) -> None:
        super().__init__()
        grad = surrogate.fast_sigmoid(slope=25)
        self.conv1, self.lif1 = nn.Conv2d(1, 6, 5), snn.Leaky(beta=0.5, spike_grad=grad)
        self.conv2, self.lif2 = nn.Conv2d(6, 8, 5), snn.Leaky(beta=0.5, spike_grad=grad)
        self.fc1, self.lif3 = nn.Linear(8 * 4 * 4, 10), snn.Leaky(beta=0.5, spike_grad=grad)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mem1, mem2, mem3 = (lif.reset_mem() for lif in (self.lif1, self.lif2, self.lif3))
        spk_rec, mem_rec = [], []
        for _ in range(T):
            spk1, mem1 = self.lif1(F.max_pool2d(self.conv1(x), 2), mem1)
            spk2, mem2 = self.lif2(F.max_pool2d(self.conv2(spk1), 2), mem2)
            spk3, mem3 = self.lif3(self.fc1(spk2.view(x.size(0), -1)), mem3)
            spk_rec.append(spk3)
            mem_rec.append(mem3)
        return torch.stack(spk_rec), torch.stack(mem_rec)


def sequential() -> nn.Sequential:
    """Tutorial 6 again, with the membranes in the neurons."""

    def lif(**more: Any) -> Any:
        return snn.Leaky(beta=0.5, spike_grad=surrogate.atan(), init_hidden=True, **more)

    return nn.Sequential(
        *(nn.Conv2d(1, 6, 5), nn.MaxPool2d(2), lif()),
        *(nn.Conv2d(6, 8, 5), nn.MaxPool2d(2), lif()),
        *(nn.Flatten(), nn.Linear(8 * 4 * 4, 10), lif(output=True)),
    )


@contextmanager
def heard(network: nn.Module) -> Iterator[dict[str, list[Tensor]]]:
    """What the network's neurons return, call by call, by snnTorch alone."""
    spikes: dict[str, list[Tensor]] = {}

    def listen(name: str) -> Callable[..., None]:
        def hear(module: nn.Module, inputs: Any, output: Any) -> None:
            fired = output[0] if isinstance(output, tuple) else output
            spikes.setdefault(name, []).append(fired.bool())

        return hear

    named = [(name, m) for name, m in network.named_modules() if isinstance(m, snn.Leaky)]
    hooks = [module.register_forward_hook(listen(name)) for name, module in named]
    with torch.no_grad():
        yield spikes
    for hook in hooks:
        hook.remove()


def assert_same_spikes(model: Model, spikes: dict[str, list[Tensor]], x: Tensor) -> None:
    """Every population's, and each of them fires, but not always."""
    found = model.module().record(x)
    assert list(found.spikes) == list(spikes)
    for name, mine in found.spikes.items():
        assert torch.equal(mine, torch.stack(spikes[name])), name
        assert 0.005 < mine.float().mean() < 0.995, name
    (*_, last) = spikes.values()
    torch.testing.assert_close(found.logits, torch.stack(last).float().mean(0))


def passes_the_gates(model: Model, x: Tensor, folder: Path) -> None:
    mode: Any = "sequence" if x.dim() > len(model.graph.input.shape) + 1 else "static"
    export_onnx(model, folder / "net.onnx", input_mode=mode)
    export_event(model, folder / "net.event.safetensors")
    for name in ("net.onnx", "net.event.safetensors"):
        report = verify(model, folder / name, x)
        assert report.passed, report.text()
        (folder / name).unlink()


@pytest.mark.parametrize("kind", KINDS)
def test_tutorial_5_fires_as_in_snntorch(kind: str, tmp_path: Path) -> None:
    network, x = settled(Tutorial5(**KINDS[kind])), torch.randn(8, 40)
    with pytest.warns(NetworkWarning, match=LEFT_OUT):
        model = from_torch(network, (40,), T, example=x)
    with heard(network) as spikes:
        network(x)
    assert_same_spikes(model, spikes, x)
    passes_the_gates(model, x, tmp_path)
    assert set(model.state) == {f"fc{i}.{kind}" for i in (1, 2) for kind in ("weight", "bias")}


@pytest.mark.filterwarnings("ignore::soul_deploy.base.errors.NetworkWarning")
def test_tutorial_6_fires_as_in_snntorch(tmp_path: Path) -> None:
    network, x = settled(Tutorial6()), torch.randn(6, 1, 28, 28)
    model = from_torch(network, (1, 28, 28), T, example=x)
    with heard(network) as spikes:
        network(x)
    assert_same_spikes(model, spikes, x)
    passes_the_gates(model, x, tmp_path)
    assert [node.op for node in model.graph.nodes if node.op == "max_pool"] == ["max_pool"] * 2


@pytest.mark.parametrize("sequence", [False, True], ids=["image", "sequence"])
def test_hidden_membranes_fire_as_in_snntorch(sequence: bool, tmp_path: Path) -> None:
    network = settled(sequential())
    x = torch.randn(*((T,) if sequence else ()), 6, 1, 28, 28)
    with pytest.warns(NetworkWarning, match=LEFT_OUT):
        model = from_torch(network, (1, 28, 28), T, example=x)
    utils.reset(network)
    with heard(network) as spikes:
        for t in range(T):
            network(x[t] if sequence else x)
    assert_same_spikes(model, spikes, x)
    passes_the_gates(model, x, tmp_path)


def by_steps(net: Any, x: Tensor) -> Tensor:
    (mem1, mem2), out = net.rest(), []
    for step in range(x.size(0)):
        spk1, mem1 = net.lif1(net.fc1(x[step].flatten(1)), mem1)
        spk2, mem2 = net.lif2(net.fc2(spk1), mem=mem2)
        out.append(spk2)
    return torch.stack(out, dim=0)


def over_steps(net: Any, x: Tensor) -> list[Tensor]:
    (mem1, mem2), out = net.rest(), []
    for frame in x:
        spk1, mem1 = net.lif1(net.fc1(frame.flatten(1)), mem1)
        spk2, mem2 = net.lif2(net.fc2(spk1), mem2)
        out.append(spk2)
    return out


def own_membranes(net: Any, x: Tensor) -> Tensor:
    utils.reset(net)
    x, out = x.view(x.shape[0], -1), []
    for _ in range(T):
        spk1, _ = net.lif1(net.fc1(x))
        out.append(net.lif2(net.fc2(F.dropout(spk1, 0.5, net.training)))[0])
    return torch.stack(out)


def zero_membranes(net: Any, x: Tensor) -> Tensor:
    mem1, mem2 = torch.zeros(3, 30), torch.zeros(3, 10)
    x, out = x.flatten(1), []
    for step in range(T):
        spk1, mem1 = net.lif1(net.norm(net.fc1(x)), mem1 if step == 0 else mem1.detach())
        spk2, mem2 = net.lif2(net.fc2(spk1), mem2)
        out.append(spk2)
    return torch.stack(out).mean(0)


def one_layer_after_the_other(net: Any, x: Tensor) -> Tensor:
    (mem1, mem2), x, first, out = net.rest(), x.flatten(1), [], []
    for _ in range(T):
        spk1, mem1 = net.lif1(net.fc1(x), mem1)
        first.append(spk1)
    currents = net.fc2(torch.stack(first))
    for step in range(T):
        spk2, mem2 = net.lif2(currents[step], mem2)
        out.append(spk2)
    return torch.stack(out)


def in_lists(net: Any, x: Tensor) -> Tensor:
    membranes, x, out = list(net.rest()), x.flatten(1), []
    for _ in range(T):
        value = x
        for i, (fc, lif) in enumerate(((net.fc1, net.lif1), (net.fc2, net.lif2))):
            value, membranes[i] = lif(fc(value), membranes[i])
        out.append(value)
    return torch.stack(out)


def residual(net: Any, x: Tensor) -> Tensor:
    (mem1, mem2), x, out = net.rest(), x.flatten(1), []
    for _ in range(T):
        spk1, mem1 = net.lif1(net.fc1(x), mem1)
        spk2, mem2 = net.lif2(net.fc2(spk1) + net.other(spk1), mem2)
        out.append(spk2)
    return torch.stack(out)


def with_constants(net: Any, x: Tensor) -> Tensor:
    (mem1, mem2), x, out = net.rest(), x.flatten(1), []
    for _ in range(T):
        spk1, mem1 = net.lif1(net.fc1(x) * net.gain, mem1)
        spk2, mem2 = net.lif2(0.75 * net.fc2(spk1), mem2)
        out.append(spk2)
    return torch.stack(out)


WRITTEN = (
    with_constants,
    *(by_steps, over_steps, own_membranes, zero_membranes),
    *(one_layer_after_the_other, in_lists, residual),
)


@pytest.mark.parametrize("given_one", [True, False], ids=["example", "none"])
@pytest.mark.parametrize("run", WRITTEN, ids=lambda run: run.__name__)
def test_a_loop_is_one_step_of_the_network(run: Callable[..., Any], given_one: bool) -> None:
    network = Net(run)
    x = torch.randn(*((T,) if run in (by_steps, over_steps) else ()), 3, 1, 4, 5) * 2
    model = from_torch(network, (1, 4, 5), T, example=x if given_one else None)
    with heard(network) as spikes:
        network(x)
    assert_same_spikes(model, spikes, x)


class Stepping(Net):
    """snnTorch's own example: one step, whose membranes its caller keeps."""

    def __init__(self) -> None:
        super().__init__(by_steps)

    def forward(  # type: ignore[override]
        self, x: Tensor, mem2: Tensor, mem1: Tensor, scale: int = 1
    ) -> Any:
        spk1, mem1 = self.lif1(self.fc1(x), mem1)
        spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
        return mem1, spk2, mem2


@pytest.mark.parametrize("sequence", [False, True], ids=["image", "sequence"])
def test_membranes_may_come_from_the_caller(sequence: bool) -> None:
    network = Stepping()
    x = torch.randn(*((T,) if sequence else ()), 3, 20) * 2
    model = from_torch(network, (20,), T, example=x)
    mem1, mem2 = network.rest()
    with heard(network) as spikes:
        for t in range(T):
            mem1, _, mem2 = network(x[t] if sequence else x, mem2, mem1)
    assert_same_spikes(model, spikes, x)


class Defaults(Net):
    def __init__(self) -> None:
        super().__init__(by_steps)

    def forward(self, x: Tensor, num_steps: int = T, mem1: Any = None) -> Tensor:
        (mem1, mem2), out = (self.rest() if mem1 is None else mem1), []
        for _ in range(num_steps):
            spk1, mem1 = self.lif1(self.fc1(x), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            out.append(spk2)
        return torch.stack(out)


def test_arguments_with_a_default_are_what_it_is() -> None:
    network, x = Defaults(), torch.randn(3, 20) * 2
    model = from_torch(network, (20,), T, example=x)
    with heard(network) as spikes:
        network(x)
    assert_same_spikes(model, spikes, x)
    with pytest.raises(UnsupportedGraphError, match=r"6 steps put together .* time_steps = 5"):
        from_torch(network, (20,), 5)


def test_the_network_is_left_as_it_was() -> None:
    network, x = Net(own_membranes).train(), torch.randn(3, 1, 4, 5) * 2
    network(x)
    before = {name: dict(vars(m)) for name, m in network.named_modules()}
    buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
    from_torch(network, (1, 4, 5), T, example=x)
    for name, module in network.named_modules():
        assert vars(module).keys() == before[name].keys(), name
        assert module.training and not module._forward_hooks
    found = dict(network.named_buffers())
    assert found.keys() == buffers.keys() and buffers["lif1.mem"].any()
    assert all(torch.equal(found[name], buffer) for name, buffer in buffers.items())
    assert network.lif1.reset_mem.__func__ is snn.Leaky.reset_mem


def test_membranes_of_an_earlier_run_are_told_of() -> None:
    network, x = settled(sequential()), torch.randn(3, 1, 28, 28)
    network(x)
    earlier = pytest.warns(NetworkWarning, match=r"2, 5, 8 hold membranes of an earlier run")
    with earlier, pytest.warns(NetworkWarning, match=LEFT_OUT):
        model = from_torch(network, (1, 28, 28), T, example=x)
    utils.reset(network)
    with heard(network) as spikes:
        for _ in range(T):
            network(x)
    assert_same_spikes(model, spikes, x)


def test_a_beta_beyond_its_bounds_is_clamped() -> None:
    network, x = Net(loop(plain)), torch.randn(3, 20)
    network.lif1 = snn.Leaky(beta=1.25, learn_beta=True)
    model = from_torch(network, (20,), T, example=x)
    with heard(network) as spikes:
        network(x)
    assert_same_spikes(model, spikes, x)


def test_surrogates_are_carried_or_named() -> None:
    for grad, known in (
        (surrogate.atan(alpha=3.0), ("atan", 3.0)),
        (surrogate.sigmoid(slope=4), ("sigmoid", 4.0)),
        (None, ("atan", 2.0)),
    ):
        spec = spec_of("n", snn.Leaky(beta=0.9, spike_grad=grad))
        assert (spec.surrogate, spec.surrogate_alpha) == known
    with pytest.warns(NetworkWarning, match="n: surrogate function fast_sigmoid is not known here"):
        spec_of("n", snn.Leaky(beta=0.9, spike_grad=surrogate.fast_sigmoid()))


@pytest.mark.parametrize("kind", ["default", "zero", "none"])
@pytest.mark.parametrize("name", ["atan", "sigmoid"])
def test_gradients_are_snntorchs(kind: str, name: str) -> None:
    grad = surrogate.atan() if name == "atan" else surrogate.sigmoid(slope=4)
    theirs = snn.Leaky(**KINDS[kind], spike_grad=grad)
    ours = SpikingNeuron(spec_of("n", theirs), 4)
    torch.manual_seed(0)
    current, weight = torch.randn(4, 300), torch.randn(4, 300)

    def own(x: Tensor) -> Tensor:
        spikes, mem = [], theirs.init_leaky()
        for t in range(4):
            spike, mem = theirs(x[t], mem)
            spikes.append(spike)
        return torch.stack(spikes)

    grads = []
    for run in (own, lambda x: ours.simulate(x, static=False)):
        x = current.clone().requires_grad_()
        grads.append(torch.autograd.grad((run(x) * weight).sum(), x)[0])
    assert grads[0].abs().max() > 0.1
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["default", "none", "kept-whole"])
def test_the_form_survives_a_model_file(kind: str, tmp_path: Path) -> None:
    network = Net(loop(plain))
    network.lif1 = snn.Leaky(**KINDS[kind])
    model = from_torch(network, (20,), T, example=torch.randn(3, 20))
    save(model, tmp_path / "m.safetensors")
    assert load(tmp_path / "m.safetensors").graph == model.graph
    (population,) = model.graph.populations
    late = population.neuron.charge == "leak_multiply_late"
    assert population.neuron.form == "snntorch" and late == (kind != "none")


FACTORY = """
import snntorch
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, classes=10, time_steps=6):
        super().__init__()
        self.steps = time_steps
        self.conv, self.lif1 = nn.Conv2d(1, 8, 5, stride=2), snntorch.Leaky(beta=0.9)
        self.fc, self.lif2 = nn.Linear(1152, classes), snntorch.Leaky(beta=0.9, learn_beta=True)

    def forward(self, x):
        mem1, mem2, out = self.lif1.init_leaky(), self.lif2.init_leaky(), []
        for step in range(self.steps):
            spk1, mem1 = self.lif1(self.conv(x), mem1)
            spk2, mem2 = self.lif2(self.fc(spk1.flatten(1)), mem2)
            out.append(spk2)
        return torch.stack(out)
"""


def test_from_a_state_dict_to_files_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "step_nets.py").write_text(FACTORY)
    monkeypatch.syspath_prepend(str(tmp_path))
    network = importlib.import_module("step_nets").Net()
    torch.save(settled(network, 6.0).state_dict(), tmp_path / "weights.pth")
    on = ["--input", "random", "--samples", "2", "--batch", "2"]
    for words in (
        ["import", "torch", "step_nets:Net", "--model_path", "weights.pth", "-o",
         "net.safetensors", "--input_shape", "1", "28", "28", "--classes", "10", "-T", "6"],
        ["export", "onnx", "net.safetensors", *on],
        ["export", "event", "net.safetensors", *on],
        ["verify", "net.safetensors", "net.onnx", *on],
        ["verify", "net.safetensors", "net.event.safetensors", *on],
    ):  # fmt: skip
        result = CliRunner().invoke(root, words)
        assert result.exit_code == 0, result.output
    shown = CliRunner().invoke(root, ["inspect", "net.event.safetensors"]).output
    assert "v ← v · 0.9 + x - (v > 1) · 1; spike if v > 1" in shown
