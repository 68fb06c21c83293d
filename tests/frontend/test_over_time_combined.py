"""What becomes of the steps, in networks of other tools, loops and constants: the same scores in
every file.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from soul_deploy import from_torch
from soul_deploy.base.errors import UsageError
from soul_deploy.base.reduction import OverTime
from soul_deploy.equivalence.verdict import Verdict
from soul_deploy.export.event.build import export_event
from soul_deploy.export.onnx.model import export_onnx
from soul_deploy.export.verify.verify import verify
from soul_deploy.ir import NeuronSpec
from soul_deploy.model.file import load, save
from soul_deploy.model.model import Model
from soul_deploy.nn import layers
from soul_deploy.nn.neuron import SpikingNeuron

Ends = dict[str, tuple[OverTime, Callable[[Any], Tensor]]]


def files_give_the_same(model: Model, x: Tensor, folder: Path) -> None:
    """The model file, ONNX and the event network, against the model and its counts."""
    save(model, folder / "model.safetensors")
    model = load(folder / "model.safetensors")
    mode: Any = "static" if x.dim() == len(model.graph.input.shape) + 1 else "sequence"
    export_onnx(model, folder / "net.onnx", input_mode=mode)
    export_event(model, folder / "net.event.safetensors")
    for file in ("net.onnx", "net.event.safetensors"):
        report = verify(model, folder / file, x)
        assert report.verdict is Verdict.PASSED, report.text()


def scores_of(network: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        scores: Tensor = network(x)
    assert scores.dim() == 2 and scores.std() > 0.01
    return scores


LOOP_ENDS: Ends = {
    "the sum": ("sum", lambda out: torch.stack(out).sum(0)),
    "the sum over T": ("mean", lambda out: torch.stack(out).sum(0) / len(out)),
    "the mean": ("mean", lambda out: torch.stack(out).mean(0)),
    "the maximum": ("max", lambda out: torch.stack(out).amax(0)),
    "the last of all": ("last", lambda out: torch.stack(out)[-1]),
    "the last": ("last", lambda out: out[-1]),
}


@pytest.mark.parametrize("end", LOOP_ENDS)
@pytest.mark.parametrize("sequence", [False, True], ids=["images", "sequences"])
def test_a_loop_of_snntorchs_neurons(end: str, sequence: bool, tmp_path: Path) -> None:
    """x[t] is a step of the loop; what is made of its outputs is the readout's."""
    nets = pytest.importorskip("leaky_nets", reason="the extra interop installs snnTorch")
    over_time, reduce = LOOP_ENDS[end]

    def step(net: Any, x: Tensor, t: int, state: dict[str, Any]) -> Any:
        current = net.fc1(x[t] if sequence else x)
        return nets.second(net, net.fc2(nets.first(net, current, state)), state)

    network = nets.Net(nets.loop(step, reduce))
    lead = (nets.T, 7) if sequence else (7,)
    x = torch.randn(*lead, 20, generator=torch.Generator().manual_seed(4))
    model = from_torch(network, (20,), nets.T, example=x)
    assert model.graph.readout.over_time == over_time
    torch.testing.assert_close(model.module()(x), scores_of(network, x), rtol=1e-6, atol=0)
    other: OverTime = "sum" if over_time == "max" else "max"
    with pytest.raises(UsageError, match="leave over_time out, or return all steps"):
        from_torch(network, (20,), nets.T, example=x, over_time=other)
    files_give_the_same(model, x, tmp_path)


class Ended(nn.Module):
    """A network of all steps, and what becomes of them behind it."""

    def __init__(self, body: nn.Module, end: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.body, self._end = body, end

    def forward(self, x: Tensor) -> Tensor:
        return self._end(self.body(x))


ENDS: Ends = {
    "sum": ("sum", lambda out: out.sum(0)),
    "sum over T": ("mean", lambda out: out.sum(0) / len(out)),
    "last": ("last", lambda out: out[-1]),
    "maximum": ("max", lambda out: out.max(0).values),
}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("by_channel", [False, True], ids=["numbers", "by channel"])
def test_a_network_that_ann2snn_converted(end: str, by_channel: bool, tmp_path: Path) -> None:
    """Its scalers stand in front of the head, whose scores forward reduces."""
    pytest.importorskip("spikingjelly", reason="`make` installs SpikingJelly for these tests")
    from ann2snn import converted
    from spikingjelly.activation_based import functional

    over_time, reduce = ENDS[end]
    torch.manual_seed(0)
    relus = (nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 5))
    body = converted(nn.Sequential(*relus), torch.rand(24, 12), channel_wise=by_channel)
    functional.set_step_mode(body, "m")
    network, x = Ended(body, reduce), torch.rand(8, 6, 12)
    model = from_torch(network, (12,), 8, example=x)
    assert model.graph.readout.over_time == over_time
    expected = scores_of(network, x)
    functional.reset_net(network)
    torch.testing.assert_close(model.module()(x), expected, rtol=1e-6, atol=1e-6)
    files_give_the_same(model, x, tmp_path)


