"""--over_time and --outputs steps, from the network of somebody to a checked file."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from click.testing import CliRunner, Result

import soul_deploy
from soul_deploy.base.reduction import NAMES, OVER_TIME, OverTime
from soul_deploy.cli.main import root

SOURCE = '''
import torch
from torch import nn
from soul_deploy.ir import NeuronSpec
from soul_deploy.nn.layers import Conv2d, Flatten
from soul_deploy.nn.neuron import SpikingNeuron

class Net(nn.Module):
    """Scores of every step, (T, B, classes)."""

    def __init__(self, classes, time_steps):
        super().__init__()
        torch.manual_seed(4)
        self.conv = Conv2d(1, 4, 3)
        self.fire = SpikingNeuron(NeuronSpec("if", v_threshold=0.5), time_steps)
        self.flat, self.head = Flatten(), nn.Linear(16, classes)

    def forward(self, x):
        return self.head(self.flat(self.fire(self.conv(x))))

class Summed(Net):
    def forward(self, x):
        return super().forward(x).sum(0)
'''
FLAGS = ["--input_shape", "1", "4", "4", "--classes", "3", "-T", "4"]


@pytest.fixture(autouse=True)
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "theirs.py").write_text(SOURCE)
    sys.modules.pop("theirs", None)  # another test's
    yield
    sys.modules.pop("theirs", None)


def call(*words: object) -> Result:
    return CliRunner().invoke(root, list(map(str, words)))


@pytest.mark.parametrize("over_time", OVER_TIME)
def test_what_is_said_goes_all_the_way(over_time: OverTime) -> None:
    result = call("import", "torch", "theirs:Net", *FLAGS, "--over_time", over_time)
    assert result.exit_code == 0, result.output
    model = soul_deploy.load("Net.safetensors")
    assert model.graph.readout.over_time == over_time
    result = call("export", "event", "Net.safetensors", "-o", "net.event", "--input", "random")
    assert result.exit_code == 0, result.output
    told = json.loads(call("inspect", "net.event", "--format", "json").stdout)
    assert told["over_time"] == over_time
    assert NAMES[over_time] in call("inspect", "net.event").stdout
    assert NAMES[over_time] in call("inspect", "Net.safetensors").stdout
    flags = ["--outputs", "steps", "--input", "random"]
    result = call("export", "onnx", "Net.safetensors", "-o", "net.onnx", *flags)
    assert result.exit_code == 0, result.output
    x = torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(1)) * 3
    (steps,) = onnxruntime.InferenceSession("net.onnx").run(None, {"input": x.numpy()})
    network = soul_deploy.load_network("net.event", threads=1)
    np.testing.assert_allclose(network.run_steps(x.numpy()), steps, atol=1e-6)
    expected = {"mean": steps.mean(0), "sum": steps.sum(0), "last": steps[-1], "max": steps.max(0)}[
        over_time
    ]
    np.testing.assert_allclose(network.run(x.numpy()), expected, atol=4e-6)
    assert expected.std() > 0.05


def test_what_forward_says_is_not_contradicted() -> None:
    assert call("import", "torch", "theirs:Summed", *FLAGS).exit_code == 0
    assert soul_deploy.load("Summed.safetensors").graph.readout.over_time == "sum"
    result = call("import", "torch", "theirs:Summed", *FLAGS, "--over_time", "mean")
    assert result.exit_code == 2
    assert "forward gives the sum over time; leave over_time out" in result.stderr


def test_a_step_has_no_other_steps() -> None:
    call("import", "torch", "theirs:Net", *FLAGS)
    result = call("export", "onnx", "Net.safetensors", "--mode", "step", "--outputs", "steps")
    assert result.exit_code == 2
    assert "--outputs steps is for --mode sequence; a step yields its own scores" in result.stderr
