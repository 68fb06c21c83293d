"""Networks of SpikingJelly up to 0.0.0.0.12: its own spikes, and the whole way to files.

The golden files were made by 0.0.0.0.12 itself (fixtures/clock_driven, fixtures/neurons).
"""

import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from clock_driven import SJ
from golden import golden, golden_names, metadata
from golden_specs import SPIKINGJELLY, spec_of
from places import FIXTURES
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from soul_deploy import from_torch, plan_removal, remove
from soul_deploy.base.errors import UnsupportedGraphError
from soul_deploy.cli.main import root
from soul_deploy.export.event.build import export_event
from soul_deploy.export.onnx.model import export_onnx
from soul_deploy.export.verify.verify import verify
from soul_deploy.frontend import clock_driven
from soul_deploy.frontend.module_kinds import module_neuron_spec
from soul_deploy.model.file import load, save
from soul_deploy.runtime.equations import NeuronEquation

HERE = FIXTURES / "clock_driven"
NETS = ("static", "residual", "contained", "single", "converted")
FILE = HERE / "networks.safetensors"


def nets() -> Any:
    """The recipe's module of networks."""
    sys.path.insert(0, str(HERE))
    try:
        return import_module("nets")
    finally:
        sys.path.remove(str(HERE))


def kept(name: str) -> dict[str, Tensor]:
    """What the golden file says of a network."""
    found = {k.partition(".")[::2]: v for k, v in load_file(FILE).items()}
    return {what: tensor for (of, what), tensor in found.items() if of == name}


def network_of(name: str) -> tuple[nn.Module, dict[str, Tensor]]:
    """The network with the golden weights, and all that was recorded of it."""
    network, found = nets().made(name, SJ), kept(name)
    weights = {k.removeprefix("state."): v for k, v in found.items() if k.startswith("state.")}
    network.load_state_dict(weights)
    return network, found


def test_the_golden_networks_are_those_of_0_0_0_0_12() -> None:
    assert tuple(nets().NETWORKS) == NETS
    with safe_open(FILE, framework="pt") as opened:
        assert json.loads(opened.metadata()["source"])["version"] == "0.0.0.0.12"
    assert metadata("clock_driven")["source"]["version"] == "0.0.0.0.12"


@pytest.mark.parametrize("name", NETS)
def test_a_network_gives_the_tools_spikes_and_goes_the_whole_way(name: str, tmp_path: Path) -> None:
    network, found = network_of(name)
    x = found["input"]
    model = from_torch(network, nets().SHAPE, nets().STEPS, example=x)
    assert set(model.state) == set(network.state_dict()) - set(_scalers(network))
    seen = model.module().record(x)
    spikes = {k.removeprefix("spikes."): v for k, v in found.items() if k.startswith("spikes.")}
    assert set(seen.spikes) == set(spikes)
    for path, theirs in spikes.items():
        assert torch.equal(seen.spikes[path], theirs), path
    output = found["output"]
    scores = output.mean(0) if output.dim() == 3 else output
    torch.testing.assert_close(seen.logits, scores, rtol=0, atol=1e-5)
    assert {node.neuron.form for node in model.graph.populations} == {"clock_driven"}
    save(model, tmp_path / "net.safetensors")
    assert load(tmp_path / "net.safetensors").graph == model.graph
    mode: Any = "static" if nets().TAKES.get(name) == "image" else "sequence"
    for made in (model, remove(model, plan_removal(model))):
        export_onnx(made, tmp_path / "net.onnx", input_mode=mode)
        export_event(made, tmp_path / "net.event.safetensors")
        for file in ("net.onnx", "net.event.safetensors"):
            report = verify(made, tmp_path / file, x)
            assert report.passed, report.text()
            (tmp_path / file).unlink()


def _scalers(network: nn.Module) -> list[str]:
    """Tensors that are numbers of the graph."""
    return [name for name in network.state_dict() if name.endswith("scale")]


@pytest.mark.parametrize("name", NETS)
def test_the_modules_of_the_tests_are_the_tools(name: str) -> None:
    network, found = network_of(name)
    nodes = {p: m for p, m in network.named_modules() if isinstance(m, SJ.neuron.BaseNode)}
    ran = nets().run(name, network, found["input"], nodes)
    for what, tensor in ran.items():
        assert torch.equal(tensor.to(found[what]), found[what]), what


