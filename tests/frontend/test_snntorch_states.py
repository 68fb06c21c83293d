"""snnTorch's neurons with more state than a membrane, or a circuit: its own bits and spikes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from leaky_nets import T, settled, snn
from torch import Tensor, nn

from soul_deploy import from_torch
from soul_deploy.base.errors import UnsupportedGraphError
from soul_deploy.export.event.build import export_event
from soul_deploy.export.onnx.model import export_onnx
from soul_deploy.export.verify.verify import verify
from soul_deploy.frontend.stepped_specs import spec_of
from soul_deploy.model.file import load, save
from soul_deploy.nn.neuron import SpikingNeuron

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "synaptic": ("Synaptic", {"alpha": 0.9, "beta": 0.8}),
    "synaptic-zero": ("Synaptic", {"alpha": 0.5, "beta": 0.7, "reset_mechanism": "zero"}),
    "synaptic-none": ("Synaptic", {"alpha": 0.6, "beta": 0.5, "reset_mechanism": "none"}),
    "leaky-at-once": ("Leaky", {"beta": 0.9, "reset_delay": False, "threshold": 0.7}),
    "synaptic-at-once": ("Synaptic", {"alpha": 0.7, "beta": 0.9, "reset_delay": False}),
    "synaptic-zero-at-once": (
        "Synaptic",
        {"alpha": 0.4, "beta": 0.8, "reset_delay": False, "reset_mechanism": "zero"},
    ),
    "synaptic-learned": (
        "Synaptic",
        {"alpha": 1.2, "beta": 0.75, "threshold": 0.7, "learn_alpha": True, "learn_beta": True},
    ),
    "lapicque": ("Lapicque", {"beta": 0.5}),
    "lapicque-circuit": ("Lapicque", {"R": 5, "C": 0.5}),
    "lapicque-zero": (
        "Lapicque",
        {"R": 1.3, "C": 2.0, "time_step": 0.5, "reset_mechanism": "zero"},
    ),
    "lapicque-none": ("Lapicque", {"beta": 0.6, "C": 3.0, "reset_mechanism": "none"}),
}


def made(kind: str, **more: Any) -> Any:
    name, given_to_it = KINDS[kind]
    return getattr(snn, name)(**given_to_it, **more)


def in_steps(neuron: Any, current: Tensor) -> tuple[Tensor, Tensor]:
    """Spikes and membranes of all steps, (T, n), by snnTorch alone."""
    state = neuron.reset_mem()
    state, found = state if isinstance(state, tuple) else (state,), []
    with torch.no_grad():
        for x in current:
            spikes, *state = neuron(x, *state)
            found.append((spikes, state[-1].clone()))
    spikes_of_all, membranes = zip(*found, strict=True)
    return torch.stack(spikes_of_all), torch.stack(membranes)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=15)
@given(steps=st.integers(1, 9), grid=st.sampled_from([None, 8, 4]), seed=st.integers(0, 2**16))
def test_a_neuron_has_the_bits_of_snntorchs(
    kind: str, steps: int, grid: int | None, seed: int
) -> None:
    """Random currents, and currents on a grid, which meet the threshold exactly."""
    theirs = made(kind)
    current = torch.randn(steps, 60, generator=torch.Generator().manual_seed(seed)) * 3
    if grid:
        current = (current * grid).round() / grid
    spikes, membranes = in_steps(theirs, current)
    ours, seen = SpikingNeuron(spec_of("n", theirs), steps), []
    found = ours.simulate(current, static=False, observe=lambda t, s, v: seen.append(v))
    assert torch.equal(found, spikes) and torch.equal(torch.stack(seen), membranes)
    equation = ours.equation()
    state: tuple[Any, ...] = tuple(np.full(60, value, np.float32) for value in equation.start)
    for t in range(steps):
        sent, state = equation.advance(state, current[t].numpy())
        assert state[0].dtype == np.float32
        assert (sent == spikes[t].numpy()).all() and (state[0] == membranes[t].numpy()).all()


class Net(nn.Module):
    """A loop over the steps with all states in hand, or none."""

    def __init__(self, kind: str, **more: Any) -> None:
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(40, 50), made(kind, **more)
        self.fc2, self.lif2 = nn.Linear(50, 10), made(kind, **more)

    def forward(self, x: Tensor) -> Tensor:
        state1, state2 = self.lif1.reset_mem(), self.lif2.reset_mem()
        state1 = state1 if isinstance(state1, tuple) else (state1,)
        state2 = state2 if isinstance(state2, tuple) else (state2,)
        out = []
        for _ in range(T):
            spk1, *state1 = self.lif1(self.fc1(x), *state1)
            spk2, *state2 = self.lif2(self.fc2(spk1), *state2)
            out.append(spk2)
        return torch.stack(out)


class Hidden(Net):
    """The same, called once a step."""

    def forward(self, x: Tensor) -> Tensor:
        spikes: Tensor = self.lif2(self.fc2(self.lif1(self.fc1(x))))
        return spikes


@pytest.mark.parametrize("hidden", [False, True], ids=["in hand", "hidden"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_network_fires_as_in_snntorch(kind: str, hidden: bool, tmp_path: Path) -> None:
    network = settled(Hidden(kind, init_hidden=True) if hidden else Net(kind), 4.0)
    x = torch.randn(8, 40) * 2
    model = from_torch(network, (40,), T, example=x)
    heard: list[Tensor] = []
    hook = network.lif1.register_forward_hook(
        lambda module, inputs, output: heard.append(output if hidden else output[0])
    )
    with torch.no_grad():
        for lif in (network.lif1, network.lif2):
            lif.reset_mem()
        expected = torch.stack([network(x) for _ in range(T)]) if hidden else network(x)
    hook.remove()
    found = model.module().record(x)
    assert torch.equal(found.spikes["lif1"].float(), torch.stack(heard))
    assert torch.equal(found.spikes["lif2"].float(), expected)
    for spikes in found.spikes.values():
        assert 0.005 < spikes.float().mean() < 0.995
    export_onnx(model, tmp_path / "net.onnx", input_mode="static")
    export_event(model, tmp_path / "net.event.safetensors")
    for name in ("net.onnx", "net.event.safetensors"):
        report = verify(model, tmp_path / name, x)
        assert report.passed, report.text()
    save(model, tmp_path / "net.safetensors")
    assert load(tmp_path / "net.safetensors").graph == model.graph


class Stepping(Net):
    """States of the caller's, in an order of its own."""

    def forward(  # type: ignore[override]
        self, x: Tensor, mem2: Tensor, syn1: Tensor, mem1: Tensor, syn2: Tensor
    ) -> Any:
        spk1, syn1, mem1 = self.lif1(self.fc1(x), syn1, mem1)
        spk2, syn2, mem2 = self.lif2(self.fc2(spk1), syn2, mem2)
        return syn2, mem1, spk2, syn1, mem2


