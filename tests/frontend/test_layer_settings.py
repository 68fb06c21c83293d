"""Settings of layers that change nothing are taken; those that a graph lacks are named."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from soul_deploy import from_torch, load, save
from soul_deploy.base.errors import FileFormatError, UnsupportedGraphError
from soul_deploy.ir import BatchNorm, Convolution, NeuronSpec, SpikingGraph
from soul_deploy.nn.neuron import SpikingNeuron

T = 2


class Net(nn.Module):
    """A layer of the test's own on images or spikes, neurons, a head on the sums over space."""

    def __init__(self, layer: nn.Module, channels: int, *, pools: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Sequential(nn.Conv2d(2, channels, 1), SpikingNeuron(NeuronSpec("if"), 1))
        self.layer, self.pools = layer, pools
        self.fire = SpikingNeuron(NeuronSpec("if", v_threshold=0.3), 1)
        self.head = nn.Linear(channels, 3)
        with torch.no_grad():
            self.first[0].weight.mul_(6)  # type: ignore[operator]

    def forward(self, x: Tensor) -> Tensor:
        spikes = self.first(x) if self.pools else x.unsqueeze(0).repeat(1, 1, 1, 1, 1)
        spikes = self.fire(self.layer(spikes.flatten(0, 1)).unflatten(0, (1, -1)))
        return self.head(spikes.mean((0, 3, 4)))  # type: ignore[no-any-return]


def same_as_traced(network: Net, shape: tuple[int, int, int]) -> SpikingGraph:
    """The graph, whose scores are those of the network."""
    x = torch.randn(3, *shape) * 4
    model = from_torch(network.eval(), shape, 1, example=x)
    with torch.no_grad():
        expected = network(x)
    assert expected.std() > 0.01
    torch.testing.assert_close(model.module()(x), expected, rtol=0, atol=1e-6)
    return model.graph


CONVOLUTIONS: dict[str, tuple[dict[str, Any], tuple[int, int]]] = {
    "valid": ({"kernel_size": 3, "padding": "valid", "stride": 2}, (0, 0)),
    "same": ({"kernel_size": (3, 5), "padding": "same"}, (1, 2)),
    "same, dilated": ({"kernel_size": (2, 3), "padding": "same", "dilation": (2, 1)}, (1, 1)),
    "same, one by one": ({"kernel_size": 1, "padding": "same"}, (0, 0)),
    "reflected nothing": ({"kernel_size": 3, "padding_mode": "reflect"}, (0, 0)),
    "circular nothing": ({"kernel_size": 1, "padding": "same", "padding_mode": "circular"}, (0, 0)),
    "replicated nothing": (
        {"kernel_size": 3, "padding": "valid", "padding_mode": "replicate"},
        (0, 0),
    ),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_paddings_by_name(name: str) -> None:
    settings, padding = CONVOLUTIONS[name]
    graph = same_as_traced(Net(nn.Conv2d(2, 4, **settings), 4), (2, 9, 8))
    node = next(n for n in graph.nodes if n.name == "layer")
    assert isinstance(node, Convolution) and node.padding == padding


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (
            {"kernel_size": (2, 3), "padding": "same"},
            "layer: padding 'same' of a 2×3 kernel pads one side more than the other",
        ),
        (
            {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"},
            r"layer: padding_mode 'reflect' with padding \(1, 1\); only padding with zeros",
        ),
        (
            {"kernel_size": (1, 3), "padding": "same", "padding_mode": "circular"},
            r"layer: padding_mode 'circular' with padding \(0, 1\); only padding with zeros",
        ),
    ],
)
def test_other_paddings_are_named(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(UnsupportedGraphError, match=text):
        from_torch(Net(nn.Conv2d(2, 4, **settings), 4), (2, 9, 8), 1)


POOLS = [
    *(
        (nn.MaxPool2d, kernel, stride, padding)
        for kernel, stride, padding in [(2, 2, 0), (3, 2, 1)]
    ),
    *(
        (nn.AvgPool2d, kernel, stride, padding)
        for kernel, stride, padding in [(2, 2, 0), (3, 2, 1)]
    ),
    *((nn.MaxPool2d, 3, 3, 1), (nn.AvgPool2d, 2, 3, 0), (nn.MaxPool2d, 2, 3, 1)),
]


@pytest.mark.parametrize(("kind", "kernel", "stride", "padding"), POOLS)
def test_ceil_mode_where_it_changes_nothing(
    kind: Any, kernel: int, stride: int, padding: int
) -> None:
    """PyTorch's own sides, with ceil_mode and without, say where that is."""
    outcomes = set()
    for side in range(4, 9):
        plain, up = (kind(kernel, stride, padding, ceil_mode=mode) for mode in (False, True))
        x = torch.zeros(1, 1, side, side)
        network = Net(up, 3, pools=True)
        alike = plain(x).shape == up(x).shape
        outcomes.add(alike)
        if alike:
            same_as_traced(network, (2, side, side))
            continue
        text = rf"layer: ceil_mode on an input of \(3, {side}, {side}\) adds windows that hang over"
        with pytest.raises(UnsupportedGraphError, match=text):
            from_torch(network, (2, side, side), 1)
    assert True in outcomes


def test_a_batch_norm_that_averages_over_all_batches(tmp_path: Path) -> None:
    """`momentum=None` is kept: in the graph, its module and its file."""
    norm = nn.BatchNorm2d(4, momentum=None)
    network = Net(nn.Sequential(nn.Conv2d(2, 4, 3), norm), 4)
    network.train()
    for scale in (1.0, 3.0):
        network(torch.randn(4, 2, 6, 6) * scale)
    graph = same_as_traced(network, (2, 6, 6))
    node = next(n for n in graph.nodes if n.name == "layer.0")
    assert isinstance(node, Convolution) and node.norm == BatchNorm("layer.1", norm.eps, None)
    model = from_torch(network, (2, 6, 6), 1, example=torch.randn(3, 2, 6, 6) * 4)
    save(model, tmp_path / "net.safetensors")
    again = load(tmp_path / "net.safetensors")
    assert again.graph == model.graph
    trained, x = again.module(), torch.randn(5, 2, 6, 6)
    trained.train()
    network.train()
    for module in (trained, network):
        module(x)
    mine, theirs = trained.get_buffer("layer.1.running_mean"), norm.running_mean
    torch.testing.assert_close(mine, theirs)
    assert norm.num_batches_tracked == trained.get_buffer("layer.1.num_batches_tracked") == 3


@pytest.mark.parametrize("momentum", ["a tenth", float("nan"), [0.1]])
def test_another_momentum_in_a_file_is_refused(momentum: object) -> None:
    network = Net(nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4)), 4)
    data = same_as_traced(network, (2, 6, 6)).to_json()
    for node in data["nodes"]:
        if node.get("norm"):
            node["norm"]["momentum"] = momentum
    with pytest.raises(FileFormatError, match="its graph cannot be read"):
        SpikingGraph.from_json(data)
