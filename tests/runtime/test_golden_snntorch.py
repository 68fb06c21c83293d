"""snnTorch's neurons against what snnTorch's own code gave, to the bit: spikes and membranes."""

import json

import numpy as np
import pytest
import torch
from golden import Golden, golden, golden_names

from soul_deploy.ir import NeuronSpec
from soul_deploy.nn.dynamics import deployed
from soul_deploy.nn.neuron import SpikingNeuron
from soul_deploy.runtime.dynamics.equation import DynamicsEquation
from soul_deploy.runtime.dynamics.form import Granularity
from soul_deploy.runtime.dynamics.snntorch import RESETS
from soul_deploy.runtime.kernels.dynamics import constants_of, dynamics_kernel

FAMILIES = {
    "Leaky": "snn_leaky",
    "RLeaky": "snn_rleaky",
    "Synaptic": "snn_synaptic",
    "RSynaptic": "snn_rsynaptic",
    "Lapicque": "snn_lapicque",
}
NAMES = [
    name
    for name in golden_names("snntorch", *FAMILIES)
    if "graded" not in name and "conv" not in name and "linear" not in name
]


def spec_of(case: Golden) -> tuple[NeuronSpec, dict[str, torch.Tensor]]:
    """The neuron of a case, and its tensors by setting."""
    family = FAMILIES[case.fields["neuron"]]
    settings = {
        "reset": RESETS[case.fields.get("reset_mechanism", "subtract")],
        "delay": float(case.fields.get("reset_delay", True)),
    }
    tensors: dict[str, torch.Tensor] = {}
    known = dict(NeuronSpec(family).settings)
    for name, value in case.parameters.items():
        if name in known and value.numel() == 1:
            settings[name] = float(value)
        elif name in known:
            tensors[name] = value.reshape(-1)
    kinds: tuple[tuple[str, Granularity], ...] = tuple((name, "channel") for name in tensors)
    return NeuronSpec(family, settings=tuple(settings.items()), tensors=kinds), tensors


@pytest.mark.parametrize("name", NAMES)
def test_spikes_are_snntorchs(name: str) -> None:
    case = golden("snntorch", name)
    spec, tensors = spec_of(case)
    x, expected = case.input, case.output
    shape = tuple(x.shape[2:])
    neuron = SpikingNeuron(spec, len(x), shape)
    with torch.no_grad():
        for key, value in tensors.items():
            neuron.get_parameter(key).copy_(value)
        sent = neuron.simulate(x, static=False)
    assert torch.equal(sent, expected)
    held = {key: value.float() for key, value in tensors.items()}
    equation = deployed(spec, held, len(shape))
    assert isinstance(equation, DynamicsEquation)
    state = tuple(np.full(x.shape[1:], value, np.float32) for value in equation.start)
    for t, step in enumerate(x.numpy()):
        spikes, state = equation.advance(state, step, t)
        np.testing.assert_array_equal(spikes, expected[t].numpy(), err_msg=f"step {t}")
    _check_kernel(equation, x.numpy(), expected.numpy(), shape)


def _check_kernel(
    equation: DynamicsEquation, x: np.ndarray, expected: np.ndarray, shape: tuple[int, ...]
) -> None:
    """The compiled update, of one sample, channel-last."""
    numbers = constants_of(equation, shape, None)
    kernel = dynamics_kernel(equation.family, equation.send, False, numbers.shape[2] > 1)
    for b in range(x.shape[1]):
        current, wanted = (
            np.ascontiguousarray(np.moveaxis(a[:, b], 1, -1).reshape(len(a), -1))
            for a in (x, expected)
        )
        state = np.zeros((len(equation.start), current.shape[1]), np.float32)
        sent = np.zeros(current.shape, np.uint8)
        start, limits = np.array(equation.start, np.float32), (np.float32(0), np.float32(1))
        kernel(current, numbers, *limits, start, False, state, sent, 0, current.shape[1])
        np.testing.assert_array_equal(sent, wanted)


def test_every_population_fires() -> None:
    """Each case says something: its tool's spikes are neither all nor none."""
    for name in NAMES:
        rate = golden("snntorch", name).output.mean()
        assert 0 < rate < 1, (name, json.dumps(golden("snntorch", name).fields, default=str))
