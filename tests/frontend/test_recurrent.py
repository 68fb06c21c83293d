"""Recurrent containers of SpikingJelly, RLeaky and RSynaptic of snnTorch, as people write them:
traced, and compared with what the tools themselves compute.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

from soul_deploy import from_torch
from soul_deploy.base.errors import UnsupportedGraphError
from soul_deploy.cli.main import root
from soul_deploy.export.verify.event_run import verify_counts
from soul_deploy.model.model import Model
from soul_deploy.nn.graph_module import GraphModule

T, BATCH = 8, 6
sj = pytest.importorskip("spikingjelly.activation_based.layer", reason="the extra interop has it")
snn = pytest.importorskip("snntorch", reason="the extra interop installs it")
snn_utils = pytest.importorskip("snntorch.utils", reason="the extra interop installs it")
from spikingjelly.activation_based import functional, neuron  # noqa: E402


def linear() -> Any:
    return sj.LinearRecurrentContainer(neuron.LIFNode(), 12, 12)


def linear_inside() -> Any:
    inside = nn.Sequential(nn.Linear(12, 9), neuron.LIFNode(v_reset=None))
    return sj.LinearRecurrentContainer(inside, 12, 9, bias=False)


def added() -> Any:
    return sj.ElementWiseRecurrentContainer(neuron.IFNode(v_reset=None), lambda y, x: x + y)


def weighed() -> Any:
    inside = nn.Sequential(nn.Linear(12, 12), neuron.ParametricLIFNode())
    return sj.ElementWiseRecurrentContainer(inside, lambda y, x: 0.5 * x - 0.25 * y)


CONTAINERS: dict[str, tuple[Callable[[], nn.Module], int, str]] = {
    "linear": (linear, 12, "net.1.rc.feedback"),
    "linear inside": (linear_inside, 9, "net.1.rc.feedback"),
    "added": (added, 12, "net.1.feedback"),
    "weighed": (weighed, 12, "net.1.feedback"),
}


class Recurrent(nn.Module):
    def __init__(self, container: nn.Module, width: int, mode: str) -> None:
        super().__init__()
        self.net = nn.Sequential(
            sj.Linear(6, 12), container, sj.Linear(width, 10), neuron.LIFNode()
        )
        functional.set_step_mode(self.net, mode)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.mul_(3 if parameter.dim() > 1 else 1)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.net(x)
        return scores


def example(seed: int = 5) -> Tensor:
    return torch.randn(T, BATCH, 6, generator=torch.Generator().manual_seed(seed)) * 2


def require_same(model: Model, scores: Tensor, x: Tensor) -> None:
    """The tool's class scores, and an event network that is the model, with every neuron firing."""
    assert "untested" not in model.info.provenance
    assert torch.equal(model.module()(x), scores)
    check = verify_counts(model, x)
    assert check.verdict.value == "passed", check.line()


@pytest.mark.parametrize("mode", ["m", "s"])
@pytest.mark.parametrize("kind", CONTAINERS)
def test_containers_of_spikingjelly(kind: str, mode: str) -> None:
    torch.manual_seed(1)
    make, width, name = CONTAINERS[kind]
    network = Recurrent(make(), width, mode).eval()
    model = from_torch(network, (6,), T, example=example())
    assert [back.name for back in model.graph.feedbacks.values()] == [name]
    x = example(7)
    with torch.no_grad():
        functional.reset_net(network)
        scores = network(x) if mode == "m" else torch.stack([network(step) for step in x])
    require_same(model, scores.mean(0), x)


def test_a_checkpoint_of_a_linear_container_is_taken_apart() -> None:
    """Its weight over input and last output becomes two tensors; everything else is as it was."""
    torch.manual_seed(1)
    network = Recurrent(linear(), 12, "m")
    model = from_torch(network, (6,), T, example=example())
    own = network.state_dict()
    assert own["net.1.rc.weight"].shape == (12, 24)
    module = GraphModule(model.graph)
    module.load_state_dict(own)
    for name, array in model.state.items():
        np.testing.assert_array_equal(module.state_dict()[name], array)
    module.load_state_dict(module.state_dict())


REFUSED: list[tuple[Callable[[], nn.Module], str]] = [
    (
        lambda: sj.ElementWiseRecurrentContainer(neuron.IFNode(), lambda y, x: x * y),
        r"module 'net.1' .*element_wise_function.* is 0, and so for ever",
    ),
    (
        lambda: sj.ElementWiseRecurrentContainer(neuron.IFNode(), lambda y, x: x),
        "does not depend on the last spikes",
    ),
    (
        lambda: sj.ElementWiseRecurrentContainer(neuron.IFNode(), lambda y, x: x.relu() + y),
        "it is no such sum",
    ),
    (lambda: sj.ElementWiseRecurrentContainer(neuron.IFNode(), torch.max), "it is no such sum"),
    (
        lambda: sj.LinearRecurrentContainer(
            nn.Sequential(nn.BatchNorm1d(12), neuron.LIFNode()), 12, 12
        ),
        r"module 'net.1.sub_module' \(Sequential\) in a recurrent container",
    ),
    (
        lambda: sj.LinearRecurrentContainer(nn.Linear(12, 12), 12, 12),
        r"module 'net.1.sub_module' \(Linear\) in a recurrent container",
    ),
]


