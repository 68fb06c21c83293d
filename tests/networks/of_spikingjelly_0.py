"""Rows of SpikingJelly 0.0.0.0.14: the same networks, with that version's arithmetic."""

from of_spikingjelly_2 import (
    NEURONS,
    SMALL,
    FashionNet,
    fully_connected,
    node,
    parametric,
    residual,
    row,
    sj,
    vgg,
)
from row import Row

HELD = ("IF", "LIF", "LIF, soft reset", "LIF, input not decayed", "PLIF", "KLIF", "QIF", "EIF")


def rows() -> list[Row]:
    digits, frames = (1, 28, 28), (2, 8, 8)
    add = residual("sew_resnet", "SEWResNet", cnf="ADD")
    return [
        row("conv_fashion_mnist", "IF", FashionNet, *digits, static=True),
        row(
            "lif_fc_mnist, step mode s",
            "LIF",
            lambda: fully_connected(lambda: sj.neuron.LIFNode(tau=2.0)),
            *digits,
            mode="s",
            static=True,
        ),
        row("spiking_vgg", "LIF", vgg, 3, 16, 16),
        row("sew_resnet, ADD", "LIF", add, 3, 24, 24),
        row("spiking_resnet", "LIF", residual("spiking_resnet", "SpikingResNet"), 3, 24, 24),
        row("MNISTNet", "PLIF", parametric("MNISTNet", "ParametricLIFNode"), *digits),
        *(row(SMALL, name, node(NEURONS[name][0], **NEURONS[name][1]), *frames) for name in HELD),
        row(f"{SMALL}, step mode s", "LIF", node("LIFNode"), *frames, mode="s"),
        row(SMALL, "Izhikevich", node("IzhikevichNode", a=0.3, b=0.2), *frames),
    ]
