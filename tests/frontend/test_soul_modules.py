"""Networks of Soul's own classes: its spikes, and the whole way to files.

Soul's numbers are golden (tests/fixtures/soul, tests/fixtures/neurons); its modules are stand-ins.
"""

import re
from pathlib import Path
from typing import Any

import pytest
import soul_modules
import torch
from golden import Golden, golden, golden_names, metadata
from golden_specs import spec_of
from soul_modules import CLASSES_OF, STEPS, kept, state_of
from torch import Tensor, nn

from soul_deploy import from_torch, plan_removal, remove
from soul_deploy.base.errors import UnsupportedGraphError, UsageError
from soul_deploy.export.event.build import export_event
from soul_deploy.export.onnx.model import export_onnx
from soul_deploy.export.verify.verify import verify
from soul_deploy.frontend import soul
from soul_deploy.frontend.module_kinds import module_neuron_spec
from soul_deploy.ir import NeuronSpec
from soul_deploy.model.model import Model
from soul_deploy.nn.dynamics import deployed
from soul_deploy.nn.neuron import learned_number
from soul_deploy.runtime.equations import Equation

SHAPES: dict[str, tuple[int, ...]] = {"mlp": (2, 3, 4), "lenet": (1, 32, 32)}


def network_of(name: str) -> tuple[nn.Module, dict[str, Tensor]]:
    """A network with Soul's weights, and what Soul recorded."""
    kind, _, neuron = name.partition("_")
    made: nn.Module = (
        soul_modules.Mlp(neuron, SHAPES[kind])
        if kind == "mlp"
        else soul_modules.LeNet("lif", SHAPES[kind][-1])
    )
    found = kept(name)
    made.load_state_dict(state_of(found))
    return made.eval(), found


