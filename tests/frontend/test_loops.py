"""Loops over time inside a forward: sums added up step by step, neurons that keep their state."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from clock_driven import STAND_INS
from torch import Tensor, nn

from soul_deploy import from_torch
from soul_deploy.base.errors import UnsupportedGraphError
from soul_deploy.export.event.build import export_event
from soul_deploy.export.onnx.model import export_onnx
from soul_deploy.export.verify.verify import verify

snn: Any = pytest.importorskip("snntorch", reason="the extra interop installs it")
pytest.importorskip("spikingjelly", reason="`make` installs SpikingJelly for these tests")

from spikingjelly.activation_based import functional, neuron  # noqa: E402

T = 4


class Leaky(nn.Module):
    """Two layers of snnTorch; `finish` makes class scores of what is recorded."""

    def __init__(self, finish: Callable[..., Any]) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.fc1, self.lif1 = nn.Linear(12, 20), snn.Leaky(beta=0.9)
        self.fc2, self.lif2 = nn.Linear(20, 4), snn.Leaky(beta=0.8)
        self.finish = finish
        with torch.no_grad():
            self.fc2.weight.mul_(4).add_(0.1)

    def forward(self, x: Tensor) -> Any:
        mem1, mem2 = self.lif1.init_leaky(), self.lif2.init_leaky()
        spikes, currents, total, weighed = [], [], 0, 0
        for _ in range(T):
            spk1, mem1 = self.lif1(self.fc1(x), mem1)
            current = self.fc2(spk1)
            spk2, mem2 = self.lif2(current, mem2)
            spikes.append(spk2)
            currents.append(current)
            total += spk2
            weighed = weighed + current
        return self.finish(spikes, currents, total, weighed)


SUMS: dict[str, tuple[Callable[..., Any], str, str]] = {
    "sum": (lambda s, c, t, w: sum(s), "sum", "readout"),
    "sum / T": (lambda s, c, t, w: sum(s) / T, "mean", "readout"),
    "total": (lambda s, c, t, w: t, "sum", "readout"),
    "total / len": (lambda s, c, t, w: t / len(s), "mean", "readout"),
    "of currents": (lambda s, c, t, w: w, "sum", "fc2"),
    "sum of currents": (lambda s, c, t, w: sum(c), "sum", "fc2"),
    "stack": (lambda s, c, t, w: torch.stack(s).sum(0), "sum", "readout"),
}


@pytest.mark.parametrize("name", SUMS)
def test_a_sum_that_a_loop_adds_up_is_the_sum_over_time(name: str) -> None:
    finish, over_time, readout = SUMS[name]
    network, x = Leaky(finish), 4 * torch.rand(6, 12)
    model = from_torch(network, (12,), T, example=x)
    assert (model.graph.readout.over_time, model.graph.readout.name) == (over_time, readout)
    assert len(model.graph.populations) == (1 if readout == "fc2" else 2)
    with torch.no_grad():
        own = network(x)
    assert own.any()
    torch.testing.assert_close(model.module()(x), own, rtol=0, atol=1e-5)


OTHERS: dict[str, tuple[Callable[..., Any], str]] = {
    "a part": (lambda s, c, t, w: sum(s[:3]), "the sum of 3 of 4 steps of 'lif2'"),
    "backwards": (lambda s, c, t, w: sum(s[::-1]), "values of different steps"),
    "a step twice": (lambda s, c, t, w: s[0] + s[1] + s[1] + s[3], "different steps|sum of 2 of 4"),
    "a step left out": (lambda s, c, t, w: s[0] + s[1] + s[3], "different steps|sum of 2 of 4"),
    "another value": (lambda s, c, t, w: s[0] + s[1] + c[2] + s[3], "different steps|sum of 2 of"),
    "more than T": (lambda s, c, t, w: sum(s) + s[0], "summed over time|add|different"),
    "a part that is weighed": (lambda s, c, t, w: (s[0] + s[1]) * 0.5, "the sum of 2 of 4 steps"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_another_sum_of_steps_is_refused(name: str) -> None:
    finish, text = OTHERS[name]
    with pytest.raises(UnsupportedGraphError, match=text):
        from_torch(Leaky(finish), (12,), T, example=4 * torch.rand(6, 12))


class Looped(nn.Module):
    """SpikingJelly's neurons, called once a step: they keep their state themselves."""

    def __init__(self, nodes: Any, run: Callable[["Looped", Tensor], Any]) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.static = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6))
        self.conv = nn.Sequential(
            *(nodes.IFNode(), nn.MaxPool2d(2), nn.Conv2d(6, 6, 3), nn.BatchNorm2d(6)),
            nodes.LIFNode(tau=1.5),
        )
        self.fc = nn.Sequential(nn.Flatten(), nn.Linear(24, 5), nodes.LIFNode(v_reset=None))
        self.run = run
        with torch.no_grad():
            self.get_parameter("static.1.bias").uniform_(0, 1)
            self.get_parameter("conv.2.weight").mul_(3)
            self.get_parameter("conv.3.bias").uniform_(0, 3)
            self.get_parameter("fc.1.weight").mul_(3).add_(0.15)

    def forward(self, x: Tensor) -> Any:
        return self.run(self, x)


