"""Rows of SpikingJelly 2.0.0: its own networks at a small size, and each neuron in a small one."""

from collections.abc import Callable
from functools import partial
from typing import Any

import ann2snn
import spikingjelly_rows
import torch
from row import Row
from torch import Tensor, nn

sj = spikingjelly_rows.Tool("spikingjelly.activation_based")


class FashionNet(nn.Module):
    """The convolutional network of SpikingJelly's tutorial (conv_fashion_mnist): it repeats an
    image over time and returns firing rates.
    """

    def __init__(self, steps: int = 4, width: int = 6) -> None:
        super().__init__()
        layer, neuron, self.steps = sj.layer, sj.neuron, steps
        grad = sj.surrogate.ATan
        self.conv_fc = nn.Sequential(
            *(layer.Conv2d(1, width, 3, padding=1, bias=False), layer.BatchNorm2d(width)),
            *(neuron.IFNode(surrogate_function=grad()), layer.MaxPool2d(2, 2)),
            *(layer.Conv2d(width, width, 3, padding=1, bias=False), layer.BatchNorm2d(width)),
            *(neuron.IFNode(surrogate_function=grad()), layer.MaxPool2d(2, 2), layer.Flatten()),
            layer.Linear(width * 49, width * 16, bias=False),
            neuron.IFNode(surrogate_function=grad()),
            layer.Linear(width * 16, 10, bias=False),
            neuron.IFNode(surrogate_function=grad()),
        )

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.conv_fc(x.unsqueeze(0).expand(self.steps, -1, -1, -1, -1)).mean(0)
        return found


def fully_connected(neuron: Callable[[], Any]) -> nn.Module:
    """The network of SpikingJelly's first tutorial (lif_fc_mnist)."""
    return nn.Sequential(sj.layer.Flatten(), sj.layer.Linear(784, 10, bias=False), neuron())


def small(neuron: Callable[[], Any], last: Callable[[], Any] | None = None) -> nn.Module:
    """Convolution, batch norm, neuron, average pooling, linear layer, neuron, linear layer."""
    layer = sj.layer
    return nn.Sequential(
        *(layer.Conv2d(2, 6, 3, padding=1, bias=False), layer.BatchNorm2d(6), neuron()),
        *(layer.AvgPool2d(2), layer.Flatten(), layer.Linear(96, 12), (last or neuron)()),
        layer.Linear(12, 4),
    )


def vgg() -> nn.Module:
    """spiking_vgg with two stages and a classifier as wide as they are."""
    network: nn.Module = sj.part("model.spiking_vgg").SpikingVGG(
        cfg=[8, "M", 16, 16, "M"], batch_norm=True, num_classes=4, spiking_neuron=sj.neuron.LIFNode
    )
    network.avgpool = sj.layer.AdaptiveAvgPool2d((2, 2))
    network.classifier = nn.Sequential(
        sj.layer.Linear(64, 32), sj.neuron.LIFNode(), sj.layer.Dropout(), sj.layer.Linear(32, 4)
    )
    return network


def residual(module: str, name: str, **more: Any) -> Callable[[], nn.Module]:
    """A residual network of one block a stage."""

    def build() -> nn.Module:
        models = sj.part(f"model.{module}")
        given = {"num_classes": 4, "spiking_neuron": sj.neuron.LIFNode, **more}
        made: nn.Module = getattr(models, name)(models.BasicBlock, [1, 1, 1, 1], **given)
        return made

    return build


def parametric(name: str, neuron: str, **more: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        models, kind = sj.part("model.parametric_lif_net"), getattr(sj.neuron, neuron)
        made: nn.Module = getattr(models, name)(channels=4, spiking_neuron=kind, **more)
        return made

    return build


def recurrent(container: str) -> nn.Module:
    """A recurrent layer as the documentation of the container has it."""
    inner = sj.neuron.LIFNode(v_reset=0.0)
    if container == "LinearRecurrentContainer":
        layer = sj.layer.LinearRecurrentContainer(inner, 12, 12)
    else:
        layer = sj.layer.ElementWiseRecurrentContainer(inner, lambda x, y: x + y)
    return nn.Sequential(sj.layer.Linear(20, 12), layer, sj.layer.Linear(12, 4))


def plain(pool: Any) -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), pool(2)),
        *(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d((2, 2)), nn.Flatten()),
        *(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 5)),
    )