def assert_sent(model: Model, found: dict[str, Tensor]) -> None:
    """The model's neurons send what Soul's sent, and its class scores are Soul's."""
    module = model.module()
    names = [node.name for node in model.graph.populations]
    units = {node.name: node.neuron.unit for node in model.graph.populations}
    start, readout = model.graph.input.name, model.graph.readout.name
    seen = module.evaluate({start: module.as_signal(found["input"])}, [*names, readout])
    for name in names:
        assert torch.equal(seen[name].tensor * units[name], found[f"sent.{name}"]), name
    torch.testing.assert_close(seen[readout].tensor, found["output"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", [*(f"mlp_{n}" for n in CLASSES_OF), "lenet"])
def test_a_network_gives_souls_spikes_and_goes_the_whole_way(name: str, tmp_path: Path) -> None:
    network, found = network_of(name)
    x = found["input"]
    model = from_torch(network, SHAPES[name.partition("_")[0]], STEPS, example=x)
    assert set(model.state) == set(network.state_dict())
    assert_sent(model, found)
    for made in (model, remove(model, plan_removal(model))) if name != "lenet" else (model,):
        export_onnx(made, tmp_path / "net.onnx", input_mode="sequence")
        export_event(made, tmp_path / "net.event.safetensors")
        for file in ("net.onnx", "net.event.safetensors"):
            report = verify(made, tmp_path / file, x)
            assert report.passed, report.text()
            (tmp_path / file).unlink()


AS_SHIPPED = [
    name
    for name in golden_names("soul", *CLASSES_OF)
    if metadata("soul")[name]["mended"] == "" and metadata("soul")[name]["kind"] == "mixed"
]


@pytest.mark.parametrize("name", AS_SHIPPED)
def test_every_setting_is_read(name: str) -> None:
    """The spec that is compared with Soul's spikes bit for bit is what from_torch reads."""
    case = golden("soul", name)
    fields = case.fields
    try:
        wanted = spec_of(case)
    except UsageError as refused:  # a v_reset of CLIF and ILIF
        module = soul_modules.default(fields["neuron"])
        module.v_reset = module._memories_rv["v"] = fields["v_reset"]
        with pytest.raises(UnsupportedGraphError, match=re.escape(str(refused))):
            module_neuron_spec("n", module)
        return
    module = soul_modules.neuron(fields["neuron"], fields, name)
    module.load_state_dict(dict(case.parameters))
    found = module_neuron_spec("n", module)
    assert equation_of(found, case) == equation_of(wanted, case)
    assert (found.family, found.edge, found.unit) == (wanted.family, wanted.edge, wanted.unit)
    if fields["surrogate"] in ("atan", "sigmoid", "rectangle") and found.family not in UNREAD:
        assert (found.surrogate, found.surrogate_alpha) == (
            wanted.surrogate,
            wanted.surrogate_alpha,
        )
        assert found.detach_reset == wanted.detach_reset


def equation_of(spec: NeuronSpec, case: Golden) -> Equation:
    if spec.dynamics is not None or spec.parallel:
        return deployed(spec, case.parameters, case.input.dim() - 2)
    return spec.equation(learned_number(spec, case.parameters["w"]) if spec.learned else None)


UNREAD = ("ielif", "ltmd", "stbif")
"""Neurons whose yaml file names a surrogate that nothing reads."""


def test_all_neurons_are_known_by_name() -> None:
    families = {name: family for name, (family, _) in soul.NEURONS.items()}
    assert families == {kind: name for name, (kind, _) in CLASSES_OF.items()}


def test_a_subclass_without_code_of_its_own_is_its_base() -> None:
    module = soul_modules.default("lif")
    module.__class__ = type("Mine", (type(module),), {"__module__": "nets"})
    module.tau = 3.0
    assert module_neuron_spec("n", module).tau == 3.0


def changed(name: str, **values: Any) -> Any:
    """A neuron with attributes set behind its constructor."""
    module = soul_modules.default(name)
    for key, value in values.items():
        setattr(module, key, value)
    return module


REFUSED = {
    r"1: LIFNode with v_reset None, .* train with a reset value": changed("lif", v_reset=None),
    r"1: RPLIFNode with v_reset None, .* train with a reset value": changed("rplif", v_reset=None),
    r"1: INTLIFNode with the surrogate ATan, which sends no integers": changed(
        "intlif", surrogate_function=soul_modules.surrogate("atan")
    ),
    r"1: TLIFNode with the surrogate Quant, which sends no signs": changed(
        "tlif", surrogate_function=soul_modules.surrogate("quant")
    ),
    r"1: ielif: lens 8; supported is 4": changed("ielif", lens=8),
    r"1: GatedLIFNode made for 7 steps in a network of 4 .*give time_steps=7": changed("glif", T=7),
    r"1: LTMD made for 7 steps in a network of 4": changed("ltmd", steps=7),
    r"1: ParallelSpikingNode made for 7 steps": changed("psn", T=7),
    r"module '1' \(IzhikevichNode\): .*import zoo -n izhikevich": type(
        "IzhikevichNode", (nn.Module,), {"__module__": "soul.neuron.Izhikevich"}
    )(),
}


@pytest.mark.parametrize("text", REFUSED)
def test_what_does_not_come_in_is_refused_by_name(text: str) -> None:
    network = nn.Sequential(nn.Linear(4, 4), REFUSED[text])
    with pytest.raises(UnsupportedGraphError, match=text):
        from_torch(network, (4,), STEPS, example=torch.zeros(STEPS, 1, 4))


@pytest.mark.parametrize(
    ("place", "name", "text"),
    [
        ("acoustic.general", "SpikingLeNet", "import zoo lenet --input_shape 1,H,W"),
        ("acoustic.msresnet", "MSResNet", "import zoo msresnet34 --input_shape 1,H,W"),
        ("motion.general", "SpikingLeNet", "import zoo lenet --input_shape 1,H,W"),
        ("motion.spikingvgg", "VGG", "along one axis"),
        ("vision.general", "SpikingRNN", "it is not recurrent"),
        ("wireless.general", "SpikingConvRNN", r"a convolution of kernel \(1, W\)"),
    ],
)
def test_networks_that_do_not_come_in_say_what_to_do(place: str, name: str, text: str) -> None:
    network = type(name, (nn.Sequential,), {"__module__": f"soul.model.{place}"})(nn.Linear(4, 4))
    with pytest.raises(UnsupportedGraphError, match=rf"Soul's {name} \(soul\.model\..*{text}"):
        from_torch(network, (4,), STEPS)
