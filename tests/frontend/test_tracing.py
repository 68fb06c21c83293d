"""Networks in plain PyTorch: what is understood, and what is refused in which words."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from soul_deploy import from_torch
from soul_deploy.base.errors import UnsupportedGraphError, UsageError, VerificationError
from soul_deploy.frontend import from_torch as fromtorch
from soul_deploy.frontend.from_torch import trace
from soul_deploy.frontend.side_by_side import Trace, TracedRun, difference
from soul_deploy.frontend.tracer import SUPPORTED
from soul_deploy.ir import NeuronSpec
from soul_deploy.nn import layers
from soul_deploy.nn.layers import RateReadout
from soul_deploy.nn.neuron import SpikingNeuron

T = 3
Forward = Callable[["Net", Tensor], Tensor]


class Net(nn.Module):
    """Two spiking layers with a forward of the test's own."""

    def __init__(self, forward: Forward) -> None:
        super().__init__()
        self.conv = layers.Conv2d(2, 4, 3, padding=1)
        self.sn1 = SpikingNeuron(NeuronSpec(), T)
        self.conv2 = layers.Conv2d(4, 4, 3, padding=1)
        self.sn2 = SpikingNeuron(NeuronSpec("if", v_reset=None), T)
        self.pool = layers.AvgPool2d(2)
        self.fc = nn.Linear(4, 3)
        self.wide = nn.Linear(64, 3)
        self.norm = nn.GroupNorm(2, 4)
        self.drop = nn.Dropout(0.5)
        self.rate = RateReadout(4, 3)
        self.bn = layers.BatchNorm2d(4)
        self.calls = 0
        self.run = forward
        with torch.no_grad():
            for conv in (self.conv, self.conv2):
                conv.weight.mul_(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)

    def spikes(self, x: Tensor) -> Tensor:
        """(T, B, 4, 4, 4)."""
        hidden = self.sn1(self.conv(x))
        found: Tensor = self.sn2(self.conv2(hidden))
        return found


def space_then_time(net: Net, x: Tensor) -> Tensor:
    return net.fc(net.spikes(x).mean(dim=(3, 4)).mean(0))  # type: ignore[no-any-return]


def time_then_space(net: Net, x: Tensor) -> Tensor:
    rates = torch.mean(net.spikes(x), 0)
    return net.fc(torch.flatten(F.adaptive_avg_pool2d(rates, 1), 1))  # type: ignore[no-any-return]


def both_at_once(net: Net, x: Tensor) -> Tensor:
    return net.fc(net.spikes(x).mean((0, -2, -1)))  # type: ignore[no-any-return]


def wide_by_view(net: Net, x: Tensor) -> Tensor:
    spikes = net.drop(net.spikes(x))
    return net.wide(spikes.view(spikes.shape[0], spikes.size(1), -1)).mean(0)  # type: ignore[no-any-return]


def wide_per_step(net: Net, x: Tensor) -> Tensor:
    return net.wide(net.spikes(x).flatten(2))  # type: ignore[no-any-return]


def folded_and_back(net: Net, x: Tensor) -> Tensor:
    spikes = net.spikes(x)
    steps, batch, c, h, w = spikes.shape
    pooled = F.adaptive_avg_pool2d(spikes.flatten(0, 1), (1, 1))
    again = net.fc(pooled.flatten(1)).view(steps, batch, -1)
    merged = F.dropout(spikes.reshape(steps * batch, c, h, w), 0.5, training=net.training)
    assert isinstance(merged, Tensor | torch.fx.Proxy)
    return again.mean(0)  # type: ignore[no-any-return]


def residual(net: Net, x: Tensor) -> Tensor:
    hidden = net.sn1(net.conv(x))
    joined = torch.add(hidden, net.sn2(net.conv2(hidden)))
    return net.fc(net.pool(joined).mean((3, 4)))  # type: ignore[no-any-return]


def inverse(net: Net, x: Tensor) -> Tensor:
    hidden = net.sn1(net.conv(x))
    joined = (1.0 - net.sn2(net.conv2(hidden))) * hidden
    return net.fc(joined.mean([3, 4], keepdim=True).flatten(2))  # type: ignore[no-any-return]


def unequal_windows(net: Net, x: Tensor) -> Tensor:
    thirds = F.adaptive_avg_pool2d(net.spikes(x).mean(0), 3)
    return net.fc(thirds.mean((2, 3)))  # type: ignore[no-any-return]


def spikes_alone(net: Net, x: Tensor) -> Tensor:
    return net.spikes(x).mean((3, 4)).mean(0)


