"""Forms that people write around their layers: same spikes as the network's own."""

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from own_spikes import own_spikes
from torch import Tensor, nn

from soul_deploy import from_torch
from soul_deploy.base.errors import NetworkWarning, UnsupportedGraphError
from soul_deploy.equivalence.verdict import Verdict
from soul_deploy.export.event.build import build_event_network, export_event
from soul_deploy.export.onnx.model import export_onnx
from soul_deploy.export.verify.verify import verify
from soul_deploy.model.file import load, save
from soul_deploy.model.model import Model

pytest.importorskip("spikingjelly", reason="`make` installs SpikingJelly for these tests")

from spikingjelly.activation_based import functional, layer, neuron

T, SHAPE = 4, (2, 8, 8)


class Net(nn.Module):
    """Layers of SpikingJelly; `form` says what forward does with them."""

    gain: Tensor

    def __init__(self, form: "Form") -> None:
        super().__init__()
        self.first, self.inner = layer.Conv2d(2, 4, 3, padding=1), layer.Conv2d(4, 4, 3, padding=1)
        self.narrow, self.other = layer.Conv2d(4, 4, 3), layer.Conv2d(4, 4, 3, padding=1)
        self.bn, self.td = layer.BatchNorm2d(4), layer.ThresholdDependentBatchNorm2d(1.0, 0.5, 4)
        self.n0, self.n1, self.n2 = (neuron.LIFNode(v_threshold=v) for v in (0.3, 0.2, 0.2))
        self.pool, self.max = layer.AvgPool2d(2, 2), layer.MaxPool2d(2, 2)
        self.overlapping = layer.AvgPool2d(3, 1, 1)
        self.fc = layer.Linear(16, 5)
        self.register_buffer("gain", torch.tensor([0.5, 2.0, 1.0, 1.5]).reshape(4, 1, 1))
        self.trained = nn.Parameter(torch.tensor(0.5))
        self.form = form
        functional.set_step_mode(self, "m")

    def forward(self, x: Tensor) -> Tensor:
        return self.form(self, x)

    def start(self, x: Tensor) -> Tensor:
        """Spikes (T, B, 4, 4, 4), averaged."""
        spikes: Tensor = self.pool(self.n0(self.first(x)))
        return spikes

    def end(self, spikes: Tensor) -> Tensor:
        """Scores at each step of (T, B, 4, 2, 2)."""
        scores: Tensor = self.fc(spikes.flatten(2))
        return scores