class Integers(nn.Module):
    """Neurons that send fractions (INTLIF), a pooling, and a head without bias."""

    def __init__(self, forward: Callable[["Integers", Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(3)
        spec = NeuronSpec("intlif", tau=2.0, settings=(("norm", 4.0),))
        self.conv, self.sn = layers.Conv2d(2, 3, 3, padding=1), SpikingNeuron(spec, 4)
        self.pool, self.flat = layers.AvgPool2d(2), layers.Flatten()
        self.fc, self.biased = nn.Linear(12, 5, bias=False), nn.Linear(12, 5)
        self._forward = forward

    def spikes(self, x: Tensor) -> Tensor:
        sent: Tensor = self.flat(self.pool(self.sn(self.conv(x) * 3)))
        return sent

    def forward(self, x: Tensor) -> Tensor:
        return self._forward(self, x)


INTEGERS: dict[str, tuple[OverTime, Callable[[Integers, Tensor], Tensor]]] = {
    "a head behind the sum": ("sum", lambda n, x: n.fc(n.spikes(x).sum(0))),
    "the sum of scores": ("sum", lambda n, x: n.biased(n.spikes(x)).sum(0)),
    "a constant, then the sum": ("sum", lambda n, x: n.biased(n.spikes(x) * 0.3).sum(0)),
    "the sum halved, then a head": ("sum", lambda n, x: n.fc(n.spikes(x).sum(0) / 2)),
    "the last step": ("last", lambda n, x: n.biased(n.spikes(x)[-1])),
    "the maximum": ("max", lambda n, x: n.biased(-n.spikes(x)).amax(0)),
}


@pytest.mark.parametrize("form", INTEGERS)
def test_neurons_that_send_fractions(form: str, tmp_path: Path) -> None:
    over_time, forward = INTEGERS[form]
    network = Integers(forward).eval()
    x = torch.randn(4, 6, 2, 4, 4, generator=torch.Generator().manual_seed(1))
    model = from_torch(network, (2, 4, 4), 4, example=x, input_kind="values")
    assert model.graph.readout.over_time == over_time
    torch.testing.assert_close(model.module()(x), scores_of(network, x), rtol=1e-6, atol=1e-6)
    module = model.module()
    sent = module.evaluate({"input": module.as_signal(x)}, ["sn"])["sn"].tensor
    assert sent.max() >= 2 and torch.equal(sent, sent.round())
    files_give_the_same(model, x, tmp_path)


class Normed(nn.Module):
    """A batch norm and a pooling between spikes and head."""

    def __init__(self, end: Callable[[Tensor], Tensor], shrink: bool) -> None:
        super().__init__()
        torch.manual_seed(6)
        self.conv, self.bn = layers.Conv2d(2, 3, 3, padding=1), layers.BatchNorm2d(3)
        self.sn, self.flat = SpikingNeuron(NeuronSpec("if", v_threshold=0.5), 4), layers.Flatten()
        self.pool, self.fc = layers.AvgPool2d(2), nn.Linear(3 if shrink else 12, 5)
        self.shrink, self._end = shrink, end
        assert self.bn.running_mean is not None and self.bn.running_var is not None
        with torch.no_grad():
            self.bn.bias.normal_()
            self.bn.running_mean.uniform_()
            self.bn.running_var.uniform_(0.5, 2.0)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.bn(self.sn(self.conv(x)))
        normed = normed.mean((3, 4)) if self.shrink else self.flat(self.pool(normed))
        return self._end(self.fc(normed))


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("shrink", [False, True], ids=["a map", "its mean"])
def test_a_shift_in_front_of_the_head_counts_at_every_step(
    end: str, shrink: bool, tmp_path: Path
) -> None:
    over_time, reduce = ENDS[end]
    network = Normed(reduce, shrink).eval()
    x = torch.randn(4, 6, 2, 4, 4, generator=torch.Generator().manual_seed(1))
    model = from_torch(network, (2, 4, 4), 4, example=x, input_kind="values")
    assert model.graph.readout.over_time == over_time
    torch.testing.assert_close(model.module()(x), scores_of(network, x), rtol=1e-5, atol=1e-5)
    files_give_the_same(model, x, tmp_path)