def not_called(net: Net, x: Tensor) -> Tensor:
    net.norm(net.spikes(x))
    return net.fc(net.spikes(x).mean((0, 3, 4)))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "forward",
    [
        *(space_then_time, time_then_space, both_at_once, wide_by_view, wide_per_step),
        *(folded_and_back, residual, inverse, spikes_alone, unequal_windows),
    ],
    ids=lambda f: f.__name__,
)
def test_functions_in_forward(forward: Forward) -> None:
    torch.manual_seed(0)
    network = Net(forward).eval()
    x = torch.randn(2, 2, 4, 4) * 2
    model = from_torch(network, (2, 4, 4), T, example=x)
    with torch.no_grad():
        expected = network(x)
    if expected.dim() == 3:
        expected = expected.mean(0)
    assert expected.std() > 0.01
    torch.testing.assert_close(model.module().record(x).logits, expected, rtol=0, atol=1e-6)
    assert set(model.state) <= set(network.state_dict())
    for name, weight in model.state.items():
        assert torch.equal(torch.from_numpy(weight), network.state_dict()[name])


def test_a_global_average_in_front_of_the_head_becomes_its_sum() -> None:
    for forward in (space_then_time, time_then_space, both_at_once):
        graph = trace(Net(forward), (2, 4, 4), T)
        assert graph.readout.inputs == ("sn2",) and graph.readout.name == "fc"
    assert trace(Net(residual), (2, 4, 4), T).readout.inputs == ("pool",)


def test_a_pooling_that_leaves_a_border_out_is_no_global_average() -> None:
    def cropped(net: Net, x: Tensor) -> Tensor:
        net.pool.kernel_size = 3
        return net.fc(net.pool(net.spikes(x)).flatten(2))  # type: ignore[no-any-return]

    torch.manual_seed(0)
    x = torch.randn(2, 2, 4, 4) * 2
    graph = from_torch(Net(cropped), (2, 4, 4), T, example=x).graph
    assert graph.readout.inputs == ("pool",)


def _loop(net: Net, x: Tensor) -> Tensor:
    for _ in range(2):
        x = net.sn1(x)
    return x


def _branch(net: Net, x: Tensor) -> Tensor:
    spikes = net.spikes(x)
    if spikes.sum() > 0:
        spikes = spikes * 2
    return spikes


