"""Networks written for SpikingJelly, untouched: same spikes as SpikingJelly's own."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from own_spikes import own_spikes
from torch import Tensor, nn

from soul_deploy import from_torch
from soul_deploy.base.errors import UnsupportedGraphError
from soul_deploy.cli.main import root
from soul_deploy.export.event.build import export_event
from soul_deploy.export.onnx.model import export_onnx
from soul_deploy.export.verify.verify import verify
from soul_deploy.frontend.factory import build_network
from soul_deploy.frontend.module_kinds import module_neuron_spec
from soul_deploy.ir import AdaptiveAvgPool, NeuronSpec
from soul_deploy.model.file import load, save
from soul_deploy.model.model import Model
from soul_deploy.nn.neuron import SpikingNeuron
from soul_deploy.runtime.equations import NeuronEquation

pytest.importorskip("spikingjelly", reason="`make` installs SpikingJelly for these tests")

from spikingjelly.activation_based import functional, layer, neuron, surrogate
from spikingjelly.activation_based.model import sew_resnet, spiking_vgg

NEURONS: dict[str, tuple[Any, dict[str, Any]]] = {
    "lif": (neuron.LIFNode, {}),
    "lif-soft-undecayed": (neuron.LIFNode, {"decay_input": False, "v_reset": None, "tau": 1.7}),
    "lif-undecayed": (neuron.LIFNode, {"decay_input": False, "tau": 3.0}),
    "lif-reset": (neuron.LIFNode, {"decay_input": False, "v_reset": -0.25, "tau": 1.3}),
    "plif": (neuron.ParametricLIFNode, {"init_tau": 2.3}),
    "plif-undecayed": (neuron.ParametricLIFNode, {"init_tau": 1.7, "decay_input": False}),
    "plif-soft": (neuron.ParametricLIFNode, {"v_reset": None, "decay_input": False}),
    "if": (neuron.IFNode, {}),
    "if-soft": (neuron.IFNode, {"v_reset": None}),
    "if-reset": (neuron.IFNode, {"v_reset": -0.25, "v_threshold": 0.75}),
}
ALONE: dict[str, tuple[Any, dict[str, Any]]] = {
    **NEURONS,
    "lif-decayed-reset": (neuron.LIFNode, {"v_reset": -0.3, "tau": 1.7}),
    "plif-decayed-reset": (neuron.ParametricLIFNode, {"v_reset": -0.3, "init_tau": 1.7}),
    "plif-undecayed-reset": (
        neuron.ParametricLIFNode,
        {"v_reset": -0.3, "init_tau": 1.7, "decay_input": False},
    ),
}
"""Those of whole networks, and more that are compared one by one."""


def settled(network: nn.Module, x: Tensor) -> nn.Module:
    """Batch norm statistics from data and offsets above 0, so that every layer fires."""
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    with torch.no_grad():
        for norm in norms:
            norm.bias.uniform_(0, 1.5)
            norm.momentum = None
    network.train()
    with torch.no_grad():
        network(x)
    functional.reset_net(network)
    for norm in norms:
        norm.momentum = 0.1
    return network.eval()


def assert_same_spikes(model: Model, network: nn.Module, x: Tensor) -> None:
    spikes, logits = own_spikes(network, x)
    found = model.module().record(x)
    assert list(found.spikes) == list(spikes)
    for name, mine in found.spikes.items():
        assert torch.equal(mine, spikes[name]), name
        assert 0.001 < mine.float().mean() < 0.999, name
    torch.testing.assert_close(found.logits, logits, rtol=0, atol=1e-5)


def sequence(batch: int, *shape: int) -> Tensor:
    return torch.randn(4, batch, *shape)


@pytest.mark.parametrize("kind", NEURONS)
def test_sew_resnet18_fires_as_in_spikingjelly(kind: str) -> None:
    torch.manual_seed(0)
    node, settings_of = NEURONS[kind]
    cnf = ("ADD", "AND", "IAND")[list(NEURONS).index(kind) % 3]
    network = sew_resnet.sew_resnet18(
        cnf=cnf,
        spiking_neuron=node,
        num_classes=10,
        surrogate_function=surrogate.ATan(),
        **settings_of,
    )
    functional.set_step_mode(network, "m")
    x = sequence(2, 3, 32, 32)
    settled(network, x)
    names = set(network.state_dict())
    model = from_torch(network, (3, 32, 32), 4, example=x)
    assert set(model.state) == names
    assert_same_spikes(model, network, x)
    merges = {node.describe() for node in model.graph.nodes if node.op == "merge"}
    assert merges == {f"{cnf.lower()} of 2 branches"}
    assert model.graph.readout.name == "fc" and model.graph.readout.linear


def passes_the_gates(model: Model, x: Tensor, folder: Path) -> None:
    """ONNX and event file of the model, verified on whole sequences."""
    export_onnx(model, folder / "net.onnx", input_mode="sequence")
    export_event(model, folder / "net.event.safetensors")
    for name in ("net.onnx", "net.event.safetensors"):
        report = verify(model, folder / name, x)
        assert report.passed, report.text()
        (folder / name).unlink()


def test_spiking_vgg11_bn_fires_as_in_spikingjelly(tmp_path: Path) -> None:
    torch.manual_seed(0)
    with torch.device("meta"):  # its own initialisation draws 119 million numbers
        network = spiking_vgg.spiking_vgg11_bn(
            spiking_neuron=neuron.LIFNode, num_classes=10, surrogate_function=surrogate.ATan()
        )
    network.to_empty(device="cpu")
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            values = torch.randn(min(module.weight.numel(), 9973)) * (
                2.0 / module.weight[0].numel() ** 0.5
            )
            repeats = -(-module.weight.numel() // len(values))
            flat = values.repeat(repeats)[: module.weight.numel()]
            module.weight.data = flat.reshape(module.weight.shape)
            nn.init.constant_(module.bias, 0.1)  # type: ignore[arg-type]
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.reset_parameters()
    functional.set_step_mode(network, "m")
    x = sequence(1, 3, 32, 32)
    settled(network, x)
    model = from_torch(network, (3, 32, 32), 4, example=x)
    assert_same_spikes(model, network, x)
    del network
    passes_the_gates(model, x, tmp_path)
    assert [n.size for n in model.graph.nodes if isinstance(n, AdaptiveAvgPool)] == [(7, 7)]


@pytest.mark.parametrize(
    ("cnf", "node"),
    [("ADD", neuron.LIFNode), ("AND", neuron.ParametricLIFNode), ("IAND", neuron.IFNode)],
)
def test_sew_resnet18_passes_the_gates(cnf: str, node: Any, tmp_path: Path) -> None:
    torch.manual_seed(1)
    network = sew_resnet.sew_resnet18(
        cnf=cnf, spiking_neuron=node, num_classes=10, surrogate_function=surrogate.ATan()
    )
    functional.set_step_mode(network, "m")
    x = sequence(2, 3, 32, 32)
    settled(network, x)
    passes_the_gates(from_torch(network, (3, 32, 32), 4, example=x), x, tmp_path)


@pytest.mark.parametrize("kind", ALONE)
@settings(max_examples=8)
@given(steps=st.integers(1, 6), grid=st.sampled_from([None, 8, 4]), seed=st.integers(0, 2**16))
def test_a_neuron_has_the_bits_of_spikingjellys(
    kind: str, steps: int, grid: int | None, seed: int
) -> None:
    """Random currents, and currents on a grid, which meet the threshold exactly."""
    node, settings_of = ALONE[kind]
    random = torch.Generator().manual_seed(seed)
    current = torch.randn(steps, 50, generator=random) * 2
    if grid:
        current = (current * grid).round() / grid
    theirs = node(step_mode="m", store_v_seq=True, **settings_of)
    ours = SpikingNeuron(module_neuron_spec("n", theirs), steps)
    if ours.spec.learned:
        ours.load_state_dict(theirs.state_dict())
    seen: list[Tensor] = []
    with torch.no_grad():
        spikes = ours.simulate(current, static=False, observe=lambda t, s, v: seen.append(v))
        assert torch.equal(spikes, theirs(current))
    assert torch.equal(torch.stack(seen), theirs.v_seq)
    equation = ours.equation()
    assert isinstance(equation, NeuronEquation)
    v = np.full(50, equation.rest, np.float32)
    numbers: dict[str, Any] = {
        name: np.float32(value) if isinstance(value, float) else value
        for name, value in vars(equation).items()
    }
    for t in range(steps):
        fired, v = type(equation)(**numbers).step(v, current[t].numpy())
        assert (fired == spikes[t].bool().numpy()).all()
        assert (v == seen[t].numpy()).all()


def test_a_neuron_at_its_threshold_fires() -> None:
    theirs = neuron.IFNode(step_mode="m")
    assert theirs(torch.ones(1, 1)).item() == 1
    spec = module_neuron_spec("n", theirs)
    assert SpikingNeuron(spec, 1)(torch.ones(1, 1, 1)).item() == 1
    assert SpikingNeuron(NeuronSpec("if"), 1)(torch.ones(1, 1, 1)).item() == 0


def test_the_form_survives_a_model_file(tmp_path: Any) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(layer.Flatten(), layer.Linear(8, 6), neuron.LIFNode(tau=1.7))
    functional.set_step_mode(network, "m")
    model = from_torch(network, (2, 2, 2), 4, example=sequence(4, 2, 2, 2) * 9)
    save(model, tmp_path / "m.safetensors")
    again = load(tmp_path / "m.safetensors")
    assert again.graph == model.graph
    assert again.graph.populations[0].neuron.form == "spikingjelly"
    assert again.graph.populations[0].neuron.charge == "decay_divide"


@pytest.mark.parametrize(
    ("soft", "decay", "charge", "constant"),
    [
        (True, False, "leak_multiply", 1.0 - 1.0 / 3.0),
        (False, False, "leak_subtract_divide", 3.0),
        (True, True, "decay_divide", 3.0),
    ],
)
def test_spikingjelly_0_has_other_forms(
    soft: bool, decay: bool, charge: str, constant: float
) -> None:
    """Its neurons stood in one file (0.0.0.0.14, LIFNode's jit_eval functions)."""
    old = type("LIFNode", (neuron.LIFNode,), {"__module__": "spikingjelly.activation_based.neuron"})
    spec = module_neuron_spec("n", old(tau=3.0, v_reset=None if soft else 0.0, decay_input=decay))
    equation = spec.equation()
    assert isinstance(equation, NeuronEquation)
    assert (equation.charge, equation.constant) == (charge, constant)
    x = torch.randn(5, 40)
    v = torch.zeros(40)
    spikes = SpikingNeuron(spec, 5).simulate(x, static=False)
    for t in range(5):
        if decay:
            v = v + (x[t] - v) / 3.0
        elif soft:
            v = v * (1.0 - 1.0 / 3.0) + x[t]
        else:
            v = v - (v - 0.0) / 3.0 + x[t]
        fired = (v >= 1.0).to(x)
        v = v - fired * 1.0 if soft else 0.0 * fired + (1.0 - fired) * v
        assert torch.equal(fired, spikes[t])


class Repeating(nn.Module):
    """SpikingJelly's Fashion-MNIST example: the image is repeated inside, the rate comes out."""

    def __init__(self, head: nn.Module | None = None) -> None:
        super().__init__()
        self.body = nn.Sequential(
            layer.Conv2d(2, 4, 3, padding=1, bias=False),
            layer.BatchNorm2d(4),
            neuron.IFNode(),
            layer.MaxPool2d(2, 2),
            layer.Flatten(),
            layer.Linear(16, 20, bias=False),
            neuron.IFNode(),
        )
        self.head = head or nn.Identity()
        functional.set_step_mode(self, "m")

    def forward(self, x: Tensor) -> Tensor:
        repeated = x.unsqueeze(0).repeat(4, 1, 1, 1, 1)
        rates: Tensor = self.head(self.body(repeated)).mean(0)
        return rates


@pytest.mark.parametrize("head", [None, layer.VotingLayer(5), layer.Linear(20, 3)], ids=str)
def test_a_network_that_repeats_its_image(head: nn.Module | None) -> None:
    torch.manual_seed(1)
    network = Repeating(head)
    x = torch.randn(3, 2, 4, 4) * 3
    model = from_torch(network.eval(), (2, 4, 4), 4, example=x)
    with torch.no_grad():
        expected = network(x)
    functional.reset_net(network)
    assert expected.std() > 0
    torch.testing.assert_close(model.module().record(x).logits, expected, rtol=0, atol=1e-6)
    assert model.graph.readout.votes == (5 if isinstance(head, layer.VotingLayer) else 1)
    assert model.graph.readout.linear is isinstance(head, layer.Linear)


class Containers(nn.Module):
    """Plain PyTorch layers inside SpikingJelly's containers, and its functional form."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = layer.SeqToANNContainer(nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4))
        self.fire = layer.MultiStepContainer(neuron.LIFNode(tau=1.5))
        self.pool = nn.AvgPool2d(2, 2)
        self.flat = layer.SeqToANNContainer(nn.Flatten(), nn.Linear(16, 6))
        self.last = neuron.LIFNode(step_mode="m")

    def forward(self, x: Tensor) -> Tensor:
        x = self.fire(self.conv(x))
        x = functional.seq_to_ann_forward(x, self.pool)
        spikes: Tensor = self.last(self.flat(x))
        return spikes


def test_containers_are_entered() -> None:
    torch.manual_seed(2)
    network = Containers().eval()
    nn.init.normal_(network.flat[1].weight, 0.0, 4.0)
    x = sequence(2, 2, 4, 4) * 6
    model = from_torch(network, (2, 4, 4), 4, example=x)
    with torch.no_grad():
        expected = network(x).mean(0)
    functional.reset_net(network)
    assert expected.std() > 0
    torch.testing.assert_close(model.module().record(x).logits, expected)
    assert [node.name for node in model.graph.populations] == ["fire.0", "last"]


def test_a_network_that_is_called_once_a_step() -> None:
    torch.manual_seed(3)
    network = nn.Sequential(
        layer.Conv2d(2, 4, 3, padding=1),
        neuron.LIFNode(),
        layer.AvgPool2d(2, 2),
        layer.Flatten(),
        layer.Linear(16, 5),
        neuron.LIFNode(),
        layer.Linear(5, 3),
    )
    nn.init.normal_(network[4].weight, 0.0, 4.0)  # type: ignore[arg-type]
    x = torch.randn(2, 2, 4, 4) * 6
    model = from_torch(network, (2, 4, 4), 3, example=x)
    with torch.no_grad():
        expected = torch.stack([network(x) for _ in range(3)]).mean(0)
    torch.testing.assert_close(model.module().record(x).logits, expected)


def test_state_and_training_mode_are_left_as_they_were() -> None:
    torch.manual_seed(1)
    network = Repeating().train()
    network.body[4].eval()
    from_torch(network, (2, 4, 4), 4, example=torch.randn(3, 2, 4, 4) * 3)
    assert network.training and not network.body[4].training
    assert network.body[2].v == 0.0
    assert not any(module._forward_hooks for module in network.modules())


class Peeking(nn.Module):
    """Uses a neuron's membrane as if it were a signal."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.fire = neuron.LIFNode(step_mode="m")
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        spikes: Tensor = self.fire(x)
        if self.how == "added":
            return spikes + self.fire.v  # type: ignore[no-any-return]
        if self.how == "compared":
            return spikes if self.fire.v > 0 else spikes * spikes
        return spikes + self.fire.v.mean()  # type: ignore[no-any-return]


@pytest.mark.parametrize("how", ["added", "compared", "averaged"])
def test_state_outside_its_neuron_is_refused(how: str) -> None:
    network = Peeking(how)
    text = r"the state of 'fire' is used outside its neuron; .* test_spikingjelly.py line \d+: "
    with pytest.raises(UnsupportedGraphError, match=text):
        from_torch(network, (4,), 4)
    assert network.fire.v == 0.0


class Learning(neuron.LIFNode):  # type: ignore[misc]
    """A neuron of the user's own."""

    def single_step_functional_forward(self, *args: Any, **kwargs: Any) -> Any:
        return super().single_step_functional_forward(*args, **kwargs)


def test_a_neuron_of_ones_own_is_refused() -> None:
    with pytest.raises(UnsupportedGraphError, match=r"module '0' \(Learning\) is not supported"):
        from_torch(nn.Sequential(Learning(step_mode="m")), (4,), 4)
    unknown = nn.Sequential(neuron.SimpleIFNode(step_mode="m"))
    with pytest.raises(
        UnsupportedGraphError, match=r"module '0' \(SimpleIFNode\) is not supported"
    ):
        from_torch(unknown, (4,), 4)


def test_mixed_step_modes_are_refused() -> None:
    network = nn.Sequential(layer.Linear(4, 4, step_mode="m"), neuron.IFNode(step_mode="s"))
    with pytest.raises(UnsupportedGraphError, match=r"neuron '1' in step mode 's' with a sequence"):
        from_torch(network, (4,), 4)
    folded = nn.Sequential(layer.SeqToANNContainer(nn.Linear(4, 4), neuron.IFNode()))
    with pytest.raises(UnsupportedGraphError, match=r"neuron '0.1' with time folded into the"):
        from_torch(folded, (4,), 4)


def test_surrogates_are_carried_or_named() -> None:
    known = {
        "atan": (surrogate.ATan(3.0), 3.0),
        "sigmoid": (surrogate.Sigmoid(4.0), 4.0),
        "rectangle": (surrogate.Rect(4.0), 0.25),
    }
    for name, (function, alpha) in known.items():
        spec = module_neuron_spec("n", neuron.IFNode(surrogate_function=function))
        assert (spec.surrogate, spec.surrogate_alpha) == (name, alpha)
    with pytest.warns(UserWarning, match="n: surrogate function Erf is not known here"):
        module_neuron_spec("n", neuron.IFNode(surrogate_function=surrogate.Erf()))
    soft = neuron.IFNode(surrogate_function=surrogate.Sigmoid(spiking=False))
    with pytest.raises(UnsupportedGraphError, match="n: its surrogate function is in non-spiking"):
        module_neuron_spec("n", soft)
    half = neuron.LIFNode()
    half._neuron_precision = (torch.float16, "fp16", "fp16")
    with pytest.raises(UnsupportedGraphError, match="n: a neuron with a precision of its own"):
        module_neuron_spec("n", half)


@pytest.mark.parametrize("name", ["atan", "sigmoid", "rectangle"])
def test_gradients_are_spikingjellys(name: str) -> None:
    functions = {"atan": surrogate.ATan(), "sigmoid": surrogate.Sigmoid(), "rectangle": None}
    theirs = neuron.LIFNode(
        step_mode="m",
        tau=1.7,
        detach_reset=True,
        surrogate_function=functions[name] or surrogate.Rect(0.5),
    )
    ours = SpikingNeuron(module_neuron_spec("n", theirs), 4)
    torch.manual_seed(0)
    current = torch.randn(4, 300)
    weight = torch.randn(4, 300)
    grads = []
    for run in (theirs, lambda x: ours.simulate(x, static=False)):
        x = current.clone().requires_grad_()
        grads.append(torch.autograd.grad((run(x) * weight).sum(), x)[0])
    assert grads[0].abs().max() > 0.1
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-5, atol=1e-6)


