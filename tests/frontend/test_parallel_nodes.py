"""SpikingJelly's neurons that mix all steps: its spikes, to the bit, and the whole way to files."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from golden import NEURONS, golden, golden_names
from torch import Tensor, nn

from soul_deploy import from_torch, plan_removal, remove
from soul_deploy.base.errors import NetworkWarning, UnsupportedGraphError
from soul_deploy.export.event.build import export_event
from soul_deploy.export.onnx.model import export_onnx
from soul_deploy.export.verify.verify import verify
from soul_deploy.frontend import parallel
from soul_deploy.frontend.module_kinds import module_neuron_spec
from soul_deploy.nn.neuron import SpikingNeuron

pytest.importorskip("spikingjelly", reason="`make` installs SpikingJelly for these tests")

from spikingjelly.activation_based import functional, layer, neuron

T = 4
TOLD = pytest.mark.filterwarnings("ignore:.*is in the 4 × 4 weights")


@pytest.mark.filterwarnings("ignore::soul_deploy.base.errors.NetworkWarning")
@pytest.mark.parametrize("name", golden_names("spikingjelly_2", *parallel.KINDS))
def test_the_matrix_gives_the_tools_spikes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(NEURONS))
    case = golden("spikingjelly_2", name)
    own = {"neuron", "mended", "rounding", "steps", "kind", "case", "gradient"}
    given = {key: value for key, value in case.fields.items() if key not in own}
    kind, steps = case.fields["neuron"], case.fields["steps"]
    module = import_module("make_spikingjelly").build(kind, given)
    module.load_state_dict(dict(case.parameters))
    ours = SpikingNeuron(module_neuron_spec("n", module), steps)
    tensors = parallel.tensors_of("n", module, kind, steps)
    held = {k.removeprefix("n."): v for k, v in tensors.items()} or module.state_dict()
    ours.load_state_dict(held)
    assert ours.spec.fire == "ge"
    assert torch.equal(ours.simulate(case.input, static=False), case.output)


MADE: dict[str, Callable[[], Any]] = {
    "PSN": lambda: neuron.PSN(T),
    "MaskedPSN": lambda: neuron.MaskedPSN(2, T, 1.0, step_mode="m"),
    "MaskedPSN partly": lambda: neuron.MaskedPSN(2, T, 0.25, step_mode="m"),
    "SlidingPSN": lambda: neuron.SlidingPSN(3, step_mode="m"),
}


def network_of(kind: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(2)
    network = nn.Sequential(
        *(layer.Conv2d(2, 6, 3), MADE[kind](), layer.Flatten(), layer.Linear(96, 8)),
        *(MADE[kind](), layer.Linear(8, 3)),
    )
    functional.set_step_mode(network, "m")
    with torch.no_grad():
        for parameter in network[3].parameters():
            parameter.mul_(4).add_(0.05)
    return network.eval(), 3 * torch.randn(T, 3, 2, 6, 6)


@TOLD
@pytest.mark.parametrize("kind", MADE)
def test_a_network_fires_as_in_spikingjelly_and_is_exported(kind: str, tmp_path: Path) -> None:
    network, x = network_of(kind)
    model = from_torch(network, (2, 6, 6), T, example=x)
    assert "untested" not in model.info.provenance
    heard: dict[str, Tensor] = {}
    for name in ("1", "4"):
        module = network.get_submodule(name)
        module.register_forward_hook(lambda _, given, sent, at=name: heard.update({at: sent}))
    with torch.no_grad():
        scores = network(x).mean(0)
    seen = model.module().record(x)
    for name, sent in heard.items():
        assert torch.equal(seen.spikes[name], sent.bool()), name
        assert 0 < sent.mean() < 0.95
    torch.testing.assert_close(seen.logits, scores, rtol=0, atol=1e-5)
    for made in (model, remove(model, plan_removal(model))):
        export_onnx(made, tmp_path / "net.onnx", input_mode="sequence")
        export_event(made, tmp_path / "net.event.safetensors")
        for file in ("net.onnx", "net.event.safetensors"):
            report = verify(made, tmp_path / file, x)
            assert report.passed, report.text()
            (tmp_path / file).unlink()


def test_what_the_matrix_holds_is_told() -> None:
    network, x = network_of("SlidingPSN")
    with pytest.warns(NetworkWarning, match=r"[14]: what slides is in the 4 × 4 weights"):
        model = from_torch(network, (2, 6, 6), T, example=x)
    weight, row = model.state["1.weight"], network.get_parameter("1.weight").detach().numpy()
    assert weight[3].tolist() == [0, *row] and weight[0].tolist() == [row[2], 0, 0, 0]


@pytest.mark.parametrize(
    ("node", "text"),
    [
        (neuron.PSN(3), r"PSN\(T=3\) in a network of 4 time steps; give time_steps=3"),
        (neuron.MaskedPSN(2, 5, 1.0, step_mode="m"), r"MaskedPSN\(T=5\) in a network of 4"),
        (neuron.MaskedPSN(2, 4, 1.0), "MaskedPSN in step mode 's', .*set step_mode='m'"),
        (neuron.SlidingPSN(2), "SlidingPSN in step mode 's'"),
    ],
)
def test_another_t_and_single_steps_are_refused(node: Any, text: str) -> None:
    with pytest.raises(UnsupportedGraphError, match=f"1: {text}"):
        from_torch(nn.Sequential(layer.Linear(4, 4), node), (4,), T)