@pytest.mark.parametrize(("make", "text"), REFUSED, ids=[text for _, text in REFUSED])
def test_other_containers_are_refused_by_name(make: Callable[[], nn.Module], text: str) -> None:
    with pytest.raises(UnsupportedGraphError, match=text):
        from_torch(Recurrent(make(), 12, "m"), (6,), T)


class Stepped(nn.Module):
    """Two recurrent layers in a loop over time; hidden: the neurons keep their state."""

    def __init__(self, first: Any, second: Any, *, hidden: bool) -> None:
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(6, 12), first
        self.fc2, self.lif2 = nn.Linear(12, 5), second
        self.hidden = hidden
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.mul_(2 if parameter.dim() > 1 else 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.hidden:
            snn_utils.reset(self)
            return torch.stack([self.lif2(self.fc2(self.lif1(self.fc1(step)))) for step in x])
        state1, state2 = self.lif1.reset_mem(), self.lif2.reset_mem()
        recorded = []
        for step in range(x.shape[0]):
            spikes, *rest = self.lif1(self.fc1(x[step]), *state1)
            state1 = spikes, *rest
            out, *rest = self.lif2(self.fc2(spikes), *state2)
            state2 = out, *rest
            recorded.append(out)
        return torch.stack(recorded)


NEURONS: list[tuple[str, dict[str, Any]]] = [
    ("RLeaky", {"beta": 0.9}),
    ("RLeaky", {"beta": 0.8, "reset_mechanism": "zero", "reset_delay": False}),
    ("RLeaky", {"beta": 0.9, "all_to_all": False, "V": 0.4, "reset_mechanism": "none"}),
    ("RSynaptic", {"alpha": 0.8, "beta": 0.7}),
    ("RSynaptic", {"alpha": 0.8, "beta": 0.7, "all_to_all": False, "V": -0.3}),
]


@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize(("kind", "given"), NEURONS)
def test_recurrent_neurons_of_snntorch(kind: str, given: dict[str, Any], hidden: bool) -> None:
    torch.manual_seed(2)
    all_to_all = given.get("all_to_all", True)
    sides = [{"linear_features": n} if all_to_all else {} for n in (12, 5)]
    made = [getattr(snn, kind)(**given, **side, init_hidden=hidden) for side in sides]
    network = Stepped(*made, hidden=hidden)
    model = from_torch(network, (6,), T, example=example())
    assert bool(model.graph.feedbacks) is all_to_all
    assert ("lif1.recurrent.weight" in model.state) is all_to_all
    x = example(9)
    with torch.no_grad():
        require_same(model, network(x).mean(0), x)


def test_numbers_of_each_neuron_are_tensors_under_their_names() -> None:
    torch.manual_seed(3)
    own = {name: torch.rand(12) * 0.4 + 0.5 for name in ("beta", "threshold", "V")}
    first = snn.RLeaky(all_to_all=False, init_hidden=True, learn_beta=True, **own)
    network = Stepped(first, snn.Leaky(beta=torch.rand(5), init_hidden=True), hidden=True)
    model = from_torch(network, (6,), T, example=example())
    for name, tensor in own.items():
        np.testing.assert_array_equal(model.state[f"lif1.{name}"], tensor)
    assert "lif2.beta" in model.state
    x = example(9)
    with torch.no_grad():
        require_same(model, network(x).mean(0), x)


class Convolved(nn.Module):
    """As snnTorch's documentation has RLeaky behind a convolution; one image, shown T times."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(1, 4, 3, padding=1), nn.Linear(4 * 36, 5)
        self.lif1 = snn.RLeaky(beta=0.8, conv2d_channels=4, kernel_size=3)
        self.lif2 = snn.Leaky(beta=0.9)

    def forward(self, x: Tensor) -> Tensor:
        spk, mem = self.lif1.init_rleaky()
        mem2 = self.lif2.init_leaky()
        recorded = []
        for _ in range(T):
            spk, mem = self.lif1(self.conv(x), spk, mem)
            out, mem2 = self.lif2(self.fc(spk.flatten(1)), mem2)
            recorded.append(out)
        return torch.stack(recorded)


def test_a_network_from_torch_to_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands: import, export to ONNX and event files, verify, energy; all neurons fire."""
    torch.manual_seed(4)
    network = Convolved()
    (tmp_path / "conv_net.py").write_text(
        "import sys\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from test_recurrent import Convolved as Net\n"
    )
    torch.save(network.state_dict(), tmp_path / "weights.pt")
    images = torch.randn(12, 1, 6, 6, generator=torch.Generator().manual_seed(3)) * 2
    np.save(tmp_path / "images.npy", images.numpy())
    monkeypatch.chdir(tmp_path)

    def run(words: str) -> str:
        result = CliRunner().invoke(root, words.split())
        assert result.exit_code == 0, result.output
        return result.output

    run(
        "import torch conv_net:Net --model_path weights.pt --input_shape 1 6 6 --classes 5 "
        f"-T {T} --input_kind values -o net.safetensors"
    )
    run("export event net.safetensors -o net.event --input images.npy")
    run("export onnx net.safetensors -o net.onnx --input images.npy")
    run("export onnx net.safetensors -o step.onnx --mode step --input images.npy")
    for name in ("net.event", "net.onnx", "step.onnx"):
        assert "passed" in run(f"verify net.safetensors {name} --input images.npy").lower()
    assert "lif1.recurrent" in run("energy net.safetensors --input images.npy")
