"""What stops a trace is named as its cause, in no words of torch.fx, with what to do."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

from soul_deploy import from_torch
from soul_deploy.base.errors import UnsupportedGraphError
from soul_deploy.cli.main import root
from soul_deploy.ir import NeuronSpec
from soul_deploy.nn import layers
from soul_deploy.nn.neuron import SpikingNeuron

T, SHAPE = 3, (2, 4, 4)
Forward = Callable[["Net", Any], Any]


class Net(nn.Module):
    def __init__(self, forward: Forward | None = None) -> None:
        super().__init__()
        self.conv = layers.Conv2d(2, 4, 3, padding=1)
        self.fire = SpikingNeuron(NeuronSpec(), T)
        self.head = layers.RateReadout(4, 3)
        self.listed = [nn.Linear(4, 3)]
        self.run = forward or (lambda net, x: net.head(net.fire(net.conv(x))))

    def forward(self, x: Tensor) -> Any:
        return self.run(self, x)


def by_values(net: Net, x: Tensor) -> Tensor:
    while torch.any(x > 1):
        x = net.conv(x)
    return x


def asserted(net: Net, x: Tensor) -> Tensor:
    assert x.max() < 9
    return x


def branching(net: Net, x: Tensor) -> Tensor:
    return x if net.fire(net.conv(x)).mean() > 0.5 else -x


def as_float(net: Net, x: Tensor) -> Tensor:
    return x * float(x.mean())


def counted(net: Net, x: Tensor) -> Tensor:
    for _ in range(x.argmax()):
        x = net.conv(x)
    return x


def over_time(net: Net, x: Tensor) -> Tensor:
    return sum(net.head(step) for step in net.fire(net.conv(x)))  # type: ignore[no-any-return]


def by_index(net: Net, x: Tensor) -> Tensor:
    y = net.fire(net.conv(x))
    return sum(net.head(y[t]) for t in range(len(y)))  # type: ignore[no-any-return]


def added_up(net: Net, x: Tensor) -> Tensor:
    scores: Any = 0
    for _ in range(T):
        scores = scores + net.fire(net.conv(x))
    return scores / T  # type: ignore[no-any-return]


def taken_apart(net: Net, x: Tensor) -> Tensor:
    spikes, _membrane = net.fire(net.conv(x))
    return net.head(spikes)  # type: ignore[no-any-return]


def unpacked(net: Net, x: Tensor) -> Tensor:
    return net.head(*net.fire(net.conv(x)))  # type: ignore[no-any-return]


def passed_as_keywords(net: Net, x: Any) -> Tensor:
    return net.head(**x)  # type: ignore[no-any-return]


def kept_in_a_list(net: Net, x: Tensor) -> Tensor:
    return net.listed[0](x.mean((2, 3)))  # type: ignore[no-any-return]


def with_a_size(net: Net, x: Tensor) -> Tensor:
    return x + torch.zeros((x.size(0), 2, 4, 4))


def with_a_size_alone(net: Net, x: Tensor) -> Tensor:
    return x + torch.zeros(x.size(0), 2, 4, 4)


def with_a_size_added(net: Net, x: Tensor) -> Tensor:
    return x + x.shape[0]


def stacked_itself(net: Net, x: Tensor) -> Tensor:
    return torch.stack(x)  # type: ignore[arg-type]


def written(net: Net, x: Tensor) -> Tensor:
    print(f"{x.mean():.2f}")
    return x


def failing(net: Net, x: Tensor) -> Tensor:
    raise ValueError("takes RGB images only")


STOPPED: dict[Forward, str] = {
    by_values: r"has a condition on a tensor's values.*while torch\.any\(x > 1\)",
    asserted: r"has a condition on a tensor's values.*assert x\.max\(\) < 9",
    branching: r"has a condition on a tensor's values.*mean\(\) > 0\.5",
    as_float: r"makes a number of a tensor's values \(float\(x\), int\(x\)\).*float\(x\.mean\(\)\)",
    counted: r"makes a number of a tensor's values.*range\(x\.argmax\(\)\)",
    over_time: r"takes a tensor apart \(a loop over time or samples, or .*return sum\(",
    by_index: r"operation getitem\(fire, 0\) \(a part of a tensor; loops over time belong outside",
    added_up: r"module 'fire' is called twice \(a loop over time belongs outside the network",
    taken_apart: r"takes a tensor apart .*spikes, _membrane = ",
    unpacked: r"takes a tensor apart .*head\(\*net",
    passed_as_keywords: r"takes a tensor apart .*head\(\*\*x",
    kept_in_a_list: r"calls a module that it does not own \(kept in a list\? nn.ModuleList",
    with_a_size: r"the number of samples that are given at once \(B\) is used as a number",
    with_a_size_alone: r"number of samples, are needed as numbers .*: return x \+ torch\.zeros",
    with_a_size_added: r"'.*add.*' with a constant or a second input .*: return x \+ x\.shape",
    stacked_itself: r"operation stack\(x\) .*: return torch\.stack\(x\)",
    written: r"a tensor's values, or .* are needed as numbers .*: print\(f",
    failing: r"its forward cannot be traced: ValueError: takes RGB images only \(in the network",
}


@pytest.mark.parametrize("forward", STOPPED, ids=lambda f: f.__name__)
def test_the_cause_and_its_line_are_named(forward: Forward) -> None:
    with pytest.raises(UnsupportedGraphError, match=STOPPED[forward]) as caught:
        from_torch(Net(forward), SHAPE, T)
    text = str(caught.value).split("; supported: ")[0]
    assert "test_messages.py line" in text
    assert not any(word in text for word in ("Proxy", "_Symbol", "symbolic", "torch.fx"))


def test_a_network_inside_a_wrapper_is_asked_for() -> None:
    wrapped = nn.DataParallel(Net())
    text = r"the network is wrapped in DataParallel; pass network\.module, the network inside"
    with pytest.raises(UnsupportedGraphError, match=text):
        from_torch(wrapped, SHAPE, T)
    x = torch.randn(2, *SHAPE) * 9
    assert from_torch(wrapped.module, SHAPE, T, example=x).graph.populations[0].name == "fire"
    text = r"module '0' is wrapped in DataParallel; put 0\.module in its place"
    with pytest.raises(UnsupportedGraphError, match=text):
        from_torch(nn.Sequential(wrapped), SHAPE, T)


def test_a_compiled_network_is_asked_for_before_compilation() -> None:
    compiled: Any = torch.compile(Net())
    text = r"the network is wrapped in OptimizedModule; pass network\._orig_mod"
    with pytest.raises(UnsupportedGraphError, match=text):
        from_torch(compiled, SHAPE, T)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        scripted = nn.Sequential(torch.jit.script(nn.Linear(2, 2)))
    with pytest.raises(UnsupportedGraphError, match="module '0' is TorchScript"):
        from_torch(scripted, SHAPE, T)


SNNTORCH = """
import snntorch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.lif = nn.Conv2d(2, 4, 3), snntorch.Alpha(alpha=0.9, beta=0.8)

    def forward(self, x):
        state = self.lif.init_alpha()
        for step in range(3):
            spikes, *state = self.lif(self.conv(x), *state)
        return spikes.mean((2, 3))
"""


def test_other_neurons_of_snntorch_are_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("snntorch", reason="the extra interop installs it")
    (tmp_path / "leaky_net.py").write_text(SNNTORCH)
    monkeypatch.chdir(tmp_path)
    words = "import torch leaky_net:Net --input_shape 2 4 4 --classes 4 -T 3 -o net.safetensors"
    result = CliRunner().invoke(root, words.split())
    said = " ".join(result.stderr.split())
    assert result.exit_code == 1 and not (tmp_path / "net.safetensors").exists()
    assert "module 'lif' (Alpha) of snntorch is not supported" in said
    assert "supported of its modules: Leaky, Lapicque, Synaptic, RLeaky, RSynaptic" in said
