"""Shapes that a forward asks for: answered as they are, and refused where no answer holds."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from soul_deploy import from_torch
from soul_deploy.base.errors import UnsupportedGraphError
from soul_deploy.frontend.from_torch import trace
from soul_deploy.ir import NeuronSpec
from soul_deploy.nn import layers
from soul_deploy.nn.neuron import SpikingNeuron

T, SHAPE = 3, (2, 6, 4)
Forward = Callable[["Net", Tensor], Tensor]


class Net(nn.Module):
    """Convolution, batch norm and neurons, twice, with a forward of the test's own."""

    def __init__(self, forward: Forward) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm = layers.Conv2d(2, 4, 3, padding=1), layers.BatchNorm2d(4)
        self.sn1 = SpikingNeuron(NeuronSpec(), T)
        self.conv2 = layers.Conv2d(4, 4, 3, padding=1)
        self.sn2 = SpikingNeuron(NeuronSpec("if"), T)
        self.pool, self.fc = layers.AvgPool2d(2), nn.Linear(4, 3)
        self.wide = nn.Linear(96, 3)
        self.run = forward
        with torch.no_grad():
            self.conv.weight.mul_(4)
            self.conv2.weight.mul_(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)

    def spikes(self, x: Tensor) -> Tensor:
        """(T, B, 4, 6, 4)."""
        found: Tensor = self.sn2(self.conv2(self.sn1(self.norm(self.conv(x)))))
        return found

    def rates(self, x: Tensor) -> Tensor:
        scores: Tensor = self.fc(self.spikes(x).mean((0, 3, 4)))
        return scores


def wrong(net: Net, x: Tensor) -> Tensor:
    """Where a forward goes if it got a wrong answer."""
    raise AssertionError(f"not for {tuple(x.shape)}")


def of_the_input(net: Net, x: Tensor) -> Tensor:
    fits = x.dim() == 4 and x.ndim == 4 and len(x.shape) == 4 and len(x.size()) == 4
    return net.rates(x) if fits and x.ndimension() == 4 else wrong(net, x)