REFUSED: dict[str, tuple[Forward, str]] = {
    "control flow": (
        _branch,
        r"Net: its forward cannot be traced: it has a condition on a tensor's values; only shapes "
        r"can be asked for \(in the network itself, test_tracing.py line \d+: "
        r"if spikes.sum\(\) > 0",
    ),
    "unknown module": (
        lambda n, x: n.norm(n.spikes(x).mean(0)),
        r"module 'norm' \(GroupNorm\) is not supported",
    ),
    "loop": (_loop, r"module 'sn1' is called twice \(a loop over time belongs outside"),
    "unknown function": (
        lambda n, x: torch.relu(n.spikes(x)),
        r"operation relu is not supported \(in the network itself, test_tracing.py line \d+: "
        r"lambda n, x: torch.relu\(n.spikes\(x\)\)",
    ),
    "constant": (lambda n, x: n.spikes(x + 1), r"'.*add.*' with a constant or a second input"),
    "step taken out": (lambda n, x: n.spikes(x)[0], r"operation getitem\(sn2, 0\)"),
    "sum over channels": (lambda n, x: n.spikes(x).sum(2), "operation sum"),
    "the largest of two": (lambda n, x: torch.max(s := n.spikes(x), s), "operation max"),
    "a list of steps": (lambda n, x: n.spikes(x).unbind(-1)[0], "operation unbind"),
    "batch flattened": (
        lambda n, x: n.spikes(x).flatten(1),
        r"flattening axes 1 to 4 of \(T, B, 4, 4, 4\)",
    ),
    "neurons on folded time": (
        lambda n, x: n.sn2(n.conv2(n.sn1(n.conv(x)).flatten(0, 1))),
        r"neuron 'sn2' with time folded into the batch",
    ),
    "neurons behind the mean": (
        lambda n, x: n.sn2(n.conv2(n.sn1(n.conv(x)).mean(0))),
        r"neuron 'sn2' after the mean over time",
    ),
    "pooling behind the mean": (
        lambda n, x: F.adaptive_avg_pool2d(layers.MaxPool2d(2)(n.spikes(x).mean(0)), 1),
        "its forward cannot be traced",
    ),
    "the readout behind the mean": (
        lambda n, x: n.rate(n.spikes(x).mean(0)),
        r"module 'rate' \(RateReadout\) after the mean over time",
    ),
    "batch norm behind the mean": (
        lambda n, x: n.bn(n.spikes(x).mean(0)),
        "batch norm 'bn' after the mean over time",
    ),
    "a current beside its batch norm": (
        lambda n, x: n.sn1(n.bn(y := n.conv(x)) + y).mean((0, 3, 4)),
        "batch norm 'bn' behind a layer whose output something else reads too",
    ),
    "another subtraction": (lambda n, x: (s := n.spikes(x)) * (2 - s), r"operation sub\(2, sn2\)"),
    "spikes subtracted": (lambda n, x: (s := n.spikes(x)) - s, r"operation sub\(sn2, sn2\)"),
    "an addition behind the mean": (
        lambda n, x: n.spikes(x).mean(0) + n.spikes(x).mean(0),
        r"is called twice",
    ),
    "a rate and a spike": (
        lambda n, x: (s := n.spikes(x)) + s.mean(0),
        r"'add' of values averaged, summed or picked over time, or inverted",
    ),
    "a view that mixes axes": (
        lambda n, x: n.spikes(x).view(3, 2, 8, 32),
        r"operation view\(sn2, 3, 2, 8, 32\)",
    ),
    "a mean over channels": (lambda n, x: n.spikes(x).mean(2), r"operation mean\(sn2, 2\)"),
    "a second input": (lambda n, x: n.fc(n.spikes(x), x), "module 'fc' with 2 inputs"),
    "a current as output": (
        lambda n, x: n.conv(x).mean((2, 3)),
        r"class scores from 'conv', which holds no spikes,",
    ),
    "half an iand": (lambda n, x: 1 - n.spikes(x), "1 - x outside x"),
    "two outputs": (
        lambda n, x: (n.spikes(x), x),  # type: ignore[dict-item,return-value]
        "a forward that returns several values",
    ),
    "shape": (lambda n, x: n.fc(n.spikes(x).flatten(2)), r"fc: input \(64,\), but the layer needs"),
    "dropout": (
        lambda n, x: F.dropout(n.spikes(x), training=True),
        "dropout that is on in evaluation",
    ),
    "repeated": (
        lambda n, x: n.spikes(x.unsqueeze(0).repeat(5, 1, 1, 1, 1)),
        "an image repeated 5 times with time_steps = 3",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_graph_cannot_hold_is_refused(name: str) -> None:
    forward, text = REFUSED[name]
    with pytest.raises(UnsupportedGraphError, match=text) as caught:
        trace(Net(forward), (2, 4, 4), T)
    if name != "shape":
        assert str(caught.value).endswith(SUPPORTED)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = layers.Conv2d(2, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.conv(x))


def test_the_module_and_the_line_are_named() -> None:
    network = nn.Sequential(nn.Sequential(Block()), RateReadout(2, 2))
    found = r"operation sigmoid is not supported \(in module '0.0', test_tracing.py line \d+: "
    with pytest.raises(UnsupportedGraphError, match=found + "return torch.sigmoid"):
        trace(network, (2, 4, 4), T)


class Failing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if float(x.sum()) > 0 else -x


def test_a_forward_that_fails_inside_is_named() -> None:
    with pytest.raises(
        UnsupportedGraphError, match=r"in module '1', test_tracing.py line \d+: ret"
    ):
        trace(nn.Sequential(nn.Identity(), Failing()), (2, 4, 4), T)


def chain() -> nn.Sequential:
    return nn.Sequential(
        layers.Conv2d(2, 4, 3, padding=1), SpikingNeuron(NeuronSpec(), T), RateReadout(4, 3)
    )


def test_weights_behind_hooks_and_parametrisations_are_refused() -> None:
    hooked, normed, watched = chain(), chain(), chain()
    prune.l1_unstructured(hooked[0], "weight", 0.5)  # type: ignore[no-untyped-call]
    parametrizations.weight_norm(hooked[2])
    with pytest.raises(UnsupportedGraphError, match="module '0' has forward hooks"):
        trace(hooked, (2, 4, 4), T)
    parametrizations.weight_norm(normed[0])
    with pytest.raises(UnsupportedGraphError, match="module '0' has parametrised weights"):
        trace(normed, (2, 4, 4), T)
    watched[1].register_forward_hook(lambda *_: None)
    with pytest.raises(UnsupportedGraphError, match="module '1' has forward hooks"):
        trace(watched, (2, 4, 4), T)


class Doubled(nn.BatchNorm2d):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


def test_a_subclass_is_not_taken_for_its_parent() -> None:
    network = nn.Sequential(nn.Conv2d(2, 4, 1), Doubled(4), SpikingNeuron(NeuronSpec(), T))
    with pytest.raises(UnsupportedGraphError, match=r"module '0.1' \(Doubled\) is not"):
        trace(nn.Sequential(network, RateReadout(4, 2)), (2, 4, 4), T)


def test_a_wrong_trace_is_noticed() -> None:
    def moody(net: Net, x: Tensor) -> Tensor:
        net.calls += 1
        return net.fc((net.spikes(x) if net.calls == 1 else net.sn1(net.conv(x))).mean((0, 3, 4)))  # type: ignore[no-any-return]

    torch.manual_seed(0)
    with pytest.raises(VerificationError, match="Net: its graph does not compute what it computes"):
        from_torch(Net(moody), (2, 4, 4), T, example=torch.randn(2, 2, 4, 4) * 3)


def test_rounding_alone_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    """In float64 the difference is far below that of float32, so it is no wrong graph."""
    torch.manual_seed(0)
    network, x = Net(time_then_space), torch.randn(4, 2, 4, 4) * 3
    monkeypatch.setattr(fromtorch, "TOLERANCE", 1e-14)
    with pytest.warns(UserWarning, match="the graph is the same in float64; in float32 the larg"):
        from_torch(network, (2, 4, 4), T, example=x)


def run_of(scores: float, current: float, fired: bool = True) -> TracedRun:
    """One population of one neuron, one class."""
    of_neuron = torch.full((1, 1, 1), current)
    trace = Trace(of_neuron, of_neuron / 2, torch.full((1, 1, 1), fired))
    return TracedRun({"n": trace}, torch.full((1, 1), scores))


@pytest.mark.parametrize(
    ("scores", "off", "differs"),
    [
        (1000.0, 0.008, False),  # relative to large scores
        (1000.0, 0.02, True),
        (0.001, 8e-6, False),  # small ones are compared as if the largest were 1
        (0.001, 2e-5, True),
        (-1000.0, 0.02, True),
        (1000.0, float("nan"), True),
    ],
)
def test_scores_are_compared_at_their_size_and_small_ones_at_1(
    scores: float, off: float, differs: bool
) -> None:
    found = difference(run_of(scores, 1.0), run_of(scores + off, 1.0), {"n": 1.0}, 1e-5)
    assert found.of_outputs is found.any is differs


@pytest.mark.parametrize(
    ("current", "off", "differs"),
    [
        (100.0, 0.0008, False),
        (100.0, 0.003, True),
        (-100.0, -0.003, True),
        (1e-5, 1.5e-8, False),  # a thousandth of the threshold, 2, is the smallest measure
        (1e-5, 5e-8, True),
    ],
)
def test_currents_are_compared_at_their_size_and_small_ones_at_the_threshold(
    current: float, off: float, differs: bool
) -> None:
    found = difference(run_of(1.0, current), run_of(1.0, current + off), {"n": 2.0}, 1e-5)
    assert found.any is differs and not found.of_outputs
    assert list(found.currents) == (["n"] if differs else [])
    assert list(found.membranes) == (["n"] if differs else [])
    other = TracedRun(run_of(1.0, 1.0).populations, torch.ones(1, 2))
    assert difference(run_of(1.0, 1.0), other, {"n": 2.0}, 1e-5).logits == float("inf")


def test_a_silent_layer_is_warned_about() -> None:
    network = chain()
    with pytest.warns(UserWarning, match="1 did not fire on the example"):
        from_torch(network, (2, 4, 4), T, example=torch.zeros(1, 2, 4, 4))


def test_weights_that_are_not_float32_are_refused() -> None:
    with pytest.raises(UsageError, match=r"weight 0.weight is torch.float64; .* float32"):
        from_torch(chain().double(), (2, 4, 4), T)
    broken = chain()
    nn.init.constant_(broken[0].weight, torch.nan)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"weight 0.weight holds values that are not finite"):
        from_torch(broken, (2, 4, 4), T)


def test_the_weights_are_copies() -> None:
    torch.manual_seed(0)
    network = chain()
    model = from_torch(network, (2, 4, 4), T, example=torch.randn(2, 2, 4, 4) * 3)
    before = model.state["0.weight"].copy()
    nn.init.zeros_(network[0].weight)  # type: ignore[arg-type]
    assert (model.state["0.weight"] == before).all() and before.any()
    assert model.info.provenance["model"] == "torch.nn.modules.container.Sequential"
