"""from_torch and `import torch`: what the comparison with the original sees and refuses."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from torch import Tensor, nn

from soul_deploy import from_torch
from soul_deploy.base.errors import NetworkWarning, UnsupportedGraphError, VerificationError
from soul_deploy.cli.main import root
from soul_deploy.frontend import from_torch as fromtorch
from soul_deploy.ir import NeuronSpec
from soul_deploy.model.file import load
from soul_deploy.nn import layers
from soul_deploy.nn.neuron import SpikingNeuron

pytest.importorskip("spikingjelly", reason="`make` installs SpikingJelly for these tests")

from spikingjelly.activation_based import functional, layer, neuron

T, SHAPE = 4, (2, 8, 8)
Forward = Callable[["Net", Tensor], Tensor]


class Net(nn.Module):
    """Two spiking blocks of SpikingJelly's and a spiking output, with a forward of the test's."""

    def __init__(self, forward: Forward, mode: str = "m", strength: float = 9.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a: Any = nn.Sequential(layer.Conv2d(2, 4, 3, padding=1), neuron.LIFNode())
        self.b: Any = nn.Sequential(
            *(layer.Conv2d(4, 4, 3, padding=1), neuron.LIFNode(), layer.Flatten()),
            *(layer.Linear(256, 5), neuron.LIFNode()),
        )
        self.same, self.drop = nn.Identity(), nn.Dropout(0.5)
        functional.set_step_mode(self, mode)
        self.run, self.calls = forward, 0
        with torch.no_grad():
            for name in ("a.0.weight", "b.0.weight", "b.3.weight"):
                self.get_parameter(name).mul_(strength)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.run(self, x)


def plain(net: Net, x: Tensor) -> Tensor:
    scores: Tensor = net.b(net.a(x)).mean(0)
    return scores


def frames(strength: float = 3.0) -> Tensor:
    """(T, 3, 2, 8, 8); at strength 0.06 every layer of a Net stays silent."""
    return torch.rand(T, 3, *SHAPE, generator=torch.Generator().manual_seed(1)) * strength


def alias(net: Net, x: Tensor) -> Tensor:
    y = net.a(x)
    z = y
    z += y
    scores: Tensor = net.b(y).mean(0)
    return scores


def without_a_name(net: Net, x: Tensor) -> Tensor:
    y = net.a(x)
    y.add_(net.same(y))
    return net.b(y).mean(0)  # type: ignore[no-any-return]


def product(net: Net, x: Tensor) -> Tensor:
    y = net.a(x)
    z = net.drop(y)
    z *= net.same(y)
    return net.b(y).mean(0)  # type: ignore[no-any-return]


def through_a_view(net: Net, x: Tensor) -> Tensor:
    y = net.a(x)
    flat = y.flatten(2)
    flat += y.flatten(2)
    return net.b(y).mean(0)  # type: ignore[no-any-return]


def view_made_before(net: Net, x: Tensor) -> Tensor:
    y = net.a(x)
    seen = y.reshape(y.shape[0], y.shape[1], 4, 8, 8)
    y += net.same(y)
    return net.b(seen).mean(0)  # type: ignore[no-any-return]


def later_branch(net: Net, x: Tensor) -> Tensor:
    y = net.a(x)
    kept = net.same(y)
    y += kept
    return net.b(y + kept).mean(0)  # type: ignore[no-any-return]


def index_assignment(net: Net, x: Tensor) -> Tensor:
    y = net.a(x)
    y[0] = 0.0
    return net.b(y).mean(0)  # type: ignore[no-any-return]


def relu_in_place(net: Net, x: Tensor) -> Tensor:
    y = net.a(x)
    F.relu_(y)
    return net.b(y).mean(0)  # type: ignore[no-any-return]


def relu_by_argument(net: Net, x: Tensor) -> Tensor:
    y = net.a(x)
    F.relu(y, inplace=True)
    return net.b(y).mean(0)  # type: ignore[no-any-return]


def into_another(net: Net, x: Tensor) -> Tensor:
    y = net.a(x)
    torch.add(y, y, out=y)
    return net.b(y).mean(0)  # type: ignore[no-any-return]


def of_the_input(net: Net, x: Tensor) -> Tensor:
    x += x
    return net.b(net.a(x)).mean(0)  # type: ignore[no-any-return]


OLD_NAME = r"an operation in place \({}\) on a value that {} reads afterwards under another name"
ALIASES: dict[Forward, str] = {
    alias: OLD_NAME.format("iadd", "b.0") + r".*line \d+: z \+= y",
    without_a_name: OLD_NAME.format("add_", "b.0") + r".*line \d+: y.add_\(net.same\(y\)\)",
    product: OLD_NAME.format("imul", "b.0") + r".*line \d+: z \*= net",
    through_a_view: OLD_NAME.format("iadd", "b.0") + r".*line \d+: flat \+= y",
    view_made_before: OLD_NAME.format("iadd", "b.0") + r".*line \d+: y \+= net",
    later_branch: OLD_NAME.format("iadd", "add") + r".*line \d+: y \+= kept",
    index_assignment: r"operation setitem is not supported .*line \d+: y\[0\] = 0\.0",
    relu_in_place: r"operation relu_? is not supported .*line \d+: F.relu_\(y\)",
    relu_by_argument: r"operation relu is not supported .*line \d+: F.relu\(y, inplace=True\)",
    into_another: r"operation add\(a_1, a_1, out=a_1\) is not supported .*line \d+: torch.add",
    of_the_input: r"\(iadd\) on the network's own input, which is .*line \d+: x \+= x",
}


@pytest.mark.parametrize("forward", ALIASES, ids=lambda f: f.__name__)
def test_a_value_changed_in_place_under_another_name_is_refused(forward: Forward) -> None:
    """On an example that leaves all layers silent, so that no comparison can see it."""
    with pytest.raises(UnsupportedGraphError, match=ALIASES[forward]) as caught:
        from_torch(Net(forward), SHAPE, T, example=frames(0.06))
    assert "in the network itself, test_from_torch.py line" in str(caught.value)


def residual(net: Net, x: Tensor) -> Tensor:
    y = net.a(x)
    out = net.b[1](net.b[0](y))
    out += y
    return net.b[4](net.b[3](net.b[2](out))).mean(0)  # type: ignore[no-any-return]


def doubled(net: Net, x: Tensor) -> Tensor:
    y = net.a(x)
    y += net.same(y)
    y = net.drop(y)
    return net.b(y).mean(0)  # type: ignore[no-any-return]


def product_of_its_own(net: Net, x: Tensor) -> Tensor:
    y = net.a(x)
    out = 1 - net.b[1](net.b[0](y))
    out *= y
    return net.b[4](net.b[3](net.b[2](out))).mean(0)  # type: ignore[no-any-return]


def sizes(net: Net, x: Tensor) -> Tensor:
    y = net.a(x)
    steps = y.shape[0]
    steps *= y.shape[1]
    whole = y.reshape(steps, 4, 8, 8).reshape(y.shape[0], y.shape[1], 4, 8, 8)
    return net.b(whole).mean(0)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "forward", [residual, doubled, product_of_its_own, sizes], ids=lambda f: f.__name__
)
def test_a_value_that_nobody_else_reads_may_change_in_place(forward: Forward) -> None:
    net, x = Net(forward), frames()
    model = from_torch(net, SHAPE, T, example=x)
    with torch.no_grad():
        expected = net(x)
    assert expected.std() > 0.01
    torch.testing.assert_close(model.module()(x), expected, rtol=0, atol=1e-6)


NETS = (
    Path(__file__).read_text().split("def frames")[0]
    + """