FACTORY = """
from spikingjelly.activation_based import functional, neuron, surrogate
from spikingjelly.activation_based.model import sew_resnet

def make(classes):
    network = sew_resnet.sew_resnet18(
        cnf="ADD", spiking_neuron=neuron.LIFNode, num_classes=classes,
        surrogate_function=surrogate.ATan(),
    )
    functional.set_step_mode(network, "m")
    return network
"""


def test_from_a_state_dict_to_files_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sewnets.py").write_text(FACTORY)
    network = build_network("sewnets:make", classes=10, input_shape=(3, 32, 32), time_steps=4)
    torch.save(settled(network, sequence(2, 3, 32, 32)).state_dict(), tmp_path / "weights.pth")
    on = ["--input", "random", "--samples", "2", "--batch", "2"]
    for words in (
        ["import", "torch", "sewnets:make", "--model_path", "weights.pth", "-o", "net.safetensors",
         "--input_shape", "3", "32", "32", "--classes", "10"],
        ["export", "onnx", "net.safetensors", *on],
        ["export", "event", "net.safetensors", *on],
        ["verify", "net.safetensors", "net.onnx", *on],
        ["verify", "net.safetensors", "net.event.safetensors", *on],
    ):  # fmt: skip
        result = CliRunner().invoke(root, words)
        assert result.exit_code == 0, result.output
    sys.modules.pop("sewnets")
