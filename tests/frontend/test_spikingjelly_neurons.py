"""SpikingJelly's other neurons: read exactly, spikes as its own, exported and verified."""

from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden import NEURONS, golden, golden_names, metadata
from golden_specs import SPIKINGJELLY, UNTAKEN, spec_of
from torch import Tensor, nn

from soul_deploy import from_torch
from soul_deploy.base.errors import NetworkWarning, UnsupportedGraphError
from soul_deploy.export.event.build import export_event
from soul_deploy.export.nir.write import export_nir
from soul_deploy.export.onnx.model import export_onnx
from soul_deploy.export.onnx.step import export_step
from soul_deploy.export.verify.verify import verify
from soul_deploy.frontend import parallel, spiking_nodes
from soul_deploy.frontend.module_kinds import NON_SPIKING, module_neuron_spec
from soul_deploy.model.file import load, save
from soul_deploy.prune.removal.apply import remove
from soul_deploy.prune.removal.planner import plan_removal

pytest.importorskip("spikingjelly", reason="`make` installs SpikingJelly for these tests")

from spikingjelly.activation_based import functional, layer, neuron, surrogate

STEPS = 4
ATAN = surrogate.ATan()
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "qif": ("QIFNode", {"surrogate_function": ATAN}),
    "qif-soft": ("QIFNode", {"v_reset": None, "tau": 3.0, "v_rest": 0.1}),
    "eif": ("EIFNode", {}),
    "eif-other": ("EIFNode", {"delta_T": 0.7, "theta_rh": 0.6, "tau": 3.0, "v_reset": -0.3}),
    "izhikevich": ("IzhikevichNode", {"a": 0.3, "b": 0.2, "tau_w": 3.0, "w_rest": 0.1}),
    "izhikevich-soft": ("IzhikevichNode", {"a": 0.25, "b": -0.5, "v_reset": None}),
    "klif": ("KLIFNode", {"decay_input": False, "tau": 1.7}),
    "klif-scaled": ("KLIFNode", {"scale_reset": True, "v_reset": None, "v_threshold": 0.8}),
    "cubalif": ("CUBALIFNode", {}),
    "cubalif-soft": ("CUBALIFNode", {"v_reset": None, "c_decay": 0.3, "v_decay": 0.9}),
    "complementary": ("ComplementaryLIFNode", {"tau": 3.0}),
    "gated": ("GatedLIFNode", {"T": STEPS}),
    "gated-channels": ("GatedLIFNode", {"T": STEPS, "inplane": 6}),
    "integer": ("ILIFNode", {"tau": 2.5}),
    "integer-8": ("ILIFNode", {"surrogate_function": surrogate.MultiLevelSpikeCount(8)}),
}


def made(kind: str) -> Any:
    """The neuron, its parameters moved from where they start."""
    name, given = KINDS[kind]
    node = getattr(neuron, name)(**given)
    with torch.no_grad():
        for parameter in node.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return node


def network_of(kind: str, mode: str = "m") -> tuple[nn.Module, Tensor]:
    """Two of these neurons behind layers, and inputs (T, B, 2, 6, 6) on which both fire.

    A gated neuron is right behind a convolution only.
    """
    torch.manual_seed(0)
    last = neuron.LIFNode() if kind.startswith("gated") else made(kind)
    norm, inner = layer.BatchNorm2d(6), layer.Linear(96, 12)
    network = nn.Sequential(
        *(layer.Conv2d(2, 6, 3), norm, made(kind)),
        *(layer.Flatten(), inner, last, layer.Linear(12, 3)),
    )
    functional.set_step_mode(network, mode)
    with torch.no_grad():
        norm.bias.uniform_(0, 1.5)
        norm.running_var.fill_(0.3)
        inner.weight.mul_(3)
        inner.bias += 0.8
    return network.eval(), torch.randn(STEPS, 3, 2, 6, 6)


def own_spikes(network: Any, x: Tensor) -> tuple[list[Tensor], Tensor]:
    """What both neurons send, (T, B, ...), and the mean of what the network returns."""
    sent: list[list[Tensor]] = [[], []]
    hooks = [
        network[at].register_forward_hook(lambda m, i, o, k=k: sent[k].append(o))
        for k, at in enumerate((2, 5))
    ]
    multi = network[2].step_mode == "m"
    functional.reset_net(network)
    with torch.no_grad():
        scores = network(x) if multi else torch.stack([network(step) for step in x])
    functional.reset_net(network)
    for hook in hooks:
        hook.remove()
    return [s[0] if multi else torch.stack(s) for s in sent], scores.mean(0)


