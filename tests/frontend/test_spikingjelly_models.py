"""SpikingJelly 2.0.0's own networks: MS-ResNet-18 the whole way, the others traced or refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import soul_deploy
from soul_deploy import FinetuneConfig, PruneSchedule, ScaConfig, SearchConfig, TrainConfig
from soul_deploy.base.errors import NetworkWarning, UnsupportedGraphError
from soul_deploy.frontend.from_torch import trace
from soul_deploy.model.model import Model
from soul_deploy.prune.result import PruneResult

pytest.importorskip("spikingjelly", reason="`make` installs SpikingJelly for these tests")

from spikingjelly.activation_based import functional, layer, neuron, surrogate
from spikingjelly.activation_based.model import (
    masnn,
    ms_resnet,
    parametric_lif_net,
    qkformer,
    sew_resnet,
    spiking_resnet,
)

T, SHAPE, CLASSES = 3, (3, 24, 24), 4
TRAINING = TrainConfig(epochs=1, batch_size=12, learning_rate=2e-3)
SCA = ScaConfig(PruneSchedule(ratio=0.4, epochs=2, finetune_epochs=1))
SEARCH = SearchConfig(
    penalty_lmbda=1e-9,
    mask_init_factor=(0, 0, 0.05, 0.05),
    temp_scheduler=(5, 100),
    prune_lr=0.02,
    finetune=FinetuneConfig(epochs=1, learning_rate=1e-3),
)


def frames(batch: int, *shape: int) -> Tensor:
    return torch.randn(T, batch, *shape, generator=torch.Generator().manual_seed(7))


def lively(network: nn.Module, x: Tensor) -> nn.Module:
    """Every layer fires: batch norms with the statistics of x and offsets above 0, strong heads."""
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    with torch.no_grad():
        for norm in norms:
            norm.momentum = None
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.uniform_(0, 0.5)
        for module in network.modules():
            if isinstance(module, nn.Linear):
                module.weight.mul_(9)
        network.train()(x)
    functional.reset_net(network)
    return network.eval()


def own_run(network: nn.Module, x: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """What the network's neurons return, and its scores, by SpikingJelly alone."""
    heard: dict[str, Tensor] = {}

    def listen(name: str) -> Callable[..., None]:
        return lambda module, inputs, output: heard.update({name: output.bool()})

    neurons = {n: m for n, m in network.named_modules() if isinstance(m, neuron.BaseNode)}
    hooks = [module.register_forward_hook(listen(name)) for name, module in neurons.items()]
    with torch.no_grad():
        scores = network(x)
    functional.reset_net(network)
    for hook in hooks:
        hook.remove()
    return heard, scores.mean(0) if scores.dim() == 3 else scores


def assert_same(model: Model, network: nn.Module, x: Tensor) -> None:
    spikes, scores = own_run(network, x)
    found = model.module().record(x)
    assert found.spikes.keys() == spikes.keys()
    for name, mine in found.spikes.items():
        assert torch.equal(mine, spikes[name]), name
        assert 0.001 < mine.float().mean() < 0.999, name
    torch.testing.assert_close(found.logits, scores, rtol=0, atol=1e-5)
    assert scores.std() > 0.01


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    made = ms_resnet.ms_resnet18(T=T, num_classes=CLASSES, base_channels=4)
    return lively(made, frames(4, *SHAPE))


@pytest.fixture(scope="module")
def model(network: nn.Module) -> Model:
    return soul_deploy.from_torch(network, SHAPE, T, example=frames(4, *SHAPE))


def test_ms_resnet18_fires_as_in_spikingjelly(network: nn.Module, model: Model) -> None:
    """Its forward asks whether it is given images or a sequence: it is traced for both."""
    assert "untested" not in model.info.provenance
    assert len(model.graph.populations) == 17
    assert_same(model, network, frames(2, *SHAPE))
    image = frames(2, *SHAPE)[0] * 2
    again = soul_deploy.from_torch(network, SHAPE, T, example=image)
    assert again.graph == model.graph
    assert again.graph.edges["layer1.0.add"].kind == "analog"  # currents meet, not spikes
    expected = own_run(network, image)[1]
    torch.testing.assert_close(again.module()(image), expected, rtol=0, atol=1e-6)