Form = Callable[[Net, Tensor], Tensor]
FORMS: dict[str, Form] = {
    "tdBN": lambda n, x: n.end(n.max(n.n1(n.td(n.inner(n.start(x)))))),
    "batch norm behind a pooling": lambda n, x: n.end(n.n1(n.bn(n.pool(n.inner(n.start(x)))))),
    "a pooled current": lambda n, x: n.end(n.n1(n.pool(n.bn(n.inner(n.start(x)))))),
    "a current pooled with padding": lambda n, x: n.end(
        n.pool(n.n1(n.overlapping(n.inner(n.start(x)))))
    ),
    "batch norm before a padded convolution": lambda n, x: n.end(
        n.pool(n.n1(n.inner(n.bn(n.start(x)))))
    ),
    "batch norm before a convolution": lambda n, x: n.end(n.n1(n.narrow(n.bn(n.start(x))))),
    "pooled spikes in a sum": lambda n, x: n.end(
        n.pool(n.n2(n.other(n.n1(n.inner(s := n.start(x))) + s)))
    ),
    "a sum of currents that is scaled": lambda n, x: n.end(
        n.pool(n.n1((n.inner(s := n.start(x)) + s) * 0.5))
    ),
    "a shared convolution": lambda n, x: n.end(n.pool(n.n2(n.inner(n.n1(n.inner(n.start(x))))))),
    "numbers": lambda n, x: n.end(n.max(n.n1(n.inner(n.start(x) / 4) * 3)) * 0.25),
    "numbers by function": lambda n, x: n.end(
        n.pool(n.n1(torch.mul(n.inner(torch.div(n.start(x), 4)), 3)))
    ),
    "one number a channel": lambda n, x: n.end(n.pool(n.n1(n.inner(n.start(x)) * n.gain))),
    "divided channel by channel": lambda n, x: n.end(n.pool(n.n1(n.inner(n.start(x)) / n.gain))),
    "channels of a max pooling": lambda n, x: n.end(
        n.pool(n.n1(n.inner(n.max(n.n0(n.first(x)) * n.gain))))
    ),
    "a negative number before a max pooling": lambda n, x: n.end(
        n.pool(n.n1(n.inner(n.max(n.n0(n.first(x)) * -2))))
    ),
    "a max pooling of what others read": lambda n, x: n.end(
        n.pool(n.n1(n.inner(n.max(s := n.n0(n.first(x)) * 2)) + n.other(n.pool(s))))
    ),
    "a negative number": lambda n, x: n.end(n.pool(n.n1(-n.inner(-n.start(x) * 8)))),
    "in place": lambda n, x: n.end(n.pool(n.n1(n.inner(n.start(x)).mul_(2)))),
    "axes swapped twice": lambda n, x: n.end(
        n.pool(n.n1(n.inner(n.start(x).permute(1, 0, 2, 3, 4).transpose(0, 1))))
    ),
    "channels last and back": lambda n, x: n.end(
        n.pool(n.n1(n.inner(n.start(x).permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3))))
    ),
    "time folded and back": lambda n, x: n.end(
        n.pool(n.n1(n.inner(torch.unflatten(n.start(x).flatten(0, 1), 0, (T, -1)))))
    ),
    "time folded by reshape": lambda n, x: n.end(
        n.pool(n.n1(n.inner((s := n.start(x)).reshape(-1, *s.shape[2:]).view(s.shape))))
    ),
}
WARNED = {"a shared convolution": "module 'inner' is called at several places"}


def made(name: str) -> tuple[Net, Tensor]:
    torch.manual_seed(0)
    network = Net(FORMS[name])
    for norm in (network.bn, network.td):
        norm.running_mean.uniform_(-0.2, 0.1)
        norm.running_var.uniform_(0.3, 0.6)
        nn.init.uniform_(norm.bias, 0, 0.3)
    for convolution in (network.first, network.inner, network.narrow, network.other):
        nn.init.uniform_(convolution.bias, 0.1, 0.4)
    return network.eval(), 2 * torch.rand(T, 3, *SHAPE)


def taken(name: str) -> tuple[Net, Tensor, Model]:
    """A network, its input, and what it became; what is warned of stands in WARNED."""
    network, x = made(name)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", NetworkWarning)
        model = from_torch(network, SHAPE, T, example=x)
    said = [str(warning.message) for warning in caught]
    assert len(said) == (name in WARNED)
    assert all(WARNED[name] in text for text in said)
    return network, x, model


@pytest.mark.parametrize("name", FORMS)
def test_a_form_fires_as_in_spikingjelly(name: str, tmp_path: Path) -> None:
    network, x, model = taken(name)
    spikes, logits = own_spikes(network, x)
    save(model, tmp_path / "model.safetensors")
    model = load(tmp_path / "model.safetensors")
    found = model.module().record(x)
    assert list(found.spikes) == list(spikes)
    for population, mine in found.spikes.items():
        assert torch.equal(mine, spikes[population]), population
        assert 0.01 < mine.float().mean() < 0.99, population
    torch.testing.assert_close(found.logits, logits, rtol=0, atol=1e-5)
    export_onnx(model, tmp_path / "net.onnx", input_mode="sequence")
    export_event(model, tmp_path / "net.event.safetensors")
    for file in ("net.onnx", "net.event.safetensors"):
        report = verify(model, tmp_path / file, x)
        assert report.verdict is Verdict.PASSED, report.text()


