"""Networks whose class scores are membranes, and those that return several values."""

import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from golden import golden, golden_names
from leaky_nets import Net, T, first, loop, settled, snn
from torch import Tensor, nn

from soul_deploy import from_torch
from soul_deploy.base.errors import NetworkWarning, UnsupportedGraphError, UsageError
from soul_deploy.base.reduction import OverTime
from soul_deploy.model.model import Model
from soul_deploy.nn.graph_module import GraphModule
from soul_deploy.nn.neuron import SpikingNeuron

sj: Any = pytest.importorskip("spikingjelly.activation_based", reason="the extra interop")
neuron: Any = importlib.import_module("spikingjelly.activation_based.neuron")
layer: Any = importlib.import_module("spikingjelly.activation_based.layer")

DECODED: dict[Any, OverTime] = {"max-mem": "max", "mean-mem": "mean", "last_mem": "last"}
KINDS: dict[str, dict[str, Any]] = {
    "subtract": {"beta": 0.9},
    "zero": {"beta": 0.8, "reset_mechanism": "zero"},
    "zero at once": {"beta": 0.8, "reset_mechanism": "zero", "reset_delay": False},
    "none": {"beta": 0.8, "reset_mechanism": "none", "threshold": 0.5},
    "kept whole": {"beta": 1.0, "threshold": 0.5},
}


def sequential(node: Any) -> Any:
    """SpikingJelly's, of 12 inputs and 4 outputs."""
    network = nn.Sequential(layer.Linear(12, 20), neuron.LIFNode(), layer.Linear(20, 4), node)
    sj.functional.set_step_mode(network, "m")
    return settled(network, 4.0)


def frames(size: int = 12) -> Tensor:
    return torch.randn(T, 3, size, generator=torch.Generator().manual_seed(2))


def module_of(model: Model) -> GraphModule:
    return model.module()


@pytest.mark.parametrize(
    "name", golden_names("spikingjelly_2", "NonSpikingIFNode", "NonSpikingLIFNode")
)
def test_membranes_have_the_bits_of_spikingjellys(name: str) -> None:
    case = golden("spikingjelly_2", name)
    given = {key: case.fields[key] for key in ("tau", "decode") if key in case.fields}
    node = getattr(neuron, case.fields["neuron"])(**given)
    if case.fields.get("decode") == "max-abs-mem":
        with pytest.raises(UnsupportedGraphError, match=r"'3' with decode 'max-abs-mem'"):
            from_torch(sequential(node), (12,), T)
        return
    model = from_torch(sequential(node), (12,), T, example=frames())
    readout = model.graph.readout
    assert readout.neuron is not None and readout.neuron.late_reset is False
    found = SpikingNeuron(readout.neuron, len(case.input)).membranes(case.input)
    expected = case.states.get("v")
    if expected is not None:
        assert torch.equal(found, expected) and torch.equal(found, case.output)
    over_time = DECODED.get(case.fields.get("decode"), "mean")
    assert readout.over_time == over_time
    made = {"max": found.amax(0), "mean": found.mean(0), "last": found[-1]}
    assert expected is not None or torch.equal(made[over_time], case.output)


@pytest.mark.parametrize("decode", [None, "last_mem", "mean-mem", "max-mem"])
@pytest.mark.parametrize("kind", ["NonSpikingIFNode", "NonSpikingLIFNode"])
def test_spikingjellys_scores(kind: str, decode: str | None) -> None:
    network, x = sequential(getattr(neuron, kind)(decode=decode)), frames()
    before = dict(vars(network[3]))
    model = from_torch(network, (12,), T, example=x)
    assert vars(network[3]) == before, "the network is read, not changed"
    assert "untested" not in model.info.provenance
    sj.functional.reset_net(network)
    with torch.no_grad():
        own = network(x)
    if decode is None:
        torch.testing.assert_close(module_of(model).per_step(x), torch.stack(own))
        return
    torch.testing.assert_close(module_of(model)(x), own)
    assert model.graph.readout.over_time == DECODED[decode]


def stacked(way: Callable[[Tensor], Any]) -> Callable[[list[Any]], Any]:
    return lambda membranes: way(torch.stack(membranes))