def test_states_may_come_from_the_caller() -> None:
    network, x = settled(Stepping("synaptic"), 4.0), torch.randn(8, 40) * 2
    model = from_torch(network, (40,), T, example=x)
    (syn1, mem1), (syn2, mem2), out = network.lif1.reset_mem(), network.lif2.reset_mem(), []
    with torch.no_grad():
        for _ in range(T):
            syn2, mem1, spikes, syn1, mem2 = network(x, mem2, syn1, mem1, syn2)
            out.append(spikes)
    found = model.module().record(x).spikes["lif2"].float()
    assert torch.equal(found, torch.stack(out)) and 0.005 < found.mean() < 0.995


class Exchanged(Net):
    """The synapse's current in the membrane's place."""

    def forward(self, x: Tensor) -> Tensor:
        (syn, mem), out = self.lif1.reset_mem(), []
        for _ in range(T):
            spikes, mem, syn = self.lif1(self.fc1(x), syn, mem)
            out.append(spikes)
        return torch.stack(out)


def test_states_in_another_place_are_refused() -> None:
    with pytest.raises(UnsupportedGraphError, match="'lif1' with another membrane than its own"):
        from_torch(Exchanged("synaptic"), (40,), T)


@pytest.mark.parametrize("kind", ["synaptic", "synaptic-zero", "lapicque", "lapicque-zero"])
def test_gradients_are_snntorchs(kind: str) -> None:
    theirs = made(kind)
    ours = SpikingNeuron(spec_of("n", theirs), 4)
    torch.manual_seed(0)
    current, weight, grads = torch.randn(4, 300) * 2, torch.randn(4, 300), []

    def own(x: Tensor) -> Tensor:
        state, spikes = theirs.reset_mem(), []
        state = state if isinstance(state, tuple) else (state,)
        for t in range(4):
            spike, *state = theirs(x[t], *state)
            spikes.append(spike)
        return torch.stack(spikes)

    for run in (own, lambda x: ours.simulate(x, static=False)):
        x = current.clone().requires_grad_()
        grads.append(torch.autograd.grad((run(x) * weight).sum(), x)[0])
    assert grads[0].abs().max() > 0.1
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-5, atol=1e-6)
