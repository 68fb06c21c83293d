"""Soul's own numbers: names and shapes of its state dicts, its neurons, its networks' spikes."""

import json

import numpy as np
import pytest
import torch
from places import FIXTURES
from safetensors import safe_open
from torch import Tensor

from soul_deploy.ir import NeuronSpec
from soul_deploy.nn.graph_module import GraphModule
from soul_deploy.nn.neuron import SpikingNeuron
from soul_deploy.runtime.equations import NeuronEquation
from soul_deploy.zoo.registry import NetworkOptions, create


def fixture(name: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    with safe_open(FIXTURES / name, framework="pt") as opened:
        return {key: opened.get_tensor(key) for key in opened.keys()}, dict(opened.metadata())  # noqa: SIM118


@pytest.mark.parametrize(
    "name", sorted(json.loads((FIXTURES / "state_dict_shapes.json").read_text()))
)
def test_names_and_shapes_are_souls(name: str) -> None:
    expected = json.loads((FIXTURES / "state_dict_shapes.json").read_text())[name]
    network, graph = create(name, NetworkOptions((3, 32, 32), 10, NeuronSpec(), 4))
    for module in (network, GraphModule(graph)):
        assert {k: list(v.shape) for k, v in module.state_dict().items()} == expected


@pytest.mark.parametrize("neuron", ["lif", "plif"])
def test_a_network_fires_souls_spikes(neuron: str) -> None:
    tensors, metadata = fixture(f"spikingvgg5_{neuron}.safetensors")
    config = json.loads(metadata["config"])
    spec = NeuronSpec(family=neuron, decay_input=config["decay_input"])
    options = NetworkOptions((3, 32, 32), 10, spec, 4, hidden=config["mlp_hidden_dim"])
    network, graph = create("spikingvgg5", options)
    weights = {
        k.removeprefix("weights."): v for k, v in tensors.items() if k.startswith("weights.")
    }
    network.load_state_dict(weights)
    module = GraphModule(graph).eval()
    module.load_state_dict(weights)
    recording = module.record(tensors["input"])
    for name, spikes in recording.spikes.items():
        expected = tensors[f"spikes.{name}"].bool()
        assert expected.any()
        assert torch.equal(spikes, expected), name
    torch.testing.assert_close(recording.logits, tensors["logits"], rtol=0, atol=1e-5)
    with torch.no_grad():
        assert torch.equal(network.eval()(tensors["input"]), recording.logits)


def neuron_cases() -> list[str]:
    _, metadata = fixture("neurons.safetensors")
    cases = [
        name for name, text in metadata.items() if json.loads(text)["neuron"] in ("lif", "plif")
    ]
    assert len(cases) == 9
    return sorted(cases)


@pytest.mark.parametrize("case", neuron_cases())
def test_a_neuron_fires_souls_spikes_ties_included(case: str) -> None:
    tensors, metadata = fixture("neurons.safetensors")
    fields = json.loads(metadata[case])
    spec = NeuronSpec(
        family=fields["neuron"],
        tau=fields.get("tau", fields.get("init_tau")),
        decay_input=fields["decay_input"],
        v_threshold=fields["v_threshold"],
        v_reset=fields["v_reset"],
    )
    neuron = SpikingNeuron(spec, 4)
    if spec.learned:
        neuron.load_state_dict({"w": tensors[f"{case}.param.w"]})
    current, expected = tensors[f"{case}.input"], tensors[f"{case}.output"]
    assert torch.equal(neuron.simulate(current, static=False), expected)
    equation = neuron.equation()
    assert isinstance(equation, NeuronEquation)
    v = np.full(current.shape[1:], equation.rest, np.float32)
    for x, spikes in zip(current.numpy(), expected.numpy(), strict=True):
        fired, v = equation.step(v, x)
        assert v.dtype == np.float32
        np.testing.assert_array_equal(fired, spikes > 0)


def test_a_static_image_gives_what_its_repetition_gives() -> None:
    network, graph = create("spikingvgg5", NetworkOptions((1, 8, 8), 3, NeuronSpec(), 3, hidden=4))
    module = GraphModule(graph).eval()
    module.load_state_dict(network.state_dict())
    image = torch.rand(2, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(module(image), module(image.expand(3, 2, 1, 8, 8)))


@pytest.mark.parametrize("form", ["if", "lif", "plif"])
@pytest.mark.parametrize("v_reset", [0.0, -0.25, None])
@pytest.mark.parametrize("decay_input", [True, False])
def test_a_neuron_follows_its_textbook_equation(
    form: str, v_reset: float | None, decay_input: bool
) -> None:
    """Against the equation written out in float64, away from the threshold."""
    spec = NeuronSpec(family=form, tau=3.0, decay_input=decay_input, v_reset=v_reset, fire="ge")
    torch.manual_seed(1)
    current = torch.randn(7, 5, 11) * 2
    spikes = SpikingNeuron(spec, 7).simulate(current, static=False)
    rest = 0.0 if v_reset is None else v_reset
    v = np.full((5, 11), rest)
    for t, x in enumerate(current.double().numpy()):
        decay = 0.0 if form == "if" else (v - rest) / 3.0
        v = v - decay + (x / 3.0 if decay_input and form != "if" else x)
        fired = v >= 1
        assert (np.abs(v - 1) > 1e-5).all()
        np.testing.assert_array_equal(spikes[t].detach().numpy() > 0, fired)
        v = np.where(fired, v - 1 if v_reset is None else v_reset, v)
