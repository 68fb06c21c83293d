"""Networks that SpikingJelly's ann2snn converted: its scalers are constants of the graph."""

from pathlib import Path
from typing import Any

import pytest
import torch
from ann2snn import converted
from torch import Tensor, nn

from soul_deploy import from_torch
from soul_deploy.base.errors import UnsupportedGraphError
from soul_deploy.equivalence.verdict import Verdict
from soul_deploy.export.event.build import build_event_network, export_event
from soul_deploy.export.onnx.model import export_onnx
from soul_deploy.export.verify.verify import verify
from soul_deploy.ir import Scale
from soul_deploy.model.file import load, save
from soul_deploy.model.model import Model
from soul_deploy.prune.removal.apply import remove

pytest.importorskip("spikingjelly", reason="`make` installs SpikingJelly for these tests")

from spikingjelly.activation_based import functional, neuron

STEPS, SHAPE = 8, (1, 12, 12)


def plain(pool: Any) -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), pool(2)),
        *(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d((2, 2)), nn.Flatten()),
        *(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 5)),
    )


class Residual(nn.Module):
    """A sum of scaled spikes and a current, which is scaled in turn."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.stem_relu = nn.Conv2d(1, 8, 3, padding=1), nn.ReLU()
        self.conv1, self.relu1 = nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()
        self.conv2, self.relu2 = nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()
        self.pool, self.flat, self.head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem_relu(self.stem(x))
        y = self.conv2(self.relu1(self.conv1(x)))
        return self.head(self.flat(self.pool(self.relu2(x + y))))  # type: ignore[no-any-return]


NETWORKS: dict[str, tuple[Any, dict[str, Any]]] = {
    "average pooling": (lambda: plain(nn.AvgPool2d), {}),
    "max pooling": (lambda: plain(nn.MaxPool2d), {"mode": "99.9%"}),
    "channel by channel": (lambda: plain(nn.MaxPool2d), {"channel_wise": True}),
    "pooled before": (
        lambda: plain(nn.MaxPool2d),
        {"channel_wise": True, "pre_spike_maxpool": True},
    ),
    "residual": (Residual, {"mode": 0.5}),
}


def made(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    network, settings = NETWORKS[name]
    return converted(network(), torch.rand(24, *SHAPE), **settings), torch.rand(6, *SHAPE)


def own_run(network: nn.Module, x: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Spikes (T, B, ...) and mean scores, by SpikingJelly alone."""
    heard: dict[str, list[Tensor]] = {}
    hooks = [
        module.register_forward_hook(
            lambda module, inputs, output, name=name: heard.setdefault(name, []).append(output)
        )
        for name, module in network.named_modules()
        if isinstance(module, neuron.BaseNode)
    ]
    functional.reset_net(network)
    with torch.no_grad():
        scores = torch.stack([network(x) for _ in range(STEPS)]).mean(0)
    functional.reset_net(network)
    for hook in hooks:
        hook.remove()
    return {name: torch.stack(spikes).bool() for name, spikes in heard.items()}, scores


@pytest.mark.parametrize("name", NETWORKS)
def test_a_converted_network_fires_as_in_spikingjelly(name: str, tmp_path: Path) -> None:
    network, x = made(name)
    model = from_torch(network, SHAPE, STEPS, example=x)
    spikes, scores = own_run(network, x)
    found = model.module().record(x)
    assert list(found.spikes) == list(spikes) and len(spikes) == 3
    for population, mine in found.spikes.items():
        assert torch.equal(mine, spikes[population]), population
        assert 0.02 < mine.float().mean() < 0.98, population
    torch.testing.assert_close(found.logits, scores, rtol=0, atol=1e-6)
    save(model, tmp_path / "model.safetensors")
    model = load(tmp_path / "model.safetensors")
    for file, export in (("net.onnx", export_onnx), ("net.event.safetensors", export_event)):
        export(model, tmp_path / file)
        report = verify(model, tmp_path / file, x)
        assert report.verdict is Verdict.PASSED, report.text()


@pytest.mark.parametrize("name", NETWORKS)
def test_constants_leave_no_layer_and_no_multiplication(name: str) -> None:
    """All synapses behind neurons are reached by spikes; no scaler is a layer of its own."""
    network, x = made(name)
    events = build_event_network(from_torch(network, SHAPE, STEPS, example=x))
    edges = {layer.projection: layer.edge for layer in events.projected}
    (first, *others) = edges
    assert edges[first] == "analog" and {edges[name] for name in others} == {"spike"}
    alone = [name for name in edges if "scaler" in name]
    assert alone == (["spiking_2.scaler0.0"] if name == "residual" else [])  # spikes of a sum


def channels_off(model: Model) -> Model:
    """The model without the rows 0 and 5 of its second convolution."""
    _, second, *_ = model.graph.projections
    state = dict(model.state)
    for part in ("weight", "bias"):
        rows = state[f"{second.name}.{part}"].copy()
        rows[[0, 5]] = 0
        state[f"{second.name}.{part}"] = rows
    return Model(model.graph, state, info=model.info)


@pytest.mark.parametrize("name", NETWORKS)
def test_silent_channels_go_with_their_constants(name: str) -> None:
    network, x = made(name)
    model = channels_off(from_torch(network, SHAPE, STEPS, example=x))
    compact = remove(model)
    (_, before, *_), (_, after, *_) = model.graph.projections, compact.graph.projections
    assert (before.out_channels, after.out_channels) == (8, 6)
    with torch.no_grad():
        assert torch.equal(compact.module()(x), model.module()(x))
    scales = [node for node in compact.graph.of_type(Scale) if node.factor is None]
    widths = {compact.state[f"{node.name}.scale"].shape for node in scales}
    assert widths == ({(8,), (6,), (16,)} if "channel_wise" in NETWORKS[name][1] else set())


def test_a_neuron_that_is_not_known_is_named() -> None:
    torch.manual_seed(0)
    settings = {"channel_wise": True, "half_threshold": True}
    network = converted(plain(nn.AvgPool2d), torch.rand(4, *SHAPE), **settings)
    with pytest.raises(UnsupportedGraphError, match=r"if_node' \(HalfThresholdIFNode\) is not"):
        from_torch(network, SHAPE, STEPS)


def test_scaling_along_another_axis_is_refused() -> None:
    torch.manual_seed(0)
    network = converted(plain(nn.AvgPool2d), torch.rand(4, *SHAPE), channel_wise=True)
    network.get_submodule("channel_spiking_0.scaler0").channel_dim = 2  # type: ignore[assignment]
    with pytest.raises(UnsupportedGraphError, match=r"which scales along axis 2; channels are ax"):
        from_torch(network, SHAPE, STEPS)