def assert_same(model: Any, network: Any, x: Tensor) -> None:
    spikes, logits = own_spikes(network, x)
    module = model.module()
    names = [node.name for node in model.graph.populations]
    start = model.graph.input.name
    found = module.evaluate({start: module.as_signal(x)}, [*names, model.graph.readout.name])
    for name, wanted in zip(names, spikes, strict=True):
        assert torch.equal(found[name].tensor, wanted), name
        assert 0.05 < (wanted != 0).float().mean() < 0.95, name
    ours = found[model.graph.readout.name].tensor
    torch.testing.assert_close(ours, logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_network_fires_as_in_spikingjelly_and_is_exported(kind: str, tmp_path: Path) -> None:
    network, x = network_of(kind)
    model = from_torch(network, (2, 6, 6), STEPS, example=x)
    assert set(model.state) == set(network.state_dict())
    assert_same(model, network, x)
    save(model, tmp_path / "net.safetensors")
    assert load(tmp_path / "net.safetensors").graph == model.graph
    export_event(model, tmp_path / "net.event.safetensors")
    export_onnx(model, tmp_path / "sequence.onnx", input_mode="sequence")
    export_onnx(model, tmp_path / "static.onnx")
    export_step(model, tmp_path / "step.onnx")
    for name, given in (
        *(("net.event.safetensors", x), ("sequence.onnx", x), ("step.onnx", x)),
        *(("net.event.safetensors", x[0]), ("static.onnx", x[0])),
    ):
        report = verify(model, tmp_path / name, given)
        assert report.passed, report.text()


@pytest.mark.parametrize("kind", KINDS)
def test_channels_are_removed_with_their_numbers(kind: str, tmp_path: Path) -> None:
    """Channels that receive no current go; if they fire without one, they fire a stored pattern."""
    network, x = network_of(kind)
    model = from_torch(network, (2, 6, 6), STEPS, example=x)
    keep = np.array([True, False, True, True, False, True])
    model = replace(model, channel_masks={"2": keep})
    compact = remove(model, plan_removal(model, residual="coupled"))
    before, after = (m.module().record(x) for m in (model, compact))
    (first, _) = compact.graph.populations
    assert compact.graph.shapes[first.inputs[0]] == (4, 4, 4)
    assert torch.equal(after.spikes["2"][:, :, :4], before.spikes["2"][:, :, keep])
    torch.testing.assert_close(after.logits, before.logits, rtol=0, atol=1e-5)
    export_event(compact, tmp_path / "net.event.safetensors")
    export_onnx(compact, tmp_path / "net.onnx", input_mode="sequence")
    for name in ("net.event.safetensors", "net.onnx"):
        report = verify(compact, tmp_path / name, x)
        assert report.passed, report.text()


@pytest.mark.parametrize("kind", ["qif", "gated", "integer"])
def test_nir_has_no_node_for_them(kind: str, tmp_path: Path) -> None:
    network, x = network_of(kind)
    model = from_torch(network, (2, 6, 6), STEPS, example=x)
    with pytest.raises(UnsupportedGraphError, match=r"^2: a neuron of family \w+; NIR has no"):
        export_nir(model, tmp_path / "net.nir")


@pytest.mark.parametrize("kind", [k for k in KINDS if not k.startswith("gated")])
def test_a_network_that_is_called_once_a_step_fires_as_in_spikingjelly(kind: str) -> None:
    network, x = network_of(kind, "s")
    model = from_torch(network, (2, 6, 6), STEPS, example=x)
    assert_same(model, network, x)
    single = {dict(node.neuron.settings).get("single") for node in model.graph.populations}
    assert single == ({1.0} if kind.startswith("integer") else {None})


def module_of(tool: str, name: str, patch: pytest.MonkeyPatch) -> Any:
    """The tool's module of a golden case; those of 0.0.0.0.14 by their place alone."""
    patch.syspath_prepend(str(NEURONS))
    fields = dict(metadata(tool)[name])
    own = {"neuron", "mended", "rounding", "steps", "kind", "case", "gradient"}
    given = {key: value for key, value in fields.items() if key not in own}
    if fields["neuron"] == "GatedLIFNode":
        given.setdefault("T", fields["steps"])
    module = import_module("make_spikingjelly").build(fields["neuron"], given)
    if tool == "spikingjelly_0":
        place = {"__module__": "spikingjelly.activation_based.neuron"}
        module.__class__ = type(fields["neuron"], (type(module),), place)
    return module


@pytest.mark.parametrize(
    ("tool", "name"),
    [
        (tool, name)
        for tool in ("spikingjelly_2", "spikingjelly_0")
        for name in golden_names(tool)
        if metadata(tool)[name]["neuron"] not in UNTAKEN
    ],
)
def test_every_setting_is_read(tool: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The spec that is compared with the tool's spikes bit for bit is what from_torch reads."""
    module = module_of(tool, name, monkeypatch)
    case = golden(tool, name)
    module.load_state_dict(dict(case.parameters))
    assert module_neuron_spec("n", module) == spec_of(case)


def test_all_neurons_are_known_by_name() -> None:
    families = {name: family for name, (family, _) in spiking_nodes.NEURONS.items()}
    assert families == {**SPIKINGJELLY, **dict.fromkeys(parallel.KINDS, "psn")}
    others = {node for node in UNTAKEN if node not in ("psn", *parallel.KINDS)}
    assert others == {*spiking_nodes.REFUSED, *NON_SPIKING}


@pytest.mark.parametrize(
    ("node", "text"),
    [(neuron.LIAFNode(torch.relu, True, step_mode="m"), "train with a LIFNode")],
    ids=lambda value: type(value).__name__,
)
def test_what_is_no_stepwise_spiking_neuron_is_refused(node: Any, text: str) -> None:
    network = nn.Sequential(layer.Linear(4, 4, step_mode="m"), node)
    with pytest.raises(
        UnsupportedGraphError, match=rf"module '1' \({type(node).__name__}\): .*{text}"
    ):
        from_torch(network, (4,), STEPS)


def changed(name: str, attribute: str, value: Any, **given: Any) -> Any:
    """A neuron with an attribute set behind its constructor."""
    node = getattr(neuron, name)(**given)
    if isinstance(value, Tensor) and attribute in node._parameters:
        value = nn.Parameter(value)
    setattr(node, attribute, value)
    return node


WRONG = {
    "n: v_threshold -1.0 must be above 0": changed("QIFNode", "v_threshold", -1.0),
    "n: v_reset 1.5 must be below v_threshold": changed("EIFNode", "v_threshold", 1.0),
    "n: qif: tau 0.5 must be at least 1": changed("QIFNode", "tau", 0.5),
    "n: izhikevich: tau_w 0.5 must be at least 1": changed("IzhikevichNode", "tau_w", 0.5),
    "n: qif: a0 -1 must be above 0": changed("QIFNode", "a0", -1.0),
    "n: eif: delta_T 0 must be above 0": changed("EIFNode", "delta_T", 0.0),
    r"n: v_threshold is a tensor of \(3,\)": changed("IFNode", "v_threshold", torch.ones(3)),
    r"n: k is a tensor of \(3,\)": changed("KLIFNode", "k", torch.ones(3)),
    r"n: w is a tensor of \(3,\)": changed("ParametricLIFNode", "w", torch.ones(3)),
}


@pytest.mark.parametrize("text", WRONG)
def test_numbers_that_are_not_supported_are_refused_with_the_neurons_name(text: str) -> None:
    node = WRONG[text]
    if "v_reset" in text:
        node.v_reset = 1.5
        node.set_reset_value("v", 1.5)
    with pytest.raises(UnsupportedGraphError, match=text):
        module_neuron_spec("n", node)


def test_states_that_start_elsewhere_are_refused() -> None:
    node = neuron.CUBALIFNode()
    node.set_reset_value("c", 0.5)
    with pytest.raises(UnsupportedGraphError, match=r"n: c starts at 0\.5 after a reset"):
        module_neuron_spec("n", node)
    clif = neuron.ComplementaryLIFNode(step_mode="m")
    clif.m = 0.25
    with pytest.raises(UnsupportedGraphError, match=r"'0' has m = 0\.25, which was set by hand"):
        from_torch(nn.Sequential(clif), (4,), STEPS)


def test_where_w_starts_is_read() -> None:
    node = neuron.IzhikevichNode(w_rest=0.5)
    node.w_rest = 3.0  # nothing reads it any more
    assert dict(module_neuron_spec("n", node).settings)["w_rest"] == 0.5


def test_klif_without_reset_value_is_refused_of_0_0_0_0_14() -> None:
    node = neuron.KLIFNode(v_reset=None)
    assert module_neuron_spec("n", node).v_reset is None
    place = {"__module__": "spikingjelly.activation_based.neuron"}
    node.__class__ = type("KLIFNode", (neuron.KLIFNode,), place)
    with pytest.raises(UnsupportedGraphError, match="n: KLIFNode without v_reset"):
        module_neuron_spec("n", node)


@pytest.mark.parametrize(
    ("node", "text"),
    [
        (neuron.GatedLIFNode(3), r"GatedLIFNode\(T=3\) in a network of 4 time steps; .*give"),
        (neuron.GatedLIFNode(STEPS, inplane=5), r"with inplane=5 on neurons of \(6, 4, 4\)"),
    ],
    ids=["steps", "channels"],
)
def test_a_gated_neuron_in_the_wrong_place_is_refused(node: Any, text: str) -> None:
    network = nn.Sequential(layer.Conv2d(2, 6, 3, step_mode="m"), node)
    with pytest.raises(UnsupportedGraphError, match=text):
        from_torch(network, (2, 6, 6), STEPS)


def test_a_gated_neuron_behind_a_linear_layer_is_refused() -> None:
    network = nn.Sequential(layer.Linear(4, 6, step_mode="m"), neuron.GatedLIFNode(STEPS))
    with pytest.raises(UnsupportedGraphError, match=r"with one number of all on neurons of \(6,\)"):
        from_torch(network, (4,), STEPS)


def test_another_window_for_gradients_is_told() -> None:
    function = surrogate.MultiLevelSpikeCount(4, grad_window=(-1.0, 5.0))
    with pytest.warns(NetworkWarning, match="gradients between -1 and 5; .* between 0 and 4"):
        module_neuron_spec("n", neuron.ILIFNode(surrogate_function=function))