def converted(pool: Any, **settings: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        network: nn.Module = ann2snn.converted(plain(pool), torch.rand(24, 1, 12, 12), **settings)
        return network

    return build


def node(name: str, **given: Any) -> Callable[[], nn.Module]:
    """In the small network; numbers that are learned are moved from where they start."""

    def one() -> Any:
        made = getattr(sj.neuron, name)(**given)
        with torch.no_grad():
            for parameter in made.parameters():
                parameter += 0.1 * torch.randn_like(parameter)
        return made

    return lambda: small(one)


def row(network: str, neuron: str, build: Callable[[], nn.Module], *shape: int, **how: Any) -> Row:
    light = how.pop("light", False)
    return Row(
        network=network, neuron=neuron, make=lambda: sj.made(build, shape, **how), light=light
    )


NEURONS: dict[str, tuple[str, dict[str, Any]]] = {
    "IF": ("IFNode", {}),
    "IF, soft reset": ("IFNode", {"v_reset": None}),
    "LIF": ("LIFNode", {}),
    "LIF, soft reset": ("LIFNode", {"v_reset": None, "tau": 1.5}),
    "LIF, input not decayed": ("LIFNode", {"decay_input": False, "tau": 3.0}),
    "PLIF": ("ParametricLIFNode", {}),
    "KLIF": ("KLIFNode", {}),
    "QIF": ("QIFNode", {}),
    "EIF": ("EIFNode", {}),
    "Izhikevich": ("IzhikevichNode", {"a": 0.3, "b": 0.2}),
    "CUBALIF": ("CUBALIFNode", {}),
    "ComplementaryLIF": ("ComplementaryLIFNode", {}),
    "I-LIF": ("ILIFNode", {}),
    "PSN": ("PSN", {"T": 4}),
    "MaskedPSN": ("MaskedPSN", {"k": 2, "T": 4}),
    "SlidingPSN": ("SlidingPSN", {"k": 2}),
    "LIAF": ("LIAFNode", {"act": nn.functional.relu, "threshold_related": True}),
}
SMALL = "convolutional, small"


def rows() -> list[Row]:
    digits, frames = (1, 28, 28), (2, 8, 8)
    return [
        row("conv_fashion_mnist", "IF", FashionNet, *digits, static=True, light=True),
        row(
            "lif_fc_mnist, step mode s",
            "LIF",
            lambda: fully_connected(lambda: sj.neuron.LIFNode(tau=2.0)),
            *digits,
            mode="s",
            static=True,
            light=True,
        ),
        row("spiking_vgg", "LIF", vgg, 3, 16, 16),
        row("sew_resnet, ADD", "LIF", residual("sew_resnet", "SEWResNet", cnf="ADD"), 3, 24, 24),
        row("sew_resnet, AND", "LIF", residual("sew_resnet", "SEWResNet", cnf="AND"), 3, 24, 24),
        row("sew_resnet, IAND", "LIF", residual("sew_resnet", "SEWResNet", cnf="IAND"), 3, 24, 24),
        row("spiking_resnet", "LIF", residual("spiking_resnet", "SpikingResNet"), 3, 24, 24),
        row(
            "ms_resnet18",
            "LIF",
            lambda: sj.part("model.ms_resnet").ms_resnet18(T=4, num_classes=4, base_channels=4),
            3,
            24,
            24,
        ),
        row(
            "max_resnet",
            "LIF",
            lambda: sj.part("model.ms_resnet").MaxResNet(
                4, layers=(1, 1, 1), stage_channels=(8, 8, 16), base_channels=8, stem_kernel_size=3
            ),
            3,
            16,
            16,
        ),
        row("MNISTNet", "PLIF", parametric("MNISTNet", "ParametricLIFNode"), *digits),
        row("NMNISTNet", "PLIF", parametric("NMNISTNet", "ParametricLIFNode"), 2, 34, 34),
        row("CIFAR10Net", "PLIF", parametric("CIFAR10Net", "ParametricLIFNode"), 3, 32, 32),
        row("DVSGestureNet", "LIF", parametric("DVSGestureNet", "LIFNode"), 2, 128, 128, batch=2),
        row(
            "ann2snn, average pooling",
            "IF",
            converted(nn.AvgPool2d),
            1,
            12,
            12,
            mode="s",
            static=True,
            live=False,
            steps=8,
        ),
        row(
            "ann2snn, max pooling",
            "IF",
            converted(nn.MaxPool2d, mode="99.9%"),
            1,
            12,
            12,
            mode="s",
            static=True,
            live=False,
            steps=8,
        ),
        *(
            row(
                f"{SMALL}",
                name,
                node(of[0], **of[1]),
                *frames,
                light=name in LIGHT,
                level=3.0 if "PSN" in name else 0.8,
            )
            for name, of in NEURONS.items()
        ),
        row(f"{SMALL}, step mode s", "LIF", node("LIFNode"), *frames, mode="s"),
        row(f"{SMALL}, step mode s", "IF", node("IFNode"), *frames, mode="s"),
        row(
            SMALL,
            "GatedLIF",
            lambda: small(lambda: sj.neuron.GatedLIFNode(T=4, inplane=6), sj.neuron.LIFNode),
            *frames,
        ),
        row(
            f"{SMALL}, membrane read-out",
            "LIF, NonSpikingLIF",
            lambda: nn.Sequential(
                small(sj.neuron.LIFNode), sj.neuron.NonSpikingLIFNode(decode="last_mem")
            ),
            *frames,
        ),
        *(
            row(name, "LIF", partial(recurrent, name), 20)
            for name in ("LinearRecurrentContainer", "ElementWiseRecurrentContainer")
        ),
        row(
            "qkformer",
            "LIF",
            lambda: sj.part("model.qkformer").QKFormer(
                4, embed_dims=48, num_heads=(1, 1, 1), depths=(1, 1, 1), num_classes=4
            ),
            3,
            24,
            24,
        ),
    ]


LIGHT = ("PLIF", "Izhikevich", "I-LIF")