def of_sides(net: Net, x: Tensor) -> Tensor:
    if x.shape[1:] != SHAPE or x.size(-1) != 4 or x.size(dim=2) != 6 or x.shape[-2:] != (6, 4):
        return wrong(net, x)
    for _ in range(x.size(1) // 2):  # once
        x = net.rates(x)
    return x if x.shape[1:] == (3,) else wrong(net, x)


def behind_neurons(net: Net, x: Tensor) -> Tensor:
    y = net.norm(current := net.conv(x))
    spikes = net.sn1(y)
    assert current.shape == y.shape == (*x.shape[:1], 4, 6, 4)
    assert spikes.shape[0] == T == len(spikes) and spikes.ndim == y.dim() + 1
    assert spikes.shape[1] == x.shape[0] and spikes.numel() == T * y.numel()
    spikes = net.sn2(net.conv2(spikes))
    if spikes.size(-1) > 2:
        spikes = net.pool(spikes)
    assert spikes.shape[2:] == (4, 3, 2) and not spikes.shape[4] > 2
    return net.fc(spikes.mean((0, 3, 4)))  # type: ignore[no-any-return]


def folded(net: Net, x: Tensor) -> Tensor:
    spikes = net.spikes(x)
    steps, batch, *own = spikes.shape
    flat = spikes.reshape(steps * batch, *own)
    assert flat.shape[0] == steps * batch and flat.shape[0] != batch and flat.ndim == 4
    assert flat.shape[0] // batch == steps and flat.shape[0] // steps == batch
    again = flat.view(flat.size(0), -1).unflatten(0, (steps, batch))  # type: ignore[no-untyped-call]
    assert again.shape == (steps, batch, 96)
    return net.wide(again).mean(0)  # type: ignore[no-any-return]


def legacy_view(net: Net, x: Tensor) -> Tensor:
    """As `seq_to_ann_forward` of SpikingJelly 0.0.0.0.14 does it."""
    spikes = net.spikes(x)
    sides = [spikes.shape[0], spikes.shape[1]]
    y = net.pool(spikes.flatten(0, 1))
    sides.extend(y.shape[1:])
    return net.fc(y.view(sides).mean((0, 3, 4)))  # type: ignore[no-any-return]


def repeated(net: Net, x: Tensor) -> Tensor:
    if x.dim() == 4:
        x = x.repeat(T, 1, 1, 1, 1)
    assert x.shape[0] == T
    return net.rates(x)


def expanded(net: Net, x: Tensor) -> Tensor:
    x = net.conv(x).unsqueeze(0)
    assert x.shape[0] == 1 and x.ndim == 5
    y = x.expand(T, *x.shape[1:])
    assert y.shape[0] == T
    return net.fc(net.sn2(net.conv2(net.sn1(y))).mean((0, 3, 4)))  # type: ignore[no-any-return]


def stacked(net: Net, x: Tensor) -> Tensor:
    return net.rates(torch.stack([x] * T))


def indexed_by_none(net: Net, x: Tensor) -> Tensor:
    return net.rates(x[None].expand(T, *x.shape))


def expanded_in_front(net: Net, x: Tensor) -> Tensor:
    return net.rates(x.expand(T, -1, -1, -1, -1))


@pytest.mark.parametrize(
    "forward",
    [
        *(of_the_input, of_sides, behind_neurons, folded, legacy_view),
        *(repeated, expanded, stacked, indexed_by_none, expanded_in_front),
    ],
    ids=lambda f: f.__name__,
)
def test_shapes_are_answered(forward: Forward) -> None:
    network = Net(forward).eval()
    x = torch.randn(2, *SHAPE) * 3
    with torch.no_grad():
        expected = network(x)
    assert expected.std() > 0.01
    model = from_torch(network, SHAPE, T, example=x)
    torch.testing.assert_close(model.module()(x), expected, rtol=0, atol=1e-6)


def either(net: Net, x: Tensor) -> Tensor:
    """Sequences go through more neurons than images."""
    if x.ndim == 4:
        return net.rates(x)
    if x.ndim == 5 and x.shape[0] == T:
        return net.fc(net.sn1(net.norm(net.conv(x))).mean((0, 3, 4)))  # type: ignore[no-any-return]
    raise ValueError(f"neither images nor sequences: {x.shape}")


def test_the_example_says_what_a_network_of_ours_is_given() -> None:
    network = Net(either).eval()
    for x, populations in (
        (torch.randn(2, *SHAPE) * 3, ["sn1", "sn2"]),
        (torch.randn(T, 2, *SHAPE) * 3, ["sn1"]),
    ):
        model = from_torch(network, SHAPE, T, example=x)
        assert [node.name for node in model.graph.populations] == populations
        with torch.no_grad():
            torch.testing.assert_close(model.module()(x), network(x), rtol=0, atol=1e-6)


def batch_compared(net: Net, x: Tensor) -> Tensor:
    return net.rates(x) if x.shape[0] == 1 else x


def batch_counted(net: Net, x: Tensor) -> Tensor:
    for _ in range(x.size(0)):
        x = net.conv(x)
    return x


def batch_ordered(net: Net, x: Tensor) -> Tensor:
    return net.rates(x) if len(x) > 1 else x


def batch_written(net: Net, x: Tensor) -> Tensor:
    return net.wide(net.spikes(x).view(T, 2, -1)).mean(0)  # type: ignore[no-any-return]


def time_written(net: Net, x: Tensor) -> Tensor:
    spikes = net.spikes(x)
    return net.wide(spikes.view(spikes.shape[1], spikes.shape[0], -1)).mean(0)  # type: ignore[no-any-return]


def unflattened_wrongly(net: Net, x: Tensor) -> Tensor:
    return net.pool(net.spikes(x).flatten(0, 1)).unflatten(0, (2, -1)).mean((0, 3, 4))  # type: ignore[no-any-return]


def repeated_twice(net: Net, x: Tensor) -> Tensor:
    return net.rates(x.unsqueeze(0).repeat(T, 1, 1, 1, 1).repeat(T, 1, 1, 1, 1))


def stacked_too_often(net: Net, x: Tensor) -> Tensor:
    return net.rates(torch.stack([x, x]))


def stacked_parts(net: Net, x: Tensor) -> Tensor:
    return net.rates(torch.stack([x, net.conv(x), x]))


def never_repeated(net: Net, x: Tensor) -> Tensor:
    return net.rates(x.unsqueeze(0))


NUMBER = r"the number of samples that are given at once \(B\) is used as a number.*test_shapes.py"
NOT_ANSWERED: dict[Forward, str] = {
    batch_compared: NUMBER,
    batch_counted: NUMBER,
    batch_ordered: NUMBER,
    batch_written: r"operation view\(sn2, 3, 2, -1\)",
    time_written: r"operation view\(sn2, B, 3, -1\)",
    unflattened_wrongly: r"operation unflatten\(pool, 0, \(2, -1\)\)",
    repeated_twice: r"operation repeat\(repeat, 3, 1, 1, 1, 1\)",
    stacked_too_often: r"an image repeated 2 times with time_steps = 3",
    stacked_parts: r"operation stack\(\[x, conv, x\]\) \(loops over time belong outside",
    never_repeated: r"neuron 'sn1' on one step with time_steps = 3",
}


@pytest.mark.parametrize("forward", NOT_ANSWERED, ids=lambda f: f.__name__)
def test_what_only_one_batch_size_answers_is_refused(forward: Forward) -> None:
    with pytest.raises(UnsupportedGraphError, match=NOT_ANSWERED[forward]):
        trace(Net(forward), SHAPE, T)


def test_a_layer_that_cannot_be_understood_is_named_at_its_own_line() -> None:
    """A shape behind it is asked for; the error is that of the layer, once."""

    def unknown(net: Net, x: Tensor) -> Tensor:
        y = torch.sigmoid(net.conv(x))
        return net.rates(y) if y.dim() == 4 else y

    text = r"operation sigmoid is not supported \(in the network itself, .*y = torch.sigmoid"
    with pytest.raises(UnsupportedGraphError, match=text) as caught:
        trace(Net(unknown), SHAPE, T)
    assert str(caught.value).count("supported: Conv2d") == 1