def of_image(net: Looped, x: Tensor) -> Any:
    """The Fashion-MNIST tutorial of SpikingJelly up to 0.0.0.0.12."""
    x = net.static(x)
    out = net.fc(net.conv(x))
    for _ in range(1, T):
        out += net.fc(net.conv(x))
    return out / T


def of_frames(net: Looped, x: Tensor) -> Any:
    return torch.stack([net.fc(net.conv(net.static(frame))) for frame in x])


def of_indices(net: Looped, x: Tensor) -> Any:
    return sum(net.fc(net.conv(net.static(x[t]))) for t in range(x.shape[0]))


def layer_by_layer(net: Looped, x: Tensor) -> Any:
    for part in (net.static, net.conv, net.fc):
        x = functional.multi_step_forward(x, part)
    return x.mean(0)


def after_reset(net: Looped, x: Tensor) -> Any:
    functional.reset_net(net)
    return of_image(net, x)


RUNS: dict[str, tuple[Callable[[Looped, Tensor], Any], bool, str]] = {
    "image": (of_image, False, "mean"),
    "frames": (of_frames, True, "mean"),
    "indices": (of_indices, True, "sum"),
    "layer by layer": (layer_by_layer, True, "mean"),
    "after a reset": (after_reset, False, "mean"),
}


@pytest.mark.parametrize("nodes", [neuron, STAND_INS.neuron], ids=["2.x", "clock_driven"])
@pytest.mark.parametrize("name", RUNS)
def test_neurons_of_one_step_are_looped_over(name: str, nodes: Any, tmp_path: Path) -> None:
    run, sequence, over_time = RUNS[name]
    network = Looped(nodes, run).eval()
    x = 3 * torch.rand(*((T,) if sequence else ()), 4, 1, 8, 8)
    model = from_torch(network, (1, 8, 8), T, example=x)
    assert len(model.graph.populations) == 3
    assert "untested" not in model.info.provenance
    assert model.graph.readout.over_time == over_time
    reset(network)
    with torch.no_grad():
        own = network(x)
    own = own.mean(0) if own.dim() == 3 else own
    reset(network)
    torch.testing.assert_close(model.module()(x), own, rtol=0, atol=1e-5)
    if name in ("image", "frames") and nodes is neuron:
        mode: Any = "sequence" if sequence else "static"
        export_onnx(model, tmp_path / "net.onnx", input_mode=mode)
        export_event(model, tmp_path / "net.event.safetensors")
        for file in ("net.onnx", "net.event.safetensors"):
            report = verify(model, tmp_path / file, x)
            assert report.passed, report.text()


def reset(network: nn.Module) -> None:
    for module in network.modules():
        if hasattr(module, "reset"):
            module.reset()  # type: ignore[operator]


def test_a_loop_of_other_steps_is_refused() -> None:
    for steps, text in ((3, "a loop of more than 3 steps"), (5, "the sum of 4 of 5 steps")):
        with pytest.raises(UnsupportedGraphError, match=text):
            from_torch(Looped(neuron, of_image), (1, 8, 8), steps, example=torch.rand(2, 1, 8, 8))


def test_a_neuron_at_two_places_is_still_no_loop() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.sn = nn.Linear(4, 4), nn.Linear(4, 4), neuron.IFNode()

        def forward(self, x: Tensor) -> Any:
            return self.sn(self.b(self.sn(self.a(x))))

    with pytest.raises(UnsupportedGraphError, match="module 'sn' is called twice"):
        from_torch(Twice(), (4,), T)