LAYERS: dict[str, list[tuple[str, str]]] = {
    "batch norm behind a pooling": [("n0", "analog"), ("n1", "spike")],
    "a pooled current": [("n0", "analog"), ("n1", "spike")],
    "a current pooled with padding": [
        ("n0", "analog"), ("inner", "spike"), ("n1", "analog"),
    ],
    "batch norm before a padded convolution": [("n0", "analog"), ("bn", "spike"), ("n1", "analog")],
    "batch norm before a convolution": [("n0", "analog"), ("n1", "spike")],
    "pooled spikes in a sum": [
        ("n0", "analog"), ("pool", "spike"), ("n1", "spike"), ("n2", "analog"),
    ],
    "a sum of currents that is scaled": [
        ("n0", "analog"), ("inner", "spike"), ("scale.1", "spike"),
    ],
    "numbers": [("n0", "analog"), ("n1", "spike")],
    "one number a channel": [("n0", "analog"), ("n1", "spike")],
    "channels of a max pooling": [("n0", "analog"), ("n1", "spike")],
}  # fmt: skip
"""Layers with synapses, and what arrives at them."""


@pytest.mark.parametrize("name", LAYERS)
def test_what_is_composed_is_no_layer(name: str) -> None:
    *_, model = taken(name)
    events = build_event_network(model)
    assert [(layer.name, layer.edge) for layer in events.projected] == LAYERS[name]


REFUSED: dict[str, tuple[Form, str]] = {
    "axes left swapped": (
        lambda n, x: n.n1(n.inner(n.start(x).permute(1, 0, 2, 3, 4))),
        "with axes in another order; permute them back first",
    ),
    "an axis that is none": (
        lambda n, x: n.end(n.start(x).permute(0, 1, 2, 3)),
        r"operation permute\(pool, 0, 1, 2, 3\) is not supported",
    ),
    "neurons twice": (
        lambda n, x: n.end(n.pool(n.n1(n.inner(n.n1(n.inner(n.start(x))))))),
        "module 'n1' is called twice .*elsewhere make a module for each place",
    ),
    "a number of 0": (
        lambda n, x: n.end(n.pool(n.n1(n.inner(n.start(x)) * 0))),
        r"a multiplication of 'inner' by 0, or not finite.*test_forms.py line \d+",
    ),
    "one number a row": (
        lambda n, x: n.end(n.pool(n.n1(n.inner(n.start(x)) * n.gain.reshape(1, 4, 1)))),
        r"a multiplication of 'inner' by a constant of shape \(1, 4, 1\)",
    ),
    "divided by spikes": (
        lambda n, x: n.end(n.pool((s := n.n1(n.inner(n.start(x)))) / s)),
        "operation truediv",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_says_why(name: str) -> None:
    form, text = REFUSED[name]
    with pytest.raises(UnsupportedGraphError, match=text):
        from_torch(Net(form).eval(), SHAPE, T, example=torch.rand(T, 1, *SHAPE))


def test_a_trained_constant_is_warned_about() -> None:
    network = Net(lambda n, x: n.end(n.pool(n.n1(n.inner(n.start(x)) * n.trained))))
    with pytest.warns(NetworkWarning, match="parameter 'trained' is multiplied with a value"):
        from_torch(network.eval(), SHAPE, T, example=2 * torch.rand(T, 3, *SHAPE))


def test_tied_weights_are_warned_about() -> None:
    network, _ = made("pooled spikes in a sum")
    network.first = layer.Conv2d(4, 4, 3, padding=1, step_mode="m")
    network.inner.weight = network.first.weight
    with pytest.warns(NetworkWarning, match="'inner.weight' and 'first.weight' are one parameter"):
        from_torch(network, (4, 8, 8), T, example=2 * torch.rand(T, 3, 4, 8, 8))


def test_copies_of_a_shared_convolution_hold_its_weights() -> None:
    *_, model = taken("a shared convolution")
    for part in ("weight", "bias"):
        copy, own = (model.state[f"{name}.{part}"] for name in ("inner_call_2", "inner"))
        assert (copy == own).all() and copy is not own
    assert [node.name for node in model.graph.projections] == ["first", "inner", "inner_call_2"]