class Encoding(nn.Module):
    """Images are encoded by neurons of their own; sequences are spikes already."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Sequential(layer.Conv2d(3, 3, 1), neuron.IFNode())
        self.body = nn.Sequential(
            layer.Conv2d(3, 4, 3), neuron.LIFNode(v_threshold=0.1), layer.Flatten()
        )
        self.head = layer.Linear(4 * 22 * 22, CLASSES)
        functional.set_step_mode(self, "m")

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() == 4:
            x = self.encode(x.unsqueeze(0).repeat(T, 1, 1, 1, 1))
        return self.head(self.body(x)).mean(0)  # type: ignore[no-any-return]


def test_the_example_says_which_of_two_ways_is_traced() -> None:
    torch.manual_seed(0)
    network, x = Encoding().eval(), frames(2, *SHAPE) * 9
    for example, first in ((x, "body.1"), (x[0], "encode.1")):
        model = soul_deploy.from_torch(network, SHAPE, T, example=example)
        assert model.graph.populations[0].name == first
        assert_same(model, network, example)


def test_containers_alone_take_sequences() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        layer.SeqToANNContainer(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 22 * 22, 5)),
        layer.MultiStepContainer(neuron.IFNode(v_threshold=0.1)),
    )
    x = frames(2, *SHAPE) * 3
    model = soul_deploy.from_torch(network.eval(), SHAPE, T, example=x)
    with torch.no_grad():
        expected = network(x).mean(0)
    functional.reset_net(network)
    assert expected.std() > 0.01
    torch.testing.assert_close(model.module()(x), expected, rtol=0, atol=1e-6)


def test_what_a_trace_warns_about_is_said_once() -> None:
    """Also where the network is traced twice, for sequences and for images."""
    network = Encoding()
    network.body[1].surrogate_function = surrogate.Erf()
    with pytest.warns(NetworkWarning, match="surrogate function Erf is not known") as said:
        graph = trace(network, SHAPE, T)
    assert len(graph.populations) == 2 and len(said) == 1


def reaches_every_format(result: PruneResult, folder: Path) -> None:
    """Masked and compact have the same scores; the files of the compact network are verified."""
    compact, x = result.compact, frames(4, *SHAPE)
    assert compact is not None
    with torch.no_grad():
        mine, masked = compact.module()(x), result.masked.module()(x)
    torch.testing.assert_close(mine, masked, rtol=0, atol=1e-5)
    spikes = compact.module().record(x).spikes
    assert len(spikes) == 17 and all(fired.any() for fired in spikes.values())
    soul_deploy.export_event(compact, folder / "net.event.safetensors")
    soul_deploy.export_onnx(compact, folder / "net.onnx", input_mode="sequence")
    names = ["net.event.safetensors", "net.onnx"]
    if compact.neuron_masks:
        with pytest.raises(UnsupportedGraphError, match="masked neurons; NIR has no node"):
            soul_deploy.export_nir(compact, folder / "net.nir")
    else:
        soul_deploy.export_nir(compact, folder / "net.nir")
        names.append("net.nir")
    for name in names:
        report = soul_deploy.verify(compact, folder / name, x)
        assert report.passed, report.text()


def data() -> tuple[Any, Any]:
    return frames(8, *SHAPE).flatten(0, 1).numpy(), np.arange(24) % CLASSES


def test_ms_resnet18_without_channels_reaches_every_format(model: Model, tmp_path: Path) -> None:
    result = soul_deploy.prune_structured(model, data(), SCA, TRAINING, device="cpu")
    reaches_every_format(result, tmp_path)
    assert result.compact is not None and not result.compact.neuron_masks
    sizes = [sum(a.size for a in m.state.values()) for m in (model, result.compact)]
    assert sizes[1] < 0.8 * sizes[0]


def test_ms_resnet18_without_synapses_reaches_every_format(model: Model, tmp_path: Path) -> None:
    result = soul_deploy.prune_unstructured(model, data(), SEARCH, TRAINING, device="cpu")
    reaches_every_format(result, tmp_path)
    assert result.compact is not None and result.compact.neuron_masks
    left = soul_deploy.connectivity(result.compact).share
    assert 0.2 < left < 0.6


LIF = {"spiking_neuron": neuron.LIFNode, "surrogate_function": surrogate.ATan()}
ZOO: dict[str, tuple[Callable[[], nn.Module], tuple[int, int, int]]] = {
    "max_resnet18": (
        lambda: ms_resnet.MaxResNet(
            T, layers=(1, 1, 1), stage_channels=(8, 8, 16), base_channels=8, stem_kernel_size=3
        ),
        (3, 16, 16),
    ),
    "spiking_resnet18": (lambda: spiking_resnet.spiking_resnet18(num_classes=4, **LIF), SHAPE),
    "sew_resnet50": (lambda: sew_resnet.sew_resnet50(num_classes=4, cnf="ADD", **LIF), SHAPE),
    "parametric LIF network": (
        lambda: parametric_lif_net.MNISTNet(channels=8, spiking_neuron=neuron.ParametricLIFNode),
        (1, 28, 28),
    ),
}


@pytest.mark.parametrize("name", ZOO)
def test_other_networks_fire_as_in_spikingjelly(name: str) -> None:
    torch.manual_seed(0)
    make, shape = ZOO[name]
    network, x = make(), frames(2, *shape)
    functional.set_step_mode(network, "m")
    lively(network, x)
    assert_same(soul_deploy.from_torch(network, shape, T, example=x), network, x)


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "attention": (
        lambda: masnn.AttMSResNet(T=T, num_classes=4, layers=(1, 1, 1), base_channels=16),
        r"^module 'layer1\.0\.attention' \(MultiDimensionalAttention\) is not supported",
    ),
    "tokens": (
        lambda: qkformer.QKFormer(T, embed_dims=48, num_heads=(1, 1, 1), depths=(1, 1, 1)),
        r"^flattening axes 3 to 4 of \(T, B, 12, 6, 6\) is not supported \(in module 'stage1\.0', ",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_networks_that_no_graph_holds_are_refused_in_a_sentence(name: str) -> None:
    make, text = REFUSED[name]
    with torch.device("meta"):
        network = make()
    with pytest.raises(UnsupportedGraphError, match=text):
        trace(network, SHAPE, T)
