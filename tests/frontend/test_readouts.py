"""What people do with the steps in forward, and around a network that runs one step at a call."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import soul_deploy
from soul_deploy.base.errors import UnsupportedGraphError, UsageError
from soul_deploy.base.reduction import OVER_TIME, OverTime
from soul_deploy.frontend.from_torch import trace
from soul_deploy.ir import NeuronSpec
from soul_deploy.nn import layers
from soul_deploy.nn.neuron import SpikingNeuron

T, SHAPE = 4, (2, 4, 4)
Forward = Callable[["Net", Tensor], Tensor]


class Net(nn.Module):
    """Sequences (T, B, 2, 4, 4) to the spikes of 3·16 neurons, and heads for them."""

    def __init__(self, forward: Forward) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.conv = layers.Conv2d(2, 3, 3, padding=1)
        self.sn = SpikingNeuron(NeuronSpec("if", v_threshold=0.5), T)
        self.flat = layers.Flatten()
        self.fc = nn.Linear(48, 5)
        self.plain = nn.Linear(48, 5, bias=False)
        self.out = SpikingNeuron(NeuronSpec("lif", v_threshold=0.1), T)
        self.pool = layers.MaxPool2d(2)
        self.rate = layers.RateReadout(3, 5)
        self._forward = forward

    def spikes(self, x: Tensor) -> Tensor:
        fired: Tensor = self.flat(self.sn(self.conv(x)))
        return fired

    def scores(self, x: Tensor) -> Tensor:
        """Of each step."""
        given: Tensor = self.fc(self.spikes(x))
        return given

    def fired(self, x: Tensor) -> Tensor:
        """Output neurons."""
        given: Tensor = self.out(self.scores(x))
        return given

    def forward(self, x: Tensor) -> Tensor:
        return self._forward(self, x)


def shown() -> Tensor:
    return torch.rand(T, 3, *SHAPE, generator=torch.Generator().manual_seed(1)) * 2 - 0.5


FORMS: dict[str, tuple[OverTime, Forward]] = {
    "scores.sum(0)": ("sum", lambda n, x: n.scores(x).sum(0)),
    "scores.sum(dim=0)": ("sum", lambda n, x: n.scores(x).sum(dim=0)),
    "torch.sum(scores, 0)": ("sum", lambda n, x: torch.sum(n.scores(x), 0)),
    "spikes.sum(0)": ("sum", lambda n, x: n.fired(x).sum(0)),
    "sum, then a head without bias": ("sum", lambda n, x: n.plain(n.spikes(x).sum(0))),
    "scores.sum(0) / T": ("mean", lambda n, x: n.scores(x).sum(0) / T),
    "spikes.sum(0).div(T)": ("mean", lambda n, x: n.fired(x).sum(0).div(T)),
    "sum / 3, then a head": ("sum", lambda n, x: n.plain(n.spikes(x).sum(0) / 3)),
    "constants around the sum": ("sum", lambda n, x: n.plain((n.spikes(x) * 0.3).sum(0) * 2)),
    "scores * 2, then sum / T": ("mean", lambda n, x: n.fc((n.spikes(x) * 2).sum(0) / T)),
    "halves, then the last step": ("last", lambda n, x: n.fc(n.spikes(x)[-1] / 2)),
    "halves, then the maximum": ("max", lambda n, x: n.fc(n.spikes(x) / 2).amax(0)),
    "sum / T, then a head": ("mean", lambda n, x: n.fc(n.spikes(x).sum(0) / T)),
    "scores.mean(0)": ("mean", lambda n, x: n.scores(x).mean(0)),
    "all steps": ("mean", lambda n, x: n.scores(x)),
    "scores[-1]": ("last", lambda n, x: n.scores(x)[-1]),
    "scores[T - 1]": ("last", lambda n, x: n.scores(x)[T - 1]),
    "scores[len(scores) - 1]": ("last", lambda n, x: (y := n.scores(x))[len(y) - 1]),
    "scores.select(0, -1)": ("last", lambda n, x: n.scores(x).select(0, -1)),
    "last, then a head": ("last", lambda n, x: n.fc(n.spikes(x)[-1])),
    "spikes[-1]": ("last", lambda n, x: n.fired(x)[-1]),
    "scores.max(0).values": ("max", lambda n, x: n.scores(x).max(0).values),
    "scores.max(0)[0]": ("max", lambda n, x: n.scores(x).max(0)[0]),
    "torch.max(scores, dim=0)[0]": ("max", lambda n, x: torch.max(n.scores(x), dim=0)[0]),
    "scores.amax(0)": ("max", lambda n, x: n.scores(x).amax(0)),
    "scores.amax(dim=(0,))": ("max", lambda n, x: n.scores(x).amax(dim=(0,))),
    "spikes.amax(0)": ("max", lambda n, x: n.fired(x).amax(0)),
    "mean over space, then max": ("max", lambda n, x: n.sn(n.conv(x)).mean((3, 4)).amax(0)),
}


@pytest.mark.parametrize("name", FORMS)
def test_what_forward_does_with_the_steps_is_read(name: str) -> None:
    over_time, forward = FORMS[name]
    network, x = Net(forward).eval(), shown()
    model = soul_deploy.from_torch(network, SHAPE, T, example=x)
    assert model.graph.readout.over_time == over_time
    with torch.no_grad():
        expected = network(x)
    expected = expected.mean(0) if expected.dim() == 3 else expected
    assert expected.std() > 0.01
    torch.testing.assert_close(model.module()(x), expected, rtol=1e-6, atol=1e-6)


REFUSED: dict[str, tuple[Forward, str]] = {
    "a head behind the maximum": (
        lambda n, x: n.fc(n.spikes(x).amax(0)),
        r"module 'fc' \(Linear\) after the maximum over time \(put it in front of the maximum\)",
    ),
    "a mean behind the maximum": (
        lambda n, x: n.sn(n.conv(x)).amax(0).mean((2, 3)),
        "the mean over space after the maximum over time",
    ),
    "a bias behind the sum": (
        lambda n, x: n.fc(n.spikes(x).sum(0)),
        r"module 'fc' \(Linear\) after the sum over time with a bias, .*make the sum a mean",
    ),
    "a pooling behind the sum": (
        lambda n, x: n.flat(n.pool(n.sn(n.conv(x)).sum(0))),
        r"module 'pool' \(MaxPool2d\) after the sum over time",
    ),
    "neurons behind the last step": (
        lambda n, x: n.out(n.fc(n.spikes(x)[-1])),
        "neuron 'out' after the last step",
    ),
    "a readout behind the sum": (
        lambda n, x: n.rate(n.sn(n.conv(x)).sum(0)),
        r"module 'rate' \(RateReadout\) after the sum over time",
    ),
    "another step": (
        lambda n, x: n.scores(x)[1],
        r"operation getitem\(fc, 1\) .*of the steps only the last can be taken",
    ),
    "a sum over space": (
        lambda n, x: n.sn(n.conv(x)).sum((0, 3, 4)),
        r"operation sum\(sn, \(0, 3, 4\)\) \(over other axes than time alone\)",
    ),
    "where the maximum is": (
        lambda n, x: n.scores(x).max(0).indices,
        r"max without .values, and the places of the maximum, is not supported",
    ),
    "values and places": (
        lambda n, x: n.scores(x).max(0),  # type: ignore[dict-item,return-value]
        r"max without .values, and the places of the maximum, is not supported",
    ),
    "the smallest": (
        lambda n, x: n.scores(x).amax(0) * -1,
        "a multiplication by a number below 0 after the maximum over time",
    ),
    "sums added": (
        lambda n, x: (y := n.scores(x)).sum(0) + y[-1],
        "'add' of values averaged, summed or picked over time",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_another_network_is_refused(name: str) -> None:
    forward, text = REFUSED[name]
    with pytest.raises(UnsupportedGraphError, match=text) as caught:
        trace(Net(forward), SHAPE, T)
    assert "test_readouts.py line" in str(caught.value)


def test_scores_divided_by_something_else_are_refused() -> None:
    with pytest.raises(UnsupportedGraphError, match="scores from 'scale', which holds no spikes"):
        trace(Net(lambda n, x: n.scores(x).sum(0) / 3), SHAPE, T)


def test_the_last_step_is_a_view() -> None:
    def forward(net: Net, x: Tensor) -> Tensor:
        given = net.scores(x)
        fired: Tensor = net.out(given)
        last = fired[-1]
        fired += given
        return last

    with pytest.raises(UnsupportedGraphError, match=r"operation in place \(iadd\)"):
        trace(Net(forward), SHAPE, T)


@pytest.mark.parametrize("over_time", OVER_TIME)
def test_the_caller_says_what_becomes_of_all_steps(over_time: OverTime) -> None:
    network, x = Net(lambda n, x: n.scores(x)).eval(), shown()
    model = soul_deploy.from_torch(network, SHAPE, T, example=x, over_time=over_time)
    with torch.no_grad():
        steps = network(x)
    expected = {
        "mean": steps.mean(0),
        "sum": steps.sum(0),
        "last": steps[-1],
        "max": steps.amax(0),
    }[over_time]
    torch.testing.assert_close(model.module()(x), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(model.module().per_step(x), steps, rtol=1e-6, atol=1e-6)


def test_the_caller_cannot_say_other_than_forward() -> None:
    network, x = Net(lambda n, x: n.scores(x).sum(0)).eval(), shown()
    same = soul_deploy.from_torch(network, SHAPE, T, example=x, over_time="sum")
    assert same.graph.readout.over_time == "sum"
    with pytest.raises(UsageError, match="over_time max given, but the network's forward gives th"):
        soul_deploy.from_torch(network, SHAPE, T, example=x, over_time="max")
    rated = nn.Sequential(network.conv, network.sn, network.rate)
    with pytest.raises(UsageError, match="forward gives the mean over time; leave over_time out"):
        soul_deploy.from_torch(rated, SHAPE, T, example=x, over_time="last")
    with pytest.raises(UsageError, match="over_time 'median' given; valid: mean, sum, last, max"):
        soul_deploy.from_torch(network, SHAPE, T, example=x, over_time="median")  # type: ignore[arg-type]


@pytest.mark.parametrize("over_time", OVER_TIME)
@pytest.mark.parametrize("kind", ["rate", "vote"])
def test_our_own_readouts_say_it(kind: str, over_time: OverTime) -> None:
    net, x = Net(lambda n, x: x), shown()
    head: nn.Module = layers.RateReadout(3, 5, over_time=over_time)
    body: list[nn.Module] = [net.conv, net.sn]
    if kind == "vote":
        body += [net.flat]
        head = layers.VoteReadout(6, 8, over_time=over_time)
    network = nn.Sequential(*body, head).eval()
    model = soul_deploy.from_torch(network, SHAPE, T, example=x)
    assert model.graph.readout.over_time == over_time
    with torch.no_grad():
        spikes = nn.Sequential(*body)(x)
        if kind == "rate":  # of one step all four are the same
            steps = torch.stack([head(step[None]) for step in spikes.mean((3, 4))])
        else:
            steps = spikes.reshape(T, 3, 6, 8).mean(3)
        expected = ENDS[over_time](steps)
        torch.testing.assert_close(network(x), expected, rtol=1e-6, atol=1e-6)
    assert torch.equal(model.module()(x), network(x))
    with pytest.raises(UsageError, match="over_time 'median'"):
        layers.VoteReadout(3, 2, over_time="median")  # type: ignore[arg-type]


def spikingjelly(mode: str) -> Any:
    pytest.importorskip("spikingjelly", reason="`make` installs SpikingJelly for these tests")
    from spikingjelly.activation_based import functional, layer, neuron

    torch.manual_seed(5)
    made = nn.Sequential(
        layer.Conv2d(2, 4, 3, padding=1),
        neuron.IFNode(v_threshold=0.3),
        layer.Flatten(),
        layer.Linear(64, 5),
        neuron.LIFNode(tau=2.0, v_threshold=0.2),
    ).eval()
    functional.set_step_mode(made, mode)
    return made, functional.reset_net


class InForward(nn.Module):
    """SpikingJelly's modules in step mode m, with what becomes of the steps behind them."""

    def __init__(self, body: nn.Module, forward: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.body, self._forward = body, forward

    def forward(self, x: Tensor) -> Tensor:
        return self._forward(self.body(x))


ENDS: dict[OverTime, Callable[[Tensor], Tensor]] = {
    "mean": lambda out: out.mean(0),
    "sum": lambda out: out.sum(0),
    "last": lambda out: out[-1],
    "max": lambda out: out.max(0).values,
}


@pytest.mark.parametrize("over_time", OVER_TIME)
def test_spikingjelly_in_step_mode_m(over_time: OverTime) -> None:
    body, reset = spikingjelly("m")
    network, x = InForward(body, ENDS[over_time]), shown()
    model = soul_deploy.from_torch(network, SHAPE, T, example=x)
    assert model.graph.readout.over_time == over_time
    with torch.no_grad():
        expected = network(x)
    reset(body)
    assert torch.equal(model.module()(x), expected)
    assert expected.mean() > 0 and expected.std() > 0


@pytest.mark.parametrize("over_time", OVER_TIME)
def test_spikingjelly_in_step_mode_s(over_time: OverTime) -> None:
    """The loop over steps is the caller's, who says what it makes of them."""
    network, reset = spikingjelly("s")
    x = shown()
    model = soul_deploy.from_torch(network, SHAPE, T, example=x, over_time=over_time)
    out, best = torch.zeros(3, 5), torch.zeros(3, 5)
    with torch.no_grad():
        for frame in x:
            last = network(frame)
            out += last
            best = torch.maximum(best, last)
    reset(network)
    expected = {"mean": out / T, "sum": out, "last": last, "max": best}[over_time]
    assert torch.equal(model.module()(x), expected)
    assert expected.mean() > 0 and expected.std() > 0