def alias(net, x):
    y = net.a(x)
    z = y
    z += y
    return net.b(y).mean(0)


def make(): return Net(alias)


def held():
    net = Net(plain)
    net.b[1].v = 0.3
    return net


def weak(): return Net(plain, strength=0.01)


def good(): return Net(plain, strength=20.0)
"""
)


def import_torch(
    factory: str, folder: Path, monkeypatch: pytest.MonkeyPatch, *flags: str
) -> tuple[Any, Path]:
    (folder / "nets_of_tests.py").write_text(NETS)
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    target = folder / "net.safetensors"
    sizes = ["--input_shape", "2 8 8", "--classes", "5", "-T", str(T), *flags]
    words = ["import", "torch", f"nets_of_tests:{factory}", "-o", str(target), *sizes]
    return CliRunner().invoke(root, words), target


@pytest.mark.parametrize(
    ("factory", "text"),
    [
        ("make", "an operation in place (iadd) on a value that b.0 reads afterwards"),
        ("held", "neuron 'b.1' has v = 0.3, which was set by hand; a graph starts at rest"),
    ],
)
def test_the_command_refuses_them(
    factory: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result, target = import_torch(factory, tmp_path, monkeypatch)
    assert result.exit_code == 1, result.output
    assert text in result.stderr
    assert not target.exists()


def test_the_command_says_what_was_never_exercised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result, target = import_torch("weak", tmp_path, monkeypatch, "--format", "json")
    assert result.exit_code == 0, result.output
    untested = json.loads(result.stdout)["untested"]
    assert "b.4" in untested
    assert (
        f"{', '.join(untested[:3])} did not fire on the example, so what follows" in result.stderr
    )
    assert load(target).info.provenance["untested"] == untested
    result, target = import_torch("good", tmp_path, monkeypatch, "--format", "json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["untested"] == []
    assert "untested" not in load(target).info.provenance


def test_a_membrane_set_by_hand_is_refused_and_left_alone() -> None:
    net = Net(plain)
    net.b[1].v = 0.3
    with pytest.raises(UnsupportedGraphError, match=r"neuron 'b\.1' has v = 0\.3, .*reset_net"):
        from_torch(net, SHAPE, T, example=frames())
    assert net.b[1].v == 0.3
    functional.reset_net(net)
    from_torch(net, SHAPE, T, example=frames())
    net.b[1].set_reset_value("v", 0.3)
    functional.reset_net(net)
    with pytest.raises(UnsupportedGraphError, match=r"b\.1: its membrane starts at 0\.3 after a"):
        from_torch(net, SHAPE, T, example=frames())


def set_inside(net: Net, x: Tensor) -> Tensor:
    net.b[1].v = 0.3
    return plain(net, x)


def reset_inside(net: Net, x: Tensor) -> Tensor:
    functional.reset_net(net)
    return plain(net, x)


def test_a_membrane_set_in_forward_is_refused_with_its_line() -> None:
    with pytest.raises(
        UnsupportedGraphError,
        match=r"the state of 'b\.1' is set outside its neuron \(v\).*line \d+: net\.b\[1\]\.v = 0",
    ):
        from_torch(Net(set_inside), SHAPE, T, example=frames())
    model = from_torch(Net(reset_inside), SHAPE, T, example=frames())
    assert model.module()(frames()).std() > 0.01


def test_what_an_earlier_run_left_is_left_out_aloud_and_kept() -> None:
    net, x = Net(plain), frames()
    expected = from_torch(Net(plain), SHAPE, T, example=x).module()(x)
    net(x)
    before = {name: dict(vars(m)) for name, m in net.named_modules()}
    left = net.a[1].v
    assert left.requires_grad and left.abs().max() > 0.1
    with pytest.warns(NetworkWarning, match=r"^a\.1, b\.1, b\.4 hold membranes of an earlier run"):
        model = from_torch(net, SHAPE, T, example=x)
    assert torch.equal(model.module()(x), expected)
    assert net.a[1].v is left
    after = {name: dict(vars(m)) for name, m in net.named_modules()}
    after[""]["calls"] = before[""]["calls"]
    assert all(after[name].keys() == before[name].keys() for name in before)
    assert all(after[n][k] is before[n][k] for n in before for k in before[n] if n)
    assert not any(module._forward_hooks for module in net.modules())


def louder_current(net: Net, x: Tensor) -> Tensor:
    """Once it was traced, its first current is 1 % larger."""
    return net.b(net.a[1](net.a[0](x if net.calls == 1 else x * 1.01))).mean(0)  # type: ignore[no-any-return]


def another_start(net: Net, x: Tensor) -> Tensor:
    """Once it was traced, a membrane starts elsewhere: no current is another."""
    if net.calls > 1:
        net.a[1].v = 0.01
    return plain(net, x)


def louder_spikes(net: Net, x: Tensor) -> Tensor:
    """Once it was traced, the second layer gets other spikes, if there are any."""
    y = net.a(x)
    return net.b(y if net.calls == 1 else y * 1.01).mean(0)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("forward", "text"),
    [
        (louder_current, r"the current of 'a\.1' differs by up to"),
        (another_start, r"the membrane of 'a\.1' differs by up to"),
        (louder_spikes, r"the current of 'b\.1' differs by up to .*on the example times "),
    ],
    ids=["current", "membrane", "current at a larger scale"],
)
def test_a_difference_that_changes_no_spike_is_seen(forward: Forward, text: str) -> None:
    """On an example on which nothing fires."""
    with pytest.raises(VerificationError, match=text):
        from_torch(Net(forward), SHAPE, T, example=frames(0.06))


def test_layers_that_fire_on_a_larger_example_are_tested(recwarn: pytest.WarningsRecorder) -> None:
    model = from_torch(Net(plain), SHAPE, T, example=frames(0.06))
    assert "untested" not in model.info.provenance
    assert not [w for w in recwarn if issubclass(w.category, NetworkWarning)]
    deaf = Net(plain)
    for number in (0, 3):
        nn.init.zeros_(deaf.b[number].weight)
        nn.init.zeros_(deaf.b[number].bias)
    with pytest.warns(
        NetworkWarning, match=r"b\.1, b\.4 did not fire on the example, so what follows"
    ):
        model = from_torch(deaf, SHAPE, T, example=frames())
    assert model.info.provenance["untested"] == ["b.1", "b.4"]


def one_step(net: Net, x: Tensor) -> Tensor:
    scores: Tensor = net.b(net.a(x))
    return scores


@pytest.mark.parametrize(("steps", "batch"), [(1, 1), (1, 2), (3, 1), (3, 3)])
@pytest.mark.parametrize("static", [True, False])
def test_single_step_networks_of_any_length(steps: int, batch: int, static: bool) -> None:
    x = frames()[0, :1].expand(steps, batch, *SHAPE).clone()
    net = Net(one_step, mode="s", strength=9.0)
    model = from_torch(net, SHAPE, steps, example=x[0] if static else x)
    with torch.no_grad():
        expected = torch.stack([net(frame) for frame in x]).mean(0)
    torch.testing.assert_close(model.module()(x), expected, rtol=0, atol=1e-6)


def test_large_networks_are_compared_a_few_samples_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A difference in the last sample alone is seen."""
    monkeypatch.setattr(fromtorch, "LARGEST_PIECE", 1)
    from_torch(Net(plain), SHAPE, T, example=frames())
    x = frames()
    x[:, :2] = 0

    def other(net: Net, x: Tensor) -> Tensor:
        return plain(net, x if net.calls == 1 else x * 1.01)

    with pytest.raises(VerificationError, match="the current of"):
        from_torch(Net(other), SHAPE, T, example=x)


def test_our_own_neurons_are_compared_too() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.sn = layers.Conv2d(2, 4, 3), SpikingNeuron(NeuronSpec(), T)
            self.head, self.calls = layers.RateReadout(4, 3), 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            y = self.conv(x)
            scores: Tensor = self.head(self.sn(y if self.calls == 1 else y * 1.01))
            return scores

    for x in (torch.rand(2, *SHAPE), torch.rand(T, 2, *SHAPE)):
        with pytest.raises(VerificationError, match="the current of 'sn' differs"):
            from_torch(Own(), SHAPE, T, example=x * 0.1)