@pytest.mark.parametrize("name", golden_names("clock_driven"))
def test_every_setting_is_read(name: str) -> None:
    """The spec that is compared with the tool's spikes bit for bit is what from_torch reads."""
    case, fields = golden("clock_driven", name), dict(metadata("clock_driven")[name])
    own = {"neuron", "mended", "rounding", "steps", "kind", "case", "gradient", "_change"}
    given = {key: value for key, value in fields.items() if key not in own}
    if "surrogate_function" in given:
        given["surrogate_function"] = getattr(SJ.surrogate, given["surrogate_function"])()
    if SPIKINGJELLY[fields["neuron"].removeprefix("MultiStep")] in ("qif", "eif"):
        given.setdefault("v_reset", -0.1)
    module = getattr(SJ.neuron, fields["neuron"])(**given)
    module.load_state_dict(dict(case.parameters))
    assert module_neuron_spec("n", module) == spec_of(case)


@pytest.mark.parametrize(
    ("v_reset", "charge"),
    [(0.0, "leak_multiply"), (None, "leak_multiply"), (-0.3, "leak_subtract_divide")],
)
def test_the_leak_is_a_product_where_there_is_no_reset_value(
    v_reset: float | None, charge: str
) -> None:
    """0.0.0.0.14 has that without a reset value only, and in training."""
    node = SJ.neuron.MultiStepLIFNode(tau=3.0, decay_input=False, v_reset=v_reset)
    equation = module_neuron_spec("n", node).equation()
    assert isinstance(equation, NeuronEquation)
    assert equation.charge == charge


def test_a_first_step_in_float64_is_refused() -> None:
    for v_reset, v_rest, v_c in ((None, 0.0, 0.8), (-0.3, -0.3, 0.6)):
        module_neuron_spec("n", SJ.neuron.QIFNode(v_reset=v_reset, v_rest=v_rest, v_c=v_c))
    node = SJ.neuron.QIFNode(v_reset=-0.1, v_rest=0.1, v_c=0.7)
    with pytest.raises(UnsupportedGraphError, match=r"n: QIFNode .* first step is .* float64"):
        module_neuron_spec("n", node)


def test_a_subclass_without_code_of_its_own_is_its_base() -> None:
    own = type("Mine", (SJ.neuron.MultiStepLIFNode,), {"__module__": "nets"})
    assert module_neuron_spec("n", own(tau=3.0)).tau == 3.0


def test_numbers_that_are_set_by_hand_would_go_with_a_reset() -> None:
    """0.0.0.0.12 keeps the threshold with the state, and a reset puts the constructor's back."""
    network, found = network_of("static")
    node: Any = network.get_submodule("fc.2")
    node.v_threshold = 0.5
    text = r"'fc\.2' has v_threshold = 0\.5, which was set by hand; .* with 1\.0"
    with pytest.raises(UnsupportedGraphError, match=text):
        from_torch(network, nets().SHAPE, nets().STEPS, example=found["input"])


def named(name: str, place: str = "layer", **own: Any) -> nn.Module:
    """An empty module of this name and place."""
    module: nn.Module = type(name, (nn.Module,), {"__module__": f"{clock_driven.ROOT}.{place}"})()
    vars(module).update(own)
    return module


@pytest.mark.parametrize(
    ("module", "text"),
    [
        *((named(name), ".+") for name in clock_driven.REFUSED),
        (named("LinearRecurrentContainer"), "make the network of spikingjelly.activation_based"),
        (named("MultiStepLIFNode", "neuron"), r"up to 0\.0\.0\.0\.4; make .* 0\.0\.0\.0\.6 to"),
        (named("LIFNode", "neuron", _memories={}, backend="lava"), "make it with backend='torch'"),
        (named("ChannelsPool"), r"is not supported .*supported: Conv2d"),
        (named("PoissonEncoder", "encoding"), r"is not supported .*supported: Conv2d"),
    ],
)
def test_what_does_not_come_in_is_refused_by_name(module: nn.Module, text: str) -> None:
    network = nn.Sequential(nn.Conv2d(2, 4, 3), module)
    name = type(module).__name__
    with pytest.raises(UnsupportedGraphError, match=rf"module '1' \({name}\).*{text}"):
        from_torch(network, (2, 8, 8), 4)


def test_the_command_line_takes_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network, _ = network_of("contained")
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    (tmp_path / "oldnets.py").write_text(
        "import nets\nfrom clock_driven import SJ\n\n\ndef make():\n"
        "    return nets.made('contained', SJ)\n"
    )
    monkeypatch.chdir(tmp_path)
    nets()
    words = (
        "import torch oldnets:make --model_path weights.pth --input_shape 2 8 8 --classes 5 -T 4 "
        "-o net.safetensors"
    )
    result = CliRunner().invoke(root, words.split())
    assert result.exit_code == 0, result.output
    assert len(load(tmp_path / "net.safetensors").graph.populations) == 2
    sys.modules.pop("oldnets")
