"""--scores_from: from a network that returns spikes and membranes to checked files."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

import soul_deploy
from soul_deploy.cli.main import root

SOURCE = '''
import snntorch
import torch
from torch import nn

class Net(nn.Module):
    """Spikes and membranes of every step, (T, B, classes) each."""

    def __init__(self, classes, time_steps):
        super().__init__()
        torch.manual_seed(4)
        self.fc1, self.lif1 = nn.Linear(16, 20), snntorch.Leaky(beta=0.9)
        self.fc2, self.lif2 = nn.Linear(20, classes), snntorch.Leaky(beta=0.8)
        self.steps = time_steps
        with torch.no_grad():
            self.fc1.weight.mul_(6)
            self.fc2.weight.mul_(4)

    def forward(self, x):
        mem1, mem2 = self.lif1.init_leaky(), self.lif2.init_leaky()
        spikes, membranes = [], []
        for step in range(self.steps):
            spk1, mem1 = self.lif1(self.fc1(x.flatten(1)), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            spikes.append(spk2)
            membranes.append(mem2)
        return {"spk": torch.stack(spikes), "mem": torch.stack(membranes)}
'''
FLAGS = ["--input_shape", "1", "4", "4", "--classes", "3", "-T", "4", "--input_kind", "values"]
pytest.importorskip("snntorch", reason="the network of this test is snnTorch's")


@pytest.fixture(autouse=True)
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scored_nets.py").write_text(SOURCE)
    yield
    sys.modules.pop("scored_nets", None)


def call(*words: object) -> Result:
    return CliRunner().invoke(root, list(map(str, words)))


@pytest.mark.parametrize("scores_from", ["mem", None, "1"])
def test_what_is_said_goes_all_the_way(scores_from: str | None) -> None:
    said = [] if scores_from is None else ["--scores_from", scores_from]
    result = call("import", "torch", "scored_nets:Net", *FLAGS, "--over_time", "max", *said)
    if scores_from == "1":
        assert result.exit_code == 2
        assert "output 1 given; the network's forward returns 'spk', 'mem'" in result.output
        return
    assert result.exit_code == 0, result.output
    model = soul_deploy.load("Net.safetensors")
    network = sys.modules["scored_nets"].Net(3, 4)
    x = 2 * torch.randn(5, 1, 4, 4, generator=torch.Generator().manual_seed(6))
    with torch.no_grad():
        own = network(x)[scores_from or "spk"].amax(0)
    torch.testing.assert_close(model.module()(x), own)
    if scores_from is None:
        return
    np.save("x.npy", x.numpy())
    for words in (
        ("onnx", "--input_mode", "static"),
        ("onnx", "--mode", "step", "-o", "step.onnx"),
        ("event",),
    ):
        kind, *more = words
        result = call("export", kind, "Net.safetensors", *more, "--input", "x.npy")
        assert result.exit_code == 0, result.output
    for path in ("Net.onnx", "step.onnx", "Net.event.safetensors"):
        result = call("verify", "Net.safetensors", path, "--input", "x.npy", "--format", "json")
        assert result.exit_code == 0, result.output
        found = json.loads(result.stdout)
        assert found["verdict"] == "passed"
        assert found["end_to_end"]["logit_limit"] >= found["logit_limit"]
    result = call("inspect", "Net.event.safetensors", "--format", "json")
    *_, row = json.loads(result.stdout)["layers"]
    assert (row["neurons"], row["neuron"]["charge"]) == (3, "leak_multiply_late")
    result = call("run", "Net.event.safetensors", "x.npy", "--format", "json")
    assert result.exit_code == 0, result.output