WAYS: dict[str, tuple[OverTime, Callable[[list[Any]], Any]]] = {
    "m[-1]": ("last", lambda m: m[-1]),
    "stack[-1]": ("last", stacked(lambda m: m[-1])),
    "stack.mean(0)": ("mean", stacked(lambda m: m.mean(0))),
    "stack.sum(0)": ("sum", stacked(lambda m: m.sum(0))),
    "stack.sum(0) / T": ("mean", stacked(lambda m: m.sum(0) / T)),
    "stack.max(0)": ("max", stacked(lambda m: m.max(0).values)),
    "stack": ("mean", stacked(lambda m: m)),
    "m": ("mean", lambda m: m),
}


class Tutorial(nn.Module):
    """snnTorch's tutorial 5, fully connected, whose membranes make the scores; `end` of both."""

    def __init__(self, end: Callable[[list[Any], list[Any]], Any], **kind: Any) -> None:
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(40, 50), snn.Leaky(beta=0.9)
        self.fc2, self.lif2 = nn.Linear(50, 10), snn.Leaky(**kind)
        self.end = end
        settled(self)

    def forward(self, x: Tensor) -> Any:
        mem1, mem2 = self.lif1.init_leaky(), self.lif2.init_leaky()
        spikes, membranes = [], []
        for step in range(T):
            spk1, mem1 = self.lif1(self.fc1(x[step]), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            spikes.append(spk2)
            membranes.append(mem2)
        return self.end(spikes, membranes)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", KINDS)
def test_snntorchs_scores(kind: str, way: str) -> None:
    over_time, make = WAYS[way]
    network, x = Tutorial(lambda s, m: make(m), **KINDS[kind]), frames(40)
    model = from_torch(network, (40,), T, example=x)
    assert "untested" not in model.info.provenance
    readout = model.graph.readout
    assert readout.neuron is not None and readout.over_time == over_time
    with torch.no_grad():
        own = network(x)
    own = torch.stack(own) if isinstance(own, list) else own
    found = module_of(model).per_step(x) if own.dim() == 3 else module_of(model)(x)
    torch.testing.assert_close(found, own, rtol=1e-5, atol=1e-5)
    assert own.std() > 0.1


def pair(spikes: list[Any], membranes: list[Any]) -> Any:
    return torch.stack(spikes), torch.stack(membranes)


def by_name(spikes: list[Any], membranes: list[Any]) -> Any:
    return {"spk": torch.stack(spikes), "mem": torch.stack(membranes)}


@pytest.mark.parametrize(
    ("end", "output", "membrane"),
    [
        *((pair, 0, False), (pair, 1, True), (pair, -1, True), (pair, None, False)),
        *((by_name, "spk", False), (by_name, "mem", True)),
    ],
)
def test_one_of_several_values_is_chosen(
    end: Callable[..., Any], output: Any, membrane: bool, recwarn: pytest.WarningsRecorder
) -> None:
    network, x = Tutorial(end, beta=0.9), frames(40)
    model = from_torch(network, (40,), T, example=x, output=output, over_time="sum")
    assert (model.graph.readout.neuron is not None) == membrane
    told = [str(item.message) for item in recwarn if item.category is NetworkWarning]
    assert told == ([LEFT_OUT] if output is None else [])
    with torch.no_grad():
        own = network(x)
    own = own[{None: 0}.get(output, output)]
    torch.testing.assert_close(module_of(model)(x), own.sum(0), rtol=1e-5, atol=1e-5)


LEFT_OUT = (
    "class scores are the spikes that forward returns; its membranes are left out (output= takes "
    "another of its values)"
)


class Heads(nn.Module):
    """Two heads behind one neuron of SpikingJelly's; `end` of both."""

    def __init__(self, end: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.fc, self.lif = layer.Linear(12, 20), neuron.LIFNode()
        self.a, self.b = layer.Linear(20, 4), layer.Linear(20, 3)
        self.end = end
        sj.functional.set_step_mode(self, "m")
        settled(self, 4.0)

    def forward(self, x: Tensor) -> Any:
        spikes = self.lif(self.fc(x))
        return self.end(self.a(spikes).mean(0), self.b(spikes).mean(0))


def test_one_of_two_heads_is_chosen_and_the_other_left_out() -> None:
    x = frames()
    for end, output, place in (
        (lambda a, b: (a, b), 0, 0),
        (lambda a, b: [a, b], -1, 1),
        (lambda a, b: {"left": a, "right": b}, "right", "right"),
    ):
        network = Heads(end)
        model = from_torch(network, (12,), T, example=x, output=output)
        head = "b" if place in (1, "right") else "a"
        assert [n.name for n in model.graph.nodes] == ["input", "fc", "lif", head]
        sj.functional.reset_net(network)
        torch.testing.assert_close(module_of(model)(x), network(x)[place])


@pytest.mark.parametrize(
    ("network", "output", "text"),
    [
        (Heads(lambda a, b: (a, b)), None, r"several values \(0, 1; say with output= which"),
        (Heads(lambda a, b: {"l": a, "r": b}), None, r"several values \('l', 'r'; say with"),
        (
            Net(loop(lambda n, x, t, s: (first(n, n.fc1(x), s), s["mem1"], t)[1])),
            None,
            "class scores from 'input', which holds no spikes",
        ),
        (
            Tutorial(lambda s, m: torch.stack(m).mean(0) * 2, beta=0.9),
            None,
            "the membrane of 'lif2' outside its neuron",
        ),
        (Tutorial(lambda s, m: sum(m), beta=0.9), None, "'add' of the membrane of 'lif2'"),
        (Tutorial(lambda s, m: m[2], beta=0.9), None, "returns 'lif2' of step 3 alone"),
        (
            nn.Sequential(layer.Linear(12, 4), neuron.NonSpikingIFNode("max-mem"), nn.ReLU()),
            None,
            r"module '2' \(ReLU\)",
        ),
        (
            nn.Sequential(
                *(layer.Linear(12, 4), neuron.LIFNode(), layer.Linear(4, 4)),
                *(neuron.NonSpikingIFNode("max-mem"), layer.Linear(4, 4)),
            ),
            None,
            "the membrane of '3' outside its neuron",
        ),
        (
            nn.Sequential(
                *(layer.Conv2d(1, 4, 3), neuron.LIFNode(), layer.Flatten()),
                neuron.NonSpikingIFNode("max-mem"),
            ),
            None,
            "the membrane of '3' behind '2'; a linear layer without batch norm charges",
        ),
    ],
)
def test_what_cannot_be_scores_is_refused(network: Any, output: Any, text: str) -> None:
    if not isinstance(network, Tutorial | Net):
        sj.functional.set_step_mode(network, "m")
    maps = isinstance(network, nn.Sequential) and len(network) == 4
    sizes = {Tutorial: 40, Net: 20}
    shape = (1, 5, 5) if maps else (sizes.get(type(network), 12),)
    with pytest.raises(UnsupportedGraphError, match=text):
        from_torch(network, shape, T, output=output)


@pytest.mark.parametrize(
    ("network", "output", "text"),
    [
        (Tutorial(pair, beta=0.9), 2, "output 2 given; the network's forward returns 0, 1"),
        (Tutorial(pair, beta=0.9), "mem", "output 'mem' given; .* returns 0, 1"),
        (Tutorial(by_name, beta=0.9), 0, "output 0 given; .* returns 'spk', 'mem'"),
        (Tutorial(lambda s, m: m[-1], beta=0.9), 0, "returns one value; leave it out"),
        (Heads(lambda a, b: a), 0, "returns one value; leave it out"),
    ],
)
def test_an_output_that_is_not_there_is_refused(network: Any, output: Any, text: str) -> None:
    with pytest.raises(UsageError, match=text):
        from_torch(network, (40,) if isinstance(network, Tutorial) else (12,), T, output=output)


def test_a_hidden_membrane_is_read_step_by_step() -> None:
    """`output=True` of a last Leaky: (spikes, membrane) at each call."""
    lif: Any = snn.Leaky
    network = nn.Sequential(
        *(nn.Linear(12, 20), lif(beta=0.9, init_hidden=True), nn.Linear(20, 4)),
        lif(beta=0.7, init_hidden=True, output=True, reset_mechanism="none"),
    )
    settled(network)
    x = frames()
    model = from_torch(network, (12,), T, example=x, output=1, over_time="max")
    with torch.no_grad():
        own = torch.stack([network(frame)[1] for frame in x])
    torch.testing.assert_close(module_of(model)(x), own.amax(0), rtol=1e-5, atol=1e-5)
